"""The places of a fit with all that is known of them, and the members that can be fitted to them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from sdm.records.features import Features
from sdm.records.forest import TREES, fit_forest
from sdm.records.likelihood import Rows, Solution, fit_ridge, refit
from sdm.records.maxent import fit_maxent, refit_terms
from sdm.records.members import Maxent, Ridge, Trees, squared_features, tree_inputs
from sdm.records.prior import SpeciesPrior

PROJECTIONS = 16
"""Directions of the embedding that a forest sees."""


@dataclass(frozen=True)
class Training:
    """R places: presences, then what they are compared with.

    Parameters
    ----------
    features : of the places, all known.
    presence : (R,) bool.
    random, group : (R,) bool, background places of either kind; absences are in neither.
    lon, lat : (R,) degrees.
    absences : whether presences are compared with surveyed absences.
    """

    features: Features
    presence: np.ndarray
    random: np.ndarray
    group: np.ndarray
    lon: np.ndarray
    lat: np.ndarray
    absences: bool = False

    @property
    def presences(self) -> int:
        """Number of presences."""
        return int(self.presence.sum())

    @classmethod
    def empty(cls) -> Training:
        """No places."""
        none, nowhere = np.empty(0, dtype=bool), np.empty(0)
        nothing = np.empty((0, 0), dtype=np.float32)
        return cls(Features(nothing, nothing, none), none, none, none, nowhere, nowhere)

    def select(self, rows: np.ndarray) -> Training:
        """Some of the places, by a mask or by their numbers."""
        return Training(
            self.features.select(rows),
            self.presence[rows],
            self.random[rows],
            self.group[rows],
            self.lon[rows],
            self.lat[rows],
            self.absences,
        )

    def weights(self, kind: str = "all") -> np.ndarray:
        """Background weights (R,): of the random or the group places alone, or half of the weight on each.

        Presences count as background places too; absences are compared as they are.
        """
        if self.absences:
            return (~self.presence).astype(np.float64)
        parts = [m for name, m in (("random", self.random), ("group", self.group)) if kind in (name, "all") and m.any()]
        total = sum(int(m.sum()) for m in parts)
        out = self.presence.astype(np.float64)
        for mask in parts:
            out[mask] = total / len(parts) / mask.sum()
        return out

    def standard(self, categorical: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Center and scale (D,) of the environment over the background; 0 and 1 for categorical columns."""
        values = self.features.environment[self.weights() > 0]
        center, scale = values.mean(axis=0), values.std(axis=0)
        scale = np.where(scale > 1e-12, scale, 1.0)
        center[categorical], scale[categorical] = 0.0, 1.0
        return center.astype(np.float32), scale.astype(np.float32)


@dataclass(frozen=True)
class RidgeDesign:
    """The rows of a ridge, ready to be fitted to any of the presences.

    Parameters
    ----------
    rows : the design; its first columns are the environment and its squares.
    precision : of the columns.
    mean : (dim,) vector of the offset; `factor` (dim, K) of the other columns, None where it stays fixed.
    center, scale : of the environment.
    """

    rows: Rows
    precision: np.ndarray
    mean: np.ndarray
    factor: np.ndarray | None
    center: np.ndarray
    scale: np.ndarray

    def fit(self, seed: int = 0, refits: int = 0) -> tuple[Ridge, Solution]:
        """Fit, and refit to `refits` resamples of the presences."""
        solution = fit_ridge(self.rows, self.precision)
        rng = np.random.default_rng(seed)
        again = [self.refit(solution, _resampled(self.rows.presence, rng)) for _ in range(refits)]
        many = [self._member(s) for s in again]
        dim, width = self.mean.size, 2 * self.center.size
        vectors = np.array([m[0] for m in many], dtype=np.float32).reshape(refits, dim)
        weights = np.array([m[1] for m in many], dtype=np.float32).reshape(refits, width)
        vector, weight = self._member(solution)
        intercepts = np.array([s.intercept for s in again], dtype=np.float32)
        intercept = np.array([solution.intercept], dtype=np.float32)
        return Ridge(vector, self.center, self.scale, weight, intercept, vectors, weights, intercepts), solution

    def refit(self, near: Solution, presence: np.ndarray) -> Solution:
        """The fit with other presence weights (R,), from one near it."""
        return refit(replace(self.rows, presence=presence), self.precision, near)

    def thinned(self, most: int, seed: int) -> tuple[RidgeDesign, np.ndarray]:
        """The design with at most `most` background places, of the same total weight, and the rows (numbers) kept."""
        other = np.flatnonzero(self.rows.presence <= 0)
        if other.size <= most:
            return self, np.arange(len(self.rows.presence))
        chosen = np.random.default_rng(seed).permutation(other)[:most]
        kept = np.sort(np.concatenate([np.flatnonzero(self.rows.presence > 0), chosen]))
        rows = self.rows.select(kept)
        background = np.where(rows.presence > 0, rows.background, rows.background * (other.size / most))
        return replace(self, rows=replace(rows, background=background)), kept

    def without(self, near: Solution, rows: np.ndarray) -> Solution:
        """The fit without some of the rows (numbers), begun from one near it."""
        presence, background = self.rows.presence.copy(), self.rows.background.copy()
        presence[rows] = background[rows] = 0.0
        return fit_ridge(replace(self.rows, presence=presence, background=background), self.precision, near)

    def scores(self, solution: Solution) -> np.ndarray:
        """Logits (R,) of the rows."""
        return self.rows.offset + self.rows.features @ solution.coefficients.astype(np.float32) + solution.intercept

    def _member(self, solution: Solution) -> tuple[np.ndarray, np.ndarray]:
        """Vector (dim,) and weight (2 D,)."""
        width = 2 * self.center.size
        beta = solution.coefficients.astype(np.float32)
        vector = self.mean if self.factor is None else self.mean + self.factor @ beta[width:]
        return vector.astype(np.float32), beta[:width]


