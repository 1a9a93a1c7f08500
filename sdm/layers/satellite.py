"""Satellite crops: a square true-colour image around each place."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sdm.errors import LayerError
from sdm.files.release import data_file
from sdm.layers.raster import RasterLayer


class Satellite:
    """RGB crops of `size` x `size` cells of `pitch` degrees around places.

    `path` is the user's raster (8-bit RGB, any CRS and resolution: it is averaged to `pitch`, which the
    model was trained with); by default the bundled mosaic. Raises LayerError when it is not RGB.
    """

    def __init__(self, size: int, pitch: float, path: str | Path | None = None) -> None:
        self.size = size
        self.path = None if path is None else str(path)
        if path is None:
            self.layer = RasterLayer(data_file("satellite.tif"))
        else:
            # The global grid of the crops does not show where the user's file has imagery.
            self._source = RasterLayer(path)
            self.layer = RasterLayer(path, pitch=pitch, resampling="average")
        if self.layer.count != 3 or set(self.layer.dtypes) != {"uint8"}:
            raise LayerError(
                f"satellite raster {self.layer.path!r} has {self.layer.count} band(s) of "
                f"{self.layer.dtypes[0]}; give true colour as three 8-bit bands (red, green, blue)."
            )

    def crops(self, lon: np.ndarray, lat: np.ndarray) -> np.ndarray:
        """Crops at places: (N,), (N,) degrees -> (N, size, size, 3) uint8, row 0 north."""
        return self.layer.crops(lon, lat, self.size)

    def known(self, lon: np.ndarray, lat: np.ndarray) -> np.ndarray:
        """Boolean, shape of `lon` (degrees): there is imagery at the place."""
        if self.path is None:
            return np.isfinite(lon)
        return np.isfinite(self._source.nearest(lon, lat))

    def check(self, lon: np.ndarray, lat: np.ndarray) -> None:
        """Raise LayerError when the user's raster covers none of the places (N,), (N,) degrees."""
        if self.path is not None:
            self._source.require_overlap("satellite", lon, lat)
