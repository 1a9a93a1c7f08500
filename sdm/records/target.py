"""A fit as a map shows it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from sdm.outputs.metadata import Band
from sdm.records.calibration import PROBABILITY, Calibration
from sdm.records.fitted import Fitted


@dataclass(frozen=True)
class FittedScore:
    """The score of a fit, a function of its logit, as a `sdm.engine.suitability.Suitability`."""

    calibration: Calibration
    method: str
    presences: int
    background: str
    valid_range: ClassVar[tuple[float, float]] = (0.0, 1.0)
    margin: ClassVar[float] = 2.0

    @classmethod
    def of(cls, fitted: Fitted) -> FittedScore:
        """The score of a fit."""
        info = fitted.info
        return cls(fitted.calibration, info.method, info.counts.get("presences", 0), info.background)

    @property
    def _is_probability(self) -> bool:
        return self.calibration.meaning == PROBABILITY

    @property
    def name(self) -> str:
        """Name of the variable."""
        return "probability" if self._is_probability else "relative_suitability"

    @property
    def phrase(self) -> str:
        """The quantity in words, with {} for the species."""
        what = "Probability of presence" if self._is_probability else "Relative suitability"
        return f"{what} of {{}}, fitted to records"

    @property
    def explanation(self) -> str:
        """Definition of a value for readers; continues "for each pixel"."""
        fit = f"fitted to {self.presences:,} records by {self.method}, compared with {BACKGROUNDS[self.background]}"
        if self._is_probability:
            return (
                f"the probability of presence, {fit}. Its mean is set by a prevalence of "
                f"{self.calibration.prevalence:.3g}: {self.calibration.source}."
            )
        return (
            f"the relative suitability, 0 to 1, {fit}. It ranks places for this species; it is NOT a probability of "
            f"presence: {self.calibration.source}."
        )

    @property
    def report(self) -> dict[str, object]:
        """How a value was computed, as JSON values."""
        return {
            "score": self.name,
            "method": self.method,
            "background": self.background,
            "prevalence": self.calibration.prevalence,
            "prevalence_source": self.calibration.source,
        }

    def negligible(self, value: float) -> float:
        """No logit is left out."""
        return -np.inf

    def values(self, cosines: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """Logits of any shape -> values float32 of that shape: a new array, or `out`."""
        values = self.calibration.values(cosines)
        if out is None:
            return values
        out[...] = values
        return out


@dataclass(frozen=True)
class ClampedFit:
    """A fit whose environment is limited to that of its own training places, as a `sdm.engine.places.PlaceFit`."""

    fitted: Fitted

    def logit(self, embeddings: np.ndarray, environment: np.ndarray) -> np.ndarray:
        """Scores (N,) of places; arguments as in `sdm.engine.places.PlaceFit`."""
        quantiles = self.fitted.reference.quantiles
        return self.fitted.logit(embeddings, np.clip(environment, quantiles[0], quantiles[-1]))


@dataclass(frozen=True)
class FittedTrust:
    """How far a fit may be trusted at a place, as a `sdm.engine.places.Trust`."""

    fitted: Fitted
    mess: bool = False
    """With the multivariate environmental similarity."""

    @property
    def bands(self) -> tuple[Band, ...]:
        """Uncertainty, where the fit was repeated, novelty, and MESS where asked."""
        return (*((UNCERTAINTY,) if self._refitted else ()), NOVELTY, *((MESS,) if self.mess else ()))

    @property
    def _refitted(self) -> bool:
        return self.fitted.ensemble.refit_count > 1

    def trust(self, embeddings: np.ndarray, environment: np.ndarray, space: np.ndarray | None) -> np.ndarray:
        """The bands of N places: (B, N) float32; arguments as in `sdm.engine.places.Trust`."""
        known = environment if space is None or not self.fitted.dim else space
        rows = [np.clip(self.fitted.novelty(known), 0.0, 100.0)]
        if self._refitted:
            top = UNCERTAINTY.valid_range[1]
            rows.insert(0, np.clip(self.fitted.uncertainty(embeddings, environment), 0.0, top))
        if self.mess:
            rows.append(np.clip(self.fitted.mess(environment), *MESS.valid_range))
        return np.stack(rows).astype(np.float32)


UNCERTAINTY = Band(
    "uncertainty",
    "Standard deviation of the logit over refits to resampled records",
    valid_range=(0.0, 5.0),
    limit=1.5,
    caution="refits to resampled records differ; 0.5 could as well be 0.18 or 0.82",
)
NOVELTY = Band(
    "novelty",
    "How unlike the environment is to that of the places of the fit: percentile of their own distances",
    unit="percent",
    valid_range=(0.0, 100.0),
    limit=95.0,
    caution="the environment is unlike that of the records",
)

MESS = Band(
    "mess",
    "Multivariate environmental similarity (Elith et al. 2010): below 0 a variable is outside its trained range. On 46 "
    "vertebrates it told nothing about the error of a map",
    valid_range=(-1000.0, 100.0),
)

BACKGROUNDS = {
    "random": "random places within reach of them",
    "group": "places where species of its group were recorded",
    "mixed": "random places within reach of them and places where species of its group were recorded, half and half",
    "absences": "places where it was looked for and not found",
    "": "places of the fit",
}
