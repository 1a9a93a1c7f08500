"""A fit as a map shows it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from sdm.records.calibration import PROBABILITY, Calibration
from sdm.records.fitted import Fitted


@dataclass(frozen=True)
class FittedScore:
    """What the logit of a fit means, as a `sdm.engine.suitability.Suitability`."""

    calibration: Calibration
    method: str
    presences: int
    background: str
    valid_range: ClassVar[tuple[float, float]] = (0.0, 1.0)
    margin: ClassVar[float] = 2.0

    @classmethod
    def of(cls, fitted: Fitted) -> FittedScore:
        """Of a fit."""
        info = fitted.info
        return cls(fitted.calibration, info.method, info.counts.get("presences", 0), info.background)

    @property
    def _is_probability(self) -> bool:
        return self.calibration.meaning == PROBABILITY

    @property
    def name(self) -> str:
        """Of the variable."""
        return "probability" if self._is_probability else "relative_suitability"

    @property
    def phrase(self) -> str:
        """The quantity in words, with {} for the species."""
        what = "Probability of presence" if self._is_probability else "Relative suitability"
        return f"{what} of {{}}, fitted to records"

    @property
    def explanation(self) -> str:
        """What a value is, for people; begins after "for each pixel"."""
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
        """How a value was computed, for machines."""
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


BACKGROUNDS = {
    "random": "random places within reach of them",
    "group": "places where species of its group were recorded",
    "mixed": "random places within reach of them and places where species of its group were recorded, half and half",
    "absences": "places where it was looked for and not found",
    "": "places of the fit",
}
