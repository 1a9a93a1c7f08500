"""Tables of occurrence records: species at positions, in any common format and CRS.

Nothing here depends on recipes: `read_records` takes a path, the names of the columns, and options. The usual names of
coordinates are those of `sdm.records`. All else differs from the reader there, which takes downloads of occurrences as
they come: a recipe trains on surveys too, so a row without any species is a plot and kept, a column may be a species,
and a value that is no number is an error in place of a row dropped with its reason.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import numpy as np

from sdm.errors import LayerError, TooLargeError, quoted
from sdm.files.parquet import refuse_large_parquet
from sdm.files.vectors import read_features
from sdm.records.columns import ROLES, key

if TYPE_CHECKING:
    from pandas import DataFrame

REMEDY = "path = in the recipe names it"
TEXT_SUFFIXES = (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".txt", ".txt.gz")


@dataclass(frozen=True)
class RecordColumns:
    """Names of the columns of a table of records; "" is none, for `lon` and `lat` the usual names."""

    species: str = "species"
    lon: str = ""
    lat: str = ""
    presence: str = ""
    """1 (or a count) for present, 0 for absent."""
    month: str = ""
    """1 to 12; 0 or empty: not known."""


@dataclass(frozen=True)
class Records:
    """Records of a table: N rows that have a position, and a species or an absence."""

    lonlat: np.ndarray
    """(N, 2) float64 degrees (lon, lat)."""
    month: np.ndarray
    """(N,) int8, 0 where the table has none."""
    species: np.ndarray
    """(N,) index into `names`, -1 where a row names none."""
    names: list[str]
    present: np.ndarray
    """(N,) bool."""
    left_out: int = 0
    """Rows of the table without a position, a species or a presence."""


def read_records(
    path: str | Path,
    columns: RecordColumns = RecordColumns(),
    *,
    taxon: str = "",
    species_columns: Mapping[str, str] | None = None,
    crs: str = "EPSG:4326",
) -> Records:
    """Read records from a text table, Parquet, or a vector file of points.

    Parameters
    ----------
    path : .csv, .tsv or .txt (also .gz), .parquet, or any vector file of points
    columns : names of its columns
    taxon : the species of all rows, for a table without a column of species
    species_columns : {column: species}, for a table with a column of 0 and 1 per species
    crs : CRS of the columns `lon` and `lat`; a vector file has its own

    Raises
    ------
    LayerError : naming the file and the column or value that is wrong
    """
    table = _Table.read(Path(path), columns, crs)
    if columns.presence:
        table.require("presence", columns.presence)
    if species_columns:
        return _wide_records(table, species_columns, table.months(columns.month))
    present, stated = np.ones(len(table.frame), bool), np.ones(len(table.frame), bool)
    if columns.presence:
        count = table.counts(columns.presence)
        present, stated = count > 0, np.isfinite(count)  # an empty cell is neither presence nor absence
    if taxon:
        if columns.species in table.frame:
            raise LayerError(
                f"data source {str(path)!r} has the column {columns.species!r}, which taxon = {taxon!r} would "
                "overrule in every row; leave taxon out."
            )
        names, species = [taxon], np.zeros(len(table.frame), np.int64)
        if columns.presence:
            species[~present] = -1  # background of all species, of which there is one
    else:
        names, species = table.species(columns.species)
    good = np.isfinite(table.lonlat).all(axis=1) & ((species >= 0) | ~present) & stated
    if not good.any():
        raise LayerError(f"data source {str(path)!r} has no row with a position and a species.")
    month = table.months(columns.month)
    check_lonlat(table.lonlat[good], str(path))
    return Records(table.lonlat[good], month[good], species[good], names, present[good], int((~good).sum()))


def _wide_records(table: _Table, species_columns: Mapping[str, str], month: np.ndarray) -> Records:
    """Records of a table with a column of 0 and 1 per species; rows without any presence count as plots."""
    for name in species_columns:
        table.require("columns", name)
    good = np.isfinite(table.lonlat).all(axis=1)
    lonlat, month = table.lonlat[good], month[good]
    check_lonlat(lonlat, str(table.path))
    values = np.stack([table.counts(c) for c in species_columns], axis=1)[good]
    if np.isnan(values).any():
        name = list(species_columns)[int(np.flatnonzero(np.isnan(values).any(axis=0))[0])]
        raise LayerError(
            f"data source {str(table.path)!r}: column {name!r} is empty in some rows, where the species is neither "
            "present nor absent; leave those rows out, or the column."
        )
    row, column = np.nonzero(values > 0)
    without_presence = np.flatnonzero(~(values > 0).any(axis=1))
    rows = np.concatenate([row, without_presence])
    species = np.concatenate([column, np.full(without_presence.size, -1)])
    return Records(lonlat[rows], month[rows], species, list(species_columns.values()), species >= 0, int((~good).sum()))


@dataclass(frozen=True)
class _Table:
    """A table as read, with the position of every row; methods raise LayerError naming the file."""

    path: Path
    frame: DataFrame
    lonlat: np.ndarray
    """(N, 2) (lon, lat), NaN where a row has no position."""

    @classmethod
    def read(cls, path: Path, columns: RecordColumns, crs: str) -> _Table:
        if not path.is_file():
            raise LayerError(f"data source {str(path)!r} does not exist; {REMEDY}.")
        is_text = path.name.lower().endswith(TEXT_SUFFIXES)
        if not is_text and (path.suffix != ".parquet" or _is_geoparquet(path)):
            return cls._read_vector(path)
        table = cls(path, _read_text(path) if is_text else _read_parquet(path), np.empty((0, 2)))
        if not len(table.frame):
            raise LayerError(f"data source {str(path)!r} has no row.")
        lon = table.coordinate_column("lon", columns.lon)
        lat = table.coordinate_column("lat", columns.lat)
        x, y = table.numbers(lon), table.numbers(lat)
        return cls(path, table.frame, np.column_stack(_to_lonlat(path, x, y, crs)))

    @classmethod
    def _read_vector(cls, path: Path) -> _Table:
        vector = read_features(path, "data source", REMEDY).to_crs(4326)
        if set(vector.geom_type.dropna()) - {"Point"}:
            raise LayerError(
                f"data source {str(path)!r} holds features that are not points; ranges are of kind 'polygons'."
            )
        return cls(path, vector, np.column_stack([vector.geometry.x, vector.geometry.y]).astype(np.float64))

    def require(self, key: str, column: str) -> None:
        """Raise unless the table has the column that a key of the recipe names."""
        if column not in self.frame:
            self._lacks(key, column)

    def _lacks(self, key: str, column: str) -> NoReturn:
        there = ", ".join(str(c) for c in list(self.frame.columns)[:12] if c != "geometry")
        raise LayerError(
            f"data source {str(self.path)!r} has no column {column!r}; {key} = names it (there are {there})."
        )

    def coordinate_column(self, role: str, given: str) -> str:
        """The column of a coordinate, "lon" or "lat": the given one, else the first of the usual ones."""
        if given:
            self.require(role, given)
            return given
        by_key = {key(str(c)): str(c) for c in self.frame.columns}
        for name in itertools.chain(*ROLES[role]):
            if name in by_key:
                return by_key[name]
        self._lacks(role, role)

    def species(self, column: str) -> tuple[list[str], np.ndarray]:
        """(distinct names, (N,) index into them, -1 where the cell is empty)."""
        self.require("species", column)
        text = self.frame[column].astype("string").str.strip().fillna("").to_numpy(dtype=object)
        unique, index = np.unique(text.astype(str), return_inverse=True)
        names = [str(u) for u in unique]
        return (names[1:], index - 1) if names[0] == "" else (names, index)

    def numbers(self, column: str) -> np.ndarray:
        """A column of numbers, NaN where a cell is empty."""
        import pandas

        cells = self.frame[column]
        values = pandas.to_numeric(cells, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
        if np.isnan(values).all():
            raise LayerError(f"data source {str(self.path)!r}: column {column!r} holds no number.")
        rejected = [str(cell) for cell in cells[np.isnan(values) & cells.notna().to_numpy()]]
        if text := next((cell for cell in rejected if cell.strip()), ""):
            raise LayerError(
                f"data source {str(self.path)!r}: column {column!r} holds {quoted(text)}, which is not a number."
            )
        return values

    def counts(self, column: str) -> np.ndarray:
        """A column of 1 (or how many) and 0, NaN where a cell is empty."""
        values = self.numbers(column)
        known = values[~np.isnan(values)]
        if ((known < 0) | (known != np.floor(known))).any():
            raise LayerError(
                f"data source {str(self.path)!r}: column {column!r} must hold 1 (or how many) for present and 0."
            )
        return values

    def months(self, column: str) -> np.ndarray:
        """(N,) int8 months, 0 where not known; all 0 without a column."""
        if not column:
            return np.zeros(len(self.frame), np.int8)
        self.require("month", column)
        values = np.nan_to_num(self.numbers(column))
        if ((values < 0) | (values > 12) | (values != np.floor(values))).any():
            raise LayerError(
                f"data source {str(self.path)!r}: column {column!r} is not a month 1..12 (0 or empty: not known)."
            )
        return values.astype(np.int8)


def _read_text(path: Path) -> DataFrame:
    import pandas

    try:
        return pandas.read_csv(path, sep="\t" if ".tsv" in path.name.lower() else ",", low_memory=False)
    except Exception as error:  # a damaged file can fail in any way
        raise LayerError(f"data source {str(path)!r} cannot be read as a table ({one_line(error)}).") from error


def _read_parquet(path: Path) -> DataFrame:
    import pandas
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            refuse_large_parquet(file, path, None, f"data source {str(path)!r}", LayerError)
        return pandas.read_parquet(path)
    except (LayerError, TooLargeError):
        raise
    except Exception as error:  # likewise
        raise LayerError(f"data source {str(path)!r} cannot be read as Parquet ({one_line(error)}).") from error


def _is_geoparquet(path: Path) -> bool:
    import pyarrow.parquet

    try:
        return b"geo" in (pyarrow.parquet.read_schema(path).metadata or {})
    except Exception as error:
        raise LayerError(f"data source {str(path)!r} cannot be read as Parquet ({one_line(error)}).") from error


def _to_lonlat(path: Path, x: np.ndarray, y: np.ndarray, crs: str) -> tuple[np.ndarray, np.ndarray]:
    import pyproj

    try:
        known = pyproj.CRS.from_user_input(crs)
    except pyproj.exceptions.CRSError as error:
        raise LayerError(f"data source {str(path)!r}: crs = {crs!r} is not known; give e.g. EPSG:32610.") from error
    if known.equals(pyproj.CRS.from_epsg(4326), ignore_axis_order=True):
        return x, y
    lon, lat = pyproj.Transformer.from_crs(known, 4326, always_xy=True).transform(x, y)
    there = np.isfinite(x) & np.isfinite(y)
    if (there & ~(np.isfinite(lon) & np.isfinite(lat))).any():
        raise LayerError(f"data source {str(path)!r} has positions outside the domain of crs = {crs!r}.")
    return np.where(there, lon, np.nan), np.where(there, lat, np.nan)


def check_lonlat(lonlat: np.ndarray, path: str) -> None:
    """Raise LayerError for a position (lon, lat) off the globe."""
    bad = ~((np.abs(lonlat[:, 0]) <= 180.0) & (np.abs(lonlat[:, 1]) <= 90.0))
    if bad.any():
        lon, lat = lonlat[np.flatnonzero(bad)[0]]
        raise LayerError(
            f"data source {path!r} has the position lon {lon:g}, lat {lat:g}, which is not on the globe; "
            "are the columns swapped, or in another CRS (crs = in the recipe)?"
        )


def one_line(error: Exception) -> str:
    """The message of an error on one line, for use inside another message."""
    return (" ".join(str(error).split()) or type(error).__name__)[:120]
