"""Measures of how well scores discriminate presences from other places.

Every function takes the scores of the presences and of the other places ("background": random places, places
of a target group, or real absences) as two arrays of shape (n,) and (m,). Background places can have weights,
for places that stand for unequal areas. Nothing here knows about maps, folds or models.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Curve:
    """A curve through points, each array of shape (k,)."""

    x: Array
    y: Array


@dataclass(frozen=True)
class Boyce:
    """The continuous Boyce index and the curve behind it."""

    index: float
    """Spearman's rank correlation of score and ratio, -1 to 1; NaN where the scores do not vary enough."""
    curve: Curve
    """x: middle of each window of scores; y: share of the presences in it over share of the background."""


@dataclass(frozen=True)
class Calibration:
    """Predicted probabilities against observed frequencies, one value per bin; arrays of shape (bins,)."""

    predicted: Array
    observed: Array
    count: npt.NDArray[np.int64]
    error: float
    """Expected calibration error: mean of |predicted - observed|, weighted by the places per bin."""


def auc(presence: npt.ArrayLike, background: npt.ArrayLike, weights: npt.ArrayLike | None = None) -> float:
    """Area under the ROC curve: the chance that a presence scores above a background place; ties count half.

    Equal to the Mann-Whitney statistic with mid-ranks (Hanley & McNeil 1982, Radiology 143:29).
    """
    scores, others, weight = _checked(presence, background, weights)
    order = np.argsort(others, kind="stable")
    others, below = others[order], np.concatenate([[0.0], np.cumsum(weight[order])])
    left, right = np.searchsorted(others, scores, "left"), np.searchsorted(others, scores, "right")
    return float((below[left] + below[right]).mean() / (2 * below[-1]))


def roc(presence: npt.ArrayLike, background: npt.ArrayLike, weights: npt.ArrayLike | None = None) -> Curve:
    """ROC curve: false positive rate (x) and true positive rate (y) from the strictest threshold on."""
    hits, alarms, _ = _rates(presence, background, weights)
    return Curve(np.concatenate([[0.0], alarms]), np.concatenate([[0.0], hits]))


def prg(presence: npt.ArrayLike, background: npt.ArrayLike, weights: npt.ArrayLike | None = None) -> Curve:
    """Precision-recall-gain curve for recall gains of 0 to 1 (Flach & Kull 2015, NeurIPS 28:838).

    x: recall gain, y: precision gain. Straight lines between the points are exact. The gains depend on the
    number of presences relative to the background: compare methods only on the same places.
    """
    scores, others, weight = _checked(presence, background, weights)
    hits, alarms, _ = _rates(scores, others, weight)
    odds = scores.size / others.size
    some = hits > 0  # before the first hit both gains are minus infinity or undefined
    recall = 1 - odds * (1 - hits[some]) / hits[some]
    recall[np.abs(recall) < 1e-12] = 0.0  # a rounding error must not cut off the point where the curve begins
    precision = 1 - alarms[some] / hits[some]
    first = int(np.argmax(recall >= 0))
    if recall[first] > 0:
        precision_at_0 = _precision_gain_at_zero(hits, alarms, odds)
        recall = np.concatenate([[0.0], recall[first:]])
        precision = np.concatenate([[precision_at_0], precision[first:]])
    else:
        recall, precision = recall[first:], precision[first:]
    return Curve(recall, precision)


def _precision_gain_at_zero(hits: Array, alarms: Array, odds: float) -> float:
    """Precision gain where the recall gain is 0, which is where the recall equals the prevalence."""
    prevalence = odds / (1 + odds)
    rate = float(np.interp(prevalence, np.concatenate([[0.0], hits]), np.concatenate([[0.0], alarms])))
    # At equal recalls interp takes the last point; the curve is entered through the first one.
    reached = np.flatnonzero(hits == prevalence)
    if reached.size:
        rate = float(alarms[reached[0]])
    return 1 - rate / prevalence


def auc_prg(presence: npt.ArrayLike, background: npt.ArrayLike, weights: npt.ArrayLike | None = None) -> float:
    """Area under the precision-recall-gain curve: 1 is perfect, 0 chance, and worse than chance is negative.

    Flach & Kull (2015, NeurIPS 28:838); used for presence-only models by Valavi et al. (2022, Ecol. Monogr.
    92:e01486).
    """
    curve = prg(presence, background, weights)
    if curve.x.size == 1:
        return float(curve.y[0])
    return float(((curve.y[1:] + curve.y[:-1]) / 2) @ np.diff(curve.x))


