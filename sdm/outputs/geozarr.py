"""A map as Zarr format 3 with the GeoZarr conventions: resolutions as groups, each a CF dataset.

The root names the conventions it follows (`zarr_conventions`): `proj:` has the CRS, `spatial:` the place of the pixels,
`multiscales` the resolutions. The groups `0` (all pixels), `1`, `2` ... (means over 2, 4 ... pixels) hold the variables
of `sdm.outputs.zarr_store` with its CF grid mapping `spatial_ref`.
"""

from __future__ import annotations

import base64
import struct
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from affine import Affine
from odc.geo.geobox import GeoBox
from zarr.codecs import BloscCodec

from sdm.files.atomic import disk_errors
from sdm.outputs.blocks import Source, iter_blocks
from sdm.outputs.geobox import geobox_crs
from sdm.outputs.metadata import MapMetadata
from sdm.outputs.zarr_store import coordinates, grid_mapping, root_attributes, variables

SMALLEST = 256
"""Pixels of the longer side from which no coarser resolution is made."""
CHUNK = 512
"""Side of a chunk in pixels."""

_CONVENTIONS = {
    "multiscales": ("d35379db-88df-4056-af3a-620245f8e347", "Multiscale layout of zarr datasets"),
    "proj": (
        "f17cb550-5864-4468-aeb7-f3180cfb622f",
        "Coordinate reference system information for geospatial data",
    ),
    "spatial": ("689b58e2-cf7b-45e0-9fff-9cfc0883d6b4", "Spatial coordinate information"),
}
"""By name: UUID and description of a convention, as its own text has them."""
_VERSION = "v0.1"
# As xarray writes the fill value of a float variable in format 3.
_FILL = base64.standard_b64encode(struct.pack("<d", float("nan"))).decode()


def write_geozarr(
    path: Path, source: Source, geobox: GeoBox, metadata: MapMetadata, bands: Sequence[Source] = ()
) -> None:
    """Write a map and the layers of `metadata.bands`, each of shape (y, x), to the folder `path`.

    Memory is bounded for maps of any size. Raises OutputError if it cannot be written.
    """
    levels = list(pyramid(geobox))
    with disk_errors(path), warnings.catch_warnings():
        # Consolidated metadata are asked for by `multiscales`, though not yet part of format 3.
        warnings.filterwarnings("ignore", message=".*[Cc]onsolidated metadata.*")
        zarr.create_group(path, zarr_format=3, attributes=_root(levels, metadata))
        sources: Sequence[Any] = (source, *bands)
        for k, level in enumerate(levels):
            arrays = _create_level(path, str(k), level, metadata)
            for array, finer in zip(arrays, sources, strict=True):
                _fill(array, finer) if k == 0 else _coarsen(array, finer)
            sources = arrays
            zarr.consolidate_metadata(path, path=str(k), zarr_format=3)
        zarr.consolidate_metadata(path, zarr_format=3)


