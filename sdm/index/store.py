"""The index on disk: a Zarr store (format 2, consolidated); how one is written, and checked before it is read.

    embedding  (y, x, dimension) int8 or float16    codes of the unit summed embedding
    scale      (y, x) float32                       codes * scale is the unit vector; 0: not held
    surface    (y, x) uint8                         0 not held, 1 land, 2 water, 3 both, 4 neither; 255: never written
    agreement  (y, x) uint8                         1 to 255: how well the modalities agree, 0 to 1; 0: not held
    embedding_M, scale_M                            the same of one modality M, on request
    checksum   (tile row, tile column, array) uint32    CRC-32 of each chunk of the arrays above; 0: it has no file

A chunk is a tile, all dimensions of its pixels together. `surface` tells without the embeddings where a map
can show something, and what is missing: a tile is written with its embeddings first.

The attribute `region_index` holds the identity of the index, all that its bytes depend on. A store may come
from anyone: its metadata is bounded and checked before any of it is used, only plain numbers and Blosc
are decoded, and no chunk may unpack to more than the metadata says. Its entry `checksums` holds hashes of the rest of
the metadata and of `checksum`: whatever is read is what was written, and where it was written (`sdm.index.checksums`).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import url2pathname

import numpy as np
import numpy.typing as npt
import shapely
import zarr
from affine import Affine
from numcodecs import Blosc
from odc.geo.geobox import GeoBox
from zarr.abc.store import RangeByteRequest, Store
from zarr.storage import FsspecStore, LocalStore

from sdm.errors import RegionIndexError, SdmError
from sdm.grid import Grid, parse_crs
from sdm.index.checksums import CHECKSUM, CheckedStore, Checksums, of_metadata, refuse_special
from sdm.index.encoding import DTYPES
from sdm.models.protocol import Model
from sdm.outputs.metadata import MapMetadata
from sdm.outputs.zarr_store import root_attributes, variable_attributes, write_grid
from sdm.request import Sampling, Storage
from sdm.request.choices import LAND_SHARE, MASKS, MODALITIES, UNCOVERED

FORMAT = "taxabind-map-index/1"
ATTRIBUTE = "region_index"
NOT_HELD, LAND, WATER, COAST, NEITHER, UNWRITTEN = 0, 1, 2, 3, 4, 255
"""A pixel may have enough of land and water, LAND | WATER, or of neither."""

MAX_METADATA = 16 << 20
"""Bytes of `.zmetadata` that are read at most; a usual one has 20 kB."""
MAX_CHUNK = 1 << 30
"""Bytes of a chunk, unpacked, at most."""
MAX_SIDE = 1 << 24


@dataclass(frozen=True)
class Header:
    """The header of an index: the content of its attribute `region_index`, checked."""

    identity: Mapping[str, Any]
    """Everything that the bytes depend on; see `identity`."""
    notes: Mapping[str, Any]
    """Facts that they do not depend on: measured error, pixels held, software."""
    checksums: Checksums
    """What was written."""

    @property
    def digest(self) -> str:
        """16 hex digits that stand for the identity."""
        return digest(self.identity)

    def grid(self) -> Grid:
        """The pixels, without the region: it decided which of them are held when the index was built."""
        g = self.identity["grid"]
        box = GeoBox(tuple(g["shape"]), Affine(*g["transform"]), g["crs"])
        return Grid(box, g["tile"], None, tuple(g["bbox"]))


def identity(
    model: Model, layers: Mapping[str, str], grid: Grid, sampling: Sampling, storage: Storage
) -> dict[str, Any]:
    """Everything that the bytes of an index depend on, as JSON values.

    Parameters
    ----------
    model : that encodes.
    layers : from `sdm.engine.inputs.layer_fingerprints`.
    grid : the pixels.
    sampling : its modalities are stated. "month" is in the identity only where it is not the whole year.
    storage : what is held of each pixel.
    """
    sampled, stored = sampling.to_dict(), storage.to_dict()
    region = None
    if grid.region is not None:
        # Rounded to a hundred-millionth of a degree: the same polygon from another file format is the same.
        shape = shapely.normalize(shapely.set_precision(grid.region.geometry, 1e-8))
        region = hashlib.sha256(shapely.to_wkb(shape)).hexdigest()[:16]
    described = {
        "format": FORMAT,
        "model": {"name": model.space[0], "encoders": model.space[1]},
        "layers": dict(layers),
        "grid": {
            "crs": grid.crs,
            "transform": list(grid.geobox.affine)[:6],
            "shape": list(grid.shape),
            "tile": grid.tile_size,
            "bbox": list(grid.bbox),
        },
        "region": region,
        "modalities": sampled["modalities"],
        "each": stored["each"],
        "agreement": True,
        "mask": stored["mask"],
        "encoding": stored["encoding"],
        "land_share": LAND_SHARE if sampling.land_share is None else sampling.land_share,
        "uncovered": sampling.uncovered or UNCOVERED[0],
        "dim": model.dim,
        **({"month": sampled["month"]} if sampled["month"] else {}),
    }
    return json.loads(json.dumps(described))


def digest(identity: Mapping[str, Any]) -> str:
    """16 hex digits that stand for an identity."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def has_agreement(identity: Mapping[str, Any]) -> bool:
    """Whether an index of this identity stores how well the modalities agree; the first ones did not."""
    return identity.get("agreement", False)


