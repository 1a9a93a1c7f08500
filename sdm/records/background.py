"""The places that presences are compared with.

What is compared decides more than the algorithm does: against random land a fit learns where the species can live,
against the places of other species of its group (the target group, Phillips et al. 2009) it learns where the species
is found among places that were visited. Half and half keeps most of both.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from sdm.errors import RecordsError
from sdm.layers.landmask import ANTARCTIC, LandMask
from sdm.records.sphere import EARTH_KM, nearest_km, unit_vectors

LEAST_GROUP = 50
"""Places of the target group below which it is not used unless asked for."""
MOST_DRAWN = 400
"""Positions drawn per place wanted; around small islands fewer places are found."""
MOST_RECORDS = 2000
"""Records that distances are measured to; of more, one per cell of a fiftieth of the reach."""
Box = tuple[float, float, float, float]
"""(west, south, east, north), degrees; west > east crosses 180 degrees."""


@dataclass(frozen=True)
class Positions:
    """N positions (lon, lat), degrees."""

    lon: np.ndarray
    lat: np.ndarray

    def __len__(self) -> int:
        return len(self.lon)

    def select(self, rows: np.ndarray) -> Positions:
        """Some of them, by a mask or by their numbers."""
        return Positions(self.lon[rows], self.lat[rows])


def near(positions: Positions, records: Positions, reach_km: float) -> np.ndarray:
    """Whether positions (N,) lie within `reach_km` of any record: (N,) bool."""
    if len(records) > MOST_RECORDS:
        records = records.select(thinned(records, np.degrees(reach_km / EARTH_KM) / 50.0))
    places = (unit_vectors(p.lon, p.lat) for p in (positions, records))
    return nearest_km(*places) <= reach_km


def random_places(
    records: Positions,
    count: int,
    reach_km: float,
    *,
    mask: str = "land",
    seed: int = 0,
    bounds: Box | None = None,
    known: Callable[[Positions], np.ndarray] | None = None,
) -> Positions:
    """Uniform random places within `reach_km` of the records.

    They are the first of one sequence of places over the globe, the same for all species of a request: what is known
    of a place serves every species that it is within reach of.

    Parameters
    ----------
    records : where the species was seen.
    count : places wanted; fewer are returned where there is hardly any land.
    reach_km : distance to the nearest record, at most.
    mask : "land", "sea" or "none"; land without Antarctica.
    seed : of the sequence.
    bounds : a box that they lie in; of a small one the sequence is another.
    known : which of some places (N,) bool may be taken.

    Raises
    ------
    RecordsError : there is no such place.
    """
    cells = _Cells.of(_frame(records, reach_km, bounds), reach_km)
    surface, kept, turns, drawn, have = LandMask(), [], [], 0, 0
    while have < count and drawn < MOST_DRAWN * count:
        candidates, turn = cells.draw(4 * (count - have) + 1000, seed)
        drawn += len(candidates)
        inside = surface.keep(mask, candidates.lon, candidates.lat)
        inside &= (candidates.lat > ANTARCTIC) | (mask != "land")
        if bounds is not None:
            inside &= _within(candidates, bounds)
        for test in (lambda places: near(places, records, reach_km), known):
            if test is not None and inside.any():
                inside[inside] = test(candidates.select(inside))
        kept.append(candidates.select(inside))
        turns.append(turn[inside])
        have += len(kept[-1])
    if have == 0:
        raise RecordsError(f"there is no {mask} within {reach_km:g} km of the records to compare them with.")
    joined = Positions(*(np.concatenate([getattr(p, axis) for p in kept]) for axis in ("lon", "lat")))
    return joined.select(np.sort(np.argsort(np.concatenate(turns), kind="stable")[:count]))


@dataclass
class _Cells:
    """Cells of equal area, in each of which places are drawn in turn; what is drawn depends on cell and turn alone."""

    rows: int
    columns: int
    """Of the whole globe."""
    number: np.ndarray
    """The cells that are drawn from: row times `columns` plus column."""
    turn: int = 0

    @classmethod
    def of(cls, frame: tuple[float, float, float, float], reach_km: float) -> _Cells:
        """Cells of half the reach, or smaller in a small frame (west, width, south, north), that cover it."""
        west, width, south, north = frame
        low, high = np.sin(np.radians((south, north)))
        side = reach_km / 2.0
        while side > 1.0 and side > EARTH_KM * max(high - low, 1e-6):
            side /= 2.0
        rows, columns = max(1, int(2.0 * EARTH_KM / side)), max(1, int(2.0 * np.pi * EARTH_KM / side))
        first, last = (min(int((s + 1.0) / 2.0 * rows), rows - 1) for s in (low, high))
        start = int(np.floor((west + 180.0) / 360.0 * columns))
        stop = min(int(np.floor((west + width + 180.0) / 360.0 * columns)), start + columns - 1)
        across = np.arange(start, stop + 1) % columns
        return cls(rows, columns, (np.arange(first, last + 1)[:, None] * columns + across).ravel())

    def draw(self, count: int, seed: int) -> tuple[Positions, np.ndarray]:
        """At least `count` further places, and when it is the turn of each."""
        turns = np.arange(self.turn, self.turn + -(-count // self.number.size))
        self.turn = int(turns[-1]) + 1
        cell, turn = (a.ravel() for a in np.meshgrid(self.number, turns))
        u, v, when = (_uniform(seed, cell, turn, axis) for axis in range(3))
        row, column = np.divmod(cell, self.columns)
        lon = (column + u) / self.columns * 360.0 - 180.0
        lat = np.degrees(np.arcsin(np.clip((row + v) / self.rows * 2.0 - 1.0, -1.0, 1.0)))
        return Positions(lon, lat), turn + when


def _uniform(seed: int, cell: np.ndarray, turn: np.ndarray, axis: int) -> np.ndarray:
    """Numbers of 0 to 1 (N,) that follow from cell (N,), turn (N,) and axis, and on nothing else."""
    mixed = np.full(cell.size, seed, dtype=np.uint64)
    for part in (cell, turn, np.full(cell.size, axis)):
        mixed = _mixed(mixed + part.astype(np.uint64))
    return (mixed >> np.uint64(11)).astype(np.float64) / 2.0**53


def _mixed(x: np.ndarray) -> np.ndarray:
    """Steele, Lea and Flood's SplitMix64 of (N,) uint64."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _within(positions: Positions, bounds: Box) -> np.ndarray:
    west, south, east, north = bounds
    width = 360.0 if east - west >= 360.0 else (east - west) % 360.0
    return ((positions.lon - west) % 360.0 <= width) & (positions.lat >= south) & (positions.lat <= north)


