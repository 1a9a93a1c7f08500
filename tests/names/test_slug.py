"""File name stems."""

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sdm.names import slug

RESERVED = {"con", "prn", "aux", "nul"} | {f"{p}{n}" for p in ("com", "lpt") for n in range(10)}


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("Ursus arctos", "ursus-arctos"),
        ("ursus_arctos", "ursus-arctos"),
        ("  Ursidae ", "ursidae"),
        ("Pithecellobium unguis-cati", "pithecellobium-unguis-cati"),
        ("../../etc/passwd", "etc-passwd"),
    ],
)
def test_slug_of_plain_names(name, stem):
    assert slug(name) == stem


@pytest.mark.parametrize("name", ["con", "NUL", "aux", "Com1", "lpt9", "", "---", "a" * 81, "李", "é", "CON."])
def test_slug_with_hash(name):
    assert re.search(r"-[0-9a-f]{8}$", slug(name))


def test_slug_keeps_names_apart():
    names = [
        "Ursus arctos",
        "Ursus árctos",
        "Ursus ärctos",
        "Ursus 李",
        "Ursus 王",
        "Ursus",
        "a" * 81,
        "a" * 82,
    ]
    assert len({slug(n) for n in names}) == len(names)
    assert slug("e\u0301") == slug("é")  # one name, composed or not
    assert slug("李") == "name-" + slug("李")[-8:]


@pytest.fixture(scope="module")
def all_names(table):
    return [t.name for t in table] + [t.name for t in table.groups()]


def test_slugs_of_the_model_are_distinct(all_names):
    stems = {slug(name) for name in all_names}
    assert len(stems) == len(set(all_names))


@given(st.text(max_size=300))
@example("con")
@example("\ud800")
@example("ﬁr")
def test_slug_is_always_a_safe_stem(name):
    stem = slug(name)
    assert re.fullmatch(r"[a-z0-9][a-z0-9-]{0,90}", stem)
    assert stem not in RESERVED
    assert not stem.endswith("-")
    assert stem == slug(name)
