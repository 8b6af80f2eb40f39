"""Images to embeddings: the network, Mamba's mixer and scan, and the kernels under them."""
