"""Classes that the words of an unknown name belong to, so that no bird is suggested for a snake."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from functools import cache
from pathlib import Path

from sdm.names.index import NameIndex
from sdm.names.text import fold

KINDS = {
    "Reptilia": (
        "adder alligator anaconda anole asp boa caiman chameleon cobra copperhead cottonmouth crocodile gecko gharial "
        "iguana lizard mamba monitor python racer rattlesnake skink slider slowworm snake tegu terrapin tortoise "
        "tuatara turtle viper"
    ),
    "Amphibia": "bullfrog frog newt salamander tadpole toad treefrog",
    "Actinopterygii": "fish",
    "": (
        "ant bee beetle butterfly centipede crab dragonfly insect millipede moth mosquito scorpion shark snail spider "
        "stingray wasp"
    ),
}
"""English words that end the names of animals of some classes; "": of many, none of which a model has."""
_CLASS_OF = {word: class_ for class_, words in KINDS.items() for word in words.split()}


def classes_named(tables: Collection[NameIndex], name: str) -> frozenset[str] | None:
    """The classes that a name belongs to by its genus or higher ranks, as far as lists of genera tell.

    None where nothing is known; the empty set where the name is of a class without a species in the tables.
    """
    words = fold(name).replace(",", " ").replace(";", " ").replace("|", " ").split()
    kind = _CLASS_OF.get(words[-1].removesuffix("s")) if words else None
    if kind is not None:
        known = any(kind.lower() in table.group_index for table in tables)
        return frozenset({kind}) if known else frozenset()
    classes: set[str] = set()
    for word in words[:-1] or words:  # the last of several is the epithet
        here = {place for table in tables for place in _classes_of_word(table, word)}
        if not here and word in _reptiles_amphibians():
            return frozenset()
        classes |= here
    return frozenset(classes) or None


def _classes_of_word(table: NameIndex, word: str) -> Iterable[str]:
    """The classes of the genera, families, orders and classes with this name, in lower case."""
    for place in (table.places.get(word), table.place_families.get(word)):
        if place:
            yield place[2]
    for taxon in table.group_index.get(word, ()):
        yield taxon.class_


@cache
def _reptiles_amphibians() -> frozenset[str]:
    """Names of groups of reptiles and amphibians, in lower case."""
    text = Path(__file__).with_name("reptiles_amphibians.txt").read_text(encoding="ascii")
    lines = (line for line in text.splitlines() if not line.startswith("#"))
    return frozenset(word.lower() for line in lines for word in line.split())
