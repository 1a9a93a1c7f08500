"""What a resolved name is mapped as: its vector, its mask and what a cosine with it means."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from sdm.engine.places import Places, Target
from sdm.engine.suitability import SCORES, Cosine, Probability, Suitability
from sdm.errors import RequestError
from sdm.models.device import local_device
from sdm.models.registry import AnyModel
from sdm.names.habitat import mask_for

if TYPE_CHECKING:
    from sdm.names import Resolution


def score_of(model: AnyModel, modalities: tuple[str, ...]) -> Suitability:
    """What a cosine of these modalities means in a calibrated model. Raises RequestError for one that is not."""
    if not model.calibrated:
        raise RequestError(f"model {model.name!r} is not calibrated: its maps show relative suitability or cosines.")
    ranges = {"ranges": model.ranges} if model.ranges else {}
    return Probability(*model.calibration(modalities), **ranges)


def scorer(places: Places, kind: str = "auto") -> Callable[[np.ndarray], Suitability]:
    """What a cosine with a vector (dim,) means at these places; `kind` is one of `SCORES`. Raises RequestError."""
    if kind not in SCORES:
        raise RequestError(f"score {str(kind)[:40]!r} is not known; choose one of {', '.join(SCORES)}.")
    if kind == "auto":
        kind = "probability" if places.model.calibrated else "relative"
    if kind == "cosine":
        return lambda vector: Cosine()
    if kind == "probability":
        score = score_of(places.model, places.modalities)
        return lambda vector: score
    from sdm.engine.relative import reference, relative

    sample = reference(
        places.model, places.modalities, places.environment, places.satellite, _device_of(places.device), places.month
    )
    return lambda vector: relative(vector, sample)


def target_of(
    model: AnyModel, resolution: Resolution, modalities: tuple[str, ...], mask: str = "auto",
    vector: np.ndarray | None = None, score: Suitability | None = None,
) -> Target:  # fmt: skip
    """What a resolved name stands for; `mask` land, sea, none, or auto: by the species' habitat.

    `vector`, `score`: where they are not those of the name and of the calibrated model.
    """
    taxon = resolution.taxon
    return Target(
        model.species_embedding(resolution) if vector is None else vector,
        score_of(model, modalities) if score is None else score,
        mask_for(taxon) if mask == "auto" else mask,
        model.extent(taxon.group),
    )


def _device_of(device: str) -> str:
    """A device of this process: where only the workers have the one asked for, this one computes on its own."""
    try:
        return local_device(device)
    except RequestError:
        return "cpu"
