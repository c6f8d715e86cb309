"""The five MinAtar games, compiled."""
