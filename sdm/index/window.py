"""Windows of a grid: which tiles they overlap, which pixels of those, and where a box lies in an index."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sdm.errors import BoxError, RequestError
from sdm.grid import Grid, Tile, as_region, make_grid
from sdm.request import Area

Window = tuple[slice, slice]
"""(rows, columns) of a grid, without steps."""


def checked(rows: slice, cols: slice, shape: tuple[int, int]) -> Window:
    """A window with both ends stated. Raises RequestError unless it lies within `shape` (rows, columns)."""
    for part, length in zip((rows, cols), shape, strict=True):
        if part.step not in (None, 1) or not 0 <= (part.start or 0) < (part.stop or length) <= length:
            raise RequestError(f"window {part} does not lie within the {length} pixels of the index.")
    return (
        slice(rows.start or 0, rows.stop or shape[0]),
        slice(cols.start or 0, cols.stop or shape[1]),
    )


def overlapping(grid: Grid, rows: slice, cols: slice) -> list[Tile]:
    """The tiles of a grid that overlap a window, row by row from the north-west."""
    side, (height, width) = grid.tile_size, grid.shape
    return [
        Tile((i, j), slice(i * side, min((i + 1) * side, height)), slice(j * side, min((j + 1) * side, width)))
        for i in range(rows.start // side, -(-rows.stop // side))
        for j in range(cols.start // side, -(-cols.stop // side))
    ]


def crop(tile: Tile, pixels: np.ndarray, rows: slice, cols: slice) -> tuple[Any, np.ndarray]:
    """The pixels of a tile that lie in a window, and their positions in it.

    Parameters
    ----------
    tile : one that overlaps the window.
    pixels : (N,) flat indices into the tile.
    rows, cols : the window.

    Returns
    -------
    A selection of the N pixels, a slice or (M,) indices; and (M,) int64 flat indices into the window.
    """
    width = cols.stop - cols.start
    if (tile.rows, tile.cols) == (rows, cols):
        return slice(None), pixels.astype(np.int64)
    row, col = np.divmod(pixels.astype(np.int64), tile.shape[1])
    row += tile.rows.start - rows.start
    col += tile.cols.start - cols.start
    flat = row * width + col
    if _contains(rows, tile.rows) and _contains(cols, tile.cols):
        return slice(None), flat
    inside = np.flatnonzero((row >= 0) & (row < rows.stop - rows.start) & (col >= 0) & (col < width))
    return inside, flat[inside]


def _contains(outer: slice, inner: slice) -> bool:
    return outer.start <= inner.start and inner.stop <= outer.stop


def locate(grid: Grid, area: Area, name: str) -> tuple[Grid, tuple[int, int]]:
    """The part of a grid that covers the box or the region of an area, or all of it.

    Parameters
    ----------
    grid : of an index.
    area : its resolution, CRS and tiles are ignored: those of the grid apply.
    name : the index, in messages.

    Returns
    -------
    The grid of the part, masked to the region; and the row and column of its first pixel.

    Raises
    ------
    BoxError : the area reaches out of the grid.
    """
    region = as_region(area.region, area.layer, area.where)
    if area.bbox is None and region is None:
        return grid, (0, 0)
    resolution, no_limit = grid.resolution, 1 << 62  # what lies inside cannot be too large
    asked = make_grid(area.bbox, region, grid.crs, resolution, grid.tile_size, no_limit)
    a, b = grid.geobox.affine, asked.geobox.affine
    row, col = round((a.f - b.f) / resolution), round((b.c - a.c) / resolution)
    (height, width), (rows, cols) = grid.shape, asked.shape
    turn = 360.0 / resolution
    if grid.is_geographic and abs(turn - round(turn)) < 1e-6:
        # A box west of 180 may lie in an index that continues past it, and the reverse.
        around = (col, col + round(turn), col - round(turn))
        col = next((c for c in around if 0 <= c <= width - cols), col)
    if row < 0 or col < 0 or row + rows > height or col + cols > width:
        raise BoxError(
            f"the box {_text(asked.bbox)} extends beyond region index {name!r}, which covers {_text(grid.bbox)} "
            "(west south east north); choose a box inside, or build a larger index."
        )
    return Grid(grid.geobox[row : row + rows, col : col + cols], grid.tile_size, region, asked.bbox), (row, col)


def _text(box: Sequence[float]) -> str:
    return " ".join(f"{value:g}" for value in box)
