"""Weights that are removed."""
