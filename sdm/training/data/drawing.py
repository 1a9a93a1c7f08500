"""Random places: in the cells of a range raster, on land in a box, anywhere on the globe. Positions are (lon, lat)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from sdm.errors import LayerError
from sdm.layers.landmask import LandMask
from sdm.training.data.labels import Places
from sdm.training.data.ranges import RangeRaster

Box = tuple[float, float, float, float]
"""(west, south, east, north), degrees."""
PROBES = 16
"""Places per cell that decide whether it is land."""
MAX_EMPTY_ROUNDS = 50


def random_places(n: int, rng: np.random.Generator, uniform: str = "area") -> np.ndarray:
    """(n, 2) float64 degrees (lon, lat), sea and land alike.

    uniform: "area", the same number per square kilometre; or "degrees", uniform in longitude and latitude as in
    TaxaBind's code, which puts half of them poleward of 45 degrees, on 29 % of the earth.
    """
    lon = rng.uniform(-180.0, 180.0, n)
    lat = np.rad2deg(np.arcsin(rng.uniform(-1.0, 1.0, n))) if uniform == "area" else rng.uniform(-90.0, 90.0, n)
    return np.stack([lon, lat], axis=1)


def land_places(box: Box, n: int, seed: int, path: str) -> np.ndarray:
    """(n, 2) (lon, lat) places on land in a box, uniform by area. Raises LayerError naming `path` if it has no land."""
    rng, mask = np.random.default_rng(seed), LandMask()
    west, south, east, north = box
    low, high = np.sin(np.radians([south, north]))
    count, rounds, parts = 0, 0, []
    while count < n:
        lon, lat = rng.uniform(west, east, 4 * n), np.degrees(np.arcsin(rng.uniform(low, high, 4 * n)))
        land = mask.keep("land", lon, lat)
        parts.append(np.stack([lon[land], lat[land]], axis=1))
        count, rounds = count + int(land.sum()), rounds + 1
        if rounds > MAX_EMPTY_ROUNDS and count == 0:
            raise LayerError(f"data source {path!r}: there is no land in its box {box} to draw places from.")
    return np.concatenate(parts)[:n]


@dataclass(frozen=True)
class DenserBox:
    """A box whose ranges are finer than the raster, in which more places are drawn."""

    box: Box
    places_per_cell: int
    """In each cell of land, where that is more."""
    weight: float
    """How many times as likely such a cell is drawn."""


@dataclass(frozen=True)
class CellDensity:
    """How many places are drawn in the cells of a raster, and how often those are used."""

    per_land_cell: int
    per_sea_cell: int
    land_share: float
    """Share of the places drawn in training that are in cells of land."""
    denser: Sequence[DenserBox] = ()


def draw_places(
    raster: RangeRaster, is_land: Callable[[np.ndarray, np.ndarray], np.ndarray], density: CellDensity, seed: int
) -> Places:
    """Uniform random places in every cell that lies on the globe, one group per cell: `origin` is the cell.

    `is_land` is a function (lon, lat) -> bool; a cell counts as land when any of PROBES places in it does.
    """
    rng = np.random.default_rng(seed)
    land, on_globe, lon, lat = _probe_cells(raster, is_land, rng)
    n = len(land)
    count = np.where(land, density.per_land_cell, density.per_sea_cell)
    weight = np.ones(n)
    for denser in density.denser:
        west, south, east, north = denser.box
        with np.errstate(invalid="ignore"):
            inside = (lon >= west) & (lon <= east) & (lat >= south) & (lat <= north)
        count = np.where(land & inside, np.maximum(count, denser.places_per_cell), count)
        weight[inside] *= denser.weight
    count = np.where(on_globe, count, 0)
    cell = np.repeat(np.arange(n), count)
    lon, lat = raster.positions(cell, rng.random(cell.size), rng.random(cell.size))
    # A random place can fall off the globe at the very top of the raster; put it back in the middle.
    bad = ~np.isfinite(lon)
    if bad.any():
        half = np.full(bad.sum(), 0.5)
        lon[bad], lat[bad] = raster.positions(cell[bad], half, half)
    used = np.flatnonzero(count)
    for part, share in ((land[used], density.land_share), (~land[used], 1 - density.land_share)):
        if part.any() and not part.all():
            weight[used[part]] *= share / weight[used[part]].sum()
    half = np.full(used.size, 0.5)
    return Places(
        np.stack([lon, lat], axis=1),
        np.zeros(cell.size, np.int8),
        np.zeros(cell.size, np.int8),
        cell,
        np.concatenate([[0], np.cumsum(count[used])[:-1]]).astype(np.int64),
        count[used],
        weight[used],
        np.stack(raster.positions(used, half, half), axis=1),
    )


def _probe_cells(
    raster: RangeRaster, is_land: Callable[[np.ndarray, np.ndarray], np.ndarray], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """For each cell: whether it is land, whether it lies on the globe, and (lon, lat) of a place in it."""
    n = raster.shape[0] * raster.shape[1]
    probe = np.repeat(np.arange(n), PROBES)
    lon, lat = raster.positions(probe, rng.random(probe.size), rng.random(probe.size))
    finite = np.isfinite(lon)
    land = np.zeros(probe.size, dtype=bool)
    land[finite] = is_land(lon[finite], lat[finite])
    by_cell = (n, PROBES)
    return (
        np.asarray(land.reshape(by_cell).any(axis=1)),
        np.asarray(finite.reshape(by_cell).all(axis=1)),
        lon.reshape(by_cell)[:, 0],
        lat.reshape(by_cell)[:, 0],
    )
