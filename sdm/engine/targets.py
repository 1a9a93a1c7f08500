"""The targets of a map: vector, mask and score of each resolved name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from sdm.engine.doubt import Doubt
from sdm.engine.limits import limits_of
from sdm.engine.places import Places, Target
from sdm.engine.suitability import Cosine, Probability, Suitability
from sdm.errors import RequestError
from sdm.models.device import local_device
from sdm.models.joint import member_of, members_of
from sdm.models.protocol import Model
from sdm.names.habitat import mask_for

if TYPE_CHECKING:
    from sdm.names import Resolution, Taxon


def probability(model: Model, modalities: tuple[str, ...], group: str = "") -> Probability:
    """The probability of a cosine of these modalities, for the species of a group (`Taxon.group`).

    Raises RequestError for a model that is not calibrated.
    """
    if not model.calibrated:
        raise RequestError(
            f"model {model.name!r} is not calibrated, so its maps show relative suitability or cosine similarity, not "
            "probability."
        )
    scale, bias = model.calibration(modalities, group)
    return Probability(scale, bias, model.ranges) if model.ranges else Probability(scale, bias)


def calibration_group(resolution: Resolution) -> str:
    """The group by whose calibration a resolved name is scored: that of its taxon, or "introduced".

    Whole ranges with introduced populations are drawn by countries, native ones by the cells that they touch.
    """
    return "introduced" if resolution.origin == "all" else resolution.taxon.group


def scorer(places: Places, kind: str = "auto") -> Callable[[Resolution, np.ndarray], Suitability]:
    """The score of a resolved name with a vector (dim,) at places; `kind` is one of `SCORES`. Raises RequestError."""
    if kind == "auto":
        kind = "probability" if places.model.calibrated else "relative"
    if kind == "cosine":
        return lambda resolution, vector: Cosine()
    if kind == "probability":
        probability(places.model, places.modalities)  # refuses a model without calibration before any species
        return lambda resolution, vector: probability(
            member_of(places.model, resolution.taxon), places.modalities, calibration_group(resolution)
        )
    from sdm.engine.relative import reference, relative

    sample = reference(places.model, places.sampling, _device_here(places.device))
    return lambda resolution, vector: relative(vector, sample)


def doubter(places: Places) -> Callable[[Taxon], Doubt | None]:
    """What the uncertainty of a named taxon follows from; None where its model or an index does not have it.

    Raises ModelError for a damaged entry of a model.
    """
    if (places.source is not None and not places.source.has_agreement) or not places.model.calibrated:
        return lambda taxon: None
    found = {id(model): Doubt.read(model.folder, places.modalities) for model in members_of(places.model)}
    return lambda taxon: found[id(member_of(places.model, taxon))]


def named_target(
    model: Model,
    resolution: Resolution,
    modalities: tuple[str, ...],
    mask: str = "auto",
    atlas: str = "prior",
    limits: str = "auto",
    month: int = 0,
) -> Target:
    """The target of a resolved name in a calibrated model; `mask`, `atlas`: see `make_target`; others: `limited`."""
    model = member_of(model, resolution.taxon)
    vector = model.species_embedding(resolution)
    target = make_target(
        model, resolution, vector, probability(model, modalities, calibration_group(resolution)), mask, atlas
    )
    return limited(target, model, resolution, limits, month)


def limited(target: Target, model: Model, resolution: Resolution, limits: str = "auto", month: int = 0) -> Target:
    """A target with the limits of its taxon; `limits`: auto or none; `month` 1 to 12, or 0: the whole year.

    Only probabilities have limits. Raises ModelError for a table of the model that cannot be read.
    """
    if limits == "none" or target.score.name != Probability.name:
        return target
    return replace(target, limits=limits_of(member_of(model, resolution.taxon), resolution, month))


def make_target(
    model: Model,
    resolution: Resolution,
    vector: np.ndarray,
    score: Suitability,
    mask: str = "auto",
    atlas: str = "prior",
) -> Target:
    """The target of a resolved name and other evidence.

    Parameters
    ----------
    model : the model in whose space they are.
    resolution : what the name stands for.
    vector : (dim,) float32 unit vector.
    score : the score of a cosine with it.
    mask : land, sea, none, or auto: by the habitat of the taxon.
    atlas : prior: a probability depends on the known range of a species with a small one; none: it does not.
    """
    taxon = resolution.taxon
    model = member_of(model, taxon)
    known = None
    if atlas == "prior" and resolution.origin == "native" and isinstance(score, Probability):
        table = model.known_range(taxon)
        known = table.times(1.0 / score.scale) if table is not None and table.adds else None
    return Target(
        vector,
        score,
        mask_for(taxon) if mask == "auto" else mask,
        model.extent(taxon.group),
        known=known,
    )


def _device_here(device: str) -> str:
    """A device of this process: where only the workers have the one asked for, this one computes on its own."""
    try:
        return local_device(device)
    except RequestError:
        return "cpu"
