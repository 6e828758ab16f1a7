"""Weights with fewer bits."""
