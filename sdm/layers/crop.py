"""Warping imagery into crops: squares in the plane tangent to the Earth at a place.

The pixel edges of a crop run east and north on the plane that touches WGS84 at the place. The
transform from there to the CRS of the imagery is approximated by an affine one where that is exact
to a twentieth of a pixel; elsewhere the crop is quartered until it is.
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

MAX_ERROR = 0.05
"""Pixels by which the affine approximation may be wrong."""
SMALLEST_PIECE = 8
"""Pixels; a smaller piece of a crop is not quartered."""

A, F = 6378137.0, 1 / 298.257223563
"""WGS84: equatorial radius in metres, and flattening."""
E2 = F * (2 - F)
"""WGS84: square of the eccentricity."""


@dataclass(frozen=True)
class Patch:
    """A window of imagery with its position."""

    pixels: np.ndarray
    """(4, rows, columns) uint8: red, green, blue and mask (255 present, 0 missing)."""
    transform: Affine
    """From (column, row), pixel edges on integers, to the CRS of the layer."""


class Layer(Protocol):
    """Imagery of part of the Earth."""

    @property
    def crs(self) -> str:
        """CRS of the imagery."""

    @property
    def period(self) -> float | None:
        """Length of one turn round the Earth along x, in CRS units; None where x is not periodic."""

    def patches(self, corners: np.ndarray, linear: np.ndarray) -> Iterator[Patch]:
        """The imagery within a quadrilateral.

        `corners`: (4, 2), (x, y) in the layer's CRS, x on any turn round the Earth. `linear`: (2, 2), from
        (columns, rows) of the wanted pixels to CRS units. Raises LayerError.
        """


class Place:
    """A place (lon, lat) in degrees and the crop around it: `size` x `size` pixels of `pitch` metres."""

    def __init__(self, lon: float, lat: float, pitch: float, size: int) -> None:
        self.lon, self.lat, self.pitch, self.size = float(lon), float(lat), pitch, size
        self._sin, self._cos = math.sin(math.radians(self.lat)), math.cos(math.radians(self.lat))
        self._normal = A / math.sqrt(1 - E2 * self._sin**2)

    def lonlat(self, cols: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(lon, lat) in degrees of positions in the crop, pixel edges on integers; lon may exceed +-180.

        From the east-north plane to geocentric coordinates, and to latitude by Bowring (1976); the plane's
        height above the ellipsoid (26 cm at 1.8 km) is negligible.
        """
        east, north = (cols - 0.5 * self.size) * self.pitch, (0.5 * self.size - rows) * self.pitch
        # Geocentric, rotated so that the place lies on the prime meridian.
        x = self._normal * self._cos - north * self._sin
        z = self._normal * (1 - E2) * self._sin + north * self._cos
        distance = np.hypot(x, east)
        b = A * (1 - F)
        reduced = np.arctan2(z * A, distance * b)
        lat = np.arctan2(z + E2 / (1 - E2) * b * np.sin(reduced) ** 3, distance - E2 * A * np.cos(reduced) ** 3)
        return self.lon + np.degrees(np.arctan2(east, x)), np.degrees(lat)


class AffineFit:
    """The affine transform from (column, row) in a piece of a crop to a layer's CRS, fitted to the true one."""

    def __init__(self, piece: tuple[int, int, int, int], linear: np.ndarray, origin: np.ndarray, error: float) -> None:
        """`linear` (2, 2); `origin` (2,) of the piece's corner; `error`: the largest, in pixels of the crop."""
        self.linear, self.origin, self.error = linear, origin, error
        h, w = piece[1] - piece[0], piece[3] - piece[2]
        self.corners = np.array([(0, 0), (w, 0), (w, h), (0, h)]) @ linear.T + origin


def cells_per_pixel(transform: Affine, linear: np.ndarray) -> tuple[float, float]:
    """Columns and rows of a source that one wanted pixel spans; `linear` as in `Layer.patches`."""
    (a, b), (c, d) = np.linalg.solve(np.array([[transform.a, transform.b], [transform.d, transform.e]]), linear)
    return math.hypot(a, b), math.hypot(c, d)


_GRID = np.linspace(0.0, 1.0, 5)
_MIDDLE = 12
"""The middle of the 5 x 5 positions at which a transform is fitted."""


def fit_affine(layer: Layer, place: Place, piece: tuple[int, int, int, int]) -> AffineFit | None:
    """The affine transform of a piece (first row, end row, first column, end column); None off the CRS's domain."""
    r0, r1, c0, c1 = piece
    cols, rows = (v.ravel() for v in np.meshgrid(c0 + _GRID * (c1 - c0), r0 + _GRID * (r1 - r0)))
    lon, lat = place.lonlat(cols, rows)
    x, y = _transformer(layer.crs).transform(lon, lat)
    if not np.isfinite(x + y).all():
        return None
    if layer.period is not None:
        x = x - layer.period * np.round((x - x[_MIDDLE]) / layer.period)  # all on the same turn as the middle
    design = np.column_stack([cols - c0, rows - r0, np.ones(25)])
    origin = np.array([x[_MIDDLE], y[_MIDDLE]])
    solution = np.linalg.lstsq(design, np.column_stack([x, y]) - origin, rcond=None)[0]
    residuals = np.column_stack([x, y]) - origin - design @ solution
    linear = solution[:2].T
    if abs(np.linalg.det(linear)) <= 1e-12 * np.abs(linear).max() ** 2:
        return None
    error = float(np.hypot(*np.linalg.solve(linear, residuals.T)).max())
    return AffineFit(piece, linear, solution[2] + origin, error)


