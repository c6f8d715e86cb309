"""Evaluations of what was trained, and texts that it writes."""