def ridge_design(
    training: Training,
    strength: float,
    mean: np.ndarray,
    factor: np.ndarray | None,
    kind: str = "all",
    barred: np.ndarray | None = None,
) -> RidgeDesign:
    """The ridge on embedding and environment.

    Parameters
    ----------
    training : the places.
    strength : k of the priors N(0, 1/(10 k)) of linear and N(0, 1/(20 k)) of squared environment columns.
    mean, factor : of the prior of the vector.
    kind : of background, see `Training.weights`.
    barred : (D,) columns of the environment that stay out.
    """
    weight = training.weights(kind)
    center, scale = training.standard(np.zeros(training.features.environment.shape[1], dtype=bool))
    if mean.size:
        scale = scale + np.float32(0.05)  # the model's inputs are in global standard deviations: flat ones stay flat
    features = squared_features(training.features.environment, center, scale)
    width = center.size
    precision = np.repeat([10.0 * strength, 20.0 * strength], width)
    if barred is not None:
        precision[np.tile(barred, 2)] = 1e9
    embedding = training.features.embedding
    if factor is not None:
        features = np.concatenate([features, embedding @ factor], axis=1)
        precision = np.concatenate([precision, np.ones(factor.shape[1])])
    offset = embedding @ mean if mean.size else np.zeros(len(features), dtype=np.float32)
    rows = Rows(features, offset.astype(np.float32), training.presence.astype(float), weight, training.absences)
    return RidgeDesign(rows, precision, mean, factor, center, scale)


def grow_trees(
    training: Training,
    columns: np.ndarray,
    prior: SpeciesPrior | None,
    kind: str = "all",
    seed: int = 0,
    trees: int = TREES,
) -> Trees:
    """A forest on some columns of the environment and, with a model, some projections of the embedding."""
    projection = np.empty((training.features.embedding.shape[1], 0), dtype=np.float32)
    if prior is not None:
        known = [] if prior.zero_shot is None else [prior.zero_shot]
        projection = np.column_stack([prior.mean, *known, prior.factor[:, :PROJECTIONS]]).astype(np.float32)
    inputs = tree_inputs(training.features.embedding, training.features.environment, columns, projection)
    forest = fit_forest(inputs, training.presence.astype(float), training.weights(kind), trees=trees, seed=seed)
    return Trees(columns, projection, forest)


def grow_maxent(
    training: Training,
    columns: np.ndarray,
    categorical: np.ndarray,
    kind: str = "all",
    seed: int = 0,
    refits: int = 0,
) -> Maxent:
    """Maxent on some columns of the environment; `categorical`: (D,) bool."""
    center, scale = training.standard(categorical)
    values = (training.features.environment - center) / scale
    presence, weight = training.presence.astype(float), training.weights(kind)
    terms, intercept, penalty = fit_maxent(
        values[:, columns], presence, weight, categorical=categorical[columns], absences=training.absences
    )
    terms = replace(terms, first=columns[terms.first], second=columns[terms.second])
    rng = np.random.default_rng(seed)
    features = terms.matrix(values)
    rows = Rows(features, np.zeros(len(features), np.float32), presence, weight, training.absences)
    again = [
        refit_terms(replace(rows, presence=_resampled(presence, rng)), terms.coefficient, intercept, penalty)
        for _ in range(refits)
    ]
    coefficients = np.array([a[0] for a in again], dtype=np.float32).reshape(refits, terms.kind.size)
    intercepts = np.array([a[1] for a in again], dtype=np.float32)
    return Maxent(center, scale, terms, np.array([intercept], np.float32), coefficients, intercepts)


def _resampled(presence: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Presence weights of a bootstrap sample of the presences."""
    seen = np.flatnonzero(presence > 0)
    out = np.zeros_like(presence)
    np.add.at(out, rng.choice(seen, seen.size), 1.0)
    return out
