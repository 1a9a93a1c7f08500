"""Maps in one call: resolve names, plan the grid, run the tiles, write the outputs.

`map_species` returns a lazy DataArray; `write_maps` writes files. Both take the same options, which
`plan` turns into a `Job`: everything decided, nothing computed yet.
"""

from __future__ import annotations

import contextlib
import itertools
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sdm import __version__
from sdm.engine import Plan, Target, check_layers, score_tile, to_dask
from sdm.errors import BoxError, RequestError, SpeciesNameError
from sdm.grid import WGS84, BBox, Grid, Region, make_grid
from sdm.habitat import mask_for
from sdm.layers.landmask import KINDS
from sdm.model import MODALITIES, Model, calibration_key, list_models, parse_modalities
from sdm.names import Resolution, slug
from sdm.schedule import run_tasks
from sdm.suitability import Probability

if TYPE_CHECKING:
    import geopandas
    import shapely
    import xarray as xr

FORMATS = ("cog", "zarr", "html")
LINKS = {"tif": "GeoTIFF", "zarr": "Zarr", "json": "report"}
"""Labels of the files the web map links to."""
MAX_SPECIES = 64
"""Species in one call: each holds an open store and a row of every tile in memory."""

ATTRIBUTION = (
    "Contains modified Copernicus Climate Change Service information (ERA5)",
    "Mapzen terrain, NOAA ETOPO5, NASA MODIS and Blue Marble, GSHHG, Natural Earth",
)
"""Short credits for the bundled layers; `data/NOTICE.md` has the full ones."""


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
        return tuple(slug(r.taxon.name) for r in self.resolutions)

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
            "device": self.plan.device,
            "model": self.plan.model.name,
            "modalities": list(self.plan.modalities),
            "pixels_between_encoded_places": self.plan.strides,
        }


def plan(
    species: str | Sequence[str],
    bbox: BBox | Sequence[float] | None = None,
    region: str | Path | geopandas.GeoDataFrame | shapely.Geometry | None = None,
    *,
    crs: str | int = WGS84,
    resolution: float | None = None,
    model: str | Path | None = None,
    modalities: str | Sequence[str] = MODALITIES,
    satellite: str | Path | None = None,
    environment: str | Path | Sequence[str | Path] = (),
    mask: str = "auto",
    device: str = "auto",
    tile_size: int = 256,
    step: int | None = None,
    max_pixels: int = 100_000_000,
) -> Job:
    """Decide everything about a map without computing a pixel.

    `species`: scientific or common names. `bbox`: (west, south, east, north) in degrees, west > east
    across the antimeridian; or `region`: a vector file, GeoDataFrame or WGS84 geometry (lon, lat),
    whose outside is not mapped. `crs`, `resolution` (CRS units): of the output. `model`: name or
    folder; by default the bundled model that knows the species. `modalities`: any subset of
    location, satellite, environment. `satellite`, `environment`: rasters in place of the bundled
    layers. `mask`: land, sea, none or auto (by the species' habitat). `device`: auto, cpu, cuda or
    cuda:N. `step`: encode every step-th pixel in every modality (1: all), by default each modality
    at the model's own pitch.

    Raises SdmError subclasses: see `sdm.errors`.
    """
    try:
        queries = [species] if isinstance(species, str) else list(species)
    except TypeError:
        raise RequestError(f"species {species!r} is not a list.") from None
    if not all(isinstance(q, str) for q in queries):
        raise SpeciesNameError(f"species {queries!r} must be names, given as text.")
    if not queries:
        raise SpeciesNameError("no species given; name at least one, for example 'Ursus arctos'.")
    if len(queries) > MAX_SPECIES:
        raise RequestError(f"{len(queries)} species in one call; at most {MAX_SPECIES}: split the list.")
    if mask not in KINDS:
        raise RequestError(f"mask {mask!r} is not known; choose one of {', '.join(KINDS)}.")
    _check_whole("tile_size", tile_size)
    _check_whole("max_pixels", max_pixels)
    if step is not None:
        _check_whole("step", step)
    wanted = parse_modalities(modalities)
    # Cheap checks first: a wrong box or name is reported before anything heavy is opened.
    bbox = None if bbox is None else BBox.of(bbox)
    grid = make_grid(bbox, _region(region), crs, resolution, tile_size, max_pixels)
    opened, resolutions = _resolve(queries, model)
    _refuse_twins(resolutions)
    environment = (environment,) if isinstance(environment, str | Path) else tuple(environment)
    _unused_layers(wanted, satellite, environment)
    score = Probability(*opened.calibration(wanted))
    targets = tuple(
        Target(opened.species_embedding(r), score, mask_for(r.taxon) if mask == "auto" else mask, _extent(opened, r))
        for r in resolutions
    )
    result = Plan(
        model=opened, grid=grid, modalities=wanted, targets=targets, device=_device(device),
        environment=tuple(str(p) for p in environment), satellite=None if satellite is None else str(satellite),
        step=step,
    )  # fmt: skip
    check_layers(result)
    request = {
        "species": queries, "bbox": None if bbox is None else list(bbox.as_tuple()),
        "region": str(region) if isinstance(region, str | Path) else ("geometry" if region is not None else None),
        "crs": str(crs), "resolution": resolution, "model": None if model is None else str(model),
        "modalities": list(wanted), "mask": mask, "satellite": None if satellite is None else str(satellite),
        "environment": [str(p) for p in environment], "tile_size": tile_size, "step": step,
    }  # fmt: skip
    notes = tuple(_notes(result, r, k) for k, r in enumerate(resolutions))
    return Job(result, tuple(resolutions), notes, request)


