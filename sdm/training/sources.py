"""Data sources: from files of others to places and label blocks (see `sdm.training.labels`).

Five kinds: `ranges` (presence on a raster), `polygons`, `probabilities` (another model's output), `surveys`
(plots in which every species present is listed) and `occurrences` (records of presence, with a background).
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from sdm.errors import LayerError, SpeciesNameError, TooLargeError
from sdm.layers.landmask import LandMask
from sdm.models.coverage import DEGREES, Coverage
from sdm.names import TaxonTable
from sdm.names.resolve import find
from sdm.training.labels import Block, PackedLabels, Places, SparseLabels
from sdm.training.loss import NOT_KNOWN
from sdm.training.ranges import RangePolygons, RangeRaster, draw_places
from sdm.training.recipe import (
    OccurrencesData,
    PolygonsData,
    ProbabilitiesData,
    RangesData,
    RecordsData,
    SourceData,
    SurveysData,
)
from sdm.training.tables import Records, check_lonlat, in_one_line, read_records

MAX_BYTES = 8 << 30
"""Of an archive once unpacked: a far larger one is no training data."""


class Source:
    """One entry of the recipe, read. `species` are those of its species that the model's names know."""

    species: tuple[str, ...]

    def __init__(self, data: SourceData, name: str) -> None:
        self.data, self.name = data, name
        self.notes: list[str] = []
        """What was read otherwise than it stands there, or left out: sentences for the log."""

    @property
    def files(self) -> list[Path]:
        """What it was read from."""
        return [Path(self.data.path)]

    def places(self, seed: int) -> Places | None:
        """Its own places; None for a source that only labels those of others."""
        return None

    def block(self, places: Places, own: int) -> Block:
        """Its labels over places, of which those of source number `own` are its own."""
        raise NotImplementedError

    @property
    def extent(self) -> tuple[float, float, float, float] | None:
        """(west, south, east, north) outside which nothing is known; None: it covers the world."""
        return None

    @property
    def coverage(self) -> Coverage | None:
        """Where it had anything to say, None: it does not tell."""
        return None

    def _known(self, names: Iterable[str], taxa: TaxonTable) -> dict[str, str]:
        """{name in the file: species of the model} of those that are known. Raises LayerError when none is."""
        names = list(dict.fromkeys(names))
        known = {name: found for name in names if (found := _species(name, taxa))}
        if not known:
            raise LayerError(
                f"data source {self.data.path!r} holds no species of the model (it has {_some(names, 3)}); put its "
                "species into taxa.csv, with recipes/taxa.py or by hand."
            )
        if strangers := [name for name in names if name not in known]:
            self.notes.append(f"{len(strangers)} species that taxa.csv does not know are left out: {_some(strangers)}")
        if read := [f"{n!r} as {s}" for n, s in known.items() if n.replace("_", " ") != s]:
            self.notes.append(
                f"{len(read)} name(s) are read as others: {', '.join(read[:5])}{' ...' * (len(read) > 5)}"
            )
        return known

    def _read(self, data: RecordsData) -> Records:
        """The table of records that it is made from."""
        records = read_records(data)
        if records.left_out:
            self.notes.append(f"{records.left_out} row(s) without a position, a species or a presence are left out")
        return records

    def _holds_for(self, month: np.ndarray) -> np.ndarray:
        """Whether labels that know no season hold for places of these months."""
        return (month == 0) | self.data.every_month


