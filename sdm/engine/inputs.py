"""What the encoders of a model read at a place: its layers, opened as that model wants them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import numpy as np

from sdm.errors import LayerError, RequestError
from sdm.files.fingerprint import of_files, of_parts
from sdm.files.paths import folder
from sdm.layers import ATTRIBUTION
from sdm.layers.environment import BUNDLED, Environment, Input, expand
from sdm.layers.satellite import Satellite
from sdm.models.bundled import Model
from sdm.models.registry import AnyModel, is_published
from sdm.request.months import month_name

Read = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""(lon (N,), lat (N,) degrees) -> (values for the encoder (N, ...), whether the place is known (N,) boolean)."""


class Inputs:
    """The layers of some modalities of a model, by modality: see `Read`.

    `environment`, `satellite`: the user's own in place of the bundled layers. Raises LayerError.
    """

    def __init__(
        self, model: AnyModel, modalities: Sequence[str], environment: Sequence[str] = (), satellite: str | None = None
    ) -> None:
        self.read: dict[str, Read] = {}
        self.sentences: list[str] = []
        """What a user of the map should know about the layers."""
        self.attribution: tuple[str, ...] = ATTRIBUTION
        self._checks: list[Callable[[np.ndarray, np.ndarray], None]] = []
        self._content: Callable[[], list[str]] = list
        fill = _published if is_published(model) else _bundled
        fill(self, model, modalities, environment, satellite)

    @property
    def fingerprint(self) -> str:
        """What the layers hold: 16 hex digits."""
        return of_parts(self._content())

    def check(self, lon: np.ndarray, lat: np.ndarray) -> None:
        """Look at the user's layers at a few places (N,), (N,) degrees before any work. Raises LayerError."""
        for check in self._checks:
            check(lon, lat)


def open_inputs(
    model: AnyModel, modalities: Sequence[str], environment: Sequence[str] = (), satellite: str | None = None
) -> Inputs:
    """The same `Inputs` for all callers in this process."""
    key = (model.digest, tuple(modalities), tuple(environment), satellite)
    with _lock:
        if key not in _cache:
            if len(_cache) >= 8:  # one for each model and set of layers: more are in use one after the other
                _cache.pop(next(iter(_cache)))
            _cache[key] = Inputs(model, modalities, environment, satellite)
        return _cache[key]


_cache: dict[tuple, Inputs] = {}
_lock = threading.Lock()


def check_month(model: AnyModel, month: int) -> None:
    """Raise RequestError for a month, 1 to 12, of a model that does not tell one month from another."""
    if month and not model.seasonal:
        raise RequestError(
            f"month {month_name(month)} is given, but model {model.name!r} does not tell one month from another; leave "
            "it out, or give --model a seasonal one (see --list-models)."
        )


def at_month(model: AnyModel, lonlat: np.ndarray, month: int = 0) -> np.ndarray:
    """Values for the location encoder from (N, 2) degrees (lon, lat): with the month of a seasonal model (N, 3)."""
    check_month(model, month)
    return np.column_stack([lonlat, np.full(len(lonlat), float(month))]) if model.seasonal else lonlat


def _location(lon: np.ndarray, lat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.stack([lon, lat], axis=1), np.ones(lon.size, dtype=bool)


def _bundled(inputs: Inputs, model: Model, modalities, environment, satellite) -> None:
    """As the bundled model was trained: `data/`, with the user's rasters in place of some variables."""
    inputs._content = lambda: [f"{k} {v}" for k, v in layer_fingerprints(modalities, environment, satellite).items()]
    if "location" in modalities:
        inputs.read["location"] = _location
    if "environment" in modalities:
        env = environment_of(model, environment)

        def sample(lon, lat):
            values = env.sample(lon, lat)
            ok = np.isfinite(values).all(axis=1)
            if not ok.all():
                values[~ok] = 0.0
            return values, ok

        inputs.read["environment"] = sample
        if environment:
            inputs._checks.append(env.check)
    if "satellite" in modalities:
        sat = satellite_of(model, satellite)
        inputs.read["satellite"] = lambda lon, lat: (sat.crops(lon, lat), sat.known(lon, lat))
        if satellite:
            inputs._checks.append(sat.check)


def _published(inputs: Inputs, model, modalities, environment, satellite) -> None:
    """As the published model was trained: 20 channels of WorldClim, crops of 2.56 km at 10 m."""
    layers: list = []
    inputs._content = lambda: [layer.fingerprint() for layer in layers]
    if "location" in modalities:
        inputs.read["location"] = _location
    if "environment" in modalities:
        from sdm.layers.worldclim import open_environment20

        if len(environment) > 1:
            raise LayerError(
                f"{len(environment)} environments are given, but the published model reads one: the published array, "
                "or a folder of WorldClim."
            )
        env = open_environment20(environment[0] if environment else None)
        layers.append(env)
        inputs.read["environment"] = env.sample
        inputs.sentences.append(env.describe())
        inputs._checks.append(env.check)
    if "satellite" in modalities:
        from sdm.layers.imagery import open_imagery

        if satellite is None:
            raise LayerError(
                "the satellite encoder of the published model needs imagery at 10 m, which is not bundled; give "
                "--satellite a raster, a folder of rasters, or the address of a tile server, or leave the modality out."
            )
        sat = open_imagery(satellite)
        layers.append(sat)
        inputs.read["satellite"] = sat.read
        inputs.sentences.append(sat.describe())
        if sat.attribution:
            inputs.attribution = (sat.attribution, *inputs.attribution)
        inputs._checks.append(sat.check)


def environment_of(model: Model, overrides: Sequence[str] = ()) -> Environment:
    """The environment layers as a bundled model reads them."""
    return Environment([Input(**i) for i in model.config["environment"]["inputs"]], overrides)


def satellite_of(model: Model, path: str | None = None) -> Satellite:
    """The imagery as a bundled model reads it."""
    return Satellite(model.config["satellite"]["size"], model.config["satellite"]["pixel"], path)


def layer_fingerprints(
    modalities: Sequence[str], environment: Sequence[str] = (), satellite: str | None = None
) -> dict[str, str]:
    """What the layers of a bundled model hold, by layer: "bundled:" or "own:", then 16 hex digits."""
    data = folder("data")
    found = {"landmask": "bundled:" + of_files([data / "landmask.tif"])}
    if "environment" in modalities:
        found["environment"] = "bundled:" + of_files(data / name for name in BUNDLED)
        if environment:
            found["environment_own"] = "own:" + of_files(expand(environment))
    if "satellite" in modalities:
        own = satellite is not None
        path = satellite if own else data / "satellite.tif"
        found["satellite"] = ("own:" if own else "bundled:") + of_files([path])
    return found
