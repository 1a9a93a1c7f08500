"""A batch from its plan to its published outputs, going on where an earlier run was cut off."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sdm.engine.cluster import ClusterWarning, active_client, open_client
from sdm.engine.tasks import run_tasks
from sdm.files import workspace as ledger
from sdm.grid import Tile
from sdm.maps.batch.drawings import draw, drawings, write_species
from sdm.maps.batch.plan import Batch, configuration, plan_batch, suffixes_of
from sdm.maps.batch.summary import read_summary, report_of, summary, write_page, write_summary
from sdm.maps.batch.texts import PAGE, PICTURES, RICHNESS, SPECIES, STORE, SUMMARY
from sdm.maps.batch.tiles import Work, map_tile
from sdm.maps.memory import give_memory_back
from sdm.models.device import local_device
from sdm.outputs import cube, sidecar
from sdm.request.choices import parse_formats

if TYPE_CHECKING:
    import xarray as xr

Tell = Callable[[str, int, int], None]
"""Called with (stage, done, total)."""


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
    wanted = tuple(f for f in parse_formats(formats) if f != "zarr") if formats else ()
    tell = progress or (lambda stage, done, total: None)
    job = batch.job
    clustered = workers is not None or scheduler_address is not None or active_client() is not None
    # Another kind of device rounds differently. On a cluster that is for its workers to say.
    device = job.plan.device if clustered else local_device(job.plan.device).partition(":")[0]
    suffixes = suffixes_of(wanted)
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
            return BatchResult(Path(out), read_summary(space.folder / SUMMARY), report, computed=False)
        work = Work.of(batch, space, begun["command"])
        if not work.store.exists():
            work.create_store()
        tiles = list(job.grid.tiles())
        finished = space.finished([t.index for t in tiles], work.store, lambda n: tell("checking", n, len(tiles)))
        missing = [t for t in tiles if t.index not in finished]
        tell("tiles", len(finished), len(tiles))
        done = _counted(tell, "tiles", len(tiles), len(finished))
        where = {"threads": threads, "client": client, "folder": space.partial.absolute()}
        run_tasks(map_tile, missing, (work,), done=done, **where)
        encoded = time.time()
        give_memory_back()
        found, devices = _collected(work, tiles)
        for folder in (PICTURES, SPECIES) if suffixes else (PICTURES,):
            (space.new / folder).mkdir(exist_ok=True)
        todo = drawings(work)
        drawn: list[dict[str, Any]] = []
        tell("pictures", 0, len(todo))

        def one(statistics: dict[str, Any]) -> None:
            drawn.append(statistics)
            tell("pictures", len(drawn), len(todo))

        run_tasks(draw, todo, (work, float(found["highest"])), done=one, **where)
        richness = next(filter(None, drawn))
        if suffixes:
            numbers = list(range(len(batch.stems)))
            run_tasks(write_species, numbers, (work, suffixes), done=_counted(tell, "writing", len(numbers)), **where)
        rows = summary(batch, found, suffixes)
        write_summary(work, rows)
        write_page(work, rows, suffixes)
        report = report_of(batch, asked, names, richness, devices, begun["command"])
        report["run"] = {
            "started": begun["started"], "written": _now(), "tiles_computed_last": len(missing),
            "tiles_s": round(encoded - started, 3), "written_s": round(time.time() - encoded, 3),
        }  # fmt: skip
        sidecar.write_json(space.new / ledger.REPORT, report)
        space.publish()
    return BatchResult(Path(out), rows, report)


def _collected(work: Work, tiles: Sequence[Tile]) -> tuple[dict[str, np.ndarray], list[str]]:
    """The statistics of all tiles, added up in their order, and the devices they were computed on."""
    found: dict[str, np.ndarray] = {}
    devices: set[str] = set()
    for tile in tiles:
        names = ("count", "sum", "modelled", "expected", "above", "hit", "min", "max", "highest")
        path = ledger.record_of(work.tiles, tile.index)
        record = ledger.read_record(path, [f"value_{name}" for name in (*names, "device")])
        devices.add(str(record["value_device"]))
        for name in names:
            values = record[f"value_{name}"]
            combine = {"min": np.minimum, "max": np.maximum, "highest": np.maximum}.get(name, np.add)
            found[name] = combine(found[name], values) if name in found else values
    if len(devices) > 1:
        warnings.warn(
            f"tiles were computed on {' and '.join(sorted(devices))}, which round differently; give --device.",
            ClusterWarning,
            stacklevel=3,
        )
    return found, sorted(devices)


def _counted(tell: Tell, stage: str, total: int, count: int = 0) -> Callable[[Any], None]:

    def done(_: Any) -> None:
        nonlocal count
        count += 1
        tell(stage, count, total)

    return done


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
