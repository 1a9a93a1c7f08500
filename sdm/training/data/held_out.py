"""The groups of places and the species that a recipe holds out, and the places at which it is scored."""

from __future__ import annotations

import numpy as np

from sdm.errors import RequestError
from sdm.training.data.labels import Places
from sdm.training.data.sources import Ranges
from sdm.training.data.splits import held_out_places, held_out_species
from sdm.training.data.training_set import TrainingSet
from sdm.training.recipe.range_recipe import Recipe


def split_training_set(recipe: Recipe, data: TrainingSet) -> tuple[np.ndarray, np.ndarray]:
    """((G,) bool: groups held out, (S,) bool: species held out) by the recipe's [evaluation].

    Raises RequestError when nothing, or everything, is held out.
    """
    e = recipe.evaluation
    groups = held_out_places(
        e.split,
        data.places.centre,
        fraction=e.held_out,
        seed=e.seed,
        block_degrees=e.block_degrees,
        continents=e.continents,
        climate=e.climate,
    )
    species = np.zeros(len(data.species), bool)
    if e.split == "species":
        species = held_out_species(data.species, e.held_out, e.seed)
    held_out = species if e.split == "species" else groups
    if not held_out.any() or held_out.all():
        raise RequestError(
            f"split {e.split!r} holds out {'all' if held_out.any() else 'none'} of {held_out.size} "
            f"{'species' if e.split == 'species' else 'groups of places'}; change [evaluation] of the recipe."
        )
    return groups, species


def scored_places(recipe: Recipe, data: TrainingSet, groups: np.ndarray) -> TrainingSet:
    """One place per group, at most `max_places` of a source: the centre of a raster cell, or a random place."""
    e, p = recipe.evaluation, data.places
    rng = np.random.default_rng(e.seed)
    parts = []
    for k, source in enumerate(data.sources):
        own = groups[p.group_source[groups] == k]
        if not own.size:
            continue
        if own.size > e.max_places:
            own = np.sort(rng.choice(own, e.max_places, replace=False))
        if isinstance(source, Ranges):
            zeros = np.zeros(own.size, np.int8)
            parts.append((k, Places.single(p.centre[own], zeros, zeros, p.origin[p.start[own]])))
        else:
            parts.append((k, p.take(p.start[own] + (rng.random(own.size) * p.count[own]).astype(np.int64))))
    return data.at(Places.join(parts))
