"""The geometry of a map: region, pixel grid, tiles, and pixel centres on the globe.

Coordinate order: a box is `(west, south, east, north)` in degrees, WGS84. Functions that return
positions return `(lon, lat)` in degrees, longitude wrapped into [-180, 180). Arrays of a grid are
indexed `[row, column]`, row 0 in the north.

A box whose west is greater than its east crosses the antimeridian. Its grid continues past 180
(170 .. 190) so that it stays one raster; only the positions given to encoders and layers are wrapped.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyproj
import shapely
from affine import Affine
from odc.geo.geobox import GeoBox
from pyproj.exceptions import CRSError, ProjError

from sdm.errors import BoxError, RequestError, TooLargeError
from sdm.files.union import FEW, union_of_valid
from sdm.request import BBox
from sdm.request.box import KM_PER_DEGREE

if TYPE_CHECKING:
    from geopandas import GeoDataFrame
    from odc.geo.crs import CRS

    from sdm.files.vectors import Polygons

WGS84 = "EPSG:4326"
DEFAULT_PIXELS = 1_100_000
"""The default resolution is the finest round number that keeps a map at or below this many pixels."""
FINEST_DEFAULT_DEGREES = 0.01
FINEST_DEFAULT_METRES = 1000.0
_FEWEST_PIXELS = 4
_FINER = 24
"""Times that a resolution is halved to find a pixel in a narrow region."""
LARGEST_MAP_METRES = 1.2e8
"""Three times the circumference of the Earth; only a pole that is projected to infinity makes an area larger."""
LARGEST_STEP_METRES = 1.0e7
"""Two neighbouring vertices of a projected outline lie farther apart than this only across a seam of the projection."""


@dataclass(frozen=True)
class Region:
    """A polygon to map: its extent sets the grid, its outside is masked.

    `geometry` is in WGS84, (lon, lat), possibly past 180 where it crosses the antimeridian.
    """

    geometry: shapely.Geometry
    source: str = "geometry"
    own: tuple[shapely.Geometry, str] | None = None
    """The same in the projected CRS that it was given in, with that CRS: there its edges are exact."""
    notes: tuple[str, ...] = ()
    """Sentences for the user of a map."""

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """(west, south, east, north) in unwrapped degrees."""
        west, south, east, north = self.geometry.bounds
        return west, south, east, north

    @classmethod
    def from_geometry(cls, geometry: shapely.Geometry, source: str = "geometry") -> Region:
        """Check and repair a WGS84 geometry, (lon, lat); raises BoxError if it holds no polygon."""
        if not np.isfinite(shapely.get_coordinates(geometry)).all():
            raise BoxError(f"region {source} has coordinates that are not finite numbers.")
        polygons = _polygons(geometry)
        if not polygons:
            raise BoxError(f"region {source} holds no polygon with an area; give polygons to map inside.")
        long_way = [step for step in _steps_east(polygons) if 180.0 < step < 359.0]
        # The parts of a valid multipolygon do not overlap; to unite very many of them again takes seconds.
        if len(polygons) <= FEW or geometry.geom_type != "MultiPolygon" or not shapely.is_valid(geometry):
            geometry = union_of_valid(polygons)
        west, south, east, north = geometry.bounds
        if south < -90.001 or north > 90.001 or west < -360.0 or east > 540.0:
            raise BoxError(
                f"region {source} has coordinates outside the globe (longitude {west:g}..{east:g}, latitude "
                f"{south:g}..{north:g}); its CRS is probably not the one it names."
            )
        if east - west > 180.0:
            geometry = _together(polygons, geometry)
        west, _, east, _ = geometry.bounds
        if east - west > 359.999 and (west < -180.0 or east > 180.0):  # all around a pole, and maybe more
            turns = [_shifted(geometry, degrees) for degrees in (-360.0, 0.0, 360.0)]
            once = shapely.clip_by_rect(turns, -180.0, -90.0, 180.0, 90.0)
            geometry = union_of_valid(shapely.make_valid(once))
        turns_west = math.floor((geometry.bounds[0] + 180.0) / 360.0)
        if turns_west:  # longitudes 190..230 are -170..-130
            geometry = _shifted(geometry, -360.0 * turns_west)
        notes = [
            f"An edge of region {source} spans {step:g} degrees of longitude; if it was meant to cross the "
            "antimeridian, the short way, write 190 for -170."
            for step in long_way[:1]
        ]
        return cls(geometry, source, notes=tuple(notes))

    @classmethod
    def from_polygons(cls, polygons: Polygons, source: str = "geometry") -> Region:
        """The region of polygons in a CRS of their own. Raises BoxError."""
        region = cls.from_geometry(polygons.lonlat, source)
        projected = pyproj.CRS.from_user_input(polygons.crs).is_projected
        own = (polygons.own, polygons.crs) if projected else None
        return replace(region, own=own, notes=(*polygons.notes, *region.notes))

    @classmethod
    def from_file(cls, path: str | Path, layer: str | None = None, where: str | None = None) -> Region:
        """Read any vector file geopandas reads and unite its polygons, or those of a layer that meet a condition.

        Raises LayerError when the file cannot be read or has no CRS, BoxError when it holds no polygon.
        """
        from sdm.files.vectors import read_polygons

        return cls.from_polygons(read_polygons(path, layer, where), str(path))

    def projected(self, crs: str) -> shapely.Geometry:
        """The region in a CRS of a map, with edges that bend as they do on the globe. Raises BoxError."""
        if self.own is not None:
            own = pyproj.CRS.from_user_input(self.own[1])
            target = pyproj.CRS.from_user_input(crs)
            if own == target or (own.to_epsg() is not None and own.to_epsg() == target.to_epsg()):
                return self.own[0]
        return _project(self.geometry, crs)


def _polygons(geometry: shapely.Geometry) -> list[shapely.Polygon]:
    """The polygons of a geometry, repaired, without lines, points and empty areas."""
    if not shapely.is_valid(geometry):
        geometry = shapely.make_valid(geometry)
    parts = [part for part in shapely.get_parts(geometry) if shapely.area(part) > 0]
    return [p for part in parts for p in shapely.get_parts(part) if isinstance(p, shapely.Polygon)]


def _steps_east(polygons: list[shapely.Polygon]) -> np.ndarray:
    """Degrees of longitude between the ends of each edge of polygons, without sign."""
    xy, ring = shapely.get_coordinates(shapely.get_rings(polygons), return_index=True)
    return np.abs(np.diff(xy[:, 0]))[ring[1:] == ring[:-1]]


def _together(polygons: list[shapely.Polygon], geometry: shapely.Geometry) -> shapely.Geometry:
    """Polygons (lon, lat) moved by whole turns to span the fewest degrees; as they are where that is no gain.

    Polygons cut at 180 (Alaska, Fiji, Russia) span the whole globe in plain degrees.
    """
    west, _, east, _ = shapely.bounds(np.array(polygons, dtype=object)).T
    order = np.argsort(west % 360.0)
    starts = (west % 360.0)[order]
    # The farthest east that a polygon before reaches, and how far away the next one begins.
    reached = np.maximum.accumulate(starts + (east - west)[order])
    gaps = np.append(starts[1:], starts[0] + 360.0) - reached
    gaps[:-1] = np.minimum(gaps[:-1], starts[1:] - (reached[-1] - 360.0))
    first = starts[(int(gaps.argmax()) + 1) % len(starts)]
    offsets = (west - first) % 360.0 + first - west
    span = (east + offsets).max() - (west + offsets).min()
    if span > geometry.bounds[2] - geometry.bounds[0] - 1e-9:
        return geometry
    return union_of_valid([_shifted(p, offset) if offset else p for p, offset in zip(polygons, offsets, strict=True)])


def _shifted(geometry: shapely.Geometry, degrees: float) -> shapely.Geometry:
    """A geometry (lon, lat) moved to the east."""
    return shapely.transform(geometry, lambda lonlat: lonlat + np.array([degrees, 0.0]))


@dataclass(frozen=True)
class Tile:
    """One rectangle of a grid: `rows` and `cols` are slices into the full array."""

    index: tuple[int, int]
    rows: slice
    cols: slice

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)."""
        return (self.rows.stop - self.rows.start, self.cols.stop - self.cols.start)