class Ranges(Source):
    """Presence on an equal-area raster; labels every place on it."""

    data: RangesData

    def __init__(self, data: RangesData, name: str, taxa: TaxonTable, denser: Sequence[tuple] = ()) -> None:
        super().__init__(data, name)
        names = [n for n in RangeRaster.names(data.path) if n]
        self.raster = RangeRaster.phylacine(data.path, self._known(names, taxa) if names else {})
        self.species = tuple(self.raster.species)
        self.denser = tuple(denser)
        """((west, south, east, north), places per cell, weight) where polygons want more."""

    @property
    def files(self) -> list[Path]:
        """The rasters of its folder, or the one archive."""
        return RangeRaster.files(self.data.path)

    def places(self, seed: int) -> Places:
        """Places in every cell, drawn once; cells of land and sea by `land_share`."""
        d, mask = self.data, LandMask()
        return draw_places(
            self.raster, lambda lon, lat: mask.keep("land", lon, lat), self.denser,
            d.points_per_cell, d.points_per_cell_sea, d.land_share, seed,
        )  # fmt: skip

    def block(self, places: Places, own: int) -> Block:
        """The cell's presence, at every place on the raster."""
        lon, lat = places.lonlat.T
        rows = np.where(places.source == own, places.origin, -1).astype(np.int32)
        others = np.flatnonzero((places.source != own) & self._holds_for(places.month))
        rows[others] = self.raster.cells(lon[others], lat[others])
        table = PackedLabels(self.raster.presence, len(self.species))
        return Block(self.name, self.species, rows, table, weight=self.data.weight, cells=True)


class Polygons(Source):
    """Range polygons; label every place in their common box."""

    data: PolygonsData

    def __init__(self, data: PolygonsData, name: str, taxa: TaxonTable) -> None:
        super().__init__(data, name)
        polygons = RangePolygons.read(data.path, data.species)
        known = self._known(polygons.species, taxa)
        self.polygons = polygons.renamed(known)
        self.species = tuple(self.polygons.species)

    @property
    def extent(self) -> tuple[float, float, float, float]:
        """The box of all polygons."""
        west, south, east, north = (float(v) for v in self.polygons.bounds)
        return west, south, east, north

    def places(self, seed: int) -> Places | None:
        """`points` random places on land in the box; none where the recipe asks for none."""
        if not self.data.points:
            return None
        lonlat = _land_in(self.extent, self.data.points, seed, self.data.path)
        return Places.grouped(lonlat, np.zeros(len(lonlat), np.int8), np.arange(len(lonlat)))

    def block(self, places: Places, own: int) -> Block:
        """In or out of each polygon, at every place in the box."""
        west, south, east, north = self.extent
        lon, lat = places.lonlat.T
        inside = (lon >= west) & (lon <= east) & (lat >= south) & (lat <= north) & self._holds_for(places.month)
        near = np.flatnonzero(inside)
        rows = np.full(len(lon), -1, np.int32)
        rows[near] = np.arange(near.size)
        packed = np.packbits(self.polygons.labels(lon[near], lat[near]), axis=1)
        return Block(self.name, self.species, rows, PackedLabels(packed, len(self.species)), weight=self.data.weight)


class Probabilities(Source):
    """What another model says: a probability of each species at each of its places, by month if it has months."""

    data: ProbabilitiesData

    def __init__(self, data: ProbabilitiesData, name: str, taxa: TaxonTable) -> None:
        super().__init__(data, name)
        z = _open_npz(data.path, ("species", "lonlat", "place", "month", "indptr", "indices", "value"), ("coverage",))
        names = [str(s) for s in z["species"]]
        self._lonlat, self._month, self._place = z["lonlat"].astype(np.float64), z["month"], z["place"]
        indptr, column, value = z["indptr"].astype(np.int64), z["indices"].astype(np.int64), z["value"]
        rows = len(self._lonlat)
        sound = (
            self._lonlat.shape == (rows, 2)
            and self._month.shape == self._place.shape == (rows,)
            and indptr.shape == (rows + 1,)
            and indptr[0] == 0
            and indptr[-1] == len(column) == len(value)
            and (np.diff(indptr) >= 0).all()
            and value.dtype == np.uint8
            and (len(column) == 0 or (column.min() >= 0 and column.max() < len(names)))
            and ((self._month >= 0) & (self._month <= 12)).all()
        )
        if not sound or rows == 0:
            raise LayerError(
                f"probabilities {data.path!r} do not fit together: lonlat (P, 2), place and month (P,) with months "
                "0..12, indptr (P+1,), indices within species, value uint8 of the same length."
            )
        check_lonlat(self._lonlat, data.path)
        self._coverage = _coverage(z.get("coverage"), data.path)
        known = self._known(names, taxa)
        self.species = tuple(dict.fromkeys(known.values()))
        number = {s: k for k, s in enumerate(self.species)}
        to_species = np.array([number[known[n]] if n in known else -1 for n in names])
        column = to_species[column]
        kept = column >= 0
        indptr = np.concatenate([[0], np.cumsum(kept)])[indptr]
        self._table = SparseLabels(indptr, column[kept], len(self.species), value[kept])

    @property
    def coverage(self) -> Coverage | None:
        """The array `coverage` of the archive, if it has one."""
        return self._coverage

    def places(self, seed: int) -> Places:
        """Its places; the rows of one place (its months) are a group."""
        return Places.grouped(self._lonlat, self._month, self._place)

    def block(self, places: Places, own: int) -> Block:
        """The probabilities, at its own places."""
        rows = np.where(places.source == own, places.origin, -1).astype(np.int32)
        return Block(self.name, self.species, rows, self._table, soft=True, weight=self.data.weight)


