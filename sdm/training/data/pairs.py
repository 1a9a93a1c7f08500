"""Observations for contrastive training: a species and a place, with everything that an encoder reads there.

From range data an observation is drawn: a place and one of the species present. The published datasets hold
observations as they are. Values are what `Space.embed` takes (`sdm.training.spaces`), read when a batch needs them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np

from sdm.errors import RequestError
from sdm.evaluation.datasets import Dataset
from sdm.evaluation.encode import read_values
from sdm.layers.worldclim import published_array
from sdm.request.choices import MODALITIES
from sdm.training.data.drawing import random_places
from sdm.training.data.training_set import LayerSamples, TrainingSet
from sdm.training.recipe.sections import BALANCES

CHUNK = 1024
"""Places whose labels are unpacked at once."""
GLOBE_PLACES = 8192
"""Random places prepared as negatives of range data."""


class Pairs(Protocol):
    """What contrastive training draws from."""

    species: int
    """Number of species."""
    places: int
    """Number of rows that `values` takes: places, or observations."""
    modalities: tuple[str, ...]

    def draw(self, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Rows of places (n,) and of species (n,), int64, drawn with replacement."""
        ...

    def values(self, modality: str, rows: np.ndarray) -> Any:
        """What the encoder of a modality reads at places; for "text", of species."""
        ...

    def draw_anywhere(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """n random places of the globe, for `values_anywhere`; can be split along the first axis."""
        ...

    def values_anywhere(self, modality: str, where: np.ndarray) -> Any:
        """What the encoder of a modality reads at random places."""
        ...


@runtime_checkable
class PairsWithAbsence(Protocol):
    """Pairs that also know where species are absent."""

    def presence(self, rows: np.ndarray) -> np.ndarray:
        """(n, species) uint8 0 or 1 at places."""
        ...


class RangePairs:
    """Observations drawn from ranges.

    Parameters
    ----------
    values : by modality (location (lon, lat), satellite, environment) one row per place, and "text", one row per
        species: arrays, or what can be indexed like them
    labels : function of rows of places -> presence (n, species), 0/1 or a probability; 0.5 and more is present
    where : the places that may be drawn
    balance : "place": a place that has any species, then one of its species; "species": a species, then one of its
        places, so that rare ones are drawn as often as common ones
    globe : the same modalities at random places of the globe, as negatives

    Raises
    ------
    RequestError : when no species is present anywhere
    """

    def __init__(
        self,
        values: Mapping[str, Any],
        labels: Callable[[np.ndarray], np.ndarray],
        where: np.ndarray,
        balance: str = "place",
        globe: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        _check_balance(balance)
        self._values, self._globe, self.balance = dict(values), dict(globe or {}), balance
        self._labels = labels
        self.modalities = tuple(values)
        self.species, self.places = len(values["text"]), len(values["location"])
        place_parts, species_parts = [], []
        for start in range(0, len(where), CHUNK):
            rows = where[start : start + CHUNK]
            row, column = np.nonzero(labels(rows) >= 0.5)
            place_parts.append(rows[row].astype(np.int32))
            species_parts.append(column.astype(np.int32))
        place, species = np.concatenate(place_parts), np.concatenate(species_parts)
        if not place.size:
            raise RequestError("no species is present at any place of the training data; check the ranges and splits.")
        key = place if balance == "place" else species
        order = np.argsort(key, kind="stable")
        self._place, self._species = place[order], species[order]
        self._start = np.flatnonzero(np.diff(key[order], prepend=-1))
        self._count = np.diff(np.append(self._start, key.size))

    def draw(self, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """See `Pairs`."""
        group = rng.integers(0, self._start.size, n)
        row = self._start[group] + (rng.random(n) * self._count[group]).astype(np.int64)
        return self._place[row].astype(np.int64), self._species[row].astype(np.int64)

    def presence(self, rows: np.ndarray) -> np.ndarray:
        """See `PairsWithAbsence`."""
        return (self._labels(rows) >= 0.5).astype(np.uint8)

    def values(self, modality: str, rows: np.ndarray) -> Any:
        """See `Pairs`."""
        return self._values[modality][rows]

    def draw_anywhere(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """See `Pairs`: rows of `globe`."""
        if not self._globe:
            raise RequestError("random negatives need layers at random places; none were prepared.")
        return rng.integers(0, len(self._globe["location"]), n)

    def values_anywhere(self, modality: str, where: np.ndarray) -> Any:
        """See `Pairs`."""
        return self._globe[modality][where]


class _ModalityRows:
    """The values of a training set in one modality, indexed like an array."""

    def __init__(self, data: TrainingSet, modality: str) -> None:
        self.data, self.modality = data, modality

    def __len__(self) -> int:
        return len(self.data.places.lonlat)

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        return self.data.values(self.modality, rows)


def presence(data: TrainingSet, rows: np.ndarray) -> np.ndarray:
    """(n, species) float32 at places of a training set: the highest probability of any source; 0 if none knows."""
    out = np.zeros((len(rows), len(data.species)), np.float32)
    for block, columns in zip(data.blocks, data.columns, strict=True):
        known = np.flatnonzero(block.known(rows))
        at = np.ix_(known, columns)
        out[at] = np.maximum(out[at], block.probability(rows[known])[0])
    return out


def range_pairs(
    data: TrainingSet, groups: np.ndarray, balance: str = "place", uniform: str = "area", seed: int = 0
) -> RangePairs:
    """Observations from `groups` of the places of a training set.

    As negatives, GLOBE_PLACES random places, less those without a known environment; `uniform` as for
    `random_places`.
    """
    p = data.places
    where = np.concatenate([np.arange(s, s + c) for s, c in zip(p.start[groups], p.count[groups], strict=True)])
    lonlat = random_places(GLOBE_PLACES, np.random.default_rng(seed), uniform)
    layers = LayerSamples.read(lonlat, data.inputs, *data.crop)
    environment, satellite = layers.environment[layers.position], layers.crops[layers.position]
    known = ~np.isnan(environment).any(axis=1)
    location = np.concatenate([lonlat, np.zeros((len(lonlat), 1))], axis=1) if data.seasonal else lonlat
    globe = {"location": location[known], "satellite": satellite[known], "environment": environment[known]}
    values = {m: _ModalityRows(data, m) for m in MODALITIES} | {"text": data.species_rows}
    return RangePairs(values, lambda rows: presence(data, rows), where, balance, globe)


class DatasetPairs:
    """The observations of a published dataset; files are read again for each batch.

    balance: as for `RangePairs`; uniform: of random places, see `random_places`. The text of a species is a string.
    """

    def __init__(self, dataset: Dataset, balance: str = "place", uniform: str = "area") -> None:
        _check_balance(balance)
        self.dataset, self.balance, self.uniform = dataset, balance, uniform
        self.modalities = (*dataset.modalities, "text")
        self.species, self.places = len(dataset.classes), len(dataset)
        self._order = np.argsort(dataset.labels, kind="stable")
        self._start = np.flatnonzero(np.diff(dataset.labels[self._order], prepend=-1))
        self._count = np.diff(np.append(self._start, len(dataset)))
        self._environment = dataset.values("environment") if "environment" in dataset.modalities else None

    def draw(self, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """See `Pairs`."""
        if self.balance == "place":
            rows = rng.integers(0, self.places, n)
        else:
            group = rng.integers(0, self._start.size, n)
            rows = self._order[self._start[group] + (rng.random(n) * self._count[group]).astype(np.int64)]
        return rows, self.dataset.labels[rows]

    def values(self, modality: str, rows: np.ndarray) -> Any:
        """See `Pairs`."""
        if modality == "text":
            return [self.dataset.classes[k].text for k in rows]
        kept = self._environment if modality == "environment" else None
        values = self.dataset.values(modality) if kept is None else kept
        if isinstance(values, np.ndarray):
            return values[rows]
        return read_values(modality, [values[k] for k in rows])

    def draw_anywhere(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """See `Pairs`: positions (n, 2) (lon, lat)."""
        return random_places(n, rng, self.uniform)

    def values_anywhere(self, modality: str, where: np.ndarray) -> Any:
        """See `Pairs`. Raises RequestError for a modality that has values at observations only."""
        if modality == "location":
            return where
        if modality == "environment" and self.dataset.environment_file:
            return published_array(self.dataset.environment_file).sample(*where.T)[0]
        raise RequestError(
            f"{modality} has no values at random places, which the loss 'location' needs; choose 'supcon' or 'infonce'."
        )


def _check_balance(name: str) -> None:
    if name not in BALANCES:
        raise RequestError(f"balance {name!r} is not known; choose {' or '.join(BALANCES)}.")


def halves(dataset: Dataset, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Rows of a dataset in two random halves; a class with two observations or more is in both.

    For choosing on one and testing on the other, where a dataset has no split of its own.
    """
    order = np.random.default_rng(seed).permutation(len(dataset))
    order = order[np.argsort(dataset.labels[order], kind="stable")]
    return np.sort(order[::2]), np.sort(order[1::2])
