"""Near the edges of ranges: where a map is hard, and what each modality is worth there."""

from __future__ import annotations

import numpy as np

from sdm.training.evaluate import auc
from sdm.training.ranges import RangeRaster

REACH = 2
"""Cells to either side of an edge that count as near it: 193 km of PHYLACINE's cells."""
MIN_CELLS = 5
"""Of presence and of absence near an edge, for a species to count."""
BYTES_AT_ONCE = 64
"""Of a cell's presences, eight species in each: the whole raster of those, unpacked, is about 25 MB."""


def near_range_edges(raster: RangeRaster, land: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """(N, S) bool: which of `cells` (N,) of a raster lie near the edge of each range on `land` (cells,) bool."""
    parts = []
    for start in range(0, raster.presence.shape[1], BYTES_AT_ONCE):
        some = np.unpackbits(raster.presence[:, start : start + BYTES_AT_ONCE], axis=1).astype(bool)
        parts.append(near_edges(some, land, raster.shape)[cells])
    return np.concatenate(parts, axis=1)[:, : len(raster.species)]


def near_edges(present: np.ndarray, counted: np.ndarray, shape: tuple[int, int], reach: int = REACH) -> np.ndarray:
    """Cells within `reach` cells (square neighbourhood) of one of the other kind, presence or absence: (cells, S) bool.

    `present` (cells, S) bool, cells in row-major order of a grid of `shape` (rows, columns) whose columns go around
    the globe. Only cells where `counted` (cells,) holds are near anything: with the land alone, a coast is no edge.
    """
    grid = present.reshape(*shape, -1)
    here = counted.reshape(*shape, 1)
    return ((grid & _within(~grid & here, reach)) | (~grid & _within(grid & here, reach))).reshape(present.shape) & (
        counted[:, None]
    )


def edge_auc(score: np.ndarray, present: np.ndarray, near: np.ndarray) -> tuple[float | None, int]:
    """(mean AUC over species, how many) among cells near the edge of each species' range; matching (cells, S) arrays.

    Species with fewer than MIN_CELLS of presence or of absence there are left out; None where none is left.
    """
    values = []
    for j in range(score.shape[1]):
        rows = near[:, j]
        here = present[rows, j]
        if MIN_CELLS <= here.sum() <= here.size - MIN_CELLS:
            values.append(auc(score[rows, j], here))
    return (float(np.mean(values)) if values else None), len(values)


def _within(mask: np.ndarray, reach: int) -> np.ndarray:
    """Whether any cell of a square neighbourhood is set: (rows, columns, S) bool; columns wrap, rows do not."""
    out = mask.copy()
    for step in range(1, reach + 1):
        out |= np.roll(mask, step, axis=1) | np.roll(mask, -step, axis=1)
    rows = out.copy()
    for step in range(1, reach + 1):
        rows[step:] |= out[:-step]
        rows[:-step] |= out[step:]
    return rows
