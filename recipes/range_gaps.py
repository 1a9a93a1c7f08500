"""List where an atlas of ranges lacks a species: far records, and countries of a list without a cell.

    python recipes/range_gaps.py --ranges data-raw/phylacine --corrections recipes/range-corrections.csv \\
        --records data-raw/inat_validation --countries data-raw/mammal_countries/mammal_countries.parquet --out gaps.csv

`--records`: a folder with `occurrences.npz` (see recipes/validate_records.py). A gap is a country in which at least
`--min` records, one per 0.1 degree, lie more than `--km` from any cell of the range.
`--countries`: a Parquet file with the columns `species` and `iso3`. A gap is a listed country that has `--min-cells`
cells or more, none of them in the range, and none within one cell of it.
With `--corrections`, the ranges are those after the corrections, native and introduced; what is printed then is what
remains. The lists only show where to look: what is corrected, and from which source, is decided by hand.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from validate_records import near, thinned

from sdm.errors import SpeciesNameError
from sdm.models.bundled import BundledModel
from sdm.names import TaxonTable
from sdm.training.data.corrections import (
    all_ranges,
    countries_of_cells,
    country_numbers,
    native_ranges,
    read_corrections,
)
from sdm.training.data.ranges import RangeRaster

Gap = dict[str, object]


class Ranges(dict):
    """Presence (cells,) bool by species, after corrections, of whatever origin."""

    def __init__(self, raster: RangeRaster, corrections: Path | None) -> None:
        super().__init__({name: k for k, name in enumerate(raster.species)})
        rows = read_corrections(corrections) if corrections else []
        self._native, self._all = native_ranges(raster, rows), all_ranges(raster, rows)

    def __getitem__(self, species: str) -> np.ndarray:
        if species in self._all.species:
            return self._all.labels_of(self._all.species.index(species))
        return self._native.labels_of(super().__getitem__(species))


def record_gaps(
    folder: Path, taxa: TaxonTable, raster: RangeRaster, ranges: Ranges, km: float, least: int
) -> Iterable[Gap]:
    """Countries in which records lie far from the range, most records first within a species."""
    z = np.load(folder / "occurrences.npz")
    codes = np.array(sorted(country_numbers(), key=country_numbers().__getitem__))
    country = countries_of_cells(raster)[0]
    middle = np.full(country.shape[0], 0.5)
    lon, lat = raster.positions(np.arange(country.shape[0]), middle, middle)
    numbers = np.array([country_numbers()[code] for code in codes])
    for taxon_id, name in zip(z["taxon_ids"], z["taxon_names"], strict=True):
        species = known_species(taxa, str(name))
        if species not in ranges:
            continue
        own = ranges[species] & np.isfinite(lon)
        x, y = thinned(*z["lat_lon"][z["taxon_id"] == taxon_id].astype(np.float64).T[::-1])
        far = ~near(x, y, lon[own], lat[own], km)
        cells = raster.cells(x[far], y[far])
        found, count = np.unique([main_country(country[c]) for c in cells], return_counts=True)
        for k in np.argsort(-count):
            if count[k] >= least and found[k] >= 0:
                code = codes[numbers == found[k]][0]
                yield {"species": species, "country": code, "why": "records", "records": count[k], "of": x.size}


def main_country(numbers: np.ndarray) -> int:
    """The country of most places of a cell, -1 for the sea."""
    values, count = np.unique(numbers[numbers >= 0], return_counts=True)
    return int(values[count.argmax()]) if values.size else -1


def country_gaps(path: Path, taxa: TaxonTable, raster: RangeRaster, ranges: Ranges, least: int) -> Iterable[Gap]:
    """Listed countries without a cell of the range, or next to one."""
    import pandas

    listed = pandas.read_parquet(path, columns=["species", "iso3"]).dropna().drop_duplicates()
    country = countries_of_cells(raster)[0]
    land = (country >= 0).sum(axis=1)
    cells = {
        code: np.flatnonzero(2 * (country == number).sum(axis=1) >= np.maximum(land, 1))
        for code, number in country_numbers().items()
    }
    for name, group in listed.groupby("species"):
        species = known_species(taxa, str(name))
        if species not in ranges:
            continue
        grown = grown_by_one(ranges[species].reshape(raster.shape)).ravel()
        for code in sorted(group["iso3"]):
            own = cells.get(code)
            if own is not None and own.size >= least and not grown[own].any():
                yield {"species": species, "country": code, "why": "list", "records": "", "of": own.size}


def grown_by_one(present: np.ndarray) -> np.ndarray:
    """Cells (rows, columns) that are present or next to one that is."""
    padded = np.pad(present, 1)
    rows, cols = present.shape
    return np.logical_or.reduce([padded[i : i + rows, j : j + cols] for i in range(3) for j in range(3)])


def known_species(taxa: TaxonTable, name: str) -> str | None:
    """The species of the model with this name or synonym."""
    try:
        resolution = taxa.resolve(name)
    except SpeciesNameError:
        return None
    return resolution.taxon.name if resolution.known and resolution.taxon.rank == "species" else None


def main() -> None:
    """Read, list, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--ranges", required=True, type=Path, help="folder of the range rasters (PHYLACINE)")
    parser.add_argument("--corrections", type=Path, help="CSV of corrections")
    parser.add_argument("--records", type=Path, help="folder of occurrences.npz")
    parser.add_argument("--countries", type=Path, help="Parquet file of species and iso3")
    parser.add_argument("--model", default="mammals-trees", help="whose names are used")
    parser.add_argument("--km", type=float, default=300.0)
    parser.add_argument("--min", type=int, default=3)
    parser.add_argument("--min-cells", type=int, default=4)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    taxa = BundledModel.open(args.model).taxa
    raster = RangeRaster.phylacine(args.ranges, {t.name for t in taxa})
    ranges = Ranges(raster, args.corrections)
    gaps: list[Gap] = []
    if args.records:
        gaps += record_gaps(args.records, taxa, raster, ranges, args.km, args.min)
    if args.countries:
        gaps += country_gaps(args.countries, taxa, raster, ranges, args.min_cells)
    for why in ("records", "list"):
        found = [gap for gap in gaps if gap["why"] == why]
        print(f"{why}: {len(found)} countries of {len({gap['species'] for gap in found})} species")
    if args.out:
        with args.out.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, ["species", "country", "why", "records", "of"], lineterminator="\n")
            writer.writeheader()
            writer.writerows(gaps)


if __name__ == "__main__":
    main()
