"""The STAC item beside a map: where it lies, what its bands hold, and how it was made.

STAC 1.1 with the extensions projection, raster and processing. Links to files are relative, so a folder of maps can be
moved, or served, as it is.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from odc.geo.geobox import GeoBox

from sdm._version import __version__
from sdm.outputs.geobox import geobox_crs, geographic_bounds
from sdm.outputs.metadata import MapMetadata, one_line
from sdm.outputs.statistics import BandSummary, Summary

STAC = "1.1.0"
EXTENSIONS = tuple(
    f"https://stac-extensions.github.io/{name}/schema.json"
    for name in ("projection/v2.0.0", "raster/v1.1.0", "processing/v1.2.0")
)
PREFIX = "taxabind-map"
"""Of properties that no extension defines."""

_TYPES = {
    ".tif": ("image/tiff; application=geotiff; profile=cloud-optimized", "GeoTIFF", ["data"]),
    ".v3.zarr": ("application/vnd.zarr; version=3", "Zarr format 3 (GeoZarr)", ["data"]),
    ".zarr": ("application/vnd.zarr; version=2", "Zarr format 2", ["data"]),
    ".gpkg": ("application/geopackage+sqlite3", "GeoPackage", ["data"]),
    ".html": ("text/html", "Web page", ["overview"]),
    ".json": ("application/json", "Report", ["metadata"]),
    ".csv": ("text/csv", "Table", ["metadata"]),
    ".qml": ("text/xml", "QGIS style", ["style"]),
    ".safetensors": ("application/octet-stream", "Fit to records", ["metadata"]),
}
"""By the ending of a file, longer ones first: media type, title, roles."""
_SPDX = re.compile(r"CC0|CC[ -]BY(?:[ -](?:NC|SA|ND))*", re.IGNORECASE)
_KEYS = ("species", "rank", "common_name", "query", "score", "origin", "mask", "month", "modalities")
_MADE_BY = ("model", "model_version", "model_hash", "index", "gbif_taxon_key", "command")
"""Tags of a map that its item repeats."""


def item(
    name: str, geobox: GeoBox, metadata: MapMetadata, files: Mapping[str, str], summary: Summary | None = None
) -> dict[str, Any]:
    """The item of a map.

    Parameters
    ----------
    name : its id, the stem of its files.
    geobox : its pixels.
    metadata : names, unit and provenance.
    files : of each asset, by its name, the path relative to the item.
    summary : the statistics of the map and its bands.
    """
    geometry, bbox = footprint(geobox)
    made = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    tags = metadata.tags
    about = {f"{PREFIX}:{key}": one_line(tags[key]) for key in (*_KEYS, *_MADE_BY) if tags.get(key)}
    software = {"taxabind-map": __version__}
    if "model" in tags:
        software[f"model {one_line(tags['model'])}"] = one_line(tags.get("model_version", "")) or "unknown"
    properties = {
        "title": one_line(metadata.title),
        "description": one_line(metadata.description or metadata.quantity),
        "datetime": made,
        "created": made,
        "license": _licence(tags.get("licence", "")),
        "attribution": "; ".join(one_line(line) for line in metadata.attribution),
        **_projection(geobox),
        "processing:software": software,
        "processing:datetime": made,
        "processing:lineage": _lineage(metadata),
        **about,
    }
    return {
        "type": "Feature",
        "stac_version": STAC,
        "stac_extensions": list(EXTENSIONS),
        "id": name,
        "geometry": geometry,
        "bbox": bbox,
        "properties": {key: value for key, value in properties.items() if value != ""},
        "links": [],
        "assets": {key: _asset(path, metadata, geobox, summary) for key, path in files.items()},
    }


def footprint(geobox: GeoBox) -> tuple[dict[str, Any], list[float]]:
    """The bounds of a grid as a GeoJSON geometry, cut at 180 degrees, and as a box, west > east across 180 degrees."""
    west, south, east, north = (float(edge) for edge in geographic_bounds(geobox))
    south, north = max(south, -90.0), min(north, 90.0)
    if east - west >= 360.0:
        west, east = -180.0, 180.0
    turns = 360.0 * np.floor((west + 180.0) / 360.0)
    west, east = west - turns, east - turns
    if east <= 180.0:
        return {"type": "Polygon", "coordinates": [_ring(west, south, east, north)]}, [west, south, east, north]
    parts = [_ring(west, south, 180.0, north)], [_ring(-180.0, south, east - 360.0, north)]
    return {"type": "MultiPolygon", "coordinates": list(parts)}, [west, south, east - 360.0, north]


def _ring(west: float, south: float, east: float, north: float) -> list[list[float]]:
    return [[west, south], [east, south], [east, north], [west, north], [west, south]]


def _projection(geobox: GeoBox) -> dict[str, Any]:
    crs = geobox_crs(geobox).proj
    authority = crs.to_authority()
    code = ":".join(authority) if authority else None
    return {
        "proj:code": code,
        **({} if code else {"proj:wkt2": crs.to_wkt()}),
        "proj:bbox": list(geobox.boundingbox.bbox),
        "proj:shape": list(geobox.shape),
        "proj:transform": list(geobox.affine)[:6],
    }


def _lineage(metadata: MapMetadata) -> str:
    """How it was made, in a sentence or two."""
    tags = metadata.tags
    model = f" with the model {tags['model']} {tags.get('model_version', '')}".rstrip() if "model" in tags else ""
    sources = "; ".join(metadata.attribution)
    return one_line(f"{metadata.quantity}, computed by taxabind-map{model}. Sources: {sources}.")


def _licence(text: str) -> str:
    """An SPDX identifier; other for what has none."""
    if not _SPDX.match(text):
        return "other"
    identifier = re.sub(r"[ ]+", "-", text.strip()).upper()
    return identifier if re.fullmatch(r"CC0-1\.0|CC-BY(-NC)?(-SA|-ND)?-\d\.\d", identifier) else "other"


def _asset(path: str, metadata: MapMetadata, geobox: GeoBox, summary: Summary | None) -> dict[str, Any]:
    ending = next((ending for ending in _TYPES if path.endswith(ending)), "")
    media, title, roles = _TYPES.get(ending, ("application/octet-stream", "File", ["metadata"]))
    asset: dict[str, Any] = {"href": path if path.startswith("../") else f"./{path}", "title": title, "type": media}
    asset["roles"] = roles
    if ending in (".tif", ".zarr", ".v3.zarr") and "-range" not in path and not path.startswith("../"):
        bands = _bands(metadata, geobox, summary)
        asset["bands"] = [{"name": name, "description": about} for name, about, _ in bands]
        asset["raster:bands"] = [raster for _, _, raster in bands]
    return asset


def _bands(metadata: MapMetadata, geobox: GeoBox, summary: Summary | None) -> list[tuple[str, str, dict[str, Any]]]:
    """Name, meaning and fields of the extension raster, of each band."""
    layers = [(metadata.variable, metadata.quantity, metadata.unit)]
    layers += [(band.name, band.quantity, band.unit) for band in metadata.bands]
    found: list[Summary | BandSummary | None] = [None] * len(layers)
    if summary is not None:
        found = [summary, *summary.bands]
    crs = geobox_crs(geobox)
    metres = crs.projected and crs.units[0] in ("metre", "meter", "m")
    size = {"spatial_resolution": abs(geobox.affine.a)} if metres else {}
    pixels = geobox.shape[0] * geobox.shape[1]
    return [
        (
            name,
            one_line(about),
            {"data_type": "float32", "nodata": "nan", "unit": one_line(unit), "sampling": "area", **size}
            | _statistics(one, pixels),
        )
        for (name, about, unit), one in zip(layers, found, strict=True)
    ]


def _statistics(summary: Summary | BandSummary | None, pixels: int) -> dict[str, Any]:
    if summary is None:
        return {}
    values = {"minimum": summary.min, "maximum": summary.max, "mean": summary.mean, "stddev": summary.std}
    values["valid_percent"] = 100.0 * summary.count / pixels
    return {"statistics": {key: float(value) for key, value in values.items() if value is not None}}
