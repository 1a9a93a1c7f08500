"""Land, sea and lakes, to leave out the places where a species cannot be."""

from __future__ import annotations

import numpy as np

from sdm.layers.raster import RasterLayer
from sdm.resources import folder

SEA, LAND, LAKE = 0, 1, 2
KINDS = ("land", "sea", "none", "auto")


class LandMask:
    """The bundled land mask (1.25 arc-minutes, about 2 km)."""

    def __init__(self) -> None:
        self.layer = RasterLayer(folder("data") / "landmask.tif")

    def keep(self, kind: str, lon: np.ndarray, lat: np.ndarray) -> np.ndarray:
        """Boolean, shape of `lon` (degrees): True where a map masked to `kind` shows a value.

        "land" keeps land without lakes, "sea" keeps sea and lakes, "none" everything on the globe.
        """
        on_globe = np.isfinite(lon) & np.isfinite(lat)
        if kind == "none":
            return on_globe
        surface = self.layer.nearest(lon, lat)
        return on_globe & ((surface == LAND) if kind == "land" else (surface != LAND))
