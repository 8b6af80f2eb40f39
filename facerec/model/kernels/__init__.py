"""Implementations of the scan and the mixer: `cpu` (Numba), `triton` (CUDA), and the bridge to mamba-ssm."""
