"""Maps computed and written: GeoTIFF, style, Zarr, web map and report, all of them or none."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sdm.engine.cluster import ClusterWarning, active_client, open_client
from sdm.engine.places import Plan
from sdm.engine.tasks import run_tasks
from sdm.engine.tile import score_tile
from sdm.maps.memory import give_memory_back
from sdm.maps.plan import Job
from sdm.maps.report import describe, outlines_around, report_of
from sdm.models.device import local_device
from sdm.request.choices import FORMATS, parse_formats

LINKS = {"tif": "GeoTIFF", "zarr": "Zarr", "json": "report"}
"""Labels of the files the web map links to."""


@dataclass(frozen=True)
class MapResult:
    """One written map."""

    species: str
    files: dict[str, Path]
    report: dict[str, Any]
    """What the `.json` sidecar holds."""


def write_maps(
    job: Job,
    out: str | Path = "maps",
    *,
    formats: Sequence[str] = FORMATS,
    overwrite: bool = False,
    threads: int | None = None,
    workers: int | None = None,
    scheduler_address: str | Path | None = None,
    command: str = "",
    progress: Callable[[str, int, int], None] | None = None,
) -> list[MapResult]:
    """Compute a job and write, per species, `.tif` and `.qml`, `.zarr`, `.html` and `.json` into `out`.

    Either every file of the job appears, complete and checked, or none. Where tiles are computed:
    `threads`, tiles at once in this process; or `workers`, so many processes of this machine (with
    `threads` tiles at once in each, by default 1); or `scheduler_address`, a Dask cluster's; else an active
    `dask.distributed.Client`, if there is one; else this process, one tile per processor. The result is the
    same to the bit. `progress(stage, done, total)` is called in this process.

    Raises OutputError when an output exists (without `overwrite`) or cannot be written, ClusterError when
    a cluster does not answer or loses its workers.
    """
    from sdm.files.atomic import Staging, check_targets
    from sdm.outputs import sidecar, zarr_store
    from sdm.outputs.cog import write_cog
    from sdm.outputs.statistics import summarise
    from sdm.outputs.style import write_qml
    from sdm.outputs.webmap import write_html

    formats = parse_formats(formats)
    out = Path(out)
    tell = progress or (lambda stage, done, total: None)
    suffixes = {"cog": (".tif", ".qml"), "zarr": (".zarr",), "html": (".html",)}
    kept = [s for f in formats for s in suffixes[f]] + [".json"]
    names = [f"{stem}{suffix}" for stem in job.slugs for suffix in kept]
    check_targets(out, names, overwrite=overwrite)
    if workers is None and scheduler_address is None and active_client() is None:
        local_device(job.plan.device)
    started = time.time()
    # The tiles always go through a Zarr store, published or not: it is what bounds the memory.
    hidden = [] if "zarr" in formats else [f"{stem}.zarr" for stem in job.slugs]
    with (
        open_client(threads=threads, workers=workers, scheduler_address=scheduler_address) as client,
        Staging(out, names, overwrite=overwrite) as staging,
    ):
        # Absolute: a worker has its own working folder.
        scratch = staging.path(names[0]).parent.absolute()
        stores = [scratch / f"{stem}.zarr" for stem in job.slugs]
        metadata = [describe(job, k, command) for k in range(len(job.slugs))]
        side = job.grid.tile_size
        for store, meta in zip(stores, metadata, strict=True):
            zarr_store.create(store, job.grid.geobox, (side, side), meta)
        device = run_tiles(job.plan, stores, [m.variable for m in metadata], threads, client, tell)
        encoded = time.time()
        give_memory_back()
        results, total = [], len(job.slugs)
        countries = outlines_around(job.grid) if "html" in formats else None
        for k, (stem, store, meta) in enumerate(zip(job.slugs, stores, metadata, strict=True)):
            tell("writing", k, total)
            array = zarr_store.open_map(store, meta.variable)
            if "cog" in formats:
                summary = write_cog(staging.path(f"{stem}.tif"), array, job.grid.geobox, meta)
                write_qml(staging.path(f"{stem}.qml"), meta)
            else:
                summary = summarise(array, job.grid.geobox)
            files = {suffix[1:]: f"{stem}{suffix}" for suffix in kept}
            give_memory_back()
            if "html" in formats:
                links = {LINKS[n]: f for n, f in files.items() if n in LINKS}
                write_html(staging.path(f"{stem}.html"), array, meta, countries, links)
            timings = {"tiles_s": round(encoded - started, 3), "written_s": round(time.time() - encoded, 3)}
            report = report_of(job, k, meta.quantity, files, summary.to_dict(), timings, device, command)
            sidecar.write_json(staging.path(f"{stem}.json"), report)
            results.append(MapResult(job.resolutions[k].taxon.name, {n: out / f for n, f in files.items()}, report))
        for name in hidden:
            _remove_store(scratch / name)
        staging.publish()
        tell("writing", total, total)
    return results


def run_tiles(
    plan: Plan,
    stores: Sequence[Path],
    variables: Sequence[str],
    threads: int | None = None,
    client: Any = None,
    tell: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> str:
    """Compute every tile and write its chunk into each species' store: one Dask task per tile.

    On the workers of `client`, or on threads of this process. Returns the devices the tiles were computed on,
    as "cpu", "cuda" or "cpu,cuda": the two round differently.
    """
    tiles = list(plan.grid.tiles())
    tell("tiles", 0, len(tiles))
    devices = []

    def done(device: str) -> None:
        devices.append(device)
        tell("tiles", len(devices), len(tiles))

    shared = (plan, tuple(stores), tuple(variables))
    run_tasks(write_tile_task, tiles, shared, threads=threads, client=client, folder=stores[0].parent, done=done)
    used = ",".join(sorted(set(devices)))
    if "," in used:
        warnings.warn(
            f"tiles were computed on {used}, which round differently; give a device for the same bits every time.",
            ClusterWarning,
            stacklevel=3,
        )
    return used


def write_tile_task(tile, plan: Plan, stores: Sequence[Path], variables: Sequence[str]) -> str:
    """Score one tile and write it; returns the device it was computed on, nothing heavy."""
    from sdm.outputs.zarr_store import write_tile

    values = score_tile(plan, tile)
    for store, variable, layer in zip(stores, variables, values, strict=True):
        # A chunk that is never written reads as not modelled.
        if not np.isnan(layer).all():
            write_tile(store, tile.rows, tile.cols, layer, variable)
    return plan.here


def _remove_store(path: Path) -> None:
    import shutil

    shutil.rmtree(path, ignore_errors=True)
