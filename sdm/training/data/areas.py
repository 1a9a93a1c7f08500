"""Lists of the areas (countries, basins ...) in which species live, and where these areas are.

A list is a weak label: the species lives somewhere in each of its areas, and nowhere else.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import shapely

from sdm.errors import LayerError
from sdm.files.release import data_file
from sdm.training.data.records import one_line

COAST = 0.5
"""Degrees: a place off the simplified outlines belongs to the nearest country within this distance."""
NEAR = 0.1
"""The same for outlines from a file."""
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

        Areas whose status is `introduced` are left out, also where another row says `native`, unless nothing else is
        left of a species: such a double entry of its only area is a slip. Raises LayerError for a file that lacks a
        column.
        """
        import pyarrow.parquet as pq

        try:
            table = pq.read_table(path).to_pandas()
        except Exception as error:  # a damaged file can fail in any way
            raise LayerError(f"lists of areas {str(path)!r} cannot be read: {one_line(error)}.") from error
        if missing := [c for c in columns if c not in table]:
            raise LayerError(f"lists of areas {str(path)!r} have no column {missing[0]!r}; it has {list(table)}.")
        table = table[table[columns[0]].isin(names)].dropna(subset=list(columns))
        if "status" in table:
            table = _native(table, list(columns))
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

    def without(self, path: str | Path) -> AreaLists:
        """The same without the pairs of a .csv with the columns `species` and `area`: areas where none was native.

        Raises LayerError for a file that lacks a column, and for a pair that is not on the lists.
        """
        row, column = ({name: k for k, name in enumerate(names)} for names in (self.species, self.areas))
        listed = self.listed.copy()
        with Path(path).open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            if missing := {"species", "area"} - set(reader.fieldnames or ()):
                raise LayerError(f"{str(path)!r} has no column {min(missing)!r}.")
            for entry in reader:
                name, area = entry["species"], entry["area"]
                if name not in row:
                    continue  # of another group
                if area not in column or not listed[row[name], column[area]]:
                    raise LayerError(f"{str(path)!r} takes {area!r} from {name!r}, which is not on its list.")
                listed[row[name], column[area]] = False
        return AreaLists(self.species, self.areas, listed)


def _native(table: Any, columns: list[str]) -> Any:
    """The rows of a table of areas that are not of introduced species."""
    brought = table["status"].astype(str).str.startswith("introduced")
    twice = table.set_index(columns).index.isin(table[brought].set_index(columns).index)
    left = set(table[columns[0]][~twice])
    return table[~brought & (~twice | ~table[columns[0]].isin(left))]


def countries_at(lonlat: np.ndarray) -> tuple[tuple[str, ...], np.ndarray]:
    """(ISO 3166-1 alpha-2 codes, (N,) the number of the country of each position (N, 2), -1 for none)."""
    import geopandas

    with data_file("nations.csv").open(encoding="utf-8", newline="") as file:
        alpha = {row["iso_n3"]: row["iso_a2"] for row in csv.DictReader(file)}
    outlines = geopandas.read_file(data_file("countries.fgb"))
    codes = [alpha.get(number, "") for number in outlines["iso_n3"]]
    areas = tuple(sorted({code for code in codes if code} | set(PARTS)))
    number = {code: k for k, code in enumerate(areas)}
    found = _located(outlines.geometry.values, np.array([number.get(code, -1) for code in codes]), lonlat, COAST)
    lon, lat = lonlat.T
    for code, (whole, (west, south, east, north)) in PARTS.items():
        inside = (lon >= west) & (lon <= east) & (lat >= south) & (lat <= north)
        found[inside & (found == number.get(whole, -2))] = number[code]
    return areas, found


@dataclass(frozen=True)
class Outlines:
    """Areas from a file of polygons in degrees, such as basins."""

    areas: tuple[str, ...]
    polygons: Any
    """(N,) geometries."""
    number: np.ndarray
    """(N,) the area of each."""

    @classmethod
    def read(cls, path: str | Path, column: str) -> Outlines:
        """Read a GeoParquet file with a column of codes. Raises LayerError for a file that is none or lacks it."""
        import geopandas

        try:
            table = geopandas.read_parquet(path)
        except Exception as error:  # a damaged file can fail in any way
            raise LayerError(f"outlines {str(path)!r} cannot be read as GeoParquet: {one_line(error)}.") from error
        if column not in table:
            raise LayerError(f"outlines {str(path)!r} have no column {column!r}; they have {list(table)}.")
        table = table[table[column].notna() & ~(table.geometry.isna() | table.geometry.is_empty)]
        if table.crs is not None and table.crs.to_epsg() != 4326:
            table = table.to_crs(4326)
        areas, number = np.unique(table[column].to_numpy(str), return_inverse=True)
        return cls(tuple(areas.tolist()), table.geometry.values, number)

    def at(self, lonlat: np.ndarray) -> np.ndarray:
        """(N,) the number of the area of each position (N, 2), -1 for none."""
        return _located(self.polygons, self.number, lonlat, NEAR)

    def points(self) -> np.ndarray:
        """(N, 2) a position in each polygon."""
        return shapely.get_coordinates(shapely.point_on_surface(self.polygons))


def _located(polygons: Any, number: np.ndarray, lonlat: np.ndarray, near: float) -> np.ndarray:
    """(N,) the `number` of the polygon at each position (N, 2), or of the nearest within `near` degrees; else -1."""
    # In parts: of a country of many islands, only those that are near need a look.
    parts, owner = shapely.get_parts(polygons, return_index=True)
    tree, points = shapely.STRtree(parts), shapely.points(lonlat)
    found = np.full(len(lonlat), -1)
    position, part = tree.query(points, predicate="intersects")
    found[position] = number[owner[part]]
    rest = np.setdiff1d(np.arange(len(lonlat)), position)
    position, part = tree.query_nearest(points[rest], max_distance=near, all_matches=False)
    found[rest[position]] = number[owner[part]]
    return found