class Surveys(Source):
    """Plots: every species present in one is listed, so the others of the table are absent there."""

    data: SurveysData

    def __init__(self, data: SurveysData, name: str, taxa: TaxonTable) -> None:
        super().__init__(data, name)
        records = self._read(data)
        known = self._known(records.names, taxa)
        lonlat, month, plot, names = records.lonlat, records.month, _plots(records), records.species
        seen = np.where(records.present & (names >= 0), names, len(records.names))
        kept = np.array([*(known.get(n, "") for n in records.names), ""])[seen]
        spell, count = np.unique(kept, return_counts=True)
        enough = sorted(set(spell[(count >= data.min_records) & (spell != "")]))
        if not enough:
            raise LayerError(f"surveys {data.path!r} list no species {data.min_records} times (min_records).")
        self.species = tuple(str(s) for s in enough)
        number = {s: k for k, s in enumerate(self.species)}
        plots, first, where = np.unique(plot, return_index=True, return_inverse=True)
        self._lonlat, self._month = lonlat[first], month[first]
        column = np.array([number.get(s, -1) for s in kept])
        present = column >= 0
        pairs = np.unique(np.stack([where[present], column[present]], axis=1), axis=0)
        indptr = np.searchsorted(pairs[:, 0], np.arange(plots.size + 1))
        self._table = SparseLabels(indptr, pairs[:, 1], len(self.species))

    @property
    def extent(self) -> tuple[float, float, float, float]:
        """The box of all plots."""
        return _box(self._lonlat)

    def places(self, seed: int) -> Places:
        """The plots; those of one square of `thin` degrees are a group."""
        return Places.grouped(self._lonlat, self._month, _squares(self._lonlat, self.data.thin))

    def block(self, places: Places, own: int) -> Block:
        """What was found in a plot, at its own places."""
        rows = np.where(places.source == own, places.origin, -1).astype(np.int32)
        return Block(self.name, self.species, rows, self._table, weight=self.data.weight)


