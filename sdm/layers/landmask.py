"""Land, sea and lakes, to mask the places where a species cannot live."""

from __future__ import annotations

import numpy as np

from sdm.files.release import data_file
from sdm.layers.raster import RasterLayer

SEA, LAND, LAKE = 0, 1, 2
KINDS = ("land", "sea", "none", "auto")


class LandMask:
    """The bundled land mask (1.25 arc-minutes, about 2 km)."""

    def __init__(self) -> None:
        self.layer = RasterLayer(data_file("landmask.tif"))

    def keep(self, kind: str, lon: np.ndarray, lat: np.ndarray) -> np.ndarray:
        """Boolean, shape of `lon` (degrees): True where a map masked to `kind` shows a value.

        "land" keeps land without lakes, "sea" keeps the sea and lakes, "none" keeps everything on the globe.
        """
        on_globe = np.isfinite(lon) & np.isfinite(lat)
        if kind == "none":
            return on_globe
        surface = self.layer.nearest(lon, lat)
        return on_globe & ((surface == LAND) if kind == "land" else (surface != LAND))


ANTARCTIC = -60.0
"""Degrees of latitude; all land south of it is Antarctica."""
_STEPS = np.array([0.7548776662466927, 0.5698402909980532])
"""1/g and 1/g^2 with g^3 = g + 1: the steps of the R2 sequence."""


def land_sample(n: int = 20_000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """`n` places on land, each representing the same area: (lon, lat), each (n,) float64 in degrees.

    Without lakes and Antarctica. The first `m` of `land_sample(n, seed)` are `land_sample(m, seed)`. They are
    points of Roberts' R2 sequence, distributed over the sphere by area, that are land on the bundled mask;
    `seed` shifts the sequence. Shares of an area are several times more accurate than from random points.

    M. Roberts (2018), The unreasonable effectiveness of quasirandom sequences,
    https://extremelearning.com.au/unreasonable-effectiveness-of-quasirandom-sequences/
    """
    if n < 1:
        raise ValueError(f"a sample must have at least one place, not {n}")
    mask = LandMask()
    start = np.random.default_rng(seed).random(2) if seed else np.array([0.5, 0.5])
    lons: list[np.ndarray] = []
    lats: list[np.ndarray] = []
    count = first = 0
    while count < n:
        index = np.arange(first, first + 4 * max(n - count, 256))
        first = int(index[-1]) + 1
        u, v = (start[:, None] + index * _STEPS[:, None]) % 1.0
        lon, lat = 360.0 * u - 180.0, np.degrees(np.arcsin(2.0 * v - 1.0))
        land = (lat > ANTARCTIC) & mask.keep("land", lon, lat)
        lons.append(lon[land])
        lats.append(lat[land])
        count += int(land.sum())
    return np.concatenate(lons)[:n], np.concatenate(lats)[:n]
