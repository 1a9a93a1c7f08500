"""Thresholds that follow from the scores of presences and other places."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sdm.errors import RecordsError
from sdm.records import measures
from sdm.request.ranges import FIXED, FROM_RECORDS

RULES = FROM_RECORDS | {FIXED: "a fixed value"}
"""Rules for thresholds, by name."""


@dataclass(frozen=True)
class Threshold:
    """A score from which on a place counts as suitable."""

    rule: str
    """A key of RULES."""
    value: float
    sensitivity: float
    """Share of the presences at or above the value."""
    specificity: float
    """Share of the absences below the value, or of the random places where there are no absences."""
    area_share: float
    """Share of the random places at or above the value: the predicted part of the area they stand for."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self) | {"meaning": RULES[self.rule]}


@dataclass(frozen=True)
class RangeArea:
    """Area of the predicted range on the WGS 84 ellipsoid, in km2."""

    km2: float
    low_km2: float | None = None
    """Of the cautious range; None where there is none."""
    high_km2: float | None = None
    """Of the generous range."""
    rule: str = ""
    """That the map was cut by."""
    bounds: str = ""
    """What low and high are, as a clause."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def threshold(
    rule: str,
    presence: npt.ArrayLike,
    background: npt.ArrayLike,
    *,
    absence: npt.ArrayLike | None = None,
    weights: npt.ArrayLike | None = None,
    value: float | None = None,
) -> Threshold:
    """The threshold that a rule gives for scores.

    Parameters
    ----------
    rule : a key of RULES
    presence : scores of the presences, shape (n,)
    background : scores of random places, shape (m,)
    absence : scores of real absences; specificity is then of these
    weights : of the random places, shape (m,)
    value : with the rule "fixed"

    With fewer than ten presences "p10" is the same as "mtp". Where several scores satisfy "equal" or "max-tss"
    equally well the highest is taken. See Liu et al. (2005, Ecography 28:385; 2013, J. Biogeogr. 40:778).
    Raises RecordsError for an unknown rule, or "fixed" without a finite value.
    """
    scores, others = np.sort(np.asarray(presence, float))[::-1], background if absence is None else absence
    contrast_weights = weights if absence is None else None
    if rule == "fixed":
        if value is None or not math.isfinite(value):
            raise RecordsError(f"a fixed threshold of {value!r} is not possible; give a number.")
        chosen = float(value)
    elif rule == "mtp":
        chosen = float(scores[-1])
    elif rule == "p10":
        chosen = float(scores[math.ceil(0.9 * scores.size - 1e-9) - 1])
    elif rule == "equal":
        chosen = _equal(scores, others, contrast_weights)
    elif rule == "max-tss":
        chosen = measures.max_tss(scores, others, contrast_weights)[1]
    else:
        raise RecordsError(f"the rule {rule!r} for a threshold is unknown; give one of {', '.join(RULES)}.")
    return Threshold(
        rule,
        chosen,
        sensitivity=float(measures.share_above(scores, chosen)),
        specificity=1 - float(measures.share_above(others, chosen, contrast_weights)),
        area_share=float(measures.share_above(background, chosen, weights)),
    )


def _equal(presence: npt.ArrayLike, others: npt.ArrayLike, weights: npt.ArrayLike | None) -> float:
    candidates = np.unique(np.concatenate([np.asarray(presence, float), np.asarray(others, float)]))[::-1]
    sensitivity = measures.share_above(presence, candidates)
    specificity = 1 - measures.share_above(others, candidates, weights)
    return float(candidates[np.argmin(np.round(np.abs(sensitivity - specificity), 12))])
