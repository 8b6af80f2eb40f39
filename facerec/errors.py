"""Bad input, told in one sentence."""

from __future__ import annotations


class InputError(Exception):
    """Bad input, told in one sentence: what, where, what to do. The command line prints it and exits with 2."""
