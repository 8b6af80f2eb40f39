"""TODO triton."""
