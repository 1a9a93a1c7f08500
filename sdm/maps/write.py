"""Maps computed and written: GeoTIFF, style, Zarr, web map and report, all of them or none."""

from __future__ import annotations

import shutil
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sdm.engine.cluster import ClusterWarning, on_cluster, open_client
from sdm.engine.places import Plan
from sdm.engine.tasks import run_tasks
from sdm.engine.tile import map_tile
from sdm.grid import Tile
from sdm.maps.compared import COMPARED, Compared
from sdm.maps.fit_files import fit_suffixes, reviews_beside, write_fit_files
from sdm.maps.memory import give_memory_back
from sdm.maps.plan import Job
from sdm.maps.ranges import SUFFIXES as RANGE
from sdm.maps.ranges import Range, check, stand_in_note, write_range
from sdm.maps.report import describe, report, surrounding_countries
from sdm.models.device import local_device
from sdm.request import Delivery, Execution

if TYPE_CHECKING:
    from concurrent.futures import Future

    from distributed import Client

    from sdm.files.atomic import Staging
    from sdm.outputs.blocks import Source
    from sdm.outputs.metadata import MapMetadata
    from sdm.outputs.statistics import Summary
    from sdm.records.review import Review

LINKS = {
    "tif": "GeoTIFF",
    "zarr": "Zarr",
    "v3.zarr": "Zarr 3",
    "stac.json": "STAC item",
    "json": "report",
    "range.gpkg": "range",
}
"""Labels of the files the web map links to."""
SUFFIXES = {
    "cog": (".tif", ".qml"),
    "zarr": (".zarr",),
    "zarr3": (".v3.zarr",),
    "html": (".html",),
    "stac": (".stac.json",),
}
"""Files of a format."""
_ADJECTIVES = {"novelty": "novel", "uncertainty": "uncertain"}
"""In a report, of the share of a map that is above the limit of a band."""

Tell = Callable[[str, int, int], None]
"""Called with (stage, done, total)."""


@dataclass(frozen=True)
class MapResult:
    """One written map."""

    species: str
    files: dict[str, Path]
    report: dict[str, Any]
    """What the `.json` file beside it holds."""


def write_maps(
    job: Job, out: str | Path = "maps", *, command: str = "", progress: Tell | None = None, **options: Any
) -> list[MapResult]:
    """Compute a job and write, per species, `.tif` and `.qml`, `.zarr`, `.html` and `.json` into a folder.

    Either every file of the job appears, complete and checked, or none.

    Parameters
    ----------
    job : from `sdm.plan`.
    out : the folder.
    formats : any of cog, zarr, zarr3, html, stac; by default cog, zarr and html.
    range : rule of a range to write as well: `"0.5"`, `"precision=0.9"`, `"recall=0.9"`, `"area"`; of fits to records
        also `"mtp"`, `"p10"`, `"equal"`, `"max-tss"`.
    overwrite : replace existing outputs.
    threads : tiles at once in this process.
    workers : so many processes of this machine, with `threads` tiles at once in each (default 1).
    scheduler_address : a Dask cluster's. Without any of the three an active `dask.distributed.Client` is used, if
        there is one; else this process, one tile per processor. The result is the same to the bit.
    command : the command line that asked for it, for the report.
    progress : called in this process with (stage, done, total).

    Raises
    ------
    OutputError : an output exists (without `overwrite`) or cannot be written.
    RequestError : a range is asked for by a rule that has no meaning for a map.
    ClusterError : a cluster does not answer or loses its workers.
    """
    delivery, execution = delivery_and_execution(out, job.plan.device, options)
    return write(job, delivery, execution, command=command, progress=progress)


def delivery_and_execution(out: str | Path, device: str, options: dict[str, Any]) -> tuple[Delivery, Execution]:
    """Options given side by side, in their groups. Raises TypeError for an unknown one, RequestError for a value."""
    delivery, execution = (
        Delivery.from_dict({**options, "out": out}),
        Execution.from_dict({**options, "device": device}),
    )
    for name in options:
        if name not in {**delivery.to_dict(), **execution.to_dict()}:
            raise TypeError(f"{name!r} is not an option of writing")
    return delivery, execution


def write(
    job: Job, delivery: Delivery, execution: Execution, *, command: str = "", progress: Tell | None = None
) -> list[MapResult]:
    """As `write_maps`, from two objects."""
    from sdm.files.atomic import Staging, check_targets

    out = Path(delivery.out)
    tell = progress or (lambda stage, done, total: None)
    kept, extra, names = _names(job, delivery)
    check_targets(out, names, overwrite=delivery.overwrite)
    if not on_cluster(execution):
        local_device(job.plan.device)
    with (
        open_client(execution) as client,
        Staging(out, names, overwrite=delivery.overwrite) as staging,
        reviews_beside(job) as reviews,
    ):
        writer = _Writer(job, delivery, kept, staging, command)
        writer.compute(execution, client, tell)
        results = []
        for k, stem in enumerate(job.slugs):
            tell("writing", k, len(job.slugs))
            content = writer.write(k, reviews[k])
            files = {suffix[1:]: out / f"{stem}{suffix}" for suffix in (*kept, *extra[k])}
            results.append(MapResult(job.resolutions[k].taxon.name, files, content))
        writer.remove_scratch()
        staging.publish()
        tell("writing", len(job.slugs), len(job.slugs))
    return results


