"""Penalised fits of a log-linear intensity: presences against a weighted background, or against absences.

Presence-only: maximise ``sum_i a_i f_i - (sum a) log sum_j w_j exp f_j - 1/2 sum_k precision_k beta_k^2`` with
``f = offset + features @ beta``. This is Maxent, which equals an inhomogeneous Poisson process (Renner & Warton
2013). It determines neither the intercept nor the prevalence; see `sdm.records.calibration`.

Presence/absence: the logistic likelihood with the same offset and penalty, and a free intercept.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from sdm.errors import RequestError

STEPS = 40
TOLERANCE = 1e-5
"""Newton stops when a step improves the objective by less than this share of the presence weight."""


@dataclass(frozen=True)
class Rows:
    """The places of a fit: R rows, presences and background (or absences) together.

    Parameters
    ----------
    features : (R, P) float32.
    offset : (R,) the part of the logit that is not fitted.
    presence : (R,) weight as a presence, 0 for a background place or an absence.
    background : (R,) weight as a background place or as an absence. Presence-only: presences have one too.
    absences : whether the background is of surveyed absences.
    """

    features: np.ndarray
    offset: np.ndarray
    presence: np.ndarray
    background: np.ndarray
    absences: bool = False

    def select(self, rows: np.ndarray) -> Rows:
        """The rows of a boolean or integer index."""
        return replace(
            self,
            features=self.features[rows],
            offset=self.offset[rows],
            presence=self.presence[rows],
            background=self.background[rows],
        )


@dataclass(frozen=True)
class Solution:
    """Coefficients (P,), the intercept (0 where the objective has none) and the Hessian of the last step."""

    coefficients: np.ndarray
    intercept: float
    hessian: np.ndarray

    @cached_property
    def inverse(self) -> np.ndarray:
        """Of the Hessian."""
        return np.linalg.inv(self.hessian)


def fit_ridge(rows: Rows, precision: np.ndarray, start: Solution | None = None) -> Solution:
    """Maximise the penalised likelihood by Newton steps, halved while they do not improve it.

    Parameters
    ----------
    rows : the places.
    precision : (P,) of the Gaussian prior of each coefficient, positive.
    start : a solution to begin from.
    """
    problem = Problem(rows, precision)
    beta = problem.start(start)
    value, hessian = problem.value(beta), np.eye(beta.size)
    for _ in range(STEPS):
        gradient, hessian = problem.derivatives(beta)
        step = _solve(hessian, gradient)
        size, best = 1.0, -np.inf
        while size > 1e-4:
            best = problem.value(beta + size * step)
            if best > value:
                break
            size *= 0.5
        if not best > value:
            break
        beta, gain, value = beta + size * step, best - value, best
        if gain < TOLERANCE * problem.total:
            break
    return problem.solution(beta, hessian)


def refit(rows: Rows, precision: np.ndarray, near: Solution, steps: int = 6) -> Solution:
    """The fit of slightly other weights, from a solution near it and with that one's Hessian: much cheaper."""
    problem = Problem(rows, precision)
    beta = problem.start(near)
    value = problem.value(beta)
    for _ in range(steps):
        gradient = problem.gradient(beta)
        step = near.inverse @ gradient
        size, best = 1.0, -np.inf
        while size > 0.05:
            best = problem.value(beta + size * step)
            if best > value:
                break
            size *= 0.5
        if not best > value:
            break
        beta, gain, value = beta + size * step, best - value, best
        if gain < 100 * TOLERANCE * problem.total:
            break
    return problem.solution(beta, near.hessian)


def unpenalised(rows: Rows, scale: np.ndarray) -> Problem:
    """The likelihood alone, of features divided by `scale` (P,)."""
    return Problem(replace(rows, features=rows.features / scale.astype(np.float32)), np.zeros(scale.size))


