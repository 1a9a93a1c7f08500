"""Everything about a map decided, nothing computed: names resolved, grid made, model and layers checked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sdm.engine.limits import Limit, Pixels
from sdm.engine.places import Places, Plan, Target
from sdm.engine.setup import open_grid, open_places
from sdm.engine.share import mapped_share
from sdm.engine.suitability import Probability
from sdm.engine.targets import doubter, limited, make_target, scorer
from sdm.errors import RequestError, SpeciesNameError
from sdm.files.paths import absolute
from sdm.grid import Grid, as_region
from sdm.maps.climate import Outside, baseline, climate_trust, outside
from sdm.maps.evidence import combine
from sdm.models.choice import choose, resolve_in, resolved
from sdm.models.device import local_device
from sdm.models.joint import narrowed
from sdm.models.origin import of_origin
from sdm.models.registry import open_model
from sdm.names import Resolution, slug
from sdm.request import BBox, MapRequest, ModelRef, Query, Sampling
from sdm.request.choices import SIZES, USUAL_FORMATS, parse_device
from sdm.request.months import suffix

if TYPE_CHECKING:
    import geopandas
    import shapely

    from sdm.index import Index
    from sdm.maps.fits import FittedSpecies, Kept, Opened
    from sdm.models.protocol import Model

MAX_SPECIES = 64
"""Species in one call: each holds an open store and a row of every tile in memory."""
WITH_INTRODUCED = "-with-introduced"
"""In the file names of maps of a whole range, so that they differ from those of the native one."""
SHOWN = 0.5
"""Probability from which on a place is taken as in the range."""
NOT_REPORTED = ("cache_dir", "offline", "max_pixels")
"""Options that do not affect the content of a map."""


@dataclass(frozen=True)
class Job:
    """A planned map or set of maps: names resolved, layers checked, nothing computed."""

    plan: Plan
    resolutions: tuple[Resolution, ...]
    notes: tuple[tuple[str, ...], ...]
    """Per species: sentences the user should read."""
    asked: MapRequest
    fits: tuple[FittedSpecies, ...] = ()
    """Per species, where they are fitted to records."""
    baseline: Plan | None = None
    """The same maps of another climate, to compare with."""
    outside: tuple[Outside | None, ...] = ()
    """Per species mapped from rasters of the user's: how much of the map lies outside the trained range."""

    @property
    def grid(self) -> Grid:
        """The pixel grid."""
        return self.plan.grid

    @property
    def slugs(self) -> tuple[str, ...]:
        """File name stems, one per species."""
        return tuple(
            slug(r.taxon.name) + WITH_INTRODUCED * (r.origin == "all") + suffix(self.plan.month)
            for r in self.resolutions
        )

    @property
    def request(self) -> dict[str, Any]:
        """The request as JSON values, with defaults resolved."""
        asked = {k: v for k, v in self.asked.to_dict().items() if k not in NOT_REPORTED}
        if not self.asked.source.given:
            unused = (self.asked.source, self.asked.reading, self.asked.cleaning, self.asked.fitting)
            asked = {k: v for k, v in asked.items() if not any(k in part.to_dict() for part in unused)}
        return asked | {
            "crs": str(asked["crs"] or self.grid.crs),
            "modalities": list(self.plan.modalities),
            "tile_size": self.grid.tile_size,
            "month": self.plan.month or None,
        }

    def estimate(self, formats: Sequence[str] = USUAL_FORMATS) -> dict[str, Any]:
        """The estimate of a run: pixels, extent (CRS units), share that can be mapped, bytes at most, device."""
        rows, cols = self.grid.shape
        per_species = self.grid.pixels * 4 * sum(SIZES[f] for f in formats)
        return {
            "species": [r.taxon.name for r in self.resolutions],
            "crs": self.grid.crs,
            "resolution": self.grid.resolution,
            "columns": cols,
            "rows": rows,
            "pixels": self.grid.pixels,
            "tiles": self.grid.tile_count,
            "bytes_at_most": int(per_species * len(self.resolutions)),
            "device": _device_name(self.plan.device),
            "model": self.plan.model.name,
            "month": self.plan.month or None,
            "modalities": list(self.plan.modalities),
            "pixels_between_encoded_places": self.plan.strides,
            "extent": list(self.grid.geobox.boundingbox.bbox),
            "bbox": list(self.grid.bbox),
            "mapped_share": round(mapped_share(self.plan), 4),
        }


