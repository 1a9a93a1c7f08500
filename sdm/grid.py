"""Where the pixels are: box, region, pixel grid, tiles, and pixel centres on the globe.

Coordinate order. A box is always `(west, south, east, north)` in degrees, WGS84. Functions that
return positions return `(lon, lat)` in degrees, longitude wrapped into [-180, 180). Arrays of a
grid are indexed `[row, column]`, row 0 in the north.

A box whose west is greater than its east crosses the antimeridian. Its grid runs on past 180
(170 .. 190) so that it stays one raster; only the positions handed to encoders and layers wrap.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyproj
import shapely
from affine import Affine
from odc.geo.geobox import GeoBox
from pyproj.exceptions import CRSError, ProjError

from sdm.errors import BoxError, RequestError, TooLargeError
from sdm.request import BBox

if TYPE_CHECKING:
    from pathlib import Path

WGS84 = "EPSG:4326"
DEFAULT_PIXELS = 1_100_000
"""The default resolution is the finest round number that keeps a map at or below this many pixels."""
FINEST_DEFAULT_DEGREES = 0.01
FINEST_DEFAULT_METRES = 1000.0
LARGEST_MAP_METRES = 1.2e8
"""Three times round the Earth; a projected area larger than this has run off to infinity at a pole."""
LARGEST_STEP_METRES = 1.0e7
"""A projected outline that leaps this far between two near points has been torn apart."""


@dataclass(frozen=True)
class Region:
    """A polygon to map: its extent sets the grid, its outside is masked.

    `geometry` is in WGS84, (lon, lat), possibly past 180 where it crosses the antimeridian.
    """

    geometry: shapely.Geometry
    source: str = "geometry"

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """(west, south, east, north) in unwrapped degrees."""
        return tuple(self.geometry.bounds)

    @classmethod
    def from_geometry(cls, geometry: shapely.Geometry, source: str = "geometry") -> Region:
        """Check and repair a WGS84 geometry, (lon, lat); raises BoxError if it holds no polygon."""
        if not np.isfinite(shapely.get_coordinates(geometry)).all():
            raise BoxError(f"region {source} has coordinates that are not finite numbers.")
        if not shapely.is_valid(geometry):
            geometry = shapely.make_valid(geometry)
        parts = [g for g in shapely.get_parts(geometry, return_index=False) if shapely.area(g) > 0]
        flat = [p for part in parts for p in shapely.get_parts(part) if p.geom_type == "Polygon"]
        if not flat:
            raise BoxError(f"region {source} holds no polygon with an area; give polygons to map inside.")
        geometry = shapely.union_all(flat)
        west, south, east, north = geometry.bounds
        if south < -90.001 or north > 90.001 or west < -360.0 or east > 360.0 or east - west > 360.001:
            raise BoxError(
                f"region {source} has coordinates outside the globe (longitude {west:g}..{east:g}, latitude "
                f"{south:g}..{north:g}); its CRS is probably not the one it names."
            )
        if east - west > 180.0:
            # Polygons cut at 180 (Alaska, Fiji, Russia) span the whole globe in plain degrees;
            # moving the western half by 360 keeps them together.
            shifted = shapely.union_all(
                [
                    shapely.transform(p, lambda xy: xy + np.array([360.0, 0.0])) if p.bounds[2] <= 0.0 else p
                    for p in flat
                ]
            )
            if shifted.bounds[2] - shifted.bounds[0] < east - west:
                geometry = shifted
        turn = math.floor((geometry.bounds[0] + 180.0) / 360.0)
        if turn:  # longitudes 190..230 are -170..-130
            geometry = shapely.transform(geometry, lambda xy: xy - [360.0 * turn, 0.0])
        return cls(geometry, source)

    @classmethod
    def from_file(cls, path: str | Path) -> Region:
        """Read any vector file geopandas reads and unite its polygons.

        Raises LayerError when the file cannot be read or has no CRS, BoxError when it holds no polygon.
        """
        from sdm.files.vectors import read_polygons

        return cls.from_geometry(read_polygons(path), str(path))


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
    """A cached transformer between two CRS strings, x/lon first, of the calling thread."""
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
    """What was asked for: (west, south, east, north), degrees, east unwrapped."""

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
    def crs(self) -> str:
        """The CRS as "EPSG:n" where it has a code, else WKT."""
        epsg = self.geobox.crs.to_epsg()
        return f"EPSG:{epsg}" if epsg else self.geobox.crs.to_wkt()

    @property
    def resolution(self) -> float:
        """Pixel side in units of the CRS."""
        return float(self.geobox.affine.a)

    @property
    def is_geographic(self) -> bool:
        """True when the CRS is in degrees."""
        return bool(self.geobox.crs.geographic)

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
        x = (np.asarray(cols, dtype=np.float64) + (_whole(a.c / a.a) + 0.5)) * a.a
        y = (np.asarray(rows, dtype=np.float64) + (_whole(a.f / a.e) + 0.5)) * a.e
        return np.broadcast_arrays(*np.meshgrid(x, y))

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
            off |= self._beyond_the_map(x, y, lon, lat)
        lon[off] = np.nan
        lat[off] = np.nan
        return wrap_longitude(lon), lat

    def _beyond_the_map(self, x: np.ndarray, y: np.ndarray, lon: np.ndarray, lat: np.ndarray) -> np.ndarray:
        """Boolean: the position does not project back to where it came from.

        Outside its outline a world map (Equal Earth, for one) may still be given coordinates, and the
        globe would be painted twice. What lies outside reaches the rim of any block of pixels, so
        the rim decides whether the whole block must be looked at.
        """
        forward, tolerance = transformer(WGS84, self.crs), 0.01 * self.resolution

        def astray(part) -> np.ndarray:
            back_x, back_y = forward.transform(lon[part], lat[part])
            with np.errstate(invalid="ignore"):
                return ~((np.abs(back_x - x[part]) <= tolerance) & (np.abs(back_y - y[part]) <= tolerance))

        rim = (np.s_[[0, -1], :], np.s_[:, [0, -1]])
        if any(astray(part).any() for part in rim):
            return astray(np.s_[:, :])
        return np.zeros(x.shape, dtype=bool)

    def inside_region(self, tile: Tile) -> np.ndarray | None:
        """Boolean (rows, columns): pixel centre in the region; None when there is no region.

        Decided per pixel centre by the exact predicate, not by a rasteriser, whose rounding on a
        boundary depends on the window and would make tiles disagree.
        """
        if self.region is None:
            return None
        geometry = _prepared(self._region_in_crs())
        rows, cols = np.arange(tile.rows.start, tile.rows.stop), np.arange(tile.cols.start, tile.cols.stop)
        x, y = self.xy(rows, cols)
        corners = shapely.box(x.min(), y.min(), x.max(), y.max())
        if not shapely.intersects(geometry, corners):
            return np.zeros(tile.shape, dtype=bool)
        if shapely.covers(geometry, corners):
            return np.ones(tile.shape, dtype=bool)
        return shapely.intersects_xy(geometry, x, y)

    def _region_in_crs(self) -> shapely.Geometry:
        key = "_region_crs"
        cached = self.__dict__.get(key)
        if cached is None:
            cached = _project(self.region.geometry, self.crs)
            object.__setattr__(self, key, cached)
        return cached


_kept = threading.local()


def _prepared(geometry: shapely.Geometry) -> shapely.Geometry:
    """This thread's own prepared copy: GEOS builds its indexes at first use, and crashes when two threads do."""
    if getattr(_kept, "of", None) is not geometry:
        copy = shapely.from_wkb(shapely.to_wkb(geometry))
        shapely.prepare(copy)
        _kept.of, _kept.copy = geometry, copy
    return _kept.copy


