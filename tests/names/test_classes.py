"""What is suggested for an unknown name is of its class, and spelled like it. Against the shipped tables."""

from dataclasses import replace

import pytest

from sdm.errors import SpeciesNameError
from sdm.names import TaxonTable, resolve_among
from sdm.names.classes import classes_named
from sdm.names.index import is_typing_error
from sdm.names.resolve import UnknownNameError
from sdm.names.taxa import Taxon
from tests.names.tables import MODEL


@pytest.fixture(scope="module")
def tables(table):
    return {"mammals-trees": table, "birds": TaxonTable.load(MODEL.parent / "birds")}


def near(tables, query):
    with pytest.raises(UnknownNameError) as caught:
        resolve_among(tables, query)
    return [taxon.name for taxon in caught.value.near]


@pytest.mark.parametrize(
    "query",
    [
        "Python regius",
        "Naja naja",
        "Varanus komodoensis",
        "Varanus indicus",  # Vanellus indicus is a lapwing
        "Bitis arietans",  # Batis: flycatchers
        "Bufo bufo",  # Bubo bubo is an owl
        "Eryx",  # Oryx
        "Boidae",  # Bovidae
        "Viperidae",  # Viverridae
        "Ranidae",  # Canidae
        "Colubridae",  # Columbidae
        "Boa",
        "Squamata",
        "skink",  # skunk
        "grass snake",
        "monitor lizard",
        "Animalia Chordata Reptilia Squamata Boidae Boa constrictor",
    ],
)
def test_nothing_is_suggested_for_a_reptile_or_an_amphibian(tables, query):
    assert near(tables, query) == []
    for table in tables.values():
        with pytest.raises(UnknownNameError) as caught:
            table.resolve(query)
        assert caught.value.near == ()


@pytest.mark.parametrize("query", ["human", "vehicle", "blank", "unknown", "Unknown bird", "misfire"])
def test_labels_of_cameras_are_refused_as_such(tables, query):
    with pytest.raises(SpeciesNameError, match="leave it out") as caught:
        resolve_among(tables, query)
    assert not isinstance(caught.value, UnknownNameError)


def test_nothing_is_suggested_for_what_is_no_name(tables):
    assert near(tables, "small mammal") == []


@pytest.mark.parametrize(
    ("query", "name"),
    [
        ("Bubo bubbo", "Bubo bubo"),
        ("Odocoileus virginanus", "Odocoileus virginianus"),
        ("girrafe", "Giraffa camelopardalis"),
        ("Bovidea", "Bovidae"),
        ("red oak", "Quercus rubra"),
    ],
)
def test_typing_errors_still_find_their_name(tables, query, name):
    assert name in near(tables, query)


def test_classes_by_genus_and_higher_ranks(tables):
    known = tables.values()
    assert classes_named(known, "Hirundo neoxena") == {"Aves"}
    assert classes_named(known, "Felidae") == {"Mammalia"}
    assert classes_named(known, "Morus") == {"Aves", "Magnoliopsida"}
    assert classes_named(known, "Vipera berus") == frozenset()
    assert classes_named(known, "Dracaena draco") == {"Liliopsida"}  # a genus of lizards too
    assert classes_named(known, "Qqqq zzzz") is None


def test_suggestions_are_of_the_class_of_the_genus(tables):
    birds = tables["birds"]
    assert [t.name for t in birds.nearest("Ursus", 5, {"Mammalia"})] == []
    assert all(t.class_ == "Aves" for t in birds.nearest("Turduss", 5))


@pytest.mark.parametrize(
    ("typed", "name", "near"),
    [
        ("ursus arctoss", "ursus arctos", True),
        ("ursu sarctos", "ursus arctos", True),
        ("cow", "crow", True),
        ("naja", "baza", False),
        ("varanus indicus", "vanellus indicus", False),
        ("house cat", "house crow", False),
    ],
)
def test_typing_errors(typed, name, near):
    assert is_typing_error(typed, name) is near


def test_words_for_reptiles_and_amphibians_name_their_class_where_a_model_knows_it(tables):
    adder = Taxon("species", "Vipera berus", ("Animalia", "Chordata", "Reptilia", "Squamata", "Viperidae", "Vipera"))
    adder = replace(adder, lineage=(*adder.lineage, adder.name), common=("northern viper",))
    reptiles = TaxonTable([adder])
    assert classes_named([*tables.values(), reptiles], "desert vipers") == {"Reptilia"}
    assert classes_named([*tables.values(), reptiles], "tree frog") == frozenset()
    assert classes_named([reptiles], "stag beetle") == frozenset()
    assert near(tables | {"life": reptiles}, "nothern viper") == ["Vipera berus"]
