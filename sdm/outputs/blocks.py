"""A raster as a sequence of blocks of bounded size, so that no writer holds the whole map."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np

if TYPE_CHECKING:
    import xarray as xr

    from sdm.outputs.cube import Layer


class Computed(Protocol):
    """Values computed from others when they are read."""

    shape: tuple[int, ...]

    def __getitem__(self, place: tuple[slice, slice], /) -> np.ndarray:
        """Values (rows, columns), float32."""
        ...


Source: TypeAlias = "xr.DataArray | np.ndarray | Layer | Computed"
"""A map: float values of shape (y, x), NaN where not modelled; in memory, or lazy in Dask or Zarr, or computed."""

_STRIP = 512
"""Rows per strip of a source without chunks: the block height of the GeoTIFF."""


def iter_blocks(source: Source, max_pixels: int = 1 << 20) -> Iterator[tuple[slice, slice, np.ndarray]]:
    """Yield (rows, columns, values) that cover the source once, from top left to bottom right.

    Values are float32 of shape (rows, columns) and may be a view of the source: do not write to them.
    Blocks consist of chunks of the source, as many as fit into `max_pixels` but at least one. All NaNs have
    the same bits, so that equal maps have equal bytes.
    """
    row_edges, column_edges = _chunk_edges(source)
    width = column_edges[-1]
    for top, bottom in _joined(row_edges, max(1, max_pixels // max(1, min(width, max_pixels)))):
        for left, right in _joined(column_edges, max(1, max_pixels // (bottom - top))):
            rows, columns = slice(top, bottom), slice(left, right)
            yield rows, columns, load(source, rows, columns)


def load(source: Source, rows: slice, columns: slice) -> np.ndarray:
    """A block of the source, as `iter_blocks` yields it."""
    part: Any = source[rows, columns]
    if hasattr(part, "values"):  # a DataArray; to check its type would load xarray
        if part.chunks is not None:
            # Threads here, even when a cluster is active: the values are needed in this process.
            part = part.compute(scheduler="threads")
        part = part.values
    values = np.ascontiguousarray(part, dtype=np.float32)
    missing = np.isnan(values)
    if missing.any():
        values = np.where(missing, np.float32(np.nan), values)
    return values


def _chunk_edges(source: Source) -> tuple[list[int], list[int]]:
    chunks = getattr(source, "chunks", None)
    if chunks is None:
        height, width = source.shape
        preferred = getattr(source, "encoding", {}).get("chunks") or (_STRIP, width)
        chunks = tuple(
            (size,) * (length // size) + ((length % size,) if length % size else ())
            for length, size in zip((height, width), preferred, strict=True)
        )
    rows, columns = (np.cumsum((0, *sizes)).tolist() for sizes in chunks)
    return rows, columns


def _joined(edges: list[int], limit: int) -> Iterator[tuple[int, int]]:
    """Neighbouring intervals joined while their total length stays within `limit`."""
    start = edges[0]
    for previous, edge in zip(edges[1:], [*edges[2:], None], strict=True):
        if edge is None or edge - start > limit:
            yield start, previous
            start = previous
