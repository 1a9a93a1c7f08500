"""Everything that training reads, gathered once: places, label blocks, layers, names."""

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
from sdm.training.labels import Block, Places
from sdm.training.recipe import Recipe
from sdm.training.sources import Source, open_sources

TEMPERATURE_LIKE = (1, 4, 5, 6, 7, 8, 9, 10, 11, 15)
RAIN = (12, 13, 14, 16, 17, 18, 19)
IGBP_CLASSES = range(17)
AROUND = (
    *(f"bio{n}" for n in (1, 4, 5, 6, 8, 9, 12, 13, 14, 15, 18, 19)),
    *("height", "depth", "relief"),
    *(f"landcover{k}" for k in (0, 1, 2, 4, 5, 7, 8, 9, 10, 12, 15, 16)),
)
WIDELY = (
    *(f"bio{n}" for n in (1, 4, 5, 6, 12, 14, 15, 18)),
    *("height", "depth", "relief"),
    *(f"landcover{k}" for k in (0, 2, 10, 16)),
)
AROUND_KM = {100: AROUND, 300: AROUND, 900: WIDELY}
"""Widths and variables of the bands of surroundings.tif, `mean100km-bio1` and so on."""
CHUNK = 20_000
"""Places sampled at once."""


def environment_inputs(around_km: Sequence[int]) -> list[Input]:
    """The environment vector before standardisation: 17 bioclim, terrain, land-cover fractions, their surroundings.

    `around_km`: widths of the means around the place. Raises RequestError for one that surroundings.tif has not.
    """
    if unknown := [km for km in around_km if km not in AROUND_KM]:
        known = ", ".join(map(str, AROUND_KM))
        raise RequestError(f"[architecture] environment around_km has {unknown[0]!r}; surroundings.tif has {known}.")
    inputs = [Input(f"bio{n}", "log1p" if n in RAIN else "identity") for n in sorted(TEMPERATURE_LIKE + RAIN)]
    inputs += [Input("elevation", t) for t in ("land_km", "sea_km", "symlog")]
    inputs += [Input("relief", "log1p")]
    inputs += [Input("landcover", "class", value=k) for k in IGBP_CLASSES]
    return inputs + [Input(f"mean{km}km-{name}") for km in around_km for name in AROUND_KM[km]]


@dataclass(frozen=True)
class Features:
    """The layers at distinct positions, and which of them a place has.

    `spot` (P,) row of the others; `environment` (N, inputs) standardised float32; `crops` (N, size, size, 3) uint8.
    """

    spot: np.ndarray
    environment: np.ndarray
    crops: np.ndarray

    @classmethod
    def sample(cls, lonlat: np.ndarray, inputs: Sequence[Input], size: int, pixel: float) -> Features:
        """At places (P, 2) (lon, lat); `pixel`: degrees of imagery."""
        spot, lon, lat = _distinct(lonlat)
        satellite = Satellite(size, pixel)
        crops = [satellite.crops(lon[i : i + CHUNK], lat[i : i + CHUNK]) for i in range(0, lon.size, CHUNK)]
        return cls(spot, Environment(inputs).sample(lon, lat), np.concatenate(crops))


@dataclass(frozen=True)
class Prepared:
    """The training set.

    `columns` holds, for each block, the rows of its species in `species`; `vocabulary` and `species_rows` (S, ranks)
    index the text tower. `groups`: {group: (west, south, east, north)} outside which nothing is known of a group.
    """

    sources: list[Source]
    places: Places
    blocks: list[Block]
    features: Features
    inputs: list[Input]
    species: list[str]
    columns: list[np.ndarray]
    vocabulary: list[str]
    species_rows: np.ndarray
    groups: dict[str, tuple[float, float, float, float]]
    seasonal: bool
    crop: tuple[int, float]
    """Size in pixels and degrees per pixel of the imagery."""
    fingerprint: str
    """Of every file that was read."""
    taxa: Path
    """The table of names."""

    def values(self, modality: str, index: np.ndarray) -> np.ndarray:
        """What an encoder reads at places: location (N, 2) or, seasonal, (N, 3) float32; environment; satellite."""
        if modality == "location":
            lonlat = self.places.lonlat[index].astype(np.float32)
            month = self.places.month[index].astype(np.float32)[:, None]
            return np.concatenate([lonlat, month], axis=1) if self.seasonal else lonlat
        table = self.features.environment if modality == "environment" else self.features.crops
        return table[self.features.spot[index]]

    def at(self, places: Places) -> Prepared:
        """The same set with other places."""
        blocks = [s.block(places, k) for k, s in enumerate(self.sources)]
        return replace(
            self, places=places, blocks=blocks, features=Features.sample(places.lonlat, self.inputs, *self.crop)
        )

    @property
    def ranks(self) -> list[str]:
        """Names of the columns of `species_rows`."""
        return list(RANKS[FIRST_RANK:])


