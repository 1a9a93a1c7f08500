"""Data sources: from users' files to places and label blocks (see `sdm.training.data.labels`).

Five kinds: `ranges` (presence on a raster), `polygons`, `probabilities` (another model's output), `surveys`
(plots in which every species present is listed) and `occurrences` (records of presence, with a background).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from sdm.errors import LayerError
from sdm.layers.landmask import LandMask
from sdm.names import TaxonTable
from sdm.names.origin import with_introduced
from sdm.training.data.corrections import all_ranges, native_ranges, read_corrections
from sdm.training.data.drawing import Box, CellDensity, DenserBox, draw_places, land_places
from sdm.training.data.labels import NOT_KNOWN, LabelBlock, PackedLabels, Places, SparseLabels
from sdm.training.data.probabilities import Probabilities
from sdm.training.data.ranges import RangePolygons, RangeRaster
from sdm.training.data.records import RecordColumns, Records, read_records
from sdm.training.data.source import Source
from sdm.training.recipe.sources import (
    OccurrencesSettings,
    PolygonsSettings,
    ProbabilitiesSettings,
    RangesSettings,
    RecordsSettings,
    SourceSettings,
    SurveysSettings,
)


class Ranges(Source):
    """Presence on an equal-area raster; labels every place on it."""

    settings: RangesSettings

    def __init__(self, settings: RangesSettings, taxa: TaxonTable, denser: Sequence[DenserBox] = ()) -> None:
        super().__init__(settings)
        names = [n for n in RangeRaster.names(settings.path) if n]
        self.raster = RangeRaster.phylacine(settings.path, self._known_names(names, taxa) if names else {})
        self.species = tuple(self.raster.species)
        if settings.corrections:
            self._correct()
        self.denser = tuple(denser)
        """Where polygons need more places."""

    def _correct(self) -> None:
        """Apply the corrections of the settings. Raises LayerError where they leave no range."""
        settings, corrections = self.settings, read_corrections(self.settings.corrections)
        if missing := sorted({c.species for c in corrections} - set(self.species)):
            self.notes.append(
                f"{len(missing)} species of {settings.corrections} have no range here: {missing[0]!r} ..."
            )
        if settings.origin == "native":
            self.raster = native_ranges(self.raster, corrections)
            return
        self.raster = all_ranges(self.raster, corrections)
        self.species = tuple(map(with_introduced, self.raster.species))
        if not self.species:
            raise LayerError(
                f"corrections {settings.corrections!r} have no introduced range of a species of {settings.path!r}; "
                "leave the source with origin = 'all' out."
            )

    @property
    def files(self) -> list[Path]:
        """The rasters of its folder, or the one archive, and the corrections."""
        corrections = [Path(self.settings.corrections)] if self.settings.corrections else []
        return [*RangeRaster.files(self.settings.path), *corrections]

    def places(self, seed: int) -> Places:
        """Places in every cell, drawn once; cells of land and sea by `land_share`."""
        s, mask = self.settings, LandMask()
        density = CellDensity(s.points_per_cell, s.points_per_cell_sea, s.land_share, self.denser)
        return draw_places(self.raster, lambda lon, lat: mask.keep("land", lon, lat), density, seed)

    def block(self, places: Places, own: int) -> LabelBlock:
        """The cell's presence, at every place on the raster."""
        lon, lat = places.lonlat.T
        rows = self._own_rows(places, own)
        others = np.flatnonzero((places.source != own) & self._valid_months(places.month))
        rows[others] = self.raster.cells(lon[others], lat[others])
        table = PackedLabels(self.raster.presence, len(self.species))
        return LabelBlock(self.name, self.species, rows, table, weight=self.settings.weight)


class Polygons(Source):
    """Range polygons; label every place in their common bounding box."""

    settings: PolygonsSettings

    def __init__(self, settings: PolygonsSettings, taxa: TaxonTable) -> None:
        super().__init__(settings)
        polygons = RangePolygons.read(settings.path, settings.species)
        self.polygons = polygons.renamed(self._known_names(polygons.species, taxa))
        self.species = tuple(self.polygons.species)

    @property
    def extent(self) -> Box:
        """The bounding box of all polygons."""
        west, south, east, north = (float(v) for v in self.polygons.bounds)
        return west, south, east, north

    def places(self, seed: int) -> Places | None:
        """`points` random places on land in the box; None where the recipe asks for none."""
        if not self.settings.points:
            return None
        lonlat = land_places(self.extent, self.settings.points, seed, self.settings.path)
        return Places.grouped(lonlat, np.zeros(len(lonlat), np.int8), np.arange(len(lonlat)))

    def block(self, places: Places, own: int) -> LabelBlock:
        """In or out of each polygon, at every place in the box."""
        west, south, east, north = self.extent
        lon, lat = places.lonlat.T
        inside = (lon >= west) & (lon <= east) & (lat >= south) & (lat <= north) & self._valid_months(places.month)
        labelled = np.flatnonzero(inside)
        rows = np.full(len(lon), -1, np.int32)
        rows[labelled] = np.arange(labelled.size)
        packed = np.packbits(self.polygons.labels(lon[labelled], lat[labelled]), axis=1)
        table = PackedLabels(packed, len(self.species))
        return LabelBlock(self.name, self.species, rows, table, weight=self.settings.weight)


