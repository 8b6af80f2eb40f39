"""facerec: face embeddings from Mamba networks, trained, tracked, tuned and served on any machine."""

__version__ = "0.1.0"
