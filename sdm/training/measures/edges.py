"""Near the edges of ranges, where a map is most difficult."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyproj
import shapely
from rasterio import features
from rasterio.transform import Affine

from sdm.training.data.ranges import RangePolygons, RangeRaster
from sdm.training.measures.scores import auc

REACH = 2
"""Cells on either side of an edge that count as near it: 193 km for PHYLACINE."""
MIN_CELLS = 5
"""Of presence and of absence near an edge, for a species to count."""
BYTES_AT_ONCE = 64
"""Columns of packed presence, eight species each, that are unpacked at once: about 25 MB for PHYLACINE."""


NEIGHBOURS = tuple((down, across) for down in (-1, 0, 1) for across in (-1, 0, 1) if down or across)
MIN_AREA = 20
"""Cells of a polygon whose edges tell how much of a cell at the edge of a range lies in it."""
TENTHS = 10


def touched_shares(raster: RangeRaster, land: np.ndarray, polygons: RangePolygons) -> np.ndarray:
    """(9,) share of the cells of a range whose centre lies in it, by the number of absences among their neighbours.

    An atlas counts a cell as soon as the range touches it. How much is too much at its edges is found by treating
    the finer `polygons` of other species in the same way. The share without absences among the neighbours is taken as
    1: what is missing inside a range is not due to its edge. `land` (cells,) bool: neighbours that count.
    """
    rows, cols = raster.shape
    dx, _, x0, _, dy, y0 = raster.transform
    grid: dict[str, Any] = {"out_shape": (rows, cols), "transform": Affine(dx, 0, x0, 0, dy, y0), "dtype": "uint8"}
    to_grid = pyproj.Transformer.from_crs(4326, pyproj.CRS.from_wkt(raster.crs), always_xy=True)
    cells, within = np.zeros(9), np.zeros(9)
    for shape in shapely.transform(polygons.geometry, to_grid.transform, interleaved=False):
        if shape.is_empty or shape.area < MIN_AREA * abs(dx * dy):
            continue
        touched = features.rasterize([shape], all_touched=True, **grid).astype(bool)
        centre = features.rasterize([shape], **grid).astype(bool)
        counted = touched & land.reshape(rows, cols)
        absent = absent_neighbours(touched.reshape(-1, 1), land, raster.shape).reshape(rows, cols)
        cells += np.bincount(absent[counted], minlength=9)
        within += np.bincount(absent[counted], weights=centre[counted], minlength=9)
    share = within / np.maximum(cells, 1.0)
    return np.minimum(share / share[0], 1.0) if share[0] > 0 else np.ones(9)


def absent_neighbours(present: np.ndarray, land: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """(cells, S) int8: how many of the eight neighbours of each cell are land without the species.

    `present` (cells, S) bool; `land` (cells,) bool; the columns of the grid of `shape` go around the globe.
    """
    empty = (~present & land[:, None]).reshape(*shape, -1)
    count = np.zeros(empty.shape, np.int8)
    for down, across in NEIGHBOURS:
        count += np.roll(np.roll(empty, down, axis=0), across, axis=1)
    return count.reshape(present.shape)


def place_shares(raster: RangeRaster, land: np.ndarray, cells: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """(N, S) float32: the share of each range in the `cells` (N,), 0 where it is absent, by `touched_shares`."""
    parts = []
    for start in range(0, raster.presence.shape[1], BYTES_AT_ONCE):
        present = np.unpackbits(raster.presence[:, start : start + BYTES_AT_ONCE], axis=1).astype(bool)
        absent = absent_neighbours(present, land, raster.shape)[cells]
        parts.append((present[cells] * shares[absent]).astype(np.float32))
    return np.concatenate(parts, axis=1)[:, : len(raster.species)]


def edge_calibration(probability: np.ndarray, share: np.ndarray, near: np.ndarray) -> tuple[float, list[list[float]]]:
    """(ece, table) among the places near the edges of ranges; arrays (places, S), `share` of the range at a place.

    Rows of the table are [mean probability, mean share, pairs] by tenths of the probability.
    """
    p, y = probability[near].astype(np.float64), share[near].astype(np.float64)
    tenth = np.minimum((p * TENTHS).astype(np.int64), TENTHS - 1)
    pairs, mean, held = (np.bincount(tenth, w, TENTHS) for w in (None, p, y))
    table = [[float(m / n), float(h / n), float(n)] for m, h, n in zip(mean, held, pairs, strict=True) if n]
    return float(np.abs(mean - held).sum() / max(p.size, 1)), table


def near_range_edges(raster: RangeRaster, land: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """(N, S) bool: which of the `cells` (N,) of a raster are near the edge of each range on `land` (cells,) bool."""
    parts = []
    for start in range(0, raster.presence.shape[1], BYTES_AT_ONCE):
        present = np.unpackbits(raster.presence[:, start : start + BYTES_AT_ONCE], axis=1).astype(bool)
        parts.append(near_edges(present, land, raster.shape)[cells])
    return np.concatenate(parts, axis=1)[:, : len(raster.species)]


def near_edges(present: np.ndarray, counted: np.ndarray, shape: tuple[int, int], reach: int = REACH) -> np.ndarray:
    """Cells within `reach` cells (square neighbourhood) of a cell of the other kind, presence or absence.

    Parameters
    ----------
    present : (cells, S) bool, cells in row-major order
    counted : (cells,) bool, the cells that are considered; with the land only, a coast is not an edge
    shape : (rows, columns) of the grid, whose columns go around the globe
    reach : distance in cells

    Returns
    -------
    (cells, S) bool
    """
    grid = present.reshape(*shape, -1)
    considered = counted.reshape(*shape, 1)
    near_absence = _dilated(~grid & considered, reach)
    near_presence = _dilated(grid & considered, reach)
    return ((grid & near_absence) | (~grid & near_presence)).reshape(present.shape) & counted[:, None]


def edge_auc(score: np.ndarray, present: np.ndarray, near: np.ndarray) -> tuple[float | None, int]:
    """(mean AUC over species, number of species) among the cells near the edge of each range; arrays (cells, S).

    Species with fewer than MIN_CELLS cells of presence or of absence there are left out; None if none is left.
    """
    values = []
    for j in range(score.shape[1]):
        rows = near[:, j]
        species_present = present[rows, j]
        if MIN_CELLS <= species_present.sum() <= species_present.size - MIN_CELLS:
            values.append(auc(score[rows, j], species_present))
    return (float(np.mean(values)) if values else None), len(values)


def _dilated(mask: np.ndarray, reach: int) -> np.ndarray:
    """(rows, columns, S) bool: whether any cell of a square neighbourhood is set; columns wrap, rows do not."""
    out = mask.copy()
    for step in range(1, reach + 1):
        out |= np.roll(mask, step, axis=1) | np.roll(mask, -step, axis=1)
    rows = out.copy()
    for step in range(1, reach + 1):
        rows[step:] |= out[:-step]
        rows[:-step] |= out[step:]
    return rows
