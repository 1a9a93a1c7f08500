"""The map as a Zarr store: written tile by tile, read lazily.

Zarr format 2, consolidated. The CRS is stored in three ways, because no single one is read by all programs:
CF `grid_mapping` (xarray, rioxarray, odc-geo), its attribute `GeoTransform` (rioxarray), and `_CRS` (GDAL,
QGIS).
"""

from __future__ import annotations

import json
import math
import warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import zarr
from odc.geo.geobox import GeoBox

from sdm.errors import OutputError
from sdm.files.atomic import disk_errors
from sdm.outputs.geobox import geobox_crs
from sdm.outputs.metadata import MapMetadata, one_line

if TYPE_CHECKING:
    import xarray as xr

GRID_MAPPING, MONTH = "spatial_ref", "month"


def create(
    path: Path,
    geobox: GeoBox,
    tile_shape: tuple[int, int],
    metadata: MapMetadata,
    dtype: npt.DTypeLike = "float32",
) -> None:
    """Create an empty store at `path`, a variable for the map and one for each further band: no pixel is modelled.

    Parameters
    ----------
    path
        Folder of the store.
    geobox
        The pixels of the map.
    tile_shape
        (y, x) of a chunk in pixels.
    metadata
        Names, unit and provenance of the map.
    dtype
        A floating-point type.

    Raises
    ------
    ValueError
        For a grid without a CRS or with rotation, or an empty `tile_shape`.
    OutputError
        When `path` exists or cannot be written.
    """
    if geobox.crs is None or not geobox.axis_aligned:
        raise ValueError(f"a map needs a grid with a CRS and without rotation, not {geobox!r}")
    chunks = tuple(min(int(tile), length) for tile, length in zip(tile_shape, geobox.shape, strict=True))
    if min(chunks) < 1:
        raise ValueError(f"tile_shape {tile_shape!r} must be positive")
    if path.exists():
        raise OutputError(f"{path} exists already.")
    with disk_errors(path):
        # Consolidated last: it is a copy of all metadata.
        root = zarr.create_group(path, zarr_format=2, attributes=root_attributes(metadata))
        write_grid(root, geobox)
        write_month(root, metadata.month)
        for name, attributes in variables(geobox, metadata).items():
            root.create_array(
                name,
                shape=tuple(geobox.shape),
                chunks=chunks,
                dtype=np.dtype(dtype),
                fill_value=float("nan"),
                compressors=_compressor(),
                attributes=attributes,
            )
        zarr.consolidate_metadata(path, zarr_format=2)


def write_grid(root: zarr.Group, geobox: GeoBox) -> None:
    """Write the coordinates y and x and the grid mapping of a grid into a group."""
    for name, (values, attributes) in coordinates(geobox).items():
        array = root.create_array(
            name,
            shape=values.shape,
            chunks=values.shape,
            dtype=values.dtype,
            fill_value=None,
            compressors=None,
            attributes={"_ARRAY_DIMENSIONS": [name], **attributes},
        )
        array[...] = values
    reference = root.create_array(
        GRID_MAPPING,
        shape=(),
        dtype="int64",
        fill_value=None,
        compressors=None,
        attributes={"_ARRAY_DIMENSIONS": [], **grid_mapping(geobox)},
    )
    reference[...] = 0


def write_month(root: zarr.Group, month: int) -> None:
    """Write the month, unless 0, as a scalar coordinate (CF, section 5.7), by which `xarray.concat` joins maps."""
    if month:
        array = root.create_array(
            MONTH,
            shape=(),
            dtype="int64",
            fill_value=None,
            compressors=None,
            attributes={"_ARRAY_DIMENSIONS": [], "long_name": "month of the year", "units": "1"},
        )
        array[...] = month


def write_tile(path: Path, rows: slice, cols: slice, values: npt.ArrayLike, variable: str | None = None) -> None:
    """Write a tile of a map.

    Only complete chunks: two workers that each wrote part of a chunk would overwrite each other. Different chunks
    may be written at the same time from many threads, processes and machines.

    Parameters
    ----------
    path
        Folder of the store.
    rows, cols
        Slices of pixels that begin on a chunk boundary and end on one or at the edge of the map.
    values
        Of shape (rows, cols).
    variable
        Name of the variable; by default the map's.

    Raises
    ------
    ValueError
        For slices that are not whole chunks, or values of another shape.
    OutputError
        If the chunks cannot be written.
    """
    with disk_errors(path):
        array = zarr.open_array(path / (variable or _map_variable(path)), mode="r+", zarr_format=2)
        for axis, part, length, chunk in zip("yx", (rows, cols), array.shape, array.chunks, strict=True):
            if part.step not in (None, 1) or part.start is None or part.stop is None:
                raise ValueError(f"{axis}: {part} must have a start, a stop and no step")
            inside = 0 <= part.start < part.stop <= length
            if not inside or part.start % chunk or (part.stop % chunk and part.stop != length):
                region = f"{part.start}:{part.stop}"
                raise ValueError(f"{axis}: pixels {region} are not whole chunks of {chunk} in {length}")
        values = np.asarray(values, dtype=array.dtype)
        expected = (rows.stop - rows.start, cols.stop - cols.start)
        if values.shape != expected:
            raise ValueError(f"values have shape {values.shape}, the region has {expected}")
        array[rows, cols] = values


