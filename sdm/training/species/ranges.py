"""The table of known ranges of fitted species (`sdm.models.known_ranges`), and how well maps reproduce their ranges.

As `sdm.training.runs.known_ranges` does for a model with encoders of its own: small ranges get an offset and a drop
with the distance, both less the larger the range is.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from sdm.models.known_ranges import KnownRange
from sdm.training.data.range_parts import RangeParts
from sdm.training.measures.range_area import RangeScore, offset_to_area, range_score
from sdm.training.runs.known_ranges import AREA, DROP, MOST, SHOWN, weight

__all__ = ["DROP", "SpeciesRange", "fit_known_range", "weight"]

NEARLY = 3.0
"""Logits below the least in a range down to which places are compared with it."""
LEAST = -7.0
"""Logit below which a place counts as absent."""


class SpeciesRange(NamedTuple):
    """A species with its known range, and the scores of its map without and with it."""

    known: KnownRange
    alone: RangeScore
    with_known_range: RangeScore


def fit_known_range(
    part: RangeParts, logit: np.ndarray, lives: np.ndarray, lonlat: np.ndarray, area: np.ndarray
) -> SpeciesRange:
    """What a species gets, from logits (P,) at places (P, 2), how likely it lives at each (P,), and their km2 (P,)."""
    inside = lives > 0
    known = KnownRange(part.boxes[:0], 0.0, 0.0, part.reach, 0.0, 0.0)
    alone = _score(logit, inside, area)
    share = weight(part.size) if part.boxes.size else 0.0
    moved = logit
    if share > 0.0 and inside.any():
        known = replace(known, boxes=part.boxes, drop=DROP * share)
        moved = logit + _shift(known, lonlat)
        wanted = AREA * float((area * lives).sum())
        some = moved >= float(moved[inside].min()) - NEARLY  # sorting all places would take most of the time
        if area[some].sum() < wanted:
            some[:] = True
        offset = float(np.clip(offset_to_area(moved[some], area[some], wanted), -MOST, MOST))
        # Whatever lies outside: the best place of the range is shown.
        offset = max(offset * share, SHOWN - float(moved[inside].max()))
    elif inside.any():
        offset = max(0.0, SHOWN - float(logit[inside].max()))
    else:
        offset = 0.0
    known, moved = replace(known, offset=offset), moved + np.float32(offset)
    after = _score(moved, inside, area)
    return SpeciesRange(replace(known, highest=after.highest, alone=alone.highest), alone, after)


def _shift(known: KnownRange, lonlat: np.ndarray) -> np.ndarray:
    """`known.shift` at positions (P, 2), computed only where the range is near."""
    boxes, margin = known.boxes, known.reach / 111.0 + 0.1
    lon, lat = lonlat.T
    near = (lat >= boxes[:, 1].min() - margin) & (lat <= boxes[:, 3].max() + margin)
    across = margin / max(np.cos(np.radians(min(np.abs(boxes[:, 1::2]).max() + margin, 89.0))), 0.02)
    if boxes[:, 2].max() - boxes[:, 0].min() < 180 and boxes[:, 0].min() - across > -180:
        near &= (lon >= boxes[:, 0].min() - across) & (lon <= boxes[:, 2].max() + across)
        if boxes[:, 2].max() + across > 180:
            near[:] = True
    out = np.full(lon.size, -known.drop, dtype=np.float32)
    out[near] = known.shift(lon[near], lat[near])
    return out


def _score(logit: np.ndarray, inside: np.ndarray, area: np.ndarray) -> RangeScore:
    some = (logit > LEAST) | inside
    return range_score(logit[some], inside[some], area[some])
