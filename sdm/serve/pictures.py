"""Species as an overview image and as tiles of the web map."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sdm.engine.places import Target
from sdm.errors import RequestError
from sdm.layers.landmask import LandMask
from sdm.maps.plan import Job
from sdm.outputs.overlay import levels
from sdm.serve.cache import Cache
from sdm.serve.frame import Detail, locate, tile_frame
from sdm.serve.pixels import Pixels, is_mapped

if TYPE_CHECKING:
    from sdm.index import Index

CACHE_BYTES = 64 << 20
"""Largest size of the cached images, and of the cached tiles."""


@dataclass(frozen=True)
class Picture:
    """A species on the frame of the whole map."""

    levels: np.ndarray
    """(rows, columns) uint8: 0 not modelled, 1 to LEVELS over the valid range."""
    modelled_km2: float
    expected_km2: float
    """Sum of value x area."""
    highest: float | None
    """Largest value; None where nothing is modelled."""


class Pictures:
    """Draws species from an index: the overview from pixels in memory, tiles of the web map from the store."""

    def __init__(self, index: Index, pixels: Pixels, detail: Detail | None, land_mask: LandMask) -> None:
        """`detail`: zooms of the tiles; None where the overview shows every pixel."""
        self._index, self._pixels, self._detail, self._land_mask = index, pixels, detail, land_mask
        self._pictures: Cache[Picture] = Cache(CACHE_BYTES, lambda picture: picture.levels.nbytes)
        self._grid_tiles: Cache[np.ndarray] = Cache(CACHE_BYTES, lambda tile: tile.nbytes)
        self._lookups: Cache[tuple[np.ndarray, np.ndarray, np.ndarray]] = Cache(
            CACHE_BYTES // 4, lambda arrays: sum(a.nbytes for a in arrays)
        )

    def overview(self, job: Job) -> Picture:
        """The species of a job on the frame of the whole map."""
        shown = job.resolutions[0]
        return self._pictures.get((shown.taxon, shown.origin), lambda: self._draw(job.plan.targets[0]))

    def _draw(self, target: Target) -> Picture:
        pixels = self._pixels
        in_habitat = pixels.surface.get(target.mask)
        if in_habitat is None:
            in_habitat = self._land_mask.keep(target.mask, pixels.lon, pixels.lat)
        cosines = pixels.embeddings.cosines(target.vector)
        target.add_known(cosines, pixels.lon, pixels.lat)
        values = target.values(cosines)
        pixels.limited.apply(target.limits, values)
        hidden = ~is_mapped(target, pixels.lon, pixels.lat, in_habitat)
        values[hidden] = np.nan
        image = np.append(levels(values, target.score.valid_range), np.uint8(0))[pixels.lookup]
        modelled = float(pixels.area_km2[~hidden].sum())
        values[hidden] = 0.0
        highest = float(values.max()) if modelled else None
        return Picture(image, modelled, float(pixels.area_km2 @ values), highest)

    def tile(self, job: Job, zoom: int, x: int, y: int) -> np.ndarray:
        """Levels (256, 256) uint8 of one XYZ tile of the web map, from every pixel of the index.

        Raises RequestError for a tile that does not exist.
        """
        if self._detail is None or not self._detail.first <= zoom <= self._detail.last:
            raise RequestError(f'there are no tiles of this index at zoom {zoom}; see "detail" in api/index.')
        grid = self._index.grid
        rows, cols, inside = self._lookups.get((zoom, x, y), lambda: locate(grid, *tile_frame(zoom, x, y).lonlat()))
        out = np.zeros(inside.shape, dtype=np.uint8)
        size, across = grid.tile_size, -(-grid.shape[1] // grid.tile_size)
        numbers = np.where(inside, rows // size * across + cols // size, -1)
        for number in np.unique(numbers[inside]):
            i, j = divmod(int(number), across)
            here = numbers == number
            out[here] = self._grid_tile(job, i, j)[rows[here] - i * size, cols[here] - j * size]
        return out

    def _grid_tile(self, job: Job, i: int, j: int) -> np.ndarray:
        """Levels of tile (i, j) of the grid."""
        target, shown = job.plan.targets[0], job.resolutions[0]

        def make() -> np.ndarray:
            size, (height, width) = self._index.grid.tile_size, self._index.grid.shape
            rows, cols = slice(i * size, min((i + 1) * size, height)), slice(j * size, min((j + 1) * size, width))
            return levels(self._index.values((target,), rows, cols)[0], target.score.valid_range)

        return self._grid_tiles.get((shown.taxon, shown.origin, i, j), make)
