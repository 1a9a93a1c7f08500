"""Label blocks: what each data source says of which species at which places.

A *source* brings places of its own, labels, or both. Over all places of a training set it makes a *block*: its
species, and for every place either a row of labels or "not known here". Ranges and polygons label the places of
other sources too; points label only their own. Positions are (lon, lat) degrees throughout.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from sdm.training.loss import NOT_KNOWN


@dataclass(frozen=True)
class Places:
    """Places in groups, from which batches are drawn: a group by its weight, then a place in the group.

    `lonlat` (P, 2) float64 (lon, lat); `month` (P,) int8, 0 the whole year; `source` (P,) int8, whose places they
    are; `origin` (P,) int64, what the source calls them (a raster cell, a row of its table). Groups are consecutive:
    `start`, `count` (G,); `weight` (G,) among those of the source; `centre` (G, 2) (lon, lat), which decides on
    which side of a split the group lies.
    """

    lonlat: np.ndarray
    month: np.ndarray
    source: np.ndarray
    origin: np.ndarray
    start: np.ndarray
    count: np.ndarray
    weight: np.ndarray
    centre: np.ndarray

    @classmethod
    def single(cls, lonlat: np.ndarray, month: np.ndarray, source: np.ndarray, origin: np.ndarray) -> Places:
        """Every place a group of its own."""
        n = len(lonlat)
        ones = np.ones(n)
        return cls(lonlat, month, source, origin, np.arange(n), ones.astype(np.int64), ones, lonlat)

    @classmethod
    def grouped(cls, lonlat: np.ndarray, month: np.ndarray, group: np.ndarray) -> Places:
        """Places of one source by a group number (P,); those of a group need not be consecutive.

        `origin` is the row they had. The centre of a group is its first place.
        """
        order = np.argsort(group, kind="stable")
        _, start, count = np.unique(group[order], return_index=True, return_counts=True)
        return cls(
            lonlat[order],
            month[order].astype(np.int8),
            np.zeros(order.size, np.int8),
            order.astype(np.int64),
            start,
            count,
            np.ones(start.size),
            lonlat[order][start],
        )

    @property
    def group_source(self) -> np.ndarray:
        """(G,) whose places a group holds."""
        return self.source[self.start]

    def take(self, index: np.ndarray) -> Places:
        """Some of the places, each a group of its own."""
        return Places.single(self.lonlat[index], self.month[index], self.source[index], self.origin[index])

    @staticmethod
    def join(parts: Sequence[tuple[int, Places]]) -> Places:
        """All places of several sources, each with its number."""
        if not parts:
            empty = np.zeros(0, np.int64)
            return Places.single(np.zeros((0, 2)), empty, empty, empty)
        before = np.cumsum([0, *(len(p.lonlat) for _, p in parts)])
        moved = [
            replace(p, source=np.full(len(p.lonlat), k, np.int8), start=p.start + b)
            for (k, p), b in zip(parts, before[:-1], strict=True)
        ]
        fields = ("lonlat", "month", "source", "origin", "start", "count", "weight", "centre")
        return Places(*(np.concatenate([getattr(p, f) for p in moved]) for f in fields))

    def without(self, bad: np.ndarray) -> Places:
        """Without the places (P,) where `bad` holds, and without groups that have none left."""
        if not bad.any():
            return self
        group = np.repeat(np.arange(len(self.start)), self.count)
        kept = ~bad
        count = np.bincount(group[kept], minlength=len(self.start))
        some = count > 0
        start = np.concatenate([[0], np.cumsum(count)[:-1]])
        return Places(
            self.lonlat[kept], self.month[kept], self.source[kept], self.origin[kept],
            start[some], count[some], self.weight[some], self.centre[some],
        )  # fmt: skip


class PackedLabels:
    """Labels 0 and 1 as packed bits, (rows, ceil(species / 8)) uint8."""

    def __init__(self, packed: np.ndarray, species: int) -> None:
        self.packed, self.species = packed, species

    def read(self, rows: np.ndarray) -> np.ndarray:
        """(n,) rows -> (n, species) uint8."""
        return np.unpackbits(self.packed[rows], axis=1, count=self.species)


class SparseLabels:
    """Labels of which nearly all in a row are the same, as compressed sparse rows.

    `indptr` (rows + 1,), `column` (entries,), `value` (entries,) uint8 or None for 1; `rest` (rows,) or one uint8:
    the label of species without an entry.
    """

    def __init__(
        self,
        indptr: np.ndarray,
        column: np.ndarray,
        species: int,
        value: np.ndarray | None = None,
        rest: np.ndarray | int = 0,
    ) -> None:
        self.indptr, self.column, self.species, self.value, self.rest = indptr, column, species, value, rest

    def read(self, rows: np.ndarray) -> np.ndarray:
        """(n,) rows -> (n, species) uint8."""
        out = np.empty((rows.size, self.species), np.uint8)
        out[:] = self.rest if np.isscalar(self.rest) else self.rest[rows][:, None]
        count = self.indptr[rows + 1] - self.indptr[rows]
        within = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        entry = np.repeat(self.indptr[rows], count) + within
        out[np.repeat(np.arange(rows.size), count), self.column[entry]] = 1 if self.value is None else self.value[entry]
        return out


@dataclass(frozen=True)
class Block:
    """The labels of one source over the places of a training set.

    `rows` (P,) int32: the row of `table` that holds a place's labels, -1 where nothing is known. Labels are 0 and 1
    (and `NOT_KNOWN` where `partial`), or 255 times a probability where `soft`.
    """

    name: str
    species: tuple[str, ...]
    rows: np.ndarray
    table: PackedLabels | SparseLabels
    soft: bool = False
    partial: bool = False
    weight: float = 1.0
    cells: bool = False
    """Whether a label holds for a raster cell rather than for the place, so that places may be pooled."""

    def known(self, index: np.ndarray) -> np.ndarray:
        """(N,) bool: there are labels at the places `index`."""
        return self.rows[index] >= 0

    def labels(self, index: np.ndarray) -> np.ndarray:
        """(N, species) uint8 at places that are all known."""
        return self.table.read(self.rows[index])

    def probability(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """((N, species) float32 0..1, (N, species) bool where that is known) at places that are all known."""
        codes = self.labels(index)
        if self.soft:
            return codes.astype(np.float32) / 255, np.ones(codes.shape, bool)
        unknown = codes == NOT_KNOWN
        return np.where(unknown, 0, codes).astype(np.float32), ~unknown
