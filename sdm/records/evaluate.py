"""How good a map or a method is, judged by records: measures, evaluation of a raster, cross-validation.

The same scores look better against random land than against places where people looked for the same group,
by 0.1 of AUC and more: the one asks where the species lives, the other tells it from its group. So every
result is given for each kind of comparison places there is.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sdm.engine.cluster import processors
from sdm.engine.encode import one_thread
from sdm.errors import RecordsError
from sdm.records import measures
from sdm.records.background import Positions, near, random_places
from sdm.records.baselines import Fitter, Indices
from sdm.records.folds import Folds
from sdm.records.sample import MapSampler, open_sampler

if TYPE_CHECKING:
    import xarray as xr

    from sdm.records.table import Records

Floats = npt.NDArray[np.float64]

CONTRASTS = {
    "absences": "recorded absences",
    "land": "random places within reach",
    "group": "places where the group was recorded",
}
"""What presences are compared with, the most informative first."""

PRESENCE = "presence"
POOLED = frozenset({"auc_prg"})
"""Measures of all folds together: precision gain has no lower bound, so one small fold would decide their mean."""
FEWEST_POOLED = 10
"""Presences below which these measures say nothing."""
_FEWEST = 20  # random places that say something


@dataclass(frozen=True)
class Scores:
    """All measures of presences against one kind of places; None where a measure does not apply."""

    presences: int
    places: int
    """Presences are compared with this many."""
    auc: float | None = None
    auc_prg: float | None = None
    tss: float | None = None
    """The largest over all thresholds."""
    tss_threshold: float | None = None
    boyce: float | None = None
    correlation: float | None = None
    """COR, the point-biserial correlation."""
    log_loss: float | None = None
    """This and the next two only for probabilities against absences."""
    brier: float | None = None
    calibration_error: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {one.name: getattr(self, one.name) for one in fields(self)}


LABELS = {
    "auc": "AUC",
    "auc_prg": "AUC-PRG",
    "tss": "TSS",
    "boyce": "Boyce",
    "correlation": "COR",
    "log_loss": "Log loss",
    "brier": "Brier",
    "calibration_error": "ECE",
}
"""Measures in tables; TSS is the largest over all thresholds, ECE the expected calibration error."""

MEASURES = tuple(one.name for one in fields(Scores) if one.name not in ("presences", "places"))


def measure(
    presence: npt.ArrayLike,
    others: npt.ArrayLike,
    weights: npt.ArrayLike | None = None,
    *,
    probability: bool = False,
) -> Scores:
    """All measures of the scores of presences, shape (n,), against those of other places, shape (m,).

    `weights`: of the other places. `probability`: the scores are probabilities of presence and the other places
    real absences, so that log loss, Brier score and calibration error mean something.
    """
    presence, others = np.asarray(presence, float), np.asarray(others, float)
    counts = (int(presence.size), int(others.size))
    if not presence.size or not others.size or not np.isfinite(np.concatenate([presence, others])).all():
        return Scores(*counts)
    tss, threshold = measures.max_tss(presence, others, weights)
    scores = Scores(
        *counts,
        auc=measures.auc(presence, others, weights),
        auc_prg=measures.auc_prg(presence, others, weights),
        tss=tss,
        tss_threshold=threshold,
        boyce=_or_none(measures.boyce(presence, others, weights).index),
        correlation=_or_none(measures.correlation(presence, others, weights)),
    )
    if not probability:
        return scores
    p, label = np.concatenate([presence, others]), np.repeat([True, False], counts)
    return replace(
        scores,
        log_loss=measures.log_loss(p, label),
        brier=measures.brier(p, label),
        calibration_error=measures.calibration(p, label).error,
    )


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None


@dataclass(frozen=True)
class EvaluateOptions:
    """How a map is evaluated."""

    within_km: float = 1000.0
    """Random places, and those of the group, lie within this distance of a presence."""
    places: int = 10_000
    """Random places."""
    surface: str = "land"
    """Where random places lie: "land", "sea" (with lakes) or "none" (anywhere)."""
    group: tuple[npt.ArrayLike, npt.ArrayLike] | None = None
    """(lon, lat) of the records of the species' group, degrees, for the comparison with the group."""
    probability: bool | None = None
    """Whether the map holds probabilities of presence; None: as its band or variable says."""
    thresholds: Mapping[str, float] = field(default_factory=dict)
    """Thresholds, by rule, whose omission is wanted."""
    band: int = 1
    """Of a raster file."""
    seed: int = 0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.within_km) and self.within_km > 0):
            raise RecordsError(f"a reach of {self.within_km!r} km is not possible; give a number above 0.")
        if self.places < _FEWEST:
            raise RecordsError(f"{self.places} random places are too few; give at least {_FEWEST}.")


