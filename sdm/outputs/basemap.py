"""Land and borders as small vector layers, drawn under and over a map without a network."""

import math
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import shapely
    from geopandas import GeoDataFrame

Window = tuple[float, float, float, float]
"""West, south, east, north in degrees; longitudes may run past +-180."""

_PIXELS = 1200  # across the map on a large screen; finer detail is simplified away
_MAX_BYTES = 450_000  # of GeoJSON; beyond it the tolerance grows


def land_and_borders(countries: "GeoDataFrame", window: Window, extent: float) -> tuple[str, str]:
    """GeoJSON texts: polygons of land, and lines of coasts and borders, within `window`.

    `countries` are polygons in any CRS; they are repeated where the window extends past +-180. `extent`, the
    larger side of the map in degrees, sets the detail. Shared borders are simplified once and stay shared.
    """
    import shapely

    shapes = countries.to_crs(4326) if countries.crs is not None else countries
    pieces = _in_window(np.asarray(shapes.geometry), window)
    if not len(pieces):
        nothing = shapely.to_geojson(shapely.MultiPolygon())
        return nothing, nothing
    tolerance = extent / _PIXELS
    while True:
        pieces = _polygons(shapely.make_valid(shapely.coverage_simplify(pieces, tolerance)))
        digits = max(0, math.ceil(-math.log10(tolerance)) + 1)
        texts = _geojson(_land(pieces, tolerance), digits), _geojson(_lines(pieces, window), digits)
        if sum(map(len, texts)) <= _MAX_BYTES:
            return texts
        tolerance *= 1.6


def outline(polygons: "shapely.Geometry", window: Window, extent: float) -> str:
    """GeoJSON text of the outline of polygons in degrees, within `window`; arguments as of `land_and_borders`."""
    import shapely

    pieces = _in_window(np.array([polygons], dtype=object), window)
    if not len(pieces):
        return shapely.to_geojson(shapely.MultiPolygon())
    tolerance = extent / _PIXELS
    while True:
        simple = _polygons(shapely.make_valid(shapely.simplify(pieces, tolerance, preserve_topology=False)))
        lines = _lines(simple, window) if len(simple) else shapely.MultiLineString()
        text = _geojson(lines, max(0, math.ceil(-math.log10(tolerance)) + 1))
        if len(text) <= _MAX_BYTES:
            return text
        tolerance *= 1.6


def _in_window(shapes: npt.NDArray, window: Window) -> npt.NDArray:
    """Countries clipped to the window, with copies 360 degrees west and east; cuts at 180 are joined."""
    import shapely

    west, south, east, north = window
    shapes = shapes[~(shapely.is_missing(shapes) | shapely.is_empty(shapes))]
    pieces: dict[int, list[shapely.Geometry]] = {}
    for shift in (-360.0, 0.0, 360.0):
        left, bottom, right, top = shapely.bounds(shapes).T + np.array([[shift], [0.0], [shift], [0.0]])
        near = np.flatnonzero((right > west) & (left < east) & (top > south) & (bottom < north))
        moved = shapely.transform(shapes[near], lambda points, shift=shift: points + np.array([shift, 0.0]))
        for index, piece in zip(near, shapely.clip_by_rect(moved, west, south, east, north), strict=True):
            pieces.setdefault(int(index), []).append(piece)
    joined = [parts[0] if len(parts) == 1 else shapely.union_all(parts) for parts in pieces.values()]
    return _polygons(shapely.make_valid(np.array(joined, dtype=object)))


def _polygons(shapes: npt.NDArray) -> npt.NDArray:
    """The polygons of each geometry; geometries without any are dropped. Clipping also leaves points and lines."""
    import shapely

    parts, owner = shapely.get_parts(shapes, return_index=True)
    parts, inner = shapely.get_parts(parts, return_index=True)  # multipolygons inside collections
    owner = owner[inner]
    areas = shapely.get_type_id(parts) == shapely.GeometryType.POLYGON
    _, owner = np.unique(owner[areas], return_inverse=True)
    return shapely.multipolygons(parts[areas], indices=owner)


def _land(pieces: npt.NDArray, tolerance: float) -> npt.NDArray:
    import shapely

    try:
        land = shapely.coverage_union_all(pieces)
    except shapely.errors.GEOSException:  # neighbours overlap slightly; slower, but accepts any polygons
        land = shapely.union_all(pieces)
    parts = shapely.get_parts(shapely.get_parts(land))
    return shapely.multipolygons(parts[shapely.area(parts) > tolerance**2])


def _lines(pieces: npt.NDArray, window: Window) -> npt.NDArray:
    """Every coast and border once, without the cuts made by the window."""
    import shapely

    rings = shapely.get_parts(shapely.get_parts(shapely.boundary(pieces)))
    points, ring = shapely.get_coordinates(rings, return_index=True)
    within = ring[1:] == ring[:-1]
    segments = np.stack([points[:-1][within], points[1:][within]], axis=1)  # (n, 2 ends, 2 coordinates)
    backwards = (segments[:, 0] > segments[:, 1])[:, 0] | (
        (segments[:, 0, 0] == segments[:, 1, 0]) & (segments[:, 0, 1] > segments[:, 1, 1])
    )
    segments[backwards] = segments[backwards, ::-1]
    segments = np.unique(segments.reshape(-1, 4), axis=0).reshape(-1, 2, 2)
    cut = np.zeros(len(segments), dtype=bool)
    for coordinate, edge in ((0, window[0]), (1, window[1]), (0, window[2]), (1, window[3])):
        cut |= (np.abs(segments[:, :, coordinate] - edge) < 1e-9).all(axis=1)
    return shapely.line_merge(shapely.multilinestrings(shapely.linestrings(segments[~cut])))


def _geojson(shape: npt.NDArray, digits: int) -> str:
    import shapely

    return shapely.to_geojson(shapely.transform(shape, lambda points: np.round(points, digits)))
