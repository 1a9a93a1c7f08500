"""The pixels of one crop: where they lie on the Earth, and how a source's pixels come to them.

A crop lies in the plane that touches the Earth (WGS84) at its place, pixel edges along east and
north. Within it the way to a source's CRS is taken as straight (affine) where that is true to a
twentieth of a pixel; else the crop is cut in four, and each piece in four, until it is.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyproj
from affine import Affine

from sdm.layers.raster import mix

STRAIGHT = 0.05
"""Pixels by which an affine map may miss."""
SMALLEST_PIECE = 8

A, F = 6378137.0, 1 / 298.257223563
E2 = F * (2 - F)


@dataclass(frozen=True)
class Patch:
    """Part of a picture: (4, rows, columns) uint8, red, green, blue and mask (255 there, 0 missing)."""

    pixels: np.ndarray
    transform: Affine
    """From (column, row), pixel edges on whole numbers, to the CRS of the layer."""


class Layer(Protocol):
    """A picture of part of the Earth."""

    crs: str
    period: float | None
    """After how many units in x the CRS comes round to the same meridian; None where it does not."""

    def patches(self, corners: np.ndarray, linear: np.ndarray) -> Iterator[Patch]:
        """What the layer holds of a quadrilateral, (4, 2) in its CRS, x on any turn round the Earth.

        `linear`: (2, 2), from (columns, rows) of wanted pixels to CRS units. Raises LayerError.
        """


class Place:
    """A place and the pixels of the crop around it."""

    def __init__(self, lon: float, lat: float, pitch: float, size: int) -> None:
        self.lon, self.lat, self.pitch, self.size = float(lon), float(lat), pitch, size
        self._sin, self._cos = math.sin(math.radians(self.lat)), math.cos(math.radians(self.lat))
        self._normal = A / math.sqrt(1 - E2 * self._sin**2)

    def lonlat(self, cols: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Degrees (lon, lat) of positions in the crop, whole numbers at pixel edges; lon runs on past 180.

        East-north plane to geocentric coordinates to latitude by Bowring (1976); the plane's height
        above the ellipsoid (26 cm at 1.8 km) does not matter.
        """
        east, north = (cols - 0.5 * self.size) * self.pitch, (0.5 * self.size - rows) * self.pitch
        # Geocentric, turned so that the place lies on the meridian of 0.
        x = self._normal * self._cos - north * self._sin
        z = self._normal * (1 - E2) * self._sin + north * self._cos
        distance = np.hypot(x, east)
        b = A * (1 - F)
        reduced = np.arctan2(z * A, distance * b)
        lat = np.arctan2(z + E2 / (1 - E2) * b * np.sin(reduced) ** 3, distance - E2 * A * np.cos(reduced) ** 3)
        return self.lon + np.degrees(np.arctan2(east, x)), np.degrees(lat)


class Fit:
    """The affine map nearest to the true one, from (column, row) in a piece of a crop to a layer's CRS."""

    def __init__(self, piece: tuple[int, int, int, int], linear: np.ndarray, origin: np.ndarray, miss: float) -> None:
        """`linear` (2, 2), `origin` (2,) of the piece's corner; `miss`: pixels by which it is wrong at worst."""
        self.linear, self.origin, self.miss = linear, origin, miss
        h, w = piece[1] - piece[0], piece[3] - piece[2]
        self.corners = np.array([(0, 0), (w, 0), (w, h), (0, h)]) @ linear.T + origin


def cells_per_pixel(transform: Affine, linear: np.ndarray) -> tuple[float, float]:
    """How many columns and rows of a source a wanted pixel spans."""
    (a, b), (c, d) = np.linalg.solve(np.array([[transform.a, transform.b], [transform.d, transform.e]]), linear)
    return math.hypot(a, b), math.hypot(c, d)


_GRID = np.linspace(0.0, 1.0, 5)


def fit(layer: Layer, place: Place, piece: tuple[int, int, int, int]) -> Fit | None:
    """The affine map from (column, row) within a piece, whole numbers at pixel edges; None off the CRS's domain."""
    r0, r1, c0, c1 = piece
    cols, rows = (v.ravel() for v in np.meshgrid(c0 + _GRID * (c1 - c0), r0 + _GRID * (r1 - r0)))
    lon, lat = place.lonlat(cols, rows)
    x, y = _transformer(layer.crs).transform(lon, lat)
    if not np.isfinite(x + y).all():
        return None
    if layer.period is not None:
        x = x - layer.period * np.round((x - x[12]) / layer.period)  # all on the branch of the middle
    design = np.column_stack([cols - c0, rows - r0, np.ones(25)])
    origin = np.array([x[12], y[12]])
    solution = np.linalg.lstsq(design, np.column_stack([x, y]) - origin, rcond=None)[0]
    astray = np.column_stack([x, y]) - origin - design @ solution
    linear = solution[:2].T
    if abs(np.linalg.det(linear)) <= 1e-12 * np.abs(linear).max() ** 2:
        return None
    miss = float(np.hypot(*np.linalg.solve(linear, astray.T)).max())
    return Fit(piece, linear, solution[2] + origin, miss)


