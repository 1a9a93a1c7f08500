"""What a fit knows of places: embeddings and environment from a model's layers, or values of the user's own rasters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from sdm.engine.encode import describe_positions, environment_embeddings
from sdm.engine.inputs import layer_fingerprints
from sdm.files.fingerprint import of_files
from sdm.layers.stack import RasterStack
from sdm.models.device import local_device
from sdm.models.layerspec import StandardisedVariables
from sdm.models.protocol import Model
from sdm.request import Sampling

ROWS_AT_ONCE = 16_384
CELL = 6.0
"""Degrees: places are read cell by cell, so that windows of the layers stay small."""


@dataclass(frozen=True)
class Covariates:
    """The columns of `Features.environment`.

    Parameters
    ----------
    names : one per column.
    groups : what each column describes: "climate", "terrain", "land cover", "surroundings", or its own name.
    categorical : whether its values are classes.
    """

    names: tuple[str, ...]
    groups: tuple[str, ...]
    categorical: tuple[bool, ...]

    def select(self, columns: np.ndarray) -> Covariates:
        """Some of the columns, by their numbers."""
        return Covariates(*(tuple(field[c] for c in columns) for field in (self.names, self.groups, self.categorical)))


@dataclass(frozen=True)
class Features:
    """N places.

    Parameters
    ----------
    embedding : (N, dim) float32 unit vectors, dim 0 without a model.
    environment : (N, D) float32.
    known : (N,) bool, whether all layers cover the place; values of others mean nothing.
    """

    embedding: np.ndarray
    environment: np.ndarray
    known: np.ndarray

    def __len__(self) -> int:
        return len(self.known)

    def select(self, rows: np.ndarray) -> Features:
        """Some of the places, by a mask or by their numbers."""
        return Features(self.embedding[rows], self.environment[rows], self.known[rows])


def joined(parts: Sequence[Features]) -> Features:
    """The places of several, one after the other."""
    return Features(
        *(np.concatenate([getattr(part, name) for part in parts]) for name in ("embedding", "environment", "known"))
    )


REMEMBERED = 40_000
"""Places whose features are kept between the species of a request, the latest: 60 MB of a bundled model's."""

Read = Callable[[np.ndarray, np.ndarray], Features]
"""(lon (N,), lat (N,) degrees) -> their features."""


class Memory:
    """Features of places that were read before: background places serve many species of one file."""

    def __init__(self) -> None:
        self._row: dict[tuple[float, float], int] = {}
        self._kept: Features | None = None

    def read(self, read: Read, lon: np.ndarray, lat: np.ndarray) -> Features:
        """Features at positions (N,), (N,) degrees; `read` is asked for those that are not known yet."""
        keys = list(zip(lon.tolist(), lat.tolist(), strict=True))
        new = np.array(list(dict.fromkeys(key for key in keys if key not in self._row)), dtype=float).reshape(-1, 2)
        if len(new) or self._kept is None:
            self._add(read(new[:, 0], new[:, 1]), new)
        assert self._kept is not None
        features = self._kept.select(np.array([self._row[key] for key in keys], dtype=np.int64))
        if len(self._row) > REMEMBERED:
            first = len(self._row) - REMEMBERED
            self._kept = self._kept.select(np.arange(first, len(self._row)))
            self._row = {key: row - first for key, row in self._row.items() if row >= first}
        return features

    def _add(self, features: Features, positions: np.ndarray) -> None:
        start = len(self._row)
        self._row |= {(x, y): start + k for k, (x, y) in enumerate(positions.tolist())}
        self._kept = features if self._kept is None else joined((self._kept, features))


class FeatureSource(Protocol):
    """Where features of places come from."""

    @property
    def covariates(self) -> Covariates:
        """The columns of the environment."""
        ...

    @property
    def layers(self) -> dict[str, str]:
        """Fingerprints of the layers, by name."""
        ...

    def read(self, lon: np.ndarray, lat: np.ndarray) -> Features:
        """Features at positions (N,), (N,) degrees."""
        ...


