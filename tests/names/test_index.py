"""Search, nearest names, members of groups. All against the shipped tables."""

import pytest

from sdm.errors import SpeciesNameError


def test_marine_share_tells_whales_from_bears(table):
    assert table.resolve("Balaenoptera musculus").taxon.marine > 0.95
    assert table.resolve("Ursus arctos").taxon.marine < 0.1
    assert 0 <= table.resolve("Carnivora").taxon.marine <= 1


def test_members(table):
    bears = table.members(table.resolve("Ursus").taxon)
    assert {t.name for t in bears} == {
        "Ursus americanus",
        "Ursus arctos",
        "Ursus maritimus",
        "Ursus thibetanus",
    }
    arctos = table.resolve("Ursus arctos").taxon
    assert table.members(arctos) == (arctos,)
    for group in table.groups():
        members = table.members(group)
        assert members
        assert all(t.lineage[: len(group.lineage)] == group.lineage for t in members)
    assert len(table.members(table.resolve("Mammalia").taxon)) == 5435


def test_search_finds_by_every_kind_of_name(table):
    assert table.search("brown bear")[0].name == "Ursus arctos"
    assert table.search("Ursus arc")[0].name == "Ursus arctos"
    assert table.search("Felis conc")[0].name == "Puma concolor"
    assert table.search("bear")[0].name == "Ursidae"
    assert "Ursus maritimus" in [t.name for t in table.search("bear")]
    assert "Puma concolor" in [t.name for t in table.search("pumma concolor")]
    assert [t.name for t in table.search("grey wolf", 1)] == ["Canis lupus"]


def test_search_limit(table):
    assert len(table.search("a", limit=7)) == 7
    with pytest.raises(ValueError, match="limit"):
        table.search("bear", limit=0)
    with pytest.raises(SpeciesNameError):
        table.search("")
    hits = table.search("fox", limit=50)
    assert len(hits) == len(set(hits))


def test_suggest(table):
    assert table.suggest("Ursus arctoss")[0] == "Ursus arctos"
    assert "Vulpes vulpes" in table.suggest("fox")
    assert len(table.suggest("Ursus", n=3)) <= 3
    assert table.suggest("") == []
    assert table.suggest("\x00") == []


def typing_errors(word):
    """The word with a letter missing, doubled, wrong, and swapped with its neighbour, in its middle."""
    k = len(word) // 2
    a, b = word[k], word[k + 1]
    yield word[:k] + word[k + 1 :]
    yield word[:k] + a + word[k:]
    yield word[:k] + ("x" if a != "x" else "y") + word[k + 1 :]
    if a != b:
        yield word[:k] + b + a + word[k + 2 :]


def test_the_nearest_name_to_a_typing_error_is_the_right_one(table):
    for taxon in list(table)[::150]:
        for name in (taxon.name, *taxon.common[:1]):
            for typed in typing_errors(name):
                nearest = table.nearest(typed)
                assert 1 <= len(nearest) <= 5
                # Some common names differ by one letter, or are those of two species.
                assert taxon in nearest[: 1 if name == taxon.name else 3], typed


def test_nothing_is_near_to_what_is_no_name(table):
    assert table.nearest("qqqqqq zzzzzz") == []
    assert table.nearest("Ursus arctos", 0) == []
