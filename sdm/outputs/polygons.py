"""From pixels to polygons in WGS84, cut at 180 degrees; and their true area."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import shapely
from affine import Affine
from odc.geo.geobox import GeoBox

from sdm.outputs.geobox import geobox_crs

if TYPE_CHECKING:
    from pyproj import Transformer

EDGE_DEGREES = 0.25
"""Longer edges of polygons get vertices: a program that draws edges as geodesics would leave the parallels."""
_AREA_DEGREES = 0.05  # the same, for an area that is exact to six digits
_EDGE_PIXELS, _EDGE_METRES = 8, 10_000.0  # longest edge before it is transformed to degrees
_WORLD = (-180.0, -90.0, 180.0, 90.0)


def polygons_of(mask: npt.NDArray[np.uint8], geobox: GeoBox) -> shapely.MultiPolygon:
    """The outlines of the pixels that are 1, as a valid multipolygon in WGS84, (lon, lat), within -180 to 180.

    Parameters
    ----------
    mask : shape (y, x).
    geobox : its grid, in any CRS; longitudes of a geographic one may run past 180 degrees.

    Edges are those of the pixels and holes are kept, also across 180 degrees and around a pole. Only where pixels reach
    out of the domain of a projection are the edges those of pixels of the same size in degrees.
    """
    parts = _outlines(mask, geobox)
    if not _is_wgs84(geobox):
        found = to_wgs84(shapely.segmentize(parts, _longest_edge(geobox)), geobox_crs(geobox).proj)
        if found is None:
            mask, geobox = _on_degrees(mask, geobox)
            parts = _outlines(mask, geobox)
        else:
            parts = found
    return _joined(cut_at_180(_parts(shapely.segmentize(parts, EDGE_DEGREES))))


def _longest_edge(geobox: GeoBox) -> float:
    """In units of the CRS."""
    crs, side = geobox_crs(geobox), max(abs(geobox.affine.a), abs(geobox.affine.e))
    unit = crs.proj.axis_info[0].unit_conversion_factor
    return min(_EDGE_PIXELS * side, EDGE_DEGREES * 0.0174533 / unit if crs.geographic else _EDGE_METRES / unit)


def _is_wgs84(geobox: GeoBox) -> bool:
    return geobox_crs(geobox).proj.to_epsg() == 4326


def _outlines(mask: npt.NDArray[np.uint8], geobox: GeoBox) -> npt.NDArray[np.object_]:
    """Valid polygons of the pixels that are 1, in the CRS of the grid; they touch in corners at most."""
    from rasterio.features import shapes

    found = [shapely.geometry.shape(one) for one, _ in shapes(mask, mask=mask == 1, transform=geobox.affine)]
    polygons = np.array(found, dtype=object)
    return _valid(polygons) if found else polygons


def _valid(polygons: npt.NDArray[np.object_]) -> npt.NDArray[np.object_]:
    wrong = ~shapely.is_valid(polygons)
    if not wrong.any():
        return polygons
    return np.concatenate([polygons[~wrong], _parts(shapely.make_valid(polygons[wrong]))])


def _parts(shapes: npt.NDArray[np.object_]) -> npt.NDArray[np.object_]:
    """The polygons among the parts of some geometries."""
    parts = shapely.get_parts(shapely.get_parts(shapes))
    return parts[shapely.get_type_id(parts) == shapely.GeometryType.POLYGON]


def to_wgs84(polygons: npt.NDArray[np.object_], crs: object) -> npt.NDArray[np.object_] | None:
    """Polygons of a CRS in degrees, also across 180 degrees and around a pole.

    Parameters
    ----------
    polygons : valid, with edges short enough to stay straight.
    crs : of pyproj.

    Returns
    -------
    None where a polygon leaves the domain of the CRS.
    """
    from pyproj import Transformer

    transformer = Transformer.from_crs(crs, "EPSG:4326", always_xy=True)
    turned = shapely.transform(polygons, transformer.transform, interleaved=False)
    if not _belong(shapely.get_coordinates(turned), shapely.get_coordinates(polygons), transformer):
        return None
    turned = _rounded(turned)
    torn = _torn(turned)
    if not torn.any():
        return _valid(turned)
    poles = [
        (latitude, shapely.Point(place))
        for latitude in (90.0, -90.0)
        if np.isfinite(place := transformer.transform(0.0, latitude, direction="INVERSE")).all()
    ]
    mended = [_mended(flat, round_, poles) for flat, round_ in zip(polygons[torn], turned[torn], strict=True)]
    return np.concatenate([_valid(turned[~torn]), _valid(_rounded(_parts(np.array(mended, dtype=object))))])


def _rounded(shapes: npt.NDArray[np.object_]) -> npt.NDArray[np.object_]:
    """To a tenth of a millimetre: a corner keeps its place though its longitude goes around the globe and back."""
    return shapely.transform(shapes, lambda points: np.round(points, 9))


def _belong(points: npt.NDArray[np.float64], flat: npt.NDArray[np.float64], transformer: Transformer) -> bool:
    """Whether points in degrees (N, 2) are those of a CRS, `flat`: beyond its domain many give a place elsewhere."""
    if not np.isfinite(points).all():
        return False
    back = np.column_stack(transformer.transform(points[:, 0], points[:, 1], direction="INVERSE"))
    apart = np.hypot(*(back - flat).T)
    # A whole turn is no difference in degrees.
    limit = 1e-6 * max(1.0, float(np.abs(flat).max(initial=0.0)))
    return bool(((apart <= limit) | (np.abs(apart - 360.0) <= limit)).all())


_Poles = list[tuple[float, shapely.Point]]


def _mended(flat: shapely.Polygon, turned: shapely.Polygon, poles: _Poles) -> shapely.Geometry:
    """A polygon across 180 degrees or around a pole; `flat`: in its CRS, `turned`: the same points in degrees."""
    outer = _inside(flat.exterior, turned.exterior, poles)
    if not flat.interiors:
        return outer
    rings = np.array(turned.interiors, dtype=object)
    torn = _torn(rings)
    holes = [cut_at_180(shapely.polygons(rings[~torn]))]
    for k in np.flatnonzero(torn):
        holes.append(_parts(np.array([_inside(flat.interiors[int(k)], rings[k], poles)], dtype=object)))
    # They touch in corners at most, so together they are one multipolygon; a union of thousands takes minutes.
    return shapely.difference(outer, shapely.multipolygons(np.concatenate(holes)))


def _torn(shapes: npt.NDArray[np.object_]) -> npt.NDArray[np.bool_]:
    """Which of some shapes in degrees have an edge that seems to run around the globe."""
    points, owner = shapely.get_coordinates(shapes, return_index=True)
    jumps = (np.abs(np.diff(points[:, 0])) > 180.0) & (owner[1:] == owner[:-1])
    torn = np.zeros(len(shapes), dtype=bool)
    torn[owner[1:][jumps]] = True
    return torn


def _inside(flat: shapely.LinearRing, turned: shapely.LinearRing, poles: _Poles) -> shapely.Geometry:
    """What a ring encloses, within -180 to 180."""
    points = shapely.get_coordinates(turned)
    points[:, 0] = np.unwrap(points[:, 0], period=360.0)
    if abs(points[-1, 0] - points[0, 0]) > 180.0:
        region = shapely.Polygon(flat)
        pole = next((latitude for latitude, place in poles if region.contains(place)), 90.0)
        points = np.vstack([points, [points[-1, 0], pole], [points[0, 0], pole], points[0]])
    whole = shapely.make_valid(shapely.Polygon(points))
    return shapely.union_all(cut_at_180(_parts(np.array([whole], dtype=object))))


def cut_at_180(polygons: npt.NDArray[np.object_]) -> npt.NDArray[np.object_]:
    """Polygons in degrees, whose longitudes may run on: the same areas within -180 to 180 and -90 to 90."""
    if not len(polygons):
        return polygons
    west, south, east, north = shapely.bounds(polygons).T
    beyond = (west < -180.0) | (east > 180.0) | (south < -90.0) | (north > 90.0)
    pieces = [polygons[~beyond]]
    for turn in range(math.floor((west.min() + 180.0) / 360.0), math.floor((east.max() + 180.0) / 360.0) + 1):
        shift = np.array([360.0 * turn, 0.0])
        window = shapely.box(_WORLD[0] + shift[0], _WORLD[1], _WORLD[2] + shift[0], _WORLD[3])
        piece = shapely.transform(shapely.intersection(polygons[beyond], window), lambda p, by=shift: p - by)
        pieces.append(_parts(piece))
    return np.concatenate(pieces)


def _joined(polygons: npt.NDArray[np.object_]) -> shapely.MultiPolygon:
    """One valid multipolygon of polygons that may touch."""
    whole = shapely.multipolygons(polygons) if len(polygons) else shapely.MultiPolygon()
    if not whole.is_valid:
        # Parts that share an edge, as where a map around the globe closes, become one.
        whole = shapely.multipolygons(_parts(np.array([shapely.union_all(_valid(polygons))], dtype=object)))
    return shapely.normalize(whole)


def _on_degrees(mask: npt.NDArray[np.uint8], geobox: GeoBox) -> tuple[npt.NDArray[np.uint8], GeoBox]:
    """The mask on a grid in degrees from -180 to 180 with pixels of about the same size."""
    import rasterio
    from rasterio.warp import Resampling, reproject

    area = abs(geobox.affine.a * geobox.affine.e) * geobox_crs(geobox).proj.axis_info[0].unit_conversion_factor ** 2
    columns = int(np.clip(round(360 * 111_320 / math.sqrt(area)), 360, 86_400))
    pitch = 360 / columns
    rows = math.ceil(180 / pitch)
    out = np.zeros((rows, columns), dtype=np.uint8)
    target = Affine(pitch, 0, -180, 0, -pitch, 90)
    with rasterio.Env():
        reproject(
            mask,
            out,
            src_transform=geobox.affine,
            src_crs=str(geobox.crs),
            dst_transform=target,
            dst_crs="EPSG:4326",
            resampling=Resampling.nearest,
            warp_mem_limit=64,
        )
    return out, GeoBox(out.shape, target, "EPSG:4326")


def area_km2(geometry: shapely.Geometry) -> float:
    """Area of valid polygons in degrees, within -180 to 180, on the WGS 84 ellipsoid, in km2.

    Edges along parallels get vertices first, as a geodesic between their ends would run poleward of them.
    """
    from pyproj import Geod

    # In sectors: of a polygon of more than half the Earth the rest would be measured.
    sectors = shapely.intersection(geometry, [shapely.box(west, -90, west + 60, 90) for west in range(-180, 180, 60)])
    parts = shapely.orient_polygons(shapely.segmentize(_parts(sectors), _AREA_DEGREES))
    geod = Geod(ellps="WGS84")
    return sum(geod.geometry_area_perimeter(part)[0] for part in parts) / 1e6
