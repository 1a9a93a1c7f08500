"""The index's pixels of the overview image, in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from sdm.engine.cluster import processors
from sdm.engine.limits import Pixels as LimitPixels
from sdm.engine.places import Target
from sdm.grid import Grid, Tile
from sdm.index.encoding import DTYPES
from sdm.layers.landmask import LandMask
from sdm.serve.frame import Frame, locate
from sdm.serve.products import Packed

if TYPE_CHECKING:
    from sdm.index import Index


@dataclass(frozen=True)
class Pixels:
    """Some pixels of an index, and the pixels of an image that show them."""

    embeddings: Packed
    lon: np.ndarray
    lat: np.ndarray
    """(N,) degrees, of pixel centres."""
    surface: Mapping[str, np.ndarray]
    """For "land" and "sea", boolean (N,): enough of the pixel is."""
    lookup: np.ndarray
    """(rows, columns) int32: number of the pixel at each pixel of the image; N where there is none."""
    limited: LimitPixels
    """The same pixels for the limits of species."""
    area_km2: np.ndarray
    """(N,): true area of the image's pixels that show this one."""


@dataclass(frozen=True)
class _TilePart:
    """The wanted pixels of one tile."""

    numbers: np.ndarray
    """Positions in the array of wanted pixels."""
    codes: np.ndarray
    scales: np.ndarray
    lon: np.ndarray
    lat: np.ndarray
    height: np.ndarray
    land: np.ndarray
    sea: np.ndarray


def read_pixels(index: Index, frame: Frame, land_mask: LandMask, progress: Callable[[int, int], None]) -> Pixels:
    """Read the pixels that an image shows.

    Parameters
    ----------
    index
        A region index.
    frame
        The image's frame.
    land_mask
        Tells land from sea.
    progress
        Called with the number of tiles read and to read.
    """
    grid = index.grid
    rows, cols, inside = locate(grid, *frame.lonlat())
    grid_pixels = rows * grid.shape[1] + cols
    wanted = np.unique(grid_pixels[inside])
    # Zeros take no memory until they are written to: where the index has no pixels, such as at sea, never.
    codes = np.zeros((wanted.size, index.dim), dtype=DTYPES[index.encoding])
    scales = np.zeros(wanted.size, np.float32)
    lon, lat, height = (np.zeros(wanted.size) for _ in range(3))
    surface = {kind: np.zeros(wanted.size, dtype=bool) for kind in ("land", "sea")}
    slots = np.full(wanted.size + 1, -1, dtype=np.int32)
    count = 0
    tiles = list(grid.tiles())
    progress(0, len(tiles))
    with ThreadPoolExecutor(processors()) as pool:
        for done, part in enumerate(pool.map(partial(_read_tile, index, land_mask, wanted), tiles), 1):
            new = slice(count, count + part.numbers.size)
            codes[new], scales[new], lon[new], lat[new] = part.codes, part.scales, part.lon, part.lat
            height[new] = part.height
            surface["land"][new], surface["sea"][new] = part.land, part.sea
            slots[part.numbers] = np.arange(new.start, new.stop)
            count = new.stop
            progress(done, len(tiles))
    slots[slots < 0] = count
    lon, lat, height = lon[:count], lat[:count], height[:count]
    lookup = np.where(inside, slots[np.searchsorted(wanted, grid_pixels)], count).astype(np.int32)
    image_area = np.broadcast_to(frame.areas()[:, None], frame.shape)
    return Pixels(
        embeddings=Packed(codes[:count], scales[:count]),
        lon=lon,
        lat=lat,
        surface={kind: kept[:count] for kind, kept in surface.items()},
        lookup=lookup,
        limited=LimitPixels(lon, lat, height),
        area_km2=np.bincount(lookup.ravel(), image_area.ravel(), minlength=count + 1)[:count],
    )


def _read_tile(index: Index, land_mask: LandMask, wanted: np.ndarray, tile: Tile) -> _TilePart:
    codes, scales, pixels = index.encoded(tile.rows, tile.cols)
    row, col = np.divmod(pixels, tile.shape[1])
    grid_pixels = (row + tile.rows.start) * index.grid.shape[1] + col + tile.cols.start
    numbers = np.searchsorted(wanted, grid_pixels)
    is_wanted = wanted[np.minimum(numbers, wanted.size - 1)] == grid_pixels
    chosen = pixels[is_wanted]
    lon, lat = (a.ravel()[chosen] for a in tile_lonlat(index.grid, tile))
    sides = index.grid.pixel_size(
        np.arange(tile.rows.start, tile.rows.stop), np.arange(tile.cols.start, tile.cols.stop)
    )
    width, height = (np.broadcast_to(side, tile.shape).ravel()[chosen] for side in sides)
    share = index.land_share
    land, sea = (land_mask.keep_pixels(kind, lon, lat, (width, height), share) for kind in ("land", "sea"))
    return _TilePart(numbers[is_wanted], codes[is_wanted], scales[is_wanted], lon, lat, height, land, sea)


def tile_lonlat(grid: Grid, tile: Tile) -> tuple[np.ndarray, np.ndarray]:
    """(lon, lat) in degrees of the pixel centres of a tile, each (rows, columns)."""
    return grid.lonlat(np.arange(tile.rows.start, tile.rows.stop), np.arange(tile.cols.start, tile.cols.stop))


def is_mapped(target: Target, lon: np.ndarray, lat: np.ndarray, in_habitat: np.ndarray) -> np.ndarray:
    """Boolean, shape of `lon` (degrees): places of the species' habitat within the extent its model covers."""
    if target.extent is None:
        return in_habitat
    west, south, east, north = target.extent
    return in_habitat & (lon >= west) & (lon <= east) & (lat >= south) & (lat <= north)
