"""Limits of a species that its model does not know: factors of a probability, soft at their edges.

Each is a function of the position of a pixel, so that any tiling gives the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Protocol

import numpy as np

from sdm.grid import KM_PER_DEGREE
from sdm.layers import shore
from sdm.models.limits import CELL, absent_islands, scarce, season
from sdm.models.protocol import Model
from sdm.names import Resolution
from sdm.names.habitat import Shore, shore_for

ABSENT = 0.1
"""Factor on an island on which the atlas does not have the species."""
AWAY_DEGREES = {6: (5.0, 20.0), 7: (5.0, 20.0), 5: (25.0, 45.0), 8: (25.0, 45.0), 9: (45.0, 70.0)}
"""How far beyond its breeding latitudes, towards the winter quarters, a northern bird still is in a month: up to the
first nothing is changed, from the second on there are none. Those with the longest way leave first and arrive last.
Southern birds: half a year later."""


class Pixels:
    """Some pixels that limits apply to: what several species need of them is read once."""

    def __init__(self, lon: np.ndarray, lat: np.ndarray, height: np.ndarray) -> None:
        """`lon`, `lat` (N,) degrees; `height` of the pixels in degrees, (N,) or ()."""
        self.lon, self.lat, self.height = lon, lat, height
        self._distances: dict[tuple[str, ...], np.ndarray] = {}

    def distance(self, waters: tuple[str, ...]) -> np.ndarray:
        """Kilometres (N,) from the nearest side of a pixel to some waters."""
        if waters not in self._distances:
            centre = _shore().distance(waters, self.lon, self.lat)
            self._distances[waters] = centre - self.height * (KM_PER_DEGREE / 2.0)
        return self._distances[waters]

    @cached_property
    def islands(self) -> np.ndarray:
        """Numbers (N,) of the islands."""
        return _shore().island(self.lon, self.lat)

    @cached_property
    def on_islands(self) -> frozenset[int]:
        """Numbers of all islands."""
        return frozenset(np.unique(self.islands).tolist())

    def apply(self, limits: Sequence[Limit], values: np.ndarray) -> None:
        """Multiply values (N,) of the pixels by the factors of some limits, in place."""
        for limit in limits:
            factor = limit.factor(self)
            if factor is not None:
                values *= factor


class Limit(Protocol):
    """A factor of a probability by place."""

    @property
    def sentence(self) -> str:
        """For the user of the map."""
        ...

    def factor(self, pixels: Pixels) -> np.ndarray | None:
        """Factors (N,) float32, 0 to 1; None: 1."""
        ...


@dataclass(frozen=True)
class NearWater:
    """Less and less with the distance to water."""

    shore: Shore

    @property
    def sentence(self) -> str:
        """See `Limit`."""
        waters = " or ".join("the sea" if water == "sea" else water for water in self.shore.waters)
        return (
            f"An animal of the shore: probabilities fall to 0 from {self.shore.near:g} to {self.shore.far:g} km from "
            f"{waters}; --limits none leaves them as they are."
        )

    def factor(self, pixels: Pixels) -> np.ndarray | None:
        """See `Limit`."""
        return _ramp(pixels.distance(self.shore.waters), self.shore.near, self.shore.far)


@dataclass(frozen=True)
class NotOnIslands:
    """Less on islands where it is not known."""

    absent: frozenset[int]

    @property
    def sentence(self) -> str:
        """See `Limit`."""
        return (
            f"On large islands without a cell of its range, probabilities are multiplied by {ABSENT:g}; --limits none "
            "leaves them as they are."
        )

    def factor(self, pixels: Pixels) -> np.ndarray | None:
        """See `Limit`."""
        if not self.absent & pixels.on_islands:
            return None
        table = np.ones(256, dtype=np.float32)
        table[list(self.absent)] = ABSENT
        return table[pixels.islands]


@dataclass(frozen=True)
class AwayToBreed:
    """Less and less in its winter quarters while it breeds elsewhere."""

    latitude: float
    """Of the edge of the breeding range, degrees."""
    northern: bool
    """Whether it breeds in the north."""
    near: float
    far: float
    """See `AWAY_DEGREES`."""

    @property
    def sentence(self) -> str:
        """See `Limit`."""
        side = "south" if self.northern else "north"
        return (
            f"A migrant in its breeding season: probabilities fall to 0 from {self.near:g} to {self.far:g} deg "
            f"{side} of its breeding range ({self.latitude:.0f}); --limits none leaves them as they are."
        )

    def factor(self, pixels: Pixels) -> np.ndarray | None:
        """See `Limit`."""
        beyond = self.latitude - pixels.lat if self.northern else pixels.lat - self.latitude
        return _ramp(beyond, self.near, self.far)


@dataclass(frozen=True, eq=False)
class ScarceInMonth:
    """Less where it is reported far less than in its best month there."""

    cells: np.ndarray
    """Factors (rows, columns) float32 at the centres of cells of the globe, see `sdm.models.limits`."""

    @property
    def sentence(self) -> str:
        """See `Limit`."""
        return (
            "A bird that is away for part of the year: probabilities are lowered where it is reported far less in this "
            "month than in its best month there; --limits none leaves them as they are."
        )

    def factor(self, pixels: Pixels) -> np.ndarray | None:
        """See `Limit`: linear between the centres of the cells."""
        rows, columns = self.cells.shape
        lon, lat = np.nan_to_num(pixels.lon), np.nan_to_num(pixels.lat)  # off the globe nothing is shown
        down = np.clip((90.0 - lat) / CELL[0] - 0.5, 0.0, rows - 1.0)
        across = (lon + 180.0) / CELL[1] - 0.5
        top, left = np.minimum(np.floor(down), rows - 2).astype(int), np.floor(across).astype(int)
        south, east = down - top, across - left
        west_column, east_column = left % columns, (left + 1) % columns
        north = self.cells[top, west_column] * (1.0 - east) + self.cells[top, east_column] * east
        below = self.cells[top + 1, west_column] * (1.0 - east) + self.cells[top + 1, east_column] * east
        factor = (north * (1.0 - south) + below * south).astype(np.float32)
        return None if (factor >= 1.0).all() else factor


def limits_of(model: Model, resolution: Resolution, month: int) -> tuple[Limit, ...]:
    """The limits of a resolved name in a model; `month` 1 to 12, or 0 for the whole year. Raises ModelError."""
    taxon, found = resolution.taxon, list[Limit]()
    if (by := shore_for(taxon)) is not None:
        found.append(NearWater(by))
    if taxon.rank != "species":
        return tuple(found)
    # The whole range holds islands that people brought it to.
    if resolution.origin == "native" and (absent := absent_islands(model.folder, taxon.name)):
        found.append(NotOnIslands(absent))
    if month:
        found += _seasonal(model, taxon.name, month)
    return tuple(found)


def _seasonal(model: Model, species: str, month: int) -> list[Limit]:
    """Limits of a bird in a month 1 to 12."""
    found, row = list[Limit](), season(model.folder, species)
    if row is not None and row.breeds is not None:
        northern = sum(row.breeds) > 0.0
        bounds = AWAY_DEGREES.get(month if northern else (month + 5) % 12 + 1)
        if bounds is not None:
            found.append(AwayToBreed(row.breeds[0] if northern else row.breeds[1], northern, *bounds))
    if (cells := scarce(model.folder, species, month)) is not None:
        found.append(ScarceInMonth(cells))
    return found


def _ramp(distance: np.ndarray, near: float, far: float) -> np.ndarray:
    """1 up to `near`, 0 from `far` on, straight between; float32."""
    return np.clip((far - distance) / (far - near), 0.0, 1.0).astype(np.float32)


@lru_cache(maxsize=1)
def _shore() -> shore.Shore:
    return shore.Shore()
