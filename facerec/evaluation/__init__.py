"""Embeddings to metrics with confidence intervals, on protocols that report train/test overlap."""
