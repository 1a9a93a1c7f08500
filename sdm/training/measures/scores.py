"""Ranking and calibration: how good a model is on held-out places, and a fit of probabilities.

Definitions. AP: mean over places of the precision at each presence, per species. AUC: the
probability that a presence outranks an absence, ties counted half. Both are averaged over species.
ECE: |mean probability - fraction present| over 15 equal bins of probability, weighted by the
number of (place, species) pairs; `ece_above` leaves out the lowest bin, which holds nearly all
pairs and would hide the rest. For labels that are probabilities, see `score_predictions`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

BINS = 15
"""Of probability, for the calibration error."""
CALIBRATION_BINS = 8192
"""Of the cosine, for the fit of a calibration."""


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
    """(ece, ece_above, table) of arrays of the same shape; rows of the table are [mean p, fraction present, pairs]."""
    bins = np.minimum((probability * BINS).astype(np.int64), BINS - 1).ravel()
    pairs = np.bincount(bins, minlength=BINS).astype(float)
    mean = np.bincount(bins, probability.ravel().astype(np.float64), BINS)
    present_count = np.bincount(bins, present.ravel().astype(np.float64), BINS)
    gap = np.abs(mean - present_count)
    table = [[float(m / n), float(s / n), float(n)] for m, s, n in zip(mean, present_count, pairs, strict=True) if n]
    return float(gap.sum() / pairs.sum()), float(gap[1:].sum() / max(pairs[1:].sum(), 1.0)), table


def score_predictions(
    score: np.ndarray, probability: np.ndarray, label: np.ndarray, known: np.ndarray | None, min_places: int
) -> dict[str, Any]:
    """Mean AP and AUC of predictions, and calibration of probabilities, against labels.

    Parameters
    ----------
    score : (places, species), what places are ranked by
    probability : the same shape, what calibration is computed from; separate from `score` because places may be
        calibrated in parts, each with its own fit
    label : the same shape, 0 and 1 or probabilities; a species counts as present where its label is 0.5 or more,
        and calibration compares with the label itself
    known : (places, species) bool, the pairs that count; None: all
    min_places : species with fewer presences, or without an absence, are not ranked

    Returns
    -------
    {"species", "places", "ap", "auc", "ece", "ece_above", "reliability"}; AP and AUC are None if nothing is ranked
    """
    present = label >= 0.5
    aps, aucs = [], []
    for j in range(label.shape[1]):
        rows = slice(None) if known is None else known[:, j]
        species_present = present[rows, j]
        count = int(species_present.sum())
        if max(min_places, 1) <= count < species_present.size:
            aps.append(average_precision(score[rows, j], species_present))
            aucs.append(auc(score[rows, j], species_present))
    pairs = (probability, label) if known is None else (probability[known], label[known])
    ece, above, table = calibration_error(*pairs)
    return {
        "species": len(aps),
        "places": len(label),
        "ap": float(np.mean(aps)) if aps else None,
        "auc": float(np.mean(aucs)) if aucs else None,
        "ece": ece,
        "ece_above": above,
        "reliability": table,
    }


def sigmoid(x: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)) without overflow."""
    return 0.5 * (1.0 + np.tanh(0.5 * x))


def cosine_histogram(cosine: np.ndarray, label: np.ndarray, known: np.ndarray | None = None) -> np.ndarray:
    """(3, CALIBRATION_BINS) sums over pairs in equal bins of the cosine: the number of pairs, cosines, labels.

    A fit of two numbers needs no more than that: within a bin of width 1/4096 the logit is nearly linear.
    Histograms of several arrays may be added.
    """
    if known is not None:
        cosine, label = cosine[known], label[known]
    x, y = cosine.ravel(), label.ravel()
    bins = np.clip((x + 1.0) * (CALIBRATION_BINS / 2), 0, CALIBRATION_BINS - 1).astype(np.int32)
    sums = [np.bincount(bins, w, CALIBRATION_BINS) for w in (None, x, y)]
    return np.stack(sums).astype(np.float64)


def fit_calibration(cosine: np.ndarray, label: np.ndarray, start: tuple[float, float]) -> tuple[float, float]:
    """(scale, bias) that turn cosines into probabilities, fitted to an array of labels 0..1 of the same shape."""
    return fit_histogram(cosine_histogram(cosine, label), start)


def fit_histogram(histogram: np.ndarray, start: tuple[float, float]) -> tuple[float, float]:
    """(scale, bias) by Newton's method on the log-likelihood of a `cosine_histogram`.

    Targets are smoothed as in Platt (1999), so that separable data have a finite solution. Steps that would raise the
    loss are halved: from an overconfident start a full step overshoots.
    """
    n, x, y = histogram[:, histogram[0] > 0]
    x = x / n
    positive, negative = y.sum(), (n - y).sum()
    y = y * ((positive + 1) / (positive + 2)) + (n - y) / (negative + 2)  # sums of smoothed targets

    def loss(at: np.ndarray) -> float:
        logit = at[0] * x + at[1]
        return float((n * np.logaddexp(0.0, logit) - y * logit).sum())

    at = np.array(start, dtype=np.float64)
    now = loss(at)
    for _ in range(50):
        p = sigmoid(at[0] * x + at[1])
        w, r = n * (p * (1 - p) + 1e-12), n * p - y
        gradient = np.array([(r * x).sum(), r.sum()])
        hessian = np.array([[(w * x * x).sum(), (w * x).sum()], [(w * x).sum(), w.sum()]])
        step = np.linalg.solve(hessian + 1e-12 * np.eye(2), gradient)
        while (then := loss(at - step)) > now and np.abs(step).max() > 1e-7:
            step /= 2
        at, now = at - step, then
        if np.abs(step).max() < 1e-6 * max(1.0, abs(at[0])):
            break
    return float(at[0]), float(at[1])
