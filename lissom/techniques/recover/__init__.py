"""Getting back what compressing has cost."""