def map_species(species: str | Sequence[str], bbox: Sequence[float] | None = None, **options: Any) -> xr.DataArray:
    """The map as a lazy DataArray (y, x), or (species, y, x) for several names: probability, float32.

    Options are those of `plan`. NaN means not modelled, never absent. CRS, transform and nodata are
    set for rioxarray and odc-geo. Nothing is encoded until it is computed or written.

        sdm.map_species("Ursus arctos", bbox=(-170, 48, -100, 72)).rio.to_raster("bear.tif")
    """
    import rioxarray  # noqa: F401  the .rio accessor
    import xarray as xr

    job = plan(species, bbox, **options)
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
        name="probability",
    )
    metadata = [describe(job, k) for k in range(len(names))]
    array.attrs = {"long_name": "Probability that the place lies in the species' range", "units": "1"}
    if isinstance(species, str):
        array = array.isel(species=0)
        array.attrs = {"long_name": metadata[0].quantity, "units": "1", **metadata[0].tags}
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
    workers: int | None = None,
    command: str = "",
    progress: Callable[[str, int, int], None] | None = None,
) -> list[MapResult]:
    """Compute a job and write, per species, `.tif` and `.qml`, `.zarr`, `.html` and `.json` into `out`.

    Either every file of the job appears, complete and checked, or none. `workers`: tiles computed at
    once, by default one per processor; an active `dask.distributed.Client` is used instead when there
    is one. `progress(stage, done, total)` is called in this process.

    Raises OutputError when an output exists (without `overwrite`) or cannot be written.
    """
    from sdm.outputs import sidecar, zarr_store
    from sdm.outputs.atomic import Staging, check_targets
    from sdm.outputs.cog import write_cog
    from sdm.outputs.statistics import summarise
    from sdm.outputs.style import write_qml
    from sdm.outputs.webmap import write_html

    formats = parse_formats(formats)
    if workers is not None:
        _check_whole("workers", workers)
        if workers < 1:
            raise RequestError(f"workers {workers} must be at least 1.")
    out = Path(out)
    tell = progress or (lambda stage, done, total: None)
    suffixes = {"cog": (".tif", ".qml"), "zarr": (".zarr",), "html": (".html",)}
    kept = [s for f in formats for s in suffixes[f]] + [".json"]
    names = [f"{stem}{suffix}" for stem in job.slugs for suffix in kept]
    check_targets(out, names, overwrite=overwrite)
    started = time.time()
    # The tiles always go through a Zarr store, published or not: it is what bounds the memory.
    hidden = [] if "zarr" in formats else [f"{stem}.zarr" for stem in job.slugs]
    with Staging(out, names, overwrite=overwrite) as staging:
        scratch = staging.path(names[0]).parent
        stores = [scratch / f"{stem}.zarr" for stem in job.slugs]
        metadata = [describe(job, k, command) for k in range(len(job.slugs))]
        side = job.grid.tile_size
        for store, meta in zip(stores, metadata, strict=True):
            zarr_store.create(store, job.grid.geobox, (side, side), meta)
        run_tiles(job.plan, stores, [m.variable for m in metadata], workers, tell)
        encoded = time.time()
        _give_memory_back()
        results, total = [], len(job.slugs)
        countries = _countries(job.grid) if "html" in formats else None
        for k, (stem, store, meta) in enumerate(zip(job.slugs, stores, metadata, strict=True)):
            tell("writing", k, total)
            array = zarr_store.open_map(store, meta.variable)
            if "cog" in formats:
                summary = write_cog(staging.path(f"{stem}.tif"), array, job.grid.geobox, meta)
                write_qml(staging.path(f"{stem}.qml"), meta)
            else:
                summary = summarise(array, job.grid.geobox)
            files = {suffix[1:]: f"{stem}{suffix}" for suffix in kept}
            _give_memory_back()
            if "html" in formats:
                links = {LINKS[n]: f for n, f in files.items() if n in LINKS}
                write_html(staging.path(f"{stem}.html"), array, meta, countries, links)
            timings = {"tiles_s": round(encoded - started, 3), "written_s": round(time.time() - encoded, 3)}
            report = _report(job, k, meta.quantity, files, summary.to_dict(), timings, command)
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
    workers: int | None = None,
    tell: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> None:
    """Compute every tile and write its chunk into each species' store: one Dask task per tile."""
    tiles = list(plan.grid.tiles())
    tell("tiles", 0, len(tiles))
    finished = itertools.count(1)
    run_tasks(
        write_tile_task, tiles, (plan, tuple(stores), tuple(variables)), workers=workers,
        done=lambda _: tell("tiles", next(finished), len(tiles)),
    )  # fmt: skip


