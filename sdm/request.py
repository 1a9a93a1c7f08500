"""What a user asks for, checked: which places, in which model, and what a resolved name stands for there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sdm.engine import Places, Target, check_layers
from sdm.errors import BoxError, ModelError, RequestError
from sdm.grid import WGS84, BBox, Region, make_grid
from sdm.habitat import mask_for
from sdm.model import MODALITIES, Model, list_models, parse_device, parse_modalities
from sdm.suitability import Probability, Suitability

if TYPE_CHECKING:
    from sdm.names import Resolution


def places_of(
    bbox: BBox | Sequence[float] | None = None,
    region: Any = None,
    *,
    crs: str | int = WGS84,
    resolution: float | None = None,
    model: Model | str | Path | None = None,
    modalities: str | Sequence[str] = MODALITIES,
    satellite: str | Path | None = None,
    environment: str | Path | Sequence[str | Path] = (),
    device: str = "auto",
    tile_size: int = 256,
    step: int | None = None,
    max_pixels: int = 100_000_000,
) -> Places:
    """The places of a map or an index, their layers looked at. Options are those of `sdm.plan`.

    `model`: by default the bundled one. Raises SdmError subclasses.
    """
    whole("tile_size", tile_size)
    whole("max_pixels", max_pixels)
    if step is not None:
        whole("step", step)
    wanted = parse_modalities(modalities)
    # Cheap checks first: a wrong box is reported before anything heavy is opened.
    grid = make_grid(None if bbox is None else BBox.of(bbox), region_of(region), crs, resolution, tile_size, max_pixels)
    environment = (environment,) if isinstance(environment, str | Path) else tuple(environment)
    _refuse_unused(wanted, satellite, environment)
    places = Places(
        model=_model_of(model), grid=grid, modalities=wanted, device=parse_device(device),
        environment=tuple(absolute(p) for p in environment),
        satellite=None if satellite is None else absolute(satellite), step=step,
    )  # fmt: skip
    check_layers(places)
    return places


def score_of(model: Model, modalities: tuple[str, ...]) -> Suitability:
    """What a cosine of these modalities means in a model."""
    return Probability(*model.calibration(modalities))


def target_of(model: Model, resolution: Resolution, modalities: tuple[str, ...], mask: str = "auto") -> Target:
    """What a resolved name stands for; `mask` land, sea, none, or auto: by the species' habitat."""
    group = model.config.get("groups", {}).get(resolution.taxon.group) or {}
    return Target(
        model.species_embedding(resolution),
        score_of(model, modalities),
        mask_for(resolution.taxon) if mask == "auto" else mask,
        tuple(group["extent"]) if group.get("extent") else None,
    )


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
    return text if "://" in text or text.startswith("/vsi") else str(Path(text).absolute())


def whole(name: str, value: Any) -> None:
    """Raise RequestError unless an option is a whole number."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise RequestError(f"{name} {value!r} must be a whole number.")


def _model_of(model: Model | str | Path | None) -> Model:
    if model is not None:
        return model if isinstance(model, Model) else Model.open(model)
    bundled = list_models()
    if len(bundled) != 1:
        names = ", ".join(m.name for m in bundled) or "none"
        raise ModelError(f"choose a model with --model: a folder, or a bundled one ({names}).")
    return bundled[0]


def _refuse_unused(modalities: tuple[str, ...], satellite: Any, environment: Sequence[Any]) -> None:
    for name, given in (("satellite", satellite is not None), ("environment", bool(environment))):
        if given and name not in modalities:
            raise RequestError(f"--{name} is given but the modalities {','.join(modalities)} leave it out; add it.")
