"""Addresses of databases and servers: the driver that is installed, and what may be said, logged and kept of them.

SQLAlchemy's `hide_password` ends a password at its first @ and shows what is in the query; what is hidden here ends
at the last @ of the whole address, which may be too much and is never too little.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Iterator
from urllib.parse import unquote

from facerec.settings import InputError

NAMED = (
    r"\b(?:[\w-]*(?:passw(?:or)?d|passphrase|pwd|secret|token|credential)[\w-]*"
    r"|(?:api|access|account|private)[_-]?key)"
)
OF_ADDRESS = re.compile(rf"({NAMED})(=|%3D)([^&]*)", re.IGNORECASE)
OF_MESSAGE = re.compile(rf"({NAMED})(=|%3D)[^&;,\s]*", re.IGNORECASE)
# In a message, an address that nobody has told us of: up to its last @, and a piece of one.
UNKNOWN = (
    re.compile(r"(?<=://)([^:/@\s]*):\S*(?=@)"),
    re.compile(r"((?<![:/])\b[^:/@\s]*):[^:@/\s]+(?=@)"),
)
URIS = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")
SECRETS = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "PGPASSWORD")
SHORTEST = 4  # characters of a secret that is looked for by itself in a message


def with_driver(url: str) -> str:
    """A PostgreSQL URL that names the driver that is installed. Raises InputError where there is none."""
    scheme, _, rest = url.partition("://")
    if scheme not in ("postgresql", "postgres"):
        return url
    for driver in ("psycopg2", "psycopg"):
        if importlib.util.find_spec(driver):
            return f"postgresql+{driver}://{rest}"
    raise InputError("PostgreSQL needs a driver: pip install 'facerec[postgres]'")


def account(uri: str) -> tuple[str, str, str]:
    """An address without its account, the user's name and the password; the last two empty where it has no password."""
    scheme, sign, rest = uri.partition("://")
    before, _, host = rest.rpartition("@")
    user, _, password = before.partition(":")
    return (f"{scheme}{sign}{host}", user, password) if password else (uri, "", "")


def without_password(uri: str) -> str:
    """A whole address as it may be shown and logged; a path or a name as it is."""
    bare, user, password = account(uri)
    if password:
        scheme, _, host = bare.partition("://")
        uri = f"{scheme}://{user}:***@{host}"
    return OF_ADDRESS.sub(r"\1\2***", uri) if "://" in uri else uri


def without_secrets(message: str, *uris: str) -> str:
    """A message as it may be shown and logged, with any address in it.

    Args:
        uris: addresses that it may repeat, whole or in pieces, beside those in MLflow's variables.
    """
    known = [*uris, *(os.environ[name] for name in URIS if name in os.environ)]
    for uri in known:
        message = message.replace(uri, without_password(uri))
    secrets = {os.environ[name] for name in SECRETS if name in os.environ}
    secrets |= {secret for uri in known for secret in secrets_of(uri)}
    for secret in sorted(secrets, key=len, reverse=True):
        if len(secret) >= SHORTEST:
            message = message.replace(secret, "***")
    for pattern in UNKNOWN:
        message = pattern.sub(r"\1:***", message)
    return OF_MESSAGE.sub(r"\1\2***", message)


def secrets_of(uri: str) -> Iterator[str]:
    """What an address hides, as it stands and decoded, and the pieces that a careless parser makes of it."""
    named = [found[3] for found in OF_ADDRESS.finditer(uri)] if "://" in uri else []
    for secret in (account(uri)[2], *named):
        yield from (secret, unquote(secret), *re.split(r"[@/:?#\s]", secret))