def plan(
    species: str | Sequence[str] = (),
    bbox: BBox | Sequence[float] | None = None,
    region: str | Path | geopandas.GeoDataFrame | shapely.Geometry | None = None,
    *,
    device: str = "auto",
    **options: Any,
) -> Job:
    """Decide everything about a map without computing a pixel.

    Parameters
    ----------
    species : scientific or common names, up to 64.
    bbox : (west, south, east, north) in degrees; west > east crosses the antimeridian.
    region : in place of a box, a vector file, GeoDataFrame or WGS84 geometry (lon, lat); its outside is not mapped.
    layer, where : of a vector file, the layer and a condition on attributes (SQL of OGR: "NAME = 'Jura'").
    device : auto, cpu, cuda or cuda:N.
    crs, resolution : of the output; by default EPSG:4326 and the finest round number near a megapixel (CRS units).
    tile_size, max_pixels : side of a tile in pixels; a larger map is refused.
    model : name, folder or opened model; by default the bundled model that knows the species.
    modalities : any of location, satellite, environment; by default all.
    satellite, environment : rasters in place of the bundled layers.
    land_share : share of a pixel that must be land for a map of land to show it (of the sea, sea or lake); 0.1.
    uncovered : show or hide pixels where the model has no reliable training data; by default they are shown.
    month : 1 to 12 or an English name, of a model that tells months apart; by default the whole year.
    step, satellite_step : encode every n-th pixel in all modalities (1: every pixel), or in imagery alone; by default
        each modality at the model's own pitch.
    as_group : map a species that the model does not know as its genus or family; by default it is refused.
    origin : native, the native range; or all: also where people introduced the species, as far as the model knows.
    atlas : prior (default): species with small ranges are mapped with the range that the model's atlas shows; none: by
        their vectors alone.
    mask : land, sea, none, or auto: by the habitat of the species.
    limits : none leaves probabilities as the model has them; auto lowers them where the species is known not to live
        (`docs/habitats.md`).
    photo, audio, text, embedding : other evidence, one or several files, words, or a file of vectors. Each kind is
        averaged; all are added to one another and to the name, if one is given.
    score : probability (of a calibrated model), relative (the share of the world's land that scores lower), cosine, or
        auto: the first of them that the model allows.
    index : a region index, its path or its URL. All that was decided when it was built (CRS, resolution, model,
        modalities, layers, tiles) is the map's, and may only be given if it is the same; without a box or region the
        whole of it is mapped.

    Returns
    -------
    A `Job` for `sdm.write_maps`.

    Raises
    ------
    SdmError : a subclass, see `sdm.errors`.
    """
    return plan_map(MapRequest.of(species=species, bbox=bbox, region=region, **options), device)


def plan_map(request: MapRequest, device: str = "auto") -> Job:
    """As `plan`, from one object."""
    parse_device(device)
    names, evidence = request.query.species, request.query.evidence
    if request.source.given:
        job = in_climate(plan_fits(request, device))
        if len(job.fits) > MAX_SPECIES:
            raise RequestError(
                f"the records are of {len(job.fits)} species; one call maps at most {MAX_SPECIES}: name those to map."
            )
        return job
    if not names and not evidence:
        raise SpeciesNameError("no species given; name at least one, for example 'Ursus arctos'.")
    if evidence and len(names) > 1:
        raise RequestError(
            f"evidence ({', '.join(evidence[:3])}) can be combined with one name only, but {len(names)} names are "
            "given; map them one by one."
        )
    if len(names) > MAX_SPECIES:
        raise RequestError(
            f"{len(names)} species in one call, at most {MAX_SPECIES}; use --species FILE, or map_batch in Python."
        )
    # Cheap checks first: a wrong region is reported before anything heavy is opened.
    opened = with_opened_files(request)
    model, resolutions = _resolve(names, opened.model, request.query.as_group)
    _refuse_duplicates(resolutions)
    return in_climate(replace(plan_resolved(opened, model, resolutions, device), asked=request))


def plan_fits(request: MapRequest, device: str = "auto", failures: dict[str, str] | None = None) -> Job:
    """As `plan_map`, of any number of species that are fitted to records; `failures` as of `fits.fit_species`."""
    return fit_opened(open_fits(request, device), device, failures)


@dataclass(frozen=True)
class OpenedFits:
    """Records read and the places of the maps decided, nothing fitted."""

    request: MapRequest
    """As it was asked."""
    files: MapRequest
    """With its files opened."""
    opened: Opened
    places: Places


