"""Polygons from vector files: the user's region and the bundled country outlines."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import shapely

from sdm.errors import LayerError, quoted
from sdm.files.archives import Archive, first_bytes
from sdm.files.globe import to_lonlat
from sdm.files.kml import read_kml_polygons
from sdm.files.parquet import refuse_large_parquet
from sdm.files.release import data_file
from sdm.files.union import union
from sdm.files.vector_files import (
    GEOJSON,
    GEOPACKAGE,
    KML,
    PARQUET,
    TOPOJSON,
    ZIP,
    gdal_name,
    shapefile_parts,
    vector_format,
)

if TYPE_CHECKING:
    from geopandas import GeoDataFrame, GeoSeries


FORMATS = "give a vector file such as .geojson, .gpkg or .shp"

_JSON_OBJECT = "OGR_GEOJSON_MAX_OBJ_SIZE"
_IN_ARCHIVES = (".shp", ".gpkg", ".geojson", ".json", ".topojson", ".fgb", ".parquet", ".kml")
_AREAL = ("Polygon", "Surface", "Geometry", "Unknown")
"""In the names of types of layers that may hold polygons."""
_MOST_FILES = 50
"""Vector files of one archive that are looked into."""


@dataclass(frozen=True)
class Pick:
    """What is read of a vector file."""

    layer: str | None = None
    """Layer, or file in an archive; by default the only one, or the only one with polygons."""
    where: str | None = None
    """Condition on its attributes, in the SQL of OGR: "NAME = 'Jura'"."""
    option: str = ""
    """How the user says which layer, in messages: "--layer NAME"."""


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
    path: str | Path,
    what: str,
    remedy: str = FORMATS,
    limits: Limits = TABLE,
    *,
    geometry_only: bool = False,
    pick: Pick = Pick(),
) -> GeoDataFrame:
    """A vector file with geometry and a CRS.

    GeoPackage, GeoJSON, TopoJSON, shapefile, FlatGeobuf, KML (polygons), GeoParquet, or a zip file with one of them. A
    file is opened only as what its first bytes say it is. Of several layers the only one with polygons is read, and its
    name is `attrs["layer"]` of the result.

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
    pick
        The layer and the features that are read.

    Raises
    ------
    LayerError
        The file is missing, unreadable, too large or empty, has no CRS, holds several layers that could be meant, or
        could make its reader run a query or open another file or address.
    """
    import geopandas

    path = Path(path)
    source = f"{what} {str(path)!r}"
    if not path.exists():
        raise LayerError(f"{source} does not exist; {remedy}.")
    try:
        frame = _Reader(source, remedy, limits, geometry_only, pick).read(path)
    except LayerError:
        raise
    except Exception as error:  # drivers raise many unrelated types on hostile files
        raise LayerError(f"{source} cannot be read as vector data ({_first_line(error)}); {remedy}.") from error
    if not isinstance(frame, geopandas.GeoDataFrame) or frame.geometry.isna().all() or frame.geometry.is_empty.all():
        if pick.where is not None and isinstance(frame, geopandas.GeoDataFrame) and frame.empty:
            raise LayerError(f"{source} has no feature where {pick.where}; the condition is on its attributes.")
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
    pick: Pick

    def read(self, path: Path) -> GeoDataFrame:
        """A frame of a file, or of the one vector file in a zip file."""
        if not path.is_file():
            raise LayerError(f"{self.source} cannot be read as vector data (it is not a file); {self.remedy}.")
        kind = vector_format(path, first_bytes(path))
        if kind is None:
            raise LayerError(f"{self.source} cannot be read as vector data (format not known); {self.remedy}.")
        limit = self.limits.text if kind in (GEOJSON, TOPOJSON, KML) else self.limits.size
        if path.stat().st_size > limit:
            raise LayerError(
                f"{self.source} is larger than {limit >> 20} MiB; simplify it, or save only what is needed as a "
                "GeoPackage."
            )
        readers: dict[str, Callable[[Path], GeoDataFrame]] = {ZIP: self._zip, PARQUET: self._parquet, KML: self._kml}
        if kind in (PARQUET, KML) and (self.pick.layer is not None or self.pick.where is not None):
            raise LayerError(f"{self.source} is {kind}, which is read as a whole; save what is meant as a GeoPackage.")
        return readers[kind](path) if kind in readers else self._gdal(path, kind)

    def _gdal(self, path: Path, kind: str) -> GeoDataFrame:
        import pyogrio

        name = gdal_name(path, kind, self.source)
        before = pyogrio.get_gdal_config_option(_JSON_OBJECT)
        pyogrio.set_gdal_config_options({_JSON_OBJECT: self.limits.feature})
        try:
            layer, chosen = self.pick.layer, ""
            if kind in (GEOPACKAGE, TOPOJSON) or layer is not None:  # the others have one layer
                layer, chosen = self._layer([(str(n), str(t)) for n, t in pyogrio.list_layers(name)])
            info = pyogrio.read_info(name, layer=layer)
            if info["driver"] != kind:
                raise LayerError(f"{self.source} is a file of the kind {info['driver']!r}; {self.remedy}.")
            # Space for as many features as the file claims to have is taken before one is read.
            self._refuse_features(int(info["features"]))
            columns: list[str] | None = [] if self.geometry_only else None
            frame = pyogrio.read_dataframe(name, layer=layer, columns=columns, where=self.pick.where)
            if kind == TOPOJSON and frame.crs is None:
                frame = frame.set_crs(4326)  # which is its only one
            frame.attrs["layer"] = chosen
            return frame
        except pyogrio.errors.DataSourceError:
            raise
        except (ValueError, RuntimeError) as error:
            if self.pick.where is None:
                raise
            raise LayerError(
                f"{self.source}: --where {self.pick.where!r} is no condition on its attributes ({_first_line(error)}); "
                "write it as NAME = 'Jura' or AREA > 100."
            ) from None
        finally:
            pyogrio.set_gdal_config_options({_JSON_OBJECT: before})

    def _layer(self, layers: list[tuple[str, str]]) -> tuple[str, str]:
        """The (name, type) of layers -> the one to read, and its name where it was chosen among several."""
        names = [name for name, _ in layers]
        if self.pick.layer is not None:
            if self.pick.layer not in names:
                raise LayerError(f"{self.source} has no layer {quoted(self.pick.layer)}; it has {_listed(names)}.")
            return self.pick.layer, ""
        areal = [name for name, kind in layers if any(word in kind for word in _AREAL)]
        candidates = areal or names
        if len(candidates) > 1:
            choose = (
                f"choose one with {self.pick.option}" if self.pick.option else "save the one that is meant by itself"
            )
            raise LayerError(f"{self.source} holds the layers {_listed(candidates)}; {choose}.")
        return candidates[0], candidates[0] if len(names) > 1 else ""

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
            if not names or len(names) > _MOST_FILES:
                raise LayerError(
                    f"{self.source} cannot be read as vector data (it is a zip file with {len(names)} vector files); "
                    "unpack it and give one of them."
                )
            if len(names) == 1:
                return self.read(self._unpacked(archive, names[0], Path(target)))
            layers = {Path(name).stem: name for name in names}
            if len(layers) < len(names):
                raise LayerError(f"{self.source} holds several files of one name; unpack it and give one of them.")
            kinds = [
                (stem, "" if self.pick.layer else self._kind_of(self._unpacked(archive, name, Path(target))))
                for stem, name in layers.items()
            ]
            layer, chosen = self._layer(kinds)
            reader = replace(self, pick=replace(self.pick, layer=None))
            frame = reader.read(self._unpacked(archive, layers[layer], Path(target)))
            frame.attrs["layer"] = chosen
            return frame

    def _unpacked(self, archive: Archive, name: str, target: Path) -> Path:
        """A vector file of an archive, with the files that belong to it, in a folder."""
        unpacked = target / f"a{Path(name).suffix.lower()}"
        for part in (name, *shapefile_parts(list(archive.members), name)):
            if archive.members[part].file_size > self.limits.size:
                raise LayerError(f"{self.source} unpacks to more than {self.limits.size >> 20} MiB; simplify it.")
            archive.unpack(part, unpacked.with_suffix(Path(part).suffix.lower()))
        if vector_format(unpacked, first_bytes(unpacked)) == ZIP:
            raise LayerError(f"{self.source} holds an archive inside an archive; unpack it first.")
        return unpacked

    def _kind_of(self, path: Path) -> str:
        """The type of geometry in a file, in the words of OGR; "Unknown" where only reading it would tell."""
        import pyogrio

        kind = vector_format(path, first_bytes(path))
        if kind is None:
            return "None"
        if kind in (PARQUET, KML):
            return "Unknown"
        return str(pyogrio.read_info(gdal_name(path, kind, self.source))["geometry_type"])

    def _refuse_features(self, features: int) -> None:
        if features > self.limits.features:
            raise LayerError(
                f"{self.source} has {features:,} features, more than {self.limits.features:,}; dissolve or split it."
            )


@dataclass(frozen=True)
class Polygons:
    """The polygons of a region."""

    lonlat: shapely.Geometry
    """Their union in WGS84, (lon, lat)."""
    own: shapely.Geometry
    """The same in the CRS that they are given in."""
    crs: str
    """That CRS, as WKT."""
    notes: tuple[str, ...] = ()
    """How they were read, for the user."""


def read_polygons(path: str | Path, layer: str | None = None, where: str | None = None) -> Polygons:
    """All polygons of a region file, or those of a layer that meet a condition. Raises LayerError."""
    pick = Pick(layer, where, "--layer NAME")
    frame = read_features(path, "region file", limits=REGION, geometry_only=True, pick=pick)
    polygons = united(frame.geometry, f"region file {str(path)!r}")
    chosen = frame.attrs.get("layer")
    note = (
        f"{Path(path).name} holds several layers; the one with polygons, {quoted(chosen)}, is mapped." if chosen else ""
    )
    return replace(polygons, notes=(note,) if note else ())


def united(series: GeoSeries, source: str = "region") -> Polygons:
    """The geometries of a GeoSeries with a CRS, repaired and united. Raises LayerError."""
    import pyproj

    crs = pyproj.CRS.from_user_input(series.crs)
    own = union(series.dropna().values.to_numpy(), source)
    return Polygons(to_lonlat(own, crs, source), own, crs.to_wkt())


def countries(bounds: tuple[float, float, float, float]) -> GeoDataFrame:
    """Country outlines touching (west, south, east, north), degrees, as a WGS84 GeoDataFrame."""
    import geopandas

    return geopandas.read_file(data_file("countries.fgb"), bbox=bounds)


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - 12} more" if len(names) > 12 else ""
    return ", ".join(quoted(name, 60) for name in names[:12]) + more


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return text[0][:200] if text else type(error).__name__
