"""Thresholds that follow from calibrated probabilities: exact, whatever the size of the map.

Of the places at or above a threshold, the mean probability is the share expected to lie within the true range
(precision), and the sum of probability times area is the part of the true range that they are expected to hold
(recall). Both change monotonically with the threshold, so a rule is met at one value of the map.

That value is found in two passes and without sorting: the bits of positive float32 numbers are in the order of the
numbers. The first pass adds up areas by their upper 16 bits, the second by their lower 16 bits, where a rule is met.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from odc.geo.geobox import GeoBox

from sdm.outputs.blocks import Source, iter_blocks
from sdm.outputs.statistics import PixelArea
from sdm.request import RangeRule

SURE = 0.95
"""Expected precision of a cautious range, expected recall of a generous one."""
_BINS = 1 << 16
_SLACK = 1e-6
"""Relative: a map whose only value is 0.9 has a precision of 0.9, though float32 has no such number."""

Floats = npt.NDArray[np.float64]
_Number = Callable[[npt.NDArray[np.uint32], int], tuple[npt.NDArray[np.uint32], npt.NDArray[np.bool_]]]
"""Of the bits of some values and a coarse bin: the number of each, and which of them count."""


@dataclass(frozen=True)
class _Tail:
    """What lies at or above each of some values (N,), ascending: area and expected area in m2."""

    values: Floats
    area: Floats
    hit: Floats


def thresholds(source: Source, geobox: GeoBox, rules: Sequence[RangeRule]) -> tuple[float, ...]:
    """The threshold of each rule for a map of probabilities.

    Parameters
    ----------
    source : probabilities, shape (y, x), NaN where not modelled.
    geobox : its grid.
    rules : of the kinds `precision`, `recall` and `area`.

    Returns
    -------
    For `precision` the lowest value from which on the mean probability is at least the share, for `recall` the highest
    from which on the share of the expected area is at least the share, for `area` that of the area nearest to the
    expected area. Places with a probability of 0 are never part of a range. Where no value will do (a map that never
    reaches a precision), a number above all of them: the range is empty.
    """
    area = PixelArea(geobox)
    coarse = _sums(source, area, _upper, range(1))[0]
    used = np.flatnonzero(coarse[0])
    if not used.size:
        return tuple(_nowhere(rule) for rule in rules)
    above = np.cumsum(coarse[:, ::-1], axis=1)[:, ::-1]
    total = float(above[1, 0])
    tail = _Tail(used.astype(float), above[0, used], above[1, used])
    around = [_around(rule, tail, total) for rule in rules]
    wanted = sorted({int(used[k]) for part in around for k in part})
    fine = dict(zip(wanted, _sums(source, area, _lower, wanted), strict=True))
    return tuple(
        _at(rule, _candidates([int(used[k]) for k in part], fine, above), total)
        for rule, part in zip(rules, around, strict=True)
    )


def _nowhere(rule: RangeRule) -> float:
    return float(rule.value or 1.0) if rule.kind == "precision" else 1.0


def _upper(keys: npt.NDArray[np.uint32], _bin: int) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.bool_]]:
    """The number of the coarse bin of each key, and which of them count."""
    return keys >> np.uint32(16), keys > 0


def _lower(keys: npt.NDArray[np.uint32], coarse: int) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.bool_]]:
    """The number of each key within a coarse bin, and which of them lie in it."""
    return keys & np.uint32(_BINS - 1), (keys >> np.uint32(16) == coarse) & (keys > 0)


def _sums(source: Source, pixel_area: PixelArea, number: _Number, bins: Sequence[int]) -> Floats:
    """Area and expected area in m2 by number, of each of the bins: shape (bins, 2, 65536)."""
    sums = np.zeros((len(bins), 2, _BINS))
    for rows, columns, values in iter_blocks(source):
        area = np.broadcast_to(pixel_area.block(rows, columns), values.shape)
        known = ~np.isnan(values)
        numbers = np.maximum(values[known], np.float32(0.0))  # -0.0 too: its bits are those of a huge number
        areas = area[known]
        keys = numbers.view(np.uint32)
        for k, one in enumerate(bins):
            at, counts = number(keys, one)
            at, here = at[counts], areas[counts]
            sums[k, 0] += np.bincount(at, here, _BINS)
            sums[k, 1] += np.bincount(at, here * numbers[counts], _BINS)
    return sums


def _met(rule: RangeRule, tail: _Tail, total: float) -> npt.NDArray[np.bool_]:
    """From which of the values on there is enough area: True up to some value, then False."""
    if rule.kind == "precision":
        # Turned round: True where the mean is still too low.
        return tail.hit < np.float64(rule.value) * (1 - _SLACK) * tail.area
    if rule.kind == "recall":
        return tail.hit >= np.float64(rule.value) * (1 - _SLACK) * total
    return tail.area >= total * (1 - _SLACK)


def _around(rule: RangeRule, tail: _Tail, total: float) -> range:
    """Numbers of the coarse bins in which the value of a rule may lie: the last that meets it, and the next."""
    met = np.flatnonzero(_met(rule, tail, total))
    last = int(met[-1]) if met.size else 0
    return range(last, min(last + 2, tail.values.size))


def _candidates(bins: Sequence[int], fine: dict[int, npt.NDArray], above: npt.NDArray) -> _Tail:
    """All values of the map within some neighbouring coarse bins, ascending."""
    keys, area, hit = [], [], []
    for one in bins:
        sums = fine[one]
        higher = above[:, one + 1] if one + 1 < _BINS else np.zeros(2)
        tail = np.cumsum(sums[:, ::-1], axis=1)[:, ::-1] + higher[:, None]
        here = np.flatnonzero(sums[0])
        keys.append((one << 16) + here)
        area.append(tail[0, here])
        hit.append(tail[1, here])
    values = np.concatenate(keys).astype(np.uint32).view(np.float32).astype(float)
    return _Tail(values, np.concatenate(area), np.concatenate(hit))


def _at(rule: RangeRule, tail: _Tail, total: float) -> float:
    """The value of a rule among its candidates."""
    met = np.flatnonzero(_met(rule, tail, total))
    last = int(met[-1]) if met.size else -1
    if rule.kind == "precision":
        return float(tail.values[last + 1]) if last + 1 < tail.values.size else max(_nowhere(rule), _beyond(tail))
    if rule.kind == "recall":
        return float(tail.values[max(last, 0)])
    near = tail.area[max(last, 0) : last + 2]
    return float(tail.values[max(last, 0) + int(np.argmin(np.abs(near - total)))])


def _beyond(tail: _Tail) -> float:
    return float(np.nextafter(np.float32(tail.values[-1]), np.float32(np.inf)))