class Occurrences(Source):
    """Records of presence, and places that stand for what was available.

    `background` says what else is known. "land": random land, where none of the species is taken to be; at a record
    nothing is known of the other species. "target-group": the records of the other species, which share the
    observers' habits (Phillips et al. 2009): at a record the other species are taken to be absent. "file": the rows
    of the file whose `presence` is 0, for the species they name or, without a species column, for all.
    """

    data: OccurrencesData

    def __init__(self, data: OccurrencesData, name: str, taxa: TaxonTable, seed: int) -> None:
        super().__init__(data, name)
        records = self._read(data)
        known = self._known(records.names, taxa)
        self.species = tuple(sorted(set(known.values())))
        number = {s: k for k, s in enumerate(self.species)}
        column = np.array([*(number[known[n]] if n in known else -1 for n in records.names), -1])[records.species]
        if data.background == "file":
            absent = ~records.present
            if not absent.any():
                raise LayerError(
                    f"occurrences {data.path!r}: background is 'file', but no row has a {data.presence!r} of 0."
                )
            kept = (column >= 0) | absent
        else:
            absent, kept = np.zeros(column.size, bool), (column >= 0) & records.present
        if not (kept & ~absent).any():
            raise LayerError(f"occurrences {data.path!r} hold no presence of a species that the model's names know.")
        lonlat, month, column, absent = records.lonlat[kept], records.month[kept], column[kept], absent[kept]
        count = (column >= 0).astype(np.int64)
        value = np.where(absent, 0, 1).astype(np.uint8)[column >= 0]
        rest = np.full(column.size, 0 if data.background == "target-group" else NOT_KNOWN, np.uint8)
        rest[column < 0] = 0  # background that names no species is one for all
        if data.background == "target-group" and len(self.species) < 2:
            raise LayerError(
                f"occurrences {data.path!r} hold one species, {self.species[0]}: a target group needs others; "
                "choose background = 'land' or 'file'."
            )
        self._records = column.size
        if data.background == "land":
            n = data.background_places or max(1000, column.size)
            lonlat = np.concatenate([lonlat, _land_in(_grown(_box(lonlat), data.margin), n, seed, data.path)])
            month = np.concatenate([month, np.zeros(n, month.dtype)])
            if records.month.any():  # background has no month of its own: those of the records, in their shares
                month[column.size :] = np.random.default_rng(seed).choice(month[: column.size], n)
            count, rest = np.concatenate([count, np.zeros(n, np.int64)]), np.concatenate([rest, np.zeros(n, np.uint8)])
            absent = np.concatenate([absent, np.ones(n, bool)])
        self._lonlat, self._month, self._absent = lonlat, month, absent
        indptr = np.concatenate([[0], np.cumsum(count)])
        self._table = SparseLabels(indptr, column[column >= 0], len(self.species), value, rest)

    @property
    def extent(self) -> tuple[float, float, float, float]:
        """The box of all records and background."""
        return _box(self._lonlat)

    def places(self, seed: int) -> Places:
        """Records and background; those of one kind in a square of `thin` degrees are a group.

        Of the places drawn, `background_share` are background.
        """
        group = 2 * _squares(self._lonlat, self.data.thin) + self._absent
        places = Places.grouped(self._lonlat, self._month, group)
        absent, weight = self._absent[places.origin[places.start]], places.weight.copy()
        if absent.any():
            share = self.data.background_share
            weight[absent] *= share / weight[absent].sum()
            weight[~absent] *= (1 - share) / weight[~absent].sum()
        return replace(places, weight=weight)

    def block(self, places: Places, own: int) -> Block:
        """Seen or background, at its own places."""
        rows = np.where(places.source == own, places.origin, -1).astype(np.int32)
        return Block(self.name, self.species, rows, self._table, partial=True, weight=self.data.weight)


def open_sources(entries: Sequence[SourceData], taxa: TaxonTable, seed: int) -> list[Source]:
    """The sources of a recipe, in its order. Raises LayerError where a file is not what its kind needs."""
    polygons = {k: Polygons(e, e.name, taxa) for k, e in enumerate(entries) if isinstance(e, PolygonsData)}
    denser = [
        (p.extent, p.data.points_per_cell, p.data.cell_weight) for p in polygons.values() if p.data.points_per_cell
    ]
    out: list[Source] = []
    for k, entry in enumerate(entries):
        match entry:
            case RangesData():
                out.append(Ranges(entry, entry.name, taxa, denser))
            case PolygonsData():
                out.append(polygons[k])
            case ProbabilitiesData():
                out.append(Probabilities(entry, entry.name, taxa))
            case SurveysData():
                out.append(Surveys(entry, entry.name, taxa))
            case OccurrencesData():
                out.append(Occurrences(entry, entry.name, taxa, seed))
    return out


