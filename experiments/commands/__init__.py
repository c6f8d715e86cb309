"""The commands of `kullback`, a module each: its parser, and what it does."""
