"""Maps in one call: resolve names, plan the grid, run the tiles, write the outputs.

`map_species` returns a lazy DataArray; `write_maps` writes files. Both take the same options, which
`plan` turns into a `Job`: everything decided, nothing computed yet.
"""

from __future__ import annotations

import contextlib
import platform
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sdm import __version__
from sdm.choice import Outcome, choose, refuse_stranger
from sdm.cluster import ClusterWarning, active_client, open_client
from sdm.engine import Places, Plan, score_tile, to_dask
from sdm.errors import RequestError, SpeciesNameError
from sdm.grid import BBox, Grid
from sdm.layers import ATTRIBUTION
from sdm.layers.landmask import KINDS
from sdm.model import AnyModel, local_device, open_model
from sdm.model import credits_of as model_credits
from sdm.names import Resolution, slug
from sdm.queries import Query, answer
from sdm.request import places_of, region_of, scorer, target_of
from sdm.schedule import run_tasks
from sdm.season import WHOLE_YEAR, parse_month, suffix, when

if TYPE_CHECKING:
    import geopandas
    import shapely
    import xarray as xr

    from sdm.index import Index

FORMATS = ("cog", "zarr", "html")
LINKS = {"tif": "GeoTIFF", "zarr": "Zarr", "json": "report"}
"""Labels of the files the web map links to."""
MAX_SPECIES = 64
"""Species in one call: each holds an open store and a row of every tile in memory."""


@dataclass(frozen=True)
class Job:
    """A planned map or set of maps: names resolved, layers checked, nothing computed."""

    plan: Plan
    resolutions: tuple[Resolution, ...]
    notes: tuple[tuple[str, ...], ...]
    """Per species: sentences the user should read."""
    request: dict[str, Any] = field(default_factory=dict)

    @property
    def grid(self) -> Grid:
        """The pixel grid."""
        return self.plan.grid

    @property
    def slugs(self) -> tuple[str, ...]:
        """File name stems, one per species."""
        return tuple(slug(r.taxon.name) + suffix(self.plan.month) for r in self.resolutions)

    def estimate(self, formats: Sequence[str] = FORMATS) -> dict[str, Any]:
        """What a run would do: pixels, tiles, bytes on disk at most, device."""
        rows, cols = self.grid.shape
        per_species = self.grid.pixels * 4 * sum({"cog": 1.4, "zarr": 1.0, "html": 0.3}[f] for f in formats)
        return {
            "species": [r.taxon.name for r in self.resolutions],
            "crs": self.grid.crs,
            "resolution": self.grid.resolution,
            "columns": cols,
            "rows": rows,
            "pixels": self.grid.pixels,
            "tiles": self.grid.tile_count,
            "bytes_at_most": int(per_species * len(self.resolutions)),
            "device": _device_here(self.plan.device),
            "model": self.plan.model.name,
            "month": self.plan.month or None,
            "modalities": list(self.plan.modalities),
            "pixels_between_encoded_places": self.plan.strides,
        }


