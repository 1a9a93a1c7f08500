"""Build a region index: a set of tiles, each encoded once, however often the build is interrupted.

While it is being built, everything lies beside its final place in `west.zarr.partial` (see `sdm.files.workspace`).
The finished index has the same bytes as one whose build was never interrupted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sdm._version import __version__
from sdm.engine.cluster import on_cluster
from sdm.engine.tasks import run_tasks
from sdm.errors import OutputError, RegionIndexError, RequestError
from sdm.files.atomic import check_folder, disk_errors
from sdm.files.records import Record, read_record, record_path
from sdm.files.workspace import Kind, Workspace
from sdm.index import store
from sdm.index.plan import IndexJob
from sdm.index.reader import Index
from sdm.index.reuse import check_reusable
from sdm.index.tiles import TileTask, build_tile
from sdm.index.verify import damaged
from sdm.layers import ATTRIBUTION
from sdm.models.device import local_device
from sdm.models.licence import credit_lines
from sdm.outputs.metadata import MapMetadata
from sdm.request import Execution
from sdm.request.months import WHOLE_YEAR, when

Tell = Callable[[str, int, int], None]
"""Called with (stage, done, total)."""
REUSE_CACHE_BYTES = 256 << 20
"""Memory for tiles of the index whose pixels are taken over: a row of them, not all."""


def build_index(
    job: IndexJob,
    out: str | Path,
    *,
    reuse: Index | str | Path | None = None,
    overwrite: bool = False,
    progress: Tell | None = None,
    **execution: Any,
) -> Index:
    """Encode every tile of a job that is not finished yet, and publish the index.

    Interrupted at any moment, the same call continues where it was. A finished index of the same job is returned as
    it is.

    Parameters
    ----------
    job : from `sdm.plan_index`.
    out : its folder, for example west.zarr.
    reuse : an index whose pixels are taken over where they are the same.
    overwrite : replace another index there, and an unfinished one of another job.
    progress : called in this process with (stage, done, total).
    threads, workers, scheduler_address : where tiles are computed, as in `sdm.write_maps`.

    Raises
    ------
    OutputError : `out` is something else (without `overwrite`), or is being built by another process or with other
        settings.
    RegionIndexError : the pixels of `reuse` are not those of the job.
    """
    where = Execution(**{"device": job.places.device, **execution})
    return build(job, out, where, reuse=reuse, overwrite=overwrite, progress=progress)


def build(
    job: IndexJob,
    out: str | Path,
    execution: Execution,
    *,
    reuse: Index | str | Path | None = None,
    overwrite: bool = False,
    progress: Tell | None = None,
) -> Index:
    """As `build_index`, with the place of execution as one object."""
    out = Path(out)
    if out.name in ("", "..") or "://" in str(out) or ":/" in str(out):
        raise OutputError(
            f"--out {str(out)!r} is not a local folder, such as west.zarr; build it there, then copy it elsewhere."
        )
    if not on_cluster(execution):
        local_device(job.places.device)
    old = Index.open(reuse, cache_bytes=REUSE_CACHE_BYTES) if isinstance(reuse, str | Path) else reuse
    if old is not None:
        check_reusable(old, job)
    check_folder(out.parent)
    with workspace(out, overwrite) as space, disk_errors(out):
        if space.begin(_flat(job.identity), {}) is None:
            _refuse_damage(out)
        else:
            _fill(space, job, execution, old, progress or (lambda stage, done, total: None))
            space.publish()
    return Index.open(out)


def _refuse_damage(out: Path) -> None:
    """Raise OutputError where an index that is finished is not as it was written."""
    if found := damaged(Index.open(out)):
        more = f" and {len(found) - 1} more" if len(found) > 1 else ""
        raise OutputError(
            f"{out} was built before, and is damaged: {found[0]}{more}; give --overwrite to build it again."
        )


def workspace(out: Path, overwrite: bool = False) -> Workspace:
    """The folder in which an index is built."""
    kind = Kind(
        partial=f"{out.name}.partial",
        lock=f".{out.name}.lock",
        request="build.json",
        finished=lambda folder: _finished(folder / out.name),
        unfinished_text="{output} is being built",
        finished_text="{output} exists already, made",
        foreign_text="is not a Zarr store",
        replaceable=lambda path: (path / ".zgroup").is_file(),
        output=out.name,
    )
    return Workspace(out.parent, [out.name], kind=kind, overwrite=overwrite)


def _finished(out: Path) -> dict[str, Any] | None:
    try:
        return {"configuration": _flat(Index.open(out).identity), "outputs": [out.name]}
    except RegionIndexError:
        return None


def _fill(space: Workspace, job: IndexJob, execution: Execution, reuse: Index | None, tell: Tell) -> None:
    """Compute the tiles that are missing, and make an index of the store."""
    path = space.new.absolute() / space.names[0]
    if not path.exists():
        part = space.tmp / space.names[0]
        store.create(part, job.identity, job.grid, _metadata(job))
        part.rename(path)
    tiles = list(job.grid.tiles())
    done = space.finished([tile.index for tile in tiles], path)
    count = len(done)
    tell("tiles", count, len(tiles))

    def one_more(_: Any) -> None:
        nonlocal count
        count += 1
        tell("tiles", count, len(tiles))

    task = TileTask(job, path, space.tiles.absolute(), space.tmp.absolute(), reuse)
    missing = [tile for tile in tiles if tile.index not in done]
    run_tasks(build_tile, missing, (task,), execution=execution, folder=space.partial.absolute(), done=one_more)
    records = [read_record(record_path(space.tiles, tile.index)) for tile in tiles]
    notes = _notes(records, job)
    for left in path.rglob("*.partial"):  # chunks of a killed process
        left.unlink()
    checks = [(str(key), int(c)) for r in records for key, c in zip(r["files"], r["checks"], strict=True)]
    store.finish(path, job.identity, notes, checks)


def _notes(records: Sequence[Record], job: IndexJob) -> dict[str, Any]:
    """The notes stored in an index besides its identity. Raises RequestError where it would hold no pixel."""
    pixels = sum(int(r["value_pixels"][0]) for r in records)
    if not pixels:
        raise RequestError(
            f"--mask {job.storage.mask} leaves no pixel to store: none lies within the mask, the model's latitudes and "
            "all layers; choose another mask or box."
        )
    compared = sum(int(r["value_compared"][0]) for r in records)
    total = sum(float(r["value_error_sum"][0]) for r in records)
    return {
        "pixels_held": pixels,
        "error_of_probability": {
            "mean": round(total / compared, 9) if compared else 0.0,
            "largest": round(max(float(r["value_error_max"][0]) for r in records), 6),
            "compared": compared,
            "note": "stored against computed, at a sample of pixels, for up to 512 species of the model",
        },
        "computed_on": ",".join(sorted({str(r["value_device"][0]) for r in records})),
        "software": f"taxabind-map {__version__}",
    }


def _flat(identity: Any) -> dict[str, Any]:
    """An identity with the parts of its grid, layers and model side by side, to tell what differs."""
    flat: dict[str, Any] = {}
    for key, value in identity.items():
        flat |= {f"{key} {k}": v for k, v in value.items()} if isinstance(value, dict) else {key: value}
    return flat


def _metadata(job: IndexJob) -> MapMetadata:
    places, model, (west, south, east, north) = job.places, job.places.model, job.grid.bbox
    season = f" {when(places.month)}" if model.seasonal else ""
    return MapMetadata(
        title=f"Region index: {model.name}{season}, {west:g} {south:g} {east:g} {north:g}",
        quantity=f"Unit sum of the embeddings of a place{season}",
        description=(
            f"For each pixel the normalised sum of its {', '.join(places.modalities)} embeddings in the space of "
            f"the model {model.name!r}, {model.dim} numbers: embedding * scale. The scalar product with the unit "
            "vector of a species, also of another model that shares the encoders, is the cosine that the calibration "
            "of its model turns into a probability."
        ),
        tags={
            "model": model.name,
            "encoders": model.space[1],
            "modalities": ",".join(places.modalities),
            "mask": job.storage.mask,
            "encoding": job.storage.encoding,
            "licence": model.licence,
            "software": f"taxabind-map {__version__}",
            **({"month": str(places.month or WHOLE_YEAR)} if model.seasonal else {}),
        },
        attribution=(*ATTRIBUTION, *credit_lines(model)),
    )
