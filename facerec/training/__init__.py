"""One training: the loop, checkpoints, resume, ranks, and the model that it leaves."""
