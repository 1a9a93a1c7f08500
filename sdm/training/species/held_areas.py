"""How good species are of which only lists of areas are known: areas held out, and species whose ranges are known."""

from __future__ import annotations

from typing import Any

import numpy as np

from sdm.training.measures.scores import auc
from sdm.training.species.groups import AreaGroup
from sdm.training.species.world import World

SCORED, LAND = 500, 6000
"""Species that are scored, and random places on land that each is compared with."""


def held_out_areas(
    listed: np.ndarray, without: np.ndarray, area: np.ndarray, places: np.ndarray, vectors: np.ndarray
) -> dict[str, Any]:
    """{"species", "areas", "auc"}: whether the best place of an area tells that it is on the list of a species.

    `listed` (S, A) bool, `without` (A,) bool the areas held out, `area` (P,) that of each place (P, dim), vectors
    (S, dim). Mean over species with an area among those held out and one among the others.
    """
    numbers = [k for k in np.flatnonzero(without) if (area == k).any()]
    best = np.stack([(places[area == k] @ vectors.T).max(axis=0) for k in numbers], axis=1)
    there = listed[:, numbers]
    scored = there.any(axis=1) & ~there.all(axis=1) & (listed & ~without).any(axis=1)
    values = [auc(best[k], there[k]) for k in np.flatnonzero(scored)]
    return {"species": len(values), "areas": len(numbers), "auc": float(np.mean(values)) if values else None}


def taught_by_lists(group: AreaGroup, world: World, seed: int) -> dict[str, Any]:
    """Species of known ranges, of families held out of the network, as if only their lists were known.

    {"species", "auc_within": within the areas of their lists, "auc_land": against random land, "auc_list": that of the
    list alone, "area": median of the expected area over the true one, "auc_within_one": of lists of one area}.
    """
    inside, ranges, held = group.trained(world, held=True)
    areas, taught = inside.areas, inside.taught
    rng = np.random.default_rng(seed)
    usable = np.flatnonzero(held & taught.listed.any(axis=1))
    some = rng.choice(usable, min(SCORED, usable.size), replace=False)
    vectors, bias = (values[some] for values in inside.vectors(taught))
    land = rng.choice(len(areas.km2), LAND, p=areas.km2 / areas.km2.sum())
    rows = []
    for species, vector, offset in zip(some, vectors, bias, strict=True):
        lives = np.zeros(len(areas.km2), dtype=bool)
        lives[ranges.indices[slice(*ranges.indptr[species : species + 2])]] = True
        listed = np.append(taught.listed[species], False)[areas.area]
        logit = areas.embeddings @ vector + offset
        against = np.union1d(np.flatnonzero(lives), land)
        expected = (areas.km2[listed] / (1 + np.exp(-logit[listed]))).sum() / areas.km2[lives].sum()
        whole = lives[listed].all() or not lives[listed].any()
        within = np.nan if whole else auc(logit[listed], lives[listed])
        limited = np.where(listed, logit, -1e3)
        one = within if taught.listed[species].sum() == 1 else np.nan
        rows.append(
            [auc(limited[against], lives[against]), auc(listed[against] * 1.0, lives[against]), within, one, expected]
        )
    found = np.array(rows)
    land_, list_, within_, one_ = np.nanmean(found[:, :4], axis=0).tolist()
    return {
        "species": len(rows),
        "auc_within": within_,
        "auc_within_one": one_,
        "auc_land": land_,
        "auc_list": list_,
        "area": float(np.median(found[:, 4])),
    }
