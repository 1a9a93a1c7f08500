"""From a request to places: grid, model and layers opened and checked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sdm.engine.inputs import check_month
from sdm.engine.places import Places
from sdm.errors import ModelError, RequestError
from sdm.files.paths import absolute
from sdm.grid import WGS84, BBox, make_grid, region_of
from sdm.models.registry import default_model
from sdm.request.checks import whole
from sdm.request.choices import parse_device, parse_modalities
from sdm.request.months import month_name, parse_month


def check_layers(plan: Places) -> None:
    """Sample a few places over the map before any work. Raises LayerError."""
    rows = np.unique(np.linspace(0, plan.grid.shape[0] - 1, 24).astype(int))
    cols = np.unique(np.linspace(0, plan.grid.shape[1] - 1, 24).astype(int))
    lon, lat = (a.ravel() for a in plan.grid.lonlat(rows, cols))
    ok = np.isfinite(lon)
    if not ok.any():
        raise RequestError("no pixel of the map lies on the globe in this CRS; choose another CRS or box.")
    plan.inputs.check(lon[ok], lat[ok])


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
    opened = default_model(model)
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


def refuse_timeless(modalities: Sequence[str], month: int) -> None:
    """Raise RequestError for a month, 1 to 12, of modalities that are the same all year."""
    if month and "location" not in modalities:
        raise RequestError(
            f"month {month_name(month)} is given, but of the modalities only location knows the season and "
            f"{','.join(modalities)} leave it out; add it, or leave the month out."
        )


def _refuse_unused(modalities: tuple[str, ...], satellite: Any, environment: Sequence[Any]) -> None:
    for name, given in (("satellite", satellite is not None), ("environment", bool(environment))):
        if given and name not in modalities:
            raise RequestError(f"--{name} is given but the modalities {','.join(modalities)} leave it out; add it.")
