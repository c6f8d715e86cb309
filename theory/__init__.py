"""Exact tabular schemes and their twins in convex optimisation; no neural network."""
