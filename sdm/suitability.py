"""What a cosine means: the number a map holds, as a monotone function of the cosine.

A model that was calibrated on ranges gives a `Probability`. A space that was not, such as the published
TaxaBind checkpoints, gives a `Relative` suitability, or the `Cosine` itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np


@dataclass(frozen=True)
class Probability:
    """`sigmoid(scale * cosine + bias)`: the probability that a place lies in the range."""

    scale: float
    bias: float
    name: ClassVar[str] = "probability"
    valid_range: ClassVar[tuple[float, float]] = (0.0, 1.0)

    @property
    def margin(self) -> float:
        """Two logits, in cosine: how far a surface may stray between places that were scored."""
        return 2.0 / self.scale

    def negligible(self, value: float) -> float:
        """A cosine below which every value lies between 0 and `value`."""
        # A millionth of the cosine is more than any rounding of float32.
        return (math.log(value / (1.0 - value)) - self.bias) / self.scale - 1e-6

    def values(self, cosines: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """Cosines of any shape -> float32 of that shape: a new array, or `out`, which may be the cosines."""
        out = np.multiply(cosines, np.float32(-self.scale), out=out, dtype=np.float32)
        out -= np.float32(self.bias)
        with np.errstate(over="ignore"):  # exp overflows to inf: a probability of 0
            np.exp(out, out=out)
        out += 1.0
        return np.reciprocal(out, out=out)


@dataclass(frozen=True)
class Relative:
    """The share of a fixed sample of the world's land that scores lower: 0 to 1, whatever the map's box."""

    sample: np.ndarray
    """(n,) float32 cosines of the sample with the species, ascending."""
    name: ClassVar[str] = "relative_suitability"
    valid_range: ClassVar[tuple[float, float]] = (0.0, 1.0)

    @property
    def margin(self) -> float:
        """A tenth of the spread of the sample: see `Probability.margin`."""
        return 0.1 * float(self.sample.std())

    def negligible(self, value: float) -> float:
        """See `Probability.negligible`: below the sample's lowest all are 0."""
        return float(self.sample[0])

    def values(self, cosines: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """Cosines of any shape -> float32 of that shape: a new array, or `out`, which may be the cosines."""
        return _into(out, np.searchsorted(self.sample, cosines) / self.sample.size)


@dataclass(frozen=True)
class Cosine:
    """The cosine between place and species itself, -1 to 1; comparable within a species only."""

    name: ClassVar[str] = "cosine"
    valid_range: ClassVar[tuple[float, float]] = (-1.0, 1.0)
    margin: ClassVar[float] = 0.03

    def negligible(self, value: float) -> float:
        """See `Probability.negligible`: no cosine is."""
        return -math.inf

    def values(self, cosines: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """Cosines of any shape -> float32 of that shape: a copy, or `out`, which may be the cosines."""
        return _into(out, cosines)


def _into(out: np.ndarray | None, values: np.ndarray) -> np.ndarray:
    if out is None:
        return np.array(values, dtype=np.float32)
    out[...] = values
    return out


Suitability = Probability | Relative | Cosine