def plan(
    species: str | Sequence[str] = (),
    bbox: BBox | Sequence[float] | None = None,
    region: str | Path | geopandas.GeoDataFrame | shapely.Geometry | None = None,
    *,
    crs: str | int | None = None,
    resolution: float | None = None,
    model: str | Path | None = None,
    modalities: str | Sequence[str] | None = None,
    satellite: str | Path | None = None,
    environment: str | Path | Sequence[str | Path] = (),
    mask: str = "auto",
    device: str = "auto",
    tile_size: int = 256,
    step: int | None = None,
    satellite_step: int | None = None,
    max_pixels: int = 100_000_000,
    photo: str | Path | Sequence[str | Path] | None = None,
    audio: str | Path | Sequence[str | Path] | None = None,
    text: str | Sequence[str] | None = None,
    embedding: str | Path | None = None,
    score: str = "auto",
    index: Index | str | Path | None = None,
    month: int | str | None = None,
    resolved: tuple[AnyModel, Sequence[Resolution]] | None = None,
) -> Job:
    """Decide everything about a map without computing a pixel.

    `species`: scientific or common names. `bbox`: (west, south, east, north) in degrees, west > east
    across the antimeridian; or `region`: a vector file, GeoDataFrame or WGS84 geometry (lon, lat),
    whose outside is not mapped. `crs` (default EPSG:4326), `resolution` (CRS units): of the output. `model`:
    name or folder; by default the bundled model that knows the species. `modalities`: any subset of
    location, satellite, environment (default all). `satellite`, `environment`: rasters in place of the bundled
    layers. `mask`: land, sea, none or auto (by the species' habitat). `device`: auto, cpu, cuda or
    cuda:N. `step`: encode every step-th pixel in every modality (1: all), by default each modality
    at the model's own pitch; `satellite_step`: the same for imagery alone. `photo`, `audio`, `text`, `embedding`:
    one or several files, words, or a file of vectors to ask with; each kind is averaged, and all are added to one
    another and to the name, if one is given. `score`: probability (of a calibrated model), relative (the share of the
    world's land that scores lower), cosine, or auto: the first of them that the model allows. `index`: a region index,
    its path or its URL: all that was decided when it was built (CRS, resolution, model, modalities, layers, tiles) is
    the map's, and may only be given if it is the same; without a box or region the whole of it is mapped. `month`:
    1 to 12, or an English name, of a model that tells months apart (`Model.seasonal`); by default the whole year.
    `resolved`: the model and what each name means in it, where that is known.

    Raises SdmError subclasses: see `sdm.errors`.
    """
    try:
        queries = [species] if isinstance(species, str) else list(species)
    except TypeError:
        raise RequestError(f"species {species!r} is not a list.") from None
    if not all(isinstance(q, str) for q in queries):
        raise SpeciesNameError(f"species {queries!r} must be names, given as text.")
    query = Query.of(photo, audio, text, embedding)
    if not queries and not query:
        raise SpeciesNameError("no species given; name at least one, for example 'Ursus arctos'.")
    if query and len(queries) > 1:
        raise RequestError(
            f"{len(queries)} names are given with {', '.join(query.parts[:3])}, which are added to one name at most; "
            "map the names one by one."
        )
    if resolved is None and len(queries) > MAX_SPECIES:
        raise RequestError(
            f"{len(queries)} species in one call; at most {MAX_SPECIES}: for more give --species FILE, or use "
            "map_batch."
        )
    if mask not in KINDS:
        raise RequestError(f"mask {mask!r} is not known; choose one of {', '.join(KINDS)}.")
    # Cheap checks first: a wrong box is reported before anything heavy is opened.
    parse_month(month)
    bbox = None if bbox is None else BBox.of(bbox)
    region_ = region_of(region)
    if index is not None:
        index = opened_index(index)
        model = index.find_model(resolved[0] if resolved else model)
    if resolved is None:
        opened, resolutions = _resolve(queries, model)
        _refuse_twins(resolutions)
    else:
        opened, resolutions = resolved
    environment = (environment,) if isinstance(environment, str | Path) else tuple(environment)
    asked = {
        "crs": crs, "resolution": resolution, "modalities": modalities, "satellite": satellite,
        "environment": environment, "device": device, "step": step, "satellite_step": satellite_step,
        "month": month, "max_pixels": max_pixels,
    }  # fmt: skip
    if index is None:
        given = {name: value for name, value in asked.items() if value is not None}
        places = places_of(bbox, region_, model=opened, tile_size=tile_size, **given)
    else:
        places = index.places_in(opened, bbox, region_, **asked)
    wanted = places.modalities
    if query:
        found = [answer(opened, resolutions[0] if resolutions else None, query)]
        resolutions = [r for r, _ in found]
    else:
        found = [(r, opened.species_embedding(r)) for r in resolutions]
    meaning = scorer(places, score)
    targets = tuple(target_of(opened, r, wanted, mask, vector, meaning(vector)) for r, vector in found)
    if index is not None:
        for target, resolution_ in zip(targets, resolutions, strict=True):
            index.check_mask(target.mask, resolution_.taxon.name)
    result = Plan(**{f.name: getattr(places, f.name) for f in fields(places)}, targets=targets)
    request = {
        "species": queries, "bbox": None if bbox is None else list(bbox.as_tuple()),
        "region": str(region) if isinstance(region, str | Path) else ("geometry" if region is not None else None),
        "crs": str(crs or places.grid.crs), "resolution": resolution,
        "model": None if model is None else str(model) if isinstance(model, str | Path) else model.name,
        "modalities": list(wanted), "mask": mask, "satellite": None if satellite is None else str(satellite),
        "environment": [str(p) for p in environment], "tile_size": places.grid.tile_size, "step": step,
        "satellite_step": satellite_step, "score": score, "photo": list(query.photos), "audio": list(query.audio),
        "text": list(query.texts), "embedding": query.embedding, "index": None if index is None else index.url,
        "month": places.month or None,
    }  # fmt: skip
    notes = tuple(_notes(result, r, k) for k, r in enumerate(resolutions))
    return Job(result, tuple(resolutions), notes, request)


