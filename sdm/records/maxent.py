"""Maxent on arbitrary covariates, with the features and the penalties of maxnet (Phillips et al. 2017).

The lasso is solved by proximal Newton steps on an active set: the same optimum as maxnet's glmnet path ends in, at a
hundredth of the time of a plain proximal gradient.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sdm.records.likelihood import Rows, unpenalised
from sdm.records.products import product

LINEAR, QUADRATIC, PRODUCT, HINGE, REVERSE, CATEGORY = range(6)
KNOTS = 20
MOST_PAIRED = 24
"""Covariates that are paired in products; of more, those that differ most between presences and background."""
FLOOR = 0.001
"""Least spread of a feature among the presences that its penalty is computed from (maxnet)."""

_TABLES: dict[int, tuple[tuple[float, ...], tuple[float, ...]]] = {
    LINEAR: ((10, 30, 100), (1.0, 0.2, 0.05)),
    QUADRATIC: ((10, 17, 30, 100), (0.8, 0.5, 0.25, 0.05)),
    PRODUCT: ((10, 17, 30, 100), (1.6, 0.9, 0.55, 0.05)),
    HINGE: ((0, 1), (0.5, 0.5)),
    REVERSE: ((0, 1), (0.5, 0.5)),
    CATEGORY: ((10, 17), (0.5, 0.25)),
}
"""By kind of feature: numbers of presences, and maxnet's regularisation between which it interpolates."""


@dataclass(frozen=True)
class Terms:
    """F features of D covariates, as columns of numbers.

    Parameters
    ----------
    kind : (F,) one of LINEAR .. CATEGORY.
    first, second : (F,) covariates; they differ in products only.
    low, high : (F,) the ends of a hinge, in standardised units; `low` of a category is its value.
    coefficient : (F,).
    """

    kind: np.ndarray
    first: np.ndarray
    second: np.ndarray
    low: np.ndarray
    high: np.ndarray
    coefficient: np.ndarray

    def matrix(self, covariates: np.ndarray) -> np.ndarray:
        """Features (N, F) float32 of standardised covariates (N, D); categories are as they were given."""
        columns = np.ascontiguousarray(covariates.T, dtype=np.float32)
        out = np.empty((self.kind.size, columns.shape[1]), dtype=np.float32)
        for row, (kind, first, second, low, high) in enumerate(
            zip(self.kind, self.first, self.second, self.low, self.high, strict=True)
        ):
            x = columns[first]
            if kind == LINEAR:
                out[row] = x
            elif kind in (QUADRATIC, PRODUCT):
                np.multiply(x, columns[second], out=out[row])
            elif kind == CATEGORY:
                out[row] = x == np.float32(low)
            else:
                np.clip((x - np.float32(low)) / np.float32(high - low), 0.0, 1.0, out=out[row])
                if kind == REVERSE:
                    np.subtract(np.float32(1.0), out[row], out=out[row])
        return out.T

    def logit(self, covariates: np.ndarray) -> np.ndarray:
        """Sum of the features times their coefficients: (N,) float32."""
        return product(self.matrix(covariates), self.coefficient)

    def select(self, which: np.ndarray) -> Terms:
        """Some of the features; `which`: (F,) bool."""
        return Terms(*(getattr(self, name)[which] for name in self.__dataclass_fields__))


def fit_maxent(
    covariates: np.ndarray,
    presence: np.ndarray,
    background: np.ndarray,
    *,
    categorical: np.ndarray,
    absences: bool = False,
    regularisation: float = 1.0,
) -> tuple[Terms, float, np.ndarray]:
    """Fit Maxent, or the same features to absences.

    Parameters
    ----------
    covariates : (R, D) float32, standardised, except the categorical ones.
    presence, background : (R,) weights as of `sdm.records.likelihood.Rows`.
    categorical : (D,) bool.
    absences : whether the background is of surveyed absences.
    regularisation : factor on all penalties.

    Returns
    -------
    The features with a coefficient, the intercept (0 without absences), and the features' penalties.
    """
    terms = candidate_terms(covariates, presence, categorical)
    features = terms.matrix(covariates)
    rows = Rows(features, np.zeros(len(features)), presence, background, absences)
    penalty = regularisation * penalties(terms, features, presence)
    coefficients, intercept = fit_lasso(rows, penalty)
    used = coefficients != 0.0
    kept = terms.select(used)
    terms = Terms(kept.kind, kept.first, kept.second, kept.low, kept.high, coefficients[used])
    return terms, intercept, penalty[used]


