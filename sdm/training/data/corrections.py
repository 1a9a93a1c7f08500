"""Corrections of range rasters: countries, or parts of them, where an atlas lacks a species or is wrong on its origin.

The file is a CSV with a row for a species in some countries: `species`; `origin`; `countries`, ISO 3166-1 alpha-3 codes
with spaces between; `boxes`, parts of these countries as "west south east north" in degrees (lon, lat) with | between,
empty for all of them; `source`, the work that says so. The origins:

* `native`: the cells there are added to the native range;
* `introduced`: the cells there are added to the introduced range, and those that the atlas has leave the native one;
* `not-native`: the cells that the atlas has there belong to the introduced range; none is added.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np

from sdm.errors import LayerError, RequestError, quoted
from sdm.files.paths import folder
from sdm.request import BBox
from sdm.training.data.ranges import RangeRaster

NATIVE, INTRODUCED, NOT_NATIVE = CLASSES = ("native", "introduced", "not-native")
COLUMNS = ("species", "origin", "countries", "boxes", "source")
PROBES = 6
"""Places along each side of a cell that decide which countries it belongs to."""
PITCH = 0.1
"""Degrees between the places at which the outlines of countries are read."""
MAX_ROWS = 20_000
_PART_OF = {"Kosovo": 688, "N. Cyprus": 196, "Somaliland": 706}
"""ISO numbers of the countries that areas without a code of their own are counted with."""


@dataclass(frozen=True)
class Correction:
    """A species that lives in some countries, or in the parts of them that lie in boxes."""

    species: str
    origin: str
    """One of `CLASSES`."""
    countries: tuple[str, ...]
    """ISO 3166-1 alpha-3 codes."""
    boxes: tuple[BBox, ...] = ()
    source: str = ""


def read_corrections(path: str | Path) -> list[Correction]:
    """The rows of a file of corrections. Raises LayerError naming the line that is wrong, and how."""
    try:
        with Path(path).open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            if missing := [c for c in COLUMNS if c not in (reader.fieldnames or ())]:
                raise LayerError(
                    f"corrections {str(path)!r} lack the column {missing[0]!r}; give {', '.join(COLUMNS)}."
                )
            corrections: list[Correction] = []
            for row in reader:
                if len(corrections) == MAX_ROWS:
                    raise LayerError(f"corrections {str(path)!r} have more than {MAX_ROWS:,} rows.")
                try:
                    corrections.append(_correction(row))
                except (RequestError, ValueError) as error:
                    raise LayerError(f"corrections {str(path)!r}, line {reader.line_num}: {error}") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise LayerError(f"corrections {str(path)!r} cannot be read: {error}.") from None
    return corrections


def _correction(row: dict[str, str]) -> Correction:
    values = {name: (row[name] or "").strip() for name in COLUMNS}
    if None in row or not values["species"] or not values["source"]:
        raise ValueError("each row needs as many fields as the header, with a species and a source.")
    if values["origin"] not in CLASSES:
        raise ValueError(f"origin {quoted(values['origin'])} is not known; give {', '.join(CLASSES)}.")
    codes = tuple(values["countries"].split())
    if unknown := [code for code in codes if code not in country_numbers()]:
        raise ValueError(f"country {quoted(unknown[0])} is not an ISO 3166-1 alpha-3 code of data/countries.fgb.")
    if not codes:
        raise ValueError("countries is empty; give codes such as 'DEU FRA'.")
    boxes = tuple(BBox.of(tuple(map(float, box.split()))) for box in values["boxes"].split("|") if box.strip())
    return Correction(values["species"], values["origin"], codes, boxes, values["source"])


def native_ranges(raster: RangeRaster, corrections: Sequence[Correction]) -> RangeRaster:
    """The native ranges of a raster, corrected; corrections of species that it lacks are passed over."""
    native, introduced = _corrected(raster, corrections)
    presence = raster.presence.copy()
    for name, cells in introduced.items():
        _set(presence, raster.species.index(name), cells, False)
    for name, cells in native.items():
        _set(presence, raster.species.index(name), cells, True)
    return replace(raster, presence=presence)


def all_ranges(raster: RangeRaster, corrections: Sequence[Correction]) -> RangeRaster:
    """The native and introduced ranges together of those species of a raster that have an introduced one."""
    native, introduced = _corrected(raster, corrections)
    selected = raster.select([name for name in raster.species if name in introduced])
    for k, name in enumerate(selected.species):
        for cells in (introduced[name], native.get(name, np.zeros(0, np.int64))):
            _set(selected.presence, k, cells, True)
    return selected


def _corrected(
    raster: RangeRaster, corrections: Sequence[Correction]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """({species: cells to add to its native range}, {species: cells of its introduced range})."""
    number = {name: k for k, name in enumerate(raster.species)}
    own = [c for c in corrections if c.species in number]
    found: dict[str, dict[str, list[np.ndarray]]] = {NATIVE: {}, INTRODUCED: {}}
    for correction, cells in zip(own, corrected_cells(raster, own), strict=True):
        if correction.origin == NOT_NATIVE:
            cells = cells[raster.labels_of(number[correction.species])[cells]]
        kind = NATIVE if correction.origin == NATIVE else INTRODUCED
        found[kind].setdefault(correction.species, []).append(cells)
    native, introduced = ({k: np.unique(np.concatenate(v)) for k, v in found[o].items()} for o in (NATIVE, INTRODUCED))
    return native, introduced


def _set(presence: np.ndarray, species: int, cells: np.ndarray, present: bool) -> None:
    """Set the bit of a species in packed presence, in place."""
    bit = np.uint8(128 >> species % 8)
    column = presence[:, species // 8]
    column[cells] = column[cells] | bit if present else column[cells] & ~bit


def corrected_cells(raster: RangeRaster, corrections: Iterable[Correction]) -> list[np.ndarray]:
    """The cells (numbers of `raster`) of each correction.

    A cell belongs to a box, or without boxes to a country, if at least half of its places on land do; if that holds for
    no cell, the one with most of its land does.
    """
    country, lon, lat = countries_of_cells(raster)
    land = np.maximum((country >= 0).sum(axis=1), 1)
    numbers = country_numbers()
    found = []
    for correction in corrections:
        own = np.array([numbers[code] for code in correction.countries])
        inside = np.isin(country, own)
        parts: list[tuple[np.ndarray, BBox | None]] = [(own, box) for box in correction.boxes]
        parts = parts or [(own[k : k + 1], None) for k in range(own.size)]
        masks = [inside & _within(box, lon, lat) if box else np.isin(country, some) for some, box in parts]
        cells = [np.flatnonzero(2 * np.logical_or.reduce(masks).sum(axis=1) >= land)]
        for (some, box), mask in zip(parts, masks, strict=True):
            if not (2 * mask.sum(axis=1) >= land).any():
                cells.append(_main_cell(raster, some, box))
        found.append(np.unique(np.concatenate(cells)))
    return found


def _main_cell(raster: RangeRaster, countries: np.ndarray, box: BBox | None) -> np.ndarray:
    """The cell that holds most of the land of countries, by their numbers, within a box; none if that has no land."""
    outlines = _outlines()
    row, col = np.nonzero(np.isin(outlines, countries))
    lon, lat = -180.0 + (col + 0.5) * PITCH, 90.0 - (row + 0.5) * PITCH
    kept = _within(box, lon, lat) if box else np.ones(lon.size, bool)
    cells, count = np.unique(raster.cells(lon[kept], lat[kept]), return_counts=True)
    return cells[count == count.max()][:1] if cells.size else cells


def countries_of_cells(raster: RangeRaster) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """At PROBES x PROBES places in each cell: number of the country, -1 at sea; lon; lat; all (cells, places)."""
    cells = np.arange(raster.shape[0] * raster.shape[1])
    at = (np.arange(PROBES) + 0.5) / PROBES
    u, v = (grid.ravel() for grid in np.meshgrid(at, at))
    lon, lat = raster.positions(np.repeat(cells, u.size), np.tile(u, cells.size), np.tile(v, cells.size))
    on = np.isfinite(lon)
    outlines = _outlines()
    col = ((np.where(on, lon, 0.0) + 180.0) / PITCH).astype(np.int64) % outlines.shape[1]
    row = np.clip(((90.0 - np.where(on, lat, 0.0)) / PITCH).astype(np.int64), 0, outlines.shape[0] - 1)
    shape = (cells.size, u.size)
    return np.where(on, outlines[row, col], -1).reshape(shape), lon.reshape(shape), lat.reshape(shape)


@cache
def _outlines() -> np.ndarray:
    """(rows, columns) int16 ISO numbers of the countries of data/countries.fgb every PITCH degrees, -1 at sea."""
    from affine import Affine
    from rasterio.features import rasterize

    frame = _frame()
    shape = (round(180 / PITCH), round(360 / PITCH))
    return rasterize(
        zip(frame.geometry, frame["number"], strict=True),
        out_shape=shape,
        fill=-1,
        transform=Affine(PITCH, 0.0, -180.0, 0.0, -PITCH, 90.0),
        all_touched=True,
        dtype="int16",
    )


@cache
def country_numbers() -> dict[str, int]:
    """{ISO 3166-1 alpha-3 code: numeric code} of the countries that have an outline."""
    drawn = set(_frame()["number"])
    with (folder("data") / "nations.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return {row["iso_a3"]: int(row["iso_n3"]) for row in rows if row["iso_n3"] and int(row["iso_n3"]) in drawn}


@cache
def _frame():
    """The outlines, with the column `number`; those without an ISO code are left out."""
    from sdm.files.vectors import countries

    frame = countries((-180.0, -90.0, 180.0, 90.0))
    number = frame["iso_n3"].astype(float).fillna(frame["name"].map(_PART_OF))
    return frame[number.notna()].assign(number=number.dropna().astype(int))


def _within(box: BBox, lon: np.ndarray, lat: np.ndarray) -> np.ndarray:
    """Whether places lie in a box, which may cross the antimeridian."""
    east = (lon >= box.west) & (lon <= box.east) if box.west < box.east else (lon >= box.west) | (lon <= box.east)
    return east & (lat >= box.south) & (lat <= box.north)
