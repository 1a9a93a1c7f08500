"""How much each modality and each group of variables decides the score of a fit, at its own places."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from sdm.records.features import ModelFeatures
    from sdm.records.fitted import Fitted
    from sdm.records.training import Training

PLACES = 256
"""Presences, and comparison places, at most: enough for a share to half a percent."""


@dataclass(frozen=True)
class Decided:
    """The share of one part of a score: of the differences from what is typical, those that it causes."""

    name: str
    presences: float
    """Mean over presences."""
    others: float
    """Mean over the places that they are compared with."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {"name": self.name, "presences": round(self.presences, 4), "others": round(self.others, 4)}


def decided(fitted: Fitted, training: Training, source: Any, seed: int = 0) -> tuple[Decided, ...]:
    """The shares of the parts of a fit's linear member, the largest at presences first; () where it has none.

    Parameters
    ----------
    fitted, training : the fit and its places.
    source : that described them (`sdm.records.features.FeatureSource`).
    seed : of the places that are looked at.
    """
    from sdm.records.features import ModelFeatures

    rng = np.random.default_rng(seed)
    seen, other = (rng.permutation(np.flatnonzero(m))[:PLACES] for m in (training.presence, ~training.presence))
    some = training.select(np.concatenate([seen, other]))
    embeddings: Mapping[str, np.ndarray] = {"embedding": some.features.embedding}
    if isinstance(source, ModelFeatures) and fitted.dim:
        embeddings = _modalities(source, some)
    shares = fitted.shares(dict(embeddings), some.features.environment)
    rows = [
        Decided(name, float(v[some.presence].mean()), float(v[~some.presence].mean())) for name, v in shares.items()
    ]
    return tuple(sorted(rows, key=lambda row: -row.presences))


def _modalities(source: ModelFeatures, places: Training) -> dict[str, np.ndarray]:
    """The part of each modality in the summed embeddings of places: {name: (N, dim)}."""
    from sdm.engine.encode import embed_positions

    parts = {}
    for modality in source.modalities:
        sampling = source.sampling
        alone = replace(
            sampling,
            modalities=(modality,),
            month=sampling.month if modality == "location" else None,
            environment=sampling.environment if modality == "environment" else (),
            satellite=sampling.satellite if modality == "satellite" else None,
        )
        parts[modality] = embed_positions(source.model, alone, places.lon, places.lat, source.device)[0]
    length = np.linalg.norm(sum(parts.values()), axis=1, keepdims=True)
    return {f"{name} (embedding)": vectors / np.maximum(length, 1e-9) for name, vectors in parts.items()}
