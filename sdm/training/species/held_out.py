"""How good fitted species are in cells that were held out: ranking, calibration, near edges, by size of range."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix

from sdm.models.known_ranges import KnownRange
from sdm.training.data.grids import DegreeGrid
from sdm.training.measures.edges import edge_auc
from sdm.training.measures.range_area import CLASSES, size_class
from sdm.training.measures.scores import (
    auc,
    average_precision,
    cosine_histogram,
    fit_histogram,
    sigmoid,
)
from sdm.training.species.groups import GridGroup
from sdm.training.species.ranges import DROP, weight

EDGE_CELLS = 2
"""Cells on either side of an edge that count as near it."""
EDGE_WEIGHT = 5.0
"""How often a cell near an edge counts in the calibration beside once for being held out."""
AT_ONCE = 512
"""Species compared with all held-out cells at once."""


class HeldOut:
    """The cells of a group that were held out, one place in each."""

    def __init__(self, group: GridGroup, cells: np.ndarray, land: np.ndarray) -> None:
        """`cells` (N,) held out; `land` all cells with a place, which count as neighbours."""
        self.group, self.cells = group, cells
        self.presence = group.ranges.presence
        self.around = _around(group.grid, cells, land)

    def blocks(self) -> Sequence[slice]:
        """Species in parts."""
        return [slice(k, k + AT_ONCE) for k in range(0, len(self.group.species), AT_ONCE)]

    def labels(self, some: slice) -> tuple[np.ndarray, np.ndarray]:
        """(N, s) bool each: presence, and whether an edge of the range is near."""
        ranges = self.presence[some]
        present = ranges[:, self.cells].T.toarray() > 0
        counted = (self.around @ ranges.T.astype(np.int32)).toarray()
        neighbours = np.asarray(self.around.sum(axis=1)).reshape(-1, 1)
        return present, (counted > 0) & (counted < neighbours)

    def histogram(self, places: np.ndarray, vectors: np.ndarray, part: np.ndarray) -> np.ndarray:
        """What a calibration is fitted on, at a part (N,) bool of the cells."""
        total = np.zeros((3, 8192))
        for some in self.blocks():
            present, near = self.labels(some)
            cosines = places[part] @ vectors[some].T
            total += cosine_histogram(cosines, present[part])
            total += EDGE_WEIGHT * cosine_histogram(cosines, present[part], near[part])
        return total

    def calibrate(
        self, places: np.ndarray, vectors: np.ndarray, fold: np.ndarray, start: tuple[float, float]
    ) -> tuple[tuple[float, float], list[tuple[float, float]]]:
        """(scale, bias) fitted on all cells, and on each of two folds (N,) bool, from embeddings of the cells."""
        halves = [self.histogram(places, vectors, fold == half) for half in (False, True)]
        return fit_histogram(halves[0] + halves[1], start), [fit_histogram(h, start) for h in halves]

    def scores(
        self,
        places: np.ndarray,
        vectors: np.ndarray,
        fold: np.ndarray,
        fitted: list[tuple[float, float]],
        min_cells: int,
    ) -> dict[str, Any]:
        """Mean AP and AUC, calibration, and AUC near edges; each fold by the calibration of the other."""
        scale = np.where(fold, fitted[0][0], fitted[1][0])[:, None]
        bias = np.where(fold, fitted[0][1], fitted[1][1])[:, None]
        ranked, edges = [], []
        bins = np.zeros((2, 3, 15))
        for some in self.blocks():
            present, near = self.labels(some)
            cosines = places @ vectors[some].T
            probability = sigmoid(scale * cosines + bias)
            bins[0] += _bins(probability, present)
            bins[1] += _bins(probability[near], present[near])
            count = present.sum(axis=0)
            for k in np.flatnonzero((count >= max(min_cells, 1)) & (count < len(present))):
                ranked.append((average_precision(cosines[:, k], present[:, k]), auc(cosines[:, k], present[:, k])))
            found, species = edge_auc(cosines, present, near)
            edges.append((found or 0.0, species))
        weights = np.array([n for _, n in edges])
        edge = float(np.average([a for a, _ in edges], weights=weights)) if weights.any() else None
        ap, area = np.mean(ranked, axis=0).tolist() if ranked else (None, None)
        return {
            "species": len(ranked),
            "cells": len(self.cells),
            "ap": ap,
            "auc": area,
            "edge_auc": edge,
            "edge_species": int(weights.sum()),
            "ece": _error(bins[0]),
            "ece_above": _error(bins[0][:, 1:]),
            "edge_ece": _error(bins[1]),
            "edge_reliability": _table(bins[1]),
            "reliability": _table(bins[0]),
        }

    def by_size(self, places: np.ndarray, vectors: np.ndarray, scale: float) -> dict[str, dict[str, float]]:
        """{class of size in cells, and "all": {"species", "ap", "ap_with_known_range", "auc"}}.

        Of species with a presence in a held-out cell; a known range consists of the cells that are not held out.
        """
        kept = np.ones(self.presence.shape[1], dtype=bool)
        kept[self.cells] = False
        lonlat, sizes = self.group.grid.centres(self.cells), self.group.sizes()
        found: dict[str, list[tuple[float, float, float]]] = {}
        for some in self.blocks():
            present, _ = self.labels(some)
            logits = scale * (places @ vectors[some].T)
            for k in np.flatnonzero(present.any(axis=0)):
                part = self.group.part(some.start + int(k), kept)
                share = weight(part.size) if part.boxes.size else 0.0
                known = KnownRange(part.boxes, 0.0, DROP * share, part.reach, 0.0, 0.0)
                logit = logits[:, k]
                moved = logit + known.shift(*lonlat.T) if share else logit
                row = (
                    average_precision(logit, present[:, k]),
                    average_precision(moved, present[:, k]),
                    auc(logit, present[:, k]),
                )
                for label in (size_class(int(sizes[some.start + k])), "all"):
                    found.setdefault(label, []).append(row)
        names = ("ap", "ap_with_known_range", "auc")
        return {
            label: {"species": len(found[label])}
            | dict(zip(names, np.mean(found[label], axis=0).tolist(), strict=True))
            for label in (*CLASSES, "all")
            if label in found
        }


def _around(grid: DegreeGrid, cells: np.ndarray, land: np.ndarray) -> csr_matrix:
    """(N, cells) 1 for each cell of `land` within `EDGE_CELLS` of the cells (N,), themselves among them."""
    rows, cols = grid.shape
    row, col = np.divmod(cells, cols)
    is_land = np.zeros(rows * cols, dtype=bool)
    is_land[land] = True
    reach = range(-EDGE_CELLS, EDGE_CELLS + 1)
    near = np.stack(
        [np.clip(row + down, 0, rows - 1) * cols + (col + across) % cols for down in reach for across in reach], axis=1
    )
    index = np.repeat(np.arange(cells.size), near.shape[1])
    kept = is_land[near.ravel()]
    matrix = csr_matrix(
        (np.ones(kept.sum(), np.int32), (index[kept], near.ravel()[kept])), shape=(cells.size, rows * cols)
    )
    matrix.sum_duplicates()
    return matrix


def _bins(probability: np.ndarray, present: np.ndarray) -> np.ndarray:
    """(3, 15) sums of probabilities, presences and pairs by bins of the probability."""
    bins = np.minimum((probability * 15).astype(np.int64), 14).ravel()
    weights = (probability.ravel(), present.ravel(), None)
    return np.stack([np.bincount(bins, w, 15).astype(np.float64) for w in weights])


def _error(bins: np.ndarray) -> float:
    """Expected calibration error of sums by bins."""
    return float(np.abs(bins[0] - bins[1]).sum() / max(bins[2].sum(), 1.0))


def _table(bins: np.ndarray) -> list[list[float]]:
    """Rows [mean probability, share present, pairs]."""
    return [[p / n, y / n, n] for p, y, n in bins.T.tolist() if n]
