"""CSV files of others, row by row: limited in size, strict about required columns, lenient about the rest."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

import numpy as np

from sdm.errors import RequestError, TooLargeError

MAX_BYTES = 2 << 30
"""iSatNat's training table has 0.8 GB."""
MAX_ROWS = 5_000_000
LON_COLUMNS = ("lon", "longitude", "decimallongitude", "lng", "x")
LAT_COLUMNS = ("lat", "latitude", "decimallatitude", "y")
ID_COLUMNS = ("id", "gbifid", "occurrenceid", "name")
"""Columns of a list of places, case ignored; the first that exists is used. GBIF's and iNaturalist's are among them."""


def read_rows(path: Path, required: Sequence[str] = (), what: str = "table") -> Iterator[tuple[int, dict[str, str]]]:
    """Yield (line number, row) of a CSV file with a header, separated by commas, semicolons or tabs.

    Raises RequestError when the file is missing, not UTF-8, lacks a required column, or a row has another
    number of fields; TooLargeError above 2 GiB or 5 million rows.
    """
    if not path.is_file():
        raise RequestError(f"{what} {str(path)!r} does not exist or is not a file.")
    if path.stat().st_size > MAX_BYTES:
        raise TooLargeError(f"{what} {path.name!r} is larger than {MAX_BYTES >> 30} GiB; split it.")
    table = f"{what} {path.name!r}"
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield from _rows(file, required, table)
    except UnicodeDecodeError as error:
        raise RequestError(f"{table} is not UTF-8 text.") from error
    except OSError as error:
        raise RequestError(f"{table} cannot be read: {error.strerror or error}.") from error


def _rows(file: TextIO, required: Sequence[str], table: str) -> Iterator[tuple[int, dict[str, str]]]:
    """The rows of an open file; the separator is the one that is most frequent in the header."""
    first_line = file.readline()
    file.seek(0)
    reader = csv.reader(file, delimiter=max(",;\t", key=first_line.count), strict=True)
    line = 1
    try:
        header = next(reader, [])
        _check_header(header, required, table)
        for number, values in enumerate(reader):
            line = reader.line_num
            if number >= MAX_ROWS:
                raise TooLargeError(f"{table} has more than {MAX_ROWS:,} rows; split it.")
            if not values:
                continue
            if len(values) != len(header):
                raise RequestError(f"{table}, line {line}: {len(values)} fields where the header has {len(header)}.")
            yield line, dict(zip(header, values, strict=True))
    except csv.Error as error:
        raise RequestError(f"{table}, near line {line}: not valid CSV ({error}).") from error


def _check_header(header: Sequence[str], required: Sequence[str], table: str) -> None:
    if missing := [c for c in required if c not in header]:
        raise RequestError(f"{table} lacks the column(s) {', '.join(missing)}.")
    # Only required columns must be unique: pandas, for one, leaves the index without a name.
    if repeated := [c for c in required if header.count(c) > 1]:
        raise RequestError(f"{table} has the column {repeated[0]!r} twice.")


_NONE = ("", "na", "nan", "null", "none", "\\n")
"""What stands for no value in tables of records."""


def coordinate(text: str, limit: float, place: str) -> float:
    """Degrees within -limit..limit. Raises RequestError that begins with `place`."""
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not -limit <= value <= limit:  # NaN too
        raise RequestError(f"{place}: {text[:40]!r} is not a number of degrees from -{limit:g} to {limit:g}.")
    return value


def read_places(path: str | Path) -> tuple[list[str], np.ndarray, int]:
    """Read a list of places from a CSV or tab-separated file: names, and (N, 2) float64 degrees **(lon, lat)**.

    Rows without coordinates are left out; their number is the third value.

    Columns lon, longitude, decimalLongitude, lng or x; lat, latitude, decimalLatitude or y; and, if there
    is one, id, gbifID, occurrenceID or name, else places are numbered from 0. Raises RequestError.
    """
    path = Path(path)
    names: list[str] = []
    places: list[tuple[float, float]] = []
    columns: tuple[str, str, str | None] | None = None
    without = 0
    for line, row in read_rows(path, what="list of places"):
        columns = columns or _place_columns(row, path)
        lon, lat, name = columns
        where = f"list of places {path.name!r}, line {line}"
        if any(row[column].strip().lower() in _NONE for column in (lon, lat)):
            without += 1
            continue
        places.append((coordinate(row[lon], 180, where), coordinate(row[lat], 90, where)))
        names.append(row[name] if name else str(len(names)))
    if not places:
        raise RequestError(f"list of places {path.name!r} holds none{' with coordinates' if without else ''}.")
    return names, np.array(places, np.float64), without


def _place_columns(row: dict[str, str], path: Path) -> tuple[str, str, str | None]:
    """The columns (lon, lat, id or None) of a list of places."""
    by_lower_case = {c.strip().lower(): c for c in row}

    def first(known: Sequence[str]) -> str | None:
        return next((by_lower_case[c] for c in known if c in by_lower_case), None)

    lon, lat = first(LON_COLUMNS), first(LAT_COLUMNS)
    if not lon or not lat:
        raise RequestError(
            f"list of places {path.name!r} needs a column of longitudes ({', '.join(LON_COLUMNS)}) and one of "
            f"latitudes ({', '.join(LAT_COLUMNS)}), in degrees."
        )
    return lon, lat, first(ID_COLUMNS)
