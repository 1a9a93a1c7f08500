"""Maps of many species in one Zarr store: a variable (species, y, x), and their sum, written tile by tile.

Values are rounded to multiples of 1/8192: an error of at most 0.00006, far below that of any probability.
Noise in the last bits of a float32 hardly compresses: without it a list of species takes a twentieth to a
fiftieth of the space, and is written faster.

A chunk contains `SPECIES` species of one tile. With one species per chunk there would be a million files for
1,000 species over a continent; with all species in one chunk, reading one species would read everything.
"""

from __future__ import annotations

import uuid
import zlib
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import zarr
from odc.geo.geobox import GeoBox

from sdm.errors import OutputError
from sdm.files.atomic import disk_errors
from sdm.outputs.metadata import MapMetadata, one_line
from sdm.outputs.zarr_store import root_attributes, variable_attributes, write_grid, write_month

if TYPE_CHECKING:
    import xarray as xr

SPECIES = 16
"""Species in a chunk."""
STEP = 2.0**-13
"""Stored values are integer multiples of this."""
_ROUNDER = np.float32(1024.0)  # successive float32 numbers between 1024 and 2048 differ by STEP


def round_(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Round float32 values within -1000..1000 to multiples of `STEP`, in place; NaN stays NaN."""
    values += _ROUNDER
    values -= _ROUNDER
    return values


def create(
    path: Path,
    geobox: GeoBox,
    tile_size: int,
    labels: Mapping[str, tuple[Sequence[Any], str]],
    metadata: MapMetadata,
    total: MapMetadata,
    further: Sequence[MapMetadata] = (),
    bands: Sequence[MapMetadata] = (),
) -> None:
    """Create an empty store at `path`: no pixel of any species is modelled.

    Parameters
    ----------
    path
        Folder of the store.
    geobox
        The pixels of the maps.
    tile_size
        Side of a tile in pixels.
    labels
        Coordinates along the species dimension: name to (one value per species, long name). Among them is
        "species", the dimension itself.
    metadata
        Of the variable (species, y, x).
    total
        Of the variable (y, x), the sum over the species.
    further
        Of other variables (y, x).
    bands
        Of other variables (species, y, x).

    Raises
    ------
    OutputError
        When `path` exists or cannot be written.
    """
    if path.exists():
        raise OutputError(f"{path} exists already.")
    count = len(labels["species"][0])
    rows, cols = geobox.shape
    chunks = (min(SPECIES, count), min(tile_size, rows), min(tile_size, cols))
    with disk_errors(path):
        attributes = root_attributes(metadata) | {"map_variable": total.variable}
        root = zarr.create_group(path, zarr_format=2, attributes=attributes)
        write_grid(root, geobox)
        write_month(root, metadata.month)
        for name, (values, long_name) in labels.items():
            _write_label(root, name, values, long_name)
        for one in (metadata, *bands):
            attributes = variable_attributes(geobox, one, ("species",))
            attributes["coordinates"] = " ".join(
                [attributes["coordinates"], *(name for name in labels if name != "species")]
            )
            _create_variable(root, one.variable, (count, rows, cols), chunks, attributes)
        for one in (total, *further):
            _create_variable(root, one.variable, (rows, cols), chunks[1:], variable_attributes(geobox, one))
        zarr.consolidate_metadata(path, zarr_format=2)


def _write_label(root: zarr.Group, name: str, values: Sequence[Any], long_name: str) -> None:
    array = _coordinate(values)
    label = root.create_array(
        name,
        shape=array.shape,
        chunks=array.shape,
        dtype=array.dtype,
        fill_value=None,
        compressors=codec(),
        attributes={"_ARRAY_DIMENSIONS": ["species"], "long_name": long_name},
    )
    label[...] = array


def _create_variable(
    root: zarr.Group, name: str, shape: tuple[int, ...], chunks: tuple[int, ...], attributes: dict[str, Any]
) -> None:
    root.create_array(
        name,
        shape=shape,
        chunks=chunks,
        dtype="float32",
        fill_value=np.float32("nan"),
        compressors=codec(),
        attributes=attributes | {"precision": f"rounded to multiples of {STEP:.10g}"},
    )


@cache
def codec() -> Any:
    """The compressor of the chunks."""
    from numcodecs import Blosc

    # Measured on rounded maps: files nearly twice as large as with zstd at level 1, written three times as fast.
    return Blosc(cname="lz4", clevel=5, shuffle=Blosc.SHUFFLE)


def encode_chunk(values: npt.NDArray[np.float32], shape: tuple[int, ...]) -> bytes:
    """The bytes of a chunk of the given shape. At the end of the array, `values` may fill its beginning only."""
    if values.shape != tuple(shape):
        padded = np.full(shape, np.nan, dtype=np.float32)
        padded[tuple(slice(length) for length in values.shape)] = values
        values = padded
    return codec().encode(np.ascontiguousarray(values, dtype=np.float32))


def write_chunk(
    path: Path, variable: str, index: tuple[int, ...], encoded: bytes, scratch: Path
) -> tuple[str, int, int]:
    """Write the bytes of one chunk into a store; the file appears complete or not at all.

    Parameters
    ----------
    path
        Folder of the store.
    variable
        Name of the variable.
    index
        Position of the chunk along each dimension.
    encoded
        Bytes from `encode_chunk`.
    scratch
        Folder for the unfinished file, on the same file system.

    Returns
    -------
    tuple[str, int, int]
        The file's path within the store, its size in bytes and its CRC-32.
    """
    name = f"{variable}/{'.'.join(map(str, index))}"
    unfinished = scratch / uuid.uuid4().hex
    with disk_errors(path):
        unfinished.write_bytes(encoded)
        unfinished.replace(path / name)
    return name, len(encoded), zlib.crc32(encoded)


def open_cube(path: Path) -> xr.Dataset:
    """Open a store lazily, with its CRS, Dask chunks as on disk, coordinates in memory. Raises OutputError."""
    import odc.geo.xr  # noqa: F401  the .odc accessor
    import rioxarray  # noqa: F401  the .rio accessor
    import xarray as xr

    try:
        data = xr.open_zarr(path, consolidated=True, decode_coords="all", chunks={})
        return data.assign_coords({name: coordinate.load() for name, coordinate in data.coords.items()})
    except (OSError, KeyError, ValueError) as error:
        raise OutputError(f"{path} is not a readable map: {error}") from error


class Layer:
    """One map of a store as a source for the writers (`sdm.outputs.blocks`), without xarray and Dask."""

    chunks = None

    def __init__(self, path: Path, variable: str, species: int | None = None) -> None:
        """Open the variable (y, x), or the map of one species (by number) in the variable (species, y, x)."""
        self._array, self._species = zarr.open_array(path / variable, mode="r", zarr_format=2), species
        self.shape = self._array.shape[-2:]
        self.encoding = {"chunks": self._array.chunks[-2:]}

    def __getitem__(self, place: tuple[slice, slice]) -> npt.NDArray[np.float32]:
        """Values (rows, columns), float32."""
        window = place if self._species is None else (self._species, *place)
        return np.asarray(self._array[window], dtype=np.float32)


def _coordinate(values: Sequence[Any]) -> npt.NDArray:
    if all(isinstance(value, str) for value in values):
        # Strings of fixed length: GDAL cannot read Zarr's strings of variable length.
        return np.array([one_line(value) for value in values], dtype=str)
    return np.asarray(values)
