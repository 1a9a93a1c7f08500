"""Images in Web Mercator, and where their pixels lie in a grid."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from affine import Affine
from odc.geo.geobox import GeoBox

from sdm.errors import RequestError
from sdm.grid import WGS84, Grid, transformer
from sdm.outputs.overlay import MAX_LATITUDE, RADIUS, mercator, span
from sdm.outputs.statistics import PixelArea

TILE = 256
"""Side of a tile of the web map, in its pixels."""

DEEPEST = 22
"""The closest zoom of the web map: 4 cm per pixel at the equator."""

_MIN_SIZE = 1000  # pixels: in smaller images the edges of pixels would be displaced by up to half a pixel


@dataclass(frozen=True)
class Frame:
    """A rectangle of the web map: bounds in degrees, pixels at equal steps of Web Mercator.

    `east` may exceed 180 (east - west <= 360); `shape` is (rows, columns), row 0 in the north.
    """

    west: float
    south: float
    east: float
    north: float
    shape: tuple[int, int]

    def lonlat(self) -> tuple[np.ndarray, np.ndarray]:
        """Longitudes of the columns (m,) and latitudes of the rows (n,), degrees, at pixel centres."""
        rows, columns = self.shape
        lon = self.west + (np.arange(columns) + 0.5) * ((self.east - self.west) / columns)
        top, bottom = mercator(self.north), mercator(self.south)
        northing = top + (np.arange(rows) + 0.5) * ((bottom - top) / rows)
        return lon, np.degrees(np.arctan(np.sinh(northing / RADIUS)))

    def pixels(self, other: Frame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows (n,) and columns (m,) of this frame at the pixel centres of another, and where it has them (n, m)."""
        (lon, lat), (height, width) = other.lonlat(), self.shape
        top, bottom = mercator(self.north), mercator(self.south)
        northing = RADIUS * np.arcsinh(np.tan(np.radians(lat)))
        rows = np.floor((northing - top) / (bottom - top) * height).astype(np.int64)
        columns = np.floor((lon - self.west) % 360.0 / (self.east - self.west) * width).astype(np.int64)
        inside = ((rows >= 0) & (rows < height))[:, None] & (columns < width)[None, :]
        return rows.clip(0, height - 1), columns.clip(0, width - 1), inside

    def areas(self) -> np.ndarray:
        """True area of the pixels of each row in km2, (n,)."""
        rows, columns = self.shape
        width, top, bottom = self._width(), mercator(self.north), mercator(self.south)
        # The area does not depend on the longitude; at zero the frame is within the domain of the projection.
        affine = Affine(width / columns, 0, 0, 0, (bottom - top) / rows, top)
        return PixelArea(GeoBox((rows, 1), affine, "EPSG:3857")).block(slice(0, rows), slice(0, 1))[:, 0] / 1e6

    def _width(self) -> float:
        return math.radians(self.east - self.west) * RADIUS

    @property
    def pixel(self) -> float:
        """Side of a pixel in metres of Web Mercator."""
        return self._width() / self.shape[1]


def picture_frame(grid: Grid, max_pixels: int) -> Frame:
    """The frame of a whole map: about one pixel per pixel of the grid, more for small maps, fewer for large.

    Raises RequestError for a map that lies entirely beyond the latitudes of Web Mercator.
    """
    extent = span(grid.geobox)
    if extent is None:
        raise RequestError(
            f"the index lies entirely beyond latitude {MAX_LATITUDE:.2f}, where the web map ends; "
            "query it in Python with Index.query instead."
        )
    _, west, south, east, north = extent
    width, height = math.radians(east - west) * RADIUS, mercator(north) - mercator(south)
    # Columns of a geographic grid stay columns, so their number is kept; for any other grid, the diagonal's length.
    across = grid.shape[1] / width if grid.is_geographic else math.hypot(*grid.shape) / math.hypot(width, height)
    across *= math.ceil(_MIN_SIZE / (across * max(width, height)))
    across = min(across, math.sqrt(max_pixels / (width * height)))
    return Frame(west, south, east, north, (max(1, round(height * across)), max(1, round(width * across))))


def tile_frame(zoom: int, x: int, y: int) -> Frame:
    """The frame of one XYZ tile of the web map. Raises RequestError for a tile that does not exist."""
    if not (0 <= zoom <= DEEPEST and 0 <= x < 1 << zoom and 0 <= y < 1 << zoom):
        raise RequestError(f"tile {zoom}/{x}/{y} is not on the web map; zooms are 0..{DEEPEST}.")
    turn = 360.0 / (1 << zoom)
    top, bottom = (math.pi * (1 - 2 * edge / (1 << zoom)) for edge in (y, y + 1))
    south, north = (math.degrees(math.atan(math.sinh(edge))) for edge in (bottom, top))
    return Frame(-180.0 + x * turn, south, -180.0 + (x + 1) * turn, north, (TILE, TILE))


@dataclass(frozen=True)
class Detail:
    """Zooms at which tiles show more than an overview image."""

    zoom: float
    """Zoom of the map from which tiles are displayed: a pixel of the image then covers two of the screen."""
    first: int
    last: int
    """Zooms of the tiles: at the last, pixels of the screen are no larger than those of the grid."""


def detail(grid: Grid, picture: Frame) -> Detail | None:
    """The zooms at which an image of the whole grid is too coarse; None if it shows every pixel."""
    if grid.is_geographic:
        finest = math.radians(grid.resolution) * RADIUS
    else:
        middle = math.radians((picture.south + picture.north) / 2)
        finest = grid.resolution * grid.metres_per_unit / math.cos(middle)
    if picture.pixel < 1.05 * finest:
        return None
    world = 2 * math.pi * RADIUS / TILE  # metres per pixel at zoom 0
    last = min(DEEPEST, math.ceil(math.log2(world / finest)))
    # A tile two zooms above the last would need sixteen times its own pixels.
    zoom = min(float(last), max(math.log2(world / picture.pixel) + 0.5, last - 1.5))
    return Detail(zoom, max(last - 1, math.floor(zoom + 0.5)), last)


def locate(grid: Grid, lon: np.ndarray, lat: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The pixel of a grid that contains each position.

    `lon` (m,) and `lat` (n,) in degrees are the columns and rows of a rectangle; longitudes are taken modulo
    360. Returns rows, columns (int64) and inside (boolean), each (n, m); where a position is outside the grid,
    its row and column are 0.
    """
    a = grid.geobox.affine
    x, y = np.broadcast_arrays(lon[None, :], lat[:, None])
    if grid.crs != WGS84:
        x, y = transformer(WGS84, grid.crs).transform(x, y)
    if grid.is_geographic:
        x = a.c + (x - a.c) % 360.0
    with np.errstate(invalid="ignore"):
        column, row = np.floor((x - a.c) / a.a), np.floor((y - a.f) / a.e)
        inside = (column >= 0) & (column < grid.shape[1]) & (row >= 0) & (row < grid.shape[0])
    return np.where(inside, row, 0).astype(np.int64), np.where(inside, column, 0).astype(np.int64), inside