def open_fits(request: MapRequest, device: str = "auto") -> OpenedFits:
    """Read the records, or the saved fit, of a request, and decide on the places of its maps."""
    from sdm.maps import fits

    if request.query.evidence:
        raise RequestError(
            f"records cannot be combined with other evidence ({', '.join(request.query.evidence[:3])}); omit it."
        )
    if request.query.score != "auto" or request.query.as_group or request.query.origin != "native":
        raise RequestError("--score, --as-group and --origin have no meaning for a fit to records; omit them.")
    files = with_opened_files(request)
    opened = fits.open_species(files)
    sampling = request.sampling
    if opened.saved is not None:
        sampling = fits.sampling_of_fit(opened.saved, sampling)
    elif opened.model.dim == 0:
        sampling = replace(sampling, environment=())
    places = _with_layers_of_index(_places(files, opened.model, sampling, device), files)
    if opened.saved is not None:
        fits.check_layers_of_fit(opened.saved, places)
    return OpenedFits(request, files, opened, places)


def fit_opened(
    opened: OpenedFits,
    device: str = "auto",
    failures: dict[str, str] | None = None,
    finish: Callable[[FittedSpecies], FittedSpecies] | None = None,
    kept: Kept | None = None,
) -> Job:
    """Fit the species of opened records, and decide everything about their maps.

    Parameters
    ----------
    opened : from `open_fits`.
    device : auto, cpu, cuda or cuda:N.
    failures, finish, kept : as of `fits.fit_species`.
    """
    from sdm.maps import fits
    from sdm.records.target import ClampedFit

    request, places = opened.request, opened.places
    fitted = fits.fit_species(opened.opened, request, places, device, failures, finish, kept)
    options, model = request.fitting, opened.opened.model
    targets = tuple(one.target(model, request.query.mask, options.trust, options.mess) for one in fitted)
    if request.sampling.clamp:
        targets = tuple(replace(t, fit=ClampedFit(one.fitted)) for t, one in zip(targets, fitted, strict=True))
    job = _job(opened.files, places, tuple(one.resolution for one in fitted), targets)
    notes = tuple((*own, *one.notes, *one.place_note(places.grid)) for own, one in zip(job.notes, fitted, strict=True))
    return replace(job, asked=request, notes=notes, fits=tuple(fitted))


def in_climate(job: Job) -> Job:
    """A job with what is said of maps from the user's rasters: values outside the trained range, and the baseline.

    Raises RequestError for options that have no meaning for it.
    """
    sampling, asked = job.plan.sampling, job.asked
    own = bool(sampling.environment) or (bool(job.fits) and job.plan.model.dim == 0)
    saved = [one.fitted if one.case is None else None for one in job.fits] or [None] * len(job.resolutions)
    if asked.sampling.clamp and (not own or job.plan.source is not None):
        raise RequestError("--clamp limits rasters given with --environment, not those in an index; omit it.")
    if asked.query.compare_with and job.plan.source is not None:
        raise RequestError("--compare-with encodes places, which an index does not need; omit --index.")
    if own and job.plan.source is None:
        of_fit = job.plan.model.dim == 0
        found = tuple(None if of_fit and fit is None else outside(job.plan, fit) for fit in saved)
        notes = [(*n, *([] if o is None else [o.sentence])) for n, o in zip(job.notes, found, strict=True)]
        job = replace(job, outside=found, notes=tuple(notes))
    if not asked.query.compare_with:
        return job
    return replace(job, baseline=baseline(job.plan, asked.query.compare_with))


def _with_layers_of_index(places: Places, request: MapRequest) -> Places:
    """The places of an index with the user's rasters that it was made with: a fit reads the environment itself."""
    if request.index is None:
        return places
    sampling = request.sampling
    own = [name for name, value in request.index.identity["layers"].items() if value.startswith("own:")]
    given = {"environment_own": bool(sampling.environment), "satellite": sampling.satellite is not None}
    if missing := [name for name in own if not given.get(name, False)]:
        name = missing[0].removesuffix("_own")
        raise RequestError(
            f"region index {request.index.url!r} was made with {name} rasters of your own, which a fit reads too; give "
            f"them with --{name}."
        )
    rasters = tuple(absolute(path) for path in sampling.environment)
    imagery = None if sampling.satellite is None else absolute(sampling.satellite)
    return replace(places, sampling=replace(places.sampling, environment=rasters, satellite=imagery))