def wrap_longitude(lon: np.ndarray) -> np.ndarray:
    """Longitude in degrees brought into [-180, 180); leaves values already there untouched."""
    lon = np.asarray(lon, dtype=np.float64)
    wrapped = (lon + 180.0) % 360.0 - 180.0
    # A hair west of -180 rounds to 180.
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

    `bbox` is (west, south, east, north) in degrees; `resolution` is in units of `crs`, by default
    the finest round number that keeps the map near a megapixel. Pixel edges lie on whole multiples
    of the resolution, so maps of neighbouring boxes line up; the grid covers the box and may reach
    past it by less than one pixel.

    Raises BoxError, RequestError, and TooLargeError when the grid has more than `max_pixels`.
    """
    if (bbox is None) == (region is None):
        raise RequestError("give either a bbox (WEST SOUTH EAST NORTH) or a region, and not both.")
    if bbox is not None:
        bbox = BBox.of(bbox)
    crs = parse_crs(crs)
    outline = _outline(bbox) if bbox is not None else region.geometry
    asked = outline.bounds
    # A box right round the globe fills a world map, wherever that map is cut open.
    whole_turn = bbox is not None and bbox.width > 359.99
    west, south, east, north = asked if crs == WGS84 else _project(outline, crs, whole_turn).bounds
    if not all(map(math.isfinite, (west, south, east, north))) or not (east > west and north > south):
        raise BoxError(f"the box {asked} cannot be drawn in {_crs_label(crs)}; choose a CRS made for that area.")
    info = pyproj.CRS.from_user_input(crs)
    if resolution is None:
        resolution = default_resolution(east - west, north - south, info)
    try:
        resolution = float(resolution)
    except (TypeError, ValueError):
        raise RequestError(f"resolution {str(resolution)[:40]!r} is not a number.") from None
    if not math.isfinite(resolution) or resolution <= 0:
        raise RequestError(f"resolution {resolution:g} must be a positive number in units of {_crs_label(crs)}.")
    extent = max(east - west, north - south)
    if resolution > 2 * extent:
        unit = info.axis_info[0].unit_name
        raise RequestError(
            f"resolution {resolution:g} {unit} is larger than the whole map ({extent:g} {unit}); "
            f"resolution is in units of {_crs_label(crs)}."
        )
    # Guard before the integer arithmetic: a resolution of 1e-300 must not overflow.
    estimate = ((east - west) / resolution) * ((north - south) / resolution)
    if estimate > 4 * max(max_pixels, 1):
        raise _too_large(estimate, resolution, max_pixels)
    c0, c1 = _snap(west, east, resolution)
    r0, r1 = _snap(-north, -south, resolution)
    cols, rows = c1 - c0, r1 - r0
    if cols * rows > max_pixels:
        raise _too_large(cols * rows, resolution, max_pixels)
    # Origins as index * resolution, rounded to where float noise ends (0.05 * 3 is not 0.15).
    origin_x, origin_y = _clean(c0 * resolution, resolution), _clean(-r0 * resolution, resolution)
    affine = Affine(resolution, 0.0, origin_x, 0.0, -resolution, origin_y)
    return Grid(GeoBox((rows, cols), affine, crs), tile_size, region, asked)


def _outline(bbox: BBox) -> shapely.Polygon:
    """A box as a polygon in unwrapped degrees, (lon, lat)."""
    return shapely.box(bbox.west, bbox.south, bbox.unwrapped_east, bbox.north)


def default_resolution(width: float, height: float, crs: pyproj.CRS) -> float:
    """The finest of 1, 2, 2.5, 5 x 10^n (CRS units) with at most `DEFAULT_PIXELS` pixels.

    Never finer than 0.01 degree or 1 km, beyond which the bundled layers hold no more detail.
    """
    to_metre = crs.axis_info[0].unit_conversion_factor or 1.0
    floor = FINEST_DEFAULT_DEGREES if crs.is_geographic else FINEST_DEFAULT_METRES / to_metre
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
    """Indices of the pixel edges on or outside [low, high], forgiving float noise of 1e-6 pixel."""
    return math.floor(low / step + 1e-6), max(math.ceil(high / step - 1e-6), math.floor(low / step + 1e-6) + 1)


def _whole(pixels: float) -> float:
    """A number of pixels without float noise, where it is a whole number at all."""
    near = round(pixels)
    return float(near) if abs(pixels - near) < 1e-6 else pixels


def _clean(value: float, step: float) -> float:
    digits = max(0, 12 - math.floor(math.log10(max(abs(value), step))) - 1)
    return round(value, digits)


def _project(geometry: shapely.Geometry, crs: str, may_tear: bool = False) -> shapely.Geometry:
    """A WGS84 geometry (lon, lat) in another CRS, its edges densified so that they bend.

    Raises BoxError where the CRS has no place for it, stretches it without bound or (unless `may_tear`)
    tears it apart.
    """
    if crs == WGS84:
        return geometry
    west, south, east, north = geometry.bounds
    area = f"the area {west:g} {south:g} {east:g} {north:g}"
    dense = shapely.segmentize(geometry, max(max(east - west, north - south) / 1000.0, 1e-6))
    to_crs = transformer(WGS84, crs)
    info = pyproj.CRS.from_user_input(crs)

    def forward(xy: np.ndarray) -> np.ndarray:
        x, y = to_crs.transform(xy[:, 0], xy[:, 1])
        if info.is_geographic:  # PROJ may wrap 190 to -170; stay on the branch of the area
            x = x + 360.0 * np.round((xy[:, 0] - x) / 360.0)
        return np.column_stack([x, y])

    try:
        projected = shapely.transform(dense, forward)
    except (ProjError, ValueError) as error:
        raise BoxError(f"the area cannot be drawn in {_crs_label(crs)}: {error}") from error
    if not np.isfinite(shapely.get_coordinates(projected)).all():
        raise BoxError(f"{area} reaches outside the domain of {_crs_label(crs)}; choose a CRS made for that area.")
    if info.is_projected:
        metres = info.axis_info[0].unit_conversion_factor or 1.0
        left, bottom, right, top = (v * metres for v in projected.bounds)
        if max(right - left, top - bottom) > LARGEST_MAP_METRES:
            raise BoxError(
                f"{area} is stretched to {max(right - left, top - bottom) / 1000.0:.3g} km in "
                f"{_crs_label(crs)}, larger than the Earth; leave out the pole where that CRS has no "
                "place for it (Web Mercator: latitudes within -85..85), or choose another CRS."
            )
        if not may_tear and _longest_step(projected) * metres > LARGEST_STEP_METRES:
            raise BoxError(
                f"{area} crosses the line along which {_crs_label(crs)} is cut open, often 180 degrees; "
                "choose a CRS centred on the area, for example EPSG:3832 in the Pacific, or leave --crs out."
            )
    return projected if shapely.is_valid(projected) else shapely.make_valid(projected)


def _longest_step(geometry: shapely.Geometry) -> float:
    """Greatest distance between two successive vertices of any ring."""
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


def region_of(region: Any) -> Region | None:
    """A region from a vector file, a GeoDataFrame or a WGS84 geometry (lon, lat). Raises SdmError subclasses."""
    if region is None or isinstance(region, Region):
        return region
    if isinstance(region, str | Path):
        return Region.from_file(region)
    import shapely

    from sdm.files.vectors import united

    if hasattr(region, "to_crs"):
        if region.crs is None:
            raise BoxError("the region has no CRS; set one, for example with set_crs(4326).")
        return Region.from_geometry(united(region.geometry))
    if not isinstance(region, shapely.Geometry):
        raise RequestError(f"region {region!r} is not a file, a GeoDataFrame or a geometry.")
    return Region.from_geometry(region)
