"""CSV files of others, row by row: bounded, strict about what is needed, indifferent to the rest."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from sdm.errors import RequestError, TooLargeError

MAX_BYTES = 2 << 30
"""iSatNat's training table has 0.8 GB."""
MAX_ROWS = 5_000_000
LON = ("lon", "longitude", "decimallongitude", "lng", "x")
LAT = ("lat", "latitude", "decimallatitude", "y")
PLACE_ID = ("id", "gbifid", "occurrenceid", "name")
"""Columns of a list of places, in any case; the first found is taken. GBIF's and iNaturalist's are among them."""


def read_rows(path: Path, required: Sequence[str] = (), what: str = "table") -> Iterator[tuple[int, dict[str, str]]]:
    """Yield (line number, row) of a CSV file with a header; comma, semicolon or tab, told by the header.

    Raises RequestError when the file is missing, not UTF-8, lacks a required column, or a row has another
    number of fields; TooLargeError above 2 GiB or 5 million rows.
    """
    if not path.is_file():
        raise RequestError(f"{what} {str(path)!r} does not exist or is not a file.")
    if path.stat().st_size > MAX_BYTES:
        raise TooLargeError(f"{what} {path.name!r} is larger than {MAX_BYTES >> 30} GiB; split it.")
    line = 1
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            first = file.readline()
            file.seek(0)
            delimiter = max(",;\t", key=first.count)
            reader = csv.reader(file, delimiter=delimiter, strict=True)
            header = next(reader, [])
            if missing := [c for c in required if c not in header]:
                raise RequestError(f"{what} {path.name!r} lacks the column(s) {', '.join(missing)}.")
            # pandas leaves the index without a name; only columns that somebody reads must be unique.
            if twice := [c for c in required if header.count(c) > 1]:
                raise RequestError(f"{what} {path.name!r} has the column {twice[0]!r} twice.")
            for number, values in enumerate(reader):
                line = reader.line_num
                if number >= MAX_ROWS:
                    raise TooLargeError(f"{what} {path.name!r} has more than {MAX_ROWS:,} rows; split it.")
                if not values:
                    continue
                if len(values) != len(header):
                    raise RequestError(
                        f"{what} {path.name!r}, line {line}: {len(values)} fields where the header has {len(header)}."
                    )
                yield line, dict(zip(header, values, strict=True))
    except UnicodeDecodeError as error:
        raise RequestError(f"{what} {path.name!r} is not UTF-8 text.") from error
    except csv.Error as error:
        raise RequestError(f"{what} {path.name!r}, near line {line}: not valid CSV ({error}).") from error
    except OSError as error:
        raise RequestError(f"{what} {path.name!r} cannot be read: {error.strerror or error}.") from error


def coordinate(text: str, limit: float, place: str) -> float:
    """Degrees within -limit..limit. Raises RequestError that begins with `place`."""
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not -limit <= value <= limit:  # NaN too
        raise RequestError(f"{place}: {text[:40]!r} is not a number of degrees from -{limit:g} to {limit:g}.")
    return value


def read_places(path: str | Path) -> tuple[list[str], np.ndarray]:
    """A list of places, CSV or tab separated: (names, (N, 2) float64 degrees **(lon, lat)**).

    Columns lon, longitude, decimalLongitude, lng or x; lat, latitude, decimalLatitude or y; and, if there
    is one, id, gbifID, occurrenceID or name, else places are numbered from 0. Raises RequestError.
    """
    path = Path(path)
    names, places, columns = [], [], None
    for line, row in read_rows(path, what="list of places"):
        if columns is None:
            known = {c.strip().lower(): c for c in row}
            columns = [next((known[c] for c in wanted if c in known), None) for wanted in (LON, LAT, PLACE_ID)]
            if not columns[0] or not columns[1]:
                raise RequestError(
                    f"list of places {path.name!r} needs a column of longitudes ({', '.join(LON)}) and one of "
                    f"latitudes ({', '.join(LAT)}), in degrees."
                )
        where = f"list of places {path.name!r}, line {line}"
        places.append((coordinate(row[columns[0]], 180, where), coordinate(row[columns[1]], 90, where)))
        names.append(row[columns[2]] if columns[2] else str(len(names)))
    if not places:
        raise RequestError(f"list of places {path.name!r} holds none.")
    return names, np.array(places, np.float64)
