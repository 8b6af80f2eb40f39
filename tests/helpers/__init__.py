"""What several tests use."""

from pathlib import Path

PROJECT = Path(__file__).parents[2]
