"""Maps of a list of species in one pass: each tile is encoded once and compared with all of them.

`plan_batch` resolves the list and decides everything, `write_batch` computes; `map_batch` does both. A run may
be cut off at any moment: the same call goes on with the tiles that are missing and ends with the same bytes
(`sdm.outputs.ledger`). A tile's embeddings are compared with some species at a time, and what is left of
them is written, so memory depends neither on the number of species nor on the region.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sdm import __version__, api
from sdm.cluster import ClusterWarning, active_client, open_client
from sdm.engine import Plan, score_embeddings, shown, stored_tile
from sdm.errors import RegionIndexError, RequestError, SpeciesNameError
from sdm.grid import Tile
from sdm.habitat import mask_for
from sdm.layers.fingerprint import of_files
from sdm.model import Model, list_models, local_device
from sdm.names import Resolution
from sdm.names.lists import Asked, distinct, read_names
from sdm.outputs import cube, gallery, ledger, sidecar
from sdm.outputs.metadata import MapMetadata, one_line
from sdm.outputs.overlay import levels, png
from sdm.outputs.statistics import PixelArea
from sdm.schedule import run_tasks

if TYPE_CHECKING:
    import xarray as xr
    from odc.geo.geobox import GeoBox

    from sdm.index import Index

MAX_TILE = 1024
"""Side of a tile in pixels, at most: the embeddings of a whole tile are held in memory."""
PICTURED = 512
"""Species whose pictures are drawn together, at most: 30 MB."""
STORE, RICHNESS, PICTURES, SPECIES, SUMMARY, PAGE = (
    "probability.zarr", "richness", "gallery", "species", "summary.csv", "index.html",
)  # fmt: skip
"""Names of the outputs; those of the richness map have suffixes, pictures and species files lie in folders."""
FORMULA = tuple("=+-@\t\r")
"""How a text must not begin in a table that a spreadsheet may open."""

Tell = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Row:
    """A name of the list and what became of it."""

    asked: Asked
    resolution: Resolution | None = None
    error: str = ""
    """Why it is not mapped."""
    target: int | None = None
    """Which of the mapped taxa it is: several names may be one."""


@dataclass(frozen=True)
class Batch:
    """A planned batch: names resolved, layers checked, nothing computed."""

    job: api.Job
    """The taxa to map, each once."""
    rows: tuple[Row, ...]
    threshold: float
    notes: tuple[str, ...] = ()
    """How the list was read: sentences for the user."""

    @cached_property
    def first_rows(self) -> tuple[Row, ...]:
        """Of each mapped taxon the row that asked for it first."""
        first: dict[int, Row] = {}
        for row in self.rows:
            if row.target is not None:
                first.setdefault(row.target, row)
        return tuple(first[k] for k in range(len(first)))

    @property
    def failed(self) -> tuple[Row, ...]:
        """The rows that are not mapped."""
        return tuple(row for row in self.rows if row.resolution is None)

    @cached_property
    def stems(self) -> tuple[str, ...]:
        """File name stems of the taxa, all different."""
        counts: Counter[str] = Counter()
        stems = []
        for stem in self.job.slugs:
            counts[stem] += 1
            stems.append(stem if counts[stem] == 1 else f"{stem}-{counts[stem]}")
        return tuple(stems)

    def estimate(self, formats: Sequence[str] = ()) -> dict[str, Any]:
        """What a run would do: names, pixels, tiles, files, bytes at most, device."""
        taxa, pixels = len(self.job.resolutions), self.job.grid.pixels
        found = self.job.estimate(())
        blocks = -(-taxa // cube.SPECIES)
        files = blocks * found["tiles"] + taxa * (1 + len(_suffixes(formats)))
        each = 4.0 + 4 * sum({"cog": 1.4, "html": 0.3}.get(f, 0.0) for f in formats)
        return found | {
            "species": taxa,
            "names": len(self.rows),
            "names_not_mapped": len(self.failed),
            "files_about": files,
            "bytes_at_most": int(pixels * each * taxa),
        }


@dataclass(frozen=True)
class BatchResult:
    """A finished batch."""

    folder: Path
    summary: list[dict[str, Any]]
    """The rows of `summary.csv`."""
    report: dict[str, Any]
    """What `batch.json` holds."""
    computed: bool = True
    """False: it had been finished before, and nothing was done."""

    def open(self) -> xr.Dataset:
        """The maps, lazily: `probability` (species, y, x) and `richness` (y, x)."""
        return cube.open_cube(self.folder / STORE)


def map_batch(
    species: str | Path | Iterable[str],
    bbox: Sequence[float] | None = None,
    *,
    out: str | Path = "maps",
    formats: str | Sequence[str] = (),
    overwrite: bool = False,
    threads: int | None = None,
    workers: int | None = None,
    scheduler_address: str | Path | None = None,
    progress: Tell | None = None,
    **options: Any,
) -> BatchResult:
    """Map a list of species over one region into one folder. Options as of `plan_batch` and `write_batch`.

    sdm.map_batch(["Ursus arctos", "Puma concolor"], bbox=(-125, 31, -102, 49), out="west").open()
    """
    batch = plan_batch(species, bbox, **options)
    return write_batch(
        batch, out, formats=formats, overwrite=overwrite, threads=threads, workers=workers,
        scheduler_address=scheduler_address, progress=progress,
    )  # fmt: skip


def plan_batch(
    species: str | Path | Iterable[str],
    bbox: Sequence[float] | None = None,
    region: Any = None,
    *,
    column: str | None = None,
    strict: bool = False,
    threshold: float = 0.5,
    model: str | Path | None = None,
    index: Index | str | Path | None = None,
    **options: Any,
) -> Batch:
    """Resolve a list of names and decide everything about their maps without computing a pixel.

    `species`: names, or the path of a list (`sdm.names.lists.read_names`), `column` of it. A name that is
    unknown or ambiguous is left out and reported, or with `strict` an error. Names of one taxon are mapped
    once. `threshold`: of the areas in the summary. Other options are those of `sdm.plan`; with `index` a species
    of a habitat that the index does not hold is left out too.

    Raises SdmError subclasses; SpeciesNameError when no name is known.
    """
    try:
        threshold = float(threshold)
    except (TypeError, ValueError):
        raise RequestError(f"threshold {str(threshold)[:40]!r} is not a number.") from None
    if not 0.0 < threshold < 1.0:
        raise RequestError(f"threshold {threshold:g} must lie between 0 and 1.")
    if isinstance(species, str | Path):
        asked, notes = read_names(species, column)
    else:
        if column is not None:
            raise RequestError("a column is given, but the species are not a file; leave it out.")
        asked, notes = distinct(_texts(species)), []
    if index is not None:
        index = api._open_index(index)
        model = index.find_model(model)
    opened, rows = _resolve(asked, model)
    if not opened.calibrated:
        raise RequestError(
            f"model {opened.name!r} is not calibrated, and a batch holds probabilities; map its species by name, up to "
            f"{api.MAX_SPECIES} at a time."
        )
    if index is not None:
        rows = tuple(_held(row, index, options.get("mask", "auto")) for row in rows)
    _refuse(rows, strict)
    targets: dict[str, Resolution] = {}
    for row in rows:
        if row.resolution is not None:
            targets.setdefault(row.resolution.taxon.name, row.resolution)
    number = {name: k for k, name in enumerate(targets)}
    rows = tuple(
        replace(row, target=number[row.resolution.taxon.name]) if row.resolution is not None else row for row in rows
    )
    resolutions = list(targets.values())
    queries = [r.query for r in resolutions]
    job = api.plan(queries, bbox, region, model=model, resolved=(opened, resolutions), index=index, **options)
    if job.grid.tile_size > MAX_TILE:
        raise RequestError(f"tile size {job.grid.tile_size} is more than {MAX_TILE} pixels, the most for a batch.")
    return Batch(job, rows, threshold, tuple(notes))


def write_batch(
    batch: Batch,
    out: str | Path = "maps",
    *,
    formats: str | Sequence[str] = (),
    overwrite: bool = False,
    threads: int | None = None,
    workers: int | None = None,
    scheduler_address: str | Path | None = None,
    command: str = "",
    progress: Tell | None = None,
) -> BatchResult:
    """Compute a batch into the folder `out`: `probability.zarr` with all maps, the map of their sum
    (`richness.tif`, `.qml`, `.html`), `summary.csv`, `index.html` with its pictures, `batch.json`.

    `formats`: cog and html, per species, into `out/species`. The outputs appear when all are complete; until
    then they lie in `out/batch.partial`, from where the same call goes on after an interruption. A folder
    that holds the same batch already is left as it is. `overwrite`: replace another batch, finished or not.
    Where tiles are computed: see `sdm.write_maps`.

    Raises OutputError when the folder holds something else, or another run is writing to it.
    """
    wanted = tuple(f for f in api.parse_formats(formats) if f != "zarr") if formats else ()
    tell = progress or (lambda stage, done, total: None)
    job = batch.job
    clustered = workers is not None or scheduler_address is not None or active_client() is not None
    # Another kind of device rounds differently. On a cluster that is for its workers to say.
    device = job.plan.device if clustered else local_device(job.plan.device).partition(":")[0]
    suffixes = _suffixes(wanted)
    names = [STORE, *(f"{RICHNESS}.{s}" for s in ("tif", "qml", "html")), PICTURES, SUMMARY, PAGE, ledger.REPORT]
    names += [SPECIES] if suffixes else []
    asked = configuration(batch, wanted, device)
    started = time.time()
    with (
        ledger.Workspace(Path(out), names, overwrite=overwrite) as space,
        open_client(threads=threads, workers=workers, scheduler_address=scheduler_address) as client,
    ):
        begun = space.begin(asked, {"command": command, "started": _now()})
        if begun is None:
            report = ledger.read_report(space.folder)
            return BatchResult(Path(out), _read_summary(space.folder / SUMMARY), report, computed=False)
        work = Work.of(batch, space, begun["command"])
        if not work.store.exists():
            work.create_store()
        tiles = list(job.grid.tiles())
        finished = space.finished([t.index for t in tiles], work.store, lambda n: tell("checking", n, len(tiles)))
        missing = [t for t in tiles if t.index not in finished]
        count = len(finished)
        tell("tiles", count, len(tiles))

        def done(_: Any) -> None:
            nonlocal count
            count += 1
            tell("tiles", count, len(tiles))

        where = {"threads": threads, "client": client, "folder": space.partial.absolute()}
        run_tasks(map_tile, missing, (work,), done=done, **where)
        encoded = time.time()
        api._give_memory_back()
        found, devices = _collected(work, tiles)
        for folder in (PICTURES, SPECIES) if suffixes else (PICTURES,):
            (space.new / folder).mkdir(exist_ok=True)
        drawings = [None, *range(-(-len(batch.stems) // PICTURED))]
        drawn: list[dict[str, Any]] = []
        tell("pictures", 0, len(drawings))

        def one(statistics: dict[str, Any]) -> None:
            drawn.append(statistics)
            tell("pictures", len(drawn), len(drawings))

        run_tasks(draw, drawings, (work,), done=one, **where)
        richness = next(filter(None, drawn))
        if suffixes:
            numbers = list(range(len(batch.stems)))
            run_tasks(write_species, numbers, (work, suffixes), done=_counted(tell, "writing", len(numbers)), **where)
        rows = summary(batch, found, suffixes)
        _write_summary(work, rows)
        _write_page(work, rows, suffixes)
        report = _report(batch, asked, names, richness, devices, begun["command"])
        report["run"] = {
            "started": begun["started"], "written": _now(), "tiles_computed_last": len(missing),
            "tiles_s": round(encoded - started, 3), "written_s": round(time.time() - encoded, 3),
        }  # fmt: skip
        sidecar.write_json(space.new / ledger.REPORT, report)
        space.publish()
    return BatchResult(Path(out), rows, report)


def configuration(batch: Batch, formats: Sequence[str], device: str) -> dict[str, Any]:
    """All that the bytes of the outputs depend on, by names a user understands."""
    job, plan = batch.job, batch.job.plan
    grid = job.grid
    listed = [
        [row.asked.query, row.asked.row, row.asked.times, row.resolution.taxon.name if row.resolution else row.error]
        for row in batch.rows
    ]
    region = None
    if grid.region is not None:
        region = hashlib.sha256(grid.region.geometry.wkb).hexdigest()[:16]
    layers = {
        name: of_files(paths) if paths else "bundled"
        for name, paths in (
            ("environment", plan.environment),
            ("satellite", [plan.satellite] if plan.satellite else []),
        )
    }
    return {
        "software": f"taxabind-map {__version__}",
        "species": f"{len(listed):,} names, sha256 {hashlib.sha256(json.dumps(listed).encode()).hexdigest()[:16]}",
        "model": f"{plan.model.name} {plan.model.digest}",
        "modalities": ",".join(plan.modalities),
        "index": None if plan.source is None else plan.source.digest,
        **layers,
        "crs": grid.crs,
        "resolution": grid.resolution,
        "size": f"{grid.shape[1]} x {grid.shape[0]} pixels",
        "corner": [grid.geobox.affine.c, grid.geobox.affine.f],
        "bbox": list(grid.bbox),
        "region": region,
        "mask": job.request["mask"],
        "step": plan.step,
        "tile size": grid.tile_size,
        "threshold": batch.threshold,
        "format": ",".join(["zarr", *formats]),
        "device": device,
    }


# One tile ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Work:
    """What the tasks of a batch need; small, and the same for all."""

    plan: Plan
    batch: Batch
    store: Path
    tiles: Path
    tmp: Path
    new: Path
    command: str

    @classmethod
    def of(cls, batch: Batch, space: ledger.Workspace, command: str) -> Work:
        """For a batch in a workspace."""
        # Absolute: a worker has its own working folder.
        new, tmp, tiles = (path.absolute() for path in (space.new, space.tmp, space.tiles))
        return cls(batch.job.plan, batch, new / STORE, tiles, tmp, new, command)

    @property
    def mask(self) -> str:
        """What all species have in common: pixels of the other kind need no embedding."""
        masks = {target.mask for target in self.plan.targets}
        return masks.pop() if len(masks) == 1 else "none"

    @property
    def metadata(self) -> MapMetadata:
        """Of the variable (species, y, x)."""
        return _cube_metadata(self.batch, self.command)

    @property
    def richness(self) -> MapMetadata:
        """Of the sum over the species."""
        return _richness_metadata(self.batch, self.command)

    def create_store(self) -> None:
        """Make the empty store; it appears whole or not at all."""
        grid = self.plan.grid
        part = self.tmp / STORE
        cube.create(part, grid.geobox, grid.tile_size, _labels(self.batch), self.metadata, self.richness)
        part.rename(self.store)


def map_tile(tile: Tile, work: Work) -> str:
    """Compute a tile for all species, write its chunks and then its record; returns the device."""
    plan, targets = work.plan, work.plan.targets
    device = plan.here
    codes, scales, pixels = stored_tile(plan, tile, work.mask)
    habitats, of = _habitats(work, tile, pixels)
    values = {name: np.zeros(len(targets)) for name in ("count", "sum", "modelled", "expected", "above", "hit")}
    values |= {"min": np.full(len(targets), np.inf), "max": np.full(len(targets), -np.inf)}
    whole = tuple(min(plan.grid.tile_size, length) for length in plan.grid.shape)
    species = min(cube.SPECIES, len(targets))
    block = np.empty((species, *tile.shape), dtype=np.float32)
    present = np.zeros(species, dtype=bool)
    pictures = _Pictures(work, tile)
    empty: dict[tuple[int, ...], bytes] = {}  # the chunks of absent species: most are, and they are all alike
    files = []
    scored = score_embeddings(codes, targets, device, cube.STEP / 2, scales) if pixels.size else ()
    for k, row in scored:
        at, habitat = k % species, habitats[of[k]]
        present[at] = habitat.add(row, k, work.batch.threshold, values, block[at])
        pictures.add(k, block[at] if present[at] else habitat.absent, absent=None if present[at] else of[k])
        if at < species - 1 and k < len(targets) - 1:
            continue
        kinds = tuple(of[k - at : k + 1])
        if not any(habitats[h].size for h in kinds):
            continue
        encoded = None if present[: at + 1].any() else empty.get(kinds)
        if encoded is None:
            for layer, here, h in zip(block, present, kinds, strict=False):
                if not here:
                    layer[...] = habitats[h].absent
            encoded = cube.encode_chunk(block[: at + 1], (species, *whole))
            if not present[: at + 1].any():
                empty[kinds] = encoded
        index = (k // species, *tile.index)
        files.append(cube.write_chunk(work.store, work.metadata.variable, index, encoded, work.tmp))
    total = np.full(tile.shape[0] * tile.shape[1], np.nan)
    for habitat in habitats:
        places = habitat.pixels
        total[places] = np.where(np.isnan(total[places]), 0.0, total[places]) + habitat.total
    if not np.isnan(total).all():
        layer = total.astype(np.float32).reshape(tile.shape)
        encoded = cube.encode_chunk(layer, whole)
        files.append(cube.write_chunk(work.store, work.richness.variable, tile.index, encoded, work.tmp))
    values |= pictures.encoded | {"device": np.array(device.partition(":")[0])}
    ledger.write_record(work.tiles / f"{tile.index[0]}.{tile.index[1]}.npz", work.tmp, files, values)
    return device


class _Habitat:
    """The pixels of a tile where some of the species may be shown, and their true areas.

    `pixels`: flat indices into the tile of all embeddings (N,); `shown`: boolean (N,); `area`: km2 (N,).
    """

    def __init__(self, pixels: np.ndarray, shown: np.ndarray, area: np.ndarray, shape: tuple[int, int]) -> None:
        self.kept = None if shown.all() else np.flatnonzero(shown)
        self.pixels, self.area = pixels[shown], area[shown]
        self.size = self.pixels.size
        self.modelled = float(self.area.sum())
        self.total = np.zeros(self.size)  # float64: sums of multiples of 1/8192 are exact
        self.absent = np.full(shape, np.nan, dtype=np.float32)
        self.absent.ravel()[self.pixels] = 0.0
        # Where in a row, with a NaN added at its end, the value of each pixel of the tile is found.
        self.source = np.full(shape, self.size)
        self.source.ravel()[self.pixels] = np.arange(self.size)
        self.row = np.full(self.size + 1, np.nan, dtype=np.float32)

    def add(
        self, scored: np.ndarray | None, k: int, threshold: float, values: dict[str, np.ndarray], layer: np.ndarray
    ) -> bool:
        """Take in the values (N,) of species k, None: 0 everywhere. Its statistics go into entry k of each
        array of `values`, the values, rounded, into the total and to their pixels of `layer`, NaN elsewhere.

        Returns False for a species that is 0 everywhere; then the layer is left as it is.
        """
        if not self.size:
            return False
        values["count"][k], values["modelled"][k] = self.size, self.modelled
        values["min"][k] = values["max"][k] = 0.0
        if scored is None:
            return False
        row = self.row[:-1]
        row[...] = scored if self.kept is None else scored.take(self.kept)
        cube.round_(row)
        values["min"][k], values["max"][k] = row.min(), row.max()
        if values["max"][k] == values["min"][k] == 0.0:
            return False
        if self.size == layer.size:
            layer[...] = row.reshape(layer.shape)
        else:
            np.take(self.row, self.source, out=layer, mode="clip")
        wide = row.astype(np.float64)
        self.total += wide
        values["sum"][k], values["expected"][k] = wide.sum(), _dot(wide, self.area)
        if values["max"][k] >= threshold:
            above = np.where(row >= np.float32(threshold), self.area, 0.0)
            values["above"][k], values["hit"][k] = above.sum(), _dot(wide, above)
        return True


def _dot(a: np.ndarray, b: np.ndarray) -> float:
    # Not `@`: its library starts threads of its own, which spin while the tiles' threads need the processors.
    return float(np.einsum("i,i->", a, b))


class _Pictures:
    """A tile's part of the pictures: every n-th pixel of each species' layer, some species to a group."""

    def __init__(self, work: Work, tile: Tile) -> None:
        self.step, self.range = gallery.stride(work.plan.grid.shape), work.metadata.valid_range
        self.species = len(work.plan.targets)
        # Counted from the first pixel of the map: the pictures do not depend on the tiles.
        self.rows, self.cols = (slice(-part.start % self.step, None, self.step) for part in (tile.rows, tile.cols))
        shape = np.empty(tile.shape)[self.rows, self.cols].shape
        self.group = np.empty((min(PICTURED, self.species), *shape), dtype=np.uint8)
        self.encoded: dict[str, np.ndarray] = {}
        self.absent: dict[int | None, np.ndarray] = {}

    def add(self, k: int, layer: np.ndarray, absent: int | None) -> None:
        """Take in the layer of species k, the next one; `absent`: the habitat in which it is 0 everywhere."""
        picture = self.absent.get(absent)
        if picture is None:
            picture = levels(layer[self.rows, self.cols], self.range)
            if absent is not None:
                self.absent[absent] = picture
        self.group[k % PICTURED] = picture
        if self.group.size and (k % PICTURED == PICTURED - 1 or k == self.species - 1):
            pictures = self.group[: k % PICTURED + 1]
            self.encoded[f"pictures_{k // PICTURED}"] = np.frombuffer(cube.codec().encode(pictures), dtype=np.uint8)


def _habitats(work: Work, tile: Tile, pixels: np.ndarray) -> tuple[list[_Habitat], list[int]]:
    """The different habitats of the targets within a tile, and which one each target has."""
    plan = work.plan
    asked = [(t.mask, t.extent) for t in plan.targets]
    different = list(dict.fromkeys(asked))
    number = {habitat: k for k, habitat in enumerate(different)}
    lon, lat = plan.lonlat(*plan.pixels(tile))
    places = shown(plan, tile, different, lon, lat).reshape(len(different), -1)[:, pixels]
    area = np.broadcast_to(_areas(plan.grid.geobox).block(tile.rows, tile.cols) / 1e6, tile.shape).ravel()[pixels]
    return [_Habitat(pixels, p, area, tile.shape) for p in places], [number[habitat] for habitat in asked]


@lru_cache(maxsize=2)
def _areas(geobox: GeoBox) -> PixelArea:
    return PixelArea(geobox)


# After the tiles ---------------------------------------------------------------------------------


def _collected(work: Work, tiles: Sequence[Tile]) -> tuple[dict[str, np.ndarray], list[str]]:
    """The statistics of all tiles, added up in their order, and the devices they were computed on."""
    found: dict[str, np.ndarray] = {}
    devices: set[str] = set()
    for tile in tiles:
        names = ("count", "sum", "modelled", "expected", "above", "hit", "min", "max")
        path = work.tiles / f"{tile.index[0]}.{tile.index[1]}.npz"
        record = ledger.read_record(path, [f"value_{name}" for name in (*names, "device")])
        devices.add(str(record["value_device"]))
        for name in names:
            values = record[f"value_{name}"]
            combine = {"min": np.minimum, "max": np.maximum}.get(name, np.add)
            found[name] = combine(found[name], values) if name in found else values
    if len(devices) > 1:
        warnings.warn(
            f"tiles were computed on {' and '.join(sorted(devices))}, which round differently; give --device.",
            ClusterWarning,
            stacklevel=3,
        )
    return found, sorted(devices)


def draw(group: int | None, work: Work) -> dict[str, Any]:
    """The pictures of a group of species; None: the map of the sum, whose statistics are returned."""
    if group is None:
        return _write_richness(work)
    write_pictures(group, work)
    return {}


def _write_richness(work: Work) -> dict[str, Any]:
    """The map of the sum as GeoTIFF with style and web map; returns its statistics."""
    from sdm.outputs.cog import write_cog
    from sdm.outputs.statistics import summarise
    from sdm.outputs.style import write_qml
    from sdm.outputs.webmap import write_html

    geobox = work.plan.grid.geobox
    layer = cube.Layer(work.store, work.richness.variable)
    # The end of the colours is the highest sum, which is known only now.
    highest = summarise(layer, geobox).max or 1.0
    meta = replace(work.richness, valid_range=(0.0, highest))
    paths = {s: work.tmp / f"{RICHNESS}.{s}" for s in ("tif", "qml", "html")}
    statistics = write_cog(paths["tif"], layer, geobox, meta).to_dict()
    write_qml(paths["qml"], meta)
    links = {"GeoTIFF": f"{RICHNESS}.tif", "all species": PAGE, "report": ledger.REPORT}
    write_html(paths["html"], layer, meta, _countries_of(work), links, geobox=geobox)
    for path in paths.values():
        os.replace(path, work.new / path.name)
    # A sum weighted by area is no area here.
    return {k: v for k, v in statistics.items() if k not in ("expected_area_km2", "histogram", "histogram_range")}


def write_pictures(group: int, work: Work) -> None:
    """Pictures of one group of species, for the page, from the parts that the tiles left in their records."""
    grid = work.plan.grid
    step = gallery.stride(grid.shape)
    stems = work.batch.stems[group * PICTURED : (group + 1) * PICTURED]
    pictures = np.zeros((len(stems), *(-(-length // step) for length in grid.shape)), dtype=np.uint8)
    name = f"value_pictures_{group}"
    for tile in grid.tiles():
        record = ledger.read_record(work.tiles / f"{tile.index[0]}.{tile.index[1]}.npz", (name,))
        if name in record:  # else nothing is modelled there, or no n-th pixel lies in the tile
            top, left = -(-tile.rows.start // step), -(-tile.cols.start // step)
            bottom, right = (-(-part.stop // step) for part in (tile.rows, tile.cols))
            shape = (len(stems), bottom - top, right - left)
            decoded = np.frombuffer(cube.codec().decode(record[name].tobytes()), dtype=np.uint8)
            pictures[:, top:bottom, left:right] = decoded.reshape(shape)
    for stem, picture in zip(stems, pictures, strict=True):
        (work.new / PICTURES / f"{stem}.png").write_bytes(png(picture))


def write_species(k: int, work: Work, suffixes: Sequence[str]) -> None:
    """GeoTIFF, style and web map of one species; what an earlier run has made is kept."""
    from sdm.outputs.atomic import flush
    from sdm.outputs.cog import write_cog
    from sdm.outputs.style import write_qml
    from sdm.outputs.webmap import write_html

    stem, folder = work.batch.stems[k], work.new / SPECIES
    missing = [s for s in suffixes if not (folder / f"{stem}.{s}").exists()]
    if not missing:
        return
    described = api.describe(work.batch.job, k, work.command)
    description = f"{described.description} {ENCODING} Rounded to 1/8192."
    meta = replace(described, variable=work.metadata.variable, description=description)
    layer = cube.Layer(work.store, meta.variable, k)
    for suffix in missing:
        part = work.tmp / f"{stem}.{suffix}"
        if suffix == "tif":
            write_cog(part, layer, work.plan.grid.geobox, meta)
        elif suffix == "qml":
            write_qml(part, meta)
        else:
            links = {"GeoTIFF": f"{stem}.tif"} if "tif" in suffixes else {}
            write_html(part, layer, meta, _countries_of(work), links, geobox=work.plan.grid.geobox)
        flush(part)  # a later run takes what has its name for complete
        os.replace(part, folder / part.name)


_outlines: dict[Path, Any] = {}


def _countries_of(work: Work) -> Any:
    """Country outlines of a batch, read once per process."""
    if work.store not in _outlines:
        _outlines.clear()
        _outlines[work.store] = api._countries(work.plan.grid)
    return _outlines[work.store]


def summary(batch: Batch, found: Mapping[str, np.ndarray], suffixes: Sequence[str]) -> list[dict[str, Any]]:
    """The rows of `summary.csv`, in the order of the list; docs/batch.md says what the columns are."""
    rows = []
    for row in batch.rows:
        r, k = row.resolution, row.target
        line: dict[str, Any] = dict.fromkeys(COLUMNS, "")
        line |= {"row": row.asked.row, "query": row.asked.query, "times": row.asked.times, "error": row.error}
        if r is not None:
            first = batch.first_rows[k]
            modelled = found["count"][k] > 0
            line |= {
                "species": r.taxon.name, "common_name": r.taxon.common[0] if r.taxon.common else "",
                "resolved_by": r.how, "rank": r.taxon.rank, "known": "yes" if r.known else "no",
                "confidence": confidence(r), "mask": batch.job.plan.targets[k].mask,
                "same_as_row": "" if first is row else first.asked.row,
                "notes": " ".join(dict.fromkeys((*r.notes, *batch.job.notes[k]))),
                "picture": f"{PICTURES}/{batch.stems[k]}.png", "store_index": k,
                "files": ";".join(f"{SPECIES}/{batch.stems[k]}.{s}" for s in suffixes),
                "threshold": _number(batch.threshold), "pixels": int(found["count"][k]),
                "modelled_area_km2": _number(found["modelled"][k]),
            }  # fmt: skip
            if modelled:
                above, expected = found["above"][k], found["expected"][k]
                line |= {
                    "area_above_threshold_km2": _number(above), "expected_area_km2": _number(expected),
                    "mean": _number(found["sum"][k] / found["count"][k]),
                    "max": _number(found["max"][k]), "min": _number(found["min"][k]),
                }  # fmt: skip
                # What a calibrated probability promises; nothing is promised for a stand-in.
                if r.known and above > 0:
                    line["expected_precision"] = _number(found["hit"][k] / above, 4)
                if r.known and expected > 0:
                    line["expected_recall"] = _number(found["hit"][k] / expected, 4)
        rows.append(line)
    return rows


COLUMNS = (
    "row", "query", "times", "species", "common_name", "resolved_by", "rank", "known", "confidence", "same_as_row", "mask",
    "pixels", "modelled_area_km2", "threshold", "area_above_threshold_km2", "expected_area_km2", "mean", "max", "min",
    "expected_precision", "expected_recall", "store_index", "picture", "files", "notes", "error",
)  # fmt: skip


def confidence(resolution: Resolution) -> str:
    """What stands behind a map: "species" or "group" the model has learned, or the group that stands in."""
    if resolution.known:
        return "species" if resolution.taxon.rank == "species" else "group"
    return f"stand-in: {resolution.taxon.rank}"


def _write_summary(work: Work, rows: Sequence[Mapping[str, Any]]) -> None:
    with (work.new / SUMMARY).open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({key: _cell(value) if isinstance(value, str) else value for key, value in row.items()})


def _cell(text: str) -> str:
    """A text as one line that no spreadsheet takes for a formula."""
    line = one_line(text)
    return f"'{line}" if text.startswith(FORMULA) or line.startswith(FORMULA) else line


def _read_summary(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _write_page(work: Work, rows: Sequence[Mapping[str, Any]], suffixes: Sequence[str]) -> None:
    batch, grid = work.batch, work.plan.grid
    queries: dict[int, list[str]] = {}
    for row in batch.rows:
        if row.target is not None:
            queries.setdefault(row.target, []).append(row.asked.query)
    cards = []
    lines = {line["store_index"]: line for line in reversed(rows) if line["store_index"] != ""}
    for k, row in enumerate(batch.first_rows):
        line = lines[k]
        taxon, stem = row.resolution.taxon, batch.stems[k]
        numbers = {"area": "area_above_threshold_km2", "expected": "expected_area_km2", "max": "max"}
        cards.append(
            gallery.Card(
                name=taxon.name,
                picture=f"{PICTURES}/{stem}.png",
                common=line["common_name"],
                also=" ".join([*queries[k], taxon.at("family"), taxon.at("order")]),
                badge="" if row.resolution.known else f"not in the model: its {taxon.rank}",
                numbers={key: float(line[name]) if line[name] != "" else None for key, name in numbers.items()},
                links={{"tif": "GeoTIFF", "html": "map"}[s]: f"{SPECIES}/{stem}.{s}" for s in suffixes if s != "qml"},
            )
        )
    west, south, east, north = grid.bbox
    mapped, failed = len(cards), len(batch.failed)
    paragraphs = (
        f"{mapped:,} maps by the model {work.plan.model.name} of {west:g} {south:g} {east:g} {north:g} (west, south, "
        f"east, north in degrees), {grid.shape[1]:,} x {grid.shape[0]:,} pixels in {grid.crs}. Each holds the "
        "probability that a place lies in the range; hatched is not modelled. Pictures show every "
        f"{gallery.stride(grid.shape)}. pixel.",
        f'All maps are in {STORE}: xarray.open_zarr("{STORE}").{work.metadata.variable}.sel(species="{cards[0].name}").',
    )
    links = {
        "Richness map": f"{RICHNESS}.html", "Richness GeoTIFF": f"{RICHNESS}.tif", "Summary table": SUMMARY,
        "Report": ledger.REPORT,
    }  # fmt: skip
    step = gallery.stride(grid.shape)
    shape = tuple(-(-length // step) for length in grid.shape)
    gallery.write_index(
        work.new / PAGE, f"{mapped:,} species" + (f", {failed:,} names not mapped" if failed else ""), paragraphs, cards,
        [(row.asked.query, row.error) for row in batch.failed], links, shape, batch.threshold,
    )  # fmt: skip


def _report(
    batch: Batch, asked: dict[str, Any], names: Sequence[str], richness: dict[str, Any], devices: Sequence[str],
    command: str,
) -> dict[str, Any]:  # fmt: skip
    """The content of `batch.json`, but for the run's times."""
    common = api.provenance(batch.job, ",".join(devices), command)
    common["request"] = {key: value for key, value in common["request"].items() if key != "species"}
    how = Counter(row.resolution.how for row in batch.rows if row.resolution is not None)
    return {
        "configuration": asked,
        "names": {
            "different": len(batch.rows), "mapped_taxa": len(batch.job.resolutions),
            "not_mapped": len(batch.failed), "resolved_by": dict(sorted(how.items())), "notes": list(batch.notes),
        },
        "quantity": "probability that a place lies in the range of a species",
        "precision": cube.STEP,
        "encoding": ENCODING,
        "threshold": batch.threshold,
        **common,
        "richness": richness,
        "outputs": list(names),
    }  # fmt: skip


