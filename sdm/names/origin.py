"""The ranges of one species by origin: the native one, or all of it, introduced populations included."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

ALL = " [all]"
"""Ends the name under which a model holds the whole range of a species beside the native one; no name may end so."""


def with_introduced(name: str) -> str:
    """The name of the whole range of a species: 'Sus scrofa [all]'."""
    return name + ALL


def lineage_of(name: str, lineages: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """The lineage of a species or of its whole range, from those of the species. Raises KeyError."""
    species = name.removesuffix(ALL)
    return (*lineages[species][:-1], name)


def introduced_among(names: Iterable[str]) -> frozenset[str]:
    """The species that have a whole range among some names."""
    return frozenset(name.removesuffix(ALL) for name in names if name.endswith(ALL))
