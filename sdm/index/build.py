"""Make a region index: a set of tiles, each encoded once, whatever happens in between.

While it is being built, everything lies in a folder beside its final place::

    west.zarr.partial/
        build.json      what was asked, written first; the next run must ask the same
        tiles/I.J.npz   the record of a finished tile: its files with sizes and CRCs, its error
        tmp/            records being written
        index.zarr      the store, without what makes an index of it

A tile's record is written after its chunks. The next run believes a record only if the files it names are
whole, so neither a killed process nor a power cut can leave a gap; the end result has the same bytes as that
of a run never interrupted. One build at a time: a lock beside the output dies with its process.

Pixels of another index that was made of the same stuff can be taken over (`reuse`). Lattices are common to all
maps of one CRS and resolution, so these are the very pixels that would be computed: an index grows without
encoding any place twice.
"""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr

from sdm._version import __version__
from sdm.engine.cluster import active_client, processors
from sdm.engine.inputs import layer_fingerprints
from sdm.engine.places import Places
from sdm.engine.setup import places_of
from sdm.engine.targets import score_of
from sdm.engine.tasks import run_tasks
from sdm.engine.tile import embed_tile, mappable
from sdm.errors import OutputError, RegionIndexError, RequestError
from sdm.files.atomic import check_folder, disk_errors, flush, flush_folder
from sdm.files.workspace import (
    differences,
    files_are_whole,
    read_record,
    record_of,
    take_lock,
    write_record,
    write_whole,
)
from sdm.grid import WGS84, BBox, Grid, Tile
from sdm.index import store
from sdm.index.encoding import DTYPES, cosines, encode
from sdm.index.reader import Index
from sdm.layers import ATTRIBUTION
from sdm.models.bundled import Model
from sdm.models.device import local_device
from sdm.models.licence import credits_of
from sdm.names import Resolution
from sdm.outputs.metadata import MapMetadata
from sdm.request import Execution
from sdm.request.months import WHOLE_YEAR, month_name, when

if TYPE_CHECKING:
    import geopandas
    import shapely

SAMPLED = 128
"""One in so many pixels of a tile is compared with what was stored of it."""
SPECIES = 512
"""Species it is compared for, at most."""


@dataclass(frozen=True)
class IndexJob:
    """A planned index: everything decided, nothing encoded."""

    places: Places
    mask: str
    encoding: str
    each: bool
    identity: dict[str, Any]

    @property
    def grid(self) -> Grid:
        """The pixel grid."""
        return self.places.grid

    @property
    def digest(self) -> str:
        """The digest the index will have."""
        return store.digest(self.identity)

    def estimate(self) -> dict[str, Any]:
        """What a build would do: pixels, tiles, bytes on disk at most."""
        rows, cols = self.grid.shape
        parts = 1 + (len(self.places.modalities) if self.each else 0)
        per_pixel = parts * (self.places.model.dim * DTYPES[self.encoding].itemsize + 4) + 1
        return {
            "crs": self.grid.crs, "resolution": self.grid.resolution, "columns": cols, "rows": rows,
            "pixels": self.grid.pixels, "tiles": self.grid.tile_count, "bytes_at_most": self.grid.pixels * per_pixel,
            "model": self.places.model.name, "modalities": list(self.places.modalities), "each": self.each,
            "mask": self.mask, "encoding": self.encoding, "device": self.places.device, "digest": self.digest,
            "month": self.places.month or None,
        }  # fmt: skip


