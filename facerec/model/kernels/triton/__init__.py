"""Triton kernels for CUDA; docs/gpu.md says how."""
