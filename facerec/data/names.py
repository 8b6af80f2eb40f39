"""Names of people: what tells two of them apart, what a hash is made of, and which look like one person.

Three rules, each for one purpose. `identity` decides who is who. `name_key` is what splits are made from: it ignores
case and separators, so that "Brad Pitt" and "brad_pitt" never lie on both sides of a split, but keeps every letter,
mark and sign. `fold_name` ignores marks and signs too; it only suggests that two names may mean one person.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable

from facerec.runtime.text import as_utf8, shown

SEPARATORS = re.compile(r"[\s_.,'’-]+")


def identity(name: str) -> str:
    """The name as it stands, in Unicode's form NFC: who has another identity is another person.

    A Mac's archive spells "é" with two characters and a PC's with one; both are one name. Bytes of a file name that
    are not UTF-8 become escapes, so that every identity can be written anywhere.

    >>> identity("Jose\\u0301") == "Jos\\u00e9", identity("Dung") == identity("Dũng"), identity("C+")
    (True, False, 'C+')
    """
    return unicodedata.normalize("NFC", as_utf8(name))


def name_key(name: str) -> str:
    """What splits hash: case, spaces and separators do not count, letters, marks and signs do.

    >>> name_key("Brad  Pitt"), name_key("brad_pitt"), name_key("Dũng"), name_key("C+")
    ('brad_pitt', 'brad_pitt', 'dũng', 'c+')
    """
    plain = unicodedata.normalize("NFC", identity(name).casefold())
    return "_".join(filter(None, SEPARATORS.split(plain))) or name.strip()


def fold_name(name: str) -> str:
    """A name without accents, case, spaces and punctuation: for suggestions, and for LFW's lists.

    Different people fold alike ("Dung" and "Dũng"), so it never tells who somebody is.

    >>> fold_name("José  Álvarez-Núñez"), fold_name("jose_alvarez_nunez")
    ('jose_alvarez_nunez', 'jose_alvarez_nunez')
    """
    name = as_utf8(name)
    plain = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", name).casefold())
    letters = "".join(c if c.isalnum() else "_" for c in plain if not unicodedata.combining(c))
    return "_".join(filter(None, letters.split("_"))) or name.strip()


def key_hash(key: str) -> float:
    """SHA-256 of a key as a number in [0, 1)."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64


def case_notes(identities: Iterable[str]) -> tuple[str, ...]:
    """A sentence where names look alike: nobody else knows whether they are one person."""
    groups: dict[str, list[str]] = {}
    for name in sorted(set(identities)):
        groups.setdefault(_look(name), []).append(name)
    alike = [names for names in groups.values() if len(names) > 1]
    if not alike:
        return ()
    more = f", and {len(alike) - 1:,} more such names" if len(alike) > 1 else ""
    return (
        f"{' and '.join(map(shown, alike[0]))}{more} look alike and are taken for different people: where they are one "
        "person, give them one name",
    )


def _look(name: str) -> str:
    """A name as it looks: without case, separators, width and characters that nobody sees."""
    plain = unicodedata.normalize("NFKC", name_key(name)).casefold()
    return "".join(c for c in plain if unicodedata.category(c) != "Cf")
