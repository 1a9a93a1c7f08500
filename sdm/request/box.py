"""A box on the globe."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from sdm.errors import BoxError

KM_PER_DEGREE = 111.195
"""Of latitude, on a sphere."""


@dataclass(frozen=True)
class BBox:
    """A box on the globe: west, south, east, north in degrees (WGS84).

    west > east means the box crosses the antimeridian. Raises BoxError for coordinates that are
    not finite, out of range, reversed in latitude, or that enclose no area.
    """

    west: float
    south: float
    east: float
    north: float

    def __post_init__(self) -> None:
        names = ("west", "south", "east", "north")
        for name in names:
            given = getattr(self, name)
            try:
                value = float(given)
            except (TypeError, ValueError):
                raise BoxError(
                    f"bbox {name} {str(given)[:40]!r} is not a number; give WEST SOUTH EAST NORTH in degrees."
                ) from None
            if not math.isfinite(value):
                raise BoxError(f"bbox {name} is {value}; give WEST SOUTH EAST NORTH as finite degrees.")
            object.__setattr__(self, name, value)
        for name in ("west", "east"):
            value = getattr(self, name)
            if not -180.0 <= value <= 180.0:
                raise BoxError(
                    f"bbox {name} {value:g} is outside -180..180; to cross the antimeridian give "
                    "west > east, for example 170 -20 -170 -10."
                )
        for name in ("south", "north"):
            value = getattr(self, name)
            if not -90.0 <= value <= 90.0:
                raise BoxError(
                    f"bbox {name} {value:g} is outside -90..90; the order is WEST SOUTH EAST NORTH in degrees."
                )
        if self.south > self.north:
            raise BoxError(
                f"bbox south {self.south:g} is greater than north {self.north:g}; the order is WEST SOUTH EAST NORTH."
            )
        if self.south == self.north or self.width == 0.0:
            raise BoxError(f"bbox {self} encloses no area; west and east, south and north must differ.")

    @classmethod
    def of(cls, values: BBox | Iterable[float]) -> BBox:
        """A box from four numbers, or the box itself. Raises BoxError."""
        if isinstance(values, BBox):
            return values
        try:
            numbers = list(values)
        except TypeError:
            raise BoxError(f"bbox {values!r} is not four numbers: WEST SOUTH EAST NORTH in degrees.") from None
        if len(numbers) != 4:
            raise BoxError(f"bbox has {len(numbers)} numbers; give four: WEST SOUTH EAST NORTH in degrees.")
        return cls(*numbers)

    @property
    def crosses_antimeridian(self) -> bool:
        """True when west > east."""
        return self.west > self.east

    @property
    def unwrapped_east(self) -> float:
        """East on the same branch as west: 190 for a box from 170 to -170."""
        return self.east + 360.0 if self.crosses_antimeridian else self.east

    @property
    def width(self) -> float:
        """Degrees of longitude from west to east."""
        return self.unwrapped_east - self.west

    def as_tuple(self) -> tuple[float, float, float, float]:
        """(west, south, east, north)."""
        return (self.west, self.south, self.east, self.north)

    def __str__(self) -> str:
        return f"{self.west:g} {self.south:g} {self.east:g} {self.north:g}"


def check_position(lon: float, lat: float) -> None:
    """Raise BoxError for a position, degrees, that is not on the globe; it says so where they look swapped."""
    if -180.0 <= lon <= 180.0 and -90.0 <= lat <= 90.0:
        return
    swapped = abs(lat) <= 180.0 and abs(lon) <= 90.0
    remedy = f"; did you mean --at {lat:g} {lon:g}?" if swapped else ", -180 to 180 and -90 to 90."
    raise BoxError(f"--at {lon:g} {lat:g} is not on the globe: longitude first, then latitude{remedy}")
