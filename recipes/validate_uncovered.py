"""Is a model right where its training data are not reliable? Records of birds in the uncovered area.

    python recipes/validate_uncovered.py --inat FOLDER --model birds

`FOLDER` as for `recipes/validate_records.py`. Printed are the records there, one per cell of 0.2 degree and
species, the share of them with a value of one half or more, and the AUC of the species with at least `LEAST` records
against random uncovered land.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from sdm.engine.points import score_places
from sdm.layers.landmask import land_sample
from sdm.models.bundled import BundledModel
from sdm.training.measures.scores import auc

CELL, LEAST, PLACES = 0.2, 5, 6000


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--inat", required=True, type=Path)
    parser.add_argument("--model", default="birds")
    args = parser.parse_args()
    model = BundledModel.open(args.model)
    coverage = model.coverage
    if coverage is None:
        raise SystemExit(f"model {args.model!r} covers everything.")
    with np.load(args.inat / "occurrences.npz") as data:
        names = dict(zip(data["taxon_ids"].tolist(), data["taxon_names"].tolist(), strict=True))
        name = np.array([names[number] for number in data["taxon_id"].tolist()])
        lat, lon = data["lat_lon"].T.astype(np.float64)
    chosen = np.isin(name, [t.name for t in model.taxa]) & ~coverage.keep(lon, lat)
    lon, lat, name = lon[chosen], lat[chosen], name[chosen]
    species, number = np.unique(name, return_inverse=True)
    _, first = np.unique(np.stack([np.floor(lon / CELL), np.floor(lat / CELL), number]), axis=1, return_index=True)
    lon, lat, number = lon[first], lat[first], number[first]
    here = score_places(model, list(species), lon, lat)[np.arange(lon.size), number]
    x, y = land_sample(PLACES)
    uncovered = ~coverage.keep(x, y)
    there = score_places(model, list(species), x[uncovered], y[uncovered])
    found = []
    for k in np.flatnonzero(np.bincount(number) >= LEAST):
        values = np.concatenate([here[number == k], there[:, k]])
        found.append(auc(values, np.arange(values.size) < (number == k).sum()))
    print(f"{100 * uncovered.mean():.0f} % of the land is not covered")
    print(
        f"{lon.size} records of {species.size} birds there, {100 * (here >= 0.5).mean():.0f} % of them at 0.5 or more"
    )
    print(f"AUC of {len(found)} birds against uncovered land: mean {np.mean(found):.3f}, least {np.min(found):.3f}")


if __name__ == "__main__":
    main()
