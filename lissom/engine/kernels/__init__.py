"""Running compressed weights fast: layers whose kernels read the compressed form."""
