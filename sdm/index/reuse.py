"""Pixels of another index, copied instead of being encoded again.

Lattices are common to all maps of one CRS and resolution, so these are the pixels that would be computed, to
the bit: an index grows without encoding any place twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from sdm.errors import RegionIndexError
from sdm.files.workspace import differences
from sdm.grid import Grid, Tile
from sdm.index.plan import IndexJob
from sdm.index.reader import Index
from sdm.index.window import Window
from sdm.request.months import month_name


@dataclass(frozen=True)
class Overlap:
    """The overlap of a tile of a grid with an index."""

    window: Window
    """(rows, columns) of the index."""
    pixels: np.ndarray
    """(N,) flat indices into the tile of the window's pixels, row by row."""


def check_reusable(index: Index, job: IndexJob) -> None:
    """Raise RegionIndexError unless the pixels of an index are those that a job would compute."""
    new, old = _pixel_identity(job.identity), _pixel_identity(index.identity)
    new["model"], old["model"] = job.places.model.space[1], index.encoders_then
    if new["each"] is False:
        del new["each"], old["each"]
    if differing := differences(old, new):
        raise RegionIndexError(
            f"the pixels of region index {index.url!r} cannot be reused: it was made with {differing}."
        )
    if max(abs(offset - round(offset)) for offset in _offset(index.grid, job.grid)) > 1e-6:
        raise RegionIndexError(
            f"the pixels of region index {index.url!r} cannot be reused: the two grids are not aligned."
        )


def overlap(index: Index, grid: Grid, tile: Tile) -> Overlap | None:
    """The pixels of an index that a tile of another grid overlaps; None where it does not."""
    down, across = (round(offset) for offset in _offset(index.grid, grid))
    height, width = index.grid.shape
    rows = slice(max(tile.rows.start + down, 0), min(tile.rows.stop + down, height))
    cols = slice(max(tile.cols.start + across, 0), min(tile.cols.stop + across, width))
    if rows.start >= rows.stop or cols.start >= cols.stop:
        return None
    row = np.arange(rows.start, rows.stop) - down - tile.rows.start
    col = np.arange(cols.start, cols.stop) - across - tile.cols.start
    return Overlap((rows, cols), (row[:, None] * tile.shape[1] + col[None, :]).ravel())


def _pixel_identity(identity: Any) -> dict[str, Any]:
    """The part of an identity that the bytes of one pixel depend on."""
    kept = {
        key: value
        for key, value in identity.items()
        if key not in ("grid", "mask", "region", "land_share", "uncovered")
    }
    grid = identity["grid"]
    return kept | {
        "month": month_name(identity.get("month", 0)),
        "crs": grid["crs"],
        "resolution": grid["transform"][0],
    }


def _offset(old: Grid, new: Grid) -> tuple[float, float]:
    """Pixels from the first of one grid to the first of another: (rows, columns)."""
    a, b = new.geobox.affine, old.geobox.affine
    return (a.f - b.f) / a.e, (a.c - b.c) / a.a
