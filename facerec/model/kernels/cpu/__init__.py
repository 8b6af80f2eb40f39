"""Numba kernels that run on PyTorch's own threads; docs/design/kernels.md says how."""