class Problem:
    """Value and derivatives of one objective. An intercept, where there is one, is the last coefficient."""

    def __init__(self, rows: Rows, precision: np.ndarray) -> None:
        self.absences = rows.absences
        # Products in single precision take half the time; all sums over places are in double precision.
        x = np.asarray(rows.features, dtype=np.float32)
        if rows.absences:
            x = np.column_stack([x, np.ones(len(x), dtype=np.float32)])
            precision = np.append(precision, 0.0)
        self.x, self.precision = x, np.asarray(precision, dtype=np.float64)
        self.offset = rows.offset.astype(np.float64)
        self.presence, self.background = rows.presence.astype(np.float64), rows.background.astype(np.float64)
        self.total = float(self.presence.sum())
        if self.total <= 0.0 or self.background.sum() <= 0.0:
            raise RequestError("a fit needs presences and places to compare them with.")
        self.pull = self._sum(self.presence)  # the gradient's part that does not depend on the coefficients

    def start(self, near: Solution | None) -> np.ndarray:
        """Coefficients to begin from."""
        beta = np.zeros(self.x.shape[1])
        if near is not None:
            beta[: near.coefficients.size] = near.coefficients
        if self.absences:
            prevalence = self.total / (self.total + self.background.sum())
            usual = np.log(prevalence / (1.0 - prevalence)) - float(np.average(self.offset))
            beta[-1] = usual if near is None else near.intercept
        return beta

    def logit(self, beta: np.ndarray) -> np.ndarray:
        """The score of each row."""
        return self.offset + self.x @ beta.astype(np.float32)

    def _top(self, f: np.ndarray) -> float:
        """The highest score of a row that counts: next to one far above all of them, their exponentials would be 0."""
        return float(f[self.background > 0.0].max())

    def _sum(self, weight: np.ndarray) -> np.ndarray:
        """Weighted sum of the features over the rows, double precision between blocks of rows."""
        used = np.flatnonzero(weight)
        blocks = (
            [used[k : k + 1024] for k in range(0, used.size, 1024)]
            if used.size < weight.size // 2
            else [slice(k, k + 1024) for k in range(0, weight.size, 1024)]
        )
        total = np.zeros(self.x.shape[1])
        for block in blocks:
            total += weight[block].astype(np.float32) @ self.x[block]
        return total

    def value(self, beta: np.ndarray) -> float:
        """The objective."""
        f = self.logit(beta)
        penalty = 0.5 * float(self.precision @ (beta * beta))
        if self.absences:
            loss = self.presence @ np.logaddexp(0.0, -f) + self.background @ np.logaddexp(0.0, f)
            return -float(loss) - penalty
        top = self._top(f)
        normaliser = top + np.log(self.background @ np.exp(np.minimum(f - top, 0.0)))
        return float(self.presence @ f) - self.total * float(normaliser) - penalty

    def _expected(self, beta: np.ndarray) -> np.ndarray:
        """What the model expects at each row, in units of presences."""
        f = self.logit(beta)
        if self.absences:
            return (self.presence + self.background) / (1.0 + np.exp(-np.clip(f, -60.0, 60.0)))
        share = self.background * np.exp(np.minimum(f - self._top(f), 0.0))
        return self.total * share / share.sum()

    def gradient(self, beta: np.ndarray) -> np.ndarray:
        """First derivatives of the objective."""
        return self.pull - self._sum(self._expected(beta)) - self.precision * beta

    def hessian(self, beta: np.ndarray, columns: np.ndarray | slice) -> np.ndarray:
        """Negative second derivatives with respect to some of the coefficients."""
        expected, x = self._expected(beta), self.x[:, columns]
        if self.absences:
            share = expected / np.maximum(self.presence + self.background, 1e-12)
            return _gram(x, expected * (1.0 - share))
        mean = self._sum(expected)[columns]
        return _gram(x, expected) - np.outer(mean, mean) / self.total

    def derivatives(self, beta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """First derivatives, and negative second ones, of the objective."""
        gradient, hessian = self.gradient(beta), self.hessian(beta, slice(None))
        hessian[np.diag_indices_from(hessian)] += self.precision
        return gradient, hessian

    def solution(self, beta: np.ndarray, hessian: np.ndarray) -> Solution:
        """The coefficients apart from the intercept."""
        return Solution(beta[:-1], float(beta[-1]), hessian) if self.absences else Solution(beta, 0.0, hessian)


def _gram(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """``x.T @ diag(weight) @ x`` over the rows that matter, with single-precision products."""
    heavy = weight > weight.max() * 1e-6
    scaled = x[heavy] * np.sqrt(weight[heavy]).astype(np.float32)[:, None]
    return (scaled.T @ scaled).astype(np.float64)


def _solve(hessian: np.ndarray, gradient: np.ndarray) -> np.ndarray:
    step = np.linalg.solve(hessian, gradient)
    # Uphill, unless rounding in single precision has made the matrix indefinite.
    return step if step @ gradient > 0.0 else gradient / np.diag(hessian)