def pyramid(geobox: GeoBox) -> Iterator[GeoBox]:
    """The grid of a map, then ever coarser ones of half its rows and columns, rounded up."""
    yield geobox
    while max(geobox.shape) > SMALLEST:
        rows, columns = geobox.shape
        geobox = GeoBox(((rows + 1) // 2, (columns + 1) // 2), geobox.affine @ Affine.scale(2), geobox.crs)
        yield geobox


def conventions(names: Sequence[str]) -> list[dict[str, str]]:
    """The entry `zarr_conventions` of a group or array that follows some conventions."""
    return [
        {
            "uuid": uuid,
            "schema_url": f"https://raw.githubusercontent.com/zarr-conventions/{name}/refs/tags/{_VERSION}/schema.json",
            "spec_url": f"https://github.com/zarr-conventions/{name}/blob/{_VERSION}/README.md",
            "name": name,
            "description": description,
        }
        for name, (uuid, description) in _CONVENTIONS.items()
        if name in names
    ]


def _root(levels: Sequence[GeoBox], metadata: MapMetadata) -> dict[str, Any]:
    layout: list[dict[str, Any]] = []
    for k, level in enumerate(levels):
        entry: dict[str, Any] = {"asset": str(k)}
        if k:
            entry |= {"derived_from": str(k - 1), "resampling_method": "average"}
        entry |= {"transform": {"scale": [2.0, 2.0] if k else [1.0, 1.0], "translation": [0.0, 0.0]}}
        layout.append(entry | _shape(level))
    return root_attributes(metadata) | {
        "zarr_conventions": conventions(("multiscales", "proj", "spatial")),
        "multiscales": {"layout": layout, "resampling_method": "average"},
        **_crs(levels[0]),
        "spatial:dimensions": ["y", "x"],
        "spatial:bbox": list(levels[0].boundingbox.bbox),
    }


def _shape(geobox: GeoBox) -> dict[str, Any]:
    return {"spatial:shape": list(geobox.shape), "spatial:transform": list(geobox.affine)[:6]}


def _crs(geobox: GeoBox) -> dict[str, Any]:
    """By its code, or as text where it has none: one of them."""
    crs = geobox_crs(geobox).proj
    authority = crs.to_authority()
    coded = authority is not None and authority[1].isdigit()
    return {"proj:code": ":".join(authority)} if coded else {"proj:wkt2": crs.to_wkt()}


def _create_level(path: Path, name: str, geobox: GeoBox, metadata: MapMetadata) -> list[zarr.Array]:
    """A group with the coordinates, and the empty arrays of the map and its bands."""
    attributes = {
        "Conventions": "CF-1.8",
        "zarr_conventions": conventions(("proj", "spatial")),
        **_crs(geobox),
        "spatial:dimensions": ["y", "x"],
        "spatial:bbox": list(geobox.boundingbox.bbox),
        **_shape(geobox),
    }
    group = zarr.create_group(path, path=name, zarr_format=3, attributes=attributes)
    for axis, (values, described) in coordinates(geobox).items():
        group.create_array(axis, data=values, chunks=values.shape, dimension_names=[axis], attributes=described)
    group.create_array("spatial_ref", data=np.array(0), dimension_names=[], attributes=grid_mapping(geobox))
    if metadata.month:
        about: dict[str, Any] = {"long_name": "month of the year", "units": "1"}
        group.create_array("month", data=np.array(metadata.month), dimension_names=[], attributes=about)
    made = []
    for variable, described in variables(geobox, metadata).items():
        about = {key: value for key, value in described.items() if key not in ("_ARRAY_DIMENSIONS", "_CRS")}
        array = group.create_array(
            variable,
            shape=tuple(geobox.shape),
            chunks=tuple(min(CHUNK, length) for length in geobox.shape),
            dtype="float32",
            fill_value=float("nan"),
            compressors=BloscCodec(cname="zstd", clevel=5, shuffle="shuffle"),
            dimension_names=["y", "x"],
            attributes=about | {"_FillValue": _FILL},
        )
        made.append(array)
    return made


def _fill(array: zarr.Array, source: Source) -> None:
    """Copy a map, whole chunks of the array at once where its blocks allow it."""
    for rows, columns, values in iter_blocks(source):
        array[rows, columns] = values


def _coarsen(array: zarr.Array, finer: zarr.Array) -> None:
    """Fill an array with the means over 2 x 2 pixels with a value of the finer one."""
    height, width = array.shape
    for top in range(0, height, CHUNK):
        for left in range(0, width, CHUNK):
            bottom, right = min(top + CHUNK, height), min(left + CHUNK, width)
            part = np.asarray(finer[2 * top : 2 * bottom, 2 * left : 2 * right], dtype=np.float32)
            array[top:bottom, left:right] = _means(part)


def _means(values: np.ndarray) -> np.ndarray:
    """Means over squares of two, without NaN; at odd edges over what there is."""
    odd = [(0, length % 2) for length in values.shape]
    padded = np.pad(values, odd, constant_values=np.nan)
    squares = padded.reshape(padded.shape[0] // 2, 2, padded.shape[1] // 2, 2)
    known = ~np.isnan(squares)
    count = known.sum(axis=(1, 3))
    total = np.where(known, squares, 0).sum(axis=(1, 3), dtype=np.float64)
    return np.divide(total, count, out=np.full(count.shape, np.nan), where=count > 0).astype(np.float32)