def group_places(
    records: Positions, group: Positions, count: int, reach_km: float, *, thin: float = 0.1, seed: int = 0
) -> Positions:
    """Places of other species, one per cell of `thin` degrees, without those of the records and beyond their reach."""
    group = group.select(near(group, records, reach_km))
    cells, own = cell_numbers(group, thin), cell_numbers(records, thin)
    group = group.select(np.sort(np.unique(cells, return_index=True)[1]))
    group = group.select(~np.isin(cell_numbers(group, thin), own))
    chosen = np.random.default_rng(seed).permutation(len(group))[:count]
    return group.select(np.sort(chosen))


def thinned(positions: Positions, degrees: float) -> np.ndarray:
    """Numbers of the first position in each cell of `degrees`, ascending; all of them for 0 degrees."""
    if degrees <= 0.0:
        return np.arange(len(positions))
    return np.sort(np.unique(cell_numbers(positions, degrees), return_index=True)[1])


def cell_numbers(positions: Positions, degrees: float) -> np.ndarray:
    """The cell of each position on a grid of `degrees`: (N,) int64."""
    column = np.floor((positions.lon + 180.0) / degrees).astype(np.int64)
    row = np.floor((positions.lat + 90.0) / degrees).astype(np.int64)
    return row * (int(np.ceil(360.0 / degrees)) + 1) + column


def choose_kind(asked: str, presences: int, absences: int, group: int) -> tuple[str, str]:
    """Which background is used, and the rule that chose it, as a clause.

    Parameters
    ----------
    asked : one of `sdm.request.records.BACKGROUNDS`.
    presences, absences : records of the species.
    group : places of the target group within reach.
    """
    if asked in ("group", "mixed") and group == 0:
        raise RecordsError(
            "a target-group background is asked for, but no record of another species lies within reach; give "
            "--background a file with records of the group."
        )
    if asked != "auto":
        return asked, "as asked for"
    if absences >= 10 and absences >= presences // 10:
        return "absences", f"the records hold {absences} absences"
    if group >= LEAST_GROUP:
        return "mixed", f"{group} places of other species show where observers went"
    if group:
        return "random", f"only {group} places of other species lie within reach, and {LEAST_GROUP} are needed"
    return "random", "no records of other species were given"


def _frame(records: Positions, reach_km: float, bounds: Box | None = None) -> tuple[float, float, float, float]:
    """West, width, south and north of a box, in degrees, that holds all that lies within reach and within bounds."""
    west, width, south, north = _reached(records, reach_km)
    if bounds is None:
        return west, width, south, north
    left, bottom, right, top = bounds
    across = 360.0 if right - left >= 360.0 else (right - left) % 360.0
    south, north = max(south, bottom), min(north, top)
    if south > north:  # nothing is within reach: any box will do
        south, north = bottom, top
    return (left, across, south, north) if across < width else (west, width, south, north)


def _reached(records: Positions, reach_km: float) -> tuple[float, float, float, float]:
    """As `_frame`, without bounds."""
    margin = np.degrees(reach_km / EARTH_KM)
    south = max(-90.0, float(records.lat.min()) - margin)
    north = min(90.0, float(records.lat.max()) + margin)
    widest = max(abs(south), abs(north))
    if widest > 85.0:
        return -180.0, 360.0, south, north
    margin /= np.cos(np.radians(widest))
    east = np.sort(np.mod(records.lon, 360.0))
    gaps = np.diff(np.append(east, east[0] + 360.0))
    after = int(np.argmax(gaps))  # the records lie outside the widest gap between their longitudes
    width = 360.0 - float(gaps[after]) + 2.0 * margin
    if width >= 360.0:
        return -180.0, 360.0, south, north
    return float(east[(after + 1) % east.size]) - margin, width, south, north
