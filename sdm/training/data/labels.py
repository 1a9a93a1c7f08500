"""Label blocks: what each data source says of which species at which places.

A *source* brings places of its own, labels, or both. Over all places of a training set it makes a *block*: its
species, and for every place either a row of labels or "not known here". Ranges and polygons also label the places of
other sources; records label only their own. Positions are (lon, lat) degrees throughout.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

NOT_KNOWN = 2
"""Code in a block of 0 and 1: nothing is known of this species at this place."""


@dataclass(frozen=True)
class Places:
    """Places in groups, from which batches are drawn: a group by its weight, then a place in the group.

    The places of a group are consecutive.
    """

    lonlat: np.ndarray
    """(P, 2) float64 (lon, lat)."""
    month: np.ndarray
    """(P,) int8, 0 the whole year."""
    source: np.ndarray
    """(P,) int8, number of the source that a place belongs to."""
    origin: np.ndarray
    """(P,) int64, number of the place within its source: a raster cell, a row of its table."""
    start: np.ndarray
    """(G,) first place of a group."""
    count: np.ndarray
    """(G,) places of a group."""
    weight: np.ndarray
    """(G,) probability of a group within its source, up to a factor."""
    centre: np.ndarray
    """(G, 2) (lon, lat), which decides on which side of a split the group lies."""

    @classmethod
    def single(cls, lonlat: np.ndarray, month: np.ndarray, source: np.ndarray, origin: np.ndarray) -> Places:
        """Places that each form a group of their own."""
        n = len(lonlat)
        ones = np.ones(n)
        return cls(lonlat, month, source, origin, np.arange(n), ones.astype(np.int64), ones, lonlat)

    @classmethod
    def grouped(cls, lonlat: np.ndarray, month: np.ndarray, group: np.ndarray) -> Places:
        """Places of one source by a group number (P,); those of a group need not be consecutive.

        `origin` is their row in the arguments. The centre of a group is its first place.
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
        """(G,) number of the source of each group."""
        return self.source[self.start]

    def take(self, index: np.ndarray) -> Places:
        """The places of an index, each a group of its own."""
        return Places.single(self.lonlat[index], self.month[index], self.source[index], self.origin[index])

    @staticmethod
    def join(parts: Sequence[tuple[int, Places]]) -> Places:
        """All places of several sources, given as (source number, places)."""
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
        """Without the places where `bad` (P,) bool is set, and without groups that lose all their places."""
        if not bad.any():
            return self
        group = np.repeat(np.arange(len(self.start)), self.count)
        kept = ~bad
        count = np.bincount(group[kept], minlength=len(self.start))
        left = count > 0
        start = np.concatenate([[0], np.cumsum(count)[:-1]])
        return Places(
            self.lonlat[kept],
            self.month[kept],
            self.source[kept],
            self.origin[kept],
            start[left],
            count[left],
            self.weight[left],
            self.centre[left],
        )


class PackedLabels:
    """Labels 0 and 1 as packed bits, (rows, ceil(species / 8)) uint8."""

    def __init__(self, packed: np.ndarray, species: int) -> None:
        self.packed, self.species = packed, species

    def read(self, rows: np.ndarray) -> np.ndarray:
        """(n,) rows -> (n, species) uint8."""
        return np.unpackbits(self.packed[rows], axis=1, count=self.species)

    def column(self, rows: np.ndarray, species: int) -> np.ndarray:
        """(n,) rows -> (n,) bool of one species, by its index."""
        return (self.packed[rows, species // 8] >> (7 - species % 8) & 1).astype(bool)


class SparseLabels:
    """Labels that are mostly the same within a row, as compressed sparse rows.

    `indptr` (rows + 1,), `column` (entries,), `value` (entries,) uint8 or None for 1; `rest` (rows,) uint8 or None
    for 0: the label of species without an entry.
    """

    def __init__(
        self,
        indptr: np.ndarray,
        column: np.ndarray,
        species: int,
        value: np.ndarray | None = None,
        rest: np.ndarray | None = None,
    ) -> None:
        self.indptr, self.column, self.species, self.value, self.rest = indptr, column, species, value, rest

    def read(self, rows: np.ndarray) -> np.ndarray:
        """(n,) rows -> (n, species) uint8."""
        out = np.empty((rows.size, self.species), np.uint8)
        out[:] = 0 if self.rest is None else self.rest[rows][:, None]
        count = self.indptr[rows + 1] - self.indptr[rows]
        within = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        entry = np.repeat(self.indptr[rows], count) + within
        out[np.repeat(np.arange(rows.size), count), self.column[entry]] = 1 if self.value is None else self.value[entry]
        return out


@dataclass(frozen=True)
class LabelBlock:
    """The labels of one source over the places of a training set.

    Labels are 0 and 1 (and `NOT_KNOWN` where `partial`), or 255 times a probability where `soft`.
    """

    name: str
    species: tuple[str, ...]
    rows: np.ndarray
    """(P,) int32: the row of `table` that holds a place's labels, -1 where nothing is known."""
    table: PackedLabels | SparseLabels
    soft: bool = False
    partial: bool = False
    weight: float = 1.0

    def known(self, index: np.ndarray) -> np.ndarray:
        """(N,) bool: whether there are labels at the places `index`."""
        return self.rows[index] >= 0

    def labels(self, index: np.ndarray) -> np.ndarray:
        """(N, species) uint8 at places that have labels."""
        return self.table.read(self.rows[index])

    def probability(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """((N, species) float32 0..1, (N, species) bool: where it is known) at places that have labels."""
        codes = self.labels(index)
        if self.soft:
            return codes.astype(np.float32) / 255, np.ones(codes.shape, bool)
        unknown = codes == NOT_KNOWN
        return np.where(unknown, 0, codes).astype(np.float32), ~unknown
