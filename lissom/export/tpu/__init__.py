"""A model lowered for TPUs, and compiled by their own compiler ahead of time."""
