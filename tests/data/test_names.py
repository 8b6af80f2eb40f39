"""Who is who by name: forms of Unicode are one, marks and signs tell people apart."""

from __future__ import annotations

import unicodedata

import pytest

from facerec.data.names import case_notes, fold_name, identity, name_key
from facerec.runtime.text import as_utf8

DIFFERENT = (
    *(("Dung", "Dũng"), ("सीमा", "सोमा"), ("たいき", "だいき")),
    *(("กิตติ", "กิตตุ"), ("C+", "C#"), ("Ann", "Ann!")),
)


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_marks_and_signs_tell_people_apart(one: str, other: str) -> None:
    assert fold_name(one) == fold_name(other)  # which only suggests that they might be one
    assert identity(one) != identity(other) and name_key(one) != name_key(other)


@pytest.mark.parametrize("name", ["José", "Dũng", "だいき", "김연아", "Åse", "กิตติ"])
def test_forms_of_unicode_are_one_name(name: str) -> None:
    forms = [unicodedata.normalize(form, name) for form in ("NFC", "NFD")]
    assert len(set(map(identity, forms))) == len(set(map(name_key, forms))) == 1


def test_case_and_separators_do_not_split_somebody() -> None:
    assert name_key("José  Núñez") == name_key("JOSÉ_NÚÑEZ") == name_key("José-Núñez")
    assert identity("Ann Bea") != identity("ann_bea")
    (note,) = case_notes(["Ann Bea", "Cy", "ann_bea", "Ann Bea"])
    assert note.startswith("Ann Bea and ann_bea look alike and are taken for")
    assert case_notes(["Dung", "Dũng"]) == ()
    assert r"Ann and Ann\u200b look alike" in case_notes(["Ann", "Ann\u200b"])[0]


def test_folded_names() -> None:
    assert (
        fold_name("José_Álvarez  Núñez") == fold_name("jose alvarez-nunez") == "jose_alvarez_nunez"
    )
    assert fold_name("STRASSE") == fold_name("Straße")
    assert fold_name("王菲") == "王菲" and fold_name("???") == "???"


def test_bytes_that_are_not_utf8_can_be_written() -> None:
    assert as_utf8("caf\udce9") == identity("caf\udce9") == r"caf\xe9"
    for rule in (identity, name_key, fold_name):
        rule("\ud83d\udce9").encode()
