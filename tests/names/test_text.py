"""What cannot be a name."""

import pytest

from sdm.errors import SpeciesNameError


@pytest.mark.parametrize(
    ("query", "why"),
    [
        ("", "empty"),
        ("   ", "empty"),
        ("\u00a0", "empty"),
        ("12345", "no letters"),
        ("-- !!", "no letters"),
        ("Ursus\x00arctos", "control"),
        ("Ursus\narctos", "control"),
        ("\x1b[31mUrsus arctos", "control"),
        ("\ud800", "control or unassigned"),
        ("../etc/passwd", "path separator"),
        ("a\\b", "path separator"),
        ("a" * 201, "limit is 200"),
    ],
)
def test_malformed(table, query, why):
    with pytest.raises(SpeciesNameError, match=why) as error:
        table.resolve(query)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 250
    assert error.value.exit_code == 3


@pytest.mark.parametrize("query", [None, 7, b"Ursus arctos", ["Ursus arctos"]])
def test_not_text(table, query):
    with pytest.raises(SpeciesNameError, match="must be text"):
        table.resolve(query)