class Surveys(Source):
    """Plots: every species present in one is listed, so the others of the table are absent there."""

    settings: SurveysSettings

    def __init__(self, settings: SurveysSettings, taxa: TaxonTable) -> None:
        super().__init__(settings)
        records = _read_table(self, settings)
        known = self._known_names(records.names, taxa)
        # The model's species of every row, "" for an absence or a species that it does not know.
        name_index = np.where(records.present & (records.species >= 0), records.species, len(records.names))
        row_species = np.array([*(known.get(n, "") for n in records.names), ""])[name_index]
        distinct, count = np.unique(row_species, return_counts=True)
        frequent = sorted(set(distinct[(count >= settings.min_records) & (distinct != "")]))
        if not frequent:
            raise LayerError(f"surveys {settings.path!r} list no species {settings.min_records} times (min_records).")
        self.species = tuple(str(s) for s in frequent)
        number = {s: k for k, s in enumerate(self.species)}
        plots, first, plot_of_row = np.unique(_plot_numbers(records), return_index=True, return_inverse=True)
        self._lonlat, self._month = records.lonlat[first], records.month[first]
        column = np.array([number.get(s, -1) for s in row_species])
        present = column >= 0
        pairs = np.unique(np.stack([plot_of_row[present], column[present]], axis=1), axis=0)
        indptr = np.searchsorted(pairs[:, 0], np.arange(plots.size + 1))
        self._table = SparseLabels(indptr, pairs[:, 1], len(self.species))

    @property
    def extent(self) -> Box:
        """The bounding box of all plots."""
        return _box(self._lonlat)

    def places(self, seed: int) -> Places:
        """The plots; those of one square of `thin` degrees are a group."""
        return Places.grouped(self._lonlat, self._month, _squares(self._lonlat, self.settings.thin))

    def block(self, places: Places, own: int) -> LabelBlock:
        """The species found in a plot, at its own places."""
        rows = self._own_rows(places, own)
        return LabelBlock(self.name, self.species, rows, self._table, weight=self.settings.weight)


