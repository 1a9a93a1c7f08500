"""Corrections to the scores of BirdNET's geographic model: how large a range is, where it ends, and whether the bird
leaves when it freezes. Used by `recipes/birds_teacher.py`.

**Ranges** (`Ranges`): AVONET (Tobias et al. 2022, 10.1111/ele.13898, CC BY 4.0), its table by BirdLife's species: area
of the range, centroid, lowest and highest latitude, whether the bird migrates. For resident birds:

- the score with the target one half is the one that gives a map of the size of the range, within limits. The teacher's
  maps of large ranges have soft edges, for which a common threshold works as well; its maps of small ranges are many
  times too large at a common threshold;
- a small range ends at its latitudes, and not far from its centroid.

**Cold** (`Cold`): where there are few observers, the teacher's winter is like its summer: yellow warblers in Canada in
January. Where it changes most between January and July there are many observers, and it is reliable. Those places show
which birds leave the cold, and down to which temperature they stay; in colder months their target is 0 everywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from validate_records import EARTH_KM, unit

from sdm.layers.environment import Environment, Input

HALF = 0.05
"""Score with the target one half, of birds whose range is not known."""
BOUNDS = ((1e5, 0.01, 0.3), (1e6, 0.03, 0.1), (np.inf, 0.03, 0.05))
"""Bounds of it for birds whose range is known: ranges below so many km2, lowest, highest. With 0.1 for large ranges as
well, maps lost 5 points of the records of 113 birds for a tenth of their area."""
CUT_KM2 = 1e6
"""Ranges below this are cut to their surroundings; larger ones have been carried beyond them by people too often."""
CUT_DEGREES = (2.0, 6.0)
"""Beyond the lowest and highest latitude: up to the first all is kept, from the second nothing."""
CUT_RADII, CUT_KM = 2.5, 300.0
"""Kept around the centroid: this many radii of a disc of the range's area, or half heights of the range, and km more;
nothing from half as far again."""
SURE = 0.3
"""A teacher who gives as much far from the centroid knows of islands that AVONET's disc does not show."""
LEAVES = 0.3
"""A bird leaves the cold if its winter there has less than this share of its summer."""
TRUST = 0.05
"""Places with this much more change between January and July weigh e times as much."""
MOST = 0.8
"""Change of places without frost, where birds stay for good reasons."""
RARELY = 0.01
"""Share of a bird's places and months that may be colder than its limit."""
SEEN = 1e-3
"""Sum of trusted summer targets that a bird needs for anything to be said."""
SUMMER, WINTER = [4, 5, 6, 7], [11, 0, 1]
"""Months of the north, from 0: May to August, December to February."""
STEPS = np.arange(-60.0, 45.0, 0.5)
"""Temperatures (degrees C) at which presence is counted."""
COLD_DEGREES = (2.0, 4.0)
"""Degrees C below the limit: up to the first all is kept, from the second nothing."""


def ramp(distance: np.ndarray, keep: float | np.ndarray, end: float | np.ndarray) -> np.ndarray:
    """1 up to `keep`, 0 from `end`, straight between."""
    return np.clip((end - distance) / (end - keep), 0.0, 1.0)