def held(identity: Mapping[str, Any]) -> tuple[str, ...]:
    """The modalities whose own embeddings an index of this identity stores."""
    return tuple(identity["modalities"]) if identity["each"] else ()


def names(modality: str | None) -> tuple[str, str]:
    """The arrays of the summed embedding (None) or of one modality: (embedding, scale)."""
    return ("embedding", "scale") if modality is None else (f"embedding_{modality}", f"scale_{modality}")


# Writing -----------------------------------------------------------------------------------------


def create(path: Path, identity: Mapping[str, Any], grid: Grid, metadata: MapMetadata) -> None:
    """Make an empty store; `finish` makes an index of it when every tile is written."""
    root = zarr.create_group(path, zarr_format=2, attributes=root_attributes(metadata))
    write_grid(root, grid.geobox)
    rows, cols = grid.shape
    side, dim = grid.tile_size, identity["dim"]
    attributes = variable_attributes(grid.geobox, metadata)
    for key in ("long_name", "units", "valid_min", "valid_max"):
        attributes.pop(key)
    for modality in (None, *held(identity)):
        embedding, scale = names(modality)
        what = "summed embedding" if modality is None else f"embedding of the {modality}"
        root.create_array(
            embedding,
            shape=(rows, cols, dim),
            chunks=(side, side, dim),
            dtype=DTYPES[identity["encoding"]],
            # No fill value: 0 is a code like any other, and xarray would read it as missing.
            fill_value=None,
            compressors=compressor(identity["encoding"]),
            attributes=attributes
            | {
                "_ARRAY_DIMENSIONS": ["y", "x", "dimension"],
                "units": "1",
                "ancillary_variables": scale,
                "long_name": f"codes of the unit {what}; times {scale} they are the vector",
            },
        )
        root.create_array(
            scale,
            shape=(rows, cols),
            chunks=(side, side),
            dtype="float32",
            fill_value=0.0,
            compressors=Blosc("zstd", clevel=1, shuffle=Blosc.SHUFFLE),
            attributes=attributes | {"units": "1", "long_name": f"scale of {embedding}; 0: not held"},
        )
    meanings: dict[str, tuple[int, dict[str, Any]]] = {
        "agreement": (0, {"units": "1", "long_name": "1 + 254 x length of the mean of the modalities; 0: not held"}),
        "surface": (
            UNWRITTEN,
            {
                "long_name": "pixels held, and their surface",
                "flag_values": [NOT_HELD, LAND, WATER, COAST, NEITHER],
                "flag_meanings": "not_held land water land_and_water neither",
            },
        ),
    }
    for name, (fill, meaning) in meanings.items():
        root.create_array(
            name,
            shape=(rows, cols),
            chunks=(side, side),
            dtype="uint8",
            fill_value=fill,
            compressors=Blosc("zstd", clevel=1, shuffle=Blosc.NOSHUFFLE),
            attributes=attributes | meaning,
        )