def refuse(job: Job, delivery: Delivery, execution: Execution) -> None:
    """Raise as `write` would before it computes anything; nothing is changed."""
    from sdm.files.atomic import check_free

    check_free(Path(delivery.out), _names(job, delivery)[2], overwrite=delivery.overwrite)
    if not on_cluster(execution):
        local_device(job.plan.device)


def _names(job: Job, delivery: Delivery) -> tuple[list[str], list[tuple[str, ...]], list[str]]:
    """The suffixes of every map, those of each map alone, and the names of all files."""
    kept = [suffix for f in delivery.formats_or() for suffix in SUFFIXES[f]] + [".json"]
    ranged = check(job, delivery.range)
    compared = COMPARED if job.baseline is not None else ()
    extra = [(*(RANGE if r else ()), *compared, *fit_suffixes(job, k)) for k, r in enumerate(ranged)]
    names = [f"{stem}{suffix}" for stem, own in zip(job.slugs, extra, strict=True) for suffix in (*kept, *own)]
    return kept, extra, names


class _Writer:
    """The outputs of a job in its staging folder. The tiles go through Zarr stores, which bounds the memory."""

    def __init__(self, job: Job, delivery: Delivery, kept: Sequence[str], staging: Staging, command: str) -> None:
        self.job, self.kept, self.staging, self.command = job, kept, staging, command
        self.formats, self.rule, self.ranged = delivery.formats_or(), delivery.range, check(job, delivery.range)
        # Absolute: a worker has its own working folder.
        self.scratch = staging.path(f"{job.slugs[0]}{kept[-1]}").parent.absolute()
        self.stores = [self.scratch / f"{stem}.zarr" for stem in job.slugs]
        self.metadata = [
            replace(describe(job, k, command), bands=target.bands) for k, target in enumerate(job.plan.targets)
        ]
        self.compared = None if job.baseline is None else Compared(job, job.baseline, self.scratch, command)
        self.countries = None
        self.device, self.started, self.encoded = "", time.time(), 0.0

    def compute(self, execution: Execution, client: Client | None, tell: Tell) -> None:
        """Fill the stores, tile by tile."""
        from sdm.outputs import zarr_store

        side = self.job.grid.tile_size
        for store, meta in zip(self.stores, self.metadata, strict=True):
            zarr_store.create(store, self.job.grid.geobox, (side, side), meta)
        self.device = run_tiles(
            self.job.plan, self.stores, [m.variable for m in self.metadata], execution, client, tell
        )
        if self.compared is not None:
            self.compared.create()
            variables = [m.variable for m in self.metadata]
            run_tiles(self.compared.plan, self.compared.stores, variables, execution, client, tell)
        self.encoded = time.time()
        give_memory_back()
        if "html" in self.formats:
            self.countries = surrounding_countries(self.job.grid)

    def write(self, k: int, review: Future[Review] | None) -> dict[str, Any]:
        """Write the other files of the k-th map, with the review of its fit; returns its report."""
        from sdm.outputs import sidecar, stac
        from sdm.outputs.cog import write_cog
        from sdm.outputs.cube import Layer
        from sdm.outputs.geozarr import write_geozarr
        from sdm.outputs.statistics import summarise, summarise_band
        from sdm.outputs.style import write_qml
        from sdm.outputs.webmap import write_html

        stem, meta, geobox = self.job.slugs[k], self.metadata[k], self.job.grid.geobox
        array = Layer(self.stores[k], meta.variable)
        bands = [Layer(self.stores[k], band.name) for band in meta.bands]
        if "cog" in self.formats:
            summary = write_cog(self.staging.path(f"{stem}.tif"), array, geobox, meta, bands)
            write_qml(self.staging.path(f"{stem}.qml"), meta)
        else:
            summaries = [summarise_band(layer, geobox, band) for layer, band in zip(bands, meta.bands, strict=True)]
            summary = replace(summarise(array, geobox), bands=tuple(summaries))
        if "zarr3" in self.formats:
            write_geozarr(self.staging.path(f"{stem}.v3.zarr"), array, geobox, meta, bands)
        give_memory_back()
        found = self._write_range(k, array, bands)
        changes = {} if self.compared is None else {"change": self.compared.write(k, array, self.staging.path)}
        compared = COMPARED if changes else ()
        kept = (*self.kept, *(RANGE if found else ()), *compared, *fit_suffixes(self.job, k))
        files = {suffix[1:]: f"{stem}{suffix}" for suffix in kept}
        if "html" in self.formats:
            links = {LINKS[kind]: name for kind, name in files.items() if kind in LINKS}
            outline = found.outline if found else None
            path = self.staging.path(f"{stem}.html")
            write_html(path, array, meta, self.countries, links, geobox=geobox, bands=bands, outline=outline)
        timings = {
            "tiles_s": round(self.encoded - self.started, 3),
            "written_s": round(time.time() - self.encoded, 3),
        }
        entry = found.entry if found else None
        validated = write_fit_files(self.job, k, self.staging.path, array, files, entry, review=review)
        measured = {"statistics": summary.to_dict(), **_trust(meta, summary), "timings": timings, "files": files}
        measured |= self._range_entry(k, found) | changes
        measured |= {"cross_validation": validated} if validated else {}
        if "stac" in self.formats:
            assets = {kind: name for kind, name in files.items() if kind != "stac.json"}
            item = stac.item(stem, geobox, meta, assets, summary)
            sidecar.write_json(self.staging.path(f"{stem}.stac.json"), item)
        content = report(self.job, k, self.device, self.command, **measured)
        written = {name: self.staging.path(name) for name in files.values()}
        return sidecar.write_sealed(self.staging.path(f"{stem}.json"), content, written)

    def _write_range(self, k: int, array: Source, bands: Sequence[Source]) -> Range | None:
        """Write the range on the k-th map, where one is wanted."""
        if not self.ranged[k]:
            return None
        paths = [self.staging.path(f"{self.job.slugs[k]}{suffix}") for suffix in RANGE]
        measured = self.job.plan.targets[k].measured  # the uncertainty of a named species is no deviation of a logit
        named = {b.name: layer for b, layer in zip(self.metadata[k].bands, bands, strict=True) if b in measured}
        return write_range(self.job, k, self.rule, paths, array, named, self.command)

    def _range_entry(self, k: int, found: Range | None) -> dict[str, Any]:
        """The entry of the range in the report of the k-th map; {} where none was asked for."""
        if self.rule is None:
            return {}
        return {
            "range": {"rule": str(self.rule), "omitted": stand_in_note(self.job, k)} if found is None else found.entry
        }

    def remove_scratch(self) -> None:
        """Remove the stores that are not among the outputs."""
        if "zarr" not in self.formats:
            for store in self.stores:
                shutil.rmtree(store, ignore_errors=True)
        for store in () if self.compared is None else self.compared.stores:
            shutil.rmtree(store, ignore_errors=True)


