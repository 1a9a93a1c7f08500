"""How far a fit may be trusted at a place: novelty, MESS, and what its score is made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np

from sdm.records.products import product

NEAREST = 5
REFERENCES = 512
LEVELS = 101
ROWS_AT_ONCE = 8192
LOWEST_MESS = -1000.0
"""Where a variable that was constant in training has another value, MESS would be without bound."""


@dataclass(frozen=True)
class Reference:
    """The training places that novelty and MESS are measured against.

    Parameters
    ----------
    places : (T, K) float16 unit vectors (environment embeddings, or standardised covariates made unit length).
    distances : (LEVELS,) percentiles of the training places' own distances to their nearest others.
    quantiles : (LEVELS, D) of the environment of all training places.
    """

    places: np.ndarray
    distances: np.ndarray
    quantiles: np.ndarray

    def novelty(self, space: np.ndarray) -> np.ndarray:
        """Percentile (N,), 0 to 100, of the distance to the nearest training places among those places' own.

        Parameters
        ----------
        space : (N, K) unit vectors of the kind of `places`.
        """
        distance = _nearest(space, self.places.astype(np.float32), NEAREST)
        return np.interp(distance, self.distances, np.linspace(0.0, 100.0, LEVELS)).astype(np.float32)

    def mess(self, environment: np.ndarray) -> np.ndarray:
        """Multivariate environmental similarity (Elith et al. 2010) of environments (N, D): (N,), below 0 outside.

        On our tests it said nothing about the error of a map; it is here because reviewers ask for it.
        """
        low, high = self.quantiles[0], self.quantiles[-1]
        width = np.maximum(high - low, 1e-9)
        levels = np.linspace(0.0, 100.0, LEVELS)
        out = np.full(len(environment), np.inf, dtype=np.float32)
        for column in range(environment.shape[1]):
            x = environment[:, column]
            share = np.interp(x, self.quantiles[:, column], levels)
            inside = np.minimum(2.0 * share, 2.0 * (100.0 - share))
            below = 100.0 * (x - low[column]) / width[column]
            above = 100.0 * (high[column] - x) / width[column]
            np.minimum(out, np.where(below < 0, below, np.where(above < 0, above, inside)), out=out)
        return np.maximum(out, np.float32(LOWEST_MESS))

    @classmethod
    def of(cls, space: np.ndarray, environment: np.ndarray, presence: np.ndarray, seed: int) -> Self:
        """From training places: unit vectors (R, K), environments (R, D) and which are presences (R,) bool."""
        rng = np.random.default_rng(seed)
        seen, other = (rng.permutation(np.flatnonzero(m))[: REFERENCES // 2] for m in (presence, ~presence))
        chosen = np.sort(np.concatenate([seen, other]))
        places = space[chosen].astype(np.float16)
        own = _nearest(places.astype(np.float32), places.astype(np.float32), NEAREST, skip=1)
        distances = _ascending(np.quantile(own, np.linspace(0.0, 1.0, LEVELS)))
        quantiles = np.quantile(environment, np.linspace(0.0, 1.0, LEVELS), axis=0)
        return cls(places, distances, quantiles.astype(np.float32))


def shares(parts: dict[str, np.ndarray], typical: dict[str, float]) -> dict[str, np.ndarray]:
    """How much each part of a score decides at places: absolute differences from typical values, summing to 1.

    Parameters
    ----------
    parts : what each part adds to the score, (N,).
    typical : the mean of each over the background of the fit.
    """
    apart = {name: np.abs(values - np.float32(typical.get(name, 0.0))) for name, values in parts.items()}
    total = np.maximum(sum(apart.values(), np.zeros(1, np.float32)), 1e-9)
    return {name: (values / total).astype(np.float32) for name, values in apart.items()}


def _nearest(space: np.ndarray, places: np.ndarray, count: int, skip: int = 0) -> np.ndarray:
    """Mean cosine distance (N,) to the nearest `count` places, after the nearest `skip`."""
    count = min(count, len(places) - skip)
    if count < 1:
        return np.zeros(len(space), dtype=np.float32)
    out = np.empty(len(space), dtype=np.float32)
    for first in range(0, len(space), ROWS_AT_ONCE):
        likeness = product(space[first : first + ROWS_AT_ONCE], places.T)
        top = np.partition(likeness, likeness.shape[1] - count - skip, axis=1)[:, likeness.shape[1] - count - skip :]
        if skip:
            top = np.sort(top, axis=1)[:, :-skip]
        out[first : first + len(likeness)] = 1.0 - top.mean(axis=1)
    return out


def _ascending(values: np.ndarray) -> np.ndarray:
    """Strictly ascending float32, so that a table of them can be inverted."""
    out = values.astype(np.float32)
    for k in range(1, out.size):
        if out[k] <= out[k - 1]:
            out[k] = np.nextafter(out[k - 1], np.float32(np.inf))
    return out
