"""Polygons of any CRS on the globe: straight edges bend, and the antimeridian and the poles are no borders."""

from __future__ import annotations

import numpy as np
import pyproj
import shapely
from pyproj.exceptions import ProjError

from sdm.errors import LayerError
from sdm.files.union import MAX_VERTICES, union_of_valid

TOLERANCE = 1e-5
"""Degrees, about a metre, that an edge between two vertices may leave the straight edge of the projection."""
_FIRST_PIECES = 64
_SHORTEST = 1e-3
"""Units of the CRS below which an edge is not divided: only one through a pole is."""
_POLE = 90.0 - 1e-9


def to_lonlat(geometry: shapely.Geometry, crs: pyproj.CRS, source: str = "region") -> shapely.Geometry:
    """The polygons of a geometry in WGS84, (lon, lat); lines and points are left out.

    The edges of a projected CRS get as many vertices as they need to stay where they are. A polygon across the
    antimeridian goes on past 180; one around a pole has the pole as an edge, over all longitudes.

    Raises LayerError, naming `source`, where a part lies off the globe, or too many vertices would be needed.
    """
    if crs.to_epsg() == 4326:
        return geometry
    forward = _Forward(crs, source)
    if crs.is_geographic:
        return shapely.transform(geometry, forward.keeping_turns)
    polygons = np.array([p for part in shapely.get_parts(geometry) for p in shapely.get_parts(part)], dtype=object)
    polygons = polygons[shapely.get_type_id(polygons) == 3] if len(polygons) else polygons
    plain = _stay_straight(polygons, forward)
    done = list(shapely.transform(polygons[plain], forward))
    for polygon in polygons[~plain]:
        done += _unrolled(polygon, forward)
    return union_of_valid(shapely.make_valid(np.array(done, dtype=object))) if done else shapely.MultiPolygon()


class _Forward:
    """(N, 2) coordinates of a CRS -> (N, 2) degrees (lon, lat)."""

    def __init__(self, crs: pyproj.CRS, source: str) -> None:
        self.crs, self.source = crs, source
        self._there = pyproj.Transformer.from_crs(crs, 4326, always_xy=True)

    def __call__(self, xy: np.ndarray) -> np.ndarray:
        try:
            lonlat = np.column_stack(self._there.transform(xy[:, 0], xy[:, 1]))
        except (ProjError, ValueError) as error:
            raise LayerError(f"{self.source} cannot be placed on the globe: {error}.") from None
        if not np.isfinite(lonlat).all():
            raise LayerError(
                f"{self.source} reaches beyond the domain of its CRS, {self.crs.name}; assign the right CRS, or cut "
                "the polygons to it."
            )
        return lonlat

    def keeping_turns(self, xy: np.ndarray) -> np.ndarray:
        """The same for a geographic CRS, of which longitudes past 180 stay there."""
        lonlat = self(xy)
        degrees = np.degrees(xy[:, 0] * (self.crs.axis_info[0].unit_conversion_factor or np.pi / 180.0))
        lonlat[:, 0] += 360.0 * np.round((degrees - lonlat[:, 0]) / 360.0)
        return lonlat

    def pole_inside(self, polygon: shapely.Polygon) -> float:
        """The latitude of the pole that lies in a polygon that goes all around one."""
        x, y = self._there.transform([0.0, 0.0], [90.0, -90.0], direction="INVERSE")
        north, south = shapely.points(np.nan_to_num(np.column_stack([x, y]), nan=1e300, posinf=1e300, neginf=1e300))
        return 90.0 if polygon.distance(north) <= polygon.distance(south) else -90.0


def _wrapped(degrees: np.ndarray) -> np.ndarray:
    return (degrees + 180.0) % 360.0 - 180.0


def _bends(xy: np.ndarray, lonlat: np.ndarray, forward: _Forward) -> np.ndarray:
    """(N - 1,) bool: the edge to the next vertex is not straight on the globe, or turns far around a pole."""
    middle = forward((xy[1:] + xy[:-1]) / 2)
    step = _wrapped(lonlat[1:, 0] - lonlat[:-1, 0])
    off_lon = _wrapped(middle[:, 0] - lonlat[:-1, 0] - step / 2) * np.cos(np.radians(middle[:, 1]))
    off_lat = middle[:, 1] - (lonlat[1:, 1] + lonlat[:-1, 1]) / 2
    return (np.hypot(off_lon, off_lat) > TOLERANCE) | (np.abs(step) > 90.0)