def _species(name: str, taxa: TaxonTable) -> str | None:
    """The species of the model that a name in a file is, by its scientific name or a synonym."""
    plain = " ".join(name.replace("_", " ").split())
    if plain.lower() in taxa.by_name and taxa.by_name[plain.lower()].name == plain:
        return plain
    try:
        found = find(taxa, plain)
    except SpeciesNameError:
        return None
    exact = found.known and found.taxon.rank == "species" and found.how in ("scientific name", "synonym")
    return found.taxon.name if exact else None


def _some(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(repr(n) for n in names[:most]) + (" ..." if len(names) > most else "")


def _coverage(cells: np.ndarray | None, path: str) -> Coverage | None:
    """Of a grid of the whole globe, rows from 90 N, columns from 180 W."""
    if cells is None:
        return None
    degrees = 180 / len(cells) if cells.ndim == 2 and len(cells) else 0.0
    if degrees not in DEGREES or cells.shape[1] != 2 * len(cells) or cells.dtype != bool:
        raise LayerError(
            f"probabilities {path!r}: coverage must be a bool grid of the globe with cells of "
            f"{', '.join(map(str, DEGREES))} degrees, not {cells.shape} {cells.dtype}."
        )
    return Coverage(degrees, cells)


def _open_npz(path: str, keys: Sequence[str], optional: Sequence[str] = ()) -> dict[str, np.ndarray]:
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(i.file_size for i in archive.infolist())
        if size > MAX_BYTES:
            raise TooLargeError(f"archive {path!r} unpacks to {size / 2**30:.0f} GiB; at most 8 are read.")
        with np.load(path, allow_pickle=False) as z:
            missing = [k for k in keys if k not in z]
            if missing:
                raise LayerError(f"archive {path!r} lacks {', '.join(missing)}; it needs {', '.join(keys)}.")
            return {k: z[k] for k in (*keys, *optional) if k in z}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise LayerError(f"archive {path!r} cannot be read: {in_one_line(error)}.") from error


def _box(lonlat: np.ndarray) -> tuple[float, float, float, float]:
    (west, south), (east, north) = lonlat.min(axis=0), lonlat.max(axis=0)
    return float(west), float(south), float(east), float(north)


def _grown(box: tuple[float, float, float, float], degrees: float) -> tuple[float, float, float, float]:
    west, south, east, north = box
    return (
        max(west - degrees, -180.0),
        max(south - degrees, -90.0),
        min(east + degrees, 180.0),
        min(north + degrees, 90.0),
    )


def _land_in(box: tuple[float, float, float, float], n: int, seed: int, path: str) -> np.ndarray:
    """(n, 2) (lon, lat) places on land in a box, each standing for the same area."""
    rng, mask = np.random.default_rng(seed), LandMask()
    west, south, east, north = box
    low, high = np.sin(np.radians([south, north]))
    found, tried, parts = 0, 0, []
    while found < n:
        lon, lat = rng.uniform(west, east, 4 * n), np.degrees(np.arcsin(rng.uniform(low, high, 4 * n)))
        land = mask.keep("land", lon, lat)
        parts.append(np.stack([lon[land], lat[land]], axis=1))
        found, tried = found + int(land.sum()), tried + 1
        if tried > 50 and found == 0:
            raise LayerError(f"data source {path!r}: there is no land in its box {box}, from which to draw places.")
    return np.concatenate(parts)[:n]


def _squares(lonlat: np.ndarray, degrees: float) -> np.ndarray:
    """(N,) the same number for positions in one square; 0 degrees: a number each."""
    if not degrees:
        return np.arange(len(lonlat))
    cells = np.floor(lonlat / degrees).astype(np.int64)
    return np.unique(cells, axis=0, return_inverse=True)[1].reshape(-1)


def _plots(records: Records) -> np.ndarray:
    """(N,) a number for each plot: the same position and month."""
    key = np.column_stack([records.lonlat, records.month])
    return np.unique(key, axis=0, return_inverse=True)[1].reshape(-1)
