"""The places that presences are compared with.

What is compared decides more than the algorithm does: against random land a fit learns where the species can live,
against the places of other species of its group (the target group, Phillips et al. 2009) it learns where the species
is found among places that were visited. Half and half keeps most of both.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sdm.errors import RecordsError
from sdm.layers.landmask import ANTARCTIC, LandMask
from sdm.records.folds import unit_vectors

LEAST_GROUP = 50
"""Places of the target group below which it is not used unless asked for."""
EARTH_KM = 6371.0
MOST_DRAWN = 100
"""Positions drawn per place wanted; around small islands fewer places are found."""


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
    chord = 2.0 * np.sin(min(reach_km / EARTH_KM, np.pi) / 2.0)
    targets = unit_vectors(records.lon, records.lat)
    points = unit_vectors(positions.lon, positions.lat)
    out = np.zeros(len(positions), dtype=bool)
    for first in range(0, len(points), 4096):
        part = points[first : first + 4096]
        # The nearest record has the largest inner product.
        best = np.full(len(part), -1.0)
        for start in range(0, len(targets), 4096):
            np.maximum(best, (part @ targets[start : start + 4096].T).max(axis=1), out=best)
        out[first : first + 4096] = 2.0 - 2.0 * best <= chord**2
    return out


def random_places(records: Positions, count: int, reach_km: float, *, mask: str = "land", seed: int = 0) -> Positions:
    """Uniform random places within `reach_km` of the records.

    Parameters
    ----------
    records : where the species was seen.
    count : places wanted; fewer are returned where there is hardly any land.
    reach_km : distance to the nearest record, at most.
    mask : "land", "sea" or "none".
    seed : of the draws.
    """
    rng = np.random.default_rng(seed)
    west, width, south, north = _frame(records, reach_km)
    surface, kept, drawn, have = LandMask(), [], 0, 0
    while have < count and drawn < MOST_DRAWN * count:
        n = 4 * (count - have) + 1000
        drawn += n
        lon = (west + width * rng.random(n) + 180.0) % 360.0 - 180.0
        low, high = np.sin(np.radians((south, north)))
        lat = np.degrees(np.arcsin(low + (high - low) * rng.random(n)))
        candidates = Positions(lon, lat)
        candidates = candidates.select(surface.keep(mask, lon, lat) & ((lat > ANTARCTIC) | (mask != "land")))
        candidates = candidates.select(near(candidates, records, reach_km))
        kept.append(candidates)
        have += len(candidates)
    if have == 0:
        raise RecordsError(f"there is no {mask} within {reach_km:g} km of the records to compare them with.")
    joined = Positions(np.concatenate([p.lon for p in kept]), np.concatenate([p.lat for p in kept]))
    return joined.select(np.arange(min(count, have)))


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


def _frame(records: Positions, reach_km: float) -> tuple[float, float, float, float]:
    """West, width, south and north of a box, in degrees, that holds all that lies within reach."""
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