def write_tile_task(tile, plan: Plan, stores: Sequence[Path], variables: Sequence[str]) -> tuple[int, int]:
    """Score one tile and write it; returns the tile's index, nothing heavy."""
    from sdm.outputs.zarr_store import write_tile

    values = score_tile(plan, tile)
    for store, variable, layer in zip(stores, variables, values, strict=True):
        # A chunk that is never written reads as not modelled.
        if not np.isnan(layer).all():
            write_tile(store, tile.rows, tile.cols, layer, variable)
    return tile.index


def describe(job: Job, k: int, command: str = ""):
    """The metadata of the k-th map of a job, for every output format."""
    from sdm.outputs.metadata import MapMetadata

    r, p = job.resolutions[k], job.plan
    taxon = r.taxon
    label = taxon.name if taxon.rank == "species" else f"the {taxon.rank} {taxon.name}"
    scale, bias = p.model.calibration(p.modalities)
    description = (
        f"{'Known' if r.known else 'Approximate'} range of {label}: for each pixel the probability that it lies in the "
        f"range, sigmoid({scale:.3f} * cosine {bias:+.3f}) in the embedding space of the model {p.model.name!r}. "
        "Not an abundance, not a habitat quality; ranges come from maps with cells of about 96 km. "
        "NaN: not modelled. " + " ".join(job.notes[k])
    )
    west, south, east, north = job.grid.bbox
    tags = {
        "species": taxon.name,
        "query": r.query,
        "resolved_by": r.how,
        "rank": taxon.rank,
        "common_name": taxon.common[0] if taxon.common else "",
        "model": p.model.name,
        "model_version": str(p.model.config.get("version", "")),
        "model_hash": p.model.digest,
        "modalities": ",".join(p.modalities),
        "bbox": f"{west:g} {south:g} {east:g} {north:g}",
        "mask": p.targets[k].mask,
        "software": f"taxabind-map {__version__}",
        "licence": str(p.model.config.get("licence", "")),
        "notes": " ".join(job.notes[k]),
        "command": command,
    }
    title = taxon.name + (f" ({taxon.common[0]})" if taxon.common else "")
    return MapMetadata(
        title=title,
        quantity=f"Probability that the place lies in the range of {label}",
        description=description.strip(),
        tags={key: value for key, value in tags.items() if value},
        attribution=ATTRIBUTION,
    )


