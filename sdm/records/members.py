"""The parts of a fitted species: each turns features of places into a score. They are arrays and nothing else."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Protocol, Self

import numpy as np

from sdm.records.forest import Forest
from sdm.records.maxent import Terms
from sdm.records.products import product

CLIP = 4.0
"""Standardised covariates of the ridge are clipped to this many standard deviations."""


class Member(Protocol):
    """A score of places, higher where the species is more likely."""

    def score(self, embedding: np.ndarray, environment: np.ndarray) -> np.ndarray:
        """Scores (N,) float32 of places with embeddings (N, dim) and environments (N, D)."""
        ...


@dataclass(frozen=True)
class Ridge:
    """``vector . embedding + weight . (z, z^2 - 1) + intercept`` with z the standardised environment.

    Parameters
    ----------
    vector : (dim,), dim 0 without an embedding.
    center, scale : (D,) that standardise the environment.
    weight : (2 D,), of z and then of its squares.
    intercept : (1,), 0 for a fit without absences.
    vectors, weights, intercepts : the same of B refits to resampled presences: (B, dim), (B, 2 D), (B,).
    """

    vector: np.ndarray
    center: np.ndarray
    scale: np.ndarray
    weight: np.ndarray
    intercept: np.ndarray
    vectors: np.ndarray
    weights: np.ndarray
    intercepts: np.ndarray

    def score(self, embedding: np.ndarray, environment: np.ndarray) -> np.ndarray:
        """See `Member`."""
        out = product(squared_features(environment, self.center, self.scale), self.weight)
        if self.vector.size:
            out += product(embedding, self.vector)
        return out + self.intercept[0]

    def refits(self, embedding: np.ndarray, environment: np.ndarray) -> np.ndarray:
        """Scores (B, N) of the refits."""
        out = product(self.weights, squared_features(environment, self.center, self.scale).T)
        if self.vector.size:
            out += product(self.vectors, embedding.T)
        return out + self.intercepts[:, None]

    def parts(self, embeddings: dict[str, np.ndarray], environment: np.ndarray) -> dict[str, np.ndarray]:
        """What each embedding of `embeddings`, (N, dim), and each column of the environment adds: (N,) or (N, D)."""
        z = squared_features(environment, self.center, self.scale) * self.weight
        width = environment.shape[1]
        return {name: product(e, self.vector) for name, e in embeddings.items()} | {
            "environment": z[:, :width] + z[:, width:]
        }


@dataclass(frozen=True)
class Maxent:
    """Maxent's features of standardised covariates.

    Parameters
    ----------
    center, scale : (D,); 0 and 1 for categorical covariates.
    terms : the features, with their coefficients.
    intercept : (1,), 0 for a fit without absences.
    coefficients, intercepts : of B refits to resampled presences: (B, F), (B,).
    """

    center: np.ndarray
    scale: np.ndarray
    terms: Terms
    intercept: np.ndarray
    coefficients: np.ndarray
    intercepts: np.ndarray

    def score(self, embedding: np.ndarray, environment: np.ndarray) -> np.ndarray:
        """See `Member`."""
        return self.terms.logit((environment - self.center) / self.scale) + self.intercept[0]

    def refits(self, embedding: np.ndarray, environment: np.ndarray) -> np.ndarray:
        """Scores (B, N) of the refits."""
        features = self.terms.matrix((environment - self.center) / self.scale)
        return product(self.coefficients, features.T) + self.intercepts[:, None]


@dataclass(frozen=True)
class Trees:
    """A forest on some columns of the environment and some projections of the embedding.

    Parameters
    ----------
    columns : (C,) of the environment.
    projection : (dim, P).
    forest : on C + P features, in that order.
    """

    columns: np.ndarray
    projection: np.ndarray
    forest: Forest

    def score(self, embedding: np.ndarray, environment: np.ndarray) -> np.ndarray:
        """See `Member`."""
        return self.forest.share(tree_inputs(embedding, environment, self.columns, self.projection))


def tree_inputs(
    embedding: np.ndarray, environment: np.ndarray, columns: np.ndarray, projection: np.ndarray
) -> np.ndarray:
    """What a forest sees of places, see `Trees`: (N, C + P) float32."""
    values = environment[:, columns]
    return np.concatenate([values, product(embedding, projection)], axis=1) if projection.size else values


def squared_features(environment: np.ndarray, center: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Standardised environments, and their squares minus 1: (N, D) -> (N, 2 D) float32."""
    width = environment.shape[1]
    out = np.empty((len(environment), 2 * width), dtype=np.float32)
    z = out[:, :width]
    np.subtract(environment, center, out=z)
    z /= scale
    np.clip(z, -CLIP, CLIP, out=z)
    np.multiply(z, z, out=out[:, width:])
    out[:, width:] -= 1.0
    return out


