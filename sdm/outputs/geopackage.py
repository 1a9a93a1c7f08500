"""Layers of polygons with fields, as a GeoPackage."""

from __future__ import annotations

import contextlib
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import shapely

from sdm.errors import OutputError
from sdm.files.atomic import disk_errors
from sdm.outputs.metadata import one_line

_DATE = "1970-01-01T00:00:00Z"  # in the GeoPackage, whose bytes must not depend on the day
_VERSION = "1.2"  # older programs warn of later ones
_one_at_a_time = threading.Lock()  # the date is an option of the whole process


@dataclass(frozen=True)
class Layer:
    """A layer of polygons."""

    name: str
    geometry: Sequence[shapely.Geometry]
    """In degrees, (lon, lat)."""
    rows: Sequence[Mapping[str, Any]]
    """The fields of each feature; None for a number that is not known."""
    numbers: Sequence[str] = ()
    """Names of the fields that are numbers."""


def write_layers(path: Path, layers: Sequence[Layer]) -> None:
    """Write layers of polygons in EPSG:4326 to a new GeoPackage, with the same bytes every time.

    Raises OutputError if the disk refuses.
    """
    import geopandas
    from pyogrio.errors import DataSourceError

    unique = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.gpkg")
    try:
        with _one_at_a_time, disk_errors(path), _fixed_date():
            for layer in layers:
                rows = [{k: one_line(v) if isinstance(v, str) else v for k, v in row.items()} for row in layer.rows]
                frame = geopandas.GeoDataFrame(rows, geometry=list(layer.geometry), crs="EPSG:4326")
                for name in layer.numbers:
                    frame[name] = frame[name].astype(float)
                options = {} if unique.exists() else {"dataset_options": {"VERSION": _VERSION}}
                frame.to_file(unique, layer=layer.name, driver="GPKG", engine="pyogrio", **options)
            unique.replace(path)
    except DataSourceError as error:
        raise OutputError(f"{path.name} could not be written: {error}") from error
    finally:
        for file in path.parent.glob(f"{unique.name}*"):
            with contextlib.suppress(OSError):
                file.unlink()


def read_polygons(path: Path, layer: str) -> shapely.Geometry:
    """The polygons of a layer as one geometry, (lon, lat)."""
    import geopandas

    return shapely.union_all(geopandas.read_file(path, layer=layer).geometry.to_numpy())


@contextlib.contextmanager
def _fixed_date() -> Iterator[None]:
    import pyogrio

    before = pyogrio.get_gdal_config_option("OGR_CURRENT_DATE")
    pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": _DATE})
    try:
        yield
    finally:
        pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": before})
