"""How well a map with a threshold reproduces a range: is it there at all, recall, precision, area."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

SIZES = ((0, 1), (1, 3), (3, 10), (10, 100), (100, np.inf))
"""Classes of the size of ranges in cells: above the first, up to and including the second."""


class RangeScore(NamedTuple):
    """Of one species: areas in km2."""

    area: float
    """Of the range, as far as it is mapped."""
    above: float
    """Of the places at 0.5 or more."""
    both: float
    """Of those in the range."""
    expected: float
    """Sum of the probabilities times the area."""
    highest: float
    """Largest probability in the range."""


def range_score(logit: np.ndarray, inside: np.ndarray, area: np.ndarray) -> RangeScore:
    """Of logits (N,) at the places where a species is mapped; `inside` its range or not; the areas they stand for."""
    above = logit >= 0.0
    probability = 0.5 * (1.0 + np.tanh(0.5 * logit))
    return RangeScore(
        float(area[inside].sum()),
        float(area[above].sum()),
        float(area[above & inside].sum()),
        float(probability @ area),
        float(probability[inside].max(initial=0.0)),
    )


def offset_to_area(logit: np.ndarray, area: np.ndarray, wanted: float) -> float:
    """What must be added to logits (N,) for places of an area of `wanted` to reach 0, or all of them."""
    order = np.argsort(-logit, kind="stable")
    last = min(int(np.searchsorted(np.cumsum(area[order]), wanted)), order.size - 1)
    return -float(logit[order[last]])


def size_class(size: float) -> str:
    """The class of a size in cells: "1", "2-3", "4-10", "11-100", "more than 100"."""
    low, high = next((a, b) for a, b in SIZES if a < size <= b)
    if high == np.inf:
        return f"more than {low}"
    return str(high) if high == low + 1 else f"{low + 1}-{high}"


CLASSES = tuple(size_class(low + 1) for low, _ in SIZES)
"""From small to large."""


def by_size(scores: Mapping[str, RangeScore], sizes: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """{class of size, and "all": the measures of its species}, without species that are mapped nowhere in their range.

    `reach`: share of species with a place at 0.5 in their range; `recall` and `precision` in it, means over species
    (precision over those with any area); `area_ratio`: median of the area at 0.5 over that of the range.
    """
    groups: dict[str, list[RangeScore]] = {}
    for name, score in scores.items():
        if score.area > 0:
            groups.setdefault(size_class(sizes[name]), []).append(score)
    ordered = {label: groups[label] for label in CLASSES if label in groups}
    everyone = [score for group in ordered.values() for score in group]
    return {label: _summary(group) for label, group in {**ordered, "all": everyone}.items()} if everyone else {}


def _summary(scores: Iterable[RangeScore]) -> dict[str, float]:
    area, above, both, expected, highest = np.array(list(scores)).T
    shown = above > 0
    return {
        "species": int(area.size),
        "reach": float((highest >= 0.5).mean()),
        "recall": float((both / area).mean()),
        "precision": float((both[shown] / above[shown]).mean()) if shown.any() else float("nan"),
        "area_ratio": float(np.median(above / area)),
        "expected_ratio": float(np.median(expected / area)),
    }