def map_species(species: str | Sequence[str] = (), bbox: Sequence[float] | None = None, **options: Any) -> xr.DataArray:
    """The map as a lazy DataArray (y, x), or (species, y, x) for several names: float32.

    Options are those of `plan`. NaN means not modelled, never absent. CRS, transform and nodata are
    set for rioxarray and odc-geo. Nothing is encoded until it is computed or written.

        sdm.map_species("Ursus arctos", bbox=(-170, 48, -100, 72)).rio.to_raster("bear.tif")
    """
    import rioxarray  # noqa: F401  the .rio accessor
    import xarray as xr

    job = plan(species, bbox, **options)
    if active_client() is None:
        local_device(job.plan.device)  # now, not in the middle of a computation
    grid = job.grid
    a = grid.geobox.affine
    rows, cols = grid.shape
    names = [r.taxon.name for r in job.resolutions]
    array = xr.DataArray(
        to_dask(job.plan),
        dims=("species", "y", "x"),
        coords={
            "species": names,
            "y": a.f + a.e * (np.arange(rows) + 0.5),
            "x": a.c + a.a * (np.arange(cols) + 0.5),
        },
        name=job.plan.targets[0].score.name,
    )
    metadata = [describe(job, k) for k in range(len(names))]
    array.attrs = {"long_name": job.plan.targets[0].score.phrase.format("the species"), "units": "1"}
    if isinstance(species, str) or not species:
        array = array.isel(species=0)
        array.attrs = {"long_name": metadata[0].quantity, "units": "1", **metadata[0].tags}
    if job.plan.month:
        array = array.assign_coords(month=job.plan.month)
    array = array.rio.write_crs(grid.crs).rio.write_transform(a)
    return array.rio.write_nodata(np.nan)


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
    from sdm.outputs import sidecar, zarr_store
    from sdm.outputs.atomic import Staging, check_targets
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
            report = _report(job, k, meta.quantity, files, summary.to_dict(), timings, device, command)
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


def describe(job: Job, k: int, command: str = ""):
    """The metadata of the k-th map of a job, for every output format."""
    from sdm.outputs.metadata import MapMetadata

    r, p = job.resolutions[k], job.plan
    taxon = r.taxon
    label = taxon.name if taxon.rank == "species" else f"the {taxon.rank} {taxon.name}"
    score = p.targets[k].score
    season = season_of(p)
    if taxon.rank == "query":
        label, about = f"the query {taxon.name}", f"Places for the query {taxon.name}"
    else:
        about = f"{'Known' if r.known else 'Approximate'} range of {label}"
    description = (
        f"{about}{season}: for each pixel {score.explanation} Computed in the embedding space of the model "
        f"{p.model.name!r}. NaN: not modelled. " + " ".join(job.notes[k])
    )
    tags = {
        "species": taxon.name,
        "score": score.name,
        "query": r.query,
        "resolved_by": r.how,
        "rank": taxon.rank,
        "common_name": taxon.common[0] if taxon.common else "",
        "mask": p.targets[k].mask,
        "notes": " ".join(job.notes[k]),
        **common_tags(job, command),
    }
    title = taxon.name + (f" ({taxon.common[0]})" if taxon.common else "") + (season if p.month else "")
    return MapMetadata(
        title=title,
        quantity=score.phrase.format(label) + season,
        description=description.strip(),
        variable=score.name,
        valid_range=score.valid_range,
        tags={key: value for key, value in tags.items() if value},
        attribution=credits_of(p),
        month=p.month,
    )


