"""Means of the environment around places, brought up to date with rasters of the user's own.

`surroundings.tif` holds Gaussian means of the bundled layers over 100, 300 and 900 km. They are linear in what is
averaged: where a raster of the user's replaces a variable, the mean of the difference from the bundled layer is added.
So the means hold the user's values as far as their rasters reach, the bundled ones beyond, and stay exactly as they
were where both are the same.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sdm.files.release import data_file
from sdm.layers.raster import MAX_WINDOW, Cells, RasterLayer
from sdm.request.box import KM_PER_DEGREE

PITCH = 0.25
"""Degrees between the cells in which layers are averaged before they are smoothed, as in making surroundings.tif."""
LEAST_COSINE = 0.15
"""Near the poles a full kernel would wind around the globe."""
BANDS_AT_ONCE = 64


class Around(NamedTuple):
    """What a band of surroundings.tif is the mean of."""

    km: float
    variable: str
    """Of the layers: bio1, elevation, relief, landcover."""
    field: Callable[[np.ndarray], np.ndarray]
    """Values of the variable -> what is averaged, in the units of the band."""


def around(name: str) -> Around | None:
    """The meaning of a band named "mean100km-bio12"; None for another name."""
    match = re.fullmatch(r"mean(\d+)km-([a-z]+)(\d*)", name)
    if match is None:
        return None
    km, stem, number = float(match[1]), match[2], match[3]
    match stem:
        case "bio":
            logged = int(number) in (12, 13, 14, 16, 17, 18, 19)
            return Around(km, f"bio{number}", _log if logged else _same)
        case "height":
            return Around(km, "elevation", _height)
        case "depth":
            return Around(km, "elevation", _depth)
        case "relief":
            return Around(km, "relief", _log)
        case "landcover":
            return Around(km, "landcover", _share_of(int(number)))
    return None


def _same(x: np.ndarray) -> np.ndarray:
    return x


def _height(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0.0)


def _depth(x: np.ndarray) -> np.ndarray:
    return np.minimum(x, 0.0)


@lru_cache
def _share_of(number: int) -> Callable[[np.ndarray], np.ndarray]:
    """Where a class is: one function for each, since what was computed with it is kept by it."""
    return lambda classes: np.where(np.isnan(classes), np.nan, classes == number)


def _log(x: np.ndarray) -> np.ndarray:
    return np.log1p(np.maximum(x, 0.0))


class ShiftedLayer(RasterLayer):
    """A layer with an amount added to some of its bands: {band: (height, width) float32}."""

    def __init__(self, path: str | Path, shifts: Mapping[int, np.ndarray]) -> None:
        super().__init__(path)
        self.shifts = dict(shifts)

    def block(
        self, extent: tuple[int, int, int, int], bands: Sequence[int], raw: bool = False, at: Cells | None = None
    ) -> np.ndarray:
        """As of `RasterLayer`; raw values are not shifted."""
        data = super().block(extent, bands, raw, at)
        if not raw:
            r0, r1, c0, c1 = extent
            for k, band in enumerate(bands):
                if band in self.shifts:
                    if at is None:
                        data[..., k] += self.shifts[band][r0:r1][:, np.arange(c0, c1) % self.width]
                    else:
                        data[..., k] += self.shifts[band][r0 + at[0], (c0 + at[1]) % self.width]
        return data


def shifted_surroundings(
    base: RasterLayer, wanted: Mapping[str, int], replaced: Mapping[str, tuple[RasterLayer, int]]
) -> ShiftedLayer | None:
    """The bundled means with the user's rasters in them; None where these change none of the wanted bands.

    Parameters
    ----------
    base : surroundings.tif.
    wanted : {name of a band: its number}.
    replaced : {variable: (layer, band)} of the user's rasters.
    """
    shifts = {}
    for name, band in wanted.items():
        meaning = around(name)
        if meaning is not None and meaning.variable in replaced:
            layer, number = replaced[meaning.variable]
            if Path(layer.path) == _bundled_file(meaning.variable):
                continue
            key = str(Path(layer.path).absolute()), number, Path(layer.path).stat().st_mtime_ns
            shift = _coarse(*key, meaning.field) - _bundled(meaning.variable, meaning.field)
            smooth = _smoothed(np.nan_to_num(shift, nan=0.0), meaning.km)
            shifts[band] = _halved(smooth)
    return ShiftedLayer(base.path, shifts) if shifts else None


@lru_cache(maxsize=BANDS_AT_ONCE)
def _coarse(path: str, band: int, changed: int, field: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Means of a field over cells of `PITCH`, of the globe: (rows, columns) float32, NaN where the raster has no value.

    A cell has the pixels whose centres lie in it; a raster too coarse for that is interpolated.
    `changed`: when the file was written; another file of the same name is read again.
    """
    layer = RasterLayer(path)
    shape = round(180.0 / PITCH), round(360.0 / PITCH)
    if max(layer.dx, layer.dy) > PITCH / 2:
        lat = 90.0 - (np.arange(shape[0]) + 0.5) * PITCH
        lon = (np.arange(shape[1]) + 0.5) * PITCH - 180.0
        x, y = (a.ravel() for a in np.meshgrid(lon, lat))
        return layer.bilinear(x, y, lambda block: field(block), 1, [band]).reshape(shape)
    total, count = np.zeros(shape), np.zeros(shape)
    row = np.floor((90.0 - layer.north + (np.arange(layer.height) + 0.5) * layer.dy) / PITCH).astype(int)
    col = np.floor((layer.west + 180.0 + (np.arange(layer.width) + 0.5) * layer.dx) / PITCH).astype(int) % shape[1]
    row = np.clip(row, 0, shape[0] - 1)
    starts = np.flatnonzero(np.diff(col, prepend=-1))
    step = max(1, MAX_WINDOW // layer.width)
    for first in range(0, layer.height, step):
        rows = row[first : first + step]
        values = field(layer.block((first, first + rows.size, 0, layer.width), [band])[..., 0])
        known = np.isfinite(values)
        if not known.all():
            values = np.where(known, values, 0.0)
        for sums, part in ((total, values), (count, known.astype(np.float32))):
            np.add.at(sums, (rows[:, None], col[starts][None, :]), np.add.reduceat(part, starts, axis=1))
    with np.errstate(invalid="ignore"):
        return (total / np.where(count, count, np.nan)).astype(np.float32)


def _bundled_file(variable: str) -> Path:
    """The bundled layer of a variable."""
    files = {"elevation": "elevation.tif", "relief": "relief.tif", "landcover": "landcover.tif"}
    return data_file(files.get(variable, "bioclim.tif"))


def _bundled(variable: str, field: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """`_coarse` of a variable of the bundled layers."""
    path = _bundled_file(variable)
    names = [text.partition(":")[0] for text in RasterLayer(path).descriptions]
    return _coarse(str(path), 1 + names.index(variable), 0, field)


def _smoothed(grid: np.ndarray, km: float) -> np.ndarray:
    """Gaussian mean of a grid of the globe, its standard deviation in km; across the antimeridian, not the poles."""
    from scipy import ndimage

    height, width = grid.shape
    pixels = km / KM_PER_DEGREE / PITCH
    out = ndimage.gaussian_filter1d(grid, pixels, axis=0, mode="nearest")
    latitude = np.radians(90.0 - (np.arange(height) + 0.5) * PITCH)
    across = np.minimum(pixels / np.maximum(np.cos(latitude), LEAST_COSINE), width / 8)
    # Along a parallel, which is periodic, by its Fourier series.
    waves = 2.0 * np.pi * np.arange(width // 2 + 1) / width
    damped = np.fft.rfft(out, axis=1) * np.exp(-0.5 * (across[:, None] * waves) ** 2)
    return np.fft.irfft(damped, width, axis=1).astype(np.float32)


def _halved(grid: np.ndarray) -> np.ndarray:
    """Means over two by two cells: the cells of surroundings.tif."""
    height, width = grid.shape
    return grid.reshape(height // 2, 2, width // 2, 2).mean((1, 3), dtype=np.float32)
