"""What a fit is worth at records that it has not seen: the same fit, and simple methods, in the folds of a division.

Features of the places are read once, for the fit; only places of a comparison that the fit does not use are read here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from sdm.errors import RecordsError, RequestError
from sdm.models.layerspec import StandardisedVariables, Variable
from sdm.records.background import Positions, group_places, random_places
from sdm.records.baselines import Fitter, Indices, Scores, distance_to_records, elapid_maxent, fixed_scores, has_elapid
from sdm.records.calibration import PROBABILITY
from sdm.records.evaluate import PRESENCE, CrossValidation, Places, cross_validate
from sdm.records.explain import Importance, Response, importance, responses
from sdm.records.features import Features, FeatureSource, ModelFeatures, joined
from sdm.records.fit import Core, fit_core, informative
from sdm.records.fitted import Fitted
from sdm.records.folds import standard_folds
from sdm.records.members import Member, Ridge
from sdm.records.prior import SpeciesPrior
from sdm.records.table import Records
from sdm.records.thresholds import Threshold, threshold
from sdm.records.training import Training, grow_maxent, grow_trees
from sdm.records.variables import in_units, variable_name
from sdm.request.ranges import FROM_RECORDS
from sdm.request.records import FitOptions

METHOD = "This map"
ZERO_SHOT = "Zero-shot map"
NOT_USED = "Fit (not used)"
"""Where the gate kept the zero-shot map."""
MOST_COMPARED = 2000
"""Places of each kind of background that folds are made with: the presences limit what can be known, not these."""
TEST_PLACES = 1000
"""Places of a comparison that the fit itself does not make."""
MOST_EXPLAINED = 1000
"""Comparison places that importance is measured at."""
FOLD_TREES = 50
"""Trees of a forest in a fold, half as many as of the fit: what is measured differs less than between two seeds."""
CURVES = 12
"""Variables with a response curve."""
EMBEDDING = "Embedding of the place"
"""What importance calls the embedding, all of it."""
_GROUP_NAMES = {
    "climate": "Climate",
    "terrain": "Terrain",
    "land cover": "Land cover",
    "surroundings": "Surroundings",
}
"""Groups of a model's variables, as importance names them."""
_RAW = ("climate", "terrain")
"""Groups of a model's variables that Maxent and forest are given, as analysts do."""


@dataclass(frozen=True)
class Case:
    """A fit with all that it was made from."""

    records: Records
    fitted: Fitted
    training: Training
    """The places of the fit, of `sdm.records.fit.prepare`."""
    source: FeatureSource
    prior: SpeciesPrior | None
    options: FitOptions
    group: Positions | None = None
    """Records of other species of the group."""

    def light(self) -> Case:
        """The same without the places of the fit: all that its files and its report need."""
        return replace(self, training=Training.empty())

    @property
    def offset_only(self) -> bool:
        """Whether the gate chose the zero-shot vector with a correction by the environment."""
        first, zero_shot = self.fitted.ensemble.members[0], None if self.prior is None else self.prior.zero_shot
        if zero_shot is None or not isinstance(first, Ridge) or self.fitted.info.zero_shot:
            return False
        return bool(np.array_equal(first.vector, zero_shot))

    @cached_property
    def columns(self) -> np.ndarray:
        """Columns of the environment that the baselines are given."""
        groups = np.array(self.source.covariates.groups)
        if self.prior is None:
            return informative(self.training, self.source.covariates)[0]
        chosen = np.isin(groups, _RAW)
        return np.flatnonzero(chosen if chosen.any() else np.ones(groups.size, bool)).astype(np.int32)


@dataclass(frozen=True)
class Pool:
    """The places of a cross-validation: first those that may be trained on, then those only tested on.

    Parameters
    ----------
    training : the first rows.
    features : of all places.
    places : all places, by what they are.
    """

    training: Training
    features: Features
    places: Places


