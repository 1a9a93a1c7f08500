"""The base of all data sources: what they bring to a training set, and how their names become the model's."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from sdm.errors import LayerError, SpeciesNameError
from sdm.models.coverage import Coverage
from sdm.names import TaxonTable
from sdm.names.resolve import find
from sdm.training.data.drawing import Box
from sdm.training.data.labels import LabelBlock, Places
from sdm.training.recipe.sources import SourceSettings


class Source:
    """One entry of the recipe, read. `species` are those of its species that the model's names include."""

    settings: SourceSettings
    species: tuple[str, ...]

    def __init__(self, settings: SourceSettings) -> None:
        self.settings, self.name = settings, settings.name
        self.notes: list[str] = []
        """What was left out, or read under another name: sentences for the log."""

    @property
    def files(self) -> list[Path]:
        """The files it was read from."""
        return [Path(self.settings.path)]

    def places(self, seed: int) -> Places | None:
        """Its own places; None for a source that only labels those of others."""
        return None

    def block(self, places: Places, own: int) -> LabelBlock:
        """Its labels over places, of which those of source number `own` are its own."""
        raise NotImplementedError

    @property
    def extent(self) -> Box | None:
        """(west, south, east, north) outside which nothing is known; None: it covers the world."""
        return None

    @property
    def coverage(self) -> Coverage | None:
        """Where anything is known; None: the source does not say."""
        return None

    def _known_names(self, names: Iterable[str], taxa: TaxonTable) -> dict[str, str]:
        """{name in the file: species of the model}, for names that are known. Raises LayerError when none is."""
        names = list(dict.fromkeys(names))
        known = {name: species for name in names if (species := _model_species(name, taxa))}
        if not known:
            raise LayerError(
                f"data source {self.settings.path!r} holds no species of the model (it has {_first_names(names, 3)}); "
                "put its species into taxa.csv, with recipes/taxa.py or by hand."
            )
        if unknown := [name for name in names if name not in known]:
            self.notes.append(
                f"{len(unknown)} species that taxa.csv does not list are left out: {_first_names(unknown)}"
            )
        if renamed := [f"{n!r} as {s}" for n, s in known.items() if n.replace("_", " ") != s]:
            self.notes.append(
                f"{len(renamed)} name(s) are read as others: {', '.join(renamed[:5])}{' ...' * (len(renamed) > 5)}"
            )
        return known

    def _valid_months(self, month: np.ndarray) -> np.ndarray:
        """(N,) bool: whether labels without a month hold for places of these months."""
        return (month == 0) | self.settings.every_month

    @staticmethod
    def _own_rows(places: Places, own: int) -> np.ndarray:
        """(P,) int32 rows of labels that the source has at its own places only; -1 elsewhere."""
        return np.where(places.source == own, places.origin, -1).astype(np.int32)


def _model_species(name: str, taxa: TaxonTable) -> str | None:
    """The species of the model that a name stands for, as a scientific name or a synonym."""
    plain = " ".join(name.replace("_", " ").split())
    if plain.lower() in taxa.by_name and taxa.by_name[plain.lower()].name == plain:
        return plain
    try:
        resolution = find(taxa, plain)
    except SpeciesNameError:
        return None
    exact = resolution.known and resolution.taxon.rank == "species" and resolution.how in ("scientific name", "synonym")
    return resolution.taxon.name if exact else None


def _first_names(names: Sequence[str], count: int = 5) -> str:
    return ", ".join(repr(n) for n in names[:count]) + (" ..." if len(names) > count else "")
