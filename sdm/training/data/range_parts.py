"""Ranges as boxes of longitude and latitude: what a model keeps of the atlas for species with small ranges."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import geopandas
import numpy as np
import shapely

from sdm.training.data.ranges import RangeRaster
from sdm.training.data.source import Source
from sdm.training.data.sources import Polygons, Ranges

FADED = 40
"""Cells from which on a range is not kept: the model knows such species well enough by itself."""
OUTPOST = 10
"""Most cells of an outpost."""
CELL_KM2 = 9312.0
"""Of the cells of PHYLACINE, in which the sizes of polygons are stated too."""
BOX_DEGREES = 0.1
"""Side of the boxes that polygons are made of."""
REACH_KM = {"ranges": 200.0, "polygons": 100.0}
"""By kind of source: distance from a range beyond which the species is not expected, about two cells."""


class RangeParts(NamedTuple):
    """The range of a species."""

    size: float
    """In cells of the atlas."""
    boxes: np.ndarray
    """(K, 4) float32 (west, south, east, north), degrees; none where the range is not a small one."""
    reach: float
    """km."""
    outposts: tuple[np.ndarray, ...] = ()
    """Of a larger range: the cells (N,) of each part of a few cells that lies apart from the others."""
    inner: np.ndarray = np.empty(0, dtype=np.int64)
    """Of a larger range: its cells (N,) whose neighbours in the row and the column all belong to it."""


def range_parts(source: Source, kept: np.ndarray | None = None) -> Iterator[tuple[str, RangeParts]]:
    """The ranges of the species of a source; none for sources that are not ranges.

    `kept`: (cells,) bool, the cells of a raster that are known; None: all.
    """
    reach = REACH_KM.get(source.settings.kind, 0.0)
    if isinstance(source, Ranges):
        for name, cells in _cells(source.raster, kept):
            small = 0 < cells.size < FADED
            boxes = cell_boxes(source.raster, cells) if small else _NONE
            if small:
                yield name, RangeParts(float(cells.size), boxes, reach)
            else:
                apart = tuple(outposts(source.raster, cells))
                yield name, RangeParts(float(cells.size), boxes, reach, apart, inner_cells(source.raster, cells))
    elif isinstance(source, Polygons):
        polygons = source.polygons
        area = geopandas.GeoSeries(polygons.geometry, crs=4326).to_crs(6933).area.to_numpy() / 1e6
        for name, shape, km2 in zip(polygons.species, polygons.geometry, area, strict=True):
            size = float(km2) / CELL_KM2
            yield name, RangeParts(size, polygon_boxes(shape) if size < FADED else _NONE, reach)


def _cells(raster: RangeRaster, kept: np.ndarray | None) -> Iterator[tuple[str, np.ndarray]]:
    """Each species of a raster with its cells."""
    for column in range(raster.presence.shape[1]):
        bits = np.unpackbits(raster.presence[:, column : column + 1], axis=1).astype(bool)
        if kept is not None:
            bits &= kept[:, None]
        for bit, name in enumerate(raster.species[8 * column : 8 * column + 8]):
            yield name, np.flatnonzero(bits[:, bit])


def outposts(raster: RangeRaster, cells: np.ndarray) -> list[np.ndarray]:
    """The cells of each part of a range, cells (N,), that has at most `OUTPOST` cells and touches no other."""
    from scipy.ndimage import label

    present = np.zeros(raster.shape[0] * raster.shape[1], dtype=bool)
    present[cells] = True
    part = label(present.reshape(raster.shape), np.ones((3, 3)))[0].ravel()[cells]
    count = np.bincount(part)
    return [cells[part == k] for k in np.flatnonzero((count > 0) & (count <= OUTPOST))]


def inner_cells(raster: RangeRaster, cells: np.ndarray) -> np.ndarray:
    """The cells of a range, cells (N,), whose neighbours in the row and the column all belong to it."""
    from scipy.ndimage import binary_erosion

    present = np.zeros(raster.shape[0] * raster.shape[1], dtype=bool)
    present[cells] = True
    return np.flatnonzero(binary_erosion(present.reshape(raster.shape)).ravel())


def cell_boxes(raster: RangeRaster, cells: np.ndarray) -> np.ndarray:
    """(K, 4) float32 boxes of some cells (N,), ascending; neighbours in a row share one."""
    first = np.flatnonzero(np.diff(cells, prepend=-2) != 1)
    first = np.union1d(first, np.flatnonzero(cells % raster.shape[1] == 0))  # a row ends at the edge
    last = np.append(first[1:], cells.size) - 1
    # A little inside the cells, whose outer edges may lie on the seam of the globe.
    corners = [
        raster.positions(np.repeat(c, 2), np.tile([u, u], c.size), np.tile([1e-6, 1 - 1e-6], c.size))
        for c, u in ((cells[first], 1e-6), (cells[last], 1 - 1e-6))
    ]
    lon = np.concatenate([lon.reshape(-1, 2) for lon, _ in corners], axis=1)
    lat = np.concatenate([lat.reshape(-1, 2) for _, lat in corners], axis=1)
    boxes = np.stack([lon.min(axis=1), lat.min(axis=1), lon.max(axis=1), lat.max(axis=1)], axis=1)
    return boxes[np.isfinite(boxes).all(axis=1)].astype(np.float32)


def polygon_boxes(shape: shapely.Geometry, degrees: float = BOX_DEGREES) -> np.ndarray:
    """(K, 4) float32 boxes of the squares of a grid that a polygon touches; neighbours in a row share one."""
    touched: set[tuple[int, int]] = set()
    for part in shapely.get_parts(shape):
        west, south, east, north = part.bounds
        cols = np.arange(np.floor(west / degrees), np.floor(east / degrees) + 1).astype(int)
        rows = np.arange(np.floor(south / degrees), np.floor(north / degrees) + 1).astype(int)
        row, col = (a.ravel() for a in np.meshgrid(rows, cols, indexing="ij"))
        squares = shapely.box(col * degrees, row * degrees, (col + 1) * degrees, (row + 1) * degrees)
        shapely.prepare(part)
        hit = shapely.intersects(part, squares)
        touched.update(zip(row[hit].tolist(), col[hit].tolist(), strict=True))
    return np.array(_runs(sorted(touched), degrees), dtype=np.float32).reshape(-1, 4)


def _runs(squares: Sequence[tuple[int, int]], degrees: float) -> list[tuple[float, float, float, float]]:
    """Boxes of runs of squares (row, column), sorted."""
    boxes: list[tuple[float, float, float, float]] = []
    start = 0
    for k in range(1, len(squares) + 1):
        if k < len(squares) and squares[k] == (squares[k - 1][0], squares[k - 1][1] + 1):
            continue
        row, west, east = squares[start][0], squares[start][1], squares[k - 1][1] + 1
        boxes.append((west * degrees, row * degrees, east * degrees, (row + 1) * degrees))
        start = k
    return boxes


_NONE = np.empty((0, 4), dtype=np.float32)