def finish(
    path: Path, identity: Mapping[str, Any], notes: Mapping[str, Any], checks: Iterable[tuple[str, int]]
) -> None:
    """Write what makes an index of a store full of tiles: checksums, its attribute, then the consolidated metadata.

    `checks`: of each chunk, its key in the store and the CRC-32 of its file.
    """
    root = zarr.open_group(path, mode="r+", zarr_format=2)
    grid = identity["grid"]
    layout = stored_arrays(identity)
    table = np.zeros((*tiles_of(grid), len(layout)), dtype=np.uint32)
    for key, check in checks:
        name, _, at = key.rpartition("/")
        row, col = at.split(".")[:2]
        table[int(row), int(col), layout.index(name)] = check
    stored = root.create_array(
        CHECKSUM,
        shape=table.shape,
        chunks=table.shape,
        dtype="uint32",
        fill_value=0,
        compressors=Blosc("zstd", clevel=1, shuffle=Blosc.SHUFFLE),
        attributes={
            "_ARRAY_DIMENSIONS": ["tile_y", "tile_x", "array"],
            "long_name": f"CRC-32 of the chunks of {', '.join(layout)}; 0: no file",
        },
        overwrite=True,
    )
    stored[...] = table
    header: dict[str, Any] = {"digest": digest(identity), "identity": dict(identity), "notes": dict(notes)}
    root.attrs[ATTRIBUTE] = header
    zarr.consolidate_metadata(path, zarr_format=2)
    rest = of_metadata(json.loads((path / ".zmetadata").read_bytes())["metadata"], ATTRIBUTE)
    root.attrs[ATTRIBUTE] = header | {"checksums": Checksums.of(path, table, rest).to_dict()}
    zarr.consolidate_metadata(path, zarr_format=2)


def stored_arrays(identity: Mapping[str, Any]) -> tuple[str, ...]:
    """The arrays of tiles, in the order of `checksum`."""
    embeddings = (name for modality in (None, *held(identity)) for name in names(modality))
    return ("surface", *(("agreement",) if has_agreement(identity) else ()), *embeddings)


