"""The training set of a recipe: places, label blocks, layers and names, read once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from sdm.errors import LayerError, RequestError
from sdm.files.fingerprint import of_files, of_parts
from sdm.files.paths import folder as resource_folder
from sdm.layers.environment import Environment, Input
from sdm.layers.satellite import Satellite
from sdm.models.encoders.text import FIRST_RANK, tokens
from sdm.names import RANKS, TaxonTable
from sdm.names.origin import lineage_of
from sdm.training.data.drawing import Box
from sdm.training.data.environment import environment_inputs
from sdm.training.data.labels import LabelBlock, Places
from sdm.training.data.source import Source
from sdm.training.data.sources import open_sources
from sdm.training.recipe.range_recipe import Recipe

CHUNK = 20_000
"""Places at which imagery is sampled at once."""


@dataclass(frozen=True)
class LayerSamples:
    """The layers at distinct positions, and the position of every place."""

    position: np.ndarray
    """(P,) row of the other arrays."""
    environment: np.ndarray
    """(N, inputs) float32, standardised."""
    crops: np.ndarray
    """(N, size, size, 3) uint8."""

    @classmethod
    def read(cls, lonlat: np.ndarray, inputs: Sequence[Input], size: int, pixel: float) -> LayerSamples:
        """At places (P, 2) (lon, lat); crops of `size` pixels of `pixel` degrees."""
        position, lon, lat = _distinct(lonlat)
        satellite = Satellite(size, pixel)
        crops = [satellite.crops(lon[i : i + CHUNK], lat[i : i + CHUNK]) for i in range(0, lon.size, CHUNK)]
        return cls(position, Environment(inputs).sample(lon, lat), np.concatenate(crops))


@dataclass(frozen=True)
class TrainingSet:
    """Everything that training reads."""

    sources: list[Source]
    places: Places
    blocks: list[LabelBlock]
    layers: LayerSamples
    inputs: list[Input]
    species: list[str]
    columns: list[np.ndarray]
    """For each block, the rows of its species in `species`."""
    vocabulary: list[str]
    """Tokens of the text tower."""
    species_rows: np.ndarray
    """(S, ranks) rows of the vocabulary."""
    groups: dict[str, Box]
    """{group of species: (west, south, east, north)} outside which nothing is known of the group."""
    seasonal: bool
    crop: tuple[int, float]
    """Size in pixels and degrees per pixel of the imagery."""
    fingerprint: str
    """Of every file that was read."""
    taxa: Path
    """The table of names."""

    def values(self, modality: str, index: np.ndarray) -> np.ndarray:
        """What an encoder reads at places: location (N, 2), or (N, 3) if seasonal, float32; environment; satellite."""
        if modality == "location":
            lonlat = self.places.lonlat[index].astype(np.float32)
            month = self.places.month[index].astype(np.float32)[:, None]
            return np.concatenate([lonlat, month], axis=1) if self.seasonal else lonlat
        table = self.layers.environment if modality == "environment" else self.layers.crops
        return table[self.layers.position[index]]

    def at(self, places: Places) -> TrainingSet:
        """The same set with other places."""
        blocks = [s.block(places, k) for k, s in enumerate(self.sources)]
        layers = LayerSamples.read(places.lonlat, self.inputs, *self.crop)
        return replace(self, places=places, blocks=blocks, layers=layers)

    @property
    def ranks(self) -> list[str]:
        """Names of the columns of `species_rows`."""
        return list(RANKS[FIRST_RANK:])


def prepare_training_set(
    recipe: Recipe, folder: Path, log: Callable[[str], None] = print, inputs: Sequence[Input] | None = None
) -> TrainingSet:
    """Read the training set of a recipe.

    Parameters
    ----------
    recipe : what to read
    folder : the model folder, which holds `taxa.csv`
    log : called with lines about what was read and left out
    inputs : the environment of a model to start from; by default it is standardised by mean and standard deviation
        over the places

    Raises
    ------
    LayerError : for a source that is not what its kind needs
    RequestError : for a group of species that taxa.csv does not have
    """
    taxa = TaxonTable.load(folder)
    _check_groups(recipe, taxa)
    sources = open_sources(recipe.data.source, taxa, recipe.optimiser.seed)
    for source in sources:
        for note in source.notes:
            log(f"{source.name}: {note}")
    seasonal = bool(recipe.architecture.location.get("season", False))
    places = _own_places(sources, recipe.optimiser.seed, seasonal)
    around_km = recipe.architecture.environment.get("around_km", (100, 300))
    places, standardised = _known_environment(places, environment_inputs(around_km), log)
    inputs = standardised if inputs is None else list(inputs)
    crop = (recipe.architecture.satellite["size"], recipe.architecture.satellite["pixel"])
    layers = LayerSamples.read(places.lonlat, inputs, *crop)
    log(f"environment {layers.environment.shape}, crops {layers.crops.shape}")
    blocks = [s.block(places, k) for k, s in enumerate(sources)]
    for block in blocks:
        log(f"{block.name}: {len(block.species)} species, labels at {int((block.rows >= 0).sum())} places")
    species = list(dict.fromkeys(n for b in blocks for n in b.species))
    number = {s: k for k, s in enumerate(species)}
    own = {t.name: t.lineage for t in taxa}
    lineages = {s: lineage_of(s, own) for s in species}
    vocabulary = sorted({t for s in species for t in tokens(lineages[s])})
    row = {t: k for k, t in enumerate(vocabulary)}
    table = Path(folder) / "taxa.csv"
    files = [*(f for s in sources for f in s.files), table, *sorted(resource_folder("data").glob("*.tif"))]
    return TrainingSet(
        sources=sources,
        places=places,
        blocks=blocks,
        layers=layers,
        inputs=inputs,
        species=species,
        columns=[np.array([number[s] for s in b.species]) for b in blocks],
        vocabulary=vocabulary,
        species_rows=np.array([[row[t] for t in tokens(lineages[s])] for s in species]),
        groups={s.settings.group: s.extent for s in sources if s.settings.group and s.extent},
        seasonal=seasonal,
        crop=crop,
        fingerprint=of_parts([of_files([f]) for f in files]),
        taxa=table,
    )


def _check_groups(recipe: Recipe, taxa: TaxonTable) -> None:
    known = sorted({t.group for t in taxa if t.group})
    for entry in recipe.data.source:
        if entry.group and entry.group not in known:
            raise RequestError(
                f"source {entry.name!r} has the group {entry.group!r}; those of taxa.csv are {', '.join(known)}."
            )


def _own_places(sources: Sequence[Source], seed: int, seasonal: bool) -> Places:
    """The places of all sources that have a share of the batches."""
    parts = [(k, s.places(seed)) for k, s in enumerate(sources) if s.settings.share > 0]
    places = Places.join([(k, p) for k, p in parts if p is not None])
    if not seasonal:
        places = places.without(places.month > 0)
    if not len(places.lonlat):
        raise LayerError(
            "the sources of the recipe have no places to learn from; polygons get some with points = 10000, and "
            "records by month need a seasonal model, location = { season = true }."
        )
    return places


def _known_environment(
    places: Places, inputs: Sequence[Input], log: Callable[[str], None]
) -> tuple[Places, list[Input]]:
    """(the places where the environment is known, the inputs standardised over them)."""
    position, lon, lat = _distinct(places.lonlat)
    raw = Environment(inputs).sample(lon, lat, standardise=False)
    unknown = np.isnan(raw).any(axis=1)
    if unknown.any():
        log(f"{int(unknown[position].sum())} places where the environment is not known are left out")
        places = places.without(unknown[position])
        position, lon, lat = _distinct(places.lonlat)
        raw = raw[~unknown]
    log(f"{len(places.lonlat)} places in {len(places.start)} groups")
    by_place = raw[position] if len(raw) != len(position) else raw
    standardised = [
        replace(i, mean=float(by_place[:, k].mean()), std=float(by_place[:, k].std() + 1e-3))
        for k, i in enumerate(inputs)
    ]
    return places, standardised


def _distinct(lonlat: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """((P,) index of the distinct position of each place, lon (N,), lat (N,) of those), in the order of the places."""
    _, first, position = np.unique(lonlat, axis=0, return_index=True, return_inverse=True)
    order = np.argsort(first)
    back = np.empty_like(order)
    back[order] = np.arange(order.size)
    kept = lonlat[first[order]]
    return back[position.reshape(-1)], np.ascontiguousarray(kept[:, 0]), np.ascontiguousarray(kept[:, 1])
