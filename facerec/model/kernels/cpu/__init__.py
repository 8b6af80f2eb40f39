"""Numba kernels that run on PyTorch's own threads; docs/kernels.md says how."""