def max_tss(
    presence: npt.ArrayLike, background: npt.ArrayLike, weights: npt.ArrayLike | None = None
) -> tuple[float, float]:
    """Largest true skill statistic, sensitivity + specificity - 1, and the threshold that gives it.

    Allouche et al. (2006, J. Appl. Ecol. 43:1223). A place counts as suitable from the threshold on; of equally
    good thresholds the highest.
    """
    hits, alarms, thresholds = _rates(presence, background, weights)
    best = int(np.argmax(np.round(hits - alarms, 12)))  # rounding errors must not decide between equals
    return float(hits[best] - alarms[best]), float(thresholds[best])


def boyce(
    presence: npt.ArrayLike,
    background: npt.ArrayLike,
    weights: npt.ArrayLike | None = None,
    *,
    windows: int = 101,
    width: float = 0.1,
) -> Boyce:
    """Continuous Boyce index (Hirzel et al. 2006, Ecol. Model. 199:142).

    A window of `width` times the range of the scores moves over them in `windows` steps. In each the share of
    the presences is divided by the share of the background; the index is the rank correlation of this ratio
    with the score. Of neighbouring windows with the same ratio only the last counts, as in the R package
    ecospat. Windows without background are left out. The index changes when scores are transformed.
    """
    scores, others, weight = _checked(presence, background, weights)
    low, high = min(scores.min(), others.min()), max(scores.max(), others.max())
    starts = np.linspace(low, high - width * (high - low), windows)
    ends = starts + width * (high - low)
    ends[-1] = max(ends[-1], high)  # rounding must not lose the largest score
    expected = _share_within(others, weight, starts, ends)
    observed = _share_within(scores, np.ones(scores.size), starts, ends)
    some = expected > 0
    ratio = np.round(observed[some] / expected[some], 10)
    middle = (starts[some] + ends[some]) / 2
    curve = Curve(middle, ratio)
    last = np.append(ratio[1:] != ratio[:-1], True)
    if last.sum() < 3 or not high > low:
        return Boyce(float("nan"), curve)
    return Boyce(_correlation(mid_ranks(ratio[last]), mid_ranks(middle[last]), None), curve)


def correlation(presence: npt.ArrayLike, background: npt.ArrayLike, weights: npt.ArrayLike | None = None) -> float:
    """Point-biserial correlation of the scores with presence as 1 and background as 0 (COR).

    Elith et al. (2006, Ecography 29:129). NaN where the scores do not vary.
    """
    scores, others, weight = _checked(presence, background, weights)
    value = np.concatenate([scores, others])
    label = np.repeat([1.0, 0.0], [scores.size, others.size])
    # Scaled so that a background place weighs as much as a presence on average.
    weight = np.concatenate([np.ones(scores.size), weight * (others.size / weight.sum())])
    return _correlation(value, label, weight)


def omission(presence: npt.ArrayLike, thresholds: npt.ArrayLike) -> Array:
    """Share of the presences that score below each threshold, with the shape of `thresholds`."""
    scores = np.sort(_scores(presence, "presence"))
    return np.searchsorted(scores, np.asarray(thresholds, float), "left") / scores.size


def share_above(scores: npt.ArrayLike, thresholds: npt.ArrayLike, weights: npt.ArrayLike | None = None) -> Array:
    """Share of the weight at or above each threshold, with the shape of `thresholds`.

    Of background places this is the predicted area, of presences the sensitivity.
    """
    values = _scores(scores, "score")
    weight = _weights(weights, values.size)
    order = np.argsort(values, kind="stable")
    below = np.concatenate([[0.0], np.cumsum(weight[order])])
    return 1 - below[np.searchsorted(values[order], np.asarray(thresholds, float), "left")] / below[-1]


def log_loss(probability: npt.ArrayLike, present: npt.ArrayLike, weights: npt.ArrayLike | None = None) -> float:
    """Mean of -log p over presences and -log(1 - p) over absences, with p held within 1e-7 of 0 and 1."""
    p, y, weight = _labelled(probability, present, weights)
    p = np.clip(p, 1e-7, 1 - 1e-7)
    return float(np.average(-np.where(y, np.log(p), np.log1p(-p)), weights=weight))


