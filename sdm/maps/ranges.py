"""The range on a map: a rule gives a threshold, the threshold a raster of 1 and 0, and that polygons.

A cautious and a generous range lie around it. Where a fit was repeated with resampled records they follow from the
band `uncertainty`: places that are in the range even if the logit is lowered, or only if it is raised, by `DEVIATIONS`
standard deviations. Of other probabilities they are the largest range of which `SURE` is expected to lie in the true
range, and the smallest that is expected to hold `SURE` of it. Neither is ever on the wrong side of the range itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sdm._version import __version__
from sdm.errors import RequestError
from sdm.maps.plan import Job
from sdm.maps.report import common_tags
from sdm.models.joint import member_of
from sdm.models.licence import credit_lines
from sdm.outputs.binary import Cut, Inside, at_least, cut, write_binary
from sdm.outputs.blocks import Source, load
from sdm.outputs.expectation import SURE, thresholds
from sdm.outputs.geopackage import Layer, write_layers
from sdm.request import RangeRule
from sdm.request.ranges import EXPECTED, FIXED, FROM_RECORDS

if TYPE_CHECKING:
    import shapely

SUFFIXES = ("-range.tif", "-range.qml", "-range.gpkg")
DEVIATIONS = 1.645
"""Standard deviations of the logit: 5 % of a normal distribution lie beyond them on either side."""
_NUMBERS = ("threshold", "area_km2", "expected_precision", "expected_recall")
_HIGHEST = float(np.nextafter(np.float32(1.0), np.float32(0.0)))  # of logits that are finite in float32


@dataclass(frozen=True)
class Range:
    """A written range."""

    entry: dict[str, Any]
    """For the report of the map, as JSON values."""
    outline: tuple[str, shapely.MultiPolygon]
    """Its name, and its polygons in degrees, (lon, lat)."""


def is_stand_in(job: Job, k: int) -> bool:
    """Whether the k-th map is of a group in place of a species that the model does not know."""
    return not job.resolutions[k].known


def stand_in_note(job: Job, k: int) -> str:
    """Why the k-th map has no range."""
    one = job.resolutions[k]
    return (
        f"No range is written for {one.query!r}: the map is that of its {one.taxon.rank} {one.taxon.name}, whose range "
        "is not that of the species."
    )


def refusal(job: Job, k: int, rule: RangeRule) -> str:
    """Why the rule has no meaning for the k-th map, as a sentence; "" where it has."""
    score, name = job.plan.targets[k].score, job.resolutions[k].taxon.name
    if rule.kind == FIXED:
        low, high = score.valid_range
        if not low < (rule.value or 0.0) <= high:
            return f"range {rule} is outside the values of the map, above {low:g} and up to {high:g}."
    elif rule.kind in EXPECTED and score.name != "probability":
        other = ", or a rule from the records: " + ", ".join(FROM_RECORDS) if job.fits else ""
        return (
            f"range {rule} follows from probabilities, but the map of {name} holds {score.name.replace('_', ' ')}, "
            f"which adds up to no area; give a number such as 0.5{other}."
        )
    elif rule.kind in FROM_RECORDS and not job.fits:
        return (
            f"range {rule} follows from the records that a map is fitted to; give --records, or a number such as 0.5, "
            "precision=P, recall=R or area."
        )
    elif rule.kind in FROM_RECORDS and rule.kind not in job.fits[k].fitted.info.thresholds:
        return f"the saved fit of {name} holds no thresholds, so range {rule} is not known; fit the records again."
    return ""


def check(job: Job, rule: RangeRule | None) -> tuple[bool, ...]:
    """Which maps of a job get a range; none without a rule. Raises RequestError where the rule has no meaning."""
    if rule is None:
        return (False,) * len(job.resolutions)
    wanted = tuple(not is_stand_in(job, k) for k in range(len(job.resolutions)))
    for k in np.flatnonzero(wanted):
        if reason := refusal(job, int(k), rule):
            raise RequestError(reason)
    return wanted


@dataclass(frozen=True)
class _Side:
    """One of the three ranges, before it is cut."""

    name: str
    rule: str
    threshold: float
    inside: Inside


def write_range(
    job: Job,
    k: int,
    rule: RangeRule,
    paths: Sequence[Path],
    source: Source,
    bands: dict[str, Source] | None = None,
    command: str = "",
) -> Range:
    """Write the range on the k-th map of a job.

    Parameters
    ----------
    job, k : the map; `refusal` has no objection.
    rule : of the threshold.
    paths : of the files, in the order of `SUFFIXES`.
    source : the values of the map, shape (y, x).
    bands : its further bands by their names.
    command : for the tags.

    Raises
    ------
    OutputError : the disk refuses.
    """
    from sdm.outputs.polygons import polygons_of
    from sdm.outputs.style import write_range_qml

    geobox = job.grid.geobox
    probability = job.plan.targets[k].score.name == "probability"
    sides, bounds = _sides(job, k, rule, source, bands or {})
    rows: list[dict[str, Any]] = []
    shapes: list[shapely.MultiPolygon] = []
    for side in sides:
        found = cut(source, geobox, side.inside)
        rows.append(_row(side, found, probability))
        if side is sides[0]:
            tags = _tags(job, k, rule, rows[0], bounds) | common_tags(job, command)
            write_binary(paths[0], found.mask, geobox, _quantity(job, k, side), {n: t for n, t in tags.items() if t})
            write_range_qml(paths[1], str(rule))
        shapes.append(polygons_of(found.mask, geobox))
    common = {"binomial": job.resolutions[k].taxon.name, "model": _model(job, k), "citation": _citation(job, k)}
    write_layers(
        paths[2],
        [
            Layer(side.name, [shape], [{"binomial": common["binomial"], **row, **common}], _NUMBERS)
            for side, row, shape in zip(sides, rows, shapes, strict=True)
        ],
    )
    entry: dict[str, Any] = {**rows[0], "meaning": rule.meaning}
    entry |= {side.name.removeprefix("range_"): row for side, row in zip(sides[1:], rows[1:], strict=True)}
    return Range(entry | {"low_and_high": bounds}, (f"Range ({rule})", shapes[0]))


def read_entry(path: Path) -> dict[str, float]:
    """The numbers of a range that was written before, from the tags of its raster."""
    import rasterio

    with rasterio.open(path) as file:
        tags = file.tags()
    return {name: float(tags[name]) for name in _NUMBERS if name in tags}


def _sides(job: Job, k: int, rule: RangeRule, source: Source, bands: dict[str, Source]) -> tuple[list[_Side], str]:
    """The range, and the cautious and the generous one where they are known; and what these are, as a clause."""
    geobox = job.grid.geobox
    uncertainty = bands.get("uncertainty")
    probability = job.plan.targets[k].score.name == "probability"
    around = (RangeRule("precision", SURE), RangeRule("recall", SURE)) if probability and uncertainty is None else ()
    expected = (rule,) if rule.kind in EXPECTED else ()
    found = thresholds(source, geobox, (*expected, *around)) if expected or around else ()
    value = found[0] if expected else _known_threshold(job, k, rule)
    own = _Side("range", str(rule), value, at_least(value))
    if uncertainty is not None:
        text = f"the logit {{}} by {DEVIATIONS:g} standard deviations over refits to resampled records"
        shifted = [
            _Side(name, f"{rule}, {text.format(word)}", value, _shifted(value, uncertainty, by, probability))
            for name, word, by in (("range_low", "lowered", -DEVIATIONS), ("range_high", "raised", DEVIATIONS))
        ]
        return [own, *shifted], f"places in the range with {text.format('lowered, and raised,')}"
    if not around:
        return [own], "not known: the values are no probabilities, and no refits tell how uncertain they are"
    low, high = max(value, found[-2]), min(value, found[-1])
    text = (
        f"the largest range of which {SURE:.0%} is expected to lie in the true range, and the smallest that is "
        f"expected to hold {SURE:.0%} of it"
    )
    return [
        own,
        _Side("range_low", str(around[0] if low > value else rule), low, at_least(low)),
        _Side("range_high", str(around[1] if high < value else rule), high, at_least(high)),
    ], text


def _known_threshold(job: Job, k: int, rule: RangeRule) -> float:
    if rule.kind == FIXED:
        assert rule.value is not None
        return rule.value
    return job.fits[k].fitted.info.thresholds[rule.kind]


def _shifted(threshold: float, uncertainty: Source, by: float, probability: bool) -> Inside:
    """Inside are values at or above a threshold once their logit is shifted by so many standard deviations."""
    scale = _logit if probability else _cloglog
    least = float(scale(np.array([float(np.float32(threshold))]))[0])

    def inside(values: np.ndarray, rows: slice, columns: slice) -> np.ndarray:
        deviation = np.nan_to_num(load(uncertainty, rows, columns)).astype(float)
        with np.errstate(invalid="ignore"):
            return scale(values.astype(float)) + by * deviation >= least

    return inside


def _logit(values: np.ndarray) -> np.ndarray:
    # A probability of 1 in float32 stands for any high logit: the least of them is taken.
    values = np.minimum(values, _HIGHEST)
    with np.errstate(divide="ignore"):
        return np.log(values) - np.log1p(-values)


def _cloglog(values: np.ndarray) -> np.ndarray:
    """The logit of a relative suitability, see `sdm.records.calibration`."""
    with np.errstate(divide="ignore"):
        return np.log(-np.log1p(-np.minimum(values, _HIGHEST)))


def _row(side: _Side, found: Cut, probability: bool) -> dict[str, Any]:
    return {
        "rule": side.rule,
        "threshold": side.threshold,
        "area_km2": found.area_km2,
        "expected_precision": found.precision if probability else None,
        "expected_recall": found.recall if probability else None,
    }


def _quantity(job: Job, k: int, side: _Side) -> str:
    name, score = job.resolutions[k].taxon.name, job.plan.targets[k].score.name.replace("_", " ")
    return f"1: in the range of {name} ({score} of {side.threshold:.6g} or more, rule {side.rule}); 0: not"


def _tags(job: Job, k: int, rule: RangeRule, row: dict[str, Any], bounds: str) -> dict[str, str]:
    numbers = {name: repr(row[name]) for name in _NUMBERS if row[name] is not None}
    return numbers | {
        "rule": str(rule),
        "rule_meaning": rule.meaning,
        "low_and_high": bounds,
        "species": job.resolutions[k].taxon.name,
        "score": job.plan.targets[k].score.name,
    }


def _model(job: Job, k: int) -> str:
    model = member_of(job.plan.model, job.resolutions[k].taxon)
    return f"{model.name} {model.version} ({model.digest})".strip()


def _citation(job: Job, k: int) -> str:
    """What a user of the range cites: the program, the model with its licence, and the records of a fit."""
    records = job.fits[k].fitted.info.citations if job.fits else ()
    model = member_of(job.plan.model, job.resolutions[k].taxon)
    return "; ".join((f"taxabind-map {__version__}", *credit_lines(model), *records))