def parse_formats(formats: str | Sequence[str]) -> tuple[str, ...]:
    """ "cog,html" -> ("cog", "html"); raises RequestError for anything else than cog, zarr and html."""
    names = [f.strip().lower() for f in (formats.split(",") if isinstance(formats, str) else formats)]
    for name in names:
        if name not in FORMATS:
            raise RequestError(f"format {name!r} is not known; choose any of {', '.join(FORMATS)}.")
    if not names:
        raise RequestError(f"no format given; choose any of {', '.join(FORMATS)}.")
    return tuple(f for f in FORMATS if f in names)


def _check_whole(name: str, value) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise RequestError(f"{name} {value!r} must be a whole number.")


def _region(region) -> Region | None:
    if region is None or isinstance(region, Region):
        return region
    if isinstance(region, str | Path):
        return Region.from_file(region)
    import shapely

    from sdm.layers.vector import united

    if hasattr(region, "to_crs"):
        if region.crs is None:
            raise BoxError("the region has no CRS; set one, for example with set_crs(4326).")
        return Region.from_geometry(united(region.geometry))
    if not isinstance(region, shapely.Geometry):
        raise RequestError(f"region {region!r} is not a file, a GeoDataFrame or a geometry.")
    return Region.from_geometry(region)


def _resolve(queries: Sequence[str], model: str | Path | None) -> tuple[Model, list[Resolution]]:
    """The model to use and what each query means in it.

    Without a model named, the bundled one that knows every name; else the one with fewest unknown.
    """
    if model is not None:
        opened = Model.open(model)
        return opened, [opened.taxa.resolve(q) for q in queries]
    best: tuple[int, Model, list[Resolution]] | None = None
    failure: SpeciesNameError | None = None
    for candidate in list_models():
        try:
            found = [candidate.taxa.resolve(q) for q in queries]
        except SpeciesNameError as error:
            failure = failure or error
            continue
        unknown = sum(not r.known for r in found)
        if best is None or unknown < best[0]:
            best = (unknown, candidate, found)
    if best is None:
        raise failure or SpeciesNameError("no bundled model is installed; give --model FOLDER.")
    return best[1], best[2]


def _refuse_twins(resolutions: Sequence[Resolution]) -> None:
    seen: dict[str, str] = {}
    for r in resolutions:
        if r.taxon.name in seen:
            raise RequestError(
                f"{r.query!r} and {seen[r.taxon.name]!r} are the same taxon, {r.taxon.name}; give each once."
            )
        seen[r.taxon.name] = r.query


def _unused_layers(modalities: tuple[str, ...], satellite, environment) -> None:
    for name, given in (("satellite", satellite is not None), ("environment", bool(environment))):
        if given and name not in modalities:
            raise RequestError(f"--{name} is given but the modalities {','.join(modalities)} leave it out; add it.")


def _extent(model: Model, resolution: Resolution) -> tuple[float, float, float, float] | None:
    """Where the range of a group of species is known at all: (west, south, east, north), or None: everywhere."""
    group = model.config.get("groups", {}).get(resolution.taxon.group)
    return tuple(group["extent"]) if group and group.get("extent") else None


