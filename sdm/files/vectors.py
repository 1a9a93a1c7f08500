"""Polygons from vector files: the user's region and the bundled country outlines."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import shapely

from sdm.errors import LayerError
from sdm.files.archives import Archive, first_bytes
from sdm.files.kml import read_kml_polygons
from sdm.files.parquet import refuse_large_parquet
from sdm.files.release import data_file
from sdm.files.union import union
from sdm.files.vector_files import (
    GEOJSON,
    KML,
    PARQUET,
    ZIP,
    gdal_name,
    shapefile_parts,
    vector_format,
)

if TYPE_CHECKING:
    from geopandas import GeoDataFrame, GeoSeries


FORMATS = "give a vector file such as .geojson, .gpkg or .shp"

_JSON_OBJECT = "OGR_GEOJSON_MAX_OBJ_SIZE"
_IN_ARCHIVES = (".shp", ".gpkg", ".geojson", ".json", ".fgb", ".parquet", ".kml")


@dataclass(frozen=True)
class Limits:
    """The largest vector file that is read; it is refused before it is decoded."""

    size: int
    """Bytes."""
    text: int
    """Bytes of GeoJSON or KML, which take some ten times their size in memory."""
    features: int
    feature: int
    """MiB that one feature of GeoJSON may take in memory, as GDAL estimates it."""


REGION = Limits(size=512 << 20, text=32 << 20, features=100_000, feature=120)
TABLE = Limits(size=16 << 30, text=1 << 30, features=50_000_000, feature=200)


def read_features(
    path: str | Path, what: str, remedy: str = FORMATS, limits: Limits = TABLE, *, geometry_only: bool = False
) -> GeoDataFrame:
    """A vector file with geometry and a CRS.

    GeoPackage, GeoJSON, shapefile, FlatGeobuf, KML (polygons), GeoParquet, or a zip file with one of them. A file is
    opened only as what its first bytes say it is.

    Parameters
    ----------
    path
        The file.
    what
        Its name in messages: "region file", "data source".
    remedy
        What to do, in messages.
    limits
        The largest file that is read.
    geometry_only
        Leave the attributes out.

    Raises
    ------
    LayerError
        The file is missing, unreadable, too large or empty, has no CRS, or could make its reader run a query or open
        another file or address.
    """
    import geopandas

    path = Path(path)
    source = f"{what} {str(path)!r}"
    if not path.exists():
        raise LayerError(f"{source} does not exist; {remedy}.")
    try:
        frame = _Reader(source, remedy, limits, geometry_only).read(path)
    except LayerError:
        raise
    except Exception as error:  # drivers raise many unrelated types on hostile files
        raise LayerError(f"{source} cannot be read as vector data ({_first_line(error)}); {remedy}.") from error
    if not isinstance(frame, geopandas.GeoDataFrame) or frame.geometry.isna().all() or frame.geometry.is_empty.all():
        raise LayerError(f"{source} holds no geometry; {remedy}.")
    if frame.crs is None:
        raise LayerError(f"{source} has no CRS; assign one (for example in QGIS) and save it again.")
    return frame


@dataclass(frozen=True)
class _Reader:
    source: str
    remedy: str
    limits: Limits
    geometry_only: bool

    def read(self, path: Path) -> GeoDataFrame:
        """A frame of a file, or of the one vector file in a zip file."""
        if not path.is_file():
            raise LayerError(f"{self.source} cannot be read as vector data (it is not a file); {self.remedy}.")
        kind = vector_format(path, first_bytes(path))
        if kind is None:
            raise LayerError(f"{self.source} cannot be read as vector data (format not known); {self.remedy}.")
        limit = self.limits.text if kind in (GEOJSON, KML) else self.limits.size
        if path.stat().st_size > limit:
            raise LayerError(
                f"{self.source} is larger than {limit >> 20} MiB; simplify it, or save only what is needed as a "
                "GeoPackage."
            )
        readers: dict[str, Callable[[Path], GeoDataFrame]] = {ZIP: self._zip, PARQUET: self._parquet, KML: self._kml}
        return readers[kind](path) if kind in readers else self._gdal(path, kind)

    def _gdal(self, path: Path, kind: str) -> GeoDataFrame:
        import pyogrio

        name = gdal_name(path, kind, self.source)
        before = pyogrio.get_gdal_config_option(_JSON_OBJECT)
        pyogrio.set_gdal_config_options({_JSON_OBJECT: self.limits.feature})
        try:
            info = pyogrio.read_info(name)
            if info["driver"] != kind:
                raise LayerError(f"{self.source} is a file of the kind {info['driver']!r}; {self.remedy}.")
            # Space for as many features as the file claims to have is taken before one is read.
            self._refuse_features(int(info["features"]))
            return pyogrio.read_dataframe(name, columns=[] if self.geometry_only else None)
        finally:
            pyogrio.set_gdal_config_options({_JSON_OBJECT: before})

    def _parquet(self, path: Path) -> GeoDataFrame:
        import geopandas
        import pyarrow.parquet

        with pyarrow.parquet.ParquetFile(path) as file:
            self._refuse_features(file.metadata.num_rows)
            refuse_large_parquet(file, path, None, self.source, LayerError)
        return geopandas.read_parquet(path)

    def _kml(self, path: Path) -> GeoDataFrame:
        import geopandas

        polygons = read_kml_polygons(path, self.source)
        self._refuse_features(len(polygons))
        return geopandas.GeoDataFrame(geometry=polygons, crs=4326)

    def _zip(self, path: Path) -> GeoDataFrame:
        with Archive(path, self.source) as archive, tempfile.TemporaryDirectory(prefix="taxabind-map-") as target:
            names = [name for name in archive.members if name.lower().endswith(_IN_ARCHIVES)]
            if len(names) != 1:
                raise LayerError(
                    f"{self.source} cannot be read as vector data (it is a zip file with {len(names)} vector files); "
                    "unpack it and give one of them."
                )
            unpacked = Path(target) / f"a{Path(names[0]).suffix.lower()}"
            for name in (names[0], *shapefile_parts(list(archive.members), names[0])):
                if archive.members[name].file_size > self.limits.size:
                    raise LayerError(f"{self.source} unpacks to more than {self.limits.size >> 20} MiB; simplify it.")
                archive.unpack(name, unpacked.with_suffix(Path(name).suffix.lower()))
            if vector_format(unpacked, first_bytes(unpacked)) == ZIP:
                raise LayerError(f"{self.source} holds an archive inside an archive; unpack it first.")
            return self.read(unpacked)

    def _refuse_features(self, features: int) -> None:
        if features > self.limits.features:
            raise LayerError(
                f"{self.source} has {features:,} features, more than {self.limits.features:,}; dissolve or split it."
            )


def read_polygons(path: str | Path) -> shapely.Geometry:
    """All geometry of a region file as one WGS84 geometry, (lon, lat). Raises LayerError as `read_features` does."""
    frame = read_features(path, "region file", limits=REGION, geometry_only=True)
    return united(frame.geometry, f"region file {str(path)!r}")


def united(series: GeoSeries, source: str = "region") -> shapely.Geometry:
    """The geometries of a GeoSeries with a CRS, repaired and united, in WGS84, (lon, lat). Raises LayerError."""
    return union(series.dropna().to_crs(4326).values.to_numpy(), source)


def countries(bounds: tuple[float, float, float, float]) -> GeoDataFrame:
    """Country outlines touching (west, south, east, north), degrees, as a WGS84 GeoDataFrame."""
    import geopandas

    return geopandas.read_file(data_file("countries.fgb"), bbox=bounds)


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return text[0][:200] if text else type(error).__name__
