"""The sources of a species recipe, read: their species, and how likely each lives at each place."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from scipy.sparse import csr_matrix, vstack

from sdm.errors import LayerError
from sdm.models.bundled import BundledModel
from sdm.names import TaxonTable
from sdm.request.box import KM_PER_DEGREE
from sdm.training.data.areas import AreaLists, Outlines, countries_at
from sdm.training.data.grids import DegreeGrid, GridRanges
from sdm.training.data.range_parts import CELL_KM2, FADED, RangeParts
from sdm.training.data.ranges import RangeRaster
from sdm.training.recipe.species_recipe import AreasSettings, GridSettings, GroupSettings
from sdm.training.species.inside import Areas, Inside, Listed
from sdm.training.species.world import World

REACH_KM = 100.0
"""Distance from a range beyond which a species is not expected: two cells of half a degree."""
PRESENT = 255
"""Code of presence."""
LEAST = 6
"""Codes of probabilities below this one, 2 %, are taken as absence."""
FAMILIES, SEED = 0.25, 7
"""Share of the families of grids that are held out to test the network, and which."""
AT_ONCE = 256
"""Species whose probabilities are computed at once."""


class GridGroup:
    """Ranges on a grid."""

    @property
    def shipped(self) -> bool:
        """Whether its species are in the model that is made."""
        return not self.settings.names_of

    def __init__(self, settings: GridSettings, taxa: TaxonTable) -> None:
        self.name, self.settings = settings.name, settings
        known = _names(settings, taxa)
        self.ranges = GridRanges.read(settings.path, {name: name for name in known})
        self.grid, self.species = self.ranges.grid, self.ranges.species
        _require(settings, self.species)
        self.taxa = [taxa.by_name[name.lower()] for name in self.species]

    @property
    def needed(self) -> np.ndarray:
        """Cells of the ranges."""
        return np.unique(self.ranges.presence.indices)

    @property
    def points(self) -> np.ndarray:
        """None: its cells have places."""
        return np.empty((0, 2))

    def share(self, world: World) -> csr_matrix:
        """Presence, as 255."""
        cells = world.cell if world.grid == self.grid else self.grid.cells(*world.lonlat.T)
        labels = self.ranges.presence.T.tocsr()[cells]
        labels.data[:] = PRESENT
        return labels

    def sizes(self) -> np.ndarray:
        """(S,) cells of each range."""
        return np.diff(self.ranges.presence.indptr)

    def part(self, species: int, kept: np.ndarray | None = None) -> RangeParts:
        """The range, only its cells that are `kept`, (cells,) bool."""
        cells = self.ranges.cells_of(species)
        return _parts(self.grid, cells if kept is None else cells[kept[cells]])


class AreaGroup:
    """Lists of countries or other areas, with what species of known ranges tell about where inside."""

    shipped = True

    def __init__(
        self,
        settings: AreasSettings,
        taxa: TaxonTable,
        teachers: Sequence[GridGroup],
        families: Mapping[str, str],
        log: Callable[[str], None],
    ) -> None:
        """`families`: {genus: family} of the mammals of an atlas."""
        self.name, self.settings, self.teachers, self.log = settings.name, settings, teachers, log
        self.families = families
        self._trained: dict[bool, tuple[Inside, csr_matrix, np.ndarray]] = {}
        self._area: np.ndarray | None = None
        self.grid = teachers[0].grid
        self.lists = AreaLists.read(settings.path, (settings.species, settings.area), _names(settings, taxa))
        if settings.without:
            self.lists = self.lists.without(settings.without)
        every = self.grid.centres(np.arange(self.grid.shape[0] * self.grid.shape[1]))
        self.outlines = Outlines.read(settings.outlines, settings.area) if settings.outlines else None
        if self.outlines:
            codes, self.area_of_cell = self.outlines.areas, self.outlines.at(every)
        else:
            codes, self.area_of_cell = countries_at(every)
        self.lists = self.lists.to(codes)
        self.species = self.lists.species
        _require(settings, self.species)
        self.taxa = [taxa.by_name[name.lower()] for name in self.species]

    @property
    def needed(self) -> np.ndarray:
        """None: countries without land on the grid are too small for it, and other areas have `points`."""
        return np.empty(0, np.int64)

    @property
    def points(self) -> np.ndarray:
        """(N, 2) a position in each area that has an outline of its own: a basin may be smaller than a cell."""
        return self.outlines.points() if self.outlines else np.empty((0, 2))

    def area_of(self, world: World) -> np.ndarray:
        """(P,) number of the area of each place, -1 for none."""
        if self.outlines is None:
            return self.area_of_cell[world.cell]
        if self._area is None or len(self._area) != len(world.cell):
            self._area = self.outlines.at(world.lonlat)
        return self._area

    def share(self, world: World, without: np.ndarray | None = None) -> csr_matrix:
        """Probabilities, 0 outside the areas of a list.

        `without`, (A,) bool: areas taken out of the lists, while the network does without some families, too.
        """
        inside, _, _ = self.trained(world, held=without is not None)
        listed = self.lists.listed if without is None else self.lists.listed & ~without
        own = Listed(listed, [t.genus for t in self.taxa], [t.family for t in self.taxa])
        vectors, bias = inside.vectors(own)
        embeddings, area = world.combined(), self.area_of(world)
        parts = []
        for start in range(0, len(self.species), AT_ONCE):
            some = slice(start, start + AT_ONCE)
            logit = vectors[some] @ embeddings.T + bias[some, None]
            code = np.round(255.0 / (1.0 + np.exp(-logit))).astype(np.uint8)
            there = np.concatenate([listed[some], np.zeros((len(logit), 1), bool)], axis=1)[:, area]
            code[~there | (code < LEAST)] = 0
            parts.append(csr_matrix(code))
        return csr_matrix(vstack(parts).T)

    def trained(self, world: World, *, held: bool) -> tuple[Inside, csr_matrix, np.ndarray]:
        """The network, the ranges (S, cells) of those that teach it, and which of these, (S,) bool, it did without.

        `held`: some families of the grids are held out of it.
        """
        if held not in self._trained:
            areas, taught, ranges = self.taught(world)
            family = np.asarray(taught.family)
            own = np.arange(family.size) < sum(len(teacher.species) for teacher in self.teachers)
            names = np.unique(family[own])
            some = np.random.default_rng(SEED).choice(names, max(round(FAMILIES * names.size), 1), replace=False)
            left_out = own & np.isin(family, some) & held
            inside = Inside(areas, taught)
            inside.train(ranges, np.flatnonzero(~left_out), self.settings.steps, self.log)
            self._trained[held] = inside, ranges, left_out
        return self._trained[held]

    def taught(self, world: World) -> tuple[Areas, Listed, csr_matrix]:
        """One place in each cell, the lists that species of known ranges would have, and their ranges (S, cells)."""
        firsts = world.firsts()
        area = self.area_of(world)[firsts]
        km2 = np.add.reduceat(world.area, firsts)
        areas = Areas(np.ascontiguousarray(world.combined()[firsts]), km2, area, len(self.lists.areas))
        ranges, genus, family = [], [], []
        for teacher in self.teachers:
            ranges.append(csr_matrix(teacher.share(world)[firsts].T))
            genus += [taxon.genus for taxon in teacher.taxa]
            family += [taxon.family for taxon in teacher.taxa]
        if self.settings.atlas:
            atlas = _atlas(self.settings.atlas)
            ranges.append(csr_matrix(atlas.labels(np.maximum(atlas.cells(*world.lonlat[firsts].T), 0)).T))
            genus += [name.split()[0] for name in atlas.species]
            family += [self.families.get(name.split()[0], "") for name in atlas.species]
        known = csr_matrix(vstack(ranges))
        there = np.flatnonzero(area >= 0)
        member = csr_matrix((np.ones(there.size), (there, area[there])), shape=(area.size, areas.count))
        return areas, Listed((known.astype(np.float64) @ member).toarray() > 0, genus, family), known

    def sizes(self) -> np.ndarray:
        """(S,) areas of each list."""
        return self.lists.listed.sum(axis=1)

    def part(self, species: int, kept: np.ndarray | None = None) -> RangeParts:
        """The listed areas."""
        areas = np.flatnonzero(self.lists.listed[species])
        return _parts(self.grid, np.flatnonzero(np.isin(self.area_of_cell, areas)))


def open_groups(
    sources: Sequence[GroupSettings], taxa: TaxonTable, families: Mapping[str, str], log: Callable[[str], None]
) -> list[GridGroup | AreaGroup]:
    """The sources of a recipe, in its order. Raises LayerError where a file is not what its kind needs."""
    grids = {
        s.name: GridGroup(s, BundledModel.open(s.names_of).taxa if s.names_of else taxa)
        for s in sources
        if isinstance(s, GridSettings)
    }
    teachers = list(grids.values())
    return [
        AreaGroup(s, taxa, teachers, families, log) if isinstance(s, AreasSettings) else grids[s.name] for s in sources
    ]


def _names(settings: GroupSettings, taxa: TaxonTable) -> set[str]:
    """The species of a group in taxa.csv."""
    return {t.name for t in taxa.by_name.values() if t.rank == "species" and t.group == settings.group}


def _require(settings: GroupSettings, species: tuple[str, ...]) -> None:
    if not species:
        raise LayerError(f"{settings.path!r} holds no species of the group {settings.group!r} of taxa.csv.")


def _atlas(path: str) -> RangeRaster:
    """The ranges of PHYLACINE, without those of people."""
    return RangeRaster.phylacine(path, [n for n in RangeRaster.names(path) if n and n != "Homo sapiens"])


def _parts(grid: DegreeGrid, cells: np.ndarray) -> RangeParts:
    """Cells (N,), ascending, as boxes if they are few."""
    side = grid.step * KM_PER_DEGREE
    size = float((side**2 * np.cos(np.radians(grid.centres(cells)[:, 1]))).sum()) / CELL_KM2
    return RangeParts(size, grid.boxes(cells if 0 < size < FADED else cells[:0]), REACH_KM)
