"""Pages, charts and tables, and what `evaluate` and `visualize` make of them."""
