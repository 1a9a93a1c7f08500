"""Fit a species to its records."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from sdm.engine.encode import one_thread
from sdm.errors import RecordsError, RequestError, SpeciesNameError
from sdm.layers.landmask import LandMask
from sdm.models.protocol import Model
from sdm.names import Resolution
from sdm.records.background import Positions, choose_kind, group_places, random_places
from sdm.records.calibration import PROBABILITY, Calibration, relative, with_prevalence
from sdm.records.features import Covariates, Features, FeatureSource, ModelFeatures
from sdm.records.fitparts import FitInfo
from sdm.records.fitted import Fitted, contributions, covariate_space
from sdm.records.forest import TREES
from sdm.records.gate import Evidence, leave_out, neighbour_folds
from sdm.records.likelihood import Solution
from sdm.records.members import Ensemble, Maxent, Ridge, Trees
from sdm.records.prior import SpeciesPrior, species_prior
from sdm.records.table import Records
from sdm.records.thresholds import threshold
from sdm.records.training import RidgeDesign, Training, grow_maxent, grow_trees, ridge_design
from sdm.records.trust import LEVELS, Reference
from sdm.request.ranges import FROM_RECORDS
from sdm.request.records import FitOptions

JOINED_FROM = 30
"""Presences from which a forest joins the ridge."""
FOREST_SHARE = 0.5
"""Weight of its rank, that of the ridge being 1."""
COVARIATE_STRENGTH = 0.3
"""Strength of the ridge on the user's own covariates, see `ridge_design`."""
GATE_PLACES = 4000
"""Background places that fits without some of the presences are made with, at most."""
MANY = 80
"""Presences from which the ridge on covariates has half the weight of Maxent, which is then the richer model."""
NOWHERE = Positions(np.empty(0), np.empty(0))


def fit_source(
    records: Records,
    source: FeatureSource,
    prior: SpeciesPrior | None,
    group: Positions | None,
    options: FitOptions,
    mask: str | None = None,
) -> Fitted:
    """Fit a species to its records.

    Parameters
    ----------
    records : of one species, cleaned.
    group : records of other species of its group, for a target-group background.
    options : of the fit.
    source : of the features of places.
    prior : of the species; None without a model.
    mask : where random background places lie, "land", "sea" or "none"; by default where most of the records are.

    Raises
    ------
    RecordsError : there is no presence that the layers cover, or nothing to compare presences with.
    """
    training, info = prepare(records, source, group, options, mask)
    return fit_prepared(training, info, source, prior, options)


def prepare(
    records: Records,
    source: FeatureSource,
    group: Positions | None,
    options: FitOptions,
    mask: str | None = None,
) -> tuple[Training, FitInfo]:
    """The places of a fit, read once for the fit and for its validation, and what is known of the fit already.

    Parameters are those of `fit_source`.
    """
    sites = _sites(records, options, mask).with_background(group, options)
    training, dropped = sites.read(source)
    info = FitInfo(
        species=records.species,
        features="model" if isinstance(source, ModelFeatures) else "covariates",
        layers=source.layers,
        mask=sites.mask,
        background=sites.kind,
        background_rule=sites.rule,
        counts={
            "presences_given": int(np.count_nonzero(records.present)),
            "presences": training.presences,
            "absences": int((~training.presence).sum()) if training.absences else 0,
            "random": int(training.random.sum()),
            "group": int(training.group.sum()),
            "not_covered": dropped,
        },
        extent=_extent(records),
        citations=tuple(records.audit.citations.texts) + tuple(records.audit.citations.doi),
        licences=dict(records.audit.citations.licences),
        seed=options.seed,
    )
    if isinstance(source, ModelFeatures):
        info = replace(
            info,
            model=source.model.name,
            model_digest=source.model.digest,
            modalities=source.modalities,
            month=source.sampling.month,
        )
    return training, info