@dataclass(frozen=True)
class Evaluation:
    """What records say about a map."""

    source: str
    """Name of the map."""
    probability: bool
    """Whether its values were taken for probabilities of presence."""
    presences: int
    """Presences used, one per pixel."""
    same_pixel: int
    """Presences left out because another one lies in the same pixel."""
    off_map: int
    """Presences off the map, or where it has no value."""
    scores: Mapping[str, Scores]
    """Measures by what the presences are compared with (CONTRASTS)."""
    omission: Mapping[str, float]
    """Share of the presences below each threshold asked for."""
    values: Mapping[str, Floats]
    """Values of the map at the presences (key "presence") and at the places of each comparison."""
    within_km: float
    notes: tuple[str, ...] = ()
    """Sentences on what could not be evaluated."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON values, without the values of the map."""
        return {
            "source": self.source,
            "probability": self.probability,
            "presences": self.presences,
            "presences_in_the_same_pixel": self.same_pixel,
            "presences_off_the_map": self.off_map,
            "random_places_within_km": self.within_km,
            "measures": {name: scores.to_dict() for name, scores in self.scores.items()},
            "omission": dict(self.omission),
            "notes": list(self.notes),
        }


def evaluate(
    source: str | Path | xr.DataArray | MapSampler,
    records: Records | str | Path,
    options: EvaluateOptions | None = None,
) -> Evaluation:
    """Evaluate a map of any origin with records, preferably not those it was made from.

    Parameters
    ----------
    source : a GeoTIFF or other raster in any CRS, a Zarr store of this program, or a DataArray (y, x) with a CRS
    records : presences and, where there are some, absences; or a file of one species, which is read and cleaned
    options : what to compare with

    Returns
    -------
    Evaluation, with one presence per pixel, against random places, the group's places and absences.

    Raises
    ------
    LayerError when the map cannot be read. RecordsError when no presence lies on it, or there is nothing to
    compare with.
    """
    options = options or EvaluateOptions()
    sampler = source if isinstance(source, MapSampler) else open_sampler(source, options.band)
    records = _opened(records)
    pixel = sampler.pixels(records.lon[records.present], records.lat[records.present])
    value = sampler.values(pixel)
    known = np.isfinite(value)
    used, first = np.unique(pixel[known], return_index=True)
    if not used.size:
        raise RecordsError(f"none of the {pixel.size} presences lies on {sampler.name} where it has a value.")
    notes: list[str] = []
    values = {PRESENCE: value[known][first]} | _all_compared(sampler, records, options, used, notes)
    if len(values) == 1:
        raise RecordsError(f"there is nothing to compare the presences on {sampler.name} with; give absences.")
    probability = _is_probability(sampler, options, values, notes)
    return Evaluation(
        source=sampler.name,
        probability=probability,
        presences=int(used.size),
        same_pixel=int(known.sum() - used.size),
        off_map=int((~known).sum()),
        scores={
            name: measure(values[PRESENCE], values[name], probability=probability and name == "absences")
            for name in CONTRASTS
            if name in values
        },
        omission={
            rule: float(measures.omission(values[PRESENCE], threshold))
            for rule, threshold in options.thresholds.items()
        },
        values=values,
        within_km=options.within_km,
        notes=tuple(notes),
    )


def _opened(records: Records | str | Path) -> Records:
    if not isinstance(records, str | Path):
        return records
    from sdm.records.table import Records as Table

    return Table.read(records)


def _all_compared(
    sampler: MapSampler, records: Records, options: EvaluateOptions, used: npt.NDArray[np.int64], notes: list[str]
) -> dict[str, Floats]:
    """Values of the map at the places of each comparison; a note for one without any."""
    values = {}
    for name, lon, lat in _comparisons(sampler, records, options):
        compared = _compared(sampler, lon, lat, used, name)
        if compared.size:
            values[name] = compared
        else:
            notes.append(f"There is no comparison with {CONTRASTS[name]}: none lies where the map has a value.")
    return values


def _compared(
    sampler: MapSampler, lon: npt.ArrayLike, lat: npt.ArrayLike, used: npt.NDArray[np.int64], name: str
) -> Floats:
    """Values of the map at comparison places, without those that are unknown; `used`: pixels of the presences."""
    here = sampler.pixels(lon, lat)
    # A pixel with a presence is no place without one, except among random places, which stand for the area.
    here = here if name == "land" else np.unique(here[~np.isin(here, used)])
    compared = sampler.values(here)
    return compared[np.isfinite(compared)]


