"""Extent of occurrence and area of occupancy, as IUCN defines them for its criterion B.

Both are measured in an azimuthal equal-area projection around the middle of the records, which no line such as 180
degrees divides. The area of occupancy (AOO) is that of the cells of 2 x 2 km with a record; as it depends on where the
grid begins, the fewest cells over many offsets count. The extent of occurrence (EOO) is the convex hull around the
outlines of these cells; it is never smaller than the AOO. Only thresholds of area are compared: a category needs more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import shapely

from sdm.outputs.polygons import to_wgs84

if TYPE_CHECKING:
    from pyproj import CRS

CELL_M = 2000
"""Side of a cell of the area of occupancy, in metres."""
STEPS = 10
"""Offsets of the grid that are tried along each axis: a cell is so many blocks wide."""
_BLOCK_M = CELL_M / STEPS
_EDGE_M = 10_000.0  # longest edge of a hull before it is transformed to degrees

B1 = {"CR": 100.0, "EN": 5_000.0, "VU": 20_000.0}
"""Extent of occurrence below which the threshold of area of a category is met, in km2."""
B2 = {"CR": 10.0, "EN": 500.0, "VU": 2_000.0}
"""The same of the area of occupancy."""

Floats = npt.NDArray[np.float64]
Cells = npt.NDArray[np.int64]


def met(area_km2: float, limits: dict[str, float]) -> dict[str, str]:
    """Which thresholds of area are met: "met" or "not met" by category."""
    return {category: "met" if area_km2 < limit else "not met" for category, limit in limits.items()}


@dataclass(frozen=True)
class Plane:
    """An equal-area plane around the middle of some places, in metres."""

    crs: CRS

    @classmethod
    def around(cls, lon: Floats, lat: Floats) -> Plane:
        """The plane of places (N,) in degrees: Lambert azimuthal equal-area around their middle."""
        from pyproj import CRS

        x, y, z = _directions(lon, lat).mean(axis=1)
        length = float(np.sqrt(x * x + y * y + z * z))
        middle = (0.0, 0.0) if length < 1e-9 else (np.degrees(np.arctan2(y, x)), np.degrees(np.arcsin(z / length)))
        definition = {"proj": "laea", "lon_0": round(middle[0], 6), "lat_0": round(middle[1], 6), "datum": "WGS84"}
        return cls(CRS.from_dict({**definition, "units": "m"}))

    def place(self, lon: Floats, lat: Floats) -> Floats:
        """Places in degrees as points (N, 2) of the plane."""
        from pyproj import Transformer

        x, y = Transformer.from_crs("EPSG:4326", self.crs, always_xy=True).transform(lon, lat)
        points = np.column_stack([x, y]).astype(float)
        # The antipode of the middle lies on a whole circle; one of its points is as good as any other.
        points[~np.isfinite(points).all(axis=1)] = (1.27e7, 0.0)
        return points

    def degrees(self, polygons: npt.NDArray[np.object_], edge: float = _EDGE_M) -> shapely.MultiPolygon:
        """Polygons of the plane as one multipolygon in degrees, (lon, lat), cut at 180 degrees."""
        if not len(polygons):
            return shapely.MultiPolygon()
        turned = to_wgs84(shapely.segmentize(polygons, edge), self.crs)
        if turned is None:  # it reaches beyond the antipode of the middle: most of the globe
            return shapely.MultiPolygon([shapely.box(-180, -90, 180, 90)])
        whole = shapely.multipolygons(turned)
        if not whole.is_valid:
            whole = shapely.union_all(turned)
            whole = whole if isinstance(whole, shapely.MultiPolygon) else shapely.MultiPolygon([whole])
        return shapely.normalize(whole)


def _directions(lon: Floats, lat: Floats) -> Floats:
    """Unit vectors (3, N)."""
    lon, lat = np.radians(lon), np.radians(lat)
    return np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)])


@dataclass(frozen=True)
class Occupied:
    """The fewest cells that hold all of some points."""

    cells: Cells
    """(C, 2) numbers of column and row."""
    origin: tuple[float, float]
    """Corner of cell (0, 0) in the plane, in metres."""

    @property
    def km2(self) -> float:
        """Area of occupancy."""
        return len(self.cells) * (CELL_M / 1000.0) ** 2

    @property
    def squares(self) -> npt.NDArray[np.object_]:
        """The cells as polygons of the plane, (C,)."""
        corner = self.cells * float(CELL_M) + np.array(self.origin)
        return shapely.box(corner[:, 0], corner[:, 1], corner[:, 0] + CELL_M, corner[:, 1] + CELL_M)


def occupied(points: Floats) -> Occupied:
    """The cells of 2 x 2 km with a point, on the grid of all offsets by a tenth of a cell that has the fewest.

    `points`: (N, 2) metres, N at least 1. Of grids with equally many the one with the smallest offset is taken.
    """
    from pandas import unique  # by hashing; sorting takes ten times as long

    blocks = np.floor(points / _BLOCK_M).astype(np.int64)
    keys = unique(_keys(blocks[:, 0], blocks[:, 1]))
    blocks = np.column_stack([keys >> 32, (keys << 32) >> 32])
    best: tuple[int, int, int] | None = None
    for right in range(STEPS):
        column = (blocks[:, 0] - right) // STEPS
        for up in range(STEPS):
            count = unique(_keys(column, (blocks[:, 1] - up) // STEPS)).size
            if best is None or count < best[0]:
                best = (count, right, up)
    assert best is not None
    _, right, up = best
    cells = np.unique((blocks - np.array([right, up])) // STEPS, axis=0)
    return Occupied(cells, (right * _BLOCK_M, up * _BLOCK_M))


def _keys(column: Cells, row: Cells) -> Cells:
    return (column << 32) | (row & 0xFFFFFFFF)


def hull(points: Floats) -> shapely.Geometry:
    """The convex hull of points (N, 2): a polygon, or a line or point where it has no area."""
    return shapely.convex_hull(shapely.multipoints(points))


@dataclass(frozen=True)
class Extent:
    """EOO and AOO of the places where a species was recorded."""

    plane: Plane
    cells: Occupied
    hull: shapely.Geometry
    """Around the outlines of the cells, in the plane."""
    of_points_km2: float
    """Area of the hull of the records themselves."""

    @property
    def eoo_km2(self) -> float:
        """Extent of occurrence."""
        return max(self.hull.area / 1e6, self.cells.km2)

    @property
    def aoo_km2(self) -> float:
        """Area of occupancy."""
        return self.cells.km2

    @property
    def wide(self) -> bool:
        """Whether the hull reaches beyond the hemisphere around its middle, where a convex hull means little."""
        x, y = shapely.get_coordinates(self.hull).T
        return bool(np.hypot(x, y).max() > 9.02e6)


def extent(lon: Floats, lat: Floats) -> Extent:
    """EOO and AOO of places (N,) in degrees, N at least 1."""
    plane = Plane.around(lon, lat)
    points = plane.place(lon, lat)
    cells = occupied(points)
    return Extent(plane, cells, hull(shapely.get_coordinates(cells.squares)), float(hull(points).area) / 1e6)


def eoo_of_polygons(polygons: shapely.Geometry) -> tuple[float, shapely.MultiPolygon]:
    """EOO in km2 of polygons in degrees, and the hull around them in degrees; 0 and an empty one of none."""
    points = shapely.get_coordinates(polygons)
    if not len(points):
        return 0.0, shapely.MultiPolygon()
    plane = Plane.around(*points.T)
    around = hull(plane.place(*points.T))
    return float(around.area) / 1e6, plane.degrees(np.array([around], dtype=object))
