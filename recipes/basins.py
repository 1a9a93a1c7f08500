"""Draw the drainage basins of lists of freshwater fishes, of which only outlet, middle and area are known.

    python recipes/basins.py --basins data-raw/fish_regions/basins.parquet --out data-raw/basins/outlines.parquet

Water runs down `data/elevation.tif` (5 minutes; the floor of valleys by `relief.tif`, lower along the rivers of
`shore.tif`) to the sea or a closed lake: the land is flooded from there, lowest first, and each cell drains to where
the flood reached it from (Barnes et al. 2014, https://doi.org/10.1016/j.cageo.2013.04.024). A basin is the catchment
near its outlet, or around its middle, whose area is most like its own; where none is within a factor of two, a disc of
its area around its middle, on land that no other basin has. Written is GeoParquet with the column `basin`.
"""

from __future__ import annotations

import argparse
import heapq
from pathlib import Path

import geopandas
import numpy as np
import pandas as pd
import rasterio
from rasterio.features import shapes
from rasterio.transform import from_origin
from scipy.ndimage import label
from scipy.spatial import cKDTree
from shapely.geometry import shape

from sdm.files.paths import folder

STEPS = 12
"""Cells of a degree."""
ROWS, COLS = 180 * STEPS, 360 * STEPS
EARTH_KM = 6371.0
CARVED, BESIDE = 60.0, 8.0
"""Metres by which a river lies below its surroundings, less up to this many kilometres away."""
SOUTH = -60.0
ALIKE = 2.0
"""Factor of the area within which a catchment is taken for a basin; of two, the one around its middle is preferred."""
CLOSED_SEAS = [(50.5, 42.0), (60.0, 45.0)]
"""Caspian and Aral: rivers end anywhere on their shore."""
CLOSED_LAKES = [
    (74.0, 46.2), (77.3, 42.4), (14.3, 13.2), (137.3, -28.5), (43.0, 38.6), (45.5, 37.6), (-112.5, 41.1),
    (-67.1, -18.8), (36.1, 4.0), (22.7, -19.3), (93.0, 50.3), (90.2, 40.5), (61.3, 31.0), (-118.7, 38.7),
]  # fmt: skip
"""Balkhash, Issyk-Kul, Chad, Eyre, Van, Urmia, Great Salt Lake, Poopo, Turkana, Okavango, Uvs and Khyargas, Lop Nur,
Hamun, Carson Sink."""


def cell_of(lon: float, lat: float) -> int:
    """The cell of a position."""
    return min(max(int((90 - lat) * STEPS), 0), ROWS - 1) * COLS + int((lon + 180) * STEPS) % COLS


def catchments() -> np.ndarray:
    """The cell (ROWS * COLS,) at the sea or a closed lake that each cell of the land drains to; -1 at sea."""
    with rasterio.open(folder("data") / "elevation.tif") as src, rasterio.open(folder("data") / "relief.tif") as rough:
        low = src.read(1).astype(np.float32) - rough.read(1)
    with rasterio.open(folder("data") / "shore.tif") as src:
        land, sea, fresh = src.read(1), src.read(2) == 0, src.read(4)
    low -= CARVED * np.clip(1 - fresh / BESIDE, 0, 1)
    lakes, _ = label((land == 0) & ~sea)
    for lon, lat in CLOSED_SEAS:
        number = lakes.ravel()[cell_of(lon, lat)]
        if number:
            sea |= lakes == number
    sea = sea.ravel()
    done = sea | (np.arange(ROWS * COLS) >= int((90 - SOUTH) * STEPS) * COLS)
    inland = np.flatnonzero(~done)
    row, col = np.divmod(inland, COLS)
    coast = np.zeros(inland.size, bool)
    for down in (-1, 0, 1):
        for across in (-1, 0, 1):
            coast |= sea[np.clip(row + down, 0, ROWS - 1) * COLS + (col + across) % COLS]
    starts = inland[coast].tolist() + [k for lon, lat in CLOSED_LAKES if not done[k := cell_of(lon, lat)]]
    return flooded(low.ravel().tolist(), bytearray(done.tobytes()), starts)


def flooded(height: list[float], done: bytearray, starts: list[int]) -> np.ndarray:
    """The start that each cell is flooded from, -1 where `done` said so."""
    origin = [-1] * len(height)
    heap = []
    for k in starts:
        origin[k], done[k] = k, 1
        heap.append((height[k], k))
    heapq.heapify(heap)
    while heap:
        level, k = heapq.heappop(heap)
        col, start = k % COLS, origin[k]
        left, right = (k - 1 if col else k + COLS - 1), (k + 1 if col < COLS - 1 else k - COLS + 1)
        for j in (left, right, k - COLS, k + COLS, left - COLS, right - COLS, left + COLS, right + COLS):
            if 0 <= j < len(done) and not done[j]:
                done[j], origin[j] = 1, start
                heapq.heappush(heap, (max(height[j], level), j))
    return np.array(origin)


