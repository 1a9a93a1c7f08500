"""What a model's tables say of where and when species are absent, although places there suit them.

`islands.csv` of a model folder names the islands of each species of the land (columns `species`, `islands`: numbers
of the layer `shore.tif`, apart by spaces), among those of which the atlas has at least two cells (the row "*").
`seasons.csv` has for birds that leave for the winter the latitudes between which they breed (columns `species`,
`south`, `north`, degrees). Either file may be missing. Written by `recipes/islands.py` and `recipes/seasons.py`.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from sdm.errors import ModelError

ALL = "*"
MAX_ROWS, MAX_NUMBER = 1_000_000, 255


def absent_islands(folder: Path, species: str) -> frozenset[int]:
    """Numbers of the islands of some size on which a species has no cell; none for a species that is not listed.

    Raises ModelError for a table that cannot be read.
    """
    table = _islands(folder)
    return table[ALL] - table[species] if species in table else frozenset()


def breeding_latitudes(folder: Path, species: str) -> tuple[float, float] | None:
    """(south, north) in degrees between which a bird breeds that leaves for the winter; None where that is not known.

    Raises ModelError for a table that cannot be read.
    """
    return _seasons(folder).get(species)


@lru_cache(maxsize=8)
def _islands(folder: Path) -> Mapping[str, frozenset[int]]:
    rows = _rows(folder / "islands.csv", ("species", "islands"))
    try:
        table = {name: frozenset(int(number) for number in numbers.split()) for name, numbers in rows}
    except ValueError as error:
        raise ModelError(f"{folder / 'islands.csv'}: {error}; islands are whole numbers.") from None
    if table and (ALL not in table or not all(0 < n <= MAX_NUMBER for numbers in table.values() for n in numbers)):
        raise ModelError(f"{folder / 'islands.csv'} lacks the row {ALL!r}, or numbers an island beyond {MAX_NUMBER}.")
    return table


@lru_cache(maxsize=8)
def _seasons(folder: Path) -> Mapping[str, tuple[float, float]]:
    rows = _rows(folder / "seasons.csv", ("species", "south", "north"))
    try:
        table = {name: (float(south), float(north)) for name, south, north in rows}
    except ValueError as error:
        raise ModelError(f"{folder / 'seasons.csv'}: {error}; latitudes are degrees.") from None
    if not all(-90.0 <= south <= north <= 90.0 for south, north in table.values()):
        raise ModelError(f"{folder / 'seasons.csv'} holds latitudes that are none, or a south beyond its north.")
    return table


def _rows(path: Path, columns: tuple[str, ...]) -> list[tuple[str, ...]]:
    """The rows of a table; none if there is no such file. Raises ModelError."""
    if not path.is_file():
        return []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.reader(file)
            if tuple(next(reader, ())) != columns:
                raise ModelError(f"{path} must have the columns {', '.join(columns)}.")
            rows = [tuple(row) for _, row in zip(range(MAX_ROWS), reader, strict=False)]
    except (OSError, UnicodeError, csv.Error) as error:
        raise ModelError(f"{path} cannot be read: {error}") from error
    if wrong := next((row for row in rows if len(row) != len(columns)), None):
        raise ModelError(f"{path} has a row of {len(wrong)} columns, not {len(columns)}: {','.join(wrong)[:60]!r}.")
    return rows
