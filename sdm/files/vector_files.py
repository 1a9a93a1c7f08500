"""Vector files from anywhere: their format by their content, and what GDAL must not be given.

GDAL has some sixty vector formats. Several are texts that name other files or addresses to read (OGR-VRT, WFS, GDALG),
and it recognises them whatever the file is called. So a file reaches GDAL only after its first bytes have been
recognised, and by a name with which one driver alone takes it.
"""

from __future__ import annotations

import re
import sqlite3
from pathlib import Path

from sdm.errors import LayerError, SdmError, quoted
from sdm.files.json_text import refuse_json

GEOPACKAGE, GEOJSON, TOPOJSON, SHAPEFILE, FLATGEOBUF, KML, PARQUET, ZIP = (
    "GPKG",
    "GeoJSON",
    "TopoJSON",
    "ESRI Shapefile",
    "FlatGeobuf",
    "KML",
    "Parquet",
    "ZIP",
)

SHAPEFILE_PARTS = (".dbf", ".shx", ".prj", ".cpg")
_STEPS = 2_000_000
"""Steps of SQLite's machine that its schema may take."""
_LONGEST_SQL = 1 << 20


def vector_format(path: Path, head: bytes) -> str | None:
    """The format of a vector file by its first bytes, one of the constants above; None: it is of no such format."""
    if head.startswith(b"SQLite format 3\0"):
        return GEOPACKAGE if head[68:72] in (b"GPKG", b"GP10", b"GP11") else None
    if head.startswith(b"\x00\x00\x27\x0a"):
        return SHAPEFILE if path.suffix.lower() == ".shp" else None
    for magic, kind in ((b"fgb", FLATGEOBUF), (b"PAR1", PARQUET), (b"PK\x03\x04", ZIP)):
        if head.startswith(magic):
            return kind
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if text.startswith(b"{") and re.search(rb'"type"\s*:\s*"Topology"', text):
        return TOPOJSON
    return {b"{": GEOJSON, b"<": KML}.get(text[:1])


def gdal_name(path: Path, kind: str, source: str, error: type[SdmError] = LayerError) -> str:
    """The name under which GDAL opens a file of format `kind`, and no driver but that of the format.

    Raises `error`, with `source` as the name of the file, where reading it would run a query or open an address.
    """
    path = path.absolute()
    if kind == GEOPACKAGE:
        _refuse_queries(path, source, error)
    if kind == SHAPEFILE and not any(path.with_suffix(suffix).exists() for suffix in (".shx", ".SHX")):
        raise error(
            f"{source} lacks {path.with_suffix('.shx').name}, which belongs to it; copy all files of the shapefile "
            "(.shp, .shx, .dbf, .prj)."
        )
    if kind in (GEOJSON, TOPOJSON):
        refuse_json(path, source, error)
        # JSON may also be an algorithm that GDAL would run; with this prefix only one driver takes the file.
        return f"{kind}:{path}"
    return str(path)


def shapefile_parts(members: list[str], name: str) -> list[str]:
    """Of the names in an archive, those of the files that belong to the shapefile `name`."""
    stem = name[:-4].lower()
    return [other for other in members if other[:-4].lower() == stem and other[-4:].lower() in SHAPEFILE_PARTS]


def _refuse_queries(path: Path, source: str, error: type[SdmError]) -> None:
    """Raise `error` for a GeoPackage with views, computed columns or virtual tables: code that runs when it is read."""
    connection = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)
    try:
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _LONGEST_SQL)
        connection.execute("PRAGMA trusted_schema = OFF")
        connection.set_progress_handler(lambda: 1, _STEPS)
        for kind, name, sql in connection.execute("SELECT type, name, sql FROM sqlite_master").fetchall():
            if kind == "view":
                raise error(
                    f"{source} holds the view {quoted(name)}, a query that reading it would run; save the layer itself "
                    "to a new GeoPackage (ogr2ogr)."
                )
            if kind != "table":
                continue
            virtual = re.match(r"\s*create\s+virtual\s+table\b", str(sql), re.IGNORECASE)
            if virtual and not re.search(r"\busing\s+rtree\s*\(", str(sql), re.IGNORECASE):
                raise error(f"{source} holds the virtual table {quoted(name)}; save its layer to a new GeoPackage.")
            columns = () if virtual else connection.execute("SELECT hidden FROM pragma_table_xinfo(?)", (name,))
            if any(hidden for (hidden,) in columns):
                raise error(f"{source} has computed columns in {quoted(name)}; save its layer to a new GeoPackage.")
    except (sqlite3.Error, UnicodeError) as problem:
        raise error(f"{source} cannot be read as vector data ({problem}).") from None
    finally:
        connection.close()
