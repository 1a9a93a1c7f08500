"""Scores at single places: the same model as a map, encoded exactly at each position."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sdm.engine.encode import embed_positions
from sdm.models.bundled import Model
from sdm.models.registry import AnyModel
from sdm.request.choices import MODALITIES


def embed_places(
    model: AnyModel, lon: np.ndarray, lat: np.ndarray, device: str = "cpu", modalities: Sequence[str] | None = None,
    environment: Sequence[str] = (), satellite: str | None = None, month: int = 0,
) -> dict[str, np.ndarray]:  # fmt: skip
    """Unit embeddings per modality (default: all the model has) of positions (N,), (N,) degrees: each (N, dim) float32.

    `environment`, `satellite`: layers in place of the bundled ones. `month`: 1 to 12, of a seasonal model.
    """
    layers = {"environment": environment, "satellite": satellite}
    return {
        m: embed_positions(
            model, (m,), lon, lat, device=device, month=month, **({m: layers[m]} if m in layers else {})
        )[0]
        for m in modalities or model.place_modalities
    }


def score_places(
    model: Model,
    species: Sequence[str],
    lon: np.ndarray,
    lat: np.ndarray,
    modalities: Sequence[str] = MODALITIES,
    device: str = "cpu",
    month: int = 0,
) -> np.ndarray:
    """Probability of species at positions (N,), (N,) degrees: (N, len(species)) float32; no mask applied.

    Raises SpeciesNameError for names the model cannot resolve.
    """
    vectors = np.stack([model.species_embedding(model.resolve(s)) for s in species])
    return combine_scores(
        model, embed_places(model, lon, lat, device, modalities, month=month), vectors, tuple(modalities)
    )


def combine_scores(
    model: Model, embeddings: dict[str, np.ndarray], vectors: np.ndarray, modalities: tuple[str, ...]
) -> np.ndarray:
    """Probability (N, S) from per-modality unit embeddings (N, dim) and species vectors (S, dim)."""
    import torch

    from sdm.models.score import combine, cosine, probability

    places = combine([torch.from_numpy(embeddings[m]) for m in modalities])
    cos = cosine(places, torch.from_numpy(vectors))
    return probability(cos, *model.calibration(modalities)).numpy()
