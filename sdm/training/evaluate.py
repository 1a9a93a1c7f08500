"""How good a model is: ranking and calibration on held-out blocks, ranking on real records.

Definitions. AP: mean over places of the precision at each presence, per species. AUC: the
probability that a presence outranks an absence, ties counted half. Both are averaged over species.
ECE: |mean probability - fraction present| over 15 equal bins of probability, weighted by the
number of (place, species) pairs; `ece_above` leaves out the lowest bin, which holds nearly all
pairs and would hide the rest.
"""

from __future__ import annotations

import numpy as np

BINS = 15


def average_precision(score: np.ndarray, present: np.ndarray) -> float:
    """AP of one species: scores (N,), presence (N,) 0/1 with at least one presence."""
    order = np.argsort(-score, kind="stable")
    hits = present[order].astype(bool)
    return float((np.cumsum(hits)[hits] / (np.flatnonzero(hits) + 1)).mean())


def auc(score: np.ndarray, present: np.ndarray) -> float:
    """Area under the ROC curve (Mann-Whitney), ties counted half: scores (N,), presence (N,) 0/1."""
    present = present.astype(bool)
    positive, negative = np.sort(score[present]), np.sort(score[~present])
    below = np.searchsorted(negative, positive, side="left")
    tied = np.searchsorted(negative, positive, side="right") - below
    return float((below.sum() + 0.5 * tied.sum()) / (positive.size * negative.size))


def calibration_error(probability: np.ndarray, present: np.ndarray) -> tuple[float, float, list[list[float]]]:
    """(ece, ece_above, table) of matching arrays; a row of the table is [mean p, fraction present, pairs]."""
    bins = np.minimum((probability * BINS).astype(np.int64), BINS - 1).ravel()
    pairs = np.bincount(bins, minlength=BINS).astype(float)
    mean = np.bincount(bins, probability.ravel().astype(np.float64), BINS)
    seen = np.bincount(bins, present.ravel().astype(np.float64), BINS)
    gap = np.abs(mean - seen)
    table = [[float(m / n), float(s / n), float(n)] for m, s, n in zip(mean, seen, pairs, strict=True) if n]
    return float(gap.sum() / pairs.sum()), float(gap[1:].sum() / max(pairs[1:].sum(), 1.0)), table


def score_ranges(score: np.ndarray, probability: np.ndarray, present: np.ndarray, min_cells: int) -> dict:
    """Mean AP and AUC of (places, species) scores, and calibration of probabilities, against presence.

    Ranking and calibration are apart, because places may be calibrated in parts (see `run.develop`).
    """
    cells = present.sum(axis=0)
    which = np.flatnonzero((cells >= min_cells) & (cells < len(present)))
    ece, above, table = calibration_error(probability, present)
    return {
        "species": int(which.size),
        "places": len(present),
        "ap": float(np.mean([average_precision(score[:, j], present[:, j]) for j in which])),
        "auc": float(np.mean([auc(score[:, j], present[:, j]) for j in which])),
        "ece": ece,
        "ece_above": above,
        "reliability": table,
    }


def sigmoid(x: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)) without overflow."""
    return 0.5 * (1.0 + np.tanh(0.5 * x))


def blocks(lonlat: np.ndarray, degrees: float) -> np.ndarray:
    """Block number of positions (N, 2) (lon, lat) on a grid of square blocks."""
    across = int(np.ceil(360.0 / degrees))
    row = np.floor((lonlat[:, 1] + 90.0) / degrees).astype(np.int64)
    col = np.floor((lonlat[:, 0] + 180.0) / degrees).astype(np.int64) % across
    return row * across + col


def held_out(lonlat: np.ndarray, degrees: float, fraction: float, seed: int) -> np.ndarray:
    """Boolean (N,): the position lies in one of the randomly chosen held-out blocks."""
    number = blocks(lonlat, degrees)
    unique = np.unique(number)
    chosen = np.random.default_rng(seed).choice(unique, int(fraction * unique.size), replace=False)
    return np.isin(number, chosen)


def fit_calibration(cosine: np.ndarray, present: np.ndarray, start: tuple[float, float]) -> tuple[float, float]:
    """(scale, bias) by Newton's method on the log-likelihood of matching arrays.

    Targets are smoothed as in Platt (1999), so that separable data have a finite answer. Steps that
    would raise the loss are halved: from a start that is far too sure, a full one overshoots.
    """
    x, y = cosine.ravel().astype(np.float64), present.ravel().astype(bool)
    y = np.where(y, (y.sum() + 1) / (y.sum() + 2), 1 / ((~y).sum() + 2))

    def loss(at: np.ndarray) -> float:
        logit = at[0] * x + at[1]
        return float((np.logaddexp(0.0, logit) - y * logit).sum())

    at = np.array(start, dtype=np.float64)
    now = loss(at)
    for _ in range(50):
        p = sigmoid(at[0] * x + at[1])
        w, r = p * (1 - p) + 1e-12, p - y
        gradient = np.array([(r * x).sum(), r.sum()])
        hessian = np.array([[(w * x * x).sum(), (w * x).sum()], [(w * x).sum(), w.sum()]])
        step = np.linalg.solve(hessian, gradient)
        while (then := loss(at - step)) > now and np.abs(step).max() > 1e-7:
            step /= 2
        at, now = at - step, then
        if np.abs(step).max() < 1e-6 * max(1.0, abs(at[0])):
            break
    return float(at[0]), float(at[1])
