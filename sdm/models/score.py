"""From embeddings to a score: normalise, sum, cosine, probability. Pure functions on tensors.

TaxaBind (arXiv 2411.00683, section 3) combines modalities by adding their L2-normalised
embeddings; the score of a species is the cosine between that sum and the species embedding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def normalise(x: Tensor) -> Tensor:
    """L2-normalise the last axis: (..., dim) -> (..., dim)."""
    return torch.nn.functional.normalize(x, dim=-1)


def combine(embeddings: Sequence[Tensor]) -> Tensor:
    """Normalised sum of the normalised embeddings of several modalities: each (..., dim) -> (..., dim)."""
    total = normalise(embeddings[0])
    for embedding in embeddings[1:]:
        total = total + normalise(embedding)
    return normalise(total)


def cosine(places: Tensor, species: Tensor) -> Tensor:
    """Cosine of unit vectors: (N, dim), (S, dim) -> (N, S)."""
    return places @ species.T


def similarity(places: Tensor, species: Tensor) -> Tensor:
    """Cosine of vectors of any length with unit vectors: (N, dim), (S, dim) -> (N, S).

    Same as `cosine(normalise(places), species)`, without a normalised copy of the places.
    """
    length = torch.linalg.vector_norm(places, dim=-1, keepdim=True).clamp_min(1e-12)
    return (places @ species.T) / length


def probability(cos: Tensor, scale: float | Tensor, bias: float | Tensor) -> Tensor:
    """`sigmoid(scale * cos + bias)`: the calibrated probability, same shape as `cos`; one scale and bias, or (S,)."""
    return torch.sigmoid(cos * scale + bias)
