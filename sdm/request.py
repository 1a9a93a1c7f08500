"""What a user asks for, checked: which places, in which model, and what a resolved name stands for there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sdm.engine import Places, Target, check_layers
from sdm.errors import BoxError, ModelError, RequestError
from sdm.grid import WGS84, BBox, Region, make_grid
from sdm.habitat import mask_for
from sdm.inputs import check_month
from sdm.model import DEFAULT, AnyModel, Model, bundled, local_device, open_model, parse_device, parse_modalities
from sdm.season import month_name, parse_month
from sdm.suitability import SCORES, Cosine, Probability, Suitability

if TYPE_CHECKING:
    from sdm.names import Resolution


def places_of(
    bbox: BBox | Sequence[float] | None = None,
    region: Any = None,
    *,
    crs: str | int = WGS84,
    resolution: float | None = None,
    model: Any = None,
    modalities: str | Sequence[str] | None = None,
    satellite: str | Path | None = None,
    environment: str | Path | Sequence[str | Path] = (),
    device: str = "auto",
    tile_size: int = 256,
    step: int | None = None,
    satellite_step: int | None = None,
    month: int | str | None = None,
    max_pixels: int = 100_000_000,
) -> Places:
    """The places of a map or an index, their layers looked at. Options are those of `sdm.plan`.

    `model`: by default the bundled one. `modalities`: by default all that can be had: imagery for the published
    model is the user's to give. Raises SdmError subclasses.
    """
    whole("tile_size", tile_size)
    whole("max_pixels", max_pixels)
    if step is not None:
        whole("step", step)
    if satellite_step is not None:
        whole("satellite_step", satellite_step)
    wanted = None if modalities is None else parse_modalities(modalities)
    month = parse_month(month)
    # Cheap checks first: a wrong box is reported before anything heavy is opened.
    grid = make_grid(None if bbox is None else BBox.of(bbox), region_of(region), crs, resolution, tile_size, max_pixels)
    environment = (environment,) if isinstance(environment, str | Path) else tuple(environment)
    opened = _model_of(model)
    if wanted is None:
        wanted = tuple(m for m in opened.place_modalities if m != "satellite" or opened.calibrated or satellite)
    if missing := [m for m in wanted if m not in opened.place_modalities]:
        raise ModelError(
            f"model {opened.name!r} has no {missing[0]} encoder; it has {', '.join(opened.place_modalities) or 'none'}."
        )
    _refuse_unused(wanted, satellite, environment)
    check_month(opened, month)
    refuse_timeless(wanted, month)
    places = Places(
        model=opened, grid=grid, modalities=wanted, device=parse_device(device),
        environment=tuple(absolute(p) for p in environment),
        satellite=None if satellite is None else absolute(satellite), step=step,
        satellite_step=satellite_step, month=month,
    )  # fmt: skip
    check_layers(places)
    return places


def score_of(model: AnyModel, modalities: tuple[str, ...]) -> Suitability:
    """What a cosine of these modalities means in a calibrated model. Raises RequestError for one that is not."""
    if not model.calibrated:
        raise RequestError(f"model {model.name!r} is not calibrated: its maps show relative suitability or cosines.")
    ranges = {"ranges": model.ranges} if model.ranges else {}
    return Probability(*model.calibration(modalities), **ranges)


def scorer(places: Places, kind: str = "auto") -> Callable[[np.ndarray], Suitability]:
    """What a cosine with a vector (dim,) means at these places; `kind` is one of `SCORES`. Raises RequestError."""
    if kind not in SCORES:
        raise RequestError(f"score {str(kind)[:40]!r} is not known; choose one of {', '.join(SCORES)}.")
    if kind == "auto":
        kind = "probability" if places.model.calibrated else "relative"
    if kind == "cosine":
        return lambda vector: Cosine()
    if kind == "probability":
        score = score_of(places.model, places.modalities)
        return lambda vector: score
    from sdm.relative import reference, relative

    sample = reference(
        places.model, places.modalities, places.environment, places.satellite, _device_of(places.device), places.month
    )
    return lambda vector: relative(vector, sample)


def target_of(
    model: AnyModel, resolution: Resolution, modalities: tuple[str, ...], mask: str = "auto",
    vector: np.ndarray | None = None, score: Suitability | None = None,
) -> Target:  # fmt: skip
    """What a resolved name stands for; `mask` land, sea, none, or auto: by the species' habitat.

    `vector`, `score`: where they are not those of the name and of the calibrated model.
    """
    taxon = resolution.taxon
    return Target(
        model.species_embedding(resolution) if vector is None else vector,
        score_of(model, modalities) if score is None else score,
        mask_for(taxon) if mask == "auto" else mask,
        model.extent(taxon.group),
    )


def refuse_timeless(modalities: Sequence[str], month: int) -> None:
    """Raise RequestError for a month, 1 to 12, of modalities that are the same all year."""
    if month and "location" not in modalities:
        raise RequestError(
            f"month {month_name(month)} is given, but of the modalities only location knows the season and "
            f"{','.join(modalities)} leave it out; add it, or leave the month out."
        )


def _device_of(device: str) -> str:
    """A device of this process: where only the workers have the one asked for, this one computes on its own."""
    try:
        return local_device(device)
    except RequestError:
        return "cpu"


def region_of(region: Any) -> Region | None:
    """A region from a vector file, a GeoDataFrame or a WGS84 geometry (lon, lat). Raises SdmError subclasses."""
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


def absolute(path: str | Path) -> str:
    """A path that means the same in another process, whose working folder may be another."""
    text = str(path)
    # An environment may be a word ("approximate"), a path may carry options after a "#".
    if text.partition("#")[0] == "approximate":
        return text
    return text if "://" in text or text.startswith("/vsi") else str(Path(text).absolute())


def whole(name: str, value: Any) -> None:
    """Raise RequestError unless an option is a whole number."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise RequestError(f"{name} {value!r} must be a whole number.")


def _model_of(model: Any) -> AnyModel:
    if model is not None:
        return open_model(model) if isinstance(model, str | Path) else model
    names = list(bundled())
    if len(names) == 1 or DEFAULT in names:
        return Model.open(names[0])  # the usual one comes first
    raise ModelError(f"choose a model with --model: a folder, or a bundled one ({', '.join(names) or 'none'}).")


def _refuse_unused(modalities: tuple[str, ...], satellite: Any, environment: Sequence[Any]) -> None:
    for name, given in (("satellite", satellite is not None), ("environment", bool(environment))):
        if given and name not in modalities:
            raise RequestError(f"--{name} is given but the modalities {','.join(modalities)} leave it out; add it.")
