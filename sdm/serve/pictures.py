"""Species as an overview image and as tiles of the web map."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sdm.engine.places import PlaceFit
from sdm.engine.tile import score_tile
from sdm.engine.trust import in_batches
from sdm.errors import RequestError
from sdm.grid import Tile
from sdm.layers.landmask import LandMask
from sdm.maps.plan import Job
from sdm.outputs.overlay import levels
from sdm.serve.cache import Cache
from sdm.serve.frame import Detail, Frame, locate, tile_frame
from sdm.serve.pixels import Pixels, is_mapped

if TYPE_CHECKING:
    from sdm.index import Index

FITTED_AT_ONCE = 32_768
"""Pixels whose environment is read together for a fit."""

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


def _key(job: Job) -> tuple[Hashable, ...]:
    """What the images of a job are kept by: its taxon, and of a fit which one."""
    return job.resolutions[0].taxon, job.resolutions[0].query if job.fits else ""


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
        return self._pictures.get((*_key(job), shown.origin), lambda: self._draw(job))

    def _draw(self, job: Job) -> Picture:
        target, pixels = job.plan.targets[0], self._pixels
        in_habitat = pixels.surface.get(target.mask)
        if in_habitat is None:
            in_habitat = self._land_mask.keep(target.mask, pixels.lon, pixels.lat)
        if target.fit is None:
            cosines = pixels.embeddings.cosines(target.vector)
            target.add_known(cosines, pixels.lon, pixels.lat)
            values = target.values(cosines)
            pixels.limited.apply(target.limits, values)
        else:
            values = self._fitted(job, target.fit)
        hidden = ~is_mapped(target, pixels.lon, pixels.lat, in_habitat) | np.isnan(values)
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
        return self._sampled(job, zoom, x, y)

    def any_tile(self, job: Job, frame: Frame, zoom: int, x: int, y: int) -> np.ndarray:
        """As `tile`, at every zoom: further out from the overview, whose frame is `frame`."""
        if self._detail is not None and zoom >= self._detail.first:
            return self._sampled(job, zoom, x, y)
        rows, columns, inside = frame.pixels(tile_frame(zoom, x, y))
        return np.where(inside, self.overview(job).levels[np.ix_(rows, columns)], np.uint8(0))

    def _sampled(self, job: Job, zoom: int, x: int, y: int) -> np.ndarray:
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
            if target.fit is None:
                values = self._index.values((target,), rows, cols)
            else:
                values = score_tile(job.plan, Tile((i, j), rows, cols))
            return levels(values[0], target.score.valid_range)

        return self._grid_tiles.get((*_key(job), shown.origin, i, j), make)

    def _fitted(self, job: Job, fit: PlaceFit) -> np.ndarray:
        """Values (N,) float32 of a fit at the pixels in memory, NaN where a layer does not cover them."""
        pixels, plan = self._pixels, job.plan
        values = np.full(len(pixels.lon), np.nan, dtype=np.float32)
        for first in range(0, values.size, FITTED_AT_ONCE):
            part = slice(first, min(first + FITTED_AT_ONCE, values.size))
            environment, known = plan.environment(pixels.lon[part], pixels.lat[part])
            scored = plan.targets[0].values(in_batches(fit.logit, pixels.embeddings.decoded(part), environment))
            values[part] = np.where(known, scored, np.float32(np.nan))
        return values
