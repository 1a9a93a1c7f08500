"""Range edges: which cells are near one, and what a score is worth there."""

import numpy as np
import pytest

from sdm.training.data.ranges import RangeRaster
from sdm.training.measures import edges
from sdm.training.measures.edges import edge_auc, near_edges


def test_near_edges_by_brute_force():
    rng = np.random.default_rng(3)
    rows, cols, species = 9, 14, 4
    present = rng.random((rows * cols, species)) < np.array([0.02, 0.2, 0.5, 0.95])
    counted = rng.random(rows * cols) < 0.7
    expected = np.zeros_like(present)
    for a in range(rows * cols):
        for b in range(rows * cols):
            down = abs(a // cols - b // cols)
            across = abs(a % cols - b % cols)
            if counted[a] and counted[b] and down <= 2 and min(across, cols - across) <= 2:
                expected[a] |= present[a] != present[b]
    assert (near_edges(present, counted, (rows, cols), 2) == expected).all()


def test_a_coast_is_no_edge():
    present = np.zeros((5, 8), bool)
    present[:, :4] = True
    land = present.copy()
    assert not near_edges(present.reshape(-1, 1), land.ravel(), (5, 8)).any()
    land[:, 4] = True  # a strip of land without the species
    near = near_edges(present.reshape(-1, 1), land.ravel(), (5, 8))[:, 0].reshape(5, 8)
    assert near.sum(axis=0).tolist() == [0, 0, 5, 5, 5, 0, 0, 0]


def test_edge_auc_sees_only_the_edge():
    present = np.repeat(np.arange(40) < 20, 1)[:, None]
    near = (np.abs(np.arange(40) - 19.5) < 6)[:, None]
    score = present.astype(float)
    score[near[:, 0], 0] = 0.0  # right everywhere but near the edge
    assert edge_auc(score, present, near) == (pytest.approx(0.5), 1)
    assert edge_auc(present.astype(float), present, near) == (1.0, 1)
    assert edge_auc(score, present, near & False) == (None, 0)


def test_ranges_are_taken_some_at_a_time(monkeypatch):
    rng = np.random.default_rng(4)
    present, land, cells = rng.random((54, 21)) < 0.4, rng.random(54) < 0.7, np.array([3, 50, 17])
    raster = RangeRaster([str(k) for k in range(21)], np.packbits(present, axis=1), (6, 9), (1, 0, 0, 0, -1, 0), "")
    monkeypatch.setattr(edges, "BYTES_AT_ONCE", 1)
    assert (edges.near_range_edges(raster, land, cells) == near_edges(present, land, (6, 9))[cells]).all()