ENCODING = (
    "The environment was encoded at every pixel. A map of a single species interpolates it where the answer is "
    "settled; the two differ by less than 0.02."
)


# Names and metadata ------------------------------------------------------------------------------


def _texts(species: Iterable[str]) -> Iterable[tuple[int, str]]:
    try:
        found = enumerate(species, 1)
    except TypeError:
        raise RequestError(f"species {species!r} are neither names nor a file.") from None
    for number, name in found:
        if not isinstance(name, str):
            raise SpeciesNameError(f"species {number} of the list, {str(name)[:60]!r}, is not text.")
        yield number, name


def _resolve(asked: Sequence[Asked], model: Model | str | Path | None) -> tuple[Model, tuple[Row, ...]]:
    """The model that knows most of the names, and what each is in it."""
    if isinstance(model, Model):
        candidates = [model]
    else:
        candidates = [Model.open(model)] if model is not None else list_models()
    if not candidates:
        raise SpeciesNameError("no bundled model is installed; give --model FOLDER.")
    found = [(candidate, tuple(_resolved(one, candidate) for one in asked)) for candidate in candidates]

    def known(rows: tuple[Row, ...]) -> int:
        return sum(2 if row.resolution.known else 1 for row in rows if row.resolution is not None)

    return max(found, key=lambda pair: known(pair[1]))


