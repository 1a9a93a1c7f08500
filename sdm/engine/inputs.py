"""The layers that the encoders of a model read, opened as the model declares them (`Model.layers`)."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from sdm.errors import LayerError, RequestError
from sdm.files.fingerprint import of_files, of_parts
from sdm.files.release import data_file
from sdm.layers import ATTRIBUTION
from sdm.layers.environment import BUNDLED, Environment, Input, expand
from sdm.layers.landmask import land_sample
from sdm.layers.satellite import Satellite
from sdm.layers.stack import RasterStack
from sdm.layers.surroundings import around
from sdm.models.layerspec import (
    ImageryCrops,
    LayerSpec,
    MosaicCrops,
    Position,
    RasterBands,
    StandardisedVariables,
    Variable,
    WorldClimChannels,
)
from sdm.models.protocol import Model
from sdm.request.months import month_name

RANGE_PLACES = 12_000
"""On land, and half as many anywhere, from which the trained range is taken."""

Read = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""(lon (N,), lat (N,) degrees) -> (values for the encoder (N, ...), whether the place is known (N,) boolean)."""
Check = Callable[[np.ndarray, np.ndarray], None]
"""(lon (N,), lat (N,) degrees): raises LayerError for a layer that is of no use there."""


def _no_check(lon: np.ndarray, lat: np.ndarray) -> None:
    """A bundled layer is of use everywhere."""


class Detail(NamedTuple):
    """The part of a layer's values that varies between places an encoder's pitch apart."""

    columns: np.ndarray
    """(F,) which of the values (N, D) it has, ascending."""
    read: Read
    """These alone: (N, F) float32."""


@dataclass(frozen=True)
class OpenLayer:
    """One layer, open in this process."""

    read: Read
    check: Check = _no_check
    fingerprint: Callable[[], str] = str
    """16 hex digits of its content; "" for a bundled layer, whose files are hashed in `layer_fingerprints`."""
    sentence: str = ""
    """Note for the user of the map."""
    detail: Detail | None = None
    """What can be read without the rest; None: nothing."""
    attribution: str = ""
    """Its source, where that is not one of the bundled layers' (`sdm.layers.ATTRIBUTION`)."""


@dataclass(frozen=True)
class Inputs:
    """The open layers of some modalities of a model."""

    layers: Mapping[str, OpenLayer]
    """By modality."""
    read: Mapping[str, Read] = field(init=False)
    """By modality."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "read", {modality: layer.read for modality, layer in self.layers.items()})

    @property
    def sentences(self) -> list[str]:
        """Notes on the layers for the user of the map."""
        ordered = [self.layers[m] for m in sorted(self.layers)]
        return [layer.sentence for layer in ordered if layer.sentence]

    @property
    def attribution(self) -> tuple[str, ...]:
        """A line per source of the layers."""
        return (*(layer.attribution for layer in self.layers.values() if layer.attribution), *ATTRIBUTION)

    def check(self, lon: np.ndarray, lat: np.ndarray) -> None:
        """Look at the user's layers at a few places (N,), (N,) degrees before any work. Raises LayerError."""
        for modality in sorted(self.layers):
            self.layers[modality].check(lon, lat)


def open_inputs(
    model: Model,
    modalities: Sequence[str],
    environment: Sequence[str] = (),
    satellite: str | None = None,
    clamp: bool = False,
) -> Inputs:
    """The layers that some modalities of a model read, shared by all callers in this process.

    `environment`, `satellite`: the user's own sources in place of the bundled layers; `clamp`: their variables are
    limited to the trained range. Raises LayerError.
    """
    key = (model.digest, tuple(modalities), tuple(environment), satellite, clamp)
    with _lock:
        if key not in _cache:
            if len(_cache) >= 8:  # one for each model and set of layers: more are in use one after the other
                _cache.pop(next(iter(_cache)))
            specs = model.layers
            # In one order, so that of two sources that cannot be opened the same one is always reported.
            opened = {m: _open(specs[m], environment, satellite, clamp, model.pitch(m)) for m in sorted(modalities)}
            _cache[key] = Inputs({m: opened[m] for m in modalities})
        return _cache[key]