def refit_terms(rows: Rows, coefficient: np.ndarray, intercept: float, penalty: np.ndarray) -> tuple[np.ndarray, float]:
    """One Newton step from an optimum to slightly other presences, the penalties' signs unchanged."""
    scale = np.maximum(rows.features.std(axis=0), 1e-6)
    problem = unpenalised(rows, scale)
    beta = np.append(coefficient * scale, intercept) if rows.absences else coefficient * scale
    gradient = problem.gradient(beta)
    gradient[: scale.size] -= np.sign(coefficient) * penalty / scale
    hessian = problem.hessian(beta, np.arange(beta.size))
    # Features that hardly vary among few presences would jump: a curvature of one presence each holds them.
    hessian[np.diag_indices_from(hessian)] += 1.0
    beta = beta + np.linalg.solve(hessian, gradient)
    return beta[: scale.size] / scale, float(beta[-1]) if rows.absences else 0.0


def classes_for(presences: int) -> tuple[int, ...]:
    """The kinds of feature that so many presences allow: maxnet's rule. Categories are always allowed."""
    if presences < 10:
        return (LINEAR,)
    if presences < 15:
        return (LINEAR, QUADRATIC)
    if presences < 80:
        return (LINEAR, QUADRATIC, HINGE)
    return (LINEAR, QUADRATIC, HINGE, PRODUCT)


def candidate_terms(covariates: np.ndarray, presence: np.ndarray, categorical: np.ndarray) -> Terms:
    """All features that the number of presences allows, without coefficients."""
    seen = presence > 0
    kinds = classes_for(int(seen.sum()))
    table: list[tuple[int, int, int, float, float]] = []
    for column in range(covariates.shape[1]):
        x = covariates[:, column]
        if categorical[column]:
            table += [(CATEGORY, column, column, float(v), float(v) + 1.0) for v in np.unique(x)]
            continue
        table.append((LINEAR, column, column, 0.0, 1.0))
        if QUADRATIC in kinds:
            table.append((QUADRATIC, column, column, 0.0, 1.0))
        if HINGE in kinds:
            table += _hinges(column, x)
    if PRODUCT in kinds:
        paired = _paired(covariates, seen, categorical)
        table += [(PRODUCT, a, b, 0.0, 1.0) for k, a in enumerate(paired) for b in paired[k + 1 :]]
    columns = [np.array(values) for values in zip(*table, strict=True)]
    kind, first, second = (c.astype(np.int32) for c in columns[:3])
    low, high = (c.astype(np.float32) for c in columns[3:])
    return Terms(kind, first, second, low, high, np.zeros(kind.size))


def penalties(terms: Terms, features: np.ndarray, presence: np.ndarray) -> np.ndarray:
    """maxnet's penalty of each feature's absolute coefficient: (F,), for a likelihood summed over the presences."""
    seen = presence > 0
    weight = presence[seen]
    total = float(weight.sum())
    mean = weight @ features[seen] / total
    spread = np.sqrt(np.maximum(weight @ np.square(features[seen]) / total - mean**2, 0.0))
    out = np.empty(terms.kind.size)
    for kind, (numbers, values) in _TABLES.items():
        out[terms.kind == kind] = np.interp(total, numbers, values)
    # A hinge that hardly varies among the presences could take any slope; maxnet bounds its spread from below.
    hinge = (terms.kind == HINGE) | (terms.kind == REVERSE)
    least = np.where(hinge, 1.0 / np.sqrt(total), FLOOR)
    return np.sqrt(total) * out * np.maximum(spread, least if total > 1 else FLOOR)


