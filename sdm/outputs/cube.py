"""Maps of many species in one Zarr store: a variable (species, y, x), and their sum, written tile by tile.

Values are kept to the nearest 1/8192: an error of at most 0.00006, far below that of any probability. The
noise in the last bits of a float32 is most of what a compressor has to store: without it a list of species
takes a twentieth to a fiftieth of the space, and is written faster.

A chunk holds `SPECIES` species of one tile. One species a chunk would make a file per species and tile, a
million for 1,000 species over a continent; all of them in one would make reading a species read everything.
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
"""What stored values are whole multiples of."""
_ROUNDER = np.float32(1024.0)  # neighbouring float32 between 1024 and 2048 are STEP apart


def round_(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Round float32 values within -1000..1000 to multiples of `STEP`, in place; NaN stays."""
    values += _ROUNDER
    values -= _ROUNDER
    return values


def create(
    path: Path,
    geobox: GeoBox,
    side: int,
    labels: Mapping[str, tuple[Sequence[Any], str]],
    metadata: MapMetadata,
    total: MapMetadata,
) -> None:
    """Make an empty store at `path`, every pixel of every species not modelled.

    `labels`: per coordinate along the species dimension its values, one a species, and its long name;
    among them "species", the dimension's own. `side`: pixels of a tile. `metadata`: of the variable
    (species, y, x); `total`: of the variable (y, x), their sum. Raises OutputError.
    """
    if path.exists():
        raise OutputError(f"{path} exists already.")
    count = len(labels["species"][0])
    rows, cols = geobox.shape
    chunks = (min(SPECIES, count), min(side, rows), min(side, cols))
    with disk_errors(path):
        attributes = root_attributes(metadata) | {"map_variable": total.variable}
        root = zarr.create_group(path, zarr_format=2, attributes=attributes)
        write_grid(root, geobox)
        write_month(root, metadata.month)
        for name, (values, long_name) in labels.items():
            array = _coordinate(values)
            root.create_array(
                name, shape=array.shape, chunks=array.shape, dtype=array.dtype, fill_value=None, compressors=codec(),
                attributes={"_ARRAY_DIMENSIONS": ["species"], "long_name": long_name},
            )[...] = array  # fmt: skip
        beside = [name for name in labels if name != "species"]
        precision = {"precision": f"rounded to multiples of {STEP:.10g}"}
        for meta, more, shape in ((metadata, ("species",), (count, rows, cols)), (total, (), (rows, cols))):
            described = variable_attributes(geobox, meta, more) | precision
            if more:
                described["coordinates"] = " ".join([described["coordinates"], *beside])
            root.create_array(
                meta.variable, shape=shape, chunks=chunks[-len(shape) :], dtype="float32", fill_value=np.float32("nan"),
                compressors=codec(), attributes=described,
            )  # fmt: skip
        zarr.consolidate_metadata(path, zarr_format=2)


@cache
def codec() -> Any:
    """The compressor of the chunks."""
    from numcodecs import Blosc

    # Measured on rounded maps: nearly twice the size of zstd at level 1, at three times the speed.
    return Blosc(cname="lz4", clevel=5, shuffle=Blosc.SHUFFLE)


def encode_chunk(values: npt.NDArray[np.float32], shape: tuple[int, ...]) -> bytes:
    """The bytes of a chunk of the given shape; `values` fill it, or its beginning at the end of the array."""
    if values.shape != tuple(shape):
        whole = np.full(shape, np.nan, dtype=np.float32)
        whole[tuple(slice(length) for length in values.shape)] = values
        values = whole
    return codec().encode(np.ascontiguousarray(values, dtype=np.float32))


def write_chunk(
    path: Path, variable: str, index: tuple[int, ...], encoded: bytes, scratch: Path
) -> tuple[str, int, int]:
    """Write the bytes of one chunk into the store at `path`; returns (file in the store, bytes, their CRC-32).

    The file is made in the folder `scratch`, on the same file system, and appears complete or not at all.
    """
    name = f"{variable}/{'.'.join(map(str, index))}"
    part = scratch / uuid.uuid4().hex
    with disk_errors(path):
        part.write_bytes(encoded)
        part.replace(path / name)
    return name, len(encoded), zlib.crc32(encoded)


def open_cube(path: Path) -> xr.Dataset:
    """Open a store lazily, its coordinates in memory: Dask chunks as on disk, CRS. Raises OutputError."""
    import odc.geo.xr  # noqa: F401  the .odc accessor
    import rioxarray  # noqa: F401  the .rio accessor
    import xarray as xr

    try:
        data = xr.open_zarr(path, consolidated=True, decode_coords="all", chunks={})
        return data.assign_coords({name: coordinate.load() for name, coordinate in data.coords.items()})
    except (OSError, KeyError, ValueError) as error:
        raise OutputError(f"{path} is not a readable map: {error}") from error


class Layer:
    """One map of a store as a source for the writers (`sdm.outputs.blocks`), without xarray and Dask in between."""

    chunks = None

    def __init__(self, path: Path, variable: str, species: int | None = None) -> None:
        """Of the variable (y, x), or of one species of the variable (species, y, x)."""
        self._array, self._species = zarr.open_array(path / variable, mode="r", zarr_format=2), species
        self.shape = self._array.shape[-2:]
        self.encoding = {"chunks": self._array.chunks[-2:]}

    def __getitem__(self, place: tuple[slice, slice]) -> npt.NDArray[np.float32]:
        """Values (rows, columns), float32."""
        return self._array[place] if self._species is None else self._array[self._species, *place]


def _coordinate(values: Sequence[Any]) -> npt.NDArray:
    if all(isinstance(value, str) for value in values):
        # Of fixed length: GDAL cannot read Zarr's strings of variable length.
        return np.array([one_line(value) for value in values], dtype=str)
    return np.asarray(values)
