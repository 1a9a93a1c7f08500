"""Points of GeoPackage, GeoJSON and shapefiles, and tables and points of Parquet."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import shapely

from sdm.errors import RecordsError, quoted
from sdm.files.vector_files import GEOJSON, GEOPACKAGE, SHAPEFILE, gdal_name
from sdm.records.columns import find_columns
from sdm.records.raw import Collector, RawRecords
from sdm.request.records import ReadOptions

DRIVERS = (GEOPACKAGE, GEOJSON, SHAPEFILE)
"""GDAL's names of the only formats that are opened."""
MAX_IN_MEMORY = 1 << 30
"""Bytes of a GeoJSON file, which GDAL reads as a whole."""
MAX_UNPACKED = 16 << 30
"""Bytes of the needed columns of a Parquet file."""

_BATCH = 65536
_POINT, _MULTIPOINT = 0, 4


def read_vector(
    path: Path, driver: str, source: str, options: ReadOptions, species: str | None
) -> tuple[RawRecords, str | None]:
    """(Rows, CRS of their coordinates or None) of a vector file.

    Parameters
    ----------
    path
        A file whose first bytes are those of the format.
    driver
        The format, one of `DRIVERS`.
    source
        Name of the file, for messages.
    options
        Columns and layer that the user names.
    species
        Keep only the rows of this species, where the file names any.

    Raises
    ------
    RecordsError
        The file cannot be read, or it is not clear what its columns mean.
    """
    import pyogrio

    with _gdal_errors(source):
        name = gdal_name(path, driver, source, RecordsError)
        layer = _layer(name, source, options)
        info = pyogrio.read_info(name, layer=layer)
        if info["driver"] != driver:
            raise RecordsError(f"{source} is a file of the kind {quoted(info['driver'])}, which is not read.")
        names = [str(name) for name in info["fields"]]
        points = info["geometry_type"] is not None
        columns = find_columns(names, options, source, points=points, species=species)
        own = {"lon", "lat"} <= set(columns)
        header = {role: names[i] for role, i in columns.items()}
        collector = Collector(source, header if own else header | {"lon": "geometry", "lat": "geometry"}, species)
        needed = sorted(set(header.values()))
        with pyogrio.open_arrow(
            name, layer=layer, columns=needed, read_geometry=not own, batch_size=_BATCH, use_pyarrow=True
        ) as (meta, reader):
            start = 1
            for batch in reader:
                xy = None if own else _points(batch.column(meta["geometry_name"] or "wkb_geometry"), source)
                row = np.arange(start, start + batch.num_rows)
                collector.add({role: batch.column(name) for role, name in header.items()}, row, xy)
                start += batch.num_rows
    crs = None if own else info["crs"]
    if not own and crs is None and options.records_crs is None:
        raise RecordsError(f"{source} does not say which CRS its coordinates are in; give it with --records-crs.")
    return collector.finish(), crs


def _layer(path: str, source: str, options: ReadOptions) -> str:
    import pyogrio

    layers = pyogrio.list_layers(path)
    names = [str(name) for name, _ in layers]
    asked = options.records_layer
    if asked is not None:
        if asked not in names:
            raise RecordsError(f"{source} has no layer {quoted(asked)}; it has {', '.join(map(quoted, names[:12]))}.")
        return asked
    points = [str(name) for name, kind in layers if kind and "Point" in str(kind)] or names
    if len(points) > 1:
        listed = ", ".join(map(quoted, points[:12]))
        raise RecordsError(f"{source} has several layers of points ({listed}); name one with --records-layer.")
    if not points:
        raise RecordsError(f"{source} has no layer.")
    return points[0]


@contextlib.contextmanager
def _gdal_errors(source: str) -> Iterator[None]:
    try:
        yield
    except RecordsError:
        raise
    except Exception as error:  # drivers raise many unrelated types on hostile files
        text = " ".join(str(error).split())[:200] or type(error).__name__
        raise RecordsError(f"{source} cannot be read as vector data ({text}).") from None