def tiles_of(grid: Mapping[str, Any]) -> tuple[int, int]:
    """Rows and columns of tiles of the grid of an identity."""
    rows, cols = (-(-n // grid["tile"]) for n in grid["shape"])
    return rows, cols


def compressor(encoding: str) -> Blosc:
    """The codec of the embeddings."""
    # Measured by benchmarks/index_encoding.py. Neighbours differ little, so that zstd finds half of the bytes of
    # int8 to be repetition; the last bits of float16 are noise, and only bit planes of the others are not.
    return Blosc("zstd", clevel=1, shuffle=Blosc.NOSHUFFLE) if encoding == "int8" else Blosc("lz4", clevel=5, shuffle=2)


# Reading -----------------------------------------------------------------------------------------


def open_store(url: str, storage_options: Mapping[str, Any] | None) -> tuple[Header, zarr.Group]:
    """Open an index by path or fsspec URL and check its header. Raises RegionIndexError."""
    if "://" not in url and not Path(url).exists() and Path(f"{url}.partial").exists():
        raise RegionIndexError(f"region index {url!r} is still being built; `sdm index build` continues it.")
    try:
        store = _store(url, storage_options)
        metadata = _read_bounded(store, url)
        header = _check(metadata, url)
        checked = CheckedStore(store, _largest_chunk(header.identity))
        group = zarr.open_group(checked, mode="r", zarr_format=2, use_consolidated=True)
        _check_arrays(group, header, url)
        if of_metadata(metadata, ATTRIBUTE) != header.checksums.metadata:
            raise RegionIndexError(f"region index {url!r} is damaged: its metadata was changed; build it again.")
        table: Any = group[CHECKSUM]
        checked.expect(stored_arrays(header.identity), table[...], header.checksums)
    except SdmError:
        raise
    except ImportError as error:
        raise RegionIndexError(
            f"region index {url!r} needs a package for that kind of address: {error}; install taxabind-map[remote]."
        ) from error
    except Exception as error:  # s3fs, gcsfs and aiohttp each have errors of their own
        raise RegionIndexError(f"region index {url!r} cannot be read: {brief(error)}.") from error
    return header, group


def brief(error: Exception) -> str:
    """A short text of an error."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text[:200].rstrip(".")


def _store(url: str, storage_options: Mapping[str, Any] | None) -> Store:
    scheme, _, rest = url.partition("://")
    if scheme in ("file", "local"):  # without fsspec, which would wait for whoever writes into a pipe
        url = url2pathname(rest)
    if "://" in url:
        return FsspecStore.from_url(url, storage_options=dict(storage_options or {}), read_only=True)
    return LocalStore(Path(url), read_only=True)


def _largest_chunk(identity: Mapping[str, Any]) -> int:
    """Bytes of a chunk, unpacked, at most."""
    rows, cols = tiles_of(identity["grid"])
    tile = identity["grid"]["tile"] ** 2 * max(identity["dim"] * DTYPES[identity["encoding"]].itemsize, 4)
    return max(tile, rows * cols * len(stored_arrays(identity)) * 4)


def _read_bounded(store: Store, url: str) -> dict[str, Any]:
    from zarr.core.buffer import default_buffer_prototype
    from zarr.core.sync import sync

    refuse_special(store, ".zmetadata")
    content = sync(store.get(".zmetadata", default_buffer_prototype(), RangeByteRequest(0, MAX_METADATA + 1)))
    if content is None:
        raise RegionIndexError(
            f"{url!r} is not a region index: it has no .zmetadata; make one with `sdm index build`, or wait "
            "until it is built."
        )
    if len(content) > MAX_METADATA:
        raise RegionIndexError(f"{url!r} is not a region index: its metadata has more than {MAX_METADATA} bytes.")
    try:
        metadata = json.loads(content.to_bytes())["metadata"]
        return metadata if isinstance(metadata, dict) else {}
    except (ValueError, KeyError, TypeError, RecursionError):
        raise RegionIndexError(f"{url!r} is not a region index: its .zmetadata is damaged.") from None


def _check(metadata: Mapping[str, Any], url: str) -> Header:
    """The header in consolidated metadata. Raises RegionIndexError unless every part is what it must be."""
    attributes = metadata.get(".zattrs")
    content = attributes.get(ATTRIBUTE) if isinstance(attributes, dict) else None
    if not isinstance(content, dict):
        raise RegionIndexError(f"{url!r} is not a region index: it has no attribute {ATTRIBUTE!r}.")
    identity, notes = content.get("identity"), content.get("notes")
    if not isinstance(identity, dict) or not isinstance(notes, dict):
        raise RegionIndexError(f"{url!r} is not a region index: its attribute {ATTRIBUTE!r} is incomplete.")
    if identity.get("format") != FORMAT:
        raise RegionIndexError(
            f"region index {url!r} has the format {str(identity.get('format'))[:40]!r}; this version reads {FORMAT!r}."
        )
    try:
        good = _well_formed(identity) and _notes_well_formed(notes)
    except (SdmError, KeyError, TypeError, ValueError, AttributeError, OverflowError):
        good = False
    if not good or content.get("digest") != digest(identity):
        raise RegionIndexError(f"region index {url!r} is damaged: its parts contradict each other.")
    if "checksums" not in content:
        raise RegionIndexError(
            f"region index {url!r} has no checksums, as those of earlier versions: damage to it would go unnoticed; "
            "build it again."
        )
    return Header(identity, notes, Checksums.from_dict(content["checksums"], url))


def _well_formed(identity: Mapping[str, Any]) -> bool:
    """Whether every part of an identity is of its type and within its bounds; may raise for one that is not."""
    texts = [identity["mask"], identity["encoding"], *identity["model"].values(), *identity["layers"].values()]
    month, modalities = identity.get("month", 0), identity["modalities"]
    return (
        _grid_well_formed(identity["grid"], identity["dim"])
        and all(isinstance(text, str) and len(text) < 100_000 for text in texts)
        and "name" in identity["model"]
        # Earlier versions stated the whole model.
        and bool({"encoders", "digest"} & identity["model"].keys())
        and identity["mask"] in MASKS
        and type(share := identity.get("land_share", LAND_SHARE)) in (int, float)
        and 0.0 <= share <= 1.0
        and identity.get("uncovered", UNCOVERED[0]) in UNCOVERED
        and identity["encoding"] in DTYPES
        and isinstance(identity["each"], bool)
        and isinstance(identity.get("agreement", False), bool)
        and (type(month) is int and 0 <= month <= 12)
        and len(modalities) > 0
        and modalities == [m for m in MODALITIES if m in modalities]
        and _largest_chunk(identity) <= MAX_CHUNK
    )


def _grid_well_formed(grid: Mapping[str, Any], dim: Any) -> bool:
    sizes, transform = [*grid["shape"], grid["tile"], dim], grid["transform"]
    return (
        len(grid["shape"]) == 2
        and len(transform) == 6
        and len(grid["bbox"]) == 4
        and all(type(n) is int and 0 < n <= MAX_SIDE for n in sizes)
        and 16 <= grid["tile"] <= 8192
        and all(type(n) in (int, float) and math.isfinite(n) for n in [*transform, *grid["bbox"]])
        and transform[1] == transform[3] == 0.0
        and transform[0] == -transform[4] > 0.0
        and isinstance(grid["crs"], str)
        and len(grid["crs"]) < 100_000
        and parse_crs(grid["crs"]) == grid["crs"]
    )


def _notes_well_formed(notes: Mapping[str, Any]) -> bool:
    error = notes["error_of_probability"]
    numbers = [notes["pixels_held"], error["compared"], error["mean"], error["largest"]]
    return all(type(n) in (int, float) and math.isfinite(n) for n in numbers)


def _check_arrays(group: zarr.Group, header: Header, url: str) -> None:
    i = header.identity
    (rows, cols), side = i["grid"]["shape"], i["grid"]["tile"]
    square, table = (side, side), (*tiles_of(i["grid"]), len(stored_arrays(i)))
    expected: dict[str, tuple[tuple[int, ...], tuple[int, ...], npt.DTypeLike]] = {
        "surface": ((rows, cols), square, "uint8"),
        CHECKSUM: (table, table, "uint32"),
    }
    if has_agreement(i):
        expected["agreement"] = ((rows, cols), square, "uint8")
    for modality in (None, *held(i)):
        embedding, scale = names(modality)
        expected[embedding] = ((rows, cols, i["dim"]), (*square, i["dim"]), DTYPES[i["encoding"]])
        expected[scale] = ((rows, cols), square, "float32")
    for name, (shape, chunks, dtype) in expected.items():
        array = group.get(name)
        good = (
            isinstance(array, zarr.Array)
            and array.shape == shape
            and array.dtype == np.dtype(dtype)
            and array.chunks == chunks
            and not array.filters
            and all(isinstance(c, Blosc) for c in array.compressors)
            and len(array.compressors) == 1
        )
        if not good:
            raise RegionIndexError(f"region index {url!r} is damaged: array {name!r} has the wrong shape or type.")