def _held(row: Row, index: Index, mask: str) -> Row:
    """A row that an index can answer, or why it cannot."""
    if row.resolution is None:
        return row
    taxon = row.resolution.taxon
    try:
        index.check_mask(mask_for(taxon) if mask == "auto" else mask, taxon.name)
    except RegionIndexError as error:
        return Row(row.asked, error=str(error))
    return row


def _refuse(rows: Sequence[Row], strict: bool) -> None:
    failed = [row for row in rows if row.resolution is None]
    if failed and (strict or len(failed) == len(rows)):
        more = f" ({len(failed):,} of {len(rows):,} names fail)" if len(rows) > 1 else ""
        prefix = "" if strict else "no name of the list can be mapped; the first: "
        raise SpeciesNameError(f"{prefix}row {failed[0].asked.row}: {failed[0].error}{more}")


def _resolved(asked: Asked, model: Model) -> Row:
    try:
        return Row(asked, model.resolve(asked.query))
    except SpeciesNameError as error:
        return Row(asked, error=str(error))


def _labels(batch: Batch) -> dict[str, tuple[list[Any], str]]:
    rows, targets = batch.first_rows, batch.job.plan.targets
    taxa = [row.resolution.taxon for row in rows]
    return {
        "species": ([t.name for t in taxa], "scientific name of what is mapped"),
        "query": ([row.asked.query for row in rows], "name that was asked for"),
        "rank": ([t.rank for t in taxa], "rank of what is mapped"),
        "common_name": ([t.common[0] if t.common else "" for t in taxa], "common name"),
        "family": ([t.at("family") or "" for t in taxa], "family"),
        "resolved_by": ([row.resolution.how for row in rows], "how the name was resolved"),
        "known": ([np.int8(row.resolution.known) for row in rows], "1: learned by the model, 0: a group stands in"),
        "mask": ([t.mask for t in targets], "where it may be shown: land, sea or everywhere (none)"),
    }


