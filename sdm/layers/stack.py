"""The bands of any rasters, under their own names."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from sdm.errors import LayerError, quoted
from sdm.layers.environment import expand
from sdm.layers.raster import RasterLayer


class RasterStack:
    """Bands of rasters, read at positions.

    Parameters
    ----------
    paths : raster files, or folders of them.
    categorical : names of bands whose values are classes: read at the nearest cell, never interpolated.
    bands : names of the bands to read, in this order; none: all of them.

    Raises
    ------
    LayerError : a raster cannot be used, or a name is there twice or not at all.
    """

    def __init__(self, paths: Iterable[str | Path], categorical: Sequence[str] = (), bands: Sequence[str] = ()) -> None:
        self.files = expand([str(p) for p in paths])
        self._bands: list[tuple[RasterLayer, int]] = []
        names: list[str] = []
        for path in self.files:
            layer = RasterLayer(path)
            for band, text in enumerate(layer.descriptions, start=1):
                stem = Path(path).stem
                names.append(text.strip() or (stem if layer.count == 1 else f"{stem} {band}"))
                self._bands.append((layer, band))
        if repeated := sorted({n for n in names if names.count(n) > 1}):
            raise LayerError(
                f"covariate {quoted(repeated[0])} is in the rasters twice; give each band a name of its own."
            )
        if unknown := sorted(set(categorical) - set(names)):
            raise LayerError(
                f"categorical covariate {quoted(unknown[0])} is in no raster; there are {', '.join(names[:20])}."
            )
        if absent := [name for name in bands if name not in names]:
            raise LayerError(f"covariate {quoted(absent[0])} is in no raster; there are {', '.join(names[:20])}.")
        if bands:
            self._bands = [self._bands[names.index(name)] for name in bands]
            names = list(bands)
        self.names = tuple(names)
        self.categorical = tuple(name in set(categorical) for name in names)

    def sample(self, lon: np.ndarray, lat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Values (N, bands) float32 at positions (N,), (N,) degrees, and where all bands have one (N,) bool."""
        values = np.empty((lon.size, len(self._bands)), dtype=np.float32)
        for column, (layer, band) in enumerate(self._bands):
            if self.categorical[column]:
                values[:, column] = layer.nearest(lon, lat, band)
            else:
                values[:, column] = layer.bilinear(lon, lat, lambda block: block, 1, [band])[:, 0]
        known = np.asarray(np.isfinite(values).all(axis=1))
        values[~known] = 0.0
        return values, known

    def check(self, lon: np.ndarray, lat: np.ndarray) -> None:
        """Raise LayerError where the rasters cover none of some positions (N,), (N,) degrees of a map."""
        if not self.sample(lon, lat)[1].any():
            raise LayerError(
                f"the rasters ({', '.join(str(f) for f in self.files[:3])}) cover no place of the map together; "
                "choose another box, or rasters of it."
            )
