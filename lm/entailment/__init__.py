"""Entailment: models that say whether one text follows from another, and their data."""