def prepare(
    recipe: Recipe, folder: Path, log: Callable[[str], None] = print, inputs: Sequence[Input] | None = None
) -> Prepared:
    """Gather the training set of a recipe; `folder` is the model folder that holds `taxa.csv`.

    `inputs` are those of a model to start from; by default the environment is standardised by its mean and spread
    over the places. Raises LayerError for a source that is not what its kind needs.
    """
    taxa = TaxonTable.load(folder)
    lineages = {t.name: t.lineage for t in taxa}
    seed = recipe.optimiser.seed
    known = sorted({t.group for t in taxa if t.group})
    for entry in recipe.data.source:
        if entry.group and entry.group not in known:
            raise RequestError(
                f"source {entry.name!r} has the group {entry.group!r}; those of taxa.csv are {', '.join(known)}."
            )
    sources = open_sources(recipe.data.source, taxa, seed)
    for source in sources:
        for note in source.notes:
            log(f"{source.name}: {note}")
    seasonal = bool(recipe.architecture.location.get("season", False))
    parts = [(k, s.places(seed)) for k, s in enumerate(sources) if s.data.share > 0]
    places = Places.join([(k, p) for k, p in parts if p is not None])
    if not seasonal:
        places = places.without(places.month > 0)
    if not len(places.lonlat):
        raise LayerError(
            "the sources of the recipe bring no place to learn from; polygons bring some with points = 10000, and "
            "records by month need a seasonal model, location = { season = true }."
        )
    raw_inputs = environment_inputs(recipe.architecture.environment.get("around_km", (100, 300)))
    spot, lon, lat = _distinct(places.lonlat)
    raw = Environment(raw_inputs).sample(lon, lat, standardise=False)
    unknown = np.isnan(raw).any(axis=1)
    if unknown.any():
        log(f"{int(unknown[spot].sum())} places lie where the environment is not known and are left out")
        places = places.without(unknown[spot])
        spot, lon, lat = _distinct(places.lonlat)
        raw = raw[~unknown]
    log(f"{len(places.lonlat)} places in {len(places.start)} groups")
    if inputs is None:
        each = raw[spot] if len(raw) != len(spot) else raw
        inputs = [
            replace(i, mean=float(each[:, k].mean()), std=float(each[:, k].std() + 1e-3))
            for k, i in enumerate(raw_inputs)
        ]
    crop = (recipe.architecture.satellite["size"], recipe.architecture.satellite["pixel"])
    features = Features.sample(places.lonlat, inputs, *crop)
    log(f"environment {features.environment.shape}, crops {features.crops.shape}")
    blocks = [s.block(places, k) for k, s in enumerate(sources)]
    species = list(dict.fromkeys(n for b in blocks for n in b.species))
    number = {s: k for k, s in enumerate(species)}
    vocabulary = sorted({t for s in species for t in tokens(lineages[s])})
    index = {t: k for k, t in enumerate(vocabulary)}
    for block in blocks:
        log(f"{block.name}: {len(block.species)} species, labels at {int((block.rows >= 0).sum())} places")
    files = [f for s in sources for f in s.files]
    table = Path(folder) / "taxa.csv"
    files += [table, *sorted(resource_folder("data").glob("*.tif"))]
    return Prepared(
        sources=sources,
        places=places,
        blocks=blocks,
        features=features,
        inputs=list(inputs),
        species=species,
        columns=[np.array([number[s] for s in b.species]) for b in blocks],
        vocabulary=vocabulary,
        species_rows=np.array([[index[t] for t in tokens(lineages[s])] for s in species]),
        groups={s.data.group: s.extent for s in sources if s.data.group and s.extent},
        seasonal=seasonal,
        crop=crop,
        fingerprint=of_parts([of_files([f]) for f in files]),
        taxa=table,
    )


def _distinct(lonlat: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(which distinct position each place has (P,), lon (N,), lat (N,) of those), in the order of the places."""
    _, first, spot = np.unique(lonlat, axis=0, return_index=True, return_inverse=True)
    order = np.argsort(first)
    back = np.empty_like(order)
    back[order] = np.arange(order.size)
    kept = lonlat[first[order]]
    return back[spot.reshape(-1)], np.ascontiguousarray(kept[:, 0]), np.ascontiguousarray(kept[:, 1])
