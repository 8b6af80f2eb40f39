"""Addresses of databases and servers: the driver that is installed, and what may be shown of them."""

from __future__ import annotations

import importlib.util
import re

from facerec.settings import InputError

# Up to the last @ of an address, of a piece of one, and given by name.
PASSWORDS = (
    re.compile(r"(?<=://)(?P<user>[^:/@\s]*):\S*(?=@)"),
    re.compile(r"(?P<user>(?<![:/])\b[^:/@\s]*):[^:@/\s]+(?=@)"),
    re.compile(r"(?P<user>password)=[^&\s]*", re.IGNORECASE),
)


def with_driver(url: str) -> str:
    """A PostgreSQL URL that names the driver that is installed. Raises InputError where there is none."""
    scheme, _, rest = url.partition("://")
    if scheme not in ("postgresql", "postgres"):
        return url
    for driver in ("psycopg2", "psycopg"):
        if importlib.util.find_spec(driver):
            return f"postgresql+{driver}://{rest}"
    raise InputError("PostgreSQL needs a driver: pip install 'facerec[postgres]'")


def without_password(text: str) -> str:
    """A URL, or a message with one in it, as it may be shown and logged."""
    for pattern in PASSWORDS:
        text = pattern.sub(lambda found: found["user"] + found[0][len(found["user"])] + "***", text)
    return text
