"""What a model's tables say of where and when species are absent, although places there suit them.

`islands.csv` of a model folder names the islands of each species of the land (columns `species`, `islands`: numbers
of the layer `shore.tif`, apart by spaces), among those of which the atlas has at least two cells (the row "*").
`seasons.csv` has for birds that are away for part of the year the latitudes between which they breed (`south`, `north`,
degrees; empty where that is not known) and where they are scarce in which months (`months`): apart by spaces, the
number of a cell, a colon and twelve hexadecimal digits, fifteenths of the probability from January to December. Cells
have `CELL` degrees and are counted from 90 N, 180 W, row by row; in those that are not listed nothing is changed.
Either file may be missing. Written by `recipes/islands.py` and `recipes/seasons.py`.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sdm.errors import ModelError

ALL = "*"
MAX_ROWS, MAX_NUMBER = 1_000_000, 255
CELL = 5.0, 10.0
"""Degrees of latitude and of longitude of the cells of `seasons.csv`."""
ROWS, COLUMNS = 36, 36
WHOLE = 15
"""The digit that changes nothing."""


class Season(NamedTuple):
    """A row of `seasons.csv`."""

    breeds: tuple[float, float] | None
    """(south, north) in degrees between which the bird breeds; None where that is not known."""
    months: str
    """Where it is scarce in which months, as in the file."""

    def factors(self, month: int) -> np.ndarray | None:
        """Factors (ROWS, COLUMNS) float32 of a month 1 to 12 in the cells; None: 1 everywhere. Raises ValueError."""
        out = np.full(ROWS * COLUMNS, WHOLE, dtype=np.float32)
        for entry in self.months.split():
            cell, _, digits = entry.partition(":")
            if len(digits) != 12 or not cell.isdecimal() or int(cell) >= out.size:
                raise ValueError(f"{entry[:40]!r} is no cell with twelve digits")
            out[int(cell)] = int(digits[month - 1], 16)
        return None if (out == WHOLE).all() else out.reshape(ROWS, COLUMNS) / np.float32(WHOLE)


def absent_islands(folder: Path, species: str) -> frozenset[int]:
    """Numbers of the islands of some size on which a species has no cell; none for a species that is not listed.

    Raises ModelError for a table that cannot be read.
    """
    table = _islands(folder)
    return table[ALL] - table[species] if species in table else frozenset()


def season(folder: Path, species: str) -> Season | None:
    """When and where a bird is away; None for one that is not listed. Raises ModelError for an unreadable table."""
    return _seasons(folder).get(species)


@lru_cache(maxsize=4096)
def scarce(folder: Path, species: str, month: int) -> np.ndarray | None:
    """See `Season.factors`; None for a bird that is not listed. Raises ModelError."""
    found = season(folder, species)
    try:
        return None if found is None else found.factors(month)
    except ValueError as error:
        raise ModelError(f"{folder / 'seasons.csv'}: {species}: {error}.") from None


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
def _seasons(folder: Path) -> Mapping[str, Season]:
    rows = _rows(folder / "seasons.csv", ("species", "south", "north", "months"))
    try:
        table = {
            name: Season((float(south), float(north)) if south or north else None, months)
            for name, south, north, months in rows
        }
    except ValueError as error:
        raise ModelError(f"{folder / 'seasons.csv'}: {error}; latitudes are degrees.") from None
    known = [row.breeds for row in table.values() if row.breeds is not None]
    if not all(-90.0 <= south <= north <= 90.0 for south, north in known):
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
