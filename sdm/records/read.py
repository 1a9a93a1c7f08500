"""Records as they come: which kind of file it is, and its rows with coordinates in degrees."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np

from sdm.errors import RecordsError, quoted
from sdm.files.archives import first_bytes
from sdm.files.vector_files import GEOJSON, KML, SHAPEFILE, SHAPEFILE_PARTS, shapefile_parts, vector_format
from sdm.records.columns import find_columns
from sdm.records.dwca import read_citations, read_dwca
from sdm.records.guard import Archive, TextStream, open_text, regular_file
from sdm.records.kml import read_kml
from sdm.records.listed import is_list, read_listed
from sdm.records.raw import RawRecords
from sdm.records.text import detect_layout, read_table
from sdm.records.vector import DRIVERS, MAX_IN_MEMORY, read_parquet, read_vector
from sdm.request.records import ReadOptions

FORMATS = "give a Darwin Core archive, .csv, .txt, .gpkg, .geojson, .shp, .kml or .parquet"

_NOWHERE = (1e9, 1e8)
"""Degrees of a place that is not on the globe: where a CRS has no inverse."""
_EXCEL = "is a spreadsheet; save it as CSV (UTF-8) first"


def read_raw(
    path: str | Path, options: ReadOptions | None = None, species: str | None = None, *, lists: bool = True
) -> RawRecords:
    """All rows of a file of records, before cleaning.

    Parameters
    ----------
    path
        The file; what it is follows from its content, not from its name.
    options
        Columns, layer and CRS that the user names.
    species
        Keep only the rows of this species, where the file names any.
    lists
        Whether the file may be a list of other files, which are read then: only where who gives it may read these.

    Raises
    ------
    RecordsError
        The file cannot be read, or it is not clear what its columns mean.
    """
    options = ReadOptions() if options is None else options
    path = regular_file(path)
    try:
        return _read(path, quoted(path.name), options, species, lists)
    except OSError as error:
        raise RecordsError(f"records {quoted(str(path), 120)} cannot be read ({error.strerror or error}).") from None
    except MemoryError:
        raise RecordsError(f"records {quoted(str(path), 120)} do not fit into memory; keep one species.") from None


def _read(path: Path, source: str, options: ReadOptions, species: str | None, lists: bool = False) -> RawRecords:
    head = first_bytes(path)
    if head.startswith(b"PK"):
        with Archive(path, source) as archive:
            return _read_archive(archive, options, species)
    if head.startswith(b"\xd0\xcf\x11\xe0"):
        raise RecordsError(f"{source} {_EXCEL}.")
    if head.startswith(b"PAR1"):
        raw, crs = read_parquet(path, source, options, species)
        return _in_degrees(raw, options.records_crs or crs)
    kind = _kind(path, source, head)
    if kind == KML:
        return _in_degrees(read_kml(path, source, options, species), options.records_crs)
    if kind is not None:
        raw, crs = read_vector(path, kind, source, options, species)
        return _in_degrees(raw, options.records_crs or crs)
    stream = open_text(path, source)
    try:
        layout = detect_layout(stream)
        if is_list(layout.names):
            if not lists:
                raise RecordsError(f"{source} is a list of files of records; give one with the records themselves.")
            each = partial(read_raw, options=replace(options, species_column=None), lists=False)
            return read_listed(path, layout, options.species_column, each, species)
        return _in_degrees(read_table(stream, layout, source, options, species), options.records_crs)
    finally:
        stream.close()


def _kind(path: Path, source: str, head: bytes) -> str | None:
    """The format of a vector file by its first bytes; None: it is none. Raises RecordsError."""
    kind = vector_format(path, head)
    if kind is None and head.startswith(b"SQLite format 3\0"):
        raise RecordsError(f"{source} is an SQLite database but not a GeoPackage; {FORMATS}.")
    if kind != SHAPEFILE and (head.startswith(b"\x00\x00\x27\x0a") or path.suffix.lower() in SHAPEFILE_PARTS):
        raise RecordsError(f"{source} is a part of a shapefile; give the file that ends in .shp.")
    if kind in (GEOJSON, KML) and path.stat().st_size > MAX_IN_MEMORY:
        raise RecordsError(f"{source} is larger than {MAX_IN_MEMORY >> 30} GiB; convert it to GeoPackage or Parquet.")
    return kind if kind in (*DRIVERS, KML) else None


# Zip files -------------------------------------------------------------------------------------------


def _read_archive(archive: Archive, options: ReadOptions, species: str | None) -> RawRecords:
    names = list(archive.members)
    meta = [name for name in names if PurePosixPath(name).name.lower() == "meta.xml" and name.count("/") <= 1]
    if len(meta) == 1:
        return _in_degrees(read_dwca(archive, meta[0], options, species), options.records_crs)
    if "xl/workbook.xml" in names or "mimetype" in names:
        raise RecordsError(f"{archive.source} {_EXCEL}.")
    for suffixes in ((".shp",), (".gpkg",), (".parquet", ".pq"), (".geojson", ".json"), (".kml",)):
        inner = [name for name in names if name.lower().endswith(suffixes)]
        if len(inner) > 1:
            raise RecordsError(f"{archive.source} holds {len(inner)} {suffixes[0]} files; unpack it and give one.")
        if inner:
            return _read_unpacked(archive, inner[0], options, species)
    return _in_degrees(_read_member(archive, options, species), options.records_crs)


def _read_unpacked(archive: Archive, name: str, options: ReadOptions, species: str | None) -> RawRecords:
    """Rows of a member that is no text. It is unpacked under a name of ours, never under its own."""
    suffix = PurePosixPath(name).suffix.lower()
    with tempfile.TemporaryDirectory(prefix="taxabind-map-") as folder:
        target = Path(folder) / f"records{suffix}"
        archive.unpack(name, target)
        if suffix == ".shp":
            for other in shapefile_parts(list(archive.members), name):
                archive.unpack(other, target.with_suffix(other[-4:].lower()))
        if first_bytes(target, 2) == b"PK":
            raise RecordsError(f"{archive.source} holds an archive inside an archive; unpack it first.")
        return _read(target, archive.source, options, species)


def _read_member(archive: Archive, options: ReadOptions, species: str | None) -> RawRecords:
    """Rows of the one text of an archive that has coordinates; eBird puts several beside it."""
    tables = [name for name in archive.members if name.lower().endswith((".csv", ".txt", ".tsv", ".tab"))]
    if not tables:
        raise RecordsError(f"{archive.source} holds no file of records; {FORMATS}.")
    if len(tables) > 1:
        fitting = [name for name in tables[:100] if _has_coordinates(archive, name, options)]
        if len(fitting) != 1:
            few = "none of them" if not fitting else f"{len(fitting)} of them"
            raise RecordsError(
                f"{archive.source} holds {len(tables)} tables, {few} with coordinates; unpack it and give one."
            )
        tables = fitting
    with_closing = archive.text(tables[0])
    try:
        raw = read_table(with_closing, detect_layout(with_closing), archive.source, options, species)
    finally:
        with_closing.close()
    citations, doi = read_citations(archive, tables[0].rpartition("/")[0], None)
    return replace(raw, citations=tuple(citations), doi=tuple(doi))


def _has_coordinates(archive: Archive, name: str, options: ReadOptions) -> bool:
    stream: TextStream | None = None
    try:
        stream = archive.text(name)
        find_columns(detect_layout(stream).names, options, name)
    except RecordsError:
        return False
    finally:
        if stream is not None:
            stream.close()
    return True


# Coordinates -----------------------------------------------------------------------------------------


def _in_degrees(raw: RawRecords, crs: str | None) -> RawRecords:
    """The rows with their coordinates in degrees, (lon, lat) WGS84; `crs`: what they are in, None: such degrees."""
    import pyproj

    if crs is None:
        return raw
    try:
        given = pyproj.CRS.from_user_input(crs)
        change = pyproj.Transformer.from_crs(given, 4326, always_xy=True)
    except (pyproj.exceptions.ProjError, ValueError) as error:
        reason = str(error).splitlines()[0][:120]
        raise RecordsError(
            f"{raw.source}: CRS {quoted(crs)} is not known ({reason}); use for example EPSG:4326."
        ) from None
    if given.equals(pyproj.CRS.from_epsg(4326), ignore_axis_order=True) or given.to_authority() == ("OGC", "CRS84"):
        return raw
    lon, lat = change.transform(raw.rows["lon"], raw.rows["lat"])
    lost = np.isfinite(raw.rows["lon"]) & np.isfinite(raw.rows["lat"]) & ~(np.isfinite(lon) & np.isfinite(lat))
    lon, lat = np.where(lost, _NOWHERE[0], lon), np.where(lost, _NOWHERE[1], lat)
    # Where a coordinate is missing PROJ makes it infinite.
    lon, lat = (np.where(np.isfinite(values), values, np.nan) for values in (lon, lat))
    note = f"Coordinates were transformed from {given.name} to WGS84."
    return replace(raw, rows=raw.rows | {"lon": lon, "lat": lat}, notes=(*raw.notes, note))
