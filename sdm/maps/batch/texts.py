"""Metadata and labels of the outputs of a batch."""

from __future__ import annotations

from typing import Any

import numpy as np

from sdm.engine.doubt import Doubt
from sdm.engine.targets import calibration_group, probability
from sdm.maps.batch.plan import Batch
from sdm.maps.report import attribution, common_tags, season_phrase
from sdm.models.joint import member_of, members_of
from sdm.names import Resolution
from sdm.outputs.metadata import MapMetadata

STORE = "probability.zarr"
RICHNESS = "richness"
"""Stem of the files of the richness map."""
AGREEMENT = "agreement"
"""Variable of how well the modalities agree, from which the uncertainty of every species follows."""
PICTURES = "gallery"
"""Folder of pictures, one per species."""
SPECIES = "species"
"""Folder of files per species."""
SUMMARY = "summary.csv"
PAGE = "index.html"
ENCODING = (
    "The environment was encoded at every pixel. A map of a single species interpolates it where the answer is "
    "settled; the two differ by less than 0.002 on average, and by up to 0.05 at single pixels."
)


def cube_metadata(batch: Batch, command: str) -> MapMetadata:
    """Metadata of the variable (species, y, x)."""
    job, plan = batch.job, batch.job.plan
    if job.fits:
        return _fitted_metadata(batch, command)
    formulas, ranges = _formulas(batch)
    return MapMetadata(
        title=f"Probability of the ranges of {len(job.resolutions):,} species{season_phrase(plan)}",
        quantity=f"Probability that the place lies in the species' range{season_phrase(plan)}",
        description=(
            f"For each species and pixel the probability that it lies in the range, {'; '.join(formulas)} in the "
            f"embedding space of the model {plan.model.space[0]!r}, rounded to 1/8192. "
            f"{ENCODING} Not an abundance, not a habitat quality; {'; '.join(ranges)}. "
            "NaN: not modelled."
        ),
        variable=plan.targets[0].score.name,
        valid_range=plan.targets[0].score.valid_range,
        tags=_tags(batch, command),
        attribution=attribution(plan),
        month=plan.month,
    )


def _formulas(batch: Batch) -> tuple[list[str], list[str]]:
    """How probabilities follow from cosines, and what the ranges of each model are."""
    job, plan = batch.job, batch.job.plan
    formulas, ranges = [], []
    scores = {
        (member_of(plan.model, r.taxon).name, calibration_group(r)): probability(
            member_of(plan.model, r.taxon), plan.modalities, calibration_group(r)
        )
        for r in job.resolutions
    }
    models = {name: {score for (of, _), score in scores.items() if of == name} for name, _ in sorted(scores)}
    for name, own in models.items():
        of = f"species of the model {name!r}: " if len(models) > 1 else ""
        for score in sorted(own, key=lambda s: (s.scale, s.bias)):
            groups = sorted({group for (at, group), s in scores.items() if (at, s) == (name, score) and group})
            which = f"{' and '.join(groups)} species: " if len(own) > 1 and groups else ""
            formulas.append(f"{of}{which}sigmoid({score.scale:.3f} * cosine {score.bias:+.3f})")
        ranges.append(f"{of}{next(iter(own)).ranges}")
    return formulas, ranges


def are_probabilities(batch: Batch) -> bool:
    """Whether the maps of all species hold probabilities."""
    return all(target.score.name == "probability" for target in batch.job.plan.targets)


def _fitted_metadata(batch: Batch, command: str) -> MapMetadata:
    """Of the variable (species, y, x), where species are fitted to records."""
    count, plan = len(batch.job.resolutions), batch.job.plan
    if are_probabilities(batch):
        what, caution = "Probability of presence", ""
    else:
        what = "Relative suitability"
        caution = (
            " Relative suitability ranks places for one species and is NOT a probability of presence; the coordinate "
            "score names the species whose values are probabilities."
        )
    return MapMetadata(
        title=f"{what} of {count:,} species{season_phrase(plan)}, fitted to records",
        quantity=f"{what} of the species{season_phrase(plan)}, fitted to records",
        description=f"For each species and pixel its fit to records, rounded to 1/8192.{caution} NaN: not modelled.",
        variable="probability" if are_probabilities(batch) else "relative_suitability",
        valid_range=(0.0, 1.0),
        tags=_tags(batch, command),
        attribution=attribution(plan),
        month=plan.month,
    )