def season_of(places: Places) -> str:
    """ " in May", " at any time of the year", or "" where the model does not tell months apart."""
    return f" {when(places.month)}" if places.model.seasonal else ""


def credits_of(places: Places) -> tuple[str, ...]:
    """A line per source of a map: its layers, and its model."""
    layers = places.inputs.attribution if places.source is None else ATTRIBUTION
    return (*layers, *model_credits(places.model))


def common_tags(job: Job, command: str) -> dict[str, str]:
    """Provenance that all maps of a job share."""
    p = job.plan
    west, south, east, north = job.grid.bbox
    return {
        "model": p.model.name,
        "model_version": p.model.version,
        "model_hash": p.model.digest,
        "modalities": ",".join(p.modalities),
        "month": str(p.month or WHOLE_YEAR) if p.model.seasonal else "",
        "index": "" if p.source is None else p.source.digest,
        "bbox": f"{west:g} {south:g} {east:g} {north:g}",
        "software": f"taxabind-map {__version__}",
        "licence": p.model.licence,
        "command": command,
    }


def parse_formats(formats: str | Sequence[str]) -> tuple[str, ...]:
    """ "cog,html" -> ("cog", "html"); raises RequestError for anything else than cog, zarr and html."""
    names = [f.strip().lower() for f in (formats.split(",") if isinstance(formats, str) else formats)]
    for name in names:
        if name not in FORMATS:
            raise RequestError(f"format {name!r} is not known; choose any of {', '.join(FORMATS)}.")
    if not names:
        raise RequestError(f"no format given; choose any of {', '.join(FORMATS)}.")
    return tuple(f for f in FORMATS if f in names)


def _resolve(queries: Sequence[str], model: Any) -> tuple[AnyModel, list[Resolution]]:
    """The model to use and what each query means in it; without a model named, see `sdm.choice`."""
    if model is None:
        return choose(queries)
    opened = open_model(model) if isinstance(model, str | Path) else model
    found = []
    for query in queries:
        try:
            outcome: Outcome = opened.resolve(query)
        except SpeciesNameError as error:
            outcome = error
        outcome = refuse_stranger(opened, query, outcome)
        if isinstance(outcome, SpeciesNameError):
            raise outcome
        found.append(outcome)
    return opened, found


def opened_index(index: Index | str | Path) -> Index:
    """An index by its path or URL, opened with little memory for tiles. Raises RegionIndexError."""
    if not isinstance(index, str | Path):
        return index
    from sdm.index import Index

    # Tiles that two tiles of the map share stay in memory: a row of them, not the whole index.
    return Index.open(index, cache_bytes=256 << 20)


def _refuse_twins(resolutions: Sequence[Resolution]) -> None:
    seen: dict[str, str] = {}
    for r in resolutions:
        if r.taxon.name in seen:
            raise RequestError(
                f"{r.query!r} and {seen[r.taxon.name]!r} are the same taxon, {r.taxon.name}; give each once."
            )
        seen[r.taxon.name] = r.query


def _device_here(device: str) -> str:
    """What a device is in this process, or its name where only the workers of a cluster can have it."""
    try:
        return local_device(device)
    except RequestError:
        return device


def _covered(plan: Plan) -> bool:
    """Whether the model had something to learn from all over the box of a map, as far as a few hundred places tell."""
    west, south, east, north = plan.grid.bbox
    lon, lat = np.meshgrid(np.linspace(west, east, 32), np.linspace(south, north, 32))
    return bool(plan.model.coverage.keep(lon, lat).all())


