"""Scores at single places: the same model as a map, encoded exactly at each position."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from sdm.engine.encode import embed_positions
from sdm.models.protocol import Model
from sdm.request import Sampling


def embed_places(
    model: Model, lon: np.ndarray, lat: np.ndarray, sampling: Sampling | None = None, device: str = "cpu"
) -> dict[str, np.ndarray]:
    """Embeddings of positions, each modality by itself.

    Parameters
    ----------
    model : the model that encodes.
    lon, lat : (N,) float64, degrees.
    sampling : modalities (default: all the model has), month, and layers in place of the bundled ones.
    device : a torch device by name.

    Returns
    -------
    By modality, (N, dim) float32 unit vectors.
    """
    sampling = sampling or Sampling()
    embeddings = {}
    for modality in sampling.modalities or model.place_modalities:
        alone = replace(
            sampling,
            modalities=(modality,),
            environment=sampling.environment if modality == "environment" else (),
            satellite=sampling.satellite if modality == "satellite" else None,
        )
        embeddings[modality] = embed_positions(model, alone, lon, lat, device)[0]
    return embeddings


def score_places(
    model: Model,
    species: Sequence[str],
    lon: np.ndarray,
    lat: np.ndarray,
    sampling: Sampling | None = None,
    device: str = "cpu",
) -> np.ndarray:
    """Probability of species at positions; no mask is applied.

    Parameters
    ----------
    model : a calibrated model.
    species : S names. Raises SpeciesNameError for one that the model cannot resolve.
    lon, lat : (N,) float64, degrees.
    sampling, device : as of `embed_places`.

    Returns
    -------
    (N, S) float32.
    """
    found = [model.resolve(s) for s in species]
    vectors = np.stack([model.species_embedding(r) for r in found])
    embeddings = embed_places(model, lon, lat, sampling, device)
    return combine_scores(model, embeddings, vectors, tuple(embeddings), [r.taxon.group for r in found])


def combine_scores(
    model: Model,
    embeddings: dict[str, np.ndarray],
    vectors: np.ndarray,
    modalities: tuple[str, ...],
    groups: Sequence[str] = (),
) -> np.ndarray:
    """Probability (N, S) from per-modality unit embeddings (N, dim) and species vectors (S, dim).

    `groups`: of each species (`Taxon.group`); by default none has a calibration of its own.
    """
    import torch

    from sdm.models.score import combine, cosine, probability

    places = combine([torch.from_numpy(embeddings[m]) for m in modalities])
    cos = cosine(places, torch.from_numpy(vectors))
    of = [model.calibration(modalities, group) for group in groups or [""] * len(vectors)]
    scale, bias = torch.from_numpy(np.array(of, np.float32).T)
    return probability(cos, scale, bias).numpy()