def _trust(metadata: MapMetadata, summary: Summary) -> dict[str, Any]:
    """The entries of a report on the further bands of a map; {} where it has none."""
    if not metadata.bands:
        return {}
    bands = [
        {**asdict(band), "statistics": statistics.to_dict()}
        for band, statistics in zip(metadata.bands, summary.bands, strict=True)
    ]
    shares = {
        f"share_{_ADJECTIVES.get(band.name, band.name)}": statistics.share_above_limit
        for band, statistics in zip(metadata.bands, summary.bands, strict=True)
        if band.limit is not None
    }
    return {"bands": bands, "trust": shares}


def run_tiles(
    plan: Plan,
    stores: Sequence[Path],
    variables: Sequence[str],
    execution: Execution | None = None,
    client: Client | None = None,
    tell: Tell = lambda stage, done, total: None,
) -> str:
    """Compute every tile and write its chunk into each species' store: one Dask task per tile.

    Parameters
    ----------
    plan : what is computed.
    stores, variables : of each species the Zarr store and the variable in it; its bands have variables of their own.
    execution, client : where; on the workers of `client` if there is one.
    tell : progress.

    Returns
    -------
    The devices the tiles were computed on, as "cpu", "cuda" or "cpu,cuda": the two round differently.
    """
    tiles = list(plan.grid.tiles())
    tell("tiles", 0, len(tiles))
    devices: list[str] = []

    def done(device: str) -> None:
        devices.append(device)
        tell("tiles", len(devices), len(tiles))

    shared = (plan, tuple(stores), tuple(variables))
    folder = stores[0].parent
    run_tasks(write_tile_task, tiles, shared, execution=execution, client=client, folder=folder, done=done)
    used = ",".join(sorted(set(devices)))
    if "," in used:
        warnings.warn(
            f"tiles were computed on {used}, which round differently; give a device for the same bits every time.",
            ClusterWarning,
            stacklevel=3,
        )
    return used


def write_tile_task(tile: Tile, plan: Plan, stores: Sequence[Path], variables: Sequence[str]) -> str:
    """Score one tile and write it, with its bands; returns the device it was computed on, nothing heavy."""
    from sdm.outputs.zarr_store import write_tile

    values, bands = map_tile(plan, tile)
    for k, (store, variable) in enumerate(zip(stores, variables, strict=True)):
        names = (variable, *(band.name for band in plan.targets[k].bands))
        for name, layer in zip(names, (values[k], *(bands[k] if bands else ())), strict=True):
            # A chunk that is never written reads as not modelled.
            if not np.isnan(layer).all():
                write_tile(store, tile.rows, tile.cols, layer, name)
    return plan.here