def _notes(plan: Plan, resolution: Resolution, k: int) -> tuple[str, ...]:
    notes = [*resolution.notes, *([] if plan.source is not None else plan.inputs.sentences)]
    grid = plan.grid
    west, south, east, north = grid.bbox
    low, high = plan.model.domain
    if south < low or north > high:
        notes.append(f"The model was trained between latitudes {low:g} and {high:g}; pixels beyond are not modelled.")
    if plan.model.coverage is not None and not _covered(plan):
        notes.append("The model had nothing to learn from in part of this region; pixels there are not modelled.")
    if plan.targets[k].extent:
        w, s, e, n = plan.targets[k].extent
        if west < w or south < s or east > e or north > n:
            notes.append(
                f"Its range is known only within {w:.0f} {s:.0f} {e:.0f} {n:.0f} (west south east north); "
                "pixels outside are not modelled."
            )
    if east > 180.0:
        notes.append(f"The map crosses the antimeridian and spans {east - west:g} degrees of longitude.")
    if plan.source is not None:
        notes.append(plan.source.note)
    if "location" not in plan.modalities:
        notes.append("Without location the map shows similar places anywhere on the globe, not the range.")
    return tuple(notes)


def _report(
    job: Job, k: int, quantity: str, files: dict, statistics: dict, timings: dict, device: str, command: str
) -> dict[str, Any]:
    """The content of the `.json` sidecar."""
    r = job.resolutions[k]
    common = provenance(job, device, command)
    common["layers"]["mask"] = job.plan.targets[k].mask
    return {
        "species": r.taxon.name,
        "query": r.query,
        "resolved": {
            "rank": r.taxon.rank, "by": r.how, "known": r.known, "lineage": list(r.taxon.lineage),
            "common_names": list(r.taxon.common), "synonyms": list(r.taxon.synonyms),
        },
        "notes": list(job.notes[k]),
        "quantity": quantity,
        "score": job.plan.targets[k].score.report,
        **common,
        "statistics": statistics,
        "timings": timings,
        "files": files,
        "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }  # fmt: skip


def provenance(job: Job, device: str, command: str) -> dict[str, Any]:
    """What all maps of a job come from: request, model, layers, grid, device, versions."""
    import importlib.metadata as installed

    p, grid = job.plan, job.grid
    packages = ("numpy", "torch", "rasterio", "xarray", "zarr", "dask", "odc-geo")
    return {
        "request": job.request,
        "command": command,
        "model": {
            "name": p.model.name, "version": p.model.version, "hash": p.model.digest,
            "licence": p.model.licence,
        },
        "modalities": list(p.modalities),
        "month": p.month or (WHOLE_YEAR if p.model.seasonal else None),
        "index": None if p.source is None else p.source.info,
        "layers": {
            "environment": job.request.get("environment") or "bundled",
            "satellite": job.request.get("satellite") or "bundled",
            "notes": [] if p.source is not None else p.inputs.sentences,
            "attribution": list(credits_of(p)),
        },
        "grid": {
            "crs": grid.crs, "resolution": grid.resolution, "rows": grid.shape[0], "columns": grid.shape[1],
            "transform": list(grid.geobox.affine)[:6], "bounds": list(grid.geobox.boundingbox.bbox),
            "bbox_asked": list(grid.bbox), "tile_size": grid.tile_size, "tiles": grid.tile_count,
            "pixels_between_encoded_places": p.strides,
        },
        "device": device,
        "versions": {
            "taxabind-map": __version__, "python": platform.python_version(),
            **{n: installed.version(n) for n in packages},
        },
    }  # fmt: skip


def outlines_around(grid: Grid):
    """Country outlines around the map, WGS84; beyond 180 degrees both ends of the world are needed."""
    from sdm.layers.vector import countries

    west, south, east, north = grid.bbox
    pad = 0.6 * max(east - west, north - south, 2.0)
    low, high = west - pad, east + pad
    if low < -180.0 or high > 180.0:
        low, high = -180.0, 180.0
    return countries((low, max(south - pad, -90.0), high, min(north + pad, 90.0)))


def give_memory_back() -> None:
    """Return freed memory to the system: what one stage has let go of must not add to the peak of the next.

    glibc keeps the freed blocks of each thread for itself, more of them the longer the threads have run.
    """
    import ctypes
    import gc

    gc.collect()
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # a libc without malloc_trim
            ctypes.CDLL(None).malloc_trim(0)


def _remove_store(path: Path) -> None:
    import shutil

    shutil.rmtree(path, ignore_errors=True)
