"""Runs: plans, training, resumption, and what is kept in a run's folder."""
