"""Scores at single places: the same model as a map, encoded exactly at each position."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sdm.engine import environment_of, satellite_of
from sdm.model import MODALITIES, Model

BATCH = 4096


def embed_places(model: Model, lon: np.ndarray, lat: np.ndarray, device: str = "cpu") -> dict[str, np.ndarray]:
    """Unit embeddings per modality of positions (N,), (N,) degrees: each (N, dim) float32."""
    encoders = model.load(device)
    environment, satellite = environment_of(model), satellite_of(model)
    parts: dict[str, list[np.ndarray]] = {m: [] for m in MODALITIES}
    for start in range(0, lon.size, BATCH):
        x, y = lon[start : start + BATCH], lat[start : start + BATCH]
        values = {
            "location": np.stack([x, y], axis=1),
            "satellite": satellite.crops(x, y),
            "environment": environment.sample(x, y),
        }
        for m in MODALITIES:
            parts[m].append(encoders.encode(m, values[m]).cpu().numpy())
    return {m: np.concatenate(p) for m, p in parts.items()}


def score_places(
    model: Model,
    species: Sequence[str],
    lon: np.ndarray,
    lat: np.ndarray,
    modalities: Sequence[str] = MODALITIES,
    device: str = "cpu",
) -> np.ndarray:
    """Probability of species at positions (N,), (N,) degrees: (N, len(species)) float32; no mask applied.

    Raises SpeciesNameError for names the model cannot resolve.
    """
    vectors = np.stack([model.species_embedding(model.taxa.resolve(s)) for s in species])
    return combine_scores(model, embed_places(model, lon, lat, device), vectors, tuple(modalities))


def combine_scores(
    model: Model, embeddings: dict[str, np.ndarray], vectors: np.ndarray, modalities: tuple[str, ...]
) -> np.ndarray:
    """Probability (N, S) from per-modality unit embeddings (N, dim) and species vectors (S, dim)."""
    import torch

    from sdm.score import combine, cosine, probability

    places = combine([torch.from_numpy(embeddings[m]) for m in modalities])
    cos = cosine(places, torch.from_numpy(vectors))
    return probability(cos, *model.calibration(modalities)).numpy()
