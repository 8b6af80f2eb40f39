"""Addresses of databases and servers: the driver that is installed, and what may be shown of them."""

from __future__ import annotations

import importlib.util
import re

from facerec.settings import InputError

PASSWORD = re.compile(r"(?<=:)[^:@/\s]*(?=@)")


def with_driver(url: str) -> str:
    """A PostgreSQL URL that names the driver that is installed. Raises InputError where there is none."""
    scheme, rest = url.split("://", 1)
    if scheme not in ("postgresql", "postgres"):
        return url
    for driver in ("psycopg2", "psycopg"):
        if importlib.util.find_spec(driver):
            return f"postgresql+{driver}://{rest}"
    raise InputError("PostgreSQL needs a driver: pip install 'facerec[postgres]'")


def without_password(text: str) -> str:
    """A URL, or a message with one in it, as it may be shown and logged."""
    return PASSWORD.sub("***", text) if "://" in text else text