class _PerThread(threading.local):
    """pyproj transformers must not be shared between threads."""

    def __init__(self) -> None:
        self.cache: dict[tuple[str, str], pyproj.Transformer] = {}


_transformers = _PerThread()


def transformer(source: str, target: str) -> pyproj.Transformer:
    """The calling thread's transformer from one CRS to another, cached; coordinates are (x, y) or (lon, lat)."""
    key = (source, target)
    if key not in _transformers.cache:
        _transformers.cache[key] = pyproj.Transformer.from_crs(source, target, always_xy=True)
    return _transformers.cache[key]


@dataclass(frozen=True)
class Grid:
    """The pixels of a map: a GeoBox cut into square tiles, optionally masked to a region.

    `tile_size` is the side of a tile in pixels; edge tiles are smaller. A tile is also a Dask
    chunk and a Zarr chunk.
    """

    geobox: GeoBox
    tile_size: int = 512
    region: Region | None = None
    bbox: tuple[float, float, float, float] = field(default=(0.0, 0.0, 0.0, 0.0))
    """The requested area: (west, south, east, north) in degrees, east unwrapped."""

    def __post_init__(self) -> None:
        if not isinstance(self.tile_size, int) or not 16 <= self.tile_size <= 8192:
            raise RequestError(f"tile size {self.tile_size} is not a whole number in 16..8192 pixels.")

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)."""
        return (int(self.geobox.shape[0]), int(self.geobox.shape[1]))

    @property
    def pixels(self) -> int:
        """Number of pixels."""
        return self.shape[0] * self.shape[1]

    @property
    def _geobox_crs(self) -> CRS:
        if self.geobox.crs is None:
            raise ValueError(f"a grid needs a CRS, not {self.geobox!r}")
        return self.geobox.crs

    @property
    def crs(self) -> str:
        """The CRS as "EPSG:n" where it has a code, else WKT."""
        epsg = self._geobox_crs.to_epsg()
        return f"EPSG:{epsg}" if epsg else self._geobox_crs.to_wkt()

    @property
    def resolution(self) -> float:
        """Pixel side in units of the CRS."""
        return float(self.geobox.affine.a)

    @property
    def is_geographic(self) -> bool:
        """True when the CRS is in degrees."""
        return bool(self._geobox_crs.geographic)

    @property
    def metres_per_unit(self) -> float:
        """Metres in one unit of a projected CRS."""
        return float(pyproj.CRS.from_user_input(self.crs).axis_info[0].unit_conversion_factor or 1.0)

    def tiles(self) -> Iterator[Tile]:
        """All tiles, row by row from the north-west."""
        rows, cols = self.shape
        for i, r in enumerate(range(0, rows, self.tile_size)):
            for j, c in enumerate(range(0, cols, self.tile_size)):
                yield Tile((i, j), slice(r, min(r + self.tile_size, rows)), slice(c, min(c + self.tile_size, cols)))

    @property
    def tile_count(self) -> int:
        """Number of tiles."""
        rows, cols = self.shape
        return -(-rows // self.tile_size) * -(-cols // self.tile_size)

    def xy(self, rows: np.ndarray, cols: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """CRS coordinates of pixel centres; `rows` and `cols` are integer index vectors.

        Returns (x, y), each of shape (len(rows), len(cols)), float64. Computed from the number of
        pixels to the origin of the CRS, never relative to a tile or a box, so that any tiling gives the
        same bits, and so do all grids of one resolution that share the pixel.
        """
        a = self.geobox.affine
        x = (np.asarray(cols, dtype=np.float64) + (_without_noise(a.c / a.a) + 0.5)) * a.a
        y = (np.asarray(rows, dtype=np.float64) + (_without_noise(a.f / a.e) + 0.5)) * a.e
        x, y = np.meshgrid(x, y)
        return x, y

    def lonlat(self, rows: np.ndarray, cols: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(lon, lat) of pixel centres in degrees, each (len(rows), len(cols)), float64.

        Longitude is in [-180, 180). Pixels off the globe (beyond the poles, or outside the domain
        of the projection) are NaN.
        """
        x, y = self.xy(rows, cols)
        if self.crs == WGS84:
            lon, lat = x, y
        else:
            lon, lat = transformer(self.crs, WGS84).transform(x, y)
        lon, lat = np.array(lon, dtype=np.float64), np.array(lat, dtype=np.float64)
        off = ~(np.isfinite(lon) & np.isfinite(lat)) | (np.abs(lat) > 90.0)
        if not self.is_geographic:
            off |= self._outside_projection(x, y, lon, lat)
        lon[off] = np.nan
        lat[off] = np.nan
        return wrap_longitude(lon), lat

    def pixel_size(self, rows: np.ndarray, cols: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(width, height) of pixels in degrees of longitude and latitude, each (len(rows), len(cols)) or a scalar.

        In a projected CRS, those of a square of the pixel's area with sides to the north and the east. A pixel that
        reaches out of the projection has the size that the CRS states.
        """
        if self.is_geographic:
            return np.asarray(self.resolution), np.asarray(self.resolution)
        edge_rows, edge_cols = (np.append(index, index[-1] + 1) - 0.5 for index in (rows, cols))
        lon, lat = self.lonlat(edge_rows, edge_cols)
        middle = np.radians((lat[:-1, :-1] + lat[1:, 1:]) / 2.0)
        shrink = np.maximum(np.cos(middle), 1e-3)
        diagonals = (np.s_[1:, 1:], np.s_[:-1, :-1]), (np.s_[1:, :-1], np.s_[:-1, 1:])
        # Half the product of the diagonals is the area of a quadrangle.
        (e1, n1), (e2, n2) = (
            (((lon[a] - lon[b] + 180.0) % 360.0 - 180.0) * shrink, lat[a] - lat[b]) for a, b in diagonals
        )
        height = np.sqrt(np.abs(e1 * n2 - e2 * n1) / 2.0)
        stated = self.resolution * self.metres_per_unit / (KM_PER_DEGREE * 1000.0)
        height = np.where(np.isfinite(height) & (height > 0.0), height, stated)
        return np.minimum(height / np.nan_to_num(shrink, nan=1.0), 360.0), height

    def _outside_projection(self, x: np.ndarray, y: np.ndarray, lon: np.ndarray, lat: np.ndarray) -> np.ndarray:
        """Boolean, shape of `x`: the position (lon, lat) does not project back to (x, y).

        Outside the outline of a world map (Equal Earth, for one) PROJ may still return coordinates, and
        the globe would be painted twice. What lies outside reaches the edge of any block of pixels, so
        the whole block is tested only where its edge fails.
        """
        forward, tolerance = transformer(WGS84, self.crs), 0.01 * self.resolution

        def fails(part: Any) -> np.ndarray:
            back_x, back_y = forward.transform(lon[part], lat[part])
            with np.errstate(invalid="ignore"):
                return ~((np.abs(back_x - x[part]) <= tolerance) & (np.abs(back_y - y[part]) <= tolerance))

        edges = (np.s_[[0, -1], :], np.s_[:, [0, -1]])
        if any(fails(edge).any() for edge in edges):
            return fails(np.s_[:, :])
        return np.zeros(x.shape, dtype=bool)

    def inside_region(self, tile: Tile) -> np.ndarray | None:
        """Boolean (rows, columns): the pixel centre is in the region; None when there is no region.

        Each pixel centre is tested exactly, not rasterised: the rounding of a rasteriser on a boundary
        depends on the window, and tiles would disagree.
        """
        if self._projected_region is None:
            return None
        geometry = _prepared(self._projected_region)
        rows, cols = np.arange(tile.rows.start, tile.rows.stop), np.arange(tile.cols.start, tile.cols.stop)
        x, y = self.xy(rows, cols)
        corners = shapely.box(x.min(), y.min(), x.max(), y.max())
        if not shapely.intersects(geometry, corners):
            return np.zeros(tile.shape, dtype=bool)
        if shapely.covers(geometry, corners):
            return np.ones(tile.shape, dtype=bool)
        return shapely.intersects_xy(geometry, x, y)

    @cached_property
    def _projected_region(self) -> shapely.Geometry | None:
        return None if self.region is None else self.region.projected(self.crs)


class _Prepared(threading.local):
    """The geometry this thread prepared last: its original and its prepared copy."""

    def __init__(self) -> None:
        self.original: shapely.Geometry | None = None
        self.copy: shapely.Geometry | None = None


_last_prepared = _Prepared()


def _prepared(geometry: shapely.Geometry) -> shapely.Geometry:
    """This thread's prepared copy: GEOS builds its index at first use, and crashes when two threads do so at once."""
    if _last_prepared.original is not geometry:
        copy = shapely.from_wkb(shapely.to_wkb(geometry))
        shapely.prepare(copy)
        _last_prepared.original, _last_prepared.copy = geometry, copy
    return _last_prepared.copy


def wrap_longitude(lon: np.ndarray) -> np.ndarray:
    """Longitude in degrees wrapped into [-180, 180); values already in that range keep their bits."""
    lon = np.asarray(lon, dtype=np.float64)
    wrapped = (lon + 180.0) % 360.0 - 180.0
    # A value just west of -180 rounds to 180.
    wrapped = np.where(wrapped >= 180.0, -180.0, wrapped)
    return np.where((lon >= -180.0) & (lon < 180.0), lon, wrapped)


def parse_crs(crs: str | int) -> str:
    """A CRS string checked to be a map projection or a geographic CRS in degrees; heights are dropped.

    Raises RequestError when PROJ does not know it or it is geocentric, vertical, rotated or in grads.
    """
    try:
        parsed = pyproj.CRS.from_user_input(crs)
    except CRSError as error:
        raise RequestError(
            f"CRS {str(crs)[:80]!r} is not known; give an EPSG code such as EPSG:3338, or WKT."
        ) from error
    if not (parsed.is_geographic or parsed.is_projected) or len(parsed.axis_info) < 2:
        raise RequestError(f"CRS {parsed.name!r} is neither geographic nor projected; a map needs one of them.")
    if len(parsed.axis_info) > 2:
        parsed = parsed.to_2d()
    if parsed.is_geographic and (parsed.is_derived or parsed.axis_info[0].unit_name != "degree"):
        raise RequestError(f"CRS {parsed.name!r} is not in degrees of longitude and latitude; choose another.")
    if {axis.get("axis") for axis in parsed.cs_to_cf()} != {"X", "Y"}:
        raise RequestError(
            f"CRS {parsed.name!r} counts to the {' and the '.join(a.direction for a in parsed.axis_info)}, "
            "which rasters cannot; choose one that counts to the east and the north, such as the UTM zone of the area."
        )
    epsg = parsed.to_epsg()
    return f"EPSG:{epsg}" if epsg else parsed.to_wkt()


def make_grid(
    bbox: BBox | tuple[float, float, float, float] | None = None,
    region: Region | None = None,
    crs: str | int = WGS84,
    resolution: float | None = None,
    tile_size: int = 512,
    max_pixels: int = 100_000_000,
) -> Grid:
    """The grid that covers a box or a region.

    Pixel edges lie on whole multiples of the resolution, so that maps of neighbouring boxes line up; the
    grid covers the box and may extend beyond it by less than one pixel.

    Parameters
    ----------
    bbox
        (west, south, east, north) in degrees; west > east crosses the antimeridian.
    region
        Polygon to map, in place of a box.
    crs
        CRS of the grid: geographic in degrees, or projected.
    resolution
        Pixel side in units of `crs`; by default the finest round number that keeps the map near a megapixel.
    tile_size
        Side of a tile in pixels, 16 to 8192.
    max_pixels
        Largest number of pixels allowed.

    Raises
    ------
    BoxError
        For a box that is not valid or cannot be drawn in the CRS.
    RequestError
        For both or neither of box and region, an unknown CRS, or an unusable resolution.
    TooLargeError
        For a grid of more than `max_pixels`.
    """
    outline, full_circle = _requested_outline(bbox, region)
    crs = parse_crs(crs)
    requested = outline.bounds
    drawn = _project(outline, crs, may_cross_seam=full_circle) if region is None else region.projected(crs)
    bounds = drawn.bounds
    west, south, east, north = bounds
    if not all(map(math.isfinite, bounds)) or not (east > west and north > south):
        raise BoxError(f"the box {requested} cannot be drawn in {_crs_label(crs)}; choose a CRS made for that area.")
    asked, resolution = resolution, _checked_resolution(resolution, east - west, north - south, crs)
    if region is not None and region.own is not None:
        # Edges of another CRS bulge a little. No centre of a pixel lies in so thin a strip.
        slack = min(0.01 * resolution, (east - west) / 4.0, (north - south) / 4.0)
        bounds = west + slack, south + slack, east - slack, north - slack
    grid = Grid(_aligned_geobox(bounds, resolution, crs, max_pixels), tile_size, region, requested)
    return grid if region is None else _with_a_centre(grid, region, bounds, max_pixels, may_be_finer=asked is None)


def _with_a_centre(
    grid: Grid, region: Region, bounds: tuple[float, float, float, float], max_pixels: int, *, may_be_finer: bool
) -> Grid:
    """A grid of which the centre of some pixel lies in a region: as it is, or finer if it may be. Raises BoxError."""
    west, south, east, north = bounds
    finer, resolution = grid, grid.resolution
    for _ in range(_FINER):
        if any(inside is None or inside.any() for inside in map(finer.inside_region, finer.tiles())):
            if finer is grid or may_be_finer:
                return finer
            break
        if (east - west) * (north - south) > max_pixels * (resolution / 2.0) ** 2:
            break
        resolution /= 2.0
        finer = replace(grid, geobox=_aligned_geobox(bounds, resolution, grid.crs, max_pixels))
    raise BoxError(
        f"no pixel centre lies in region {region.source} at resolution {grid.resolution:g}; give a finer --resolution, "
        f"for example {resolution:g}."
    )


def _requested_outline(
    bbox: BBox | tuple[float, float, float, float] | None, region: Region | None
) -> tuple[shapely.Geometry, bool]:
    """The area to cover, (lon, lat), and whether it is a box of all longitudes.

    Such a box fills a world map, wherever the seam of the projection lies.
    """
    if bbox is not None and region is None:
        bbox = BBox.of(bbox)
        return _outline(bbox), bbox.width > 359.99
    if region is not None and bbox is None:
        return region.geometry, False
    raise RequestError("give either a bbox (WEST SOUTH EAST NORTH) or a region, and not both.")


def _checked_resolution(resolution: float | None, width: float, height: float, crs: str) -> float:
    """The resolution, or the default one, for a map of the given size; all in units of `crs`."""
    info = pyproj.CRS.from_user_input(crs)
    if resolution is None:
        resolution = default_resolution(width, height, info)
    try:
        resolution = float(resolution)
    except (TypeError, ValueError):
        raise RequestError(f"resolution {str(resolution)[:40]!r} is not a number.") from None
    if not math.isfinite(resolution) or resolution <= 0:
        raise RequestError(f"resolution {resolution:g} must be a positive number in units of {_crs_label(crs)}.")
    extent = max(width, height)
    if resolution > 2 * extent:
        unit = info.axis_info[0].unit_name
        raise RequestError(
            f"resolution {resolution:g} {unit} is larger than the whole map ({extent:g} {unit}); "
            f"resolution is in units of {_crs_label(crs)}."
        )
    return resolution


def _aligned_geobox(bounds: tuple[float, float, float, float], resolution: float, crs: str, max_pixels: int) -> GeoBox:
    """The GeoBox that covers (left, bottom, right, top), its pixel edges on multiples of the resolution."""
    west, south, east, north = bounds
    # Checked before the integer arithmetic: a resolution of 1e-300 must not overflow.
    estimate = ((east - west) / resolution) * ((north - south) / resolution)
    if estimate > 4 * max(max_pixels, 1):
        raise _too_large(estimate, resolution, max_pixels)
    first_column, last_column = _snap(west, east, resolution)
    first_row, last_row = _snap(-north, -south, resolution)
    columns, rows = last_column - first_column, last_row - first_row
    if columns * rows > max_pixels:
        raise _too_large(columns * rows, resolution, max_pixels)
    # Origins as index * resolution, rounded to the precision of a float (0.05 * 3 is not 0.15).
    origin_x = _rounded_origin(first_column * resolution, resolution)
    origin_y = _rounded_origin(-first_row * resolution, resolution)
    return GeoBox((rows, columns), Affine(resolution, 0.0, origin_x, 0.0, -resolution, origin_y), crs)


def _outline(bbox: BBox) -> shapely.Polygon:
    """A box as a polygon in unwrapped degrees, (lon, lat)."""
    return shapely.box(bbox.west, bbox.south, bbox.unwrapped_east, bbox.north)


def default_resolution(width: float, height: float, crs: pyproj.CRS) -> float:
    """The finest of 1, 2, 2.5, 5 x 10^n (CRS units) with at most `DEFAULT_PIXELS` pixels.

    Not finer than 0.01 degree or 1 km, beyond which the bundled layers hold no more detail, unless the map would have
    fewer than `_FEWEST_PIXELS` in a row.
    """
    to_metre = crs.axis_info[0].unit_conversion_factor or 1.0
    floor = FINEST_DEFAULT_DEGREES if crs.is_geographic else FINEST_DEFAULT_METRES / to_metre
    floor = min(floor, max(width, height) / _FEWEST_PIXELS)
    exponent = math.floor(math.log10(floor))
    while True:
        for mantissa in (1.0, 2.0, 2.5, 5.0):
            step = float(f"{mantissa}e{exponent}")
            if step < floor * (1 - 1e-9):
                continue
            if math.ceil(width / step) * math.ceil(height / step) <= DEFAULT_PIXELS:
                return step
        exponent += 1


def _snap(low: float, high: float, step: float) -> tuple[int, int]:
    """Indices of the pixel edges on or outside [low, high], with a tolerance of 1e-6 pixel for rounding errors."""
    return math.floor(low / step + 1e-6), max(math.ceil(high / step - 1e-6), math.floor(low / step + 1e-6) + 1)


def _without_noise(pixels: float) -> float:
    """A number of pixels, rounded if it is an integer but for rounding errors."""
    nearest = round(pixels)
    return float(nearest) if abs(pixels - nearest) < 1e-6 else pixels


def _rounded_origin(value: float, step: float) -> float:
    """A coordinate rounded to 12 significant digits, counted from the larger of it and the pixel side."""
    digits = max(0, 12 - math.floor(math.log10(max(abs(value), step))) - 1)
    return round(value, digits)


def _project(geometry: shapely.Geometry, crs: str, may_cross_seam: bool = False) -> shapely.Geometry:
    """A WGS84 geometry (lon, lat) in another CRS, its edges densified so that they can bend.

    Raises BoxError where it lies outside the domain of the CRS, would be stretched beyond all bounds, or
    (unless `may_cross_seam`) is cut by the seam of the projection.
    """
    if crs == WGS84:
        return geometry
    west, south, east, north = geometry.bounds
    dense = shapely.segmentize(geometry, max(max(east - west, north - south) / 1000.0, 1e-6))
    to_crs = transformer(WGS84, crs)
    info = pyproj.CRS.from_user_input(crs)

    def forward(lonlat: np.ndarray) -> np.ndarray:
        x, y = to_crs.transform(lonlat[:, 0], lonlat[:, 1])
        if info.is_geographic:  # PROJ may wrap 190 to -170; keep the turn of the area
            x = x + 360.0 * np.round((lonlat[:, 0] - x) / 360.0)
        return np.column_stack([x, y])

    try:
        projected = shapely.transform(dense, forward)
    except (ProjError, ValueError) as error:
        raise BoxError(f"the area cannot be drawn in {_crs_label(crs)}: {error}") from error
    area = f"the area {west:g} {south:g} {east:g} {north:g}"
    if not np.isfinite(shapely.get_coordinates(projected)).all():
        raise BoxError(f"{area} reaches outside the domain of {_crs_label(crs)}; choose a CRS made for that area.")
    if info.is_projected:
        _check_distortion(projected, info.axis_info[0].unit_conversion_factor or 1.0, may_cross_seam, area, crs)
    return projected if shapely.is_valid(projected) else shapely.make_valid(projected)


def _check_distortion(projected: shapely.Geometry, metres: float, may_cross_seam: bool, area: str, crs: str) -> None:
    """Raise BoxError for a projected area larger than the Earth or cut by a seam; `metres` in one unit of the CRS."""
    left, bottom, right, top = (v * metres for v in projected.bounds)
    extent = max(right - left, top - bottom)
    if extent > LARGEST_MAP_METRES:
        raise BoxError(
            f"{area} is stretched to {extent / 1000.0:.3g} km in "
            f"{_crs_label(crs)}, larger than the Earth; leave out the pole where that CRS has no "
            "place for it (Web Mercator: latitudes within -85..85), or choose another CRS."
        )
    if not may_cross_seam and _longest_step(projected) * metres > LARGEST_STEP_METRES:
        raise BoxError(
            f"{area} crosses the line along which {_crs_label(crs)} is cut open, often 180 degrees; "
            "choose a CRS centred on the area, for example EPSG:3832 in the Pacific, or leave --crs out."
        )


def _longest_step(geometry: shapely.Geometry) -> float:
    """Greatest distance between two successive vertices of any ring, in units of the CRS."""
    parts = shapely.get_parts(geometry)
    rings = shapely.get_rings(parts[shapely.get_type_id(parts) == 3])
    xy, ring = shapely.get_coordinates(rings, return_index=True)
    steps = np.hypot(*np.diff(xy, axis=0).T)[ring[1:] == ring[:-1]]
    return float(steps.max(initial=0.0))


def _crs_label(crs: str) -> str:
    return crs if len(crs) < 20 else pyproj.CRS.from_user_input(crs).name


def _too_large(pixels: float, resolution: float, limit: int) -> TooLargeError:
    return TooLargeError(
        f"the map would have {pixels:.3g} pixels at resolution {resolution:g}, more than the limit of "
        f"{limit:,}; choose a coarser --resolution, a smaller box, or raise --max-pixels."
    )


def as_region(
    region: Region | str | Path | GeoDataFrame | shapely.Geometry | None,
    layer: str | None = None,
    where: str | None = None,
) -> Region | None:
    """A region from a vector file, a GeoDataFrame or a WGS84 geometry (lon, lat). Raises SdmError subclasses.

    `layer`, `where`: of a file, the layer and the condition that its features must meet.
    """
    if region is None or isinstance(region, Region):
        return region
    if isinstance(region, str | Path):
        return Region.from_file(region, layer, where)
    if layer is not None or where is not None:
        raise RequestError("layer and where choose from a file; choose from the GeoDataFrame before it is given.")
    if isinstance(region, shapely.Geometry):
        return Region.from_geometry(region)
    if not hasattr(region, "to_crs"):  # to import GeoDataFrame would load geopandas
        raise RequestError(f"region {region!r} is not a file, a GeoDataFrame or a geometry.")
    if region.crs is None:
        raise BoxError("the region has no CRS; set one, for example with set_crs(4326).")
    from sdm.files.vectors import united

    return Region.from_polygons(united(region.geometry))
