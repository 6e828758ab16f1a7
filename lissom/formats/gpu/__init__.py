"""The formats on a GPU: products of compressed matrices by kernels in Triton, for tensors on CUDA."""
