"""Classes that the words of an unknown name belong to, so that no bird is suggested for a snake."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from functools import cache
from pathlib import Path

from sdm.names.index import NameIndex
from sdm.names.text import fold

OTHER_ANIMALS = (
    "adder alligator anaconda anole asp boa bullfrog caiman chameleon cobra copperhead cottonmouth crocodile "
    "fish frog gecko gharial iguana lizard mamba monitor newt python racer rattlesnake salamander shark skink slider "
    "slowworm snake stingray tadpole tegu terrapin toad tortoise treefrog tuatara turtle viper "
    "ant bee beetle butterfly centipede crab dragonfly insect millipede moth mosquito scorpion snail spider wasp"
)
"""English words that end the names of animals of other classes."""


def classes_named(tables: Collection[NameIndex], name: str) -> frozenset[str] | None:
    """The classes that a name belongs to by its genus or higher ranks, as far as lists of genera tell.

    None where nothing is known; the empty set where the name is of a class without a model, such as the reptiles.
    """
    words = fold(name).replace(",", " ").replace(";", " ").replace("|", " ").split()
    if words and words[-1].removesuffix("s") in OTHER_ANIMALS.split():
        return frozenset()
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
