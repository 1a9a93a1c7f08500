"""The table of names of one model, read from its folder; what a name stands for in it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from sdm.errors import ModelError
from sdm.names.index import NameIndex
from sdm.names.resolve import resolve
from sdm.names.taxa import Resolution, Taxon, read_groups, read_homonyms, read_places, read_species


class TaxonTable(NameIndex):
    """The names a model knows."""

    @classmethod
    def load(cls, folder: str | Path) -> TaxonTable:
        """Read `taxa.csv` and, where present, `genera.csv`, `groups.csv` and `homonyms.csv` of a model folder.

        The files are not trusted. Raises ModelError when one is missing, too large or malformed.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise ModelError(f"The model folder {folder} does not exist or is not a folder.")
        species = read_species(folder / "taxa.csv")
        places = read_places(folder / "genera.csv") if (folder / "genera.csv").exists() else {}
        groups = read_groups(folder / "groups.csv") if (folder / "groups.csv").exists() else {}
        homonyms = read_homonyms(folder / "homonyms.csv") if (folder / "homonyms.csv").exists() else {}
        return cls(species, places, groups, homonyms)

    @classmethod
    def load_all(cls, folders: Iterable[str | Path]) -> TaxonTable:
        """The tables of several model folders as one, see `union`. Raises as `load`."""
        return cls.union([cls.load(folder) for folder in folders])

    @classmethod
    def union(cls, tables: Sequence[TaxonTable]) -> TaxonTable:
        """Several tables as one; of a species in two, the first counts."""
        if len(tables) == 1:
            return tables[0]
        species: dict[str, Taxon] = {}
        places: dict[str, tuple[str, ...]] = {}
        names: dict[tuple[str, str], tuple[tuple[str, ...], tuple[str, ...]]] = {}
        homonyms: dict[str, tuple[str, ...]] = {}
        for table in reversed(tables):
            species |= table.by_name
            places |= table.places
            names |= table._group_names
            homonyms |= table.homonyms
        return cls(list(species.values()), places, names, homonyms)

    def resolve(self, query: str) -> Resolution:
        """Return what `query` stands for: a species, or a group of species.

        Understands scientific names (with authors, years, subspecies, a full lineage), older synonyms,
        common names, and names of genera, families, orders and classes. An unknown species of a known genus
        or family resolves to that group with `known` False, unless the genus has a homonym elsewhere. Raises
        SpeciesNameError when the name is malformed, fits several species, looks like a typing error, is that of a
        domestic form that the model does not list, or is not known at all.
        """
        return resolve(self, query)