def fit_prepared(
    training: Training, info: FitInfo, source: FeatureSource, prior: SpeciesPrior | None, options: FitOptions
) -> Fitted:
    """Fit to what `prepare` returned."""
    space = None
    if isinstance(source, ModelFeatures):
        space = source.environment_embedding(training.features.environment)
    return fit_training(training, source.covariates, prior, options, info=info, space=space)


def fit_training(
    training: Training,
    covariates: Covariates,
    prior: SpeciesPrior | None,
    options: FitOptions,
    *,
    info: FitInfo,
    space: np.ndarray | None = None,
) -> Fitted:
    """The fit itself: arrays in, arrays out.

    Parameters
    ----------
    training : the places.
    covariates : the columns of their environment.
    prior : of the species; None without a model.
    options : of the fit.
    info : what is known of the fit already.
    space : (R, K) environment embeddings of the places; None without a model.
    """
    with one_thread():
        core = fit_core(training, covariates, prior, options)
    ensemble, evidence = core.ensemble, core.evidence
    if prior is not None:
        info = replace(info, known=prior.known, taxon=prior.taxon)
    info = replace(
        info,
        notes=(*info.notes, *core.notes),
        method=_method(ensemble, prior, core.accepted),
        zero_shot=not core.accepted,
        gate="" if evidence is None else evidence.sentence(),
    )
    places = training.features.embedding, training.features.environment
    quantiles = np.quantile(places[1], np.linspace(0.0, 1.0, LEVELS), axis=0).astype(np.float32)
    if space is None:
        space = covariate_space(places[1], quantiles)
    reference = Reference.of(space, places[1], training.presence, options.seed)
    info = replace(info, thresholds=_thresholds(training, core.values(training.features)))
    weight = training.weights()
    parts = contributions(ensemble, covariates, {}, places[1])
    typical = {name: float(np.average(values, weights=weight)) for name, values in parts.items()}
    return Fitted(info, covariates, ensemble, core.calibration, reference, typical)


@dataclass(frozen=True)
class Core:
    """A fit that gives values, without what says how far to trust them."""

    ensemble: Ensemble
    calibration: Calibration
    evidence: Evidence | None
    notes: tuple[str, ...]

    @property
    def accepted(self) -> bool:
        """Whether the fit is used, and not the zero-shot map."""
        return self.evidence is None or self.evidence.accepted

    def values(self, features: Features) -> np.ndarray:
        """Values of 0 to 1 of N places: (N,) float32."""
        return self.calibration.values(self.ensemble.logit(features.embedding, features.environment))


def fit_core(
    training: Training,
    covariates: Covariates,
    prior: SpeciesPrior | None,
    options: FitOptions,
    *,
    offset_only: bool = False,
    trees: int = TREES,
) -> Core:
    """The part of `fit_training` that is repeated in every fold of a cross-validation.

    Parameters
    ----------
    training, covariates, prior, options : as of `fit_training`.
    offset_only : keep the zero-shot vector and correct it by the environment alone, as the gate may choose.
    trees : of a forest.
    """
    notes: tuple[str, ...] = ()
    evidence = None
    if prior is None:
        columns, notes = informative(training, covariates)
        ensemble = _covariate_ensemble(training, covariates, columns, options, trees)
    elif offset_only:
        assert prior.zero_shot is not None
        ridge, _ = ridge_design(training, 10.0, prior.zero_shot, None).fit(options.seed, options.refits)
        ensemble = Ensemble((ridge,), np.ones(1, np.float32))
    else:
        ensemble, evidence = _model_ensemble(training, covariates, prior, options, trees)
    logit = ensemble.logit(training.features.embedding, training.features.environment)
    calibration = _calibration(training, logit, prior, options, evidence is None or evidence.accepted)
    return Core(ensemble, calibration, evidence, notes)