_cache: dict[tuple, Inputs] = {}
_lock = threading.Lock()


def layer_fingerprints(
    model: Model, modalities: Sequence[str], environment: Sequence[str] = (), satellite: str | None = None
) -> dict[str, str]:
    """Fingerprints of what the layers hold, by layer: "bundled:" or "own:" and 16 hex digits.

    Layers that the model reads from bundled files are not opened. Raises LayerError.
    """
    prints = {"landmask": "bundled:" + of_files([data_file("landmask.tif")])}
    specs = model.layers
    for modality in sorted(modalities):
        match specs[modality]:
            case StandardisedVariables():
                prints[modality] = "bundled:" + of_files(map(data_file, BUNDLED))
                if environment:
                    # The second word: how they enter the means around a place, which an older index did not have.
                    prints[f"{modality}_own"] = "own:" + of_parts([of_files(expand(environment)), "surroundings"])
            case MosaicCrops():
                own = satellite is not None
                prints[modality] = ("own:" if own else "bundled:") + of_files([satellite or data_file("satellite.tif")])
            case RasterBands(paths):
                prints["covariates"] = "own:" + of_files(expand(paths))
            case WorldClimChannels():
                layer = open_inputs(model, modalities, environment, satellite).layers[modality]
                prints[modality] = ("own:" if environment else "bundled:") + layer.fingerprint()
            case ImageryCrops():
                layer = open_inputs(model, modalities, environment, satellite).layers[modality]
                prints[modality] = "own:" + layer.fingerprint()
    return prints


def content_fingerprint(
    model: Model, modalities: Sequence[str], environment: Sequence[str] = (), satellite: str | None = None
) -> str:
    """One fingerprint of all layers that some modalities read: 16 hex digits. Raises LayerError."""
    prints = layer_fingerprints(model, modalities, environment, satellite)
    return of_parts([f"{name} {value}" for name, value in prints.items()])


def environment_inputs(variables: Sequence[Variable]) -> list[Input]:
    """The columns of an environment vector that a model declares, ready to be sampled."""
    return [Input(v.layer, v.transform, v.value, v.mean, v.std) for v in variables]


def check_month(model: Model, month: int) -> None:
    """Raise RequestError for a month, 1 to 12, of a model that is not seasonal."""
    if month and not model.seasonal:
        raise RequestError(
            f"model {model.name!r} is not seasonal; omit the month {month_name(month)}, or use a seasonal model "
            "(see --list-models)."
        )


def at_month(model: Model, lonlat: np.ndarray, month: int = 0) -> np.ndarray:
    """Values for the location encoder from (N, 2) degrees (lon, lat): with the month of a seasonal model (N, 3)."""
    check_month(model, month)
    return np.column_stack([lonlat, np.full(len(lonlat), float(month))]) if model.seasonal else lonlat


def _open(spec: LayerSpec, environment: Sequence[str], satellite: str | None, clamp: bool, pitch: float) -> OpenLayer:
    """The layer that a model declares and encodes every `pitch` degrees, with the user's sources. Raises LayerError."""
    match spec:
        case Position():
            return OpenLayer(_position)
        case RasterBands(paths, categorical, bands):
            stack = RasterStack(paths, categorical, bands)
            return OpenLayer(stack.sample, stack.check, lambda: of_files(stack.files))
        case StandardisedVariables():
            return _open_variables(spec, environment, clamp, pitch)
        case MosaicCrops():
            return _open_mosaic(spec, satellite)
        case WorldClimChannels():
            return _open_worldclim(environment)
        case ImageryCrops():
            return _open_imagery(spec, satellite)