def gather(case: Case) -> Pool:
    """The places of the fit, at most `MOST_COMPARED` of each background, and those of comparisons it does not make."""
    training = case.training.select(_sampled(case.training, case.options.seed))
    kind = np.full(len(training.presence), "absences", dtype="<U8")
    for name, mask in ((PRESENCE, training.presence), ("land", training.random), ("group", training.group)):
        kind[mask] = name
    parts, kinds, lon, lat = [training.features], [kind], [training.lon], [training.lat]
    for name, positions in _missing(case).items():
        features = case.source.read(positions.lon, positions.lat)
        known = features.known
        parts.append(features.select(known))
        kinds.append(np.full(int(known.sum()), name, dtype="<U8"))
        lon.append(positions.lon[known])
        lat.append(positions.lat[known])
    return Pool(training, joined(parts), Places(np.concatenate(lon), np.concatenate(lat), np.concatenate(kinds)))


def _sampled(training: Training, seed: int) -> np.ndarray:
    """Numbers of the places to cross-validate with, ascending."""
    random = np.random.default_rng(seed)
    kept = [np.flatnonzero(~training.random & ~training.group)]
    kept += [random.permutation(np.flatnonzero(mask))[:MOST_COMPARED] for mask in (training.random, training.group)]
    return np.sort(np.concatenate(kept))


def _missing(case: Case) -> dict[str, Positions]:
    """Places to compare with that the fit was not made with, by their kind."""
    training, options = case.training, case.options
    seen = Positions(training.lon[training.presence], training.lat[training.presence])
    found: dict[str, Positions] = {}
    if not training.random.any():
        try:
            mask = case.fitted.info.mask
            found["land"] = random_places(seen, TEST_PLACES, options.reach_km, mask=mask, seed=options.seed)
        except RecordsError:  # no land within reach: there is no such comparison
            pass
    if not training.group.any() and case.group is not None and len(case.group):
        near = group_places(
            seen, case.group, TEST_PLACES, options.reach_km, thin=options.thin or 0.01, seed=options.seed
        )
        if len(near):
            found["group"] = near
    return found


@dataclass
class FoldFits:
    """The fitting method as a `Fitter`; it keeps its fits, so that variables can be shuffled afterwards."""

    case: Case
    pool: Pool
    kept: dict[bytes, Core | None] = field(default_factory=dict)
    """By the indices trained on; None where a fold cannot be fitted."""

    def core(self, train: Indices) -> Core | None:
        """The fit to some of the places."""
        key = train.tobytes()
        if key not in self.kept:
            self.kept[key] = self._fit(train)
        return self.kept[key]

    def _fit(self, train: Indices) -> Core | None:
        case, training = self.case, self.pool.training
        # The gate decided once, with all records; to repeat it in every fold takes five times as long.
        options = replace(case.options, refits=0, gate=False)
        part = training.select(train[train < len(training.presence)])
        covariates, prior = case.source.covariates, case.prior
        try:
            return fit_core(part, covariates, prior, options, offset_only=case.offset_only, trees=FOLD_TREES)
        except (RecordsError, RequestError, np.linalg.LinAlgError):
            return None

    def __call__(self, train: Indices) -> Callable[[Indices], Scores]:
        """See `sdm.records.baselines.Fitter`."""
        core = self.core(train)
        if core is None:
            return lambda test: np.full(test.size, np.nan)
        return lambda test: core.values(self.pool.features.select(test)).astype(float)


@dataclass(frozen=True)
class Validated:
    """A cross-validation with the places and the fits behind it."""

    pool: Pool
    result: CrossValidation | None
    """None where the records do not allow any."""
    fits: FoldFits


