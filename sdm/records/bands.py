"""How far to trust the map of a fit, as further bands of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sdm.outputs.metadata import Band
from sdm.records.fitted import Fitted
from sdm.records.members import Trees

HIGHEST = 10.0
"""Standard deviations of the logit above this are written as this."""

UNCERTAINTY = Band(
    "uncertainty",
    "Standard deviation of the logit of the value over fits to resampled records: at 1, a value of 0.5 could as well "
    "be 0.27 or 0.73.",
    valid_range=(0.0, HIGHEST),
    limit=1.0,
    caution="fits to resampled records differ",
)
NOVELTY = Band(
    "novelty",
    "Distance of the environment from that of the places of the fit, as a percentile of their distances from one "
    "another: above 95, nothing like it was seen.",
    unit="%",
    valid_range=(0.0, 100.0),
    limit=95.0,
    caution="the environment is unlike that of the places of the fit",
)


@dataclass(frozen=True)
class FittedTrust:
    """The bands of a fit, as a `sdm.engine.places.Trust`."""

    fitted: Fitted

    @classmethod
    def of(cls, fitted: Fitted) -> FittedTrust | None:
        """Of a fit; None where the gate kept the zero-shot map, of which the records tell nothing."""
        return None if fitted.info.zero_shot else cls(fitted)

    @property
    def bands(self) -> tuple[Band, ...]:
        """Uncertainty, where there are refits, and novelty."""
        first = self.fitted.ensemble.members[0]
        refitted = not isinstance(first, Trees) and len(first.intercepts) > 1
        return (UNCERTAINTY, NOVELTY) if refitted else (NOVELTY,)

    def trust(self, embeddings: np.ndarray, environment: np.ndarray, space: np.ndarray | None) -> np.ndarray:
        """See `sdm.engine.places.Trust`."""
        novelty = self.fitted.novelty(environment if space is None or not self.fitted.dim else space)
        if len(self.bands) == 1:
            return novelty[None]
        uncertainty = np.minimum(self.fitted.uncertainty(embeddings, environment), np.float32(HIGHEST))
        return np.stack([uncertainty, novelty])
