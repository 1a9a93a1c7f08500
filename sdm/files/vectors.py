"""Polygons from vector files: the user's region and the bundled country outlines."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import shapely

from sdm.errors import LayerError
from sdm.files.paths import folder

if TYPE_CHECKING:
    from geopandas import GeoDataFrame, GeoSeries


FORMATS = "give a vector file such as .geojson, .gpkg or .shp"


def read_features(path: str | Path, what: str, remedy: str = FORMATS) -> GeoDataFrame:
    """A vector file (GeoParquet, GeoPackage, GeoJSON, shapefile ...) with geometry and a CRS.

    `what` names it in messages, `remedy` says what to do. Raises LayerError when the file is missing, unreadable, empty
    or has no CRS.
    """
    import geopandas

    path = Path(path)
    if not path.exists():
        raise LayerError(f"{what} {str(path)!r} does not exist; {remedy}.")
    try:
        frame = geopandas.read_parquet(path) if path.suffix == ".parquet" else geopandas.read_file(path)
    except Exception as error:  # drivers raise many unrelated types on hostile files
        raise LayerError(
            f"{what} {str(path)!r} cannot be read as vector data ({_first_line(error)}); {remedy}."
        ) from error
    if not isinstance(frame, geopandas.GeoDataFrame) or frame.geometry.isna().all() or frame.geometry.is_empty.all():
        raise LayerError(f"{what} {str(path)!r} holds no geometry; {remedy}.")
    if frame.crs is None:
        raise LayerError(f"{what} {str(path)!r} has no CRS; assign one (for example in QGIS) and save it again.")
    return frame


def read_polygons(path: str | Path) -> shapely.Geometry:
    """All geometry of a region file as one WGS84 geometry, (lon, lat). Raises LayerError as `read_features` does."""
    return united(read_features(path, "region file").geometry)


def united(series: GeoSeries) -> shapely.Geometry:
    """The geometries of a GeoSeries with a CRS, repaired and united, in WGS84, (lon, lat)."""
    return shapely.union_all(shapely.make_valid(series.dropna().to_crs(4326).values))


def countries(bounds: tuple[float, float, float, float]) -> GeoDataFrame:
    """Country outlines touching (west, south, east, north), degrees, as a WGS84 GeoDataFrame."""
    import geopandas

    return geopandas.read_file(folder("data") / "countries.fgb", bbox=bounds)


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return text[0][:200] if text else type(error).__name__
