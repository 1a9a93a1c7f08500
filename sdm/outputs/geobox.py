"""The CRS of a GeoBox, which odc-geo allows to be missing, and its bounds in degrees."""

import numpy as np
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox


def geobox_crs(geobox: GeoBox) -> CRS:
    """The CRS of a grid; raises ValueError where it has none."""
    if geobox.crs is None:
        raise ValueError(f"a map needs a grid with a CRS, not {geobox!r}")
    return geobox.crs


def geographic_bounds(geobox: GeoBox) -> tuple[float, float, float, float]:
    """West, south, east, north in degrees, of WGS84 or the grid's own; across 180 degrees east exceeds 180."""
    if geobox_crs(geobox).geographic:
        box = geobox.extent.boundingbox
        return box.left, box.bottom, box.right, box.top
    return _projected_bounds(geobox)


def _projected_bounds(geobox: GeoBox) -> tuple[float, float, float, float]:
    from pyproj import Transformer

    geographic = Transformer.from_crs(geobox_crs(geobox).proj, "EPSG:4326", always_xy=True)
    columns, rows = np.meshgrid(np.linspace(0, geobox.width, 257), np.linspace(0, geobox.height, 257))
    longitudes, latitudes = geographic.transform(*geobox.pix2wld(columns, rows))
    known = np.isfinite(longitudes) & np.isfinite(latitudes)
    longitudes, latitudes = np.sort(longitudes[known] % 360), latitudes[known]
    if not longitudes.size:
        return -180.0, 0.0, 180.0, 0.0
    south, north = float(latitudes.min()), float(latitudes.max())
    for pole in (-90.0, 90.0):
        column, row = geobox.wld2pix(*geographic.transform(0.0, pole, direction="INVERSE"))
        if 0 <= column <= geobox.width and 0 <= row <= geobox.height:
            return -180.0, min(south, pole), 180.0, max(north, pole)
    # The map covers all longitudes but the widest gap between those of its pixels.
    gaps = np.diff(longitudes, append=longitudes[0] + 360)
    widest = int(gaps.argmax())
    if gaps[widest] < 5:
        return -180.0, south, 180.0, north
    west = float(longitudes[(widest + 1) % longitudes.size])
    east = west + 360 - float(gaps[widest])
    if west > 180 or (west + east) / 2 > 180:
        west, east = west - 360, east - 360
    return west, south, east, north
