"""One tile of an index: encoded, compared with what is stored of it, and written."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from sdm.engine.places import Places
from sdm.engine.targets import probability
from sdm.engine.tile import embed_tile, mappable
from sdm.files.atomic import disk_errors
from sdm.files.records import record_path, write_record
from sdm.grid import Tile
from sdm.index import store
from sdm.index.encoding import DTYPES, cosines, encode, encode_agreement
from sdm.index.plan import IndexJob
from sdm.index.reader import Index
from sdm.index.reuse import overlap
from sdm.models.protocol import Model
from sdm.models.registry import open_model
from sdm.names import Resolution

SAMPLED = 128
"""One in so many pixels of a tile is compared with what was stored of it."""
SPECIES = 512
"""Species it is compared for, at most."""


@dataclass(frozen=True)
class TileTask:
    """The arguments that all tiles of an index share."""

    job: IndexJob
    store: Path
    records: Path
    scratch: Path
    reuse: Index | None


@dataclass(frozen=True)
class _Encoded:
    """A tile's P pixels, encoded; and a sample of n of them, to compare."""

    codes: np.ndarray
    """(P, dim), 0 where not held."""
    scales: np.ndarray
    """(P,) float32, 0 where not held."""
    agreement: np.ndarray
    """(P,) uint8 codes, 0 where not held."""
    sample_vectors: np.ndarray
    """(n, dim) float32, as computed."""
    sample_codes: np.ndarray
    """(n, dim)."""
    sample_scales: np.ndarray
    """(n,)."""


def build_tile(tile: Tile, task: TileTask) -> None:
    """Encode one tile and write its chunks, then its record."""
    job, places = task.job, task.job.places
    lon, lat = places.lonlat(*places.pixels(tile))
    held, land, water = mappable(places, tile, [(m, None) for m in (job.storage.mask, "land", "sea")], lon, lat)
    summed = _encode(task, places, tile, held, None)
    known = summed.scales > 0.0
    arrays = {"agreement": summed.agreement.reshape(tile.shape)} | _arrays(tile, summed, None)
    for modality in store.held(job.identity):
        alone = replace(places, sampling=replace(places.sampling, modalities=(modality,)))
        part = _encode(task, alone, tile, held, modality)
        part.codes[~known], part.scales[~known] = 0, 0.0
        arrays |= _arrays(tile, part, modality)
    surface = (land * store.LAND + water * store.WATER).ravel().astype(np.uint8)
    surface[surface == 0] = store.NEITHER
    surface[~known] = store.NOT_HELD
    # Last: its presence tells a reader that the others are complete.
    arrays["surface"] = surface.reshape(tile.shape)
    device = places.here.partition(":")[0]
    values = _error(job, summed) | {"pixels": np.array([known.sum()]), "device": np.array([device])}
    files = _write(task.store, tile, arrays)
    write_record(record_path(task.records, tile.index), task.scratch, files, values)


def _arrays(tile: Tile, encoded: _Encoded, modality: str | None) -> dict[str, np.ndarray]:
    embedding, scale = store.names(modality)
    return {embedding: encoded.codes.reshape(*tile.shape, -1), scale: encoded.scales.reshape(tile.shape)}


def _write(path: Path, tile: Tile, arrays: Mapping[str, np.ndarray]) -> list[tuple[str, int, int]]:
    """Write the chunks of a tile, in the order of the arrays; returns (file, bytes, CRC-32) of each."""
    files = []
    with disk_errors(path):
        root = zarr.open_group(path, mode="r+", zarr_format=2, use_consolidated=False)
        for name, array in arrays.items():
            stored: Any = root[name]
            stored[tile.rows, tile.cols] = array
            file = f"{name}/" + ".".join(map(str, (*tile.index, 0)[: array.ndim]))
            if (path / file).exists():  # an empty chunk is not written
                content = (path / file).read_bytes()
                files.append((file, len(content), zlib.crc32(content)))
    return files


def _encode(task: TileTask, places: Places, tile: Tile, held: np.ndarray, modality: str | None) -> _Encoded:
    """Encode the pixels of a tile that are `held` (rows, columns), taking over those that another index has.

    `places` has the modality alone, or all of them where it is None.
    """
    storage, pixels = task.job.storage, tile.shape[0] * tile.shape[1]
    codes = np.zeros((pixels, places.model.dim), dtype=DTYPES[storage.encoding])
    scales = np.zeros(pixels, dtype=np.float32)
    agreement = np.zeros(pixels, dtype=np.uint8)
    sample = np.zeros(pixels, dtype=bool)
    sample[np.flatnonzero(held)[::SAMPLED]] = True
    skip = np.zeros(pixels, dtype=bool)
    common = None if task.reuse is None else overlap(task.reuse, task.job.grid, tile)
    if task.reuse is not None and common is not None:
        old_codes, old_scales, inside = task.reuse.encoded(*common.window, modality)
        where = common.pixels[inside]
        # Those of the sample are computed again, to be compared.
        wanted = held.ravel()[where] & ~sample[where]
        codes[where[wanted]], scales[where[wanted]] = old_codes[wanted], old_scales[wanted]
        skip[where[wanted]] = True
        old_agreement = task.reuse.agreement_codes(*common.window).ravel()
        agreement[where[wanted]] = old_agreement[inside][wanted]
    vectors, new, agreed = embed_tile(places, tile, storage.mask, skip.reshape(tile.shape))
    if len(new):
        codes[new], scales[new] = encode(vectors, storage.encoding)
        agreement[new] = 0 if agreed is None else encode_agreement(agreed)
    sampled = sample[new]
    return _Encoded(codes, scales, agreement, vectors[sampled], codes[new[sampled]], scales[new[sampled]])


def _error(job: IndexJob, encoded: _Encoded) -> dict[str, np.ndarray]:
    """The error of stored embeddings in the probability of the model's species at sampled places."""
    if not len(encoded.sample_vectors):
        return {"compared": np.zeros(1, np.int64), "error_sum": np.zeros(1), "error_max": np.zeros(1)}
    species = sample_of_species(job.places.model)
    score = probability(job.places.model, job.places.modalities)
    exact = cosines(encoded.sample_vectors, np.ones_like(encoded.sample_scales), species)
    stored = cosines(encoded.sample_codes, encoded.sample_scales, species)
    difference = np.abs(score.values(exact) - score.values(stored))
    return {
        "compared": np.array([difference.size]),
        "error_sum": np.array([difference.sum(dtype=np.float64)]),
        "error_max": np.array([float(difference.max())]),
    }


def sample_of_species(model: Model) -> np.ndarray:
    """Vectors (S, dim) of species of a model, evenly spaced in its list."""
    return _sample_of_species(model.folder, model.digest)


@lru_cache(maxsize=4)
def _sample_of_species(folder: Path, digest: str) -> np.ndarray:
    model = open_model(folder)
    taxa = list(model.taxa)
    chosen = taxa[:: -(-len(taxa) // SPECIES)]
    return np.stack([model.species_embedding(Resolution(t.name, t, True, "")) for t in chosen])