def draw(layer: Layer, place: Place, piece: tuple[int, int, int, int], picture: np.ndarray) -> None:
    """Fill the gaps of a piece of a picture (4, size, size) from a layer."""
    r0, r1, c0, c1 = piece
    if picture[3, r0:r1, c0:c1].all():
        return
    way = fit(layer, place, piece)
    if way is None or way.miss > STRAIGHT:
        if max(r1 - r0, c1 - c0) > SMALLEST_PIECE:
            rm, cm = (r0 + r1) // 2, (c0 + c1) // 2
            for part in ((r0, rm, c0, cm), (r0, rm, cm, c1), (rm, r1, c0, cm), (rm, r1, cm, c1)):
                draw(layer, place, part, picture)
            return
        if way is None or way.miss > 1.0:  # around a pole of the CRS, or where it ends
            return
    for patch in layer.patches(way.corners, way.linear):
        part = _warp(patch, way, (r1 - r0, c1 - c0))
        part[3] = np.where(part[3] > 127, 255, 0)
        mine = picture[:, r0:r1, c0:c1]
        if not mine[3].any():
            mine[:] = part
        else:
            take = (part[3] > 0) & (mine[3] == 0)
            mine[:, take] = part[:, take]


def _warp(patch: Patch, way: Fit, shape: tuple[int, int]) -> np.ndarray:
    """A patch in the pixels of a piece: (4, rows, columns) uint8, masked cells left out of every mix.

    Interpolating linearly between cells is averaging over a square of one cell. So a pixel of n x n
    cells is averaged over its area by n x n interpolated samples, however it is turned.
    """
    t = patch.transform
    to_cells = np.linalg.inv(np.array([[t.a, t.b], [t.d, t.e]]))
    linear, origin = to_cells @ way.linear, to_cells @ (way.origin - (t.c, t.f))
    fine = max(1, math.ceil(max(cells_per_pixel(t, way.linear)) - 0.25))
    whole = bool(patch.pixels[3].all())
    cells = np.moveaxis(patch.pixels[:3], 0, 2).astype(np.float32)
    if not whole:
        cells[patch.pixels[3] == 0] = np.nan
    # A row and a column more, so that every cell has a neighbour to the east and south.
    cells = np.pad(cells, ((0, 1), (0, 1), (0, 0)), mode="edge")
    total, count = np.float32(0.0), np.float32(0.0)
    for k in range(fine**2):
        col = np.arange(shape[1]) + (k % fine + 0.5) / fine
        row = np.arange(shape[0])[:, None] + (k // fine + 0.5) / fine
        x, y = (linear[n, 0] * col + linear[n, 1] * row + origin[n] for n in (0, 1))
        values, there = _interpolated(patch, cells, whole, x.ravel(), y.ravel())
        total, count = total + values, count + there
    out = np.empty((4, *shape), dtype=np.uint8)
    mean = total / np.maximum(count, 1.0)[:, None] if np.ndim(count) else total / count
    out[:3] = np.rint(mean, out=mean).T.reshape(3, *shape)
    out[3] = np.where(count >= 0.5 * fine**2, 255, 0).reshape(shape if np.ndim(count) else ())
    return out


def _interpolated(
    patch: Patch, cells: np.ndarray, whole: bool, x: np.ndarray, y: np.ndarray
) -> tuple[np.ndarray, np.ndarray | bool]:
    """Bilinear values (N, 3) at positions in columns `x` and rows `y`, 0 where the cell there is missing.

    And where it is not: boolean (N,), or True for all. `whole`: no cell of the patch is missing.
    """
    height, width = patch.pixels.shape[1:]
    all_in = x.min() >= 0.0 and x.max() < width and y.min() >= 0.0 and y.max() < height
    inside = True if all_in else (x >= 0.0) & (x < width) & (y >= 0.0) & (y < height)
    x, y = np.clip(x - 0.5, 0.0, width - 1.0), np.clip(y - 0.5, 0.0, height - 1.0)
    left, top = x.astype(np.intp), y.astype(np.intp)
    across, down = (x - left).astype(np.float32), (y - top).astype(np.float32)
    first = top * (width + 1) + left
    corners = (first, first + 1, first + width + 1, first + width + 2)
    values = mix(cells.reshape(-1, 3), corners, down[:, None], across[:, None])
    if all_in and whole:
        return values, True
    nearest = (top + (down >= 0.5)) * width + left + (across >= 0.5)
    there = inside & (patch.pixels[3].ravel()[np.minimum(nearest, width * height - 1)] > 0)
    values[~there] = 0.0
    return values, there


class _PerThread(threading.local):
    """pyproj transformers must not be shared between threads."""

    def __init__(self) -> None:
        self.cache: dict[str, pyproj.Transformer] = {}


_transformers = _PerThread()


def _transformer(crs: str) -> pyproj.Transformer:
    """(lon, lat) in degrees to x, y of a CRS."""
    if crs not in _transformers.cache:
        _transformers.cache[crs] = pyproj.Transformer.from_crs("EPSG:4326", crs, always_xy=True)
    return _transformers.cache[crs]
