"""Write the table of islands of a model: on which large islands each mammal of the land has a cell of its range.

    python recipes/islands.py --phylacine FOLDER --out models/mammals-trees

A cell of the atlas belongs to the island of `data/shore.tif` that most of its land is of. A species lives on the
islands of its cells, unless these are few (`FEW` of the island's) and all next to cells of its range on other land:
so the atlas reaches over straits, with brown bears in the north of Honshu and serows in the south of Hokkaido. The
row "*" lists the islands with `CELLS` cells or more that are smaller than `CONTINENT`; of smaller ones the atlas is
not reliable: it lacks deer on the islands of Alaska and weasels on Corsica. Left out, and so nowhere limited, are
bats, which fly over straits, mammals of the sea and the shore, those that live with people, and species that
`recipes/range-corrections.csv` adds native cells to.
"""

from __future__ import annotations

import argparse
import csv
from collections import defaultdict
from pathlib import Path

import numpy as np
import rasterio
from pyproj import Transformer

from sdm.files.paths import folder
from sdm.models.registry import open_model
from sdm.names.habitat import mask_for

CELLS = 5
FEW = 0.1
COMMENSAL = {
    "Mus musculus",
    "Rattus exulans",
    "Rattus norvegicus",
    "Rattus rattus",
    "Rattus tanezumi",
    "Suncus murinus",
}
ATLAS_LACKS = {("Lepus timidus", 13), ("Euroscaptor mizura", 47), ("Mustela erminea", 9)}
"""Species that live on an island, and of which the model shows some of it: Great Britain, Shikoku, Baffin Island."""
ATLAS_ADDS = {
    ("Arvicola amphibius", 24),
    ("Microtus agrestis", 24),
    ("Talpa europaea", 24),
    ("Martes foina", 43),
    ("Meles meles", 43),
    ("Sciurus vulgaris", 43),
    ("Talpa romana", 43),
    ("Puma concolor", 32),
}
"""Species that do not live on an island which cells of the atlas reach into: Ireland, Sicily, Tierra del Fuego."""
CONTINENT = 5e6
"""Square kilometres."""
EARTH_KM = 6371.0
ROWS, COLUMNS = 142, 360


def islands_of_cells(atlas: np.lib.npyio.NpzFile) -> tuple[np.ndarray, np.ndarray]:
    """The island of each cell of the atlas (142 * 360,), 0: none; and the area of each island (256,), km2."""
    with rasterio.open(folder("data") / "shore.tif") as src:
        land, island = src.read(1), src.read(5)
    lat = 90 - (np.arange(land.shape[0]) + 0.5) / 12
    lon = -180 + (np.arange(land.shape[1]) + 0.5) / 12
    km2 = (np.pi * EARTH_KM / 2160) ** 2 * np.cos(np.radians(lat))[:, None] * land / 16
    area = np.bincount(island.ravel(), weights=km2.ravel(), minlength=256)
    to_cells = Transformer.from_crs("EPSG:4326", str(atlas["crs_wkt"]), always_xy=True)
    a, _, west, _, e, north = np.asarray(atlas["transform"]).ravel()[:6]
    x, _ = to_cells.transform(lon, np.zeros(lon.size))
    _, y = to_cells.transform(np.zeros(lat.size), lat)
    row, column = np.floor((y - north) / e).astype(int), np.floor((x - west) / a).astype(int)
    inside = (row[:, None] >= 0) & (row[:, None] < ROWS) & (column >= 0) & (column < COLUMNS)
    cell = np.where(inside, row[:, None] * COLUMNS + column, 0)
    shares = np.zeros((ROWS * COLUMNS, 256))
    np.add.at(shares, (cell[inside], island[inside]), km2[inside])
    return np.where(shares.any(axis=1), shares.argmax(axis=1), 0), area


def lived_on(cells: np.ndarray, island: np.ndarray) -> set[int]:
    """The islands that a species with some cells (N,) lives on."""
    here, counts = island[cells], np.bincount(island, minlength=256)
    ranged = np.zeros(ROWS * COLUMNS, bool)
    ranged[cells] = True
    steps = np.array([dy * COLUMNS + dx for dy in (-1, 0, 1) for dx in (-1, 0, 1)])
    around = np.clip(cells[:, None] + steps, 0, ROWS * COLUMNS - 1)
    reached = (ranged[around] & (island[around] != here[:, None]) & (island[around] > 0)).any(axis=1)
    return {int(i) for i in np.unique(here) if (here == i).sum() > FEW * counts[i] or not reached[here == i].all()}


def main() -> None:
    """Write `islands.csv`."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--phylacine", required=True, type=Path, help="folder of phylacine_current_ranges.npz")
    parser.add_argument("--out", required=True, type=Path, help="folder of the model")
    args = parser.parse_args()
    taxa = {t.name: t for t in open_model(args.out).taxa}
    with Path(__file__).with_name("range-corrections.csv").open(encoding="utf-8", newline="") as file:
        corrected = {row["species"] for row in csv.DictReader(file) if row["origin"] == "native"} | COMMENSAL
    with np.load(args.phylacine / "phylacine_current_ranges.npz", allow_pickle=False) as atlas:
        island, area = islands_of_cells(atlas)
        names, packed = atlas["species"], atlas["packed"]
    told = np.flatnonzero((np.bincount(island, minlength=256) >= CELLS) & (area < CONTINENT))
    told = set(told[told > 0].tolist())
    rows: dict[str, list[int]] = defaultdict(list)
    for name, bits in zip(names, packed, strict=True):
        species = str(name).replace("_", " ")
        taxon = taxa.get(species)
        if taxon is None or mask_for(taxon) != "land" or "Chiroptera" in taxon.lineage or species in corrected:
            continue
        cells = np.flatnonzero(np.unpackbits(bits)[: ROWS * COLUMNS])
        if cells.size:
            added, lacking = ({i for name_, i in known if name_ == species} for known in (ATLAS_ADDS, ATLAS_LACKS))
            rows[species] = sorted(told & (lived_on(cells, island) - added | lacking))
    with (args.out / "islands.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["species", "islands"])
        writer.writerow(["*", " ".join(map(str, sorted(told)))])
        writer.writerows([name, " ".join(map(str, numbers))] for name, numbers in sorted(rows.items()))
    print(f"{len(told)} islands, {len(rows)} species, {sum(map(len, rows.values()))} pairs")


if __name__ == "__main__":
    main()
