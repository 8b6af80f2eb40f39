"""One module a command: its settings, its help, and a call into the package. None imports another's work."""
