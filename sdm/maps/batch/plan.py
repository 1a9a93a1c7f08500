"""From a list of names to a planned batch: what each name is, and all that the outputs depend on."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdm._version import __version__
from sdm.errors import RegionIndexError, RequestError, SpeciesNameError
from sdm.files.fingerprint import of_files
from sdm.maps.plan import MAX_SPECIES, Job, opened_index, plan
from sdm.models.choice import Outcome, choose_for_most, refuse_stranger
from sdm.models.registry import AnyModel, open_model
from sdm.names import Resolution
from sdm.names.habitat import mask_for
from sdm.names.lists import Asked, distinct, read_names
from sdm.outputs.cube import SPECIES as SPECIES_PER_CHUNK
from sdm.request.months import month_name

if TYPE_CHECKING:
    from sdm.index import Index

MAX_TILE = 1024
"""Side of a tile in pixels, at most: the embeddings of a whole tile are held in memory."""


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

    job: Job
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
        blocks = -(-taxa // SPECIES_PER_CHUNK)
        files = blocks * found["tiles"] + taxa * (1 + len(suffixes_of(formats)))
        each = 4.0 + 4 * sum({"cog": 1.4, "html": 0.3}.get(f, 0.0) for f in formats)
        return found | {
            "species": taxa,
            "names": len(self.rows),
            "names_not_mapped": len(self.failed),
            "files_about": files,
            "bytes_at_most": int(pixels * each * taxa),
        }


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
        index = opened_index(index)
        model = index.find_model(model)
    opened, rows = _resolve(asked, model)
    if not opened.calibrated:
        raise RequestError(
            f"model {opened.name!r} is not calibrated, and a batch holds probabilities; map its species by name, up to "
            f"{MAX_SPECIES} at a time."
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
    job = plan(queries, bbox, region, model=model, resolved=(opened, resolutions), index=index, **options)
    if job.grid.tile_size > MAX_TILE:
        raise RequestError(f"tile size {job.grid.tile_size} is more than {MAX_TILE} pixels, the most for a batch.")
    return Batch(job, rows, threshold, tuple(notes))


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
    own = {"environment": plan.environment, "satellite": [plan.satellite] if plan.satellite else []}
    layers = {name: of_files(paths) if paths else "bundled" for name, paths in own.items()}
    return {
        "software": f"taxabind-map {__version__}",
        "species": f"{len(listed):,} names, sha256 {hashlib.sha256(json.dumps(listed).encode()).hexdigest()[:16]}",
        "model": f"{plan.model.name} {plan.model.digest}",
        "modalities": ",".join(plan.modalities),
        "month": month_name(plan.month) if plan.model.seasonal else None,
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


def suffixes_of(formats: Sequence[str]) -> tuple[str, ...]:
    """The suffixes of the files of a species."""
    per = {"cog": ("tif", "qml"), "html": ("html",)}
    return tuple(s for f in formats for s in per.get(f, ()))


def _texts(species: Iterable[str]) -> Iterable[tuple[int, str]]:
    try:
        found = enumerate(species, 1)
    except TypeError:
        raise RequestError(f"species {species!r} are neither names nor a file.") from None
    for number, name in found:
        if not isinstance(name, str):
            raise SpeciesNameError(f"species {number} of the list, {str(name)[:60]!r}, is not text.")
        yield number, name


def _resolve(asked: Sequence[Asked], model: AnyModel | str | Path | None) -> tuple[AnyModel, tuple[Row, ...]]:
    """The model, by default the one that knows most of the names, and what each is in it."""
    if model is None:
        opened, outcomes = choose_for_most([one.query for one in asked])
    else:
        opened = open_model(model) if isinstance(model, str | Path) else model
        outcomes = [refuse_stranger(opened, one.query, _outcome(one, opened)) for one in asked]
    rows = [
        Row(one, error=str(found)) if isinstance(found, SpeciesNameError) else Row(one, found)
        for one, found in zip(asked, outcomes, strict=True)
    ]
    return opened, tuple(rows)


def _outcome(asked: Asked, model: AnyModel) -> Outcome:
    try:
        return model.resolve(asked.query)
    except SpeciesNameError as error:
        return error


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
