"""From the logit of a fit to a value between 0 and 1.

A presence-only fit knows neither its intercept nor the prevalence. Where a prevalence is known, one number, the shift
of the logit at which the mean value over the area is that prevalence, makes it a probability; the slope is about right
already. Where it is not, values are Maxent's cloglog: a relative suitability.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

PROBABILITY, RELATIVE = "probability", "relative suitability"


@dataclass(frozen=True)
class Calibration:
    """What a logit means.

    Parameters
    ----------
    meaning : `PROBABILITY` or `RELATIVE`.
    shift : added to the logit.
    prevalence : the mean of a probability over the area it was set for; None otherwise.
    source : where the prevalence is from, as a clause; of a relative suitability, why there is none.
    """

    meaning: str
    shift: float
    prevalence: float | None
    source: str

    def values(self, logit: np.ndarray) -> np.ndarray:
        """Values of 0 to 1, float32, of logits of any shape."""
        with np.errstate(over="ignore"):
            if self.meaning == PROBABILITY:
                return (1.0 / (1.0 + np.exp(-(logit + self.shift)))).astype(np.float32)
            return (-np.expm1(-np.exp(logit + self.shift))).astype(np.float32)


def with_prevalence(logit: np.ndarray, prevalence: float, source: str, weight: np.ndarray | None = None) -> Calibration:
    """A probability whose mean over places with logits (N,), weighted by (N,), is `prevalence`."""
    weight = np.ones(logit.size) if weight is None else weight
    low, high = -60.0 - float(logit.max()), 60.0 - float(logit.min())
    for _ in range(80):
        middle = 0.5 * (low + high)
        mean = np.average(1.0 / (1.0 + np.exp(-np.clip(logit.astype(np.float64) + middle, -80, 80))), weights=weight)
        low, high = (middle, high) if mean < prevalence else (low, middle)
    return Calibration(PROBABILITY, float(0.5 * (low + high)), prevalence, source)


def relative(logit: np.ndarray, weight: np.ndarray, reason: str) -> Calibration:
    """Maxent's cloglog: ``1 - exp(-exp(entropy) * raw)`` with raw summing to 1 over background places (N,)."""
    f = logit.astype(np.float64)
    raw = weight * np.exp(f - f.max())
    raw /= raw.sum()
    # The entropy of the distribution over equally likely places: each stands for its weight.
    share = weight / weight.sum()
    density = np.maximum(raw / share, 1e-300)
    divergence = float(raw @ np.log(density))
    normaliser = float(f.max() + np.log(share @ np.exp(f - f.max())))
    return Calibration(RELATIVE, -divergence - normaliser, None, reason)
