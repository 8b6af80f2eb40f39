"""Images to batches: what a data set holds and who is on it, decoding, alignment, the store, splits, sampling."""