def kilometres(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Great-circle distances of points on the unit sphere, (N, 3) and (3,) or (3, M)."""
    return EARTH_KM * np.arccos(np.clip(a @ b, -1, 1))


@dataclass
class Ranges:
    """Per label, (L,) each: `half`, the score with the target one half; `centroid` (L, 3) on the unit sphere; `radius`
    (km), inf: not cut by distance; `south`, `north` (degrees), -inf, inf: not cut by latitude."""

    half: np.ndarray
    centroid: np.ndarray
    radius: np.ndarray
    south: np.ndarray
    north: np.ndarray

    @classmethod
    def fit(cls, avonet: pd.DataFrame, lon: np.ndarray, lat: np.ndarray, scores: np.ndarray, km2: float) -> Ranges:
        """From AVONET's rows of the labels (`read_avonet`) and the scores (N, L) of the whole year at places (N,), (N,)
        of land, each of which stands for `km2`."""
        n = len(avonet)
        size = avonet["Range.Size"].to_numpy(np.float64)
        stays = (avonet["Migration"].to_numpy(np.float64) < 3) & (size > 0)  # NaN is not
        ashore = ~avonet["Habitat"].isin(["Marine", "Coastal"]).to_numpy()
        half = np.full(n, HALF)
        for k in np.flatnonzero(stays & ashore):
            match = np.sort(scores[:, k])[::-1][min(int(size[k] / km2), len(scores) - 1)]
            low, high = next(bounds for below, *bounds in BOUNDS if size[k] < below)
            half[k] = np.clip(float(match), low, high)
        south, north = (avonet[c].to_numpy(np.float64) for c in ("Min.Latitude", "Max.Latitude"))
        centroid = unit(*(avonet[c].to_numpy(np.float64) for c in ("Centroid.Longitude", "Centroid.Latitude")))
        disc = np.sqrt(np.maximum(size, 0) / np.pi)
        tall = np.radians(north - south) / 2 * EARTH_KM
        cut = stays & (size < CUT_KM2) & np.isfinite(centroid).all(axis=1)
        radius = np.where(cut, CUT_RADII * np.fmax(disc, tall) + CUT_KM, np.inf)
        here = unit(lon, lat)
        for k in np.flatnonzero(cut):
            sure = scores[:, k] >= max(SURE, half[k])
            if (kilometres(here[sure], centroid[k]) > radius[k]).any():
                radius[k] = np.inf
        return cls(
            half=half,
            centroid=np.where(np.isfinite(centroid), centroid, 0.0),
            radius=radius,
            south=np.where(cut & np.isfinite(south), south, -np.inf),
            north=np.where(cut & np.isfinite(north), north, np.inf),
        )

    def keep(self, lon: np.ndarray, lat: np.ndarray) -> np.ndarray:
        """Factors (N, L) of the targets at (lon, lat): 0 well outside a small range."""
        beyond = np.maximum(self.south - lat[:, None], lat[:, None] - self.north)
        factor = ramp(beyond, *CUT_DEGREES)
        near = np.flatnonzero(np.isfinite(self.radius))
        distance = kilometres(unit(lon, lat), self.centroid[near].T)
        factor[:, near] *= ramp(distance, self.radius[near], 1.5 * self.radius[near])
        return factor


def read_avonet(path: Path, names: dict[str, list[str]]) -> pd.DataFrame:
    """AVONET's rows of `names`, {label: its other scientific names}; NaN where it has none."""
    table = pd.read_csv(path).drop_duplicates("Species1").set_index("Species1")
    found = [next((n for n in (label, *others) if n in table.index), None) for label, others in names.items()]
    # Two labels under one name: one bird of AVONET was split, and neither half has the range of the whole.
    twice = pd.Series(found).duplicated(keep=False).to_numpy()
    rows = table.reindex([None if two else n for n, two in zip(found, twice, strict=True)])
    return rows.set_axis(list(names), axis=0)


@dataclass
class Cold:
    """`limit` (L,), degrees C: the bird is absent in months colder than this; -inf: it stays, or nothing is known."""

    limit: np.ndarray

    @classmethod
    def fit(
        cls,
        month: Callable[[np.ndarray, np.ndarray, int], np.ndarray],
        lon: np.ndarray,
        lat: np.ndarray,
        change: np.ndarray,
        batch: int,
    ) -> Cold:
        """From the scores (N, L) = `month(lon, lat, 1..12)` at places (N,), (N,) of land where the teacher is reliable.

        `change` (N,): from January to July, 1 where it never freezes.
        """
        trust = np.exp((np.minimum(change, MOST) - MOST) / TRUST)
        temperature = monthly_temperature(lon, lat)
        step = np.digitize(temperature, STEPS)
        northern_frost = (change < 1) & (lat > 0)  # there is hardly any in the south
        summer = winter = present = 0.0
        for i in range(0, lon.size, batch):
            s = slice(i, i + batch)
            scores = np.stack([month(lon[s], lat[s], m) for m in range(1, 13)])  # (12, n, L)
            target = scores / (scores + HALF)
            weight = (trust[s] * northern_frost[s])[:, None]
            summer = summer + (weight * target[SUMMER].max(axis=0)).sum(axis=0)
            winter = winter + (weight * target[WINTER].mean(axis=0)).sum(axis=0)
            for m in range(12):
                where = np.zeros((STEPS.size + 1, lon[s].size), np.float32)
                where[step[m, s], np.arange(lon[s].size)] = trust[s]
                present = present + where @ (scores[m] >= HALF).astype(np.float32)  # (steps, L)
        share = np.cumsum(present, axis=0) / np.maximum(np.sum(present, axis=0), 1e-12)
        limit = np.append(STEPS, np.inf)[(share > RARELY).argmax(axis=0)]
        leaves = (summer > SEEN) & (winter < LEAVES * summer)
        return cls(np.where(leaves, limit, -np.inf))

    def keep(self, lon: np.ndarray, lat: np.ndarray, month: np.ndarray) -> np.ndarray:
        """Factors (N, L) of the targets at (lon, lat) in months (N,) 1..12: 0 where a bird has left."""
        temperature = monthly_temperature(lon, lat)[month - 1, np.arange(lon.size)]
        return ramp(self.limit - temperature[:, None], *COLD_DEGREES)


def monthly_temperature(lon: np.ndarray, lat: np.ndarray) -> np.ndarray:
    """Mean temperature (12, N) in degrees C, a sine of the annual mean and the seasonality (bio1, bio4 of WorldClim's
    definition: 100 times the standard deviation of the months), warmest in the middle of July or of January.

    Where the climate is not known, out at sea, it is warm.
    """
    mean, seasonality = Environment([Input("bio1"), Input("bio4")]).sample(lon, lat, standardise=False).T
    warmest = np.where(lat >= 0, 6.5, 0.5)
    phase = 2 * np.pi * (np.arange(12)[:, None] + 0.5 - warmest) / 12
    return np.nan_to_num(mean + np.sqrt(2) * seasonality / 100 * np.cos(phase), nan=99.0)
