"""Coarse lattices of places: encoded at their nodes, interpolated between them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from sdm.engine.encode import embed_batches, one_thread
from sdm.engine.places import Places, Plan

if TYPE_CHECKING:
    import torch

SETTLED = 0.02
"""Without slopes, a cell of the lattice is interpolated where the values within it differ by less than this, even if
the cosine went past those of its four corners by the margin of what the map measures (`sdm.engine.suitability`)."""


class Blend:
    """Embeddings of a coarse lattice, encoded once and interpolated at the places of a finer one.

    `rows` (n,), `cols` (m,): pixels of the finer lattice; `needed` (n, m): its places that will be
    asked for. Only the coarse nodes around those are encoded.
    """

    def __init__(
        self,
        plan: Places,
        modalities: Sequence[str],
        stride: int,
        rows: np.ndarray,
        cols: np.ndarray,
        needed: np.ndarray,
    ) -> None:
        import torch

        r, c = nodes_around(rows, stride), nodes_around(cols, stride)
        wanted = nodes_of(needed, rows, cols, stride)
        todo = np.flatnonzero(wanted)
        lon, lat = (a.ravel()[todo] for a in plan.lonlat(r, c))
        ok = np.zeros(wanted.size, dtype=bool)
        with torch.inference_mode(), one_thread(plan.here):
            self.table = torch.empty((todo.size, plan.model.dim), device=plan.here)
            for batch in embed_batches(plan.model, plan.inputs, plan.here, modalities, lon, lat, plan.month):
                self.table[batch.part] = batch.total[: batch.known.size]
                ok[todo[batch.part]] = batch.known
        self.entry = np.zeros(wanted.size, dtype=np.int64)  # row of the table, per node
        self.entry[todo] = np.arange(todo.size)
        self.width, self.columns = c.size, cols.size
        self.row, self.col = rows // stride - r[0] // stride, cols // stride - c[0] // stride
        self.row_weight = ((rows % stride) / stride).astype(np.float32)
        self.col_weight = ((cols % stride) / stride).astype(np.float32)
        near = (rows + stride // 2) // stride - r[0] // stride, (cols + stride // 2) // stride - c[0] // stride
        self.known = ok.reshape(wanted.shape)[np.ix_(*near)]
        """Boolean (n, m): the nearest coarse node is known."""

    def at(self, places: np.ndarray, length: int) -> torch.Tensor:
        """Interpolated embeddings (length, dim) at flat indices (N,) of the finer lattice, N <= length.

        One weighted sum of four rows of the table per place: no step depends on the place's
        position in the batch.
        """
        import torch

        row, col = np.divmod(places, self.columns)
        corner = self.row[row] * self.width + self.col[col]
        down, across = self.row_weight[row], self.col_weight[col]
        index = np.zeros((length, 4), dtype=np.int64)
        weight = np.zeros((length, 4), dtype=np.float32)
        for k, (step, w) in enumerate(
            (
                (0, (1 - down) * (1 - across)),
                (1, (1 - down) * across),
                (self.width, down * (1 - across)),
                (self.width + 1, down * across),
            )
        ):
            index[: places.size, k] = self.entry[corner + step]
            weight[: places.size, k] = w
        corners, weights = (torch.from_numpy(a).to(self.table.device) for a in (index, weight))
        return torch.nn.functional.embedding_bag(corners, self.table, mode="sum", per_sample_weights=weights)


def enclosing(index: np.ndarray, *strides: int) -> np.ndarray:
    """The run of pixels from the node at or before the first index to the node after the last, of every lattice."""
    coarse = [k for k in strides if k > 1]
    if not coarse:
        return index
    return np.arange(min(index[0] // k * k for k in coarse), max((index[-1] // k + 1) * k for k in coarse) + 1)


class Nodes:
    """The nodes of a lattice that surround needed pixels of a tile, within a frame.

    Parameters
    ----------
    frame : rows (n,) and columns (m,) of the frame, counted from the anchor; it encloses the nodes.
    rows, cols : those of the tile.
    needed : (rows, columns) bool, pixels of the tile.
    stride : pixels between nodes.
    """

    def __init__(
        self,
        frame: tuple[np.ndarray, np.ndarray],
        rows: np.ndarray,
        cols: np.ndarray,
        needed: np.ndarray,
        stride: int,
    ) -> None:
        self.stride = stride
        self.part = _within(nodes_around(rows, stride), frame[0]), _within(nodes_around(cols, stride), frame[1])
        """Where the lattice lies in the frame."""
        self.wanted = np.zeros((frame[0].size, frame[1].size), dtype=bool)
        """(n, m) bool, over the frame."""
        self.wanted[self.part] = nodes_of(needed, rows, cols, stride)

    def of(self, values: np.ndarray) -> np.ndarray:
        """Values of the frame (..., n, m) at the lattice alone."""
        return values[..., self.part[0], self.part[1]]


def _within(nodes: np.ndarray, run: np.ndarray) -> slice:
    """Where evenly spaced nodes lie in a run of pixels."""
    return slice(int(nodes[0] - run[0]), int(nodes[-1] - run[0]) + 1, int(nodes[1] - nodes[0]))


def nodes_around(index: np.ndarray, stride: int) -> np.ndarray:
    """Multiples of `stride` that enclose sorted indices, with one beyond for interpolation."""
    return np.arange(index[0] // stride, index[-1] // stride + 2) * stride


def nodes_of(needed: np.ndarray, rows: np.ndarray, cols: np.ndarray, stride: int) -> np.ndarray:
    """The nodes (of `nodes_around` in both directions) that surround any needed place of `rows` x `cols`."""
    cells = needed
    for axis, index in ((0, rows), (1, cols)):
        starts = np.flatnonzero(np.diff(index // stride, prepend=-1))
        cells = np.logical_or.reduceat(cells, starts, axis=axis)
    nodes = np.zeros((cells.shape[0] + 1, cells.shape[1] + 1), dtype=bool)
    for down in (0, 1):
        for across in (0, 1):
            nodes[down : down + cells.shape[0], across : across + cells.shape[1]] |= cells
    return nodes


def unsettled_pixels(
    plan: Plan, cosines: np.ndarray, known: np.ndarray, rows: np.ndarray, cols: np.ndarray, k: int
) -> np.ndarray:
    """Pixels (S, rows, columns) that must be encoded: the cell around them is not known to be flat.

    `cosines` (S, n, m) on the k-lattice, `known` (n, m). Decided per species, so that a map does
    not depend on what else is mapped with it. Nodes themselves are exact already. For where the slopes of
    the cosine are not known (`sdm.engine.slopes`).
    """
    n, m = known.shape
    corners = [np.s_[..., d : n - 1 + d, a : m - 1 + a] for d in (0, 1) for a in (0, 1)]
    low, high = (f.reduce([cosines[c] for c in corners]) for f in (np.minimum, np.maximum))
    spread = plan.values(high, 1.0) - plan.values(low, -1.0)
    cells = (spread > SETTLED) | ~np.logical_and.reduce([known[c] for c in corners])
    out = cells[:, (rows // k - rows[0] // k)[:, None], (cols // k - cols[0] // k)[None, :]]
    out &= (rows % k > 0)[:, None] | (cols % k > 0)[None, :]
    return out


def upsample(
    values: np.ndarray, known: np.ndarray, rows: np.ndarray, cols: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Bilinear (S, n, m) on the k-lattice -> (S, rows, columns); unknown corners are left out.

    A pixel is known when its nearest lattice place is.
    """
    total, weight = _bilinear(values, known, rows, cols, k)
    near = known[np.ix_((rows + k // 2) // k - rows[0] // k, (cols + k // 2) // k - cols[0] // k)]
    ok = near & (weight > 0)
    return total / np.where(ok, weight, 1.0), ok


def upsample_any(
    values: np.ndarray, known: np.ndarray, rows: np.ndarray, cols: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """As `upsample`, but a pixel is known when any corner of its cell is."""
    total, weight = _bilinear(values, known, rows, cols, k)
    ok = weight > 0
    return total / np.where(ok, weight, 1.0), ok


def _bilinear(
    values: np.ndarray, known: np.ndarray, rows: np.ndarray, cols: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Weighted sums of the known corners (S, rows, columns), and the sums of their weights (rows, columns)."""
    r, c = rows // k - rows[0] // k, cols // k - cols[0] // k
    fr = ((rows % k) / k).astype(np.float32)[:, None]
    fc = ((cols % k) / k).astype(np.float32)[None, :]
    total = np.zeros((values.shape[0], rows.size, cols.size), dtype=np.float32)
    weight = np.zeros((rows.size, cols.size), dtype=np.float32)
    for dr, wr in ((0, 1 - fr), (1, fr)):
        for dc, wc in ((0, 1 - fc), (1, fc)):
            ok = known[np.ix_(r + dr, c + dc)]
            w = wr * wc * ok
            total += np.where(ok, values[:, (r + dr)[:, None], (c + dc)[None, :]], 0.0) * w
            weight += w
    return total, weight
