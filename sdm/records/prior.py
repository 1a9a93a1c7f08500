"""What a model says of a species before any record: the vector of its name, and how vectors of species vary."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sdm.models.protocol import Model
from sdm.names import Resolution

RANK = 128
"""Directions in which a fitted vector may differ from the prior's mean."""
OWN = 0.5
"""Share of a known species' own vector in the mean.

`benchmarks/records.py --only prior` compares shares. With more of the own vector, maps are a little better against the
group and far from the records, since the mean of all species likes the tropics, and no better against land; but half
and half, more of those that are worse than the zero-shot map pass the gate (`--only worse`).
"""
SAMPLED = 4000
"""Species from which mean and covariance are computed."""


@dataclass(frozen=True)
class SpeciesPrior:
    """A Gaussian over the vector that a place's embedding is multiplied with to give a logit.

    Parameters
    ----------
    mean : (dim,).
    factor : (dim, K); a vector is ``mean + factor @ a`` with ``a ~ N(0, I)``.
    zero_shot : (dim,) the vector of the species itself times the scale; None where the model does not know it.
    taxon : whose vector went into the mean: the species, its genus, or "" for the mean of all species.
    known : whether the model knows the species.
    bias : that turns the zero-shot score into the logit of a probability.
    """

    mean: np.ndarray
    factor: np.ndarray
    zero_shot: np.ndarray | None
    taxon: str
    known: bool
    bias: float


def species_prior(model: Model, modalities: tuple[str, ...], resolution: Resolution | None) -> SpeciesPrior:
    """The prior of a species.

    Of a species or a genus that the model knows, the mean lies between its own vector (`OWN`) and the mean of all. Of
    any other it is the mean of all.

    Parameters
    ----------
    model : a calibrated model.
    modalities : those that are added to an embedding.
    resolution : what the name stands for in the model; None where it stands for nothing.
    """
    group = "" if resolution is None else resolution.taxon.group
    scale, bias = model.calibration(modalities, group)
    mean, factor = _distribution(model)
    mean, factor = mean * scale, factor * scale
    own = None
    if resolution is not None and resolution.taxon.rank in ("species", "genus"):
        own = model.species_embedding(resolution) * np.float32(scale)
    known = own is not None and resolution is not None and resolution.known and resolution.taxon.rank == "species"
    return SpeciesPrior(
        mean=mean if own is None else mean + np.float32(OWN) * (own - mean),
        factor=factor,
        zero_shot=own if known else None,
        taxon=resolution.taxon.name if own is not None and resolution is not None else "",
        known=known,
        bias=bias,
    )


def _distribution(model: Model) -> tuple[np.ndarray, np.ndarray]:
    if model.digest not in _cache:
        _cache[model.digest] = _compute(model)
    return _cache[model.digest]


_cache: dict[str, tuple[np.ndarray, np.ndarray]] = {}


def _compute(model: Model) -> tuple[np.ndarray, np.ndarray]:
    """Mean (dim,) of unit vectors of species, and a factor (dim, K) of their covariance."""
    species = list(model.taxa)
    step = max(1, len(species) // SAMPLED)
    vectors = model.species_embeddings(species[::step]).astype(np.float64)
    values, directions = np.linalg.eigh(np.cov(vectors.T))
    largest = np.argsort(values)[::-1][:RANK]
    factor = directions[:, largest] * np.sqrt(np.maximum(values[largest], 0.0))
    return vectors.mean(axis=0).astype(np.float32), factor.astype(np.float32)
