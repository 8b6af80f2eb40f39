"""Rendered people: faces from a seed, so that everything can be tried without photographs."""