def draw(layer: Layer, place: Place, piece: tuple[int, int, int, int], image: np.ndarray) -> None:
    """Fill the missing pixels of a piece of an image (4, size, size) uint8 from a layer."""
    r0, r1, c0, c1 = piece
    if image[3, r0:r1, c0:c1].all():
        return
    fit = fit_affine(layer, place, piece)
    if fit is None or fit.error > MAX_ERROR:
        if max(r1 - r0, c1 - c0) > SMALLEST_PIECE:
            rm, cm = (r0 + r1) // 2, (c0 + c1) // 2
            for quarter in ((r0, rm, c0, cm), (r0, rm, cm, c1), (rm, r1, c0, cm), (rm, r1, cm, c1)):
                draw(layer, place, quarter, image)
            return
        if fit is None or fit.error > 1.0:  # around a pole of the CRS, or at the edge of its domain
            return
    target = image[:, r0:r1, c0:c1]
    for patch in layer.patches(fit.corners, fit.linear):
        warped = _warp(patch, fit, (r1 - r0, c1 - c0))
        if not target[3].any():
            target[:] = warped
        else:
            gaps = (warped[3] > 0) & (target[3] == 0)
            target[:, gaps] = warped[:, gaps]


def _warp(patch: Patch, fit: AffineFit, shape: tuple[int, int]) -> np.ndarray:
    """A patch in the pixels of a piece: (4, rows, columns) uint8, masked cells left out of every mean.

    Linear interpolation between cells is the mean over a square of one cell. So a pixel of n x n cells
    is averaged over its area by n x n interpolated samples, however it is rotated.
    """
    t = patch.transform
    to_cells = np.linalg.inv(np.array([[t.a, t.b], [t.d, t.e]]))
    linear, origin = to_cells @ fit.linear, to_cells @ (fit.origin - (t.c, t.f))
    samples = max(1, math.ceil(max(cells_per_pixel(t, fit.linear)) - 0.25))
    complete = bool(patch.pixels[3].all())
    cells = np.moveaxis(patch.pixels[:3], 0, 2).astype(np.float32)
    if not complete:
        cells[patch.pixels[3] == 0] = np.nan
    # One more row and column, so that every cell has a neighbour to the east and south.
    cells = np.pad(cells, ((0, 1), (0, 1), (0, 0)), mode="edge")
    total = np.zeros((shape[0] * shape[1], 3), dtype=np.float32)
    count: np.ndarray | np.float32 = np.float32(0.0)  # one number as long as no sample is missing
    for k in range(samples**2):
        col = np.arange(shape[1]) + (k % samples + 0.5) / samples
        row = np.arange(shape[0])[:, None] + (k // samples + 0.5) / samples
        x, y = (linear[n, 0] * col + linear[n, 1] * row + origin[n] for n in (0, 1))
        values, present = _interpolated(patch, cells, complete, x.ravel(), y.ravel())
        total += values
        count = count + present
    out = np.empty((4, *shape), dtype=np.uint8)
    if isinstance(count, np.ndarray):
        total /= np.maximum(count, 1.0)[:, None]
        out[3] = np.where(count >= 0.5 * samples**2, 255, 0).reshape(shape)
    else:
        total /= count
        out[3] = 255
    out[:3] = np.rint(total, out=total).T.reshape(3, *shape)
    return out


def _interpolated(
    patch: Patch, cells: np.ndarray, complete: bool, x: np.ndarray, y: np.ndarray
) -> tuple[np.ndarray, np.ndarray | bool]:
    """Bilinear values (N, 3) at positions in columns `x` and rows `y`, 0 where the cell there is missing.

    Also where it is present: boolean (N,), or True for all. `complete`: no cell of the patch is missing.
    """
    height, width = patch.pixels.shape[1:]
    all_inside = x.min() >= 0.0 and x.max() < width and y.min() >= 0.0 and y.max() < height
    inside = True if all_inside else (x >= 0.0) & (x < width) & (y >= 0.0) & (y < height)
    x, y = np.clip(x - 0.5, 0.0, width - 1.0), np.clip(y - 0.5, 0.0, height - 1.0)
    left, top = x.astype(np.intp), y.astype(np.intp)
    across, down = (x - left).astype(np.float32), (y - top).astype(np.float32)
    first = top * (width + 1) + left
    corners = (first, first + 1, first + width + 1, first + width + 2)
    values = mix(cells.reshape(-1, 3), corners, down[:, None], across[:, None])
    if all_inside and complete:
        return values, True
    nearest = (top + (down >= 0.5)) * width + left + (across >= 0.5)
    present = inside & (patch.pixels[3].ravel()[np.minimum(nearest, width * height - 1)] > 0)
    values[~present] = 0.0
    return values, present


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
