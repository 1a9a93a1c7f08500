"""Files beside a raster: GDAL reads them with it, and some of them can name any other file or address."""

from __future__ import annotations

import mmap
from pathlib import Path

from sdm.errors import LayerError, quoted
from sdm.files.xml import MAX_BYTES, RefusedXML, parse_small

WITH_SIDECARS = ["EHdr", "ENVI", "PNG", "JPEG", "WEBP"]
"""GDAL's names of the formats that have their georeference, or their layout, in a file beside them."""

_PICTURES = (b"\x89PNG", b"\xff\xd8\xff", b"RIFF")
_COMPLETE = (
    b"II*\0",
    b"MM\0*",
    b"II+\0",
    b"MM\0+",
    b"CDF",
    b"\x89HDF",
    b"EHFA",
    b"\xff\x4f\xff\x51",
    b"\0\0\0\x0cjP  ",
)
_SEARCHING = (b"EHFA", b"CDF", b"\x89HDF")
"""Beginnings of formats whose drivers do not heed GDAL_DISABLE_READDIR_ON_OPEN."""
_NAMING = (".msk", ".ovr", ".rrd", ".aux")
"""Endings of files that GDAL opens as rasters of any format."""
_HFA = b"EHFA"
_HFA_NAMES = (b"ExternalRasterDMS\0", b"DependentFile\0", b"RRDNamesList\0")
"""Entries of an ERDAS Imagine file that name other files: of pixels, of the whole image, of overviews."""
_PLAIN = {"SRS", "GeoTransform", "Metadata", "PAMRasterBand", "GCPList"}
"""Elements of .aux.xml that hold values only."""
_DOMAINS = {None, "", "IMAGE_STRUCTURE", "COLOR_PROFILE", "ENVI", "EXIF", "xml:XMP"}
"""Kinds of metadata that GDAL only passes on."""


def needs_sidecars(path: Path, start: bytes) -> bool:
    """Whether a raster that begins with the bytes `start` is nothing without the files beside it."""
    if start.startswith(_PICTURES):
        return True
    headers = (path.with_suffix(".hdr"), path.with_suffix(".HDR"), path.with_name(path.name + ".hdr"))
    return not start.startswith(_COMPLETE) and any(header.is_file() for header in headers)


def looks_beside(start: bytes) -> bool:
    """Whether GDAL looks for masks and overviews beside a raster that begins with `start`, whatever it is told."""
    return start.startswith(_SEARCHING)


def refuse_named_files(path: Path, start: bytes, name: str) -> None:
    """Raise LayerError, with `name` for the raster, for an ERDAS Imagine file that names others, which GDAL reads."""
    if not start.startswith(_HFA):
        return
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if any(content.find(entry) >= 0 for entry in _HFA_NAMES):
            raise LayerError(f"{name} refers to other files; convert it to GeoTIFF (gdal_translate).")


def refuse_naming_sidecars(path: Path, name: str) -> None:
    """Raise LayerError, with `name` for the raster, where a file beside it could name another file or address."""
    for beside in path.parent.iterdir():
        lower = beside.name.lower()
        if beside == path or not lower.startswith(path.stem.lower()):
            continue
        if lower.endswith(_NAMING) or (lower.endswith(".aux.xml") and not _is_plain(beside)):
            raise LayerError(
                f"{name} has the file {quoted(beside.name)} beside it, which could name other files; convert the "
                "raster to GeoTIFF, or move that file away."
            )


def _is_plain(path: Path) -> bool:
    try:
        if path.stat().st_size > MAX_BYTES:
            return False
        root = parse_small(path.read_bytes())
    except (RefusedXML, OSError):
        return False
    domains = {element.get("domain") for element in root.iter("Metadata")}
    return root.tag == "PAMDataset" and {e.tag for e in root} <= _PLAIN and domains <= _DOMAINS