def _points(column: pa.Array | pa.ChunkedArray, source: str) -> np.ndarray:
    """(N, 2) coordinates of geometries as WKB, or as structs of x and y; NaN where there are none."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    column = getattr(column, "storage", column)
    if pa.types.is_struct(column.type):
        fields = [column.field(name).cast(pa.float64()).fill_null(np.nan) for name in ("x", "y")]
        return np.column_stack([f.to_numpy(zero_copy_only=False) for f in fields])
    shapes = shapely.from_wkb(column.to_numpy(zero_copy_only=False), on_invalid="ignore")
    kinds = shapely.get_type_id(shapes)
    several = kinds == _MULTIPOINT
    several[several] = shapely.get_num_geometries(shapes[several]) > 1
    other = ((kinds >= 0) & (kinds != _POINT) & (kinds != _MULTIPOINT)) | several
    if other.any():
        kind = shapes[int(np.argmax(other))].geom_type
        raise RecordsError(f"{source} holds geometries of the kind {kind}; records are points.")
    single = kinds == _MULTIPOINT
    shapes[single] = shapely.get_geometry(shapes[single], 0)
    return np.column_stack([shapely.get_x(shapes), shapely.get_y(shapes)])


# Parquet ---------------------------------------------------------------------------------------------


def read_parquet(path: Path, source: str, options: ReadOptions, species: str | None) -> tuple[RawRecords, str | None]:
    """(Rows, CRS of their coordinates or None) of Parquet or GeoParquet. Raises RecordsError."""
    try:
        with pa.parquet.ParquetFile(path) as file:
            names = [str(name) for name in file.schema_arrow.names]
            geometry, crs = _geo(file.schema_arrow.metadata or {}, names, source)
            columns = find_columns(names, options, source, points=geometry is not None, species=species)
            if {"lon", "lat"} <= set(columns):
                geometry = crs = None
            header = {role: names[i] for role, i in columns.items()}
            sources = header if geometry is None else header | {"lon": geometry, "lat": geometry}
            collector = Collector(source, sources, species)
            needed = list(dict.fromkeys([*header.values(), *([geometry] if geometry else [])]))
            _refuse_large(file, needed, source)
        # Dictionaries stay dictionaries: one long text, repeated in every row, must not be written out.
        plain = [n for n in header.values() if pa.types.is_string(file.schema_arrow.field(n).type)]
        with pa.parquet.ParquetFile(path, read_dictionary=plain) as file:
            start = 1
            for batch in file.iter_batches(batch_size=_BATCH, columns=needed):
                row = np.arange(start, start + batch.num_rows)
                xy = None if geometry is None else _points(batch.column(geometry), source)
                collector.add({role: batch.column(name) for role, name in header.items()}, row, xy)
                start += batch.num_rows
        return collector.finish(), crs
    except (pa.ArrowException, OSError, UnicodeDecodeError, shapely.errors.ShapelyError) as error:
        raise RecordsError(f"{source} cannot be read as Parquet ({' '.join(str(error).split())[:200]}).") from None


def _refuse_large(file: pa.parquet.ParquetFile, needed: list[str], source: str) -> None:
    total = 0
    for group in range(file.metadata.num_row_groups):
        part = file.metadata.row_group(group)
        for i in range(part.num_columns):
            column = part.column(i)
            if column.path_in_schema.partition(".")[0] in needed:
                total += column.total_uncompressed_size
    if total > MAX_UNPACKED:
        raise RecordsError(f"{source}: its columns take more than {MAX_UNPACKED >> 30} GiB; keep one species.")


def _geo(metadata: dict[bytes, bytes], names: list[str], source: str) -> tuple[str | None, str | None]:
    """(Column of geometries, its CRS) of GeoParquet; None where it is not."""
    if b"geo" not in metadata:
        return None, None
    try:
        geo: dict[str, Any] = json.loads(metadata[b"geo"])
        name = str(geo["primary_column"])
        crs = geo["columns"][name].get("crs", "OGC:CRS84")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise RecordsError(f"{source}: its description of geometries is not valid GeoParquet.") from None
    if name not in names:
        raise RecordsError(f"{source} lacks its column of geometries, {quoted(name)}.")
    return name, json.dumps(crs) if isinstance(crs, dict) else None if crs is None else str(crs)