def richness_metadata(batch: Batch, command: str) -> MapMetadata:
    """Metadata of the sum over the species, (y, x): a number of species only where all maps hold probabilities."""
    count, plan = len(batch.job.resolutions), batch.job.plan
    if are_probabilities(batch):
        title = "Richness"
        quantity = f"Expected number, of {count:,} species, whose range holds the place"
        description = (
            f"Sum of the probabilities of {count:,} species that the pixel lies in their range: the expected number of "
            "them whose range holds it. Only the species of the list count; one that is not modelled at a pixel adds "
            "nothing. NaN: none of them is modelled there."
        )
    else:
        title = "Summed suitability"
        quantity = f"Sum of the values of {count:,} species"
        description = (
            f"Sum of the values of {count:,} species. Not a number of species: relative suitability is not a "
            "probability. NaN: none of the species is modelled there."
        )
    return MapMetadata(
        title=f"{title} of {count:,} species{season_phrase(plan)}",
        quantity=f"{quantity}{season_phrase(plan)}",
        description=description,
        variable=RICHNESS,
        unit="species",
        valid_range=(0.0, float(count)),
        tags=_tags(batch, command),
        attribution=attribution(plan),
        month=plan.month,
    )


def agreement_metadata(batch: Batch) -> tuple[MapMetadata, ...]:
    """Metadata of the agreement of the modalities; none where the uncertainty of no species follows from it."""
    plan = batch.job.plan
    of_models: dict[str, Doubt] = {}
    for target, resolution in zip(plan.targets, batch.job.resolutions, strict=True):
        if target.doubt is not None:
            of_models.setdefault(member_of(plan.model, resolution.taxon).name, target.doubt)
    if not of_models:
        return ()
    several = len(members_of(plan.model)) > 1
    explained = " ".join(
        f"{f'Of species with the coordinate model {name}: ' if several else ''}"
        f"sdm.uncertainty(probability, agreement, model={name!r}). {doubt.explanation}"
        for name, doubt in of_models.items()
    )
    return (
        MapMetadata(
            title="Agreement of the modalities",
            quantity="Length of the mean of the unit embeddings of the modalities, 0 to 1",
            description=(
                "The uncertainty of a species (band 2 of its GeoTIFF) follows from its probability and this: "
                + explained
            ),
            variable=AGREEMENT,
            attribution=attribution(plan),
        ),
    )


def bands_metadata(batch: Batch) -> tuple[MapMetadata, ...]:
    """Metadata of the further bands (species, y, x) of fits to records; none where there are no fits."""
    plan = batch.job.plan
    bands = {band.name: band for target in plan.targets for band in target.measured}
    return tuple(
        MapMetadata(
            title=f"{band.name.capitalize()} of {len(plan.targets):,} species",
            quantity=band.quantity,
            description=f"{band.quantity}, for each species and pixel. NaN: not modelled, or a kept zero-shot map.",
            variable=band.name,
            unit=band.unit,
            valid_range=band.valid_range,
            attribution=attribution(plan),
        )
        for band in bands.values()
    )


def _tags(batch: Batch, command: str) -> dict[str, str]:
    """Provenance common to all maps of a batch."""
    return common_tags(batch.job, command) | {"species_count": str(len(batch.job.resolutions))}


def labels(batch: Batch) -> dict[str, tuple[list[Any], str]]:
    """The coordinates along the species dimension: name to (values, long name)."""
    rows, targets, resolutions = batch.first_rows, batch.job.plan.targets, batch.job.resolutions
    taxa = [r.taxon for r in resolutions]
    model = batch.job.plan.model
    of_models = [member_of(model, taxon).name for taxon in taxa] if len(members_of(model)) > 1 else []
    return {
        "species": ([t.name for t in taxa], "scientific name of what is mapped"),
        "query": ([row.asked.query for row in rows], "name as given in the list"),
        "rank": ([t.rank for t in taxa], "rank of what is mapped"),
        "common_name": ([t.common[0] if t.common else "" for t in taxa], "common name"),
        "family": ([t.at("family") or "" for t in taxa], "family"),
        "resolved_by": ([r.how for r in resolutions], "how the name was resolved"),
        "known": (
            [np.int8(r.known) for r in resolutions],
            "1: the model was trained on this taxon; 0: mapped as its group",
        ),
        "origin": ([r.origin for r in resolutions], "range that is mapped: native, or all with the introduced one"),
        "mask": ([t.mask for t in targets], "mask: land, sea or none"),
        "atlas": ([t.atlas for t in targets], "what the map takes from the model's atlas: prior, or none"),
        **({"model": (of_models, "model that has the species")} if of_models else {}),
        **({"score": ([t.score.name for t in targets], "what a value is")} if batch.job.fits else {}),
    }


def confidence(resolution: Resolution) -> str:
    """The basis of a map: "species" or "group" where the model was trained on it, else the group used instead."""
    if resolution.known:
        return "species" if resolution.taxon.rank == "species" else "group"
    return f"stand-in: {resolution.taxon.rank}"