def _cube_metadata(batch: Batch, command: str) -> MapMetadata:
    job, plan = batch.job, batch.job.plan
    scale, bias = plan.model.calibration(plan.modalities)
    return MapMetadata(
        title=f"Probability of the ranges of {len(job.resolutions):,} species",
        quantity="Probability that the place lies in the species' range",
        description=(
            f"For each species and pixel the probability that it lies in the range, sigmoid({scale:.3f} * cosine "
            f"{bias:+.3f}) in the embedding space of the model {plan.model.name!r}, rounded to 1/8192. {ENCODING} "
            "Not an abundance, not a habitat quality; ranges come from maps with cells of about 96 km. NaN: not modelled."
        ),
        variable=plan.targets[0].score.name,
        valid_range=plan.targets[0].score.valid_range,
        tags=_tags(batch, command),
        attribution=api.ATTRIBUTION,
    )


def _richness_metadata(batch: Batch, command: str) -> MapMetadata:
    count = len(batch.job.resolutions)
    return MapMetadata(
        title=f"Richness of {count:,} species",
        quantity=f"Expected number, of {count:,} species, whose range holds the place",
        description=(
            f"Sum of the probabilities of {count:,} species that the pixel lies in their range: the expected number of "
            "them whose range holds it. Only the species of the list count; one that is not modelled at a pixel adds "
            "nothing. NaN: none of them is modelled there."
        ),
        variable=RICHNESS,
        unit="species",
        valid_range=(0.0, float(count)),
        tags=_tags(batch, command),
        attribution=api.ATTRIBUTION,
    )


def _tags(batch: Batch, command: str) -> dict[str, str]:
    """Provenance common to all maps of a batch."""
    return api.common_tags(batch.job, command) | {"species_count": str(len(batch.job.resolutions))}


def _suffixes(formats: Sequence[str]) -> tuple[str, ...]:
    per = {"cog": ("tif", "qml"), "html": ("html",)}
    return tuple(s for f in formats for s in per.get(f, ()))


def _number(value: float, digits: int = 9) -> float:
    """A number as the summary states it."""
    return float(f"{float(value):.{digits}g}")


def _counted(tell: Tell, stage: str, total: int) -> Callable[[Any], None]:
    count = 0

    def done(_: Any) -> None:
        nonlocal count
        count += 1
        tell(stage, count, total)

    return done


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
