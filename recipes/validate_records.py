"""Score a model on real occurrence records: does it rank the places where animals were seen?

    python recipes/validate_records.py --inat FOLDER --model mammals-trees --out runs/records.json

`FOLDER` holds `occurrences.npz` (iNaturalist records; arrays lat_lon **(lat, lon)**, taxon_id,
taxon_ids, taxon_names). For every species that the model knows and that has at least `--min` records
after thinning to one per 0.1 degree cell, the AUC of its records against

* random land: places drawn uniformly by area over the land of the globe, the same for all species;
* the neighbourhood: random land within 500 km of the species' records, where ranges end and
  mountains rise, the more difficult and more useful question.

Printed for location alone and for the sum of all modalities, to show what satellite and
environment add; with `--ranges`, also for the ranges themselves (in or out), the score of a model that reproduces the
range maps exactly. Records are opportunistic: they show where people met the animal, not where it lives.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from sdm.engine.points import combine_scores, embed_places
from sdm.errors import SpeciesNameError
from sdm.layers.landmask import LandMask
from sdm.models.bundled import BundledModel
from sdm.models.origin import of_origin
from sdm.request.choices import MODALITIES, ORIGINS
from sdm.training.data.ranges import RangeRaster
from sdm.training.measures.scores import auc

EARTH_KM = 6371.0088
RADIUS_KM = 500.0


def random_land(n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(lon, lat) of n places uniform by area on land north of 60 S."""
    mask, lon, lat = LandMask(), np.empty(0), np.empty(0)
    while lon.size < n:
        x = rng.uniform(-180, 180, n)
        y = np.degrees(np.arcsin(rng.uniform(np.sin(np.radians(-60)), 1, n)))
        keep = mask.keep("land", x, y)
        lon, lat = np.append(lon, x[keep]), np.append(lat, y[keep])
    return lon[:n], lat[:n]


def unit(lon: np.ndarray, lat: np.ndarray) -> np.ndarray:
    """Points on the unit sphere, (N, 3)."""
    lon, lat = np.radians(lon), np.radians(lat)
    return np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], axis=1)


def near(lon: np.ndarray, lat: np.ndarray, to_lon: np.ndarray, to_lat: np.ndarray, km: float) -> np.ndarray:
    """Boolean (N,): within km (great circle) of any of the other points."""
    from scipy.spatial import cKDTree

    chord = 2 * np.sin(km / EARTH_KM / 2)
    distance, _ = cKDTree(unit(to_lon, to_lat)).query(unit(lon, lat), distance_upper_bound=chord)
    return np.isfinite(distance)


def thinned(lon: np.ndarray, lat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(lon, lat) of the first record in each cell of 0.1 degree."""
    _, first = np.unique(np.stack([np.floor(lon / 0.1), np.floor(lat / 0.1)]), axis=1, return_index=True)
    return lon[first], lat[first]


def against_land(here: np.ndarray, there: np.ndarray, close: np.ndarray) -> dict[str, float]:
    """AUC of scores at records against all of those on land ("land") and the `close` ones ("500km"), if 50 or more."""
    found = {}
    for label, other in (("land", there), ("500km", there[close])):
        if other.size >= 50:
            present = np.concatenate([np.ones(here.size), np.zeros(other.size)])
            found[label] = auc(np.concatenate([here, other]), present)
    return found


def main() -> None:
    """Read, score, print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--inat", required=True, type=Path)
    parser.add_argument("--model", default="mammals-trees")
    parser.add_argument("--group", default="mammal")
    parser.add_argument("--min", type=int, default=20)
    parser.add_argument("--origin", default="native", choices=ORIGINS, help="ranges of the model: native, or all")
    parser.add_argument("--background", type=int, default=60000)
    parser.add_argument("--ranges", type=Path, help="folder of the range rasters (PHYLACINE)")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    model = BundledModel.open(args.model)
    z = np.load(args.inat / "occurrences.npz")
    rng = np.random.default_rng(0)
    bg_lon, bg_lat = random_land(args.background, rng)
    background = embed_places(model, bg_lon, bg_lat)
    subsets = {"location": ("location",), "location+environment": ("location", "environment"), "all": MODALITIES}
    atlas = RangeRaster.phylacine(args.ranges, {t.name for t in model.taxa}) if args.ranges else None
    rows = []
    for number, name in zip(z["taxon_ids"], z["taxon_names"], strict=True):
        try:
            resolution = of_origin(model, model.taxa.resolve(str(name)), args.origin)
        except SpeciesNameError:
            continue
        if not resolution.known or resolution.taxon.rank != "species" or resolution.taxon.group != args.group:
            continue
        lon, lat = thinned(*z["lat_lon"][z["taxon_id"] == number].astype(np.float64).T[::-1])
        if lon.size < args.min:
            continue
        records = embed_places(model, lon, lat)
        close = near(bg_lon, bg_lat, lon, lat, RADIUS_KM)
        vector = model.species_embedding(resolution)[None]
        row: dict = {"species": str(name), "records": int(lon.size), "near": int(close.sum())}
        for key, subset in subsets.items():
            here = combine_scores(model, records, vector, subset)[:, 0]
            there = combine_scores(model, background, vector, subset)[:, 0]
            row |= {f"{key} {label}": v for label, v in against_land(here, there, close).items()}
            row[f"{key} mean p at records"] = float(here.mean())
        if atlas is not None and resolution.taxon.name in atlas.species:
            column = atlas.species.index(resolution.taxon.name)
            here, there = (atlas.at(column, x, y) for x, y in ((lon, lat), (bg_lon, bg_lat)))
            row |= {f"ranges {label}": v for label, v in against_land(here, there, close).items()}
            row["ranges mean p at records"] = float(here.mean())
        rows.append(row)
    summary = {"species": len(rows), "records": sum(r["records"] for r in rows)}
    print(f"{summary['species']} species, {summary['records']} records (one per 0.1 degree cell)")
    print("| modalities | AUC, random land | median | AUC, within 500 km | mean probability at records |")
    print("|---|---|---|---|---|")
    for key in [*subsets, *(["ranges"] if atlas is not None else [])]:
        land, close = ([r[f"{key} {x}"] for r in rows if f"{key} {x}" in r] for x in ("land", "500km"))
        at = float(np.mean([r[k] for r in rows if (k := f"{key} mean p at records") in r]))
        summary[key] = {
            "land": float(np.mean(land)),
            "land_median": float(np.median(land)),
            "within_500km": float(np.mean(close)),
            "mean_probability": at,
        }
        print(f"| {key} | {np.mean(land):.4f} | {np.median(land):.4f} | {np.mean(close):.4f} | {at:.3f} |")
    worst = sorted(rows, key=lambda r: r["all land"])[:8]
    print("lowest:", ", ".join(f"{r['species']} {r['all land']:.3f}" for r in worst))
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps({"summary": summary, "species": rows}, indent=1))


if __name__ == "__main__":
    main()
