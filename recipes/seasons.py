"""Write the table of seasons of a model of birds: between which latitudes those breed that leave for the winter.

    python recipes/seasons.py --avonet avonet_birdlife_ranges.csv.gz --birdnames birdnames-0.1.3-py3-none-any.whl \
        --out models/birds

From AVONET (Tobias et al. 2022, 10.1111/ele.13898, CC BY 4.0), whose latitudes are those of the breeding and resident
range. Birds of the table migrate (Migration 3), breed around a centroid beyond `TEMPERATE` degrees, and live neither at
sea nor on coasts and wetlands, where birds of the year before stay for the summer. The edge towards the equator is the
lowest latitude of the range, but no farther from the centroid than `SPREAD` times the edge towards the pole: single
breeding places in winter quarters, as of barn swallows in Argentina and white storks in South Africa, do not count.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

from birds_known import read_avonet
from birds_taxa import EBIRD, other_names, read_lists

from sdm.models.registry import open_model

TEMPERATE, SPREAD = 30.0, 1.5
RESIDENT_BEYOND = {
    "Accipiter striatus",
    "Asio flammeus",
    "Ciconia nigra",
    "Circaetus gallicus",
    "Coturnix coturnix",
    "Falco tinnunculus",
    "Glareola pratincola",
    "Muscicapa dauurica",
    "Setophaga petechia",
    "Zoothera aurea",
}
"""Birds of which others stay all year where `SPREAD` would say that none breed; found among those cut by 15 degrees
or more."""
OPEN_WATER = ("Coastal", "Marine", "Wetland")


def main() -> None:
    """Write `seasons.csv`."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--avonet", required=True, type=Path)
    parser.add_argument("--birdnames", required=True, type=Path)
    parser.add_argument("--out", required=True, type=Path, help="folder of the model")
    args = parser.parse_args()
    lists = read_lists(args.birdnames)
    names = [t.name for t in open_model(args.out).taxa]
    others = other_names(lists, set(names) & set(lists[EBIRD]["scientific_name"]))
    table = read_avonet(args.avonet, {name: others.get(name, []) for name in names})
    centre = table["Centroid.Latitude"]
    chosen = table[(table["Migration"] == 3) & (centre.abs() >= TEMPERATE) & ~table["Habitat"].isin(OPEN_WATER)]
    chosen = chosen[~chosen.index.isin(RESIDENT_BEYOND)]
    rows = []
    for name, bird in chosen.iterrows():
        middle, south, north = bird["Centroid.Latitude"], bird["Min.Latitude"], bird["Max.Latitude"]
        if middle > 0:
            south = max(south, middle - SPREAD * (north - middle))
        else:
            north = min(north, middle + SPREAD * (middle - south))
        rows.append([name, f"{south:.1f}", f"{north:.1f}"])
    with (args.out / "seasons.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([["species", "south", "north"], *sorted(rows)])
    print(f"{len(rows)} birds that leave for the winter")


if __name__ == "__main__":
    main()
