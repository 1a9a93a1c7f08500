"""Tables of others: records of species at positions, in any common format and CRS."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sdm.errors import LayerError, quoted
from sdm.files.vectors import read_features

if TYPE_CHECKING:
    from sdm.training.recipe import RecordsData

LON_COLUMNS = ("lon", "longitude", "decimalLongitude", "long", "x", "X_WGS84")
LAT_COLUMNS = ("lat", "latitude", "decimalLatitude", "lat", "y", "Y_WGS84")
"""Where `lon` and `lat` are not given in the recipe; compared without case."""
REMEDY = "path = in the recipe names it"
TEXT = (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".txt", ".txt.gz")


@dataclass(frozen=True)
class Records:
    """Rows of a table: `lonlat` (N, 2) float64 degrees (lon, lat); `month` (N,) int8, 0 where the table has none;
    `species` (N,) row of `names`, -1 where a row names none; `present` (N,) bool. `left_out`: rows of the table without
    a position, a species or a presence.
    """

    lonlat: np.ndarray
    month: np.ndarray
    species: np.ndarray
    names: list[str]
    present: np.ndarray
    left_out: int = 0


def read_records(data: RecordsData) -> Records:
    """The records of a recipe's source: text table, Parquet, or vector file of points.

    Raises LayerError naming the file and the column or value that is wrong.
    """
    path = Path(data.path)
    frame, lonlat = _table(path, data)
    if data.presence and data.presence not in frame:
        _lacks(path, "presence", data.presence, frame)
    if data.columns:
        return _wide(path, frame, lonlat, data.columns, _months(path, frame, data.month))
    present, told = np.ones(len(frame), bool), np.ones(len(frame), bool)
    if data.presence:
        count = _counts(path, frame, data.presence)
        present, told = count > 0, np.isfinite(count)  # an empty cell is neither presence nor absence
    if data.taxon:
        if data.species in frame:
            raise LayerError(
                f"data source {str(path)!r} has the column {data.species!r}, which taxon = {data.taxon!r} would "
                "overrule in every row; leave taxon out."
            )
        names, species = [data.taxon], np.zeros(len(frame), np.int64)
        if data.presence:
            species[~present] = -1  # background of all species, of which there is one
    else:
        if data.species not in frame:
            _lacks(path, "species", data.species, frame)
        given = frame[data.species]
        text = given.astype("string").str.strip().fillna("").to_numpy(dtype=object)
        unique, species = np.unique(text.astype(str), return_inverse=True)
        names = [str(u) for u in unique]
        if names[0] == "":
            names, species = names[1:], species - 1
    good = np.isfinite(lonlat).all(axis=1) & ((species >= 0) | ~present) & told
    if not good.any():
        raise LayerError(f"data source {str(path)!r} has no row with a position and a species.")
    month = _months(path, frame, data.month)
    check_lonlat(lonlat[good], str(path))
    return Records(lonlat[good], month[good], species[good], names, present[good], int((~good).sum()))


def _wide(path: Path, frame: Any, lonlat: np.ndarray, columns: dict[str, str], month: np.ndarray) -> Records:
    """A table with a column of 0 and 1 per species: {column: species}; rows without any presence count as plots."""
    for column in columns:
        if column not in frame:
            _lacks(path, "columns", column, frame)
    good = np.isfinite(lonlat).all(axis=1)
    check_lonlat(lonlat[good], str(path))
    values = np.stack([_counts(path, frame, c) for c in columns], axis=1)[good]
    if np.isnan(values).any():
        name = list(columns)[int(np.flatnonzero(np.isnan(values).any(axis=0))[0])]
        raise LayerError(
            f"data source {str(path)!r}: column {name!r} is empty in some rows, where the species is neither "
            "present nor absent; leave those rows out, or the column."
        )
    row, column = np.nonzero(values > 0)
    nothing = np.flatnonzero(~(values > 0).any(axis=1))
    rows = np.concatenate([row, nothing])
    species = np.concatenate([column, np.full(nothing.size, -1)])
    named = list(columns.values())
    return Records(lonlat[good][rows], month[good][rows], species, named, species >= 0, int((~good).sum()))


def _table(path: Path, data: RecordsData) -> tuple[Any, np.ndarray]:
    """(table, (N, 2) (lon, lat), NaN where a row has no position)."""
    import pandas

    if not path.is_file():
        raise LayerError(f"data source {str(path)!r} does not exist; {REMEDY}.")
    text = path.name.lower().endswith(TEXT)
    if text:
        try:
            frame = pandas.read_csv(path, sep="\t" if ".tsv" in path.name.lower() else ",", low_memory=False)
        except Exception as error:  # a damaged file can fail in any way
            raise LayerError(f"data source {str(path)!r} cannot be read as a table ({in_one_line(error)}).") from error
    elif path.suffix == ".parquet" and not _geo_parquet(path):
        try:
            frame = pandas.read_parquet(path)
        except Exception as error:
            raise LayerError(f"data source {str(path)!r} cannot be read as Parquet ({in_one_line(error)}).") from error
    else:
        vector = read_features(path, "data source", REMEDY).to_crs(4326)
        if set(vector.geom_type.dropna()) - {"Point"}:
            raise LayerError(f"data source {str(path)!r} holds features that are no points; ranges are 'polygons'.")
        return vector, np.column_stack([vector.geometry.x, vector.geometry.y]).astype(np.float64)
    if not len(frame):
        raise LayerError(f"data source {str(path)!r} has no row.")
    lon = _column(path, frame, "lon", data.lon, LON_COLUMNS)
    lat = _column(path, frame, "lat", data.lat, LAT_COLUMNS)
    x, y = _numbers(path, frame, lon), _numbers(path, frame, lat)
    return frame, np.column_stack(_to_lonlat(path, x, y, data.crs))


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


def _geo_parquet(path: Path) -> bool:
    import pyarrow.parquet

    try:
        return b"geo" in (pyarrow.parquet.read_schema(path).metadata or {})
    except Exception as error:
        raise LayerError(f"data source {str(path)!r} cannot be read as Parquet ({in_one_line(error)}).") from error


def _column(path: Path, frame: Any, key: str, given: str, usual: tuple[str, ...]) -> str:
    if given:
        if given not in frame:
            _lacks(path, key, given, frame)
        return given
    by_case = {str(c).lower(): c for c in frame.columns}
    for name in usual:
        if name.lower() in by_case:
            return by_case[name.lower()]
    return _lacks(path, key, usual[0], frame)


def _lacks(path: Path, key: str, column: str, frame: Any) -> str:
    there = ", ".join(str(c) for c in list(frame.columns)[:12] if c != "geometry")
    raise LayerError(f"data source {str(path)!r} has no column {column!r}; {key} = names it (there are {there}).")


def _numbers(path: Path, frame: Any, column: str) -> np.ndarray:
    """A column of numbers, NaN where a cell is empty."""
    import pandas

    given = frame[column]
    values = pandas.to_numeric(given, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    if np.isnan(values).all():
        raise LayerError(f"data source {str(path)!r}: column {column!r} holds no number.")
    odd = np.flatnonzero(np.isnan(values) & given.notna().to_numpy())
    if odd.size and any(str(given.iloc[k]).strip() for k in odd):
        cell = next(c for c in given.iloc[odd] if str(c).strip())
        raise LayerError(f"data source {str(path)!r}: column {column!r} holds {quoted(str(cell))}, which is no number.")
    return values


def _counts(path: Path, frame: Any, column: str) -> np.ndarray:
    """A column of 1 (or how many) and 0, NaN where a cell is empty."""
    values = _numbers(path, frame, column)
    known = values[~np.isnan(values)]
    if ((known < 0) | (known != np.floor(known))).any():
        raise LayerError(f"data source {str(path)!r}: column {column!r} must hold 1 (or how many) for present and 0.")
    return values


def _months(path: Path, frame: Any, column: str) -> np.ndarray:
    if not column:
        return np.zeros(len(frame), np.int8)
    if column not in frame:
        _lacks(path, "month", column, frame)
    values = np.nan_to_num(_numbers(path, frame, column))
    if ((values < 0) | (values > 12) | (values != np.floor(values))).any():
        raise LayerError(f"data source {str(path)!r}: column {column!r} is no month 1..12 (0 or empty: not known).")
    return values.astype(np.int8)


def check_lonlat(lonlat: np.ndarray, path: str) -> None:
    """Raise LayerError for a position (lon, lat) off the globe."""
    bad = ~((np.abs(lonlat[:, 0]) <= 180.0) & (np.abs(lonlat[:, 1]) <= 90.0))
    if bad.any():
        lon, lat = lonlat[np.flatnonzero(bad)[0]]
        raise LayerError(
            f"data source {path!r} has the position lon {lon:g}, lat {lat:g}, which is not on the globe; "
            "are the columns swapped, or in another CRS (crs = in the recipe)?"
        )


def in_one_line(error: Exception) -> str:
    """What went wrong, for a message."""
    return (" ".join(str(error).split()) or type(error).__name__)[:120]