def brier(probability: npt.ArrayLike, present: npt.ArrayLike, weights: npt.ArrayLike | None = None) -> float:
    """Mean squared difference of probability and presence (Brier 1950, Mon. Weather Rev. 78:1)."""
    p, y, weight = _labelled(probability, present, weights)
    return float(np.average(np.square(p - y), weights=weight))


def calibration(probability: npt.ArrayLike, present: npt.ArrayLike, bins: int = 10) -> Calibration:
    """Calibration curve in bins of equal frequency, and the expected calibration error.

    Places are put in order of their probability and cut into `bins` parts of equal size (Naeini et al. 2015,
    AAAI 29:2901); places of equal probability stay together, so there can be fewer bins.
    """
    p, y, _ = _labelled(probability, present, None)
    places = np.minimum((mid_ranks(p) - 0.5) / p.size * bins, bins - 1).astype(np.int64)
    _, places, count = np.unique(places, return_inverse=True, return_counts=True)
    predicted = np.bincount(places, weights=p) / count
    observed = np.bincount(places, weights=y) / count
    error = float(count @ np.abs(predicted - observed) / p.size)
    return Calibration(predicted, observed, count, error)


def mid_ranks(values: npt.ArrayLike) -> Array:
    """Ranks from 1; equal values share the mean of their ranks."""
    _, place, count = np.unique(np.asarray(values, float), return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count - 1) / 2)[place]


def _rates(
    presence: npt.ArrayLike, background: npt.ArrayLike, weights: npt.ArrayLike | None
) -> tuple[Array, Array, Array]:
    """True and false positive rate at each distinct score taken as threshold, from the highest down."""
    scores, others, weight = _checked(presence, background, weights)
    thresholds, place = np.unique(np.concatenate([scores, others]), return_inverse=True)
    hits = np.bincount(place[: scores.size], minlength=thresholds.size)[::-1].cumsum() / scores.size
    alarms = np.bincount(place[scores.size :], weights=weight, minlength=thresholds.size)[::-1].cumsum()
    return hits, alarms / alarms[-1], thresholds[::-1]


def _share_within(values: Array, weight: Array, starts: Array, ends: Array) -> Array:
    """Share of the weight of `values` in each closed interval."""
    order = np.argsort(values, kind="stable")
    values, below = values[order], np.concatenate([[0.0], np.cumsum(weight[order])])
    inside = below[np.searchsorted(values, ends, "right")] - below[np.searchsorted(values, starts, "left")]
    return inside / below[-1]


def _correlation(a: Array, b: Array, weight: Array | None) -> float:
    a = a - np.average(a, weights=weight)
    b = b - np.average(b, weights=weight)
    spread = np.average(a * a, weights=weight) * np.average(b * b, weights=weight)
    return float(np.average(a * b, weights=weight) / np.sqrt(spread)) if spread > 0 else float("nan")


def _scores(values: npt.ArrayLike, what: str) -> Array:
    scores = np.asarray(values, dtype=np.float64)
    if scores.ndim != 1 or not scores.size:
        raise ValueError(f"the {what} scores have shape {scores.shape}; give one or more in one dimension")
    if not np.isfinite(scores).all():
        raise ValueError(f"a {what} score is not finite; leave out places without a score")
    return scores


def _weights(weights: npt.ArrayLike | None, size: int) -> Array:
    if weights is None:
        return np.ones(size)
    weight = np.asarray(weights, dtype=np.float64)
    if weight.shape != (size,) or not np.isfinite(weight).all() or weight.min() < 0 or not weight.sum() > 0:
        raise ValueError(f"weights of shape {weight.shape} must be {size} numbers of at least 0, not all 0")
    return weight


def _checked(
    presence: npt.ArrayLike, background: npt.ArrayLike, weights: npt.ArrayLike | None
) -> tuple[Array, Array, Array]:
    others = _scores(background, "background")
    return _scores(presence, "presence"), others, _weights(weights, others.size)


def _labelled(
    probability: npt.ArrayLike, present: npt.ArrayLike, weights: npt.ArrayLike | None
) -> tuple[Array, npt.NDArray[np.bool_], Array]:
    p, y = _scores(probability, "probability"), np.asarray(present, dtype=bool)
    if p.min() < 0 or p.max() > 1:
        raise ValueError(f"probabilities reach from {p.min():g} to {p.max():g}; they must lie between 0 and 1")
    if y.shape != p.shape:
        raise ValueError(f"{p.size} probabilities but {y.size} observations")
    return p, y, _weights(weights, p.size)
