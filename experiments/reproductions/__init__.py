"""Claims of papers, run small: one module each, see `experiments/reproduce.py`."""