def cross_validate_fit(case: Case, *, elapid: bool = False) -> Validated:
    """Cross-validate a fit and simple methods in the same folds.

    Parameters
    ----------
    case : the fit.
    elapid : also elapid's Maxent at its defaults, where it is installed: one to thirty seconds a fold.

    Returns
    -------
    Validated. From 10 positions on there are spatial blocks and random folds, below that each location is left out
    once; without a result where all presences are one location. The calibration is repeated in each fold;
    whether the fit or the zero-shot map is used was decided once, with all records.
    """
    pool = gather(case)
    fits = FoldFits(case, pool)
    places, covariates = pool.places, case.source.covariates
    numeric = ~np.array(covariates.categorical, dtype=bool)
    environment = pool.features.environment
    values = environment[:, numeric] if numeric.any() else environment
    folds = standard_folds(places.lon, places.lat, places.present, values, case.options.seed)
    if not folds:
        return Validated(pool, None, fits)
    zero_shot = _zero_shot(case, pool)
    methods: dict[str, Fitter]
    if zero_shot is None:
        methods = {METHOD: fits}
    elif case.fitted.info.zero_shot:
        methods = {METHOD: fixed_scores(zero_shot), NOT_USED: fits}
    else:
        methods = {METHOD: fits, ZERO_SHOT: fixed_scores(zero_shot)}
    methods |= _baselines(case, pool, elapid)
    probability = [METHOD] if case.fitted.meaning == PROBABILITY else []
    return Validated(pool, cross_validate(places, methods, folds, probability=probability), fits)


def _zero_shot(case: Case, pool: Pool) -> np.ndarray | None:
    """The zero-shot map's values at all places; None where the species is not known."""
    if case.prior is None or case.prior.zero_shot is None:
        return None
    logit = pool.features.embedding @ case.prior.zero_shot + case.prior.bias
    return 1.0 / (1.0 + np.exp(-logit.astype(float)))


def _baselines(case: Case, pool: Pool, elapid: bool) -> dict[str, Fitter]:
    """What analysts would use otherwise, on the same places and, with a model, on climate and terrain alone."""
    columns, seed = case.columns, case.options.seed
    categorical = np.array(case.source.covariates.categorical, dtype=bool)
    methods: dict[str, Fitter] = {}
    if elapid and has_elapid():
        plain = columns[~categorical[columns]]
        size = len(pool.training.presence)
        maxent = elapid_maxent(pool.features.environment[:, plain], pool.places.present)
        methods["Maxent (elapid)"] = lambda train: maxent(train[train < size])
    methods["Maxent"] = _grown(pool, lambda part: grow_maxent(part, columns, categorical, seed=seed))
    methods["Random forest"] = _grown(pool, lambda part: grow_trees(part, columns, None, seed=seed, trees=FOLD_TREES))
    methods["Distance to records"] = distance_to_records(pool.places.lon, pool.places.lat, pool.places.present)
    return methods


def _grown(pool: Pool, grow: Callable[[Training], Member]) -> Fitter:
    size = len(pool.training.presence)

    def fit(train: Indices) -> Callable[[Indices], Scores]:
        try:
            member = grow(pool.training.select(train[train < size]))
        except (RecordsError, RequestError, np.linalg.LinAlgError):
            return lambda test: np.full(test.size, np.nan)
        embedding, environment = pool.features.embedding, pool.features.environment
        return lambda test: member.score(embedding[test], environment[test]).astype(float)

    return fit


def thresholds(case: Case, pool: Pool) -> tuple[Threshold, ...]:
    """The usual thresholds, from the values of the fit at its own places."""
    training, places = case.training, pool.places
    value = _values(case.fitted, training.features)
    absence = value[~training.presence] if training.absences else None
    background = value[training.random] if training.random.any() else value[training.group]
    if not background.size:
        land = places.kind == "land"
        background = _values(case.fitted, pool.features.select(land)) if land.any() else value[~training.presence]
    presence = value[training.presence]
    return tuple(threshold(rule, presence, background, absence=absence) for rule in FROM_RECORDS)


