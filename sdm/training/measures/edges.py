"""Near the edges of ranges, where a map is most difficult."""

from __future__ import annotations

import numpy as np

from sdm.training.data.ranges import RangeRaster
from sdm.training.measures.scores import auc

REACH = 2
"""Cells on either side of an edge that count as near it: 193 km for PHYLACINE."""
MIN_CELLS = 5
"""Of presence and of absence near an edge, for a species to count."""
BYTES_AT_ONCE = 64
"""Columns of packed presence, eight species each, that are unpacked at once: about 25 MB for PHYLACINE."""


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
