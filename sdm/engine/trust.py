"""Bands beside the values of a map: measured at every k-th pixel, interpolated between (`Places.trust_stride`).

They tell how far to trust a pixel, and vary slowly: a few percent of the pixels are measured. As for values the
lattice is counted from the anchor and batches have one fixed size, so that any tiling gives the same bits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from sdm.engine.encode import environment_embeddings
from sdm.engine.lattice import enclosing, nodes_of, upsample_any
from sdm.engine.places import Plan, Source
from sdm.grid import Tile

ROWS_AT_ONCE = 2048
"""Places whose embeddings lie ready that are scored or measured together."""


def measure(plan: Plan, embeddings: np.ndarray, environment: np.ndarray) -> np.ndarray:
    """The bands of all targets, one after the other, at N places: (B, N) float32.

    Parameters
    ----------
    plan : its targets.
    embeddings : (N, dim) unit sums.
    environment : (N, D) what the model reads of the environment.
    """
    known = "environment" in plan.model.layers
    space = environment_embeddings(plan.model, environment, plan.here) if known else None
    bands = [t.trust.trust(embeddings, environment, space) for t in plan.targets if t.trust is not None]
    return np.concatenate(bands).astype(np.float32, copy=False)


def in_batches(
    function: Callable[[np.ndarray, np.ndarray], np.ndarray], embeddings: np.ndarray, environment: np.ndarray
) -> np.ndarray:
    """`function` of N places, (..., N), called with so many of them each time: its products keep one shape."""
    count, parts = len(embeddings), []
    if not count:
        return function(embeddings, environment)
    for first in range(0, count, ROWS_AT_ONCE):
        rows = np.arange(first, first + ROWS_AT_ONCE) % count  # the last batch is filled up with the first places
        parts.append(function(embeddings[rows], environment[rows])[..., : count - first])
    return np.concatenate(parts, axis=-1)


def interpolate(
    at_nodes: np.ndarray,
    known: np.ndarray,
    rows: np.ndarray,
    cols: np.ndarray,
    stride: int,
    shown: np.ndarray,
    exact: Callable[[np.ndarray], np.ndarray],
) -> np.ndarray:
    """Bands (B, rows, columns) float32 of the pixels of a tile that are shown, from those at nodes of the lattice.

    Parameters
    ----------
    at_nodes, known : (B, n, m), and which of the nodes are known (n, m).
    rows, cols : pixels of the tile, counted from the anchor.
    stride : pixels between nodes.
    shown : (rows, columns) bool.
    exact : bands (B, rows, columns) at chosen pixels (rows, columns), for those with no known node around them.
    """
    smooth, reached = upsample_any(at_nodes, known, rows, cols, stride)
    alone = shown & ~reached
    return np.where(alone, exact(alone), smooth) if alone.any() else smooth


def by_target(plan: Plan, stacked: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, ...]:
    """Measured bands (B, rows, columns), split by target and NaN where its values (S, rows, columns) are."""
    out, first = [], 0
    for target, layer in zip(plan.targets, values, strict=True):
        part = np.where(np.isnan(layer), np.float32(np.nan), stacked[first : first + len(target.measured)])
        out.append(part.astype(np.float32, copy=False))
        first += len(target.measured)
    return tuple(out)


class OnLattice(NamedTuple):
    """The bands of all targets at the nodes around a tile, one after the other, to be interpolated."""

    at_nodes: np.ndarray
    """(B, n, m) float32."""
    known: np.ndarray
    """(n, m) bool."""
    rows: np.ndarray
    cols: np.ndarray
    """Pixels of the tile, counted from the anchor."""
    stride: int
    exact: Callable[[np.ndarray], np.ndarray]
    """Bands (B, rows, columns) at chosen pixels (rows, columns), for those with no known node around them."""

    def at(self, shown: np.ndarray, part: slice = slice(None)) -> np.ndarray:
        """Some of the bands (B, rows, columns) float32, of the pixels that are shown."""
        return interpolate(
            self.at_nodes[part],
            self.known,
            self.rows,
            self.cols,
            self.stride,
            shown,
            lambda pixels: self.exact(pixels)[part],
        )

    def around(self, needed: np.ndarray) -> OnLattice:
        """The same with no other nodes than those around some pixels (rows, columns): those of a single map."""
        return self._replace(known=self.known & nodes_of(needed, self.rows, self.cols, self.stride))


def bands_of(plan: Plan, k: int) -> slice:
    """Which of the bands of all targets are those of the k-th."""
    first = sum(len(target.measured) for target in plan.targets[:k])
    return slice(first, first + len(plan.targets[k].measured))


def from_source(plan: Plan, source: Source, tile: Tile) -> OnLattice:
    """The bands of all targets around a tile where embeddings lie ready."""
    k = plan.trust_stride
    rows, cols = plan.pixels(tile)
    around = enclosing(rows, k), enclosing(cols, k)
    parts = [
        slice(max(int(run[0]) - first, 0), min(int(run[-1]) - first + 1, length))
        for run, first, length in zip(around, plan.anchor, plan.grid.shape, strict=True)
    ]
    window = Tile(tile.index, *parts)
    embeddings, pixels = source.embeddings(window)
    window_rows, window_cols = plan.pixels(window)
    row, col = np.divmod(pixels, window_cols.size)
    row, col = window_rows[row], window_cols[col]

    def bands(chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Bands (B, N) of N of the pixels, and whether the environment is known there."""
        lon, lat = (a.ravel()[pixels[chosen]] for a in plan.lonlat(window_rows, window_cols))
        environment, known = plan.environment(lon, lat)
        return in_batches(lambda *a: measure(plan, *a), embeddings[chosen], environment), known

    nodes = np.flatnonzero((row % k == 0) & (col % k == 0))
    at_nodes = np.zeros(
        (sum(len(t.measured) for t in plan.targets), *(-(-run.size // k) for run in around)), np.float32
    )
    known = np.zeros(at_nodes.shape[1:], dtype=bool)
    place = (row[nodes] - around[0][0]) // k, (col[nodes] - around[1][0]) // k
    at_nodes[(slice(None), *place)], known[place] = bands(nodes)

    def exact(wanted: np.ndarray) -> np.ndarray:
        inside = (row >= rows[0]) & (row <= rows[-1]) & (col >= cols[0]) & (col <= cols[-1])
        chosen = np.flatnonzero(inside)
        chosen = chosen[wanted[row[chosen] - rows[0], col[chosen] - cols[0]]]
        out = np.zeros((len(at_nodes), *wanted.shape), dtype=np.float32)
        out[:, row[chosen] - rows[0], col[chosen] - cols[0]] = bands(chosen)[0]
        return out

    return OnLattice(at_nodes, known, rows, cols, k, exact)
