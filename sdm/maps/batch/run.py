"""A batch from its plan to its published outputs; an interrupted run resumes."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sdm.engine.cluster import ClusterWarning, on_cluster, open_client
from sdm.engine.tasks import run_tasks
from sdm.errors import OutputError, SdmError
from sdm.files import checksums, records, workspace
from sdm.files.atomic import check_folder
from sdm.grid import Tile
from sdm.maps.batch.drawings import draw, drawings, write_species, write_species_range
from sdm.maps.batch.plan import Batch, configuration, configuration_of, plan_batch, species_suffixes
from sdm.maps.batch.ranges import check_ranges, note_ranges
from sdm.maps.batch.records import given, write_fits
from sdm.maps.batch.summary import batch_report, read_summary, summary, write_page, write_summary
from sdm.maps.batch.texts import PAGE, PICTURES, RICHNESS, SPECIES, STORE, SUMMARY
from sdm.maps.batch.tiles import Work, map_tile
from sdm.maps.fits import Kept
from sdm.maps.memory import give_memory_back
from sdm.maps.write import Tell, delivery_and_execution
from sdm.models.device import local_device
from sdm.outputs import cube, sidecar
from sdm.request import Delivery, Execution, ListOptions

if TYPE_CHECKING:
    import xarray as xr
    from distributed import Client

    from sdm.maps.plan import OpenedFits


@dataclass(frozen=True)
class BatchResult:
    """A finished batch."""

    folder: Path
    summary: list[dict[str, Any]]
    """The rows of `summary.csv`."""
    report: dict[str, Any]
    """The content of `batch.json`."""
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
    progress: Tell | None = None,
    **options: Any,
) -> BatchResult:
    """Map a list of species over one region into one folder. Options are those of `plan_batch` and `write_batch`.

    sdm.map_batch(["Ursus arctos", "Puma concolor"], bbox=(-125, 31, -102, 49), out="west").open()
    """
    # `device` stays with the plan, which hands it on.
    names = {f.name for part in (Delivery, Execution) for f in fields(part)} - {"device"}
    writing = {name: value for name, value in options.items() if name in names}
    planning = {name: value for name, value in options.items() if name not in names}
    return write_batch(plan_batch(species, bbox, **planning), out, progress=progress, **writing)


def write_batch(
    batch: Batch, out: str | Path = "maps", *, command: str = "", progress: Tell | None = None, **options: Any
) -> BatchResult:
    """Compute a batch into a folder.

    Written are `probability.zarr` with all maps, the map of their sum (`richness.tif`, `.qml`, `.html`), `summary.csv`,
    `index.html` with its pictures, and `batch.json`. They appear when all are complete; until then they lie in
    `batch.partial` within the folder, from which the same call resumes after an interruption. A folder that already
    holds the same batch is left as it is.

    Parameters
    ----------
    batch : from `plan_batch`.
    out : the folder.
    formats : cog and html, per species, into its folder `species`.
    range : rule of ranges to write as well, per species; see `sdm.write_maps`.
    overwrite : replace another batch, finished or not.
    threads, workers, scheduler_address : where tiles are computed, as of `sdm.write_maps`.
    command, progress : as of `sdm.write_maps`.

    Raises
    ------
    OutputError : the folder holds something else, or another run is writing to it.
    """
    if not options.get("formats"):
        options.pop("formats", None)  # none per species
    delivery, execution = delivery_and_execution(out, batch.job.plan.device, options)
    return write_list(batch, delivery, execution, command=command, progress=progress)


def refuse_list(batch: Batch, delivery: Delivery, execution: Execution) -> None:
    """Raise as `write_list` would before it computes anything, except for what the folder holds."""
    check_folder(Path(delivery.out))
    check_ranges(batch, delivery.range)
    if not on_cluster(execution):
        local_device(batch.job.plan.device)


def finished_fits(
    opened: OpenedFits, listing: ListOptions, delivery: Delivery, execution: Execution
) -> BatchResult | None:
    """The finished batch of the species of a file of records, where the folder holds it: nothing is fitted for that.

    Raises OutputError where it holds another batch.
    """
    out, asked = Path(delivery.out), _asked(opened, listing, delivery, execution)
    if not workspace.Workspace(out, (), overwrite=delivery.overwrite).is_finished(asked):
        return None
    return BatchResult(out, read_summary(out / SUMMARY), workspace.read_report(out) or {}, computed=False)


@contextmanager
def keeping_fits(
    opened: OpenedFits, listing: ListOptions, delivery: Delivery, execution: Execution, command: str = ""
) -> Iterator[Kept]:
    """Begin the run of a batch of fits, with the folder where finished fits are kept for it.

    An interruption leaves them to the same call; after an error nothing is left that was not there.
    """
    asked = _asked(opened, listing, delivery, execution)
    with workspace.Workspace(Path(delivery.out), (), overwrite=delivery.overwrite) as space:
        fresh = not space.partial.exists()
        space.begin(asked, {"command": command, "started": _now()})
        try:
            yield Kept(space.fits)
        except SdmError:
            if fresh:
                space.discard()
            raise


def _asked(opened: OpenedFits, listing: ListOptions, delivery: Delivery, execution: Execution) -> dict[str, Any]:
    """The configuration of a batch of fits, which is known before anything is fitted."""
    places = opened.places
    what = given(opened, listing) | {"threshold": listing.threshold}
    device = _device(places.device, execution)
    return configuration_of(places, opened.request, what, _formats(delivery), device, delivery.range)


def _formats(delivery: Delivery) -> tuple[str, ...]:
    """Those per species: the Zarr store is of all."""
    return tuple(f for f in delivery.formats_or(()) if f != "zarr")


def _device(device: str, execution: Execution) -> str:
    """Another kind of device rounds differently. On a cluster that is for its workers to say."""
    return device if on_cluster(execution) else local_device(device).partition(":")[0]


def write_list(
    batch: Batch, delivery: Delivery, execution: Execution, *, command: str = "", progress: Tell | None = None
) -> BatchResult:
    """As `write_batch`, from two objects."""
    formats, out, job = _formats(delivery), Path(delivery.out), batch.job
    device = _device(job.plan.device, execution)
    suffixes, ranged = species_suffixes(formats), check_ranges(batch, delivery.range)
    names = [STORE, *(f"{RICHNESS}.{s}" for s in ("tif", "qml", "html")), PICTURES, SUMMARY, PAGE, workspace.REPORT]
    names += [SPECIES] if suffixes or job.fits or ranged else []
    asked = configuration(batch, formats, device, delivery.range)
    with workspace.Workspace(out, names, overwrite=delivery.overwrite) as space, open_client(execution) as client:
        begun = space.begin(asked, {"command": command, "started": _now()})
        if begun is None:
            finished = workspace.read_report(space.folder)
            _refuse_damage(space.folder / workspace.REPORT)
            return BatchResult(out, read_summary(space.folder / SUMMARY), finished or {}, computed=False)
        run = _Run(
            batch,
            Work.of(batch, space, begun["command"], delivery.range),
            space,
            execution,
            client,
            progress or _silent,
        )
        totals, devices = run.tiles()
        found = run.ranges(ranged)
        richness = run.pictures(float(totals["highest"]), suffixes)
        fits = write_fits(batch, space.new / SPECIES, run.work.store, run.work.metadata.variable, suffixes)
        rows = summary(batch, totals, suffixes, found)
        note_ranges(batch, rows, delivery.range)
        write_summary(run.work, rows)
        write_page(run.work, rows, suffixes)
        report = batch_report(batch, asked, devices, begun["command"]) | {"richness": richness, "outputs": names}
        report |= {"fits": fits} if fits else {}
        if delivery.range is not None:
            report["range"] = {"rule": str(delivery.range), "meaning": delivery.range.meaning, "species": len(found)}
        report["run"] = {"started": begun["started"], "written": _now(), **run.timings()}
        report = sidecar.write_sealed(space.new / workspace.REPORT, report, {name: space.new / name for name in names})
        space.publish()
    return BatchResult(out, rows, report)


def _refuse_damage(path: Path) -> None:
    """Raise OutputError where a finished batch is not as it was written."""
    if problems := checksums.damage(path):
        raise OutputError(
            f"{path.parent} holds this batch, finished before, but {'; '.join(problems[:3])}; give --overwrite to "
            "compute it again."
        )


class _Run:
    """The computation of a batch in its workspace: what is missing of the tiles, then the drawings."""

    def __init__(
        self,
        batch: Batch,
        work: Work,
        space: workspace.Workspace,
        execution: Execution,
        client: Client | None,
        tell: Tell,
    ) -> None:
        self.batch, self.work, self.space, self.execution, self.tell = batch, work, space, execution, tell
        self.client = client
        self.started, self.encoded, self.computed = time.time(), 0.0, 0

    def _run(self, function: Callable[..., Any], items: Sequence[Any], shared: tuple[Any, ...], done: Any) -> None:
        folder = self.space.partial.absolute()
        run_tasks(function, items, shared, execution=self.execution, client=self.client, folder=folder, done=done)

    def tiles(self) -> tuple[dict[str, np.ndarray], list[str]]:
        """Compute the tiles that are missing; returns the statistics of all, and the devices they were computed on."""
        work, space, tell = self.work, self.space, self.tell
        if not work.store.exists():
            work.create_store()
        tiles = list(self.batch.job.grid.tiles())
        finished = space.finished([t.index for t in tiles], work.store, lambda n: tell("checking", n, len(tiles)))
        missing = [t for t in tiles if t.index not in finished]
        tell("tiles", len(finished), len(tiles))
        self._run(map_tile, missing, (work,), _counted(tell, "tiles", len(tiles), len(finished)))
        self.encoded, self.computed = time.time(), len(missing)
        give_memory_back()
        return _collected(work, tiles)

    def ranges(self, numbers: Sequence[int]) -> dict[int, dict[str, float]]:
        """Write the ranges of some species; returns their numbers."""
        found: dict[int, dict[str, float]] = {}
        if not numbers:
            return found
        (self.space.new / SPECIES).mkdir(exist_ok=True)
        self.tell("ranges", 0, len(numbers))

        def one(result: tuple[int, dict[str, float]]) -> None:
            found.update([result])
            self.tell("ranges", len(found), len(numbers))

        self._run(write_species_range, numbers, (self.work,), one)
        return found

    def pictures(self, highest: float, suffixes: Sequence[str]) -> dict[str, Any]:
        """Draw pictures, the map of the sum and the files per species; returns the statistics of the map of the sum."""
        for folder in (PICTURES, SPECIES) if suffixes else (PICTURES,):
            (self.space.new / folder).mkdir(exist_ok=True)
        todo = drawings(self.work)
        drawn: list[dict[str, Any]] = []
        self.tell("pictures", 0, len(todo))

        def one(statistics: dict[str, Any]) -> None:
            drawn.append(statistics)
            self.tell("pictures", len(drawn), len(todo))

        self._run(draw, todo, (self.work, highest), one)
        if suffixes:
            numbers = list(range(len(self.batch.stems)))
            self._run(write_species, numbers, (self.work, suffixes), _counted(self.tell, "writing", len(numbers)))
        return next(filter(None, drawn))

    def timings(self) -> dict[str, Any]:
        """Timings of this run, in seconds."""
        return {
            "tiles_computed_last": self.computed,
            "tiles_s": round(self.encoded - self.started, 3),
            "written_s": round(time.time() - self.encoded, 3),
        }


def _silent(stage: str, done: int, total: int) -> None:
    pass


def _collected(work: Work, tiles: Sequence[Tile]) -> tuple[dict[str, np.ndarray], list[str]]:
    """The statistics of all tiles, added up in their order, and the devices they were computed on."""
    totals: dict[str, np.ndarray] = {}
    devices: set[str] = set()
    for tile in tiles:
        names = ("count", "sum", "modelled", "expected", "above", "hit", "min", "max", "highest")
        path = records.record_path(work.tiles, tile.index)
        record = records.read_record(path, [f"value_{name}" for name in (*names, "device")])
        devices.add(str(record["value_device"]))
        for name in names:
            values = record[f"value_{name}"]
            combine = {"min": np.minimum, "max": np.maximum, "highest": np.maximum}.get(name, np.add)
            totals[name] = combine(totals[name], values) if name in totals else values
    if len(devices) > 1:
        warnings.warn(
            f"tiles were computed on {' and '.join(sorted(devices))}, which round differently; set --device for "
            "reproducible results.",
            ClusterWarning,
            stacklevel=3,
        )
    return totals, sorted(devices)


def _counted(tell: Tell, stage: str, total: int, count: int = 0) -> Callable[[Any], None]:

    def done(_: Any) -> None:
        nonlocal count
        count += 1
        tell(stage, count, total)

    return done


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