def plan_index(
    bbox: BBox | Sequence[float] | None = None,
    region: str | Path | geopandas.GeoDataFrame | shapely.Geometry | None = None,
    *,
    crs: str | int = WGS84,
    resolution: float | None = None,
    model: str | Path | Model | None = None,
    modalities: str | Sequence[str] | None = None,
    satellite: str | Path | None = None,
    environment: str | Path | Sequence[str | Path] = (),
    mask: str = "land",
    encoding: str = "int8",
    each: bool = False,
    month: int | str | None = None,
    device: str = "auto",
    tile_size: int = 256,
    max_pixels: int = 1_000_000_000,
) -> IndexJob:
    """Decide everything about an index without encoding a place.

    `bbox`, `region`, `crs`, `resolution`, `satellite`, `environment`, `device`: as in `sdm.plan`. `model`: name
    or folder, by default the bundled one. `mask`: which pixels are held, land (without lakes), sea, or none
    for both; a species that lives elsewhere cannot be mapped with the index. `encoding`: int8 or float16.
    `each`: store the embedding of each modality too. `month`: as in `sdm.plan`; decided here for all maps of the index.
    `tile_size`: also the chunk, in pixels.

    Raises SdmError subclasses: see `sdm.errors`.
    """
    if mask not in store.MASKS:
        raise RequestError(f"mask {mask!r} is not known; choose one of {', '.join(store.MASKS)}.")
    if encoding not in DTYPES:
        raise RequestError(f"encoding {encoding!r} is not known; choose one of {', '.join(DTYPES)}.")
    places = places_of(
        bbox, region, crs=crs, resolution=resolution, model=model, modalities=modalities, satellite=satellite,
        environment=environment, month=month, device=device, tile_size=tile_size, max_pixels=max_pixels,
    )  # fmt: skip
    opened = places.model
    if not opened.calibrated:
        raise RequestError(
            f"model {opened.name!r} is not calibrated, and the error of an index is measured in probability; only "
            "models of this project's own format can be indexed yet."
        )
    if tile_size**2 * opened.dim * DTYPES[encoding].itemsize > store.MAX_CHUNK:
        raise RequestError(f"tile size {tile_size} makes chunks of more than {store.MAX_CHUNK >> 20} MB; choose less.")
    described = store.identity(
        model={"name": opened.name, "version": opened.version, "digest": opened.digest},
        layers=layer_fingerprints(places.modalities, places.environment, places.satellite),
        grid=places.grid, modalities=places.modalities, each=each, mask=mask, encoding=encoding, dim=opened.dim,
        month=places.month,
    )  # fmt: skip
    return IndexJob(places, mask, encoding, each, described)