@dataclass(frozen=True)
class RankScale:
    """A distribution function as a table: `values` (Q,) strictly ascending, `levels` (Q,) of 0 to 1."""

    values: np.ndarray
    levels: np.ndarray

    def rank(self, scores: np.ndarray) -> np.ndarray:
        """The share of the table's places that score lower: (...) -> (...), interpolated."""
        return np.interp(scores, self.values, self.levels).astype(np.float32)

    def value(self, ranks: np.ndarray) -> np.ndarray:
        """The score of a rank: the inverse of `rank`."""
        return np.interp(ranks, self.levels, self.values).astype(np.float32)

    @classmethod
    def of(cls, scores: np.ndarray, weight: np.ndarray, size: int = 512) -> Self:
        """From scores (N,) with weights (N,); ties get the middle of their ranks."""
        values, inverse = np.unique(scores.astype(np.float32), return_inverse=True)
        mass = np.bincount(inverse, weights=weight, minlength=values.size)
        levels = (np.cumsum(mass) - 0.5 * mass) / mass.sum()
        if values.size > size:
            # Evenly by rank, and denser towards the top, where most presences are.
            wanted = np.concatenate([np.linspace(0, 1, size // 2), 1 - np.geomspace(1e-5, 0.2, size // 2)])
            keep = np.unique(np.searchsorted(levels, wanted).clip(0, values.size - 1))
            values, levels = values[keep], levels[keep]
        return cls(values, levels.astype(np.float32))


@dataclass(frozen=True)
class Ensemble:
    """Members joined by their ranks over the background of the fit.

    The mean rank is given the distribution that the first member's score has over that background, so that it is a
    logit again. A single member's score is taken as it is.

    Parameters
    ----------
    members : the first has refits, and its score is a logit up to a constant.
    weights : (M,) of the members' ranks; they sum to 1.
    scales : of each member's scores; none for a single member.
    blend : of the weighted mean rank.
    """

    members: tuple[Ridge | Maxent | Trees, ...]
    weights: np.ndarray
    scales: tuple[RankScale, ...] = ()
    blend: RankScale | None = None

    def logit(self, embedding: np.ndarray, environment: np.ndarray) -> np.ndarray:
        """Scores (N,) float32."""
        first = self.members[0].score(embedding, environment)
        if self.blend is None:
            return first.astype(np.float32)
        return self._joined(first, self._others(embedding, environment))

    @property
    def refit_count(self) -> int:
        """How many refits of the first member there are."""
        first = self.members[0]
        if isinstance(first, Trees):
            return 0
        return len(first.weights) if isinstance(first, Ridge) else len(first.coefficients)

    def refits(self, embedding: np.ndarray, environment: np.ndarray) -> np.ndarray:
        """Scores (B, N) with the first member replaced by its refits."""
        scores = self.first_refits(embedding, environment)
        if self.blend is None:
            return scores
        others = self._others(embedding, environment)
        return np.stack([self._joined(row, others) for row in scores])

    def first_refits(self, embedding: np.ndarray, environment: np.ndarray) -> np.ndarray:
        """Scores (B, N) of the refits of the first member alone, which have no lowest and highest rank."""
        first = self.members[0]
        if isinstance(first, Trees):
            raise TypeError("the first member of an ensemble has refits")
        return first.refits(embedding, environment).astype(np.float32)

    def _others(self, embedding: np.ndarray, environment: np.ndarray) -> np.ndarray:
        total = np.zeros(len(environment), dtype=np.float32)
        for member, weight, scale in zip(self.members[1:], self.weights[1:], self.scales[1:], strict=True):
            total += np.float32(weight) * scale.rank(member.score(embedding, environment))
        return total

    def _joined(self, first: np.ndarray, others: np.ndarray) -> np.ndarray:
        assert self.blend is not None
        mixed = np.float32(self.weights[0]) * self.scales[0].rank(first) + others
        return self.scales[0].value(self.blend.rank(mixed))

    @classmethod
    def joined(
        cls,
        members: tuple[Ridge | Maxent | Trees, ...],
        weights: tuple[float, ...],
        places: tuple[np.ndarray, np.ndarray],
        background: np.ndarray,
    ) -> Self:
        """Join members over the places of a fit: embeddings and environments, with background weights (R,)."""
        share = np.asarray(weights, dtype=np.float32) / np.float32(sum(weights))
        if len(members) == 1:
            return cls(members, share)
        scores = [member.score(*places) for member in members]
        scales = tuple(RankScale.of(s, background) for s in scores)
        mixed = sum(w * scale.rank(s) for w, scale, s in zip(share, scales, scores, strict=True))
        return cls(members, share, scales, RankScale.of(np.asarray(mixed), background))


KINDS: dict[str, type[Ridge] | type[Maxent] | type[Trees]] = {"ridge": Ridge, "maxent": Maxent, "trees": Trees}


def to_arrays(value: object, prefix: str) -> dict[str, np.ndarray]:
    """The arrays of a dataclass, nested ones by dotted names."""
    out: dict[str, np.ndarray] = {}
    for field in fields(value):  # type: ignore[arg-type]
        inner = getattr(value, field.name)
        name = f"{prefix}.{field.name}"
        out |= {name: np.ascontiguousarray(inner)} if isinstance(inner, np.ndarray) else to_arrays(inner, name)
    return out