def importances(case: Case, validated: Validated) -> tuple[Importance, ...]:
    """How much the AUC of the folds' fits at left-out places falls when variables are shuffled; none without folds.

    With a model, variables are shuffled in their groups, and so is the embedding; where the zero-shot map was kept
    there is nothing to tell apart.
    """
    if case.fitted.info.zero_shot or validated.result is None:
        return ()
    places, rows = validated.pool.places, _explained(case, validated.pool)
    features = validated.pool.features.select(rows)
    width = features.embedding.shape[1]
    fits = [
        (validated.fits.core(train), np.flatnonzero(np.isin(rows, test)))
        for train, test in next(iter(validated.result.folds.values()))
    ]

    def predict(values: np.ndarray) -> np.ndarray:
        out = np.full(len(values), np.nan)
        for core, index in fits:
            if core is not None:
                out[index] = core.values(_split(values[index], width))
        return out

    table = np.hstack([features.embedding, features.environment])
    if not np.isfinite(predict(table)).all():
        return ()
    groups = _shuffled_together(case, width)
    return importance(predict, table, places.present[rows], groups, seed=case.options.seed)


def _explained(case: Case, pool: Pool) -> np.ndarray:
    """Numbers of the places that importance is measured at: presences, and one kind of others."""
    contrast = "absences" if case.training.absences else pool.places.contrasts[0]
    others = np.random.default_rng(case.options.seed).permutation(np.flatnonzero(pool.places.kind == contrast))
    return np.concatenate([np.flatnonzero(pool.places.present), others[:MOST_EXPLAINED]])


def _shuffled_together(case: Case, width: int) -> dict[str, list[int]]:
    """By name the columns, of a table of embeddings (N, width) and environments side by side, that are one variable."""
    covariates = case.source.covariates
    by = covariates.names if case.prior is None else [_GROUP_NAMES.get(one, one) for one in covariates.groups]
    groups = {name: [width + k for k, one in enumerate(by) if one == name] for name in dict.fromkeys(by)}
    return groups | ({EMBEDDING: list(range(width))} if width else {})


def response_curves(case: Case) -> tuple[Response, ...]:
    """Response curves of the variables that vary most with the value; none of classes or where zero-shot was kept.

    With a model the embedding stays as it is: a curve shows the correction of the map by a variable alone. Its
    variables have their full names, and are in the units of their layers; a user's own rasters are as they are.
    """
    if case.fitted.info.zero_shot:
        return ()
    training, covariates = case.training, case.source.covariates
    value = _values(case.fitted, training.features)
    wanted = [
        k
        for k, group in enumerate(covariates.groups)
        if group != "surroundings" and not covariates.categorical[k] and np.ptp(training.features.environment[:, k]) > 0
    ]
    strength = {k: abs(np.corrcoef(training.features.environment[:, k], value)[0, 1]) for k in wanted}
    chosen = sorted(wanted, key=lambda k: -np.nan_to_num(strength[k]))[:CURVES]
    width = training.features.embedding.shape[1]
    table = np.hstack([training.features.embedding, training.features.environment])
    curves = responses(
        lambda values: _values(case.fitted, _split(values, width)),
        table,
        training.presence,
        {covariates.names[k]: width + k for k in chosen},
        points=30,
        places=80,
        seed=case.options.seed,
    )
    variables = _variables(case.source)
    if not variables:
        return curves
    return tuple(_in_units(curve, variables[k]) for k, curve in zip(chosen, curves, strict=True))


def _variables(source: FeatureSource) -> tuple[Variable, ...]:
    """Declarations of the columns of the environment; none where they are the user's own rasters."""
    spec = source.model.layers["environment"] if isinstance(source, ModelFeatures) else None
    return spec.variables if isinstance(spec, StandardisedVariables) else ()


def _in_units(curve: Response, variable: Variable) -> Response:
    return replace(
        curve,
        name=variable_name(variable),
        x=in_units(variable, curve.x),
        presences=in_units(variable, curve.presences),
    )


def _values(fitted: Fitted, features: Features) -> np.ndarray:
    return fitted.values(features.embedding, features.environment).astype(float)


def _split(table: np.ndarray, width: int) -> Features:
    """Features from a table of embeddings (N, width) and environments side by side."""
    values = table.astype(np.float32)
    return Features(
        np.ascontiguousarray(values[:, :width]),
        np.ascontiguousarray(values[:, width:]),
        np.ones(len(values), dtype=bool),
    )