def _places(request: MapRequest, model: Model, sampling: Sampling, device: str) -> Places:
    """The places of a map, or their window of an index; the files of the request are opened."""
    if request.index is None:
        return open_places(model, open_grid(request.area), sampling, device)
    return request.index.places_in(model, request.area, sampling, device)


def _job(request: MapRequest, places: Places, resolutions: tuple[Resolution, ...], targets: tuple[Target, ...]) -> Job:
    """A job of some targets, with the notes that each gives rise to. Raises RegionIndexError for a mask not held."""
    if request.index is not None:
        index = open_index(request.index)
        for resolution, target in zip(resolutions, targets, strict=True):
            index.check_mask(target.mask, resolution.taxon.name)
    plan_ = _with_targets(places, targets)
    notes = tuple(_notes(plan_, r, t) for r, t in zip(resolutions, targets, strict=True))
    return Job(plan_, resolutions, notes, request)


def _with_targets(places: Places, targets: tuple[Target, ...]) -> Plan:
    return Plan(
        model=places.model,
        grid=places.grid,
        sampling=places.sampling,
        device=places.device,
        source=places.source,
        targets=targets,
    )


def with_opened_files(request: MapRequest) -> MapRequest:
    """The request with its region read, its index opened and the model of the index. Raises SdmError subclasses."""
    area = replace(request.area, region=as_region(request.area.region, request.area.layer, request.area.where))
    if request.index is None:
        return replace(request, area=area)
    index = open_index(request.index)
    # Of several models that share the encoders of the index, names decide.
    ref = replace(request.model, model=index.find_model(request.model.model))
    return replace(request, area=area, index=index, model=ref)


def plan_resolved(request: MapRequest, model: Model, resolutions: Sequence[Resolution], device: str = "auto") -> Job:
    """As `plan_map`, where the model is opened, the names are resolved, and files are opened already.

    Parameters
    ----------
    request : from `with_opened_files`.
    model : an opened model.
    resolutions : what each name of the request means in it.
    device : auto, cpu, cuda or cuda:N.
    """
    places = _places(request, model, request.sampling, device)
    resolutions = [of_origin(model, resolution, request.query.origin) for resolution in resolutions]
    resolutions, vectors = _vectors(model, resolutions, request.query)
    score = scorer(places, request.query.score)
    targets = tuple(
        limited(
            make_target(model, resolution, vector, score(resolution, vector), request.query.mask, request.query.atlas),
            model,
            resolution,
            request.query.limits,
            places.month,
        )
        for resolution, vector in zip(resolutions, vectors, strict=True)
    )
    if request.fitting.trust:
        targets = _with_bands(places, resolutions, targets)
    return _job(request, places, tuple(resolutions), targets)


def _with_bands(places: Places, resolutions: Sequence[Resolution], targets: tuple[Target, ...]) -> tuple[Target, ...]:
    """Targets with what the band `uncertainty` follows from, and the novelty of the user's climate."""
    doubt = doubter(places)
    doubts = [doubt(resolution.taxon) for resolution in resolutions]
    targets = tuple(
        replace(t, doubt=d) if isinstance(t.score, Probability) else t for t, d in zip(targets, doubts, strict=True)
    )
    if any(doubts) and places.sampling.environment:
        targets = tuple(replace(target, trust=climate_trust(places.model)) for target in targets)
    return targets


def open_index(index: Index | str | Path) -> Index:
    """An index by its path or URL, opened with little memory for tiles. Raises RegionIndexError."""
    if not isinstance(index, str | Path):
        return index
    from sdm.index import Index

    # Tiles that two tiles of the map share stay in memory: a row of them, not the whole index.
    return Index.open(index, cache_bytes=256 << 20)


def _resolve(names: Sequence[str], ref: ModelRef, as_group: bool) -> tuple[Model, list[Resolution]]:
    """The model to use and what each name means in it; without a model named, see `sdm.models.choice`."""
    if ref.model is None:
        return choose(names, as_group=as_group)
    model = open_ref(ref)
    found = [resolved(resolve_in(model, name, as_group)) for name in names]
    return narrowed(model, (resolution.taxon for resolution in found)), found


def open_ref(ref: ModelRef) -> Model:
    """The model that a user named. Raises ModelError."""
    return open_model(ref.model, cache_dir=ref.cache_dir, offline=ref.offline)