def _hinges(column: int, x: np.ndarray) -> list[tuple[int, int, int, float, float]]:
    knots = np.unique(np.quantile(x, np.linspace(0.0, 1.0, KNOTS)).astype(np.float32))
    low, high = float(knots[0]), float(knots[-1])
    forward = [(HINGE, column, column, float(k), high) for k in knots[:-1] if high - k > 1e-3]
    return forward + [(REVERSE, column, column, low, float(k)) for k in knots[1:] if k - low > 1e-3]


def _paired(covariates: np.ndarray, seen: np.ndarray, categorical: np.ndarray) -> list[int]:
    numeric = np.flatnonzero(~categorical)
    if numeric.size <= MOST_PAIRED:
        return numeric.tolist()
    apart = np.abs(covariates[seen][:, numeric].mean(axis=0) - covariates[:, numeric].mean(axis=0))
    return sorted(numeric[np.argsort(-apart, kind="stable")[:MOST_PAIRED]].tolist())


NEWTON_STEPS = 25
INNER_STEPS = 300


def fit_lasso(rows: Rows, penalty: np.ndarray, tolerance: float = 1e-4) -> tuple[np.ndarray, float]:
    """Maximise the likelihood minus ``penalty @ abs(beta)``: coefficients (P,) and the intercept.

    Features enter the active set when their gradient exceeds their penalty.
    """
    spread = rows.features.std(axis=0).astype(np.float64)
    usable = spread > 1e-6
    scale = np.where(usable, spread, 1.0)
    problem = unpenalised(rows, scale)
    lam = np.append(penalty / scale, 0.0) if rows.absences else penalty / scale
    barred = np.append(~usable, False) if rows.absences else ~usable
    beta = problem.start(None)
    value = problem.value(beta) - lam @ np.abs(beta)
    for _ in range(NEWTON_STEPS):
        gradient = problem.gradient(beta)
        excess = np.where(barred | (beta != 0.0), 0.0, np.abs(gradient) - lam)
        entering = excess > tolerance * problem.total
        if entering.sum() > 60:  # the worst offenders first: others often stay out once these are in
            entering &= excess >= np.partition(excess, -60)[-60]
        active = np.flatnonzero((beta != 0.0) | entering)
        target = _inner(problem.hessian(beta, active), gradient[active], beta[active], lam[active])
        step = target - beta[active]
        size, best = 1.0, -np.inf
        while size > 1e-3:
            trial = beta.copy()
            trial[active] += size * step
            best = problem.value(trial) - lam @ np.abs(trial)
            if best > value:
                break
            size *= 0.5
        if not best > value:
            break
        beta, gain, value = trial, best - value, best
        if gain < tolerance * problem.total and not entering.any():
            break
    coefficients = beta[: scale.size] / scale
    return coefficients, float(beta[-1]) if rows.absences else 0.0


def _inner(hessian: np.ndarray, gradient: np.ndarray, beta: np.ndarray, lam: np.ndarray) -> np.ndarray:
    """Maximise the local quadratic model minus the penalty, by accelerated proximal steps (FISTA)."""
    if beta.size == 0:
        return beta
    bound = float(np.linalg.norm(hessian, 2)) + 1e-9
    linear = gradient + hessian @ beta
    now = ahead = beta
    t = 1.0
    for _ in range(INNER_STEPS):
        moved = ahead + (linear - hessian @ ahead) / bound
        new = np.sign(moved) * np.maximum(np.abs(moved) - lam / bound, 0.0)
        if float(np.abs(new - now).max()) < 1e-7:
            return new
        t_new = 0.5 * (1.0 + np.sqrt(1.0 + 4.0 * t * t))
        ahead = new + (t - 1.0) / t_new * (new - now)
        now, t = new, t_new
    return now