def _is_probability(
    sampler: MapSampler, options: EvaluateOptions, values: Mapping[str, Floats], notes: list[str]
) -> bool:
    """Whether the values are probabilities of presence, as asked for or as the map says."""
    asked = options.probability
    if not (sampler.quantity.lower().startswith("probability") if asked is None else asked):
        return False
    if min(one.min() for one in values.values()) >= 0 and max(one.max() for one in values.values()) <= 1:
        return True
    notes.append("The map has values outside 0 to 1, so they were not taken for probabilities.")
    return False


def _comparisons(
    sampler: MapSampler, records: Records, options: EvaluateOptions
) -> Iterator[tuple[str, npt.ArrayLike, npt.ArrayLike]]:
    lon, lat = records.lon[records.present], records.lat[records.present]
    yield ("land", *random_places_in(lon, lat, options, sampler.bounds, sampler))
    if options.group is not None:
        x, y = (np.asarray(values, float) for values in options.group)
        reached = near(Positions(x, y), Positions(lon, lat), options.within_km)
        yield "group", x[reached], y[reached]
    if (~records.present).any():
        yield ("absences", records.lon[~records.present], records.lat[~records.present])


def random_places_in(
    lon: npt.ArrayLike,
    lat: npt.ArrayLike,
    options: EvaluateOptions | None = None,
    bounds: tuple[float, float, float, float] = (-180.0, -90.0, 180.0, 90.0),
    sampler: MapSampler | None = None,
) -> tuple[Floats, Floats]:
    """Random places within reach of presences, each standing for the same area: (lon, lat), each (n,) degrees.

    Parameters
    ----------
    lon, lat : of the presences, degrees, shape (k,)
    options : number, reach, surface and seed
    bounds : (west, south, east, north) in degrees; west > east crosses 180 degrees
    sampler : a map on which the places have to have a value

    Returns
    -------
    As many as asked for, or fewer where little of the box is within reach.
    """
    options = options or EvaluateOptions()
    seen = Positions(np.asarray(lon, float), np.asarray(lat, float))
    try:
        found = random_places(
            seen,
            options.places,
            options.within_km,
            mask=options.surface,
            seed=options.seed,
            bounds=bounds,
            known=None if sampler is None else lambda at: np.isfinite(sampler.values(sampler.pixels(at.lon, at.lat))),
        )
    except RecordsError:
        return np.empty(0), np.empty(0)
    return found.lon, found.lat


@dataclass(frozen=True)
class Places:
    """Presences and all places they are compared with, of n places, in any order."""

    lon: Floats
    """Degrees, shape (n,)."""
    lat: Floats
    kind: npt.NDArray[np.str_]
    """"presence" or a key of CONTRASTS, shape (n,)."""
    weight: Floats | None = None
    """What each place stands for among those of its kind, shape (n,)."""

    def __post_init__(self) -> None:
        sizes = {len(self.lon), len(self.lat), len(self.kind)} | (
            {len(self.weight)} if self.weight is not None else set()
        )
        unknown = set(np.unique(self.kind).tolist()) - {PRESENCE, *CONTRASTS}
        if len(sizes) > 1 or unknown:
            raise ValueError(f"places of lengths {sorted(sizes)} and kinds {sorted(unknown)} are not usable")

    @property
    def present(self) -> npt.NDArray[np.bool_]:
        """True for presences, shape (n,)."""
        return self.kind == PRESENCE

    @property
    def contrasts(self) -> tuple[str, ...]:
        """The kinds of comparison places there are."""
        return tuple(name for name in CONTRASTS if (self.kind == name).any())


