"""Score a model at occurrence records of species of which only lists of countries were known.

    python recipes/validate_areas.py --inat FOLDER --lists FILE.parquet --model life --group amphibian

`FOLDER` holds `occurrences.npz` as for `recipes/validate_records.py`, `FILE` the lists (columns species, iso2, status).
Records are thinned to one per half a degree. Printed for each species, and in the mean: the AUC of its records against
random land, against random land of its countries, and that of the list alone (in a country of it or not) against random
land. Maps with known ranges (`--atlas prior`) are what is scored.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from validate_records import random_land

from sdm.engine.encode import embed_positions
from sdm.models.bundled import BundledModel
from sdm.names import Resolution
from sdm.request import Sampling
from sdm.request.choices import MODALITIES
from sdm.training.data.areas import AreaLists, countries_at
from sdm.training.measures.scores import auc

LAND = 8000
CELL = 0.5
MIN = 3
"""Records in the listed countries that a species needs."""


def thinned(lonlat: np.ndarray) -> np.ndarray:
    """The first position (N, 2) in each cell of half a degree."""
    return lonlat[np.unique(np.floor(lonlat / CELL), axis=0, return_index=True)[1]]


def main() -> None:
    """Parse the command line and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inat", type=Path, required=True, help="folder with occurrences.npz")
    parser.add_argument("--lists", type=Path, required=True)
    parser.add_argument("--model", default="life")
    parser.add_argument("--group", default="amphibian")
    args = parser.parse_args()
    model = BundledModel.open(args.model)
    with np.load(args.inat / "occurrences.npz", allow_pickle=False) as z:
        names, ids = z["taxon_names"].tolist(), z["taxon_ids"]
        records = {n: z["lat_lon"][z["taxon_id"] == i][:, ::-1].astype(float) for n, i in zip(names, ids, strict=True)}
    taxa = [t for n in names if (t := model.taxa.by_name.get(n.lower())) and t.group == args.group]
    own = [thinned(records[t.name]) for t in taxa]
    lonlat = np.concatenate([np.stack(random_land(LAND, np.random.default_rng(0)), axis=1), *own])
    lon, lat = (np.ascontiguousarray(column) for column in lonlat.T)
    places, known = embed_positions(model, Sampling(), lon, lat)
    codes, area = countries_at(lonlat)
    lists = AreaLists.read(args.lists, ("species", "iso2"), {t.name for t in taxa}).to(codes)
    scale, bias = model.calibration(MODALITIES)
    first, rows = LAND, []
    for taxon, positions in zip(taxa, own, strict=True):
        here = np.zeros(len(lonlat), dtype=bool)
        here[first : first + len(positions)] = True
        first += len(positions)
        if taxon.name not in lists.species:
            continue
        vector = model.species_embedding(Resolution(taxon.name, taxon, True, ""))
        logit = scale * (places @ vector) + bias
        ranges = model.known_range(taxon)
        logit = logit + ranges.shift(lon, lat) if ranges else logit
        listed = np.append(lists.listed[lists.species.index(taxon.name)], False)[area]
        land = (here | (np.arange(len(lonlat)) < LAND)) & known
        within = land & listed
        if (here & within).sum() >= MIN and (within & ~here).any():
            scores = [auc(logit[some], here[some]) for some in (land, within)]
            rows.append([*scores, auc(listed[land] * 1.0, here[land])])
            print(f"{taxon.name:32s} {int(here.sum()):5d} " + " ".join(f"{value:.3f}" for value in rows[-1]))
    mean = np.mean(rows, axis=0)
    print(f"{len(rows)} species: against land {mean[0]:.3f}, within countries {mean[1]:.3f}, list alone {mean[2]:.3f}")


if __name__ == "__main__":
    main()
