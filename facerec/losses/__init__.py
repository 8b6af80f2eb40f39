"""Embeddings to a loss: margin softmax, pair losses, miners, and the objective that a training minimises."""
