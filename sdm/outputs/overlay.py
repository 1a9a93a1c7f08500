"""The map as an image in Web Mercator, the projection of web maps.

Leaflet stretches an image between the Mercator positions of its corners: an unwarped geographic grid would
show 60 N at 72 N. So maps are warped here, into a continuous strip of longitudes that may exceed 180, with
one byte per pixel: 0 for not modelled, 1 to 251 for the valid range from low to high.
"""

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from affine import Affine
from odc.geo.geobox import GeoBox

from sdm.outputs.blocks import Source, iter_blocks
from sdm.outputs.geobox import geobox_crs, geographic_bounds
from sdm.outputs.style import colours

MAX_LATITUDE = 85.0511287798066
"""Northern limit of Web Mercator in degrees."""

LEVELS = 251
"""Byte values for the valid range: 250 steps, each 0.004 of a probability and of a different colour."""

RADIUS = 6378137.0
"""Radius of the sphere of Web Mercator in metres."""
_MIN_SIZE = 1000  # pixels: smaller maps are enlarged, or their rows would be displaced by up to half a pixel


@dataclass(frozen=True)
class Overlay:
    """An image of shape (y, x) and its bounds in degrees; `east` may exceed 180, east - west <= 360."""

    levels: npt.NDArray[np.uint8]
    west: float
    south: float
    east: float
    north: float

    def png_url(self) -> str:
        """The image as a data URL."""
        return _data_url(png(self.levels))


@dataclass(frozen=True)
class Flags:
    """Which of some layers are above their limits, on the pixels of an `Overlay`."""

    bits: npt.NDArray[np.uint8]
    """(y, x): bit k is set where the k-th layer is above its limit."""

    def png_url(self) -> str:
        """A data URL of an image that is opaque where any bit is set, and whose red channel is the bits."""
        from PIL import Image

        image = Image.fromarray(self.bits)
        image.putpalette(bytes(channel for value in range(256) for channel in (value, 0, 0)))
        buffer = io.BytesIO()
        image.save(buffer, "PNG", transparency=0, optimize=True)
        return _data_url(buffer.getvalue())


