"""Everything the training loop reads, gathered once: places, labels, layers, names."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from sdm.encoders.text import tokens
from sdm.layers.environment import Environment, Input
from sdm.layers.landmask import LandMask
from sdm.layers.satellite import Satellite
from sdm.names import TaxonTable
from sdm.training.ranges import Places, RangePolygons, RangeRaster, draw_places
from sdm.training.recipe import Recipe

TEMPERATURE_LIKE = (1, 4, 5, 6, 7, 8, 9, 10, 11, 15)
RAIN = (12, 13, 14, 16, 17, 18, 19)
IGBP_CLASSES = range(17)
AROUND = tuple(
    f"mean{km}km-{name}"
    for km in (100, 300)
    for name in (
        *(f"bio{n}" for n in (1, 4, 5, 6, 8, 9, 12, 13, 14, 15, 18, 19)),
        *("height", "depth", "relief"),
        *(f"landcover{k}" for k in (0, 1, 2, 4, 5, 7, 8, 9, 10, 12, 15, 16)),
    )
)
"""Bands of surroundings.tif."""


def environment_inputs() -> list[Input]:
    """The environment vector before standardisation: 17 bioclim, terrain, land-cover fractions, their surroundings."""
    inputs = [Input(f"bio{n}", "log1p" if n in RAIN else "identity") for n in sorted(TEMPERATURE_LIKE + RAIN)]
    inputs += [Input("elevation", t) for t in ("land_km", "sea_km", "symlog")]
    inputs += [Input("relief", "log1p")]
    inputs += [Input("landcover", "class", value=k) for k in IGBP_CLASSES]
    return inputs + [Input(name) for name in AROUND]


@dataclass(frozen=True)
class Prepared:
    """The training set.

    `environment` (P, inputs) standardised float32; `crops` (P, size, size, 3) uint8; `polygon_rows`
    (P,) row of `polygon_labels` (rows, ceil(T / 8)) or -1 where no polygon reaches; `vocabulary`
    and `species_rows` (S, ranks) index the text tower; species are raster species, then polygon species.
    """

    places: Places
    raster: RangeRaster
    environment: np.ndarray
    crops: np.ndarray
    inputs: list[Input]
    polygon_species: list[str]
    polygon_labels: np.ndarray
    polygon_rows: np.ndarray
    vocabulary: list[str]
    species_rows: np.ndarray
    polygon_extent: tuple[float, float, float, float] | None
    """(west, south, east, north) within which polygon species are labelled; nothing is known outside."""

    @property
    def species(self) -> list[str]:
        """All species, in the order of label columns."""
        return self.raster.species + self.polygon_species

    def labels(self, index: np.ndarray) -> np.ndarray:
        """Presence (N, S) uint8 at places `index`."""
        mammals = self.raster.labels(self.places.cell[index])
        if not self.polygon_species:
            return mammals
        rows = self.polygon_rows[index]
        packed = self.polygon_labels[np.maximum(rows, 0)]
        trees = np.unpackbits(packed, axis=1)[:, : len(self.polygon_species)]
        trees[rows < 0] = 0
        return np.concatenate([mammals, trees], axis=1)


def prepare(recipe: Recipe, folder: Path, log=print) -> Prepared:
    """Gather the training set of a recipe; `folder` is the model folder that holds `taxa.csv`."""
    taxa = TaxonTable.load(folder)
    lineages = {t.name: t.lineage for t in taxa}
    data = recipe.data
    raster = RangeRaster.phylacine(data.phylacine, set(lineages))
    polygons = RangePolygons.read(data.trees) if data.trees else None
    if polygons is not None:
        keep = [i for i, s in enumerate(polygons.species) if s in lineages]
        polygons = RangePolygons([polygons.species[i] for i in keep], polygons.geometry[keep])
    mask = LandMask()
    places = draw_places(
        raster, lambda lon, lat: mask.keep("land", lon, lat), polygons,
        data.points_per_cell, data.points_per_cell_trees, data.points_per_cell_sea, recipe.optimiser.seed,
    )  # fmt: skip
    log(f"{len(raster.species)} raster species, {len(polygons.species) if polygons else 0} polygon species, "
        f"{len(places.cell)} places in {int((places.count > 0).sum())} cells")  # fmt: skip
    lon, lat = places.lonlat.T
    raw = Environment(environment_inputs()).sample(lon, lat, standardise=False)
    inputs = [
        replace(i, mean=float(raw[:, k].mean()), std=float(raw[:, k].std() + 1e-3))
        for k, i in enumerate(environment_inputs())
    ]
    environment = Environment(inputs).sample(lon, lat)
    log(f"environment {environment.shape}")
    size, pixel = recipe.architecture.satellite["size"], recipe.architecture.satellite["pixel"]
    satellite = Satellite(size, pixel)
    crops = np.concatenate([satellite.crops(lon[i : i + 20000], lat[i : i + 20000]) for i in range(0, lon.size, 20000)])
    log(f"crops {crops.shape}")
    rows, labels, names = np.full(lon.size, -1), np.zeros((0, 0), np.uint8), []
    if polygons is not None:
        west, south, east, north = polygons.bounds
        near = np.flatnonzero((lon >= west) & (lon <= east) & (lat >= south) & (lat <= north))
        rows[near] = np.arange(near.size)
        labels, names = np.packbits(polygons.labels(lon[near], lat[near]), axis=1), polygons.species
    species = raster.species + list(names)
    vocabulary = sorted({t for s in species for t in tokens(lineages[s])})
    index = {t: k for k, t in enumerate(vocabulary)}
    species_rows = np.array([[index[t] for t in tokens(lineages[s])] for s in species])
    log(f"{len(species)} species, {len(vocabulary)} tokens")
    return Prepared(
        places,
        raster,
        environment,
        crops,
        inputs,
        list(names),
        labels,
        rows,
        vocabulary,
        species_rows,
        None if polygons is None else tuple(float(v) for v in polygons.bounds),
    )