def _device(device: str) -> str:
    import torch

    if not isinstance(device, str):
        raise RequestError(f"device {device!r} is not known; choose auto, cpu, cuda or cuda:N.")
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        return device
    kind, _, number = device.partition(":")
    if kind != "cuda" or (number and not number.isdigit()):
        raise RequestError(f"device {device!r} is not known; choose auto, cpu, cuda or cuda:N.")
    if not torch.cuda.is_available():
        raise RequestError(f"device {device!r} was asked for, but this machine or torch build has no CUDA; use cpu.")
    if number and int(number) >= torch.cuda.device_count():
        raise RequestError(f"device {device!r} does not exist; this machine has {torch.cuda.device_count()}.")
    return device


def _notes(plan: Plan, resolution: Resolution, k: int) -> tuple[str, ...]:
    notes = list(resolution.notes)
    grid = plan.grid
    west, south, east, north = grid.bbox
    low, high = plan.model.domain
    if south < low or north > high:
        notes.append(f"The model was trained between latitudes {low:g} and {high:g}; pixels beyond are not modelled.")
    if plan.targets[k].extent:
        w, s, e, n = plan.targets[k].extent
        if west < w or south < s or east > e or north > n:
            notes.append(
                f"Its range is known only within {w:.0f} {s:.0f} {e:.0f} {n:.0f} (west south east north); "
                "pixels outside are not modelled."
            )
    if east > 180.0:
        notes.append(f"The map crosses the antimeridian and spans {east - west:g} degrees of longitude.")
    if "location" not in plan.modalities:
        notes.append("Without location the map shows similar places anywhere on the globe, not the range.")
    return tuple(notes)


def _report(
    job: Job, k: int, quantity: str, files: dict, statistics: dict, timings: dict, command: str
) -> dict[str, Any]:
    """The content of the `.json` sidecar."""
    import importlib.metadata as installed

    r, p, grid = job.resolutions[k], job.plan, job.grid
    scale, bias = p.model.calibration(p.modalities)
    packages = ("numpy", "torch", "rasterio", "xarray", "zarr", "dask", "odc-geo")
    return {
        "species": r.taxon.name,
        "query": r.query,
        "resolved": {
            "rank": r.taxon.rank, "by": r.how, "known": r.known, "lineage": list(r.taxon.lineage),
            "common_names": list(r.taxon.common), "synonyms": list(r.taxon.synonyms),
        },
        "notes": list(job.notes[k]),
        "quantity": quantity,
        "calibration": {"set": calibration_key(p.modalities), "scale": scale, "bias": bias},
        "request": job.request,
        "command": command,
        "model": {
            "name": p.model.name, "version": p.model.config.get("version"), "hash": p.model.digest,
            "licence": p.model.config.get("licence"),
        },
        "modalities": list(p.modalities),
        "layers": {
            "environment": list(p.environment) or "bundled", "satellite": p.satellite or "bundled",
            "mask": p.targets[k].mask, "attribution": list(ATTRIBUTION),
        },
        "grid": {
            "crs": grid.crs, "resolution": grid.resolution, "rows": grid.shape[0], "columns": grid.shape[1],
            "transform": list(grid.geobox.affine)[:6], "bounds": list(grid.geobox.boundingbox.bbox),
            "bbox_asked": list(grid.bbox), "tile_size": grid.tile_size, "tiles": grid.tile_count,
            "pixels_between_encoded_places": p.strides,
        },
        "statistics": statistics,
        "timings": timings,
        "device": p.device,
        "files": files,
        "versions": {
            "taxabind-map": __version__, "python": platform.python_version(),
            **{n: installed.version(n) for n in packages},
        },
        "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }  # fmt: skip


def _countries(grid: Grid):
    """Country outlines around the map, WGS84; beyond 180 degrees both ends of the world are needed."""
    from sdm.layers.vector import countries

    west, south, east, north = grid.bbox
    pad = 0.6 * max(east - west, north - south, 2.0)
    low, high = west - pad, east + pad
    if low < -180.0 or high > 180.0:
        low, high = -180.0, 180.0
    return countries((low, max(south - pad, -90.0), high, min(north + pad, 90.0)))


def _give_memory_back() -> None:
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