@dataclass(frozen=True)
class ModelFeatures:
    """The summed embedding of a model, and the values that its environment encoder reads."""

    model: Model
    sampling: Sampling = field(default_factory=Sampling)
    device: str = "cpu"
    memory: Memory = field(default_factory=Memory, compare=False, repr=False)

    @property
    def modalities(self) -> tuple[str, ...]:
        """Those that are added to an embedding."""
        return tuple(self.sampling.modalities or self.model.place_modalities)

    @property
    def covariates(self) -> Covariates:
        """The variables of the model's environment encoder, or its channels where they have no names."""
        spec = self.model.layers["environment"]
        if isinstance(spec, StandardisedVariables):
            names = tuple(_described(v.layer, v.transform, v.value) for v in spec.variables)
            groups = tuple(_group(v.layer) for v in spec.variables)
        else:
            width = self.read(np.zeros(1), np.zeros(1)).environment.shape[1]
            names, groups = tuple(f"channel {k + 1}" for k in range(width)), ("climate",) * width
        return Covariates(names, groups, (False,) * len(names))

    @property
    def layers(self) -> dict[str, str]:
        """Fingerprints of the layers, by name."""
        modalities = tuple(dict.fromkeys((*self.modalities, "environment")))
        return layer_fingerprints(self.model, modalities, self.sampling.environment, self.sampling.satellite)

    def read(self, lon: np.ndarray, lat: np.ndarray) -> Features:
        """Features at positions (N,), (N,) degrees."""
        return self.memory.read(lambda *new: _by_cell(self._read, *new), lon, lat)

    def _read(self, lon: np.ndarray, lat: np.ndarray) -> Features:
        return Features(*describe_positions(self.model, self.sampling, lon, lat, self.device))

    def environment_embedding(self, environment: np.ndarray) -> np.ndarray:
        """Unit embeddings (N, dim) float32 of environments (N, D) as `read` gives them; novelty is measured in it."""
        return environment_embeddings(self.model, environment, local_device(self.device))


class RasterFeatures:
    """The bands of any rasters, with their own names; no embedding.

    Parameters
    ----------
    paths : raster files, or folders of them.
    categorical : names of bands whose values are classes: read at the nearest cell, never interpolated.
    """

    def __init__(self, paths: Sequence[str | Path], categorical: Sequence[str] = ()) -> None:
        self._stack = RasterStack(paths, categorical)
        self.memory = Memory()
        self.covariates = Covariates(self._stack.names, self._stack.names, self._stack.categorical)

    @property
    def layers(self) -> dict[str, str]:
        """The fingerprint of all rasters."""
        return {"covariates": "own:" + of_files(self._stack.files)}

    def read(self, lon: np.ndarray, lat: np.ndarray) -> Features:
        """Values at positions (N,), (N,) degrees; a place is known where all bands have a value."""
        return self.memory.read(lambda *new: _by_cell(self._read, *new), lon, lat)

    def _read(self, lon: np.ndarray, lat: np.ndarray) -> Features:
        values, known = self._stack.sample(lon, lat)
        return Features(np.empty((lon.size, 0), dtype=np.float32), values, known)


def _by_cell(read: Read, lon: np.ndarray, lat: np.ndarray) -> Features:
    """Read places in the order of their cells, some thousands at a time, and return them in theirs."""
    lon, lat = np.asarray(lon, dtype=np.float64), np.asarray(lat, dtype=np.float64)
    order = np.lexsort((lon, np.floor(lon / CELL), np.floor(lat / CELL)))
    back = np.empty(order.size, dtype=np.int64)
    back[order] = np.arange(order.size)
    return joined([read(lon[p], lat[p]) for p in _chunks(order)]).select(back)


def _chunks(order: np.ndarray) -> list[np.ndarray]:
    return [order[k : k + ROWS_AT_ONCE] for k in range(0, max(order.size, 1), ROWS_AT_ONCE)]


def _group(layer: str) -> str:
    if layer.startswith("mean"):
        return "surroundings"
    if layer.startswith("bio"):
        return "climate"
    return "land cover" if layer.startswith("landcover") else "terrain"


def _described(layer: str, transform: str, value: int) -> str:
    if transform == "class":
        return f"{layer} {value}"
    return layer if transform == "identity" else f"{layer} {transform}"
