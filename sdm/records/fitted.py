"""A species fitted to its records: pure functions of the features of places, and one small file."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Self

import numpy as np

from sdm.errors import RecordsError, quoted
from sdm.records.calibration import with_prevalence
from sdm.records.features import Covariates, FeatureSource
from sdm.records.fitfile import read_parts, write_parts
from sdm.records.fitparts import FitParts
from sdm.records.members import Ensemble, Ridge
from sdm.records.trust import shares


@dataclass(frozen=True)
class Fitted(FitParts):
    """A fitted species.

    `embeddings` are (N, dim) float32 unit summed embeddings of places by the model of `info` (dim 0 without a model),
    `environment` (N, D) float32 its environment inputs, or the covariates. Nothing here reads a file or a layer.
    """

    @property
    def meaning(self) -> str:
        """What a value is: "probability" or "relative suitability"."""
        return self.calibration.meaning

    @property
    def dim(self) -> int:
        """Length of the embeddings; 0 without a model."""
        first = self.ensemble.members[0]
        return first.vector.size if isinstance(first, Ridge) else 0

    def values(self, embeddings: np.ndarray, environment: np.ndarray) -> np.ndarray:
        """Values of 0 to 1 of places: (N,) float32."""
        return self.calibration.values(self.logit(embeddings, environment))

    def logit(self, embeddings: np.ndarray, environment: np.ndarray) -> np.ndarray:
        """Scores (N,) float32 before calibration: a logit up to a constant."""
        return self.ensemble.logit(embeddings, environment)

    def refits(self, embeddings: np.ndarray, environment: np.ndarray) -> np.ndarray:
        """Values (B, N) float32 of the refits to resampled records."""
        return self.calibration.values(self.ensemble.refits(embeddings, environment))

    def uncertainty(self, embeddings: np.ndarray, environment: np.ndarray) -> np.ndarray:
        """Standard deviation (N,) of the first member's logit over its refits; 0 without refits (a zero-shot map).

        The first member alone, since scores joined by ranks cannot differ below the lowest background place.
        """
        scores = self.ensemble.first_refits(embeddings, environment)
        if len(scores) < 2:
            return np.zeros(len(environment), dtype=np.float32)
        return scores.std(axis=0, ddof=1).astype(np.float32)

    def novelty(self, space: np.ndarray) -> np.ndarray:
        """Percentile (N,), 0 to 100, of the distance to the nearest training places among those places' own.

        Parameters
        ----------
        space : (N, K) environment embeddings (`sdm.records.features.ModelFeatures.environment_embedding`), or, without
            a model, the covariates (N, D).
        """
        return self.reference.novelty(space if self.dim else self.covariate_space(space))

    def covariate_space(self, environment: np.ndarray) -> np.ndarray:
        """Standardised covariates as unit vectors, in which novelty is measured without a model: (N, D + 1)."""
        return covariate_space(environment, self.reference.quantiles)

    def mess(self, environment: np.ndarray) -> np.ndarray:
        """Multivariate environmental similarity (N,): below 0 where a variable is outside the trained range."""
        return self.reference.mess(environment)

    def shares(self, embeddings: dict[str, np.ndarray], environment: np.ndarray) -> dict[str, np.ndarray]:
        """How much each modality and each group of covariates decides: {name: (N,)}, summing to 1 at a place.

        Parameters
        ----------
        embeddings : parts of the summed embedding, each (N, dim); they add up to it. {"embedding": the sum} too.
        environment : (N, D).

        Shares are of the first member, the one that is linear. {} where that is Maxent.
        """
        parts = self.contributions(embeddings, environment)
        # A modality's typical value is not known to the fit: its mean here is taken.
        own = {name: float(v.mean()) if v.size else 0.0 for name, v in parts.items() if name not in self.typical}
        return shares(parts, self.typical | own) if parts else {}

    def contributions(self, embeddings: dict[str, np.ndarray], environment: np.ndarray) -> dict[str, np.ndarray]:
        """What each part adds to the first member's score: {name: (N,)}; see `shares`."""
        return contributions(self.ensemble, self.covariates, embeddings, environment)

    def with_prevalence(self, prevalence: float, embeddings: np.ndarray, environment: np.ndarray, source: str) -> Self:
        """The same fit, its values probabilities with a mean of `prevalence` over places; `source`: a clause."""
        return replace(self, calibration=with_prevalence(self.logit(embeddings, environment), prevalence, source))

    def save(self, path: str | Path) -> Path:
        """Write one safetensors file. Raises OutputError."""
        return write_parts(self, Path(path))

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Read the file of a fit, which is not trusted. Raises RecordsError."""
        parts = read_parts(Path(path))
        return cls(**{f.name: getattr(parts, f.name) for f in fields(parts)})


def check_covariates(fitted: Fitted, source: FeatureSource) -> None:
    """Raise RecordsError where a fit was made with other columns of the environment than `source` reads."""
    own, read = fitted.covariates.names, source.covariates.names
    if own == read:
        return
    if len(own) != len(read):
        difference = f"{len(own):,} covariates, but the model reads {len(read):,}"
    else:
        first, other = next((a, b) for a, b in zip(own, read, strict=True) if a != b)
        difference = f"covariate {quoted(first, 60)} where the model reads {quoted(other, 60)}"
    raise RecordsError(f"the fit names {difference}; fit the records again.")


def contributions(
    ensemble: Ensemble, covariates: Covariates, embeddings: dict[str, np.ndarray], environment: np.ndarray
) -> dict[str, np.ndarray]:
    """See `Fitted.contributions`."""
    first = ensemble.members[0]
    if not isinstance(first, Ridge):
        return {}
    parts = first.parts(embeddings if first.vector.size else {}, environment)
    columns = parts.pop("environment")
    for group in dict.fromkeys(covariates.groups):
        chosen = np.array([g == group for g in covariates.groups])
        parts[group] = columns[:, chosen].sum(axis=1)
    return parts


def covariate_space(environment: np.ndarray, quantiles: np.ndarray) -> np.ndarray:
    """Covariates (N, D) scaled by their spread in training, as unit vectors (N, D + 1): near ones differ little."""
    middle = quantiles[len(quantiles) // 2]
    spread = np.maximum(quantiles[84 * len(quantiles) // 100] - quantiles[16 * len(quantiles) // 100], 1e-6)
    z = (environment - middle) / spread
    # The last coordinate keeps lengths apart: without it a place twice as extreme would count as the same.
    z = np.column_stack([z, np.full(len(z), np.sqrt(z.shape[1] if z.ndim > 1 else 1.0))])
    return (z / np.linalg.norm(z, axis=1, keepdims=True)).astype(np.float32)
