"""The description, tags and report of a map."""

from __future__ import annotations

import importlib.metadata
import platform
import time
from typing import TYPE_CHECKING, Any

from sdm._version import __version__
from sdm.engine.places import Places
from sdm.grid import Grid
from sdm.layers import ATTRIBUTION
from sdm.maps.plan import Job
from sdm.models.joint import member_of, members_of
from sdm.models.licence import credit_lines
from sdm.models.protocol import Model
from sdm.request.months import WHOLE_YEAR, when

if TYPE_CHECKING:
    from geopandas import GeoDataFrame

    from sdm.outputs.metadata import MapMetadata

PACKAGES = ("numpy", "torch", "rasterio", "xarray", "zarr", "dask", "odc-geo")
"""Packages whose versions a report states."""


def describe(job: Job, k: int, command: str = "") -> MapMetadata:
    """The metadata of the k-th map of a job, for every output format."""
    from sdm.outputs.metadata import MapMetadata

    r, p = job.resolutions[k], job.plan
    taxon = r.taxon
    model = member_of(p.model, taxon)
    label = taxon.name if taxon.rank == "species" else f"the {taxon.rank} {taxon.name}"
    if r.origin == "all":
        label += " (introduced populations included)"
    score = p.targets[k].score
    season = season_phrase(p)
    if taxon.rank == "query":
        label, about = f"the query {taxon.name}", f"Places for the query {taxon.name}"
    elif job.fits:
        about = f"Where {label} was recorded, and where it may live"
    else:
        about = f"{'Known' if r.known else 'Approximate'} range of {label}"
    description = (
        f"{about}{season}: for each pixel {score.explanation} Computed in the embedding space of the model "
        f"{model.name!r}. NaN: not modelled. " + " ".join(job.notes[k])
    )
    tags = {
        "species": taxon.name,
        "score": score.name,
        "query": r.query,
        "resolved_by": r.how,
        "rank": taxon.rank,
        "origin": r.origin,
        "common_name": taxon.common[0] if taxon.common else "",
        "mask": p.targets[k].mask,
        "atlas": "" if job.fits else p.targets[k].atlas,
        "limits": " ".join(limit.sentence for limit in p.targets[k].limits) or "none",
        "notes": " ".join(job.notes[k]),
        **(job.fits[k].tags() if job.fits else {}),
        **common_tags(job, command, model),
    }
    title = taxon.name + (f" ({taxon.common[0]})" if taxon.common else "") + (season if p.month else "")
    if r.origin == "all":
        title += ", native and introduced range"
    return MapMetadata(
        title=title,
        quantity=score.phrase.format(label) + season,
        description=description.strip(),
        variable=score.name,
        valid_range=score.valid_range,
        tags={key: value for key, value in tags.items() if value},
        attribution=attribution(p, model),
        month=p.month,
    )


def season_phrase(places: Places) -> str:
    """ " in May", " at any time of the year", or "" for a model that is not seasonal."""
    return f" {when(places.month)}" if places.model.seasonal else ""


def attribution(places: Places, model: Model | None = None) -> tuple[str, ...]:
    """A line per source of a map: its layers, and its model; `model`: the one of the map, by default all of the job."""
    layers = places.inputs.attribution if places.source is None else ATTRIBUTION
    return (*layers, *credit_lines(model or places.model))


def common_tags(job: Job, command: str, model: Model | None = None) -> dict[str, str]:
    """Provenance that all maps of a job share, or those of one of its models."""
    p = job.plan
    model = model or p.model
    west, south, east, north = job.grid.bbox
    return {
        "model": model.name,
        "model_version": model.version,
        "model_hash": model.digest,
        "modalities": ",".join(p.modalities),
        "month": str(p.month or WHOLE_YEAR) if p.model.seasonal else "",
        "index": "" if p.source is None else p.source.digest,
        "bbox": f"{west:g} {south:g} {east:g} {north:g}",
        "software": f"taxabind-map {__version__}",
        "licence": model.licence,
        "command": command,
    }


