"""Addresses of databases and servers: the driver that is installed, and what may be said, logged and kept of them.

SQLAlchemy's `hide_password` ends a password at its first @ and shows what is in the query; what is hidden here ends
at the last @ of the whole address, which may be too much and is never too little.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Iterator
from urllib.parse import unquote, urlsplit

from facerec.errors import InputError

# All of these take time in proportion to the text, which may be a stranger's: each attempt begins behind the last one.
NAME = re.compile(r"(?<![\w-])([\w-]+)(?:=|%3D)", re.IGNORECASE)
SENSITIVE = re.compile(
    r"passw(?:or)?d|passphrase|pwd|secret|token|credential|(?:api|access|account|private)[_-]?key\Z",
    re.IGNORECASE,
)
OF_ADDRESS, OF_MESSAGE = re.compile(r"[^&]*"), re.compile(r"[^&;,\s]*")  # values of a name
WORD = re.compile(r"\S+")
USER = re.compile(r"://[^:]*:|:(?!/)")  # before the last @: ends where a password begins
ALONE = re.compile(r"(https?://)([^:/\s]+)@")  # an account without a colon: a token
LONGEST = 4096  # characters of a message that are looked through
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


def account_to_move(uri: str) -> tuple[str, str, str]:
    """As `account`, of an address that will be connected to: it is left whole where urllib reads it in another way."""
    found = account(uri)
    try:
        parts = urlsplit(uri)
    except ValueError:
        return uri, "", ""
    return found if (parts.username, parts.password) == found[1:] else (uri, "", "")


def without_password(uri: str) -> str:
    """A whole address as it may be shown and logged; a path or a name as it is."""
    bare, user, password = account(uri)
    if password:
        scheme, _, host = bare.partition("://")
        uri = f"{scheme}://{user}:***@{host}"
    return hide(ALONE.sub(r"\1***@", uri), OF_ADDRESS) if "://" in uri else uri


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
    message = WORD.sub(hide_account, ALONE.sub(r"\1***@", message[:LONGEST]))
    return hide(message, OF_MESSAGE)


def hide_account(word: re.Match[str]) -> str:
    """A word of a message without the password of an address that nobody has told us of, up to its last @."""
    before, _, host = word[0].rpartition("@")
    user = USER.search(before)
    return f"{before[: user.end()]}***@{host}" if user and user.end() < len(before) else word[0]


def hide(text: str, value: re.Pattern[str]) -> str:
    """The text with *** for the values of sensitive names."""
    shown, at = [], 0
    for start, end in values(text, value):
        shown += [text[at:start], "***"]
        at = end
    return "".join([*shown, text[at:]])


def values(text: str, value: re.Pattern[str]) -> Iterator[tuple[int, int]]:
    """Where the values of sensitive names begin and end."""
    at = 0
    for name in NAME.finditer(text):
        if name.start() >= at and SENSITIVE.search(name[1]):
            found = value.match(text, name.end())
            assert found is not None  # an empty value matches too
            at = found.end()
            yield name.end(), at


def secrets_of(uri: str) -> Iterator[str]:
    """What an address hides, as it stands and decoded, and the pieces that a careless parser makes of it."""
    named = [uri[start:end] for start, end in values(uri, OF_ADDRESS)] if "://" in uri else []
    alone = [found[2] for found in ALONE.finditer(uri)]
    for secret in (account(uri)[2], *named, *alone):
        yield from (secret, unquote(secret), *re.split(r"[@/:?#\s]", secret))
