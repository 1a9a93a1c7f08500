"""The CRS of a GeoBox, which odc-geo allows to be missing."""

from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox


def geobox_crs(geobox: GeoBox) -> CRS:
    """The CRS of a grid; raises ValueError where it has none."""
    if geobox.crs is None:
        raise ValueError(f"a map needs a grid with a CRS, not {geobox!r}")
    return geobox.crs