def sphere(lon: np.ndarray, lat: np.ndarray) -> np.ndarray:
    """Points (N, 3) on the unit sphere of degrees."""
    lon, lat = np.radians(lon), np.radians(lat)
    return np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], axis=-1)


def matched(basins: pd.DataFrame, drains: np.ndarray, km2: np.ndarray) -> np.ndarray:
    """(N,) the catchment of each basin, by its start; -1 where none is like it. Of two basins the more alike has it."""
    starts, index = np.unique(drains, return_inverse=True)
    size, starts = np.bincount(index, km2)[1:], starts[1:]
    place = sphere((starts % COLS + 0.5) / STEPS - 180, 90 - (starts // COLS + 0.5) / STEPS)
    tree, taken = cKDTree(place), {}
    found = np.full(len(basins), -1)
    for number, row in enumerate(basins.itertuples()):
        middle = drains[cell_of(row.median_lon, row.median_lat)]
        near = tree.query_ball_point(sphere(row.outlet_lon, row.outlet_lat), (30 + 0.1 * row.area_km2**0.5) / EARTH_KM)
        if row.outlet_lon == 0 and row.outlet_lat == 0:
            near = []  # a closed basin
        near += np.flatnonzero(starts == middle).tolist() if middle >= 0 else []
        unlike = {k: abs(np.log(size[k] / row.area_km2)) for k in near}
        best = min((k for k in near), key=lambda k: unlike[k] + (starts[k] != middle), default=-1)
        if best < 0 or unlike[best] > np.log(ALIKE):
            continue
        before = taken.get(best)
        if before is None or unlike[best] < before[1]:
            if before:
                found[before[0]] = -1
            taken[best], found[number] = (number, unlike[best]), starts[best]
    return found


def drawn(basins: pd.DataFrame) -> tuple[np.ndarray, int]:
    """The number (ROWS, COLS) of the basin of each cell, -1 for none, and how many are catchments."""
    drains = catchments()
    lat = 90 - (np.arange(ROWS) + 0.5) / STEPS
    km2 = np.repeat((EARTH_KM * np.pi / 180 / STEPS) ** 2 * np.cos(np.radians(lat)), COLS)
    found = matched(basins, drains, km2)
    number = pd.Series(np.flatnonzero(found >= 0), index=found[found >= 0])
    out = number.reindex(drains).fillna(-1).to_numpy().astype(np.int32)
    free = np.flatnonzero((drains >= 0) & (out < 0))
    place = sphere((free % COLS + 0.5) / STEPS - 180, 90 - (free // COLS + 0.5) / STEPS)
    tree, rest = cKDTree(place), basins[found < 0]
    closest = np.full(free.size, np.inf)
    for k, row in rest.iterrows():
        radius = float(np.sqrt(row.area_km2 / np.pi))
        some = np.array(tree.query_ball_point(sphere(row.median_lon, row.median_lat), radius / EARTH_KM), dtype=int)
        distance = np.linalg.norm(place[some] - sphere(row.median_lon, row.median_lat), axis=1) * EARTH_KM / radius
        some, distance = some[distance < closest[some]], distance[distance < closest[some]]
        closest[some], out[free[some]] = distance, k
    for k, row in rest.sort_values("area_km2", ascending=False).iterrows():
        out[cell_of(row.median_lon, row.median_lat)] = k  # also where it is smaller than a cell
    return out.reshape(ROWS, COLS), int((found >= 0).sum())


def main() -> None:
    """Parse the command line and write the outlines."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--basins", type=Path, required=True, help="basin, outlet_lon, median_lon, area_km2 ...")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    basins = pd.read_parquet(args.basins).drop_duplicates("basin").reset_index(drop=True)
    grid, catchment = drawn(basins)
    parts = [
        (int(k), shape(geometry))
        for geometry, k in shapes(grid, mask=grid >= 0, transform=from_origin(-180, 90, 1 / STEPS, 1 / STEPS))
    ]
    table = geopandas.GeoDataFrame({"number": [k for k, _ in parts]}, geometry=[g for _, g in parts], crs=4326)
    table = table.dissolve("number").reset_index()
    table["basin"] = basins["basin"].to_numpy()[table["number"]]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    table[["basin", "geometry"]].to_parquet(args.out)
    print(f"{args.out}: {len(table)} of {len(basins)} basins, {catchment} of them catchments")


if __name__ == "__main__":
    main()
