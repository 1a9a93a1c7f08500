"""From a request to places: grid, model and layers opened and checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from sdm.engine.inputs import check_month
from sdm.engine.places import Places
from sdm.errors import ModelError, RequestError
from sdm.files.paths import absolute
from sdm.grid import WGS84, Grid, as_region, make_grid
from sdm.models.protocol import Model
from sdm.request import Area, Sampling
from sdm.request.months import month_name


def open_grid(area: Area) -> Grid:
    """The pixel grid of an area. Raises BoxError, RequestError, LayerError, TooLargeError."""
    crs = WGS84 if area.crs is None else area.crs
    region = as_region(area.region, area.layer, area.where)
    return make_grid(area.bbox, region, crs, area.resolution, area.tile_size, area.max_pixels)


def open_places(model: Model, grid: Grid, sampling: Sampling, device: str = "auto") -> Places:
    """The places of a map or an index, with their layers checked.

    Without modalities in `sampling` all available ones are used: imagery for the published model must be given by the
    user. Raises SdmError subclasses.
    """
    modalities = sampling.modalities
    if modalities is None:
        usable = [
            m for m in model.place_modalities if model.layers[m].bundled or (m == "satellite" and sampling.satellite)
        ]
        modalities = tuple(usable)
    if missing := [m for m in modalities if m not in model.place_modalities]:
        raise ModelError(
            f"model {model.name!r} has no {missing[0]} encoder; it has {', '.join(model.place_modalities) or 'none'}."
        )
    _refuse_unused(modalities, sampling)
    check_month(model, sampling.month or 0)
    check_month_modalities(modalities, sampling.month or 0)
    sampling = replace(
        sampling,
        modalities=modalities or None,
        environment=tuple(absolute(path) for path in sampling.environment),
        satellite=None if sampling.satellite is None else absolute(sampling.satellite),
    )
    places = Places(model=model, grid=grid, sampling=sampling, device=device)
    check_layers(places)
    return places


def check_layers(places: Places) -> None:
    """Sample a few places over the map before any work. Raises LayerError."""
    rows = np.unique(np.linspace(0, places.grid.shape[0] - 1, 24).astype(int))
    cols = np.unique(np.linspace(0, places.grid.shape[1] - 1, 24).astype(int))
    lon, lat = (a.ravel() for a in places.grid.lonlat(rows, cols))
    ok = np.isfinite(lon)
    if not ok.any():
        raise RequestError("no pixel of the map lies on the globe in this CRS; choose another CRS or box.")
    places.inputs.check(lon[ok], lat[ok])


def check_month_modalities(modalities: Sequence[str], month: int) -> None:
    """Raise RequestError for a month, 1 to 12, without location, the only modality that depends on it."""
    if month and "location" not in modalities:
        raise RequestError(f"month {month_name(month)} needs the modality location; add it or omit the month.")


def _refuse_unused(modalities: Sequence[str], sampling: Sampling) -> None:
    for name, given in (("satellite", sampling.satellite is not None), ("environment", bool(sampling.environment))):
        if given and name not in modalities:
            raise RequestError(
                f"--{name} is given but {name} is not among the modalities ({','.join(modalities)}); add it or omit "
                f"--{name}."
            )
