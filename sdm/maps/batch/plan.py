"""From a list of names to a planned batch: what each name is, and all that the outputs depend on."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdm._version import __version__
from sdm.errors import RegionIndexError, RequestError, SpeciesNameError
from sdm.files.fingerprint import of_files
from sdm.files.workbooks import check_workbook
from sdm.maps.plan import MAX_SPECIES, Job, open_ref, plan_resolved, with_opened_files
from sdm.models.choice import choose_for_most, resolve_in
from sdm.models.joint import narrowed
from sdm.names import Resolution
from sdm.names.habitat import mask_for
from sdm.names.lists import Asked, distinct, read_names
from sdm.outputs.cube import SPECIES as SPECIES_PER_CHUNK
from sdm.request import ListOptions, MapRequest, ModelRef, RangeRule
from sdm.request.choices import SIZES, parse_device
from sdm.request.months import month_name

if TYPE_CHECKING:
    from sdm.engine.places import Places
    from sdm.index import Index
    from sdm.models.protocol import Model

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
    """Index of the taxon among those mapped; several names may be one taxon."""


@dataclass(frozen=True)
class Batch:
    """A planned batch: names resolved, layers checked, nothing computed."""

    job: Job
    """The taxa to map, each once."""
    rows: tuple[Row, ...]
    threshold: float
    notes: tuple[str, ...] = ()
    """Notes for the user on how the list was read."""
    given: Mapping[str, Any] = field(default_factory=dict)
    """What stands for the list where the species are those of a file of records, see `configuration_of`."""

    @cached_property
    def first_rows(self) -> tuple[Row, ...]:
        """The first row of the list for each mapped taxon."""
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
        """The estimate of a run: names, pixels, tiles, files, bytes at most, device."""
        taxa, pixels = len(self.job.resolutions), self.job.grid.pixels
        job = self.job.estimate(())
        blocks = -(-taxa // SPECIES_PER_CHUNK)
        files = blocks * job["tiles"] + taxa * (1 + len(species_suffixes(formats)))
        each = 4.0 + 4 * sum(SIZES[f] for f in formats if f != "zarr")
        return job | {
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
    device: str = "auto",
    **options: Any,
) -> Batch:
    """Resolve a list of names and decide everything about their maps without computing a pixel.

    A name that is unknown or ambiguous is left out and reported; with `as_group`, an unknown species is mapped as its
    genus or family. Names of one taxon are mapped once. With `index` a species of a habitat that the index does not
    hold is left out too.

    Parameters
    ----------
    species : names, or the path of a list (`sdm.names.lists.read_names`).
    bbox, region, device : as of `sdm.plan`, as are all other options.
    column : of the list's file, with the names.
    strict : a name that cannot be mapped is an error.
    threshold : areas in the summary are those above it.

    Raises
    ------
    SpeciesNameError : no name is known.
    SdmError : other subclasses, see `sdm.errors`.
    """
    own = {f.name for f in fields(ListOptions)}
    listing = ListOptions.from_dict(options)
    rest = {name: value for name, value in options.items() if name not in own}
    return plan_list(species, MapRequest.of(bbox=bbox, region=region, **rest), listing, device)


def plan_list(
    source: str | Path | Iterable[str], request: MapRequest, listing: ListOptions, device: str = "auto"
) -> Batch:
    """As `plan_batch`, from objects; `source` as its `species`."""
    parse_device(device)
    if request.query.compare_with:
        raise RequestError("--compare-with is of single maps, up to 64 species in one call; name them.")
    if isinstance(source, str | Path):
        check_workbook(source)
        asked, notes = read_names(source, listing.column)
    else:
        if listing.column is not None:
            raise RequestError("a column is given, but the species are not a file; leave it out.")
        asked, notes = distinct(_texts(source)), []
    opened = with_opened_files(request)
    model, rows = _resolve(asked, opened.model, request.query.as_group)
    if not model.calibrated:
        raise RequestError(
            f"model {model.name!r} is not calibrated; lists of species support calibrated models only, so map its "
            f"species by name, up to {MAX_SPECIES} at a time."
        )
    if opened.index is not None:
        rows = tuple(_held(row, opened.index, request.query.mask) for row in rows)
    _refuse(rows, listing.strict)
    rows, resolutions = _numbered(rows)
    named = replace(opened, query=replace(request.query, species=tuple(r.query for r in resolutions)))
    job = plan_resolved(named, model, resolutions, device)
    if job.grid.tile_size > MAX_TILE:
        raise RequestError(f"tile size {job.grid.tile_size} is more than {MAX_TILE} pixels, the most for a batch.")
    return Batch(replace(job, asked=replace(request, query=named.query)), rows, listing.threshold, tuple(notes))


def _numbered(rows: Sequence[Row]) -> tuple[tuple[Row, ...], list[Resolution]]:
    """The rows with the number of the taxon that each is, and the taxa, each once."""
    numbers: dict[str, int] = {}
    resolutions: list[Resolution] = []
    numbered = []
    for row in rows:
        if row.resolution is not None:
            name = row.resolution.taxon.name
            if name not in numbers:
                numbers[name] = len(resolutions)
                resolutions.append(row.resolution)
            row = replace(row, target=numbers[name])
        numbered.append(row)
    return tuple(numbered), resolutions


def configuration(batch: Batch, formats: Sequence[str], device: str, rule: RangeRule | None = None) -> dict[str, Any]:
    """Everything that the bytes of the outputs depend on, by names a user understands; `rule`: of ranges."""
    listed = [
        [row.asked.query, row.asked.row, row.asked.times, row.resolution.taxon.name if row.resolution else row.error]
        for row in batch.rows
    ]
    digest = hashlib.sha256(json.dumps(listed).encode()).hexdigest()[:16]
    what = dict(batch.given) or {"species": f"{len(listed):,} names, sha256 {digest}"}
    what |= {"threshold": batch.threshold, **({"trust": True} if batch.job.plan.doubted else {})}
    return configuration_of(batch.job.plan, batch.job.asked, what, formats, device, rule)


def configuration_of(
    plan: Places,
    asked: MapRequest,
    what: Mapping[str, Any],
    formats: Sequence[str],
    device: str,
    rule: RangeRule | None = None,
) -> dict[str, Any]:
    """As `configuration`, from the places of the maps; `what`: the species, and how their values are made."""
    grid = plan.grid
    region = None
    if grid.region is not None:
        region = hashlib.sha256(grid.region.geometry.wkb).hexdigest()[:16]
    sampling = plan.sampling.to_dict()
    own = {"environment": sampling.pop("environment"), "satellite": [s] if (s := sampling.pop("satellite")) else []}
    layers = {name: of_files(paths) if paths else "bundled" for name, paths in own.items()}
    if plan.model.dim == 0:  # fitted to the user's rasters alone, which the model stands for
        layers["environment"] = plan.model.digest
    del sampling["modalities"], sampling["month"]
    return {
        "software": f"taxabind-map {__version__}",
        **what,
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
        "mask": asked.query.mask,
        "limits": asked.query.limits,
        "origin": asked.query.origin,
        "atlas": asked.query.atlas,
        **{name.replace("_", " "): value for name, value in sampling.items()},
        "tile size": grid.tile_size,
        **({"range": str(rule)} if rule is not None else {}),
        "format": ",".join(["zarr", *formats]),
        "device": device,
    }


def species_suffixes(formats: Sequence[str]) -> tuple[str, ...]:
    """The suffixes of the files of a species."""
    per = {"cog": ("tif", "qml"), "zarr3": ("v3.zarr",), "html": ("html",), "stac": ("stac.json",)}
    return tuple(s for f in formats for s in per.get(f, ()))


def _texts(species: Iterable[str]) -> Iterable[tuple[int, str]]:
    try:
        numbered = enumerate(species, 1)
    except TypeError:
        raise RequestError(f"species {species!r} are neither names nor a file.") from None
    for number, name in numbered:
        if not isinstance(name, str):
            raise SpeciesNameError(f"species {number} of the list, {str(name)[:60]!r}, is not text.")
        yield number, name


def _resolve(asked: Sequence[Asked], ref: ModelRef, as_group: bool) -> tuple[Model, tuple[Row, ...]]:
    """The model, by default the one that knows most of the names, and what each is in it."""
    model: Model
    if ref.model is None:
        model, outcomes = choose_for_most([one.query for one in asked], as_group=as_group)
    else:
        model = open_ref(ref)
        outcomes = [resolve_in(model, one.query, as_group) for one in asked]
        model = narrowed(model, (outcome.taxon for outcome in outcomes if isinstance(outcome, Resolution)))
    rows = [
        Row(one, error=str(outcome)) if isinstance(outcome, SpeciesNameError) else Row(one, outcome)
        for one, outcome in zip(asked, outcomes, strict=True)
    ]
    return model, tuple(rows)


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