def _vectors(
    model: Model, resolutions: Sequence[Resolution], query: Query
) -> tuple[Sequence[Resolution], list[np.ndarray]]:
    """The resolutions to map and their unit vectors (dim,): of names, or of one name and other evidence combined."""
    if not query.evidence:
        return resolutions, [model.species_embedding(r) for r in resolutions]
    resolution, vector = combine(model, resolutions[0] if resolutions else None, query)
    return [resolution], [vector]


def _refuse_duplicates(resolutions: Sequence[Resolution]) -> None:
    seen: dict[str, str] = {}
    for r in resolutions:
        if r.taxon.name in seen:
            raise RequestError(
                f"{r.query!r} and {seen[r.taxon.name]!r} are the same taxon, {r.taxon.name}; give each once."
            )
        seen[r.taxon.name] = r.query


def _device_name(device: str) -> str:
    """The device in this process, or its name where only the workers of a cluster have it."""
    try:
        return local_device(device)
    except RequestError:
        return device


def _covered(places: Places) -> bool:
    """Whether the model's coverage includes all of the box, by a grid of about a thousand places."""
    coverage = places.model.coverage
    if coverage is None:
        return True
    west, south, east, north = places.grid.bbox
    lon, lat = np.meshgrid(np.linspace(west, east, 32), np.linspace(south, north, 32))
    return bool(coverage.keep(lon, lat).all())


def _atlas_notes(plan: Plan, resolution: Resolution, target: Target) -> list[str]:
    """Whether a map depends on the known range of the species, and whether it is blank there."""
    known = plan.model.known_range(resolution.taxon)
    if known is None or target.score.name != "probability" or target.fit is not None:
        return []
    notes = []
    if target.known is not None and target.known.reaches(plan.grid.bbox):
        part = "In some parts of its range" if known.in_parts else "Its range is small:"
        notes.append(
            f"{part} the map combines the model with the range in the model's atlas (--atlas none: the model alone)."
        )
        if plan.sampling.environment:
            notes.append("The range in the atlas is that of today: for another climate give --atlas none.")
    highest = known.alone if target.known is None else known.highest
    if highest < SHOWN:
        notes.append(
            f"No place in its known range reaches a probability of {SHOWN:g}; the highest is {highest:.2g}: a blank "
            "map does not mean that it is absent."
        )
    return notes


def _acts(plan: Plan, limit: Limit) -> bool:
    """Whether a limit changes anything in the box, by a grid of some thousand places."""
    factor = limit.factor(_sample(plan.grid.bbox))
    return factor is not None and bool((factor < 1.0).any())


@lru_cache(maxsize=4)
def _sample(bbox: tuple[float, float, float, float]) -> Pixels:
    """Some thousand places of a box, the same for all species of a list."""
    west, south, east, north = bbox
    lon, lat = np.meshgrid(np.linspace(west, east, 64), np.linspace(south, north, 64))
    return Pixels(lon.ravel(), lat.ravel(), np.zeros(1))


def _notes(plan: Plan, resolution: Resolution, target: Target) -> tuple[str, ...]:
    """Sentences that the user of a map should read."""
    region = plan.grid.region.notes if plan.grid.region is not None else ()
    notes = [*resolution.notes, *region, *([] if plan.source is not None else plan.inputs.sentences)]
    west, south, east, north = plan.grid.bbox
    low, high = plan.model.domain
    if south < low or north > high:
        notes.append(f"The model was trained between latitudes {low:g} and {high:g}; pixels beyond are not modelled.")
    if not _covered(plan):
        notes.append(
            "The model has no reliable training data in part of this region; pixels there are "
            + ("not shown." if plan.hides_uncovered else "shown, but least sure: --uncovered hide leaves them out.")
        )
    if target.extent:
        w, s, e, n = target.extent
        if west < w or south < s or east > e or north > n:
            notes.append(
                f"Its range is known only within {w:.0f} {s:.0f} {e:.0f} {n:.0f} (west south east north); "
                "pixels outside are not modelled."
            )
    notes += _atlas_notes(plan, resolution, target)
    notes += [limit.sentence for limit in target.limits if _acts(plan, limit)]
    if east > 180.0:
        notes.append(f"The map crosses the antimeridian and spans {east - west:g} degrees of longitude.")
    if plan.source is not None:
        notes.append(plan.source.note)
        if not plan.source.has_agreement and target.fit is None:
            notes.append(
                "The index was made by an earlier version, without what the band `uncertainty` follows from; build it "
                "again for that band."
            )
    if "location" not in plan.modalities and plan.model.dim:
        notes.append("Without location the map shows similar places anywhere on the globe, not the range.")
    return tuple(notes)