def _data_url(image: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(image).decode("ascii")


def png(image_levels: npt.NDArray[np.uint8]) -> bytes:
    """An image (y, x) of `levels` as a PNG with a palette whose entry 0 is transparent."""
    from PIL import Image

    image = Image.fromarray(image_levels)
    image.putpalette(palette().tobytes())
    buffer = io.BytesIO()
    image.save(buffer, "PNG", transparency=0, compress_level=7)
    return buffer.getvalue()


def palette() -> npt.NDArray[np.uint8]:
    """RGB of each byte value, shape (256, 3); 0 and values above LEVELS are not used."""
    table = np.zeros((256, 3), np.uint8)
    table[1 : LEVELS + 1] = colours(np.linspace(0, 1, LEVELS))
    return table


def warp(
    source: Source, geobox: GeoBox, valid_range: tuple[float, float] = (0.0, 1.0), max_size: int = 2000
) -> Overlay | None:
    """Warp a map to Web Mercator.

    Parameters
    ----------
    source
        The map, shape (y, x).
    geobox
        Its grid.
    valid_range
        Values of the first and the last level.
    max_size
        Largest side of the image in pixels; larger maps are averaged over their modelled pixels.

    Returns
    -------
    Overlay or None
        None if the map lies entirely beyond the latitudes of Web Mercator.
    """
    extent = span(geobox)
    if extent is None:
        return None
    return Overlay(levels(_warped(source, geobox, max_size, extent), valid_range), *extent[1:])


def warp_flags(
    sources: Sequence[Source], limits: Sequence[float], geobox: GeoBox, max_size: int = 2000
) -> Flags | None:
    """Where layers of a map are above their limits: on the pixels of `warp`, with the same averages.

    Parameters
    ----------
    sources : layers of shape (y, x), at most 8.
    limits : one per layer.
    geobox, max_size : as of `warp`.

    Returns
    -------
    None if the map lies entirely beyond the latitudes of Web Mercator.
    """
    extent = span(geobox)
    if extent is None:
        return None
    flags = [_warped(source, geobox, max_size, extent) > limit for source, limit in zip(sources, limits, strict=True)]
    return Flags(np.packbits(flags, axis=0, bitorder="little")[0])


def _warped(
    source: Source, geobox: GeoBox, max_size: int, extent: tuple[float, float, float, float, float]
) -> npt.NDArray[np.float32]:
    """Values of a map in Web Mercator (y, x); `extent` as from `span`."""
    import rasterio
    from rasterio.warp import Resampling, reproject

    centre, west, south, east, north = extent
    values, grid = _coarsened(source, geobox, max_size)

    # Mercator metres from the central longitude. A geographic grid is shifted so that this is zero; any other
    # is warped to a Mercator with its origin there. In both cases longitudes are continuous.
    left, right = (math.radians(edge - centre) * RADIUS for edge in (west, east))
    bottom, top = (mercator(edge) for edge in (south, north))
    transform, target = grid.affine, _mercator_crs(centre)
    if geobox_crs(geobox).geographic:
        a, b, c, d, e, f, *_ = transform
        transform, target = Affine(a, b, c - centre, d, e, f), _mercator_crs(0)

    scale = _scale(grid, right - left, top - bottom, max_size)
    width, height = (max(1, round(length * scale)) for length in (right - left, top - bottom))
    target_transform = Affine((right - left) / width, 0, left, 0, (bottom - top) / height, top)
    # Means where pixels are merged; where a pixel becomes several, its own value.
    shrinks = width * height < 0.9 * grid.width * grid.height
    warped = np.full((height, width), np.nan, dtype=np.float32)
    with rasterio.Env():
        reproject(
            values,
            warped,
            src_transform=transform,
            src_crs=str(grid.crs),
            src_nodata=np.nan,
            dst_transform=target_transform,
            dst_crs=target,
            dst_nodata=np.nan,
            resampling=Resampling.average if shrinks else Resampling.nearest,
            warp_mem_limit=64,
        )
    return warped


def levels(values: npt.NDArray[np.float32], valid_range: tuple[float, float]) -> npt.NDArray[np.uint8]:
    """Byte values of an image from values of any shape: 0 for NaN, else 1 to LEVELS over the valid range."""
    low, high = valid_range
    steps = 1 + np.rint(np.clip((values - low) / (high - low), 0, 1) * (LEVELS - 1))
    return np.where(np.isnan(values), 0, steps).astype(np.uint8)


def mercator(latitude: float) -> float:
    """Northing in metres of a latitude in degrees on the sphere of Web Mercator."""
    return RADIUS * math.asinh(math.tan(math.radians(latitude)))


def _mercator_crs(centre: float) -> str:
    if centre == 0:
        return "EPSG:3857"
    # GDAL would drop the origin of a modified EPSG:3857; it uses this definition as it is.
    return f"+proj=merc +R={RADIUS:.0f} +lon_0={centre} +units=m +nadgrids=@null +wktext +no_defs"


def _scale(grid: GeoBox, width: float, height: float, max_size: int) -> float:
    """Output pixels per Mercator metre: about one per source pixel, an integer multiple for small maps."""
    # Columns of a geographic grid stay columns, so their number is kept; for any other grid, the diagonal's length.
    diagonal = math.hypot(*grid.shape) / math.hypot(width, height)
    scale = grid.width / width if geobox_crs(grid).geographic else diagonal
    scale *= math.ceil(_MIN_SIZE / max(width * scale, height * scale))
    return min(scale, max_size / max(width, height))


def _coarsened(source: Source, geobox: GeoBox, max_size: int) -> tuple[npt.NDArray[np.float32], GeoBox]:
    """Means over squares of pixels, with less than twice `max_size` on a side, and their grid."""
    factor = max(1, max(geobox.shape) // max_size)
    height, width = (-(-length // factor) for length in geobox.shape)
    if factor == 1:
        result = np.empty((height, width), dtype=np.float32)
        for rows, columns, values in iter_blocks(source):
            result[rows, columns] = values
        return result, geobox
    total = np.zeros((height, width), dtype=np.float32)
    count = np.zeros((height, width), dtype=np.float32)
    for rows, columns, values in iter_blocks(source):
        valid = ~np.isnan(values)
        target, starts = [], []
        for part in (rows, columns):
            first, last = part.start // factor, (part.stop - 1) // factor
            target.append(slice(first, last + 1))
            starts.append(np.maximum(np.arange(first, last + 1) * factor - part.start, 0))
        for sums, addend in ((total, np.where(valid, values, 0)), (count, valid.astype(np.float32))):
            sums[tuple(target)] += np.add.reduceat(np.add.reduceat(addend, starts[0], axis=0), starts[1], axis=1)
    with np.errstate(invalid="ignore"):
        means = total / count  # 0 / 0 = NaN where nothing is modelled
    a, b, left, d, e, top = geobox.affine[:6]
    coarse = Affine(a * factor, b * factor, left, d * factor, e * factor, top)
    return means, GeoBox((height, width), coarse, geobox.crs)


def span(geobox: GeoBox) -> tuple[float, float, float, float, float] | None:
    """Central longitude (0 unless the map crosses 180), west, south, east, north in degrees.

    Longitudes are continuous, so east may exceed 180; latitudes are clipped to those of Web Mercator. None
    if the map lies entirely beyond them.
    """
    west, south, east, north = geographic_bounds(geobox)
    south, north = max(south, -MAX_LATITUDE), min(north, MAX_LATITUDE)
    if not south < north:
        return None
    crosses = west < -180 or east > 180
    return (round((west + east) / 2) if crosses else 0), west, south, east, north
