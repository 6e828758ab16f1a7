"""Getting quality back by training, on one machine or on many."""
