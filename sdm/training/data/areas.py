"""Lists of the areas (countries, basins ...) in which species live, and where these areas are.

A list is a weak label: the species lives somewhere in each of its areas, and nowhere else.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import shapely

from sdm.errors import LayerError
from sdm.files.release import data_file
from sdm.training.data.records import one_line

COAST = 0.5
"""Degrees: a place off the simplified outlines belongs to the nearest country within this distance."""
PARTS = {
    "GF": ("FR", (-55.0, 2.0, -51.0, 6.0)),
    "GP": ("FR", (-62.0, 15.7, -60.9, 16.6)),
    "MQ": ("FR", (-61.3, 14.3, -60.7, 15.0)),
    "RE": ("FR", (55.0, -21.6, 56.0, -20.6)),
    "YT": ("FR", (45.0, -13.2, 45.4, -12.5)),
}
"""Codes of their own that the outlines have as a part of a country: the country, and a box around the part."""


@dataclass(frozen=True)
class AreaLists:
    """Which species live in which areas."""

    species: tuple[str, ...]
    areas: tuple[str, ...]
    listed: np.ndarray
    """(S, A) bool."""

    @classmethod
    def read(cls, path: str | Path, columns: tuple[str, str], names: set[str]) -> AreaLists:
        """Read a .parquet with a column of species, one of areas and, where it has it, `status`; `names` are kept.

        Rows whose status says `introduced` are left out. Raises LayerError for a file that lacks a column.
        """
        import pyarrow.parquet as pq

        try:
            table = pq.read_table(path).to_pandas()
        except Exception as error:  # a damaged file can fail in any way
            raise LayerError(f"lists of areas {str(path)!r} cannot be read: {one_line(error)}.") from error
        if missing := [c for c in columns if c not in table]:
            raise LayerError(f"lists of areas {str(path)!r} have no column {missing[0]!r}; it has {list(table)}.")
        if "status" in table:
            table = table[~table["status"].astype(str).str.startswith("introduced")]
        table = table[table[columns[0]].isin(names)].dropna(subset=list(columns))
        species, row = np.unique(table[columns[0]].to_numpy(str), return_inverse=True)
        areas, column = np.unique(table[columns[1]].to_numpy(str), return_inverse=True)
        listed = np.zeros((species.size, areas.size), dtype=bool)
        listed[row, column] = True
        return cls(tuple(species.tolist()), tuple(areas.tolist()), listed)

    def to(self, areas: tuple[str, ...]) -> AreaLists:
        """The same with columns for other areas; species that are in none of them are left out."""
        column = {name: k for k, name in enumerate(self.areas)}
        there = np.array([column.get(name, -1) for name in areas])
        listed = self.listed[:, there] & (there >= 0)
        kept = listed.any(axis=1)
        return AreaLists(tuple(np.array(self.species)[kept].tolist()), areas, listed[kept])


def countries_at(lonlat: np.ndarray) -> tuple[tuple[str, ...], np.ndarray]:
    """(ISO 3166-1 alpha-2 codes, (N,) the number of the country of each position (N, 2), -1 for none)."""
    import geopandas

    with data_file("nations.csv").open(encoding="utf-8", newline="") as file:
        alpha = {row["iso_n3"]: row["iso_a2"] for row in csv.DictReader(file)}
    outlines = geopandas.read_file(data_file("countries.fgb"))
    codes = [alpha.get(number, "") for number in outlines["iso_n3"]]
    # In parts: of a country of many islands, only those that are near need a look.
    parts, owner = shapely.get_parts(outlines.geometry.values, return_index=True)
    tree, points = shapely.STRtree(parts), shapely.points(lonlat)
    areas = tuple(sorted({code for code in codes if code} | set(PARTS)))
    number = {code: k for k, code in enumerate(areas)}
    of_part = np.array([number.get(code, -1) for code in codes])[owner]
    found = np.full(len(lonlat), -1)
    position, part = tree.query(points, predicate="intersects")
    found[position] = of_part[part]
    rest = np.setdiff1d(np.arange(len(lonlat)), position)
    position, part = tree.query_nearest(points[rest], max_distance=COAST, all_matches=False)
    found[rest[position]] = of_part[part]
    lon, lat = lonlat.T
    for code, (whole, (west, south, east, north)) in PARTS.items():
        inside = (lon >= west) & (lon <= east) & (lat >= south) & (lat <= north)
        found[inside & (found == number.get(whole, -2))] = number[code]
    return areas, found