def _thresholds(training: Training, values: np.ndarray) -> dict[str, float]:
    """The values that the rules of thresholds give for the places of a fit."""
    other = values[~training.presence] if training.absences or not training.random.any() else values[training.random]
    presence = values[training.presence]
    return {rule: threshold(rule, presence, other).value for rule in FROM_RECORDS}


def informative(training: Training, covariates: Covariates) -> tuple[np.ndarray, tuple[str, ...]]:
    """Numbers of the columns worth fitting to, and a sentence for each that is constant or repeats another."""
    values = training.features.environment
    kept: list[int] = []
    notes = []
    for column, name in enumerate(covariates.names):
        x = values[:, column]
        if float(x.max() - x.min()) <= 1e-6 * max(1.0, float(np.abs(x).max())):
            notes.append(f"covariate {name!r} has the same value at all places of the fit and is left out.")
            continue
        limit = 1e-5 * float(x.max() - x.min())
        twin = next((k for k in kept if float(np.abs(values[:, k] - x).max()) <= limit), None)
        if twin is not None:
            notes.append(f"covariate {name!r} equals {covariates.names[twin]!r} and is left out.")
            continue
        kept.append(column)
    if not kept:
        raise RecordsError("no covariate varies between the places of the fit.")
    return np.array(kept, dtype=np.int32), tuple(notes)


def _model_ensemble(
    training: Training, covariates: Covariates, prior: SpeciesPrior, options: FitOptions, trees: int
) -> tuple[Ensemble, Evidence | None]:
    """The ridge with the prior of the species, a forest from some number of records on; or the zero-shot map."""
    strength = 5.0 if prior.known and training.presences >= 10 else 10.0
    designs = [ridge_design(training, strength, prior.mean, prior.factor)]
    gated = prior.zero_shot is not None and options.gate and training.presences >= 2 and not training.absences
    if gated and training.presences >= JOINED_FROM:
        # The species' own vector unchanged, and a correction by the environment alone. With fewer records the evidence
        # for a second choice is too weak: it let more maps through that were worse than the zero-shot one.
        assert prior.zero_shot is not None
        designs.append(ridge_design(training, 10.0, prior.zero_shot, None))
    evidence = None
    for design in designs:
        ridge, solution = design.fit(options.seed, options.refits)
        if not gated:
            break
        evidence = _evidence(training, design, solution, prior, options.seed)
        if evidence.accepted:
            break
    if evidence is not None and not evidence.accepted:
        return Ensemble((_zero_shot(ridge, prior),), np.ones(1, np.float32)), evidence
    if design is not designs[0]:
        return Ensemble((ridge,), np.ones(1, np.float32)), evidence
    members: tuple[Ridge | Trees, ...] = (ridge,)
    weights: tuple[float, ...] = (1.0,)
    if training.presences >= JOINED_FROM:
        columns = np.array([k for k, g in enumerate(covariates.groups) if g != "surroundings"], dtype=np.int32)
        members = (ridge, grow_trees(training, columns, prior, seed=options.seed, trees=trees))
        weights = (1.0, FOREST_SHARE)
    return _joined(training, members, weights), evidence


def _covariate_ensemble(
    training: Training, covariates: Covariates, columns: np.ndarray, options: FitOptions, trees: int
) -> Ensemble:
    """Maxent, a forest and a ridge on the user's covariates alone.

    Half and half, Maxent is compared with the target group alone: that was best on surveys of the same region, and the
    two others keep what is learned from the land.
    """
    categorical = np.array(covariates.categorical, dtype=bool)
    none = np.empty(0, dtype=np.float32)
    kind = "group" if training.group.any() else "all"
    maxent = grow_maxent(training, columns, categorical, kind, seed=options.seed, refits=options.refits)
    forest = grow_trees(training, columns, None, seed=options.seed, trees=trees)
    ridge, _ = ridge_design(training, COVARIATE_STRENGTH, none, None, barred=categorical).fit()
    return _joined(training, (maxent, forest, ridge), (1.0, 1.0, 1.0 if training.presences < MANY else 0.5))