def _stay_straight(polygons: np.ndarray, forward: _Forward) -> np.ndarray:
    """(N,) bool: the polygon needs no further vertices, and does not cross the antimeridian."""
    plain = np.ones(len(polygons), dtype=bool)
    if not len(polygons):
        return plain
    rings, owner = shapely.get_rings(polygons, return_index=True)
    xy, ring = shapely.get_coordinates(rings, return_index=True)
    lonlat = forward(xy)
    within = ring[1:] == ring[:-1]
    bad = within & (_bends(xy, lonlat, forward) | (np.abs(np.diff(lonlat[:, 0])) > 180.0))
    # Two bends may cancel in the middle of a long edge.
    bad |= within & (np.abs(np.diff(lonlat, axis=0)).max(axis=1) > 1.0)
    plain[owner[ring[:-1][bad]]] = False
    plain[owner[ring[np.abs(lonlat[:, 1]) > _POLE]]] = False
    return plain


def _unrolled(polygon: shapely.Polygon, forward: _Forward) -> list[shapely.Geometry]:
    """One polygon in degrees, its longitudes without a jump."""
    west, south, east, north = polygon.bounds
    dense = shapely.segmentize(polygon, max(east - west, north - south) / _FIRST_PIECES)
    outer, *holes = (_ring(ring, polygon, forward) for ring in shapely.get_rings(dense))
    low, high = outer[:, 0].min(), outer[:, 0].max()
    placed: list[np.ndarray] = []
    caps: list[np.ndarray] = []
    for hole in holes:
        turns = np.ceil((low - 1e-9 - hole[:, 0].min()) / 360.0)
        moved = hole + np.array([360.0 * turns, 0.0])
        whole = high - low < 359.999 and moved[:, 0].max() <= high + 1e-9
        (placed if whole else caps).append(moved)
    result: shapely.Geometry = shapely.make_valid(shapely.Polygon(outer, placed))
    for cap in caps:
        for turn in (-360.0, 0.0, 360.0):
            result = result.difference(shapely.make_valid(shapely.Polygon(cap + np.array([turn, 0.0]))))
    return [result]


def _ring(ring: shapely.LinearRing, polygon: shapely.Polygon, forward: _Forward) -> np.ndarray:
    """The vertices (N, 2) of a ring in degrees: dense, and closed over the pole where the ring goes around one."""
    xy = shapely.get_coordinates(ring)
    for _ in range(48):
        lonlat = forward(xy)
        split = _bends(xy, lonlat, forward) & (np.hypot(*np.diff(xy, axis=0).T) > _SHORTEST)
        if not split.any():
            break
        if len(xy) + split.sum() > MAX_VERTICES:
            raise LayerError(f"{forward.source} needs more than {MAX_VERTICES:,} vertices on the globe; simplify it.")
        at = np.flatnonzero(split)
        xy = np.insert(xy, at + 1, (xy[at] + xy[at + 1]) / 2, axis=0)
    lonlat = _around_poles(forward(xy))
    lon = np.unwrap(lonlat[:, 0], period=360.0)
    turned = lon[-1] - lon[0]
    lonlat = np.column_stack([lon, lonlat[:, 1]])
    if abs(turned) > 180.0:
        pole = forward.pole_inside(polygon)
        lonlat = np.vstack([lonlat, [[lon[-1], pole], [lon[0], pole]], lonlat[:1]])
    return lonlat


def _around_poles(lonlat: np.ndarray) -> np.ndarray:
    """A closed ring of which vertices on a pole, which has no longitude, have that of the vertex before and after."""
    on = np.abs(lonlat[:, 1]) > _POLE
    if not on.any() or on.all():
        return lonlat
    ring = lonlat[:-1]
    ring = np.roll(ring, -int(np.flatnonzero(~on[:-1])[0]), axis=0)
    on = np.abs(ring[:, 1]) > _POLE
    out = []
    for k, (vertex, polar) in enumerate(zip(ring, on, strict=True)):
        if not polar:
            out.append(vertex)
            continue
        if not on[k - 1]:
            out.append(np.array([ring[k - 1, 0], vertex[1]]))
        following = (k + 1) % len(ring)
        if not on[following]:
            out.append(np.array([ring[following, 0], vertex[1]]))
    return np.vstack([*out, out[0]])
