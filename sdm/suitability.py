"""What a cosine means: the number a map holds, as a monotone function of the cosine.

A model that was calibrated on ranges gives a `Probability`. A space that was not, such as the published
TaxaBind checkpoints, gives a `Relative` suitability, or the `Cosine` itself.
"""

from __future__ import annotations

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

    def values(self, cosines: np.ndarray) -> np.ndarray:
        """Cosines of any shape -> a new float32 array of that shape."""
        out = np.multiply(cosines, np.float32(-self.scale), dtype=np.float32)
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

    def values(self, cosines: np.ndarray) -> np.ndarray:
        """Cosines of any shape -> a new float32 array of that shape."""
        return (np.searchsorted(self.sample, cosines) / self.sample.size).astype(np.float32)


@dataclass(frozen=True)
class Cosine:
    """The cosine between place and species itself, -1 to 1; comparable within a species only."""

    name: ClassVar[str] = "cosine"
    valid_range: ClassVar[tuple[float, float]] = (-1.0, 1.0)
    margin: ClassVar[float] = 0.03

    def values(self, cosines: np.ndarray) -> np.ndarray:
        """A float32 copy."""
        return np.array(cosines, dtype=np.float32)


Suitability = Probability | Relative | Cosine