def _position(lon: np.ndarray, lat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.stack([lon, lat], axis=1), np.ones(lon.size, dtype=bool)


def _open_variables(spec: StandardisedVariables, rasters: Sequence[str], clamp: bool, pitch: float) -> OpenLayer:
    """Bundled variables, the user's rasters in place of some."""
    layer = Environment(environment_inputs(spec.variables), rasters)
    limits = trained_range(spec) if clamp and rasters else None

    def read(lon: np.ndarray, lat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        values = layer.sample(lon, lat)
        known = np.isfinite(values).all(axis=1)
        if not known.all():
            values[~known] = 0.0
        if limits is not None:
            np.clip(values, *limits, out=values)
        return values, known

    def read_detail(lon: np.ndarray, lat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        values = layer.sample_finer(pitch, lon, lat)
        return values, np.isfinite(values).all(axis=1)

    if rasters:
        return OpenLayer(read, layer.check, sentence=_on_surroundings(layer))
    return OpenLayer(read, detail=Detail(layer.finer(pitch), read_detail))


@lru_cache(maxsize=4)
def trained_range(spec: StandardisedVariables) -> tuple[np.ndarray, np.ndarray]:
    """Least and greatest standardised value (D,) of each variable in the world of today, land and sea, north of 60 S.

    From places spread evenly by area; extremes of single cells are left out.
    """
    lon, lat = land_sample(RANGE_PLACES)
    rng = np.random.default_rng(0)
    sea_lon = rng.uniform(-180.0, 180.0, RANGE_PLACES // 2)
    sea_lat = np.degrees(np.arcsin(rng.uniform(np.sin(np.radians(-60.0)), 1.0, sea_lon.size)))
    places = np.concatenate([lon, sea_lon]), np.concatenate([lat, sea_lat])
    values = Environment(environment_inputs(spec.variables)).sample(*places)
    return np.nanmin(values, axis=0), np.nanmax(values, axis=0)


def _on_surroundings(layer: Environment) -> str:
    """Which of the user's rasters are in the means around a place."""
    if not layer.replaced:
        return ""
    names = ", ".join(layer.replaced)
    if not layer.surroundings:
        return f"Your rasters of {names} replace the bundled ones at each place; the model reads no means of them."
    meanings = (around(name) for name in layer.surroundings)
    text = ", ".join(f"{km:g}" for km in sorted({m.km for m in meanings if m is not None}))
    return (
        f"Your rasters of {names} replace the bundled ones, also in the means of the environment within {text} km of a "
        "place as far as they reach; beyond, the bundled layers count."
    )


def _open_mosaic(spec: MosaicCrops, raster: str | None) -> OpenLayer:
    """The bundled mosaic, or the user's raster."""
    layer = Satellite(spec.size, spec.pixel, raster)
    return OpenLayer(
        lambda lon, lat: (layer.crops(lon, lat), layer.known(lon, lat)),
        layer.check if raster else _no_check,
    )


def _open_worldclim(sources: Sequence[str]) -> OpenLayer:
    """WorldClim as the user has it, or approximated."""
    from sdm.layers.worldclim import open_environment20

    if len(sources) > 1:
        raise LayerError(
            f"--environment is given {len(sources)} times, but the published model reads one source: the published "
            "array, or a folder of WorldClim."
        )
    layer = open_environment20(sources[0] if sources else None)
    return OpenLayer(layer.sample, layer.check, layer.fingerprint, layer.describe())


def _open_imagery(spec: ImageryCrops, source: str | None) -> OpenLayer:
    """Imagery of the resolution that the model was trained with."""
    from sdm.layers.imagery import open_imagery

    if source is None:
        raise LayerError(
            f"the satellite encoder of the published model needs imagery at {spec.pixel:g} m, which is not bundled; "
            "give --satellite a raster, a folder of rasters, or the address of a tile server, or omit the modality."
        )
    layer = open_imagery(source, pitch=spec.pixel, size=spec.size)
    return OpenLayer(layer.read, layer.check, layer.fingerprint, layer.describe(), attribution=layer.attribution)
