"""Scores: the values of a map, monotone functions of the cosine.

A model that was calibrated on ranges gives a `Probability`. A space that was not, such as the published
TaxaBind checkpoints, gives a `Relative` suitability, or the `Cosine` itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np


class Suitability(Protocol):
    """The score of a map: a monotone function of a measure of a place, with its explanation."""

    @property
    def name(self) -> str:
        """Name of the variable: probability, relative_suitability, cosine."""
        ...

    @property
    def valid_range(self) -> tuple[float, float]:
        """Least and greatest value."""
        ...

    @property
    def phrase(self) -> str:
        """The quantity in words, with {} for what is mapped."""
        ...

    @property
    def explanation(self) -> str:
        """Definition of a value for readers; continues "for each pixel"."""
        ...

    @property
    def report(self) -> dict[str, object]:
        """How a value was computed, as JSON values."""
        ...

    @property
    def margin(self) -> float:
        """How far the measure may lie outside that of the lattice places around it."""
        ...

    def negligible(self, value: float) -> float:
        """A measure below which every value lies between 0 and `value`."""
        ...

    def values(self, cosines: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """Measures of any shape -> float32 of that shape: a new array, or `out`, which may be the argument."""
        ...


@dataclass(frozen=True)
class Probability:
    """`sigmoid(scale * cosine + bias)`: the probability that a place lies in the range."""

    scale: float
    bias: float
    ranges: str = "ranges come from maps with cells of about 96 km"
    """The ranges the model was trained on, as a clause."""
    name: ClassVar[str] = "probability"
    valid_range: ClassVar[tuple[float, float]] = (0.0, 1.0)
    phrase: ClassVar[str] = "Probability that the place lies in the range of {}"

    @property
    def explanation(self) -> str:
        """Definition of a value for readers; continues "for each pixel"."""
        return (
            f"the probability that it lies in the range, sigmoid({self.scale:.3f} * cosine {self.bias:+.3f}). Not an "
            f"abundance, not a habitat quality; {self.ranges}."
        )

    @property
    def report(self) -> dict[str, object]:
        """How a value was computed, as JSON values."""
        return {"score": self.name, "scale": self.scale, "bias": self.bias}

    @property
    def margin(self) -> float:
        """Two logits, in cosine: how far a value may differ from those of the lattice places around it."""
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
    phrase: ClassVar[str] = "Share of the world's land that suits {} less than the place"

    @property
    def explanation(self) -> str:
        """See `Probability`."""
        return (
            f"the share of {self.sample.size:,} places, sampled uniformly over the world's land, whose cosine with the "
            "query is lower. It ranks places for one query; it is NOT a probability of presence: a species that lives "
            "nowhere has places near 1 too."
        )

    @property
    def report(self) -> dict[str, object]:
        """See `Probability`."""
        low, middle, high = (float(v) for v in np.quantile(self.sample, (0.05, 0.5, 0.95)))
        return {"score": self.name, "places": self.sample.size, "cosine_5_50_95_percent": [low, middle, high]}

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
    phrase: ClassVar[str] = "Cosine between the embeddings of the place and of {}"
    explanation: ClassVar[str] = (
        "the cosine between its embedding and that of the query, -1 to 1. Higher is more alike; values of two queries "
        "cannot be compared, and none is a probability."
    )

    @property
    def report(self) -> dict[str, object]:
        """See `Probability`."""
        return {"score": self.name}

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