class Occurrences(Source):
    """Records of presence, with background places.

    `background` decides what is known besides the presences. "land": random land, where every species counts as
    absent; at a record nothing is known of the other species. "target-group": the records of the other species, which
    share the observers' habits (Phillips et al. 2009): at a record the other species count as absent. "file": the
    rows of the file whose `presence` is 0, for the species they name or, without a species column, for all.
    """

    settings: OccurrencesSettings

    def __init__(self, settings: OccurrencesSettings, taxa: TaxonTable, seed: int) -> None:
        super().__init__(settings)
        records = _read_table(self, settings)
        known = self._known_names(records.names, taxa)
        self.species = tuple(sorted(set(known.values())))
        number = {s: k for k, s in enumerate(self.species)}
        column = np.array([*(number[known[n]] if n in known else -1 for n in records.names), -1])[records.species]
        absent, kept = self._select(records, column)
        lonlat, month, column, absent = records.lonlat[kept], records.month[kept], column[kept], absent[kept]
        count = (column >= 0).astype(np.int64)
        value = np.where(absent, 0, 1).astype(np.uint8)[column >= 0]
        rest = np.full(column.size, 0 if settings.background == "target-group" else NOT_KNOWN, np.uint8)
        rest[column < 0] = 0  # background that names no species is one for all
        if settings.background == "land":
            n = settings.background_places or max(1000, column.size)
            box = _grown(_box(lonlat), settings.margin)
            lonlat = np.concatenate([lonlat, land_places(box, n, seed, settings.path)])
            month = np.concatenate([month, np.zeros(n, month.dtype)])
            if records.month.any():  # the background gets the months of the records, in the same proportions
                month[column.size :] = np.random.default_rng(seed).choice(month[: column.size], n)
            count, rest = np.concatenate([count, np.zeros(n, np.int64)]), np.concatenate([rest, np.zeros(n, np.uint8)])
            absent = np.concatenate([absent, np.ones(n, bool)])
        self._lonlat, self._month, self._absent = lonlat, month, absent
        indptr = np.concatenate([[0], np.cumsum(count)])
        self._table = SparseLabels(indptr, column[column >= 0], len(self.species), value, rest)

    def _select(self, records: Records, column: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(N,) bool, (N,) bool: which rows are absences, and which are used. Raises LayerError."""
        settings = self.settings
        if settings.background == "file":
            absent = ~records.present
            if not absent.any():
                raise LayerError(
                    f"occurrences {settings.path!r}: background is 'file', but no row has a {settings.presence!r} of 0."
                )
            kept = (column >= 0) | absent
        else:
            absent, kept = np.zeros(column.size, bool), (column >= 0) & records.present
        if not (kept & ~absent).any():
            raise LayerError(
                f"occurrences {settings.path!r} hold no presence of a species that the model's names include."
            )
        if settings.background == "target-group" and len(self.species) < 2:
            raise LayerError(
                f"occurrences {settings.path!r} hold one species, {self.species[0]}: a target group needs others; "
                "choose background = 'land' or 'file'."
            )
        return absent, kept

    @property
    def extent(self) -> Box:
        """The bounding box of all records and background places."""
        return _box(self._lonlat)

    def places(self, seed: int) -> Places:
        """Records and background places; those of one kind in a square of `thin` degrees are a group.

        `background_share` of the places drawn are background.
        """
        group = 2 * _squares(self._lonlat, self.settings.thin) + self._absent
        places = Places.grouped(self._lonlat, self._month, group)
        absent, weight = self._absent[places.origin[places.start]], places.weight.copy()
        if absent.any():
            share = self.settings.background_share
            weight[absent] *= share / weight[absent].sum()
            weight[~absent] *= (1 - share) / weight[~absent].sum()
        return replace(places, weight=weight)

    def block(self, places: Places, own: int) -> LabelBlock:
        """Presence, absence or not known, at its own places."""
        rows = self._own_rows(places, own)
        return LabelBlock(self.name, self.species, rows, self._table, partial=True, weight=self.settings.weight)


def open_sources(entries: Sequence[SourceSettings], taxa: TaxonTable, seed: int) -> list[Source]:
    """The sources of a recipe, in its order. Raises LayerError where a file is not what its kind needs."""
    polygons = {k: Polygons(e, taxa) for k, e in enumerate(entries) if isinstance(e, PolygonsSettings)}
    denser = [
        DenserBox(p.extent, p.settings.points_per_cell, p.settings.cell_weight)
        for p in polygons.values()
        if p.settings.points_per_cell
    ]
    sources: list[Source] = []
    for k, entry in enumerate(entries):
        match entry:
            case RangesSettings():
                sources.append(Ranges(entry, taxa, denser))
            case PolygonsSettings():
                sources.append(polygons[k])
            case ProbabilitiesSettings():
                sources.append(Probabilities(entry, taxa))
            case SurveysSettings():
                sources.append(Surveys(entry, taxa))
            case OccurrencesSettings():
                sources.append(Occurrences(entry, taxa, seed))
    return sources


def _read_table(source: Source, settings: RecordsSettings) -> Records:
    """The records of a source; what is left out is noted."""
    records = read_records(
        settings.path,
        RecordColumns(settings.species, settings.lon, settings.lat, settings.presence, settings.month),
        taxon=settings.taxon,
        species_columns=settings.columns,
        crs=settings.crs,
    )
    if records.left_out:
        source.notes.append(f"{records.left_out} row(s) without a position, a species or a presence are left out")
    return records


def _box(lonlat: np.ndarray) -> Box:
    (west, south), (east, north) = lonlat.min(axis=0), lonlat.max(axis=0)
    return float(west), float(south), float(east), float(north)


def _grown(box: Box, degrees: float) -> Box:
    west, south, east, north = box
    return (
        max(west - degrees, -180.0),
        max(south - degrees, -90.0),
        min(east + degrees, 180.0),
        min(north + degrees, 90.0),
    )


def _squares(lonlat: np.ndarray, degrees: float) -> np.ndarray:
    """(N,) number of the square that each position lies in; for 0 degrees, a number for each position."""
    if not degrees:
        return np.arange(len(lonlat))
    cells = np.floor(lonlat / degrees).astype(np.int64)
    return np.unique(cells, axis=0, return_inverse=True)[1].reshape(-1)


def _plot_numbers(records: Records) -> np.ndarray:
    """(N,) number of the plot of each record: records of the same position and month."""
    key = np.column_stack([records.lonlat, records.month])
    return np.unique(key, axis=0, return_inverse=True)[1].reshape(-1)