def build_index(
    job: IndexJob,
    out: str | Path,
    *,
    reuse: Index | str | Path | None = None,
    overwrite: bool = False,
    threads: int | None = None,
    workers: int | None = None,
    scheduler_address: str | Path | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Index:
    """Encode every tile of a job that is not done yet, and publish the index at `out`, a folder.

    Interrupted at any moment, the same call goes on where it was. A finished index of the same job is
    returned as it is. `reuse`: an index whose pixels are taken over where they are the same. `threads`,
    `workers`, `scheduler_address`: as in `sdm.write_maps`. `progress(stage, done, total)`.

    Raises OutputError when `out` is something else (without `overwrite`), is being built by another process
    or with other settings; RegionIndexError when `reuse` was made of other stuff.
    """
    out = Path(out)
    tell = progress or (lambda stage, done, total: None)
    if workers is None and scheduler_address is None and active_client() is None:
        local_device(job.places.device)
    reuse = None if reuse is None else _reusable(reuse, job)
    check_folder(out.parent)
    with _Folder(out) as folder, disk_errors(out):
        if not folder.begin(job, overwrite):
            return Index.open(out)
        tiles = list(job.grid.tiles())
        todo = folder.todo(tiles)
        tell("tiles", len(tiles) - len(todo), len(tiles))
        finished = len(tiles) - len(todo)

        def done(_) -> None:
            nonlocal finished
            finished += 1
            tell("tiles", finished, len(tiles))

        where = folder.partial.absolute()
        task = _Task(job, where / "index.zarr", where / "tiles", where / "tmp", reuse)
        execution = Execution(threads=threads, workers=workers, scheduler_address=scheduler_address)
        run_tasks(build_tile, todo, (task,), execution=execution, folder=where, done=done)
        folder.publish(job, tiles)
    return Index.open(out)


@dataclass(frozen=True)
class _Task:
    """What a tile needs to be built."""

    job: IndexJob
    store: Path
    records: Path
    scratch: Path
    reuse: Index | None


def build_tile(tile: Tile, task: _Task) -> None:
    """Encode one tile and write its chunks, then its record."""
    job, places = task.job, task.job.places
    held, land = mappable(places, tile, [(job.mask, None), ("land", None)], *places.lonlat(*places.pixels(tile)))
    old = None if task.reuse is None else _old_pixels(task.reuse, job.grid, tile)
    parts = (None, *store.held(job.identity))
    arrays, values = {}, {}
    for modality in parts:
        of = places if modality is None else replace(places, modalities=(modality,))
        codes, scales, sample = _encode_part(of, tile, held, job, None if old is None else (task.reuse, *old), modality)
        if modality is None:
            known, values = scales > 0.0, _error(job, *sample)
        else:
            codes[~known], scales[~known] = 0, 0.0
        embedding, scale = store.names(modality)
        arrays[embedding], arrays[scale] = codes.reshape(*tile.shape, -1), scales.reshape(tile.shape)
    surface = np.where(land.ravel(), store.LAND, store.WATER).astype(np.uint8)
    surface[~known] = store.NOT_HELD
    # Last: a reader takes it as the word that the others are there.
    arrays["surface"] = surface.reshape(tile.shape)
    values |= {"pixels": np.array([known.sum()]), "device": np.array([places.here.partition(":")[0]])}
    files = []
    with disk_errors(task.store):
        root = zarr.open_group(task.store, mode="r+", zarr_format=2, use_consolidated=False)
        for name, array in arrays.items():
            root[name][tile.rows, tile.cols] = array
            file = f"{name}/" + ".".join(map(str, (*tile.index, 0)[: array.ndim]))
            path = task.store / file
            if path.exists():  # a chunk without anything is not written
                content = path.read_bytes()
                files.append((file, len(content), zlib.crc32(content)))
    write_record(record_of(task.records, tile.index), task.scratch, files, values)


def _encode_part(places: Places, tile: Tile, held: np.ndarray, job: IndexJob, old, modality: str | None):
    """Codes (P, dim) and scales (P,) of a tile's P pixels, 0 where not held.

    And of a sample of them: embeddings (n, dim), codes (n, dim), scales (n,).
    """
    pixels = tile.shape[0] * tile.shape[1]
    codes = np.zeros((pixels, places.model.dim), dtype=DTYPES[job.encoding])
    scales = np.zeros(pixels, dtype=np.float32)
    sample = np.zeros(pixels, dtype=bool)
    sample[np.flatnonzero(held)[::SAMPLED]] = True
    skip = np.zeros(pixels, dtype=bool)
    if old is not None:
        index, window, inside = old
        encoded_codes, encoded_scales, where = index.encoded(*window, modality)
        where = inside[where]
        wanted = held.ravel()[where] & ~sample[where]
        codes[where[wanted]], scales[where[wanted]] = encoded_codes[wanted], encoded_scales[wanted]
        skip[where[wanted]] = True
    vectors, new = embed_tile(places, tile, job.mask, skip.reshape(tile.shape))
    if len(new):
        codes[new], scales[new] = encode(vectors, job.encoding)
    sampled = sample[new]
    return codes, scales, (vectors[sampled], codes[new[sampled]], scales[new[sampled]])


def _error(job: IndexJob, vectors: np.ndarray, codes: np.ndarray, scales: np.ndarray) -> dict[str, np.ndarray]:
    """What storing did to the probability of the model's species at some places."""
    if not len(vectors):
        return {"compared": np.zeros(1, np.int64), "error_sum": np.zeros(1), "error_max": np.zeros(1)}
    species = _species(job.places.model)
    score = score_of(job.places.model, job.places.modalities)
    exact = cosines(vectors, np.ones_like(scales), species)
    difference = np.abs(score.values(exact) - score.values(cosines(codes, scales, species)))
    return {
        "compared": np.array([difference.size]),
        "error_sum": np.array([difference.sum(dtype=np.float64)]),
        "error_max": np.array([float(difference.max())]),
    }


@lru_cache(maxsize=4)
def _species_of(folder: Path, digest: str) -> np.ndarray:
    model = Model.open(folder)
    taxa = list(model.taxa)
    chosen = taxa[:: -(-len(taxa) // SPECIES)]
    return np.stack([model.species_embedding(Resolution(t.name, t, True, "")) for t in chosen])


def _species(model: Model) -> np.ndarray:
    """Vectors (S, dim) of species of a model, evenly spaced in its list."""
    return _species_of(model.folder, model.digest)


def _reusable(reuse: Index | str | Path, job: IndexJob) -> Index:
    """The index, or RegionIndexError: its pixels are not those of the job."""
    index = reuse if isinstance(reuse, Index) else Index.open(reuse, cache_bytes=256 << 20)
    mine, theirs = dict(job.identity), dict(index.identity)
    for part in (mine, theirs):
        part["month"] = month_name(part.get("month", 0))
        grid = part.pop("grid")
        part |= {"crs": grid["crs"], "resolution": grid["transform"][0]}
        for free in ("mask", "region"):
            part.pop(free)
    if mine["each"] is False:
        mine.pop("each"), theirs.pop("each")
    if differing := differences(theirs, mine):
        raise RegionIndexError(
            f"the pixels of region index {index.url!r} cannot be taken over: it was made with {differing}."
        )
    offsets = _offset(index, job.grid)
    if max(abs(offset - round(offset)) for offset in offsets) > 1e-6:
        raise RegionIndexError(
            f"the pixels of region index {index.url!r} cannot be taken over: they lie between these."
        )
    return index


def _offset(index: Index, grid: Grid) -> tuple[float, float]:
    """Pixels from the first of an index to the first of a grid: (rows, columns)."""
    a, b = grid.geobox.affine, index.grid.geobox.affine
    return (a.f - b.f) / a.e, (a.c - b.c) / a.a


def _old_pixels(index: Index, grid: Grid, tile: Tile):
    """The window of an index that a tile of another grid overlaps, and which pixels of the tile its pixels are.

    As ((rows, columns), flat indices into the tile); None where they do not overlap.
    """
    down, across = (round(offset) for offset in _offset(index, grid))
    height, width = index.grid.shape
    rows = slice(max(tile.rows.start + down, 0), min(tile.rows.stop + down, height))
    cols = slice(max(tile.cols.start + across, 0), min(tile.cols.stop + across, width))
    if rows.start >= rows.stop or cols.start >= cols.stop:
        return None
    row = np.arange(rows.start, rows.stop) - down - tile.rows.start
    col = np.arange(cols.start, cols.stop) - across - tile.cols.start
    return (rows, cols), (row[:, None] * tile.shape[1] + col[None, :]).ravel()


class _Folder:
    """The folder in which an index is built; a context manager that holds its lock."""

    def __init__(self, out: Path) -> None:
        if out.name in ("", "..") or "://" in str(out) or ":/" in str(out):
            raise OutputError(
                f"--out {str(out)!r} is not a local folder, such as west.zarr; build it there, then copy it elsewhere."
            )
        self.out = out
        self.partial = out.with_name(out.name + ".partial")
        self.store = self.partial / "index.zarr"

    def __enter__(self) -> _Folder:
        self._lock_path = self.out.with_name(f".{self.out.name}.lock")
        with disk_errors(self.out):
            self.out.parent.mkdir(parents=True, exist_ok=True)
            self._lock = take_lock(self._lock_path, self.out)
        return self

    def __exit__(self, *error: object) -> None:
        if self._lock is not None:
            self._lock_path.unlink(missing_ok=True)
            os.close(self._lock)

    def begin(self, job: IndexJob, overwrite: bool) -> bool:
        """Start or take up a build; False: `out` is the finished index already. Raises OutputError."""
        if os.path.lexists(self.out) and not overwrite:
            if self._finished() != job.digest:
                raise OutputError(f"{self.out} exists already; give --overwrite to replace it, or another --out.")
            if self._begun() == job.identity:  # cut off just after it was published
                shutil.rmtree(self.partial)
            return False
        if os.path.lexists(self.out) and not self._is_store():
            raise OutputError(f"{self.out} is not a Zarr store; remove it yourself or choose another --out.")
        begun = self._begun()
        if begun is not None and (differing := differences(_flat(begun), _flat(job.identity))):
            if not overwrite:
                raise OutputError(
                    f"{self.out} is being built with {differing}; ask for the same to go on, choose another --out, or "
                    "give --overwrite to start anew."
                )
            shutil.rmtree(self.partial)
            begun = None
        if begun is None:
            shutil.rmtree(self.partial, ignore_errors=True)
            for name in ("tiles", "tmp"):
                (self.partial / name).mkdir(parents=True)
            store.create(self.store, job.identity, job.grid, _metadata(job))
            write_whole(self.partial / "build.json", json.dumps({"identity": job.identity}, indent=1).encode())
        return True

    def _finished(self) -> str | None:
        try:
            return Index.open(self.out).digest
        except RegionIndexError:
            return None

    def _is_store(self) -> bool:
        return not self.out.is_symlink() and (self.out / ".zgroup").is_file()

    def _begun(self) -> dict[str, Any] | None:
        if not os.path.lexists(self.partial):
            return None
        if self.partial.is_symlink() or not self.partial.is_dir():
            raise OutputError(f"{self.partial} is not a folder; remove it or choose another --out.")
        if not (self.partial / "build.json").exists():
            # The store is made before it: nothing of worth is lost. What is not ours is not removed.
            if {p.name for p in self.partial.iterdir()} <= {"tiles", "tmp", "index.zarr", "build.json.part"}:
                return None
            raise OutputError(f"{self.partial} was not made by this program; remove it yourself.")
        try:
            found = json.loads((self.partial / "build.json").read_bytes())["identity"]
            if not isinstance(found, dict):
                raise ValueError("not an object")
            return found
        except (ValueError, KeyError, TypeError) as error:
            raise OutputError(f"{self.partial}/build.json cannot be read ({error}); remove {self.partial}.") from None

    def todo(self, tiles: Sequence[Tile]) -> list[Tile]:
        """The tiles without a record, or whose files are not as it says."""

        def sound(tile: Tile) -> bool:
            path = self._record(tile)
            try:
                if path.exists() and files_are_whole(read_record(path), self.store):
                    return True
            except OutputError:
                pass
            path.unlink(missing_ok=True)
            return False

        with ThreadPoolExecutor(processors()) as pool:
            return [tile for tile, ok in zip(tiles, pool.map(sound, tiles), strict=True) if not ok]

    def _record(self, tile: Tile) -> Path:
        return record_of(self.partial / "tiles", tile.index)

    def publish(self, job: IndexJob, tiles: Sequence[Tile]) -> None:
        """Make an index of the finished store and move it to its place."""
        records = [read_record(self._record(tile)) for tile in tiles]
        if not any(int(r["value_pixels"][0]) for r in records):
            raise RequestError(
                f"no pixel of the box can be held with --mask {job.mask}: nothing of it lies there, in the latitudes "
                "of the model and on all layers; choose another mask or box."
            )
        compared = sum(int(r["value_compared"][0]) for r in records)
        notes = {
            "pixels_held": sum(int(r["value_pixels"][0]) for r in records),
            "error_of_probability": {
                "mean": round(sum(float(r["value_error_sum"][0]) for r in records) / compared, 9) if compared else 0.0,
                "largest": round(max(float(r["value_error_max"][0]) for r in records), 6),
                "compared": compared,
                "note": "stored against computed, at a sample of pixels, for up to 512 species of the model",
            },
            "computed_on": ",".join(sorted({str(r["value_device"][0]) for r in records})),
            "software": f"taxabind-map {__version__}",
        }
        for left in self.store.rglob("*.partial"):  # chunks of a killed process
            left.unlink()
        store.finish(self.store, job.identity, notes)
        flush(self.store)
        aside = self.partial / "old"
        if os.path.lexists(self.out):
            self.out.rename(aside)
        self.store.rename(self.out)
        flush_folder(self.out.parent)
        shutil.rmtree(self.partial, ignore_errors=True)


def _flat(identity: dict[str, Any]) -> dict[str, Any]:
    """An identity with the parts of its grid, layers and model side by side, to tell what differs."""
    flat = {}
    for key, value in identity.items():
        flat |= {f"{key} {k}": v for k, v in value.items()} if isinstance(value, dict) else {key: value}
    return flat


def _metadata(job: IndexJob) -> MapMetadata:
    model, (west, south, east, north) = job.places.model, job.grid.bbox
    season = f" {when(job.places.month)}" if model.seasonal else ""
    return MapMetadata(
        title=f"Region index: {model.name}{season}, {west:g} {south:g} {east:g} {north:g}",
        quantity=f"Unit sum of the embeddings of a place{season}",
        description=(
            f"For each pixel the normalised sum of its {', '.join(job.places.modalities)} embeddings in the space of "
            f"the model {model.name!r}, {model.dim} numbers: embedding * scale. The scalar product with the unit "
            "vector of a species is the cosine that the model's calibration turns into a probability."
        ),
        tags={
            "model": model.name, "model_version": model.version, "model_hash": model.digest,
            "modalities": ",".join(job.places.modalities), "mask": job.mask, "encoding": job.encoding,
            "licence": model.licence, "software": f"taxabind-map {__version__}",
            **({"month": str(job.places.month or WHOLE_YEAR)} if model.seasonal else {}),
        },
        attribution=(*ATTRIBUTION, *credits_of(model)),
    )  # fmt: skip
