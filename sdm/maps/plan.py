"""Everything about a map decided, nothing computed: names resolved, grid made, model and layers checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sdm.engine.places import Plan
from sdm.engine.setup import places_of
from sdm.engine.targets import scorer, target_of
from sdm.errors import RequestError, SpeciesNameError
from sdm.grid import BBox, Grid, region_of
from sdm.layers.landmask import KINDS
from sdm.maps.evidence import Query, answer
from sdm.models.choice import Outcome, choose, refuse_stranger
from sdm.models.device import local_device
from sdm.models.registry import AnyModel, open_model
from sdm.names import Resolution, slug
from sdm.request.choices import FORMATS
from sdm.request.months import parse_month, suffix

if TYPE_CHECKING:
    import geopandas
    import shapely

    from sdm.index import Index


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


def _resolve(queries: Sequence[str], model: Any) -> tuple[AnyModel, list[Resolution]]:
    """The model to use and what each query means in it; without a model named, see `sdm.models.choice`."""
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