def _joined(training: Training, members: tuple[Ridge | Maxent | Trees, ...], weights: tuple[float, ...]) -> Ensemble:
    places = training.features.embedding, training.features.environment
    background = np.ones(len(training.presence)) if training.absences else training.weights()
    return Ensemble.joined(members, weights, places, background)


def _zero_shot(ridge: Ridge, prior: SpeciesPrior) -> Ridge:
    """The zero-shot logit, in the form of a ridge."""
    assert prior.zero_shot is not None
    return Ridge(
        prior.zero_shot,
        ridge.center,
        ridge.scale,
        np.zeros_like(ridge.weight),
        np.array([prior.bias], dtype=np.float32),
        np.empty((0, prior.zero_shot.size), dtype=np.float32),
        np.empty((0, ridge.weight.size), dtype=np.float32),
        np.empty(0, dtype=np.float32),
    )


def _evidence(training: Training, design: RidgeDesign, solution: Solution, prior: SpeciesPrior, seed: int) -> Evidence:
    """What left-out records say of the fit and the zero-shot map."""
    assert prior.zero_shot is not None
    design, kept = design.thinned(GATE_PLACES, seed)
    presence = training.presence[kept]
    masks = {n: m[kept] for n, m in (("land", training.random), ("group", training.group)) if m[kept].any()}
    fold = neighbour_folds(training.lon[kept], training.lat[kept], presence, seed=seed)

    def scores(left_out: np.ndarray) -> np.ndarray:
        return design.scores(design.without(solution, np.flatnonzero(left_out)))

    return leave_out(fold, presence, masks, scores, training.features.embedding[kept] @ prior.zero_shot)


def _calibration(
    training: Training, logit: np.ndarray, prior: SpeciesPrior | None, options: FitOptions, accepted: bool
) -> Calibration:
    area = training.random if training.random.any() else training.group
    if training.absences:
        share = float(training.presence.mean())
        if options.prevalence is None:
            return Calibration(PROBABILITY, 0.0, share, "the share of presences among the surveyed places")
        return with_prevalence(logit, options.prevalence, "given", np.ones(logit.size))
    if options.prevalence is not None:
        return with_prevalence(logit[area], options.prevalence, "given, over the background of the fit")
    if prior is not None and prior.zero_shot is not None:
        zero = training.features.embedding[area] @ prior.zero_shot + prior.bias
        mean = float((1.0 / (1.0 + np.exp(-zero))).mean())
        source = "the mean of the zero-shot map over the background of the fit"
        # A kept zero-shot map has its own intercept.
        return with_prevalence(logit[area], mean, source) if accepted else Calibration(PROBABILITY, 0.0, mean, source)
    return relative(logit, training.weights(), "no prevalence is known")


@dataclass(frozen=True)
class _Sites:
    """The positions of a fit, before anything is read of them."""

    presences: Positions
    absences: Positions
    mask: str
    random: Positions = NOWHERE
    group: Positions = NOWHERE
    kind: str = ""
    rule: str = ""

    def with_background(self, group: Positions | None, options: FitOptions) -> _Sites:
        """The same with a background."""
        near = NOWHERE
        if group is not None and len(group) and options.background_kind != "random":
            near = group_places(
                self.presences,
                group,
                options.background_places,
                options.reach_km,
                thin=options.thin or 0.01,
                seed=options.seed,
            )
        kind, rule = choose_kind(options.background_kind, len(self.presences), len(self.absences), len(near))
        random = NOWHERE
        if kind in ("random", "mixed"):
            random = random_places(
                self.presences, options.background_places, options.reach_km, mask=self.mask, seed=options.seed
            )
        return replace(self, random=random, group=near if kind != "random" else NOWHERE, kind=kind, rule=rule)

    def read(self, source: FeatureSource) -> tuple[Training, int]:
        """What is known of the positions, and how many records the layers do not cover."""
        absent = self.absences if self.kind == "absences" else NOWHERE
        compared = NOWHERE if self.kind == "absences" else self.random
        beside = NOWHERE if self.kind == "absences" else self.group
        parts = (self.presences, absent, compared, beside)
        lon, lat = (np.concatenate([getattr(p, name) for p in parts]) for name in ("lon", "lat"))
        origin = np.repeat(np.arange(4), [len(p) for p in parts])
        features = source.read(lon, lat)
        known = features.known
        dropped = int(np.count_nonzero(~known & (origin < 2)))
        origin, lon, lat = origin[known], lon[known], lat[known]
        training = Training(
            features.select(known), origin == 0, origin == 2, origin == 3, lon, lat, self.kind == "absences"
        )
        if training.presences == 0:
            raise RecordsError("the layers cover no place of a presence; give records inside them.")
        if training.presences == len(origin):
            raise RecordsError("the layers cover no place to compare the presences with.")
        return training, dropped