def open_map(path: Path, variable: str | None = None) -> xr.DataArray:
    """Open the map at `path` lazily as a DataArray (y, x) with the chunks on disk as Dask chunks.

    It has `.odc.geobox`, `.rio.crs`, nodata NaN and the attributes of the store. Raises OutputError if there
    is no such map.
    """
    import odc.geo.xr  # noqa: F401  the .odc accessor
    import rioxarray  # noqa: F401  the .rio accessor
    import xarray as xr

    path = Path(path)
    name = variable or _map_variable(path)
    try:
        dataset = xr.open_zarr(path, consolidated=True, decode_coords="all", chunks={})
        return dataset[name]
    except (OSError, KeyError, ValueError) as error:
        raise OutputError(f"{path} is not a readable map: {error}") from error


def _map_variable(path: Path) -> str:
    """Name of the map's variable, from the root's attributes."""
    try:
        return json.loads((path / ".zattrs").read_text(encoding="utf-8"))["map_variable"]
    except (OSError, ValueError, KeyError) as error:
        raise OutputError(f"{path} is not a map written by this program.") from error


def _compressor() -> Any:
    from numcodecs import Blosc

    # With shuffled bytes, level 1 is fast and compresses nearly as well as any.
    return Blosc(cname="zstd", clevel=1, shuffle=Blosc.SHUFFLE)


def coordinates(geobox: GeoBox) -> dict[str, tuple[npt.NDArray[Any], dict[str, Any]]]:
    """Pixel-centre coordinates y and x in CRS units; longitudes exceed 180 where the grid does."""
    transform = geobox.affine
    centres: dict[str, npt.NDArray[Any]] = {
        "y": transform.f + transform.e * (np.arange(geobox.height) + 0.5),
        "x": transform.c + transform.a * (np.arange(geobox.width) + 0.5),
    }
    attributes = {axis["axis"].lower(): axis for axis in geobox_crs(geobox).proj.cs_to_cf()}
    return {name: (values, dict(attributes[name])) for name, values in centres.items()}


def grid_mapping(geobox: GeoBox) -> dict[str, Any]:
    """Attributes of the variable that describes the CRS: CF, and what other programs read."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # CF has no name for some parameters; the WKT beside them has all
        cf = geobox_crs(geobox).proj.to_cf()
    attributes = {key: _json_value(value) for key, value in cf.items()}
    attributes["spatial_ref"] = attributes["crs_wkt"]
    attributes["GeoTransform"] = " ".join(repr(float(number)) for number in geobox.affine.to_gdal())
    return attributes


def variable_attributes(geobox: GeoBox, metadata: MapMetadata, dimensions: tuple[str, ...] = ()) -> dict[str, Any]:
    """Attributes of a map's array; `dimensions`: those before y and x."""
    # No _FillValue attribute: Zarr 2 has a fill value of its own, and NaN is not valid JSON.
    return {
        "_ARRAY_DIMENSIONS": [*dimensions, "y", "x"],
        "_CRS": {"wkt": geobox_crs(geobox).proj.to_wkt()},
        "grid_mapping": GRID_MAPPING,
        "coordinates": f"{GRID_MAPPING} {MONTH}" if metadata.month else GRID_MAPPING,
        "long_name": one_line(metadata.quantity),
        "units": one_line(metadata.unit),
        # Not CF's `valid_range`: GDAL and others would silently mask values outside it.
        "valid_min": float(metadata.valid_range[0]),
        "valid_max": float(metadata.valid_range[1]),
    }


def variables(geobox: GeoBox, metadata: MapMetadata) -> dict[str, dict[str, Any]]:
    """Attributes of the map's variable and of those of its further bands, by name."""
    variables = {metadata.variable: variable_attributes(geobox, metadata)}
    for band in metadata.bands:
        described = replace(metadata, quantity=band.quantity, unit=band.unit, valid_range=band.valid_range)
        limit = {} if band.limit is None else {"low_trust_above": float(band.limit)}
        variables[band.name] = variable_attributes(geobox, described) | limit
    return variables


def root_attributes(metadata: MapMetadata) -> dict[str, Any]:
    """Attributes of a store: names and provenance of the map."""
    attributes = {one_line(key): _text(value) for key, value in metadata.tags.items()}
    return attributes | {
        "Conventions": "CF-1.8",
        "title": _text(metadata.title),
        "summary": _text(metadata.description),
        "attribution": [_text(line) for line in metadata.attribution],
        "map_variable": metadata.variable,
    }


def _text(text: str) -> str:
    """Text fit for JSON and UTF-8; line breaks stay."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _json_value(value: Any) -> Any:
    """CF parameters are numbers, texts and lists of them; infinities (inverse flattening) are not JSON."""
    if isinstance(value, list | tuple):
        return [_json_value(item) for item in value]
    return value if not isinstance(value, float) or math.isfinite(value) else str(value)
