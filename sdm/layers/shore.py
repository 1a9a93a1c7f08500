"""Distances to water and the islands of the world, in cells of 5 arc-minutes."""

from __future__ import annotations

import numpy as np

from sdm.files.release import data_file
from sdm.layers.raster import RasterLayer

BANDS = {"sea": 2, "large lakes": 3, "fresh water": 4}
"""Bands of distances by what they lead to."""
REACH = {"sea": 200.0, "large lakes": 200.0, "fresh water": 50.0}
"""Kilometres; greater distances are not told."""
ISLAND = 5
"""Band of the numbers of islands."""


class Shore:
    """The bundled layer of the shore."""

    def __init__(self) -> None:
        self.layer = RasterLayer(data_file("shore.tif"))

    def distance(self, waters: tuple[str, ...], lon: np.ndarray, lat: np.ndarray) -> np.ndarray:
        """Kilometres (N,) float32 from positions (N,), (N,) degrees to the nearest of some waters; 0 on them.

        `waters`: any of `BANDS`. A distance beyond `REACH` is that reach; NaN off the globe.
        """
        bands = [BANDS[water] for water in waters]
        # Interpolated one by one: between a lake and the sea the nearer of the two changes, each distance does not.
        each = self.layer.bilinear(lon, lat, lambda cells: cells, len(bands), bands)
        return each.min(axis=1)

    def island(self, lon: np.ndarray, lat: np.ndarray) -> np.ndarray:
        """Numbers (N,) int of the islands at positions (N,), (N,) degrees; 0: none, or a small one."""
        return np.nan_to_num(self.layer.nearest(lon, lat, ISLAND)).astype(np.int64)