def _sites(records: Records, options: FitOptions, mask: str | None) -> _Sites:
    if not np.any(records.present):
        raise RecordsError("there is no presence among the records; a fit needs at least one, and better ten.")
    kept = records.thinned(options.thin) if options.thin else records
    seen, absent = (Positions(part.lon, part.lat) for part in (kept.presences, kept.absences))
    if mask is None:
        on_land = LandMask().keep("land", seen.lon, seen.lat)
        # Points on a coast fall into the sea of a coarse mask: a third of them at sea is no sea species yet.
        mask = "land" if on_land.mean() > 0.5 else "sea"
    return _Sites(seen, absent, mask)


def prior_for(model: Model, source: ModelFeatures, name: str, options: FitOptions) -> SpeciesPrior:
    """What a model assumes of a species before any record. Raises RequestError for a model without calibration."""
    if not model.calibrated:
        raise RequestError(
            f"model {model.name!r} has no calibration, which the prior of a fit is made of; choose a bundled model."
        )
    resolution: Resolution | None = None
    if name and options.prior != "unknown":
        try:
            resolution = model.resolve(name)
        except SpeciesNameError:
            resolution = None
    prior = species_prior(model, source.modalities, resolution)
    if options.prior == "known" and not prior.known:
        raise RequestError(f"species {name!r} is not one that model {model.name!r} knows; leave --prior out.")
    return prior


def _extent(records: Records) -> tuple[float, float, float, float]:
    """(west, south, east, north) of the presences; across 180 degrees where that box is narrower."""
    lon, lat = records.lon[records.present], records.lat[records.present]
    east = np.sort(lon)
    gaps = np.diff(np.append(east, east[0] + 360.0))
    after = int(np.argmax(gaps))
    west, right = (east[0], east[-1]) if after == east.size - 1 else (east[after + 1], east[after])
    return float(west), float(lat.min()), float(right), float(lat.max())


_WORDS = {Ridge: "a ridge on embedding and environment", Maxent: "Maxent", Trees: "a down-sampled forest"}


def _method(ensemble: Ensemble, prior: SpeciesPrior | None, accepted: bool) -> str:
    """The members and the prior, as one clause."""
    if not accepted:
        return "the zero-shot map of the model"
    words = dict(_WORDS) if prior is not None else _WORDS | {Ridge: "a ridge on the covariates"}
    names = [words[type(m)] for m in ensemble.members]
    joined = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}, joined by ranks"
    if prior is None:
        return joined
    first = ensemble.members[0]
    if isinstance(first, Ridge) and prior.zero_shot is not None and np.array_equal(first.vector, prior.zero_shot):
        return f"the zero-shot logit of {prior.taxon} as offset, corrected by a ridge on the environment"
    start = f"the vector of {prior.taxon} and the mean of all species" if prior.taxon else "the mean of all species"
    return f"{joined}; the prior of the vector is {start}"