def report(job: Job, k: int, device: str, command: str, **measured: Any) -> dict[str, Any]:
    """The content of the `.json` file beside the k-th map of a job.

    Parameters
    ----------
    job, k : the map.
    device : what the tiles were computed on.
    command : the command line that asked for it, or "".
    measured : further entries: statistics, timings, files.
    """
    r = job.resolutions[k]
    model = member_of(job.plan.model, r.taxon)
    common = provenance(job, device, command) | {"model": _of_model(model)}
    common["layers"] |= {"mask": job.plan.targets[k].mask, "attribution": list(attribution(job.plan, model))}
    return {
        "species": r.taxon.name,
        "query": r.query,
        "resolved": {
            "rank": r.taxon.rank,
            "by": r.how,
            "known": r.known,
            "origin": r.origin,
            "lineage": list(r.taxon.lineage),
            "common_names": list(r.taxon.common),
            "synonyms": list(r.taxon.synonyms),
        },
        "notes": list(job.notes[k]),
        "quantity": describe(job, k).quantity,
        "score": job.plan.targets[k].score.report,
        **({"fit": job.fits[k].report()} if job.fits else {"atlas": _atlas(job, k)}),
        **({"outside_trained_range": found.to_dict()} if job.outside and (found := job.outside[k]) else {}),
        **common,
        **measured,
        "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _atlas(job: Job, k: int) -> dict[str, Any]:
    """What the k-th map takes from the model's atlas, and how high its probability is where the species is known."""
    known = job.plan.model.known_range(job.resolutions[k].taxon)
    used = job.plan.targets[k].atlas
    if known is None:
        return {"used_as": used}
    highest = known.alone if used == "none" else known.highest
    return {"used_as": used, "highest_in_known_range": round(highest, 4)}


def provenance(job: Job, device: str, command: str) -> dict[str, Any]:
    """The provenance of all maps of a job: request, model, layers, grid, device, versions."""
    p, request = job.plan, job.request
    return {
        "request": request,
        "command": command,
        "model": _of_model(p.model),
        "modalities": list(p.modalities),
        "month": p.month or (WHOLE_YEAR if p.model.seasonal else None),
        "index": None if p.source is None else p.source.info,
        "layers": {
            "environment": request["environment"] or "bundled",
            "satellite": request["satellite"] or "bundled",
            "notes": [] if p.source is not None else p.inputs.sentences,
            "attribution": list(attribution(p)),
        },
        "grid": _grid_report(job.grid) | {"pixels_between_encoded_places": p.strides},
        "device": device,
        "versions": {
            "taxabind-map": __version__,
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in PACKAGES},
        },
    }


def _of_model(model: Model) -> dict[str, Any]:
    """The entry of a model in a report."""
    entry = {"name": model.name, "version": model.version, "hash": model.digest, "licence": model.licence}
    members = members_of(model)
    return entry | ({"members": [_of_model(member) for member in members]} if len(members) > 1 else {})


def _grid_report(grid: Grid) -> dict[str, Any]:
    return {
        "crs": grid.crs,
        "resolution": grid.resolution,
        "rows": grid.shape[0],
        "columns": grid.shape[1],
        "transform": list(grid.geobox.affine)[:6],
        "bounds": list(grid.geobox.boundingbox.bbox),
        "bbox_asked": list(grid.bbox),
        "tile_size": grid.tile_size,
        "tiles": grid.tile_count,
    }


def surrounding_countries(grid: Grid) -> GeoDataFrame:
    """Country outlines around the map, WGS84; beyond 180 degrees both ends of the world are needed."""
    from sdm.files.vectors import countries

    west, south, east, north = grid.bbox
    pad = 0.6 * max(east - west, north - south, 2.0)
    low, high = west - pad, east + pad
    if low < -180.0 or high > 180.0:
        low, high = -180.0, 180.0
    return countries((low, max(south - pad, -90.0), high, min(north + pad, 90.0)))
