"""Land, sea and lakes, to mask the places where a species cannot live."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from sdm.files.release import data_file
from sdm.layers.raster import RasterLayer
from sdm.request.choices import LAND_SHARE

SEA, LAND, LAKE = 0, 1, 2
SMALLEST = 2
"""Cells across the smallest box in which land is counted: the mask is no more exact."""
COARSE = 0.25
"""Degrees: in larger boxes land is counted in larger cells, which is as exact and sixteen times faster."""
Size = tuple[np.ndarray | float, np.ndarray | float]
"""(width, height) of pixels in degrees."""


class LandMask:
    """The bundled land mask (1.25 arc-minutes, about 2 km)."""

    def __init__(self) -> None:
        self.layer = RasterLayer(data_file("landmask.tif"))

    def keep(self, kind: str, lon: np.ndarray, lat: np.ndarray) -> np.ndarray:
        """Boolean, shape of `lon` (degrees): True for places that are of the kind.

        "land" is land without lakes, "sea" the sea and lakes, "none" everything on the globe.
        """
        on_globe = np.isfinite(lon) & np.isfinite(lat)
        if kind == "none":
            return on_globe
        surface = self.layer.nearest(lon, lat)
        return on_globe & ((surface == LAND) if kind == "land" else (surface != LAND))

    def keep_pixels(
        self, kind: str, lon: np.ndarray, lat: np.ndarray, size: Size, share: float = LAND_SHARE
    ) -> np.ndarray:
        """As `keep`, for pixels: True where at least `share` of the pixel is of the kind, and some of it is.

        A pixel of the coast may be both land and sea. `size`: as of `land_share`.
        """
        on_globe = np.isfinite(lon) & np.isfinite(lat)
        if kind == "none":
            return on_globe
        of_kind = self.land_share(lon, lat, size)
        if kind == "sea":
            of_kind = 1.0 - of_kind
        # A share is the quotient of two numbers of cells: 1e-9 is more than any rounding.
        return on_globe & (of_kind >= share - 1e-9) & (of_kind > 0.0)

    def land_share(self, lon: np.ndarray, lat: np.ndarray, size: Size) -> np.ndarray:
        """Share of land, without lakes, of boxes around positions (degrees): float64 in the shape of `lon`, NaN off
        the globe.

        Counted are the cells of the mask with their centre in the box, and 2 x 2 cells where it is smaller; in boxes
        of `COARSE` degrees and more, the land in cells of 5 arc-minutes.

        Parameters
        ----------
        lon, lat : of the centres, of one shape.
        size : (width, height) of the boxes in degrees, each a number or in that shape.
        """
        shape = np.shape(lon)
        width, height = (np.broadcast_to(side, shape).ravel() for side in size)
        lon, lat = np.ravel(lon), np.ravel(lat)
        out = np.full(lon.size, np.nan)
        coarse = np.minimum(width, height) >= COARSE
        fine = np.isfinite(lon) & np.isfinite(lat)
        for counts, chosen in ((self._fine, fine & ~coarse), (self._coarse, fine & coarse)):
            if chosen.any():
                out[chosen] = counts.share(lon[chosen], lat[chosen], width[chosen], height[chosen])
        return out.reshape(shape)

    @cached_property
    def _fine(self) -> _Counts:
        return _Counts(self.layer, lambda cells: cells == LAND, 1)

    @cached_property
    def _coarse(self) -> _Counts:
        return _Counts(RasterLayer(data_file("shore.tif")), lambda cells: cells, 16)


@dataclass(frozen=True)
class _Counts:
    """Land counted in cells of a global layer: `land` of the values of its first band, `most` in a cell."""

    layer: RasterLayer
    land: Callable[[np.ndarray], np.ndarray]
    most: int

    def share(self, lon: np.ndarray, lat: np.ndarray, width: np.ndarray, height: np.ndarray) -> np.ndarray:
        """Share of land (N,) in boxes of (N,) degrees around positions (N,), (N,)."""
        layer = self.layer
        row, column = layer.position(lon, lat)
        half_rows = np.maximum(height / layer.dy, SMALLEST) / 2
        half_columns = np.clip(width / layer.dx, SMALLEST, layer.width) / 2
        # The first cell with its centre in the box, and the first beyond: whole numbers, which no tiling changes.
        edges = (row - half_rows, row + half_rows, column - half_columns, column + half_columns)
        top, bottom, left, right = (np.ceil(edge - 1e-6).astype(np.int64) for edge in edges)
        top, bottom = np.clip(top, 0, layer.height - 1), np.clip(bottom, 1, layer.height)
        out = np.empty(lon.size)
        for part in layer.parts(lon, lat):
            box = top[part], bottom[part], left[part], right[part]
            cells = (box[1] - box[0]) * (box[3] - box[2])
            out[part] = self._count(*box) / (cells * self.most)
        return out

    def _count(self, top: np.ndarray, bottom: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """Land in boxes of cells (N,), ends exclusive; columns may lie beyond those of the layer."""
        (r0, r1), (c0, c1) = (int(top.min()), int(bottom.max())), (int(left.min()), int(right.max()))
        width = self.layer.width
        if c1 - c0 <= width:
            cells = self.layer.block((r0, r1, c0 % width, c0 % width + c1 - c0), [1], raw=True)[..., 0]
        else:
            cells = self.layer.block((r0, r1, 0, width), [1], raw=True)[:, np.arange(c0, c1) % width, 0]
        # Sums of all cells north-west of a corner: what is in a box is a difference of four.
        table = np.zeros((r1 - r0 + 1, c1 - c0 + 1), dtype=np.int32)
        np.cumsum(self.land(cells), axis=0, dtype=np.int32, out=table[1:, 1:])
        np.cumsum(table[1:, 1:], axis=1, out=table[1:, 1:])
        top, bottom, left, right = top - r0, bottom - r0, left - c0, right - c0
        return table[bottom, right] - table[top, right] - table[bottom, left] + table[top, left]


ANTARCTIC = -60.0
"""Degrees of latitude; all land south of it is Antarctica."""
_STEPS = np.array([0.7548776662466927, 0.5698402909980532])
"""1/g and 1/g^2 with g^3 = g + 1: the steps of the R2 sequence."""


def land_sample(n: int = 20_000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """`n` places on land, each representing the same area: (lon, lat), each (n,) float64 in degrees.

    Without lakes and Antarctica. The first `m` of `land_sample(n, seed)` are `land_sample(m, seed)`. They are
    points of Roberts' R2 sequence, distributed over the sphere by area, that are land on the bundled mask;
    `seed` shifts the sequence. Shares of an area are several times more accurate than from random points.

    M. Roberts (2018), The unreasonable effectiveness of quasirandom sequences,
    https://extremelearning.com.au/unreasonable-effectiveness-of-quasirandom-sequences/
    """
    if n < 1:
        raise ValueError(f"a sample must have at least one place, not {n}")
    mask = LandMask()
    start = np.random.default_rng(seed).random(2) if seed else np.array([0.5, 0.5])
    lons: list[np.ndarray] = []
    lats: list[np.ndarray] = []
    count = first = 0
    while count < n:
        index = np.arange(first, first + 4 * max(n - count, 256))
        first = int(index[-1]) + 1
        u, v = (start[:, None] + index * _STEPS[:, None]) % 1.0
        lon, lat = 360.0 * u - 180.0, np.degrees(np.arcsin(2.0 * v - 1.0))
        land = (lat > ANTARCTIC) & mask.keep("land", lon, lat)
        lons.append(lon[land])
        lats.append(lat[land])
        count += int(land.sum())
    return np.concatenate(lons)[:n], np.concatenate(lats)[:n]