@dataclass(frozen=True)
class Result:
    """The measures of one method in the folds of one scheme, against one kind of places."""

    method: str
    scheme: str
    """Name of the folds, such as "blocks"."""
    contrast: str
    folds: tuple[Scores, ...]
    """Measures in each fold, from places that were not trained on."""
    pooled: Scores
    """Measures of the scores of all folds together."""

    def mean(self, name: str) -> float | None:
        """Mean of a measure over the folds in which it applies; of those in `POOLED` the value of all folds together.

        None where a pooled measure has fewer than `FEWEST_POOLED` presences.
        """
        if name in POOLED:
            return getattr(self.pooled, name) if self.pooled.presences >= FEWEST_POOLED else None
        values = self._values(name)
        return float(np.mean(values)) if values else None

    def standard_error(self, name: str) -> float | None:
        """Standard error of that mean; None with fewer than two folds, and of a pooled measure."""
        values = [] if name in POOLED else self._values(name)
        return float(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else None

    def _values(self, name: str) -> list[float]:
        return [value for scores in self.folds if (value := getattr(scores, name)) is not None]

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "method": self.method,
            "scheme": self.scheme,
            "contrast": self.contrast,
            "mean": {name: self.mean(name) for name in MEASURES},
            "standard_error": {name: self.standard_error(name) for name in MEASURES},
            "pooled": self.pooled.to_dict(),
            "folds": [scores.to_dict() for scores in self.folds],
        }


@dataclass(frozen=True)
class CrossValidation:
    """Measures of several methods in the same folds."""

    places: Places
    folds: Mapping[str, Folds]
    predictions: Mapping[tuple[str, str], Floats]
    """Score of every place when it was not trained on, by (method, scheme); NaN where it was never scored."""
    results: tuple[Result, ...]

    def result(self, method: str, scheme: str, contrast: str) -> Result:
        """One of the results. Raises KeyError."""
        for one in self.results:
            if (one.method, one.scheme, one.contrast) == (method, scheme, contrast):
                return one
        raise KeyError((method, scheme, contrast))

    @property
    def methods(self) -> tuple[str, ...]:
        """Names of the methods, the one of interest first."""
        return tuple(dict.fromkeys(one.method for one in self.results))

    def to_dict(self) -> dict[str, Any]:
        """As JSON values, without the single places."""
        return {
            "folds": {
                name: {
                    "kind": folds.kind,
                    "count": folds.count,
                    "block_km": folds.block_km,
                    "range_of_autocorrelation_km": folds.range_km,
                    "blocks_smaller_than_the_range": folds.limited,
                    "description": folds.describe(),
                }
                for name, folds in self.folds.items()
            },
            "results": [one.to_dict() for one in self.results],
        }


def cross_validate(
    places: Places,
    methods: Mapping[str, Fitter],
    folds: Mapping[str, Folds],
    *,
    probability: Collection[str] = (),
) -> CrossValidation:
    """Fit and test methods in the same folds.

    Parameters
    ----------
    places : presences and the places they are compared with, n in all
    methods : by name, the one of interest first and then its baselines; a function of the indices (into `places`)
        to train on that returns a function of the indices to score
    folds : divisions of the n places by name, such as blocks and random
    probability : names of methods whose scores are probabilities of presence

    Returns
    -------
    CrossValidation. In a fold without presences or comparison places measures are None, and so are those of a
    method that gave a score that is not finite.
    """
    for scheme, division in folds.items():
        if division.fold.shape != places.lon.shape:
            raise ValueError(f"folds {scheme!r} of {division.fold.size} places; there are {places.lon.size}")
    predictions = {
        (method, scheme): np.full(places.lon.size, np.nan) for scheme, method in itertools.product(folds, methods)
    }

    def fit_and_score(job: tuple[str, str, Indices, Indices]) -> None:
        method, scheme, train, test = job
        predictions[method, scheme][test] = np.asarray(methods[method](train)(test), float)

    jobs = [
        (method, scheme, train, test)
        for method, scheme in predictions
        for train, test in folds[scheme]
        if places.present[train].any()
    ]
    with one_thread(), ThreadPoolExecutor(processors()) as pool:
        list(pool.map(fit_and_score, jobs))  # raises what a job raised
    results = (
        _results(places, folds[scheme], scheme, method, predicted, method in probability)
        for (method, scheme), predicted in predictions.items()
    )
    return CrossValidation(places, dict(folds), predictions, tuple(itertools.chain(*results)))


def _results(
    places: Places, division: Folds, scheme: str, method: str, predicted: Floats, probability: bool
) -> Iterator[Result]:
    def scores(contrast: str, index: Indices) -> Scores:
        presence, others = index[places.present[index]], index[places.kind[index] == contrast]
        weights = None if places.weight is None else places.weight[others]
        true = probability and contrast == "absences"
        return measure(predicted[presence], predicted[others], weights, probability=true)

    for contrast in places.contrasts:
        tested = tuple(scores(contrast, np.flatnonzero(division.fold == one)) for one in range(division.count))
        everything = np.flatnonzero(np.isfinite(predicted))
        yield Result(method, scheme, contrast, tested, scores(contrast, everything))
