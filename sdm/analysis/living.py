"""What lives at a place or in a region: every species that the models know there."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from sdm.engine.compare import score_embeddings
from sdm.engine.places import Places, limit_pixels
from sdm.engine.setup import open_grid, open_places
from sdm.engine.targets import limited, make_target, probability
from sdm.engine.tile import embed_tile, mappable
from sdm.errors import BoxError, RequestError
from sdm.grid import WGS84, Grid, Tile, transformer
from sdm.models.registry import list_models, open_model
from sdm.names import Resolution, Taxon
from sdm.request import Area, Sampling
from sdm.request.months import month_name

if TYPE_CHECKING:
    from sdm.index import Index
    from sdm.models.protocol import Model

MOST_PIXELS = 20_000
"""Places of a region that are looked at, unless a resolution is given."""
POINT = 1e-4
"""Degrees of the pixel around a point: some ten metres."""
_NEGLIGIBLE = 1e-4


@dataclass(frozen=True)
class Inhabitant:
    """A species of a place or a region."""

    model: str
    taxon: Taxon
    probability: float
    """At the place; in a region, the highest."""
    mean: float
    """Over the area of its habitat in the region."""
    expected_km2: float
    """Sum of probability times area."""

    def row(self, *, of_point: bool) -> dict[str, Any]:
        """The columns of a table."""
        common = self.taxon.common[0] if self.taxon.common else ""
        row: dict[str, Any] = {
            "species": self.taxon.name,
            "common_name": common,
            "group": self.taxon.group,
            "model": self.model,
        }
        row["probability"] = round(self.probability, 4)
        if not of_point:
            row |= {"mean": round(self.mean, 4), "expected_km2": round(self.expected_km2, 3)}
        return row


@dataclass(frozen=True)
class Living:
    """The species of a place or a region, the likeliest first."""

    species: tuple[Inhabitant, ...]
    notes: tuple[str, ...]


def living_at(lon: float, lat: float, least: float = 0.5, **options: Any) -> Living:
    """The species at a position, degrees. Options, and what is raised, as of `living_in`."""
    if not (-180.0 <= lon <= 180.0 and -90.0 <= lat <= 90.0):
        raise BoxError(f"--at {lon:g} {lat:g} is not on the globe; give the longitude first, then the latitude.")
    south, north = max(lat - POINT / 3, -90.0), min(lat + POINT / 3, 90.0)
    west, east = lon - POINT / 3, lon + POINT / 3
    box = ((west + 180.0) % 360.0 - 180.0, south, (east + 180.0) % 360.0 - 180.0, north)
    area = Area(bbox=box) if options.get("index") is not None else Area(bbox=box, resolution=POINT)
    return _living(area, least, (lon, lat), **options)


def living_in(area: Area, least: float = 0.5, **options: Any) -> Living:
    """The species of a box or region.

    Parameters
    ----------
    area : where; without a resolution, some 20,000 places of it are looked at.
    least : probability, 0 to 1, that a species reaches somewhere.
    models : names or folders of models; by default all bundled ones.
    month : 1 to 12, for the seasonal models; by default the whole year.
    origin : native, or all: with the ranges of introduced populations.
    index : an opened region index, which has one model, in place of encoding.
    device : as of `sdm.plan`.

    Raises
    ------
    SdmError : a subclass, for an area or a model that cannot be used.
    """
    return _living(area, least, None, **options)


def _living(
    area: Area,
    least: float,
    point: tuple[float, float] | None,
    models: Sequence[str] = (),
    month: int = 0,
    origin: str = "native",
    index: Index | None = None,
    device: str = "cpu",
) -> Living:
    found: list[Inhabitant] = []
    notes: list[str] = []
    opened = [index.find_model(models[0] if models else None)] if index is not None else _models(models)
    if month and index is None and not any(model.seasonal for model in opened):
        raise RequestError(f"no model here tells months apart; omit the month {month_name(month)}.")
    grid = None
    for model in opened:
        if index is not None:
            places = index.places_in(model, area, Sampling(month=month or None), device)
        else:
            # One grid, whose region and masks are the same for all models.
            grid = grid or _grid(area)
            own = Sampling(month=month if model.seasonal and month else None, step=1 if point else None)
            places = open_places(model, grid, own, device)
            if month and not model.seasonal:
                notes.append(f"Model {model.name} does not tell months apart; its species are those of the whole year.")
        found += _of_model(places, least, point, origin)
    return Living(tuple(sorted(found, key=lambda one: (-one.probability, -one.mean, one.taxon.name))), tuple(notes))


def _models(names: Sequence[str]) -> list[Model]:
    models: list[Model] = [open_model(name) for name in names] if names else list(list_models())
    for model in models:
        if names and not model.calibrated:
            raise RequestError(f"model {model.name!r} is not calibrated, so it gives no probability of species.")
    return [model for model in models if model.calibrated]


def _grid(area: Area) -> Grid:
    """The grid of an area, coarse enough to be looked at in seconds where no resolution is given."""
    grid = open_grid(area)
    if area.resolution is not None or grid.pixels <= MOST_PIXELS:
        return grid
    coarse = float(f"{grid.resolution * (grid.pixels / MOST_PIXELS) ** 0.5:.2g}")
    try:
        return open_grid(replace(area, resolution=coarse))
    except BoxError:  # a region so narrow that no pixel centre would lie in it
        return grid


def _of_model(places: Places, least: float, point: tuple[float, float] | None, origin: str) -> Iterator[Inhabitant]:
    """The species of one model that reach a probability."""
    from sdm.outputs.statistics import PixelArea

    model = places.model
    taxa = list(model.taxa)
    resolutions = [
        Resolution(taxon.name, taxon, True, "", (), origin if taxon.name in model.introduced else "native")
        for taxon in taxa
    ]
    score = probability(model, places.modalities)
    vectors = _vectors(model, resolutions)
    targets = [
        limited(make_target(model, r, vector, score), model, r, month=places.month)
        for r, vector in zip(resolutions, vectors, strict=True)
    ]
    pairs = [(target.mask, target.extent) for target in targets]
    habitats = list(dict.fromkeys(pairs))
    of = np.array([habitats.index(pair) for pair in pairs])
    highest, expected = np.zeros(len(taxa)), np.zeros(len(taxa))
    habitat_km2 = np.zeros(len(habitats))
    areas = PixelArea(places.grid.geobox)
    for tile in _tiles(places.grid, point):
        embeddings, pixels, *_ = embed_tile(places, tile)
        if not len(pixels):
            continue
        lon, lat = places.lonlat(*places.pixels(tile))
        keep = mappable(places, tile, habitats, lon, lat).reshape(len(habitats), -1)[:, pixels]
        km2 = np.broadcast_to(areas.block(tile.rows, tile.cols), tile.shape).ravel()[pixels] / 1e6
        habitat_km2 += keep @ km2
        of_pixels = lon.ravel()[pixels], lat.ravel()[pixels]
        scored = score_embeddings(embeddings, targets, places.here, _NEGLIGIBLE, lonlat=of_pixels)
        limits = limit_pixels(places.grid, tile, lon, lat, pixels)
        for k, values in ((k, values) for k, values in scored if values is not None):
            limits.apply(targets[k].limits, values)
            there = np.where(keep[of[k]], values, 0.0)
            highest[k] = max(highest[k], float(there.max()))
            expected[k] += float(there @ km2)
    for k in map(int, np.flatnonzero(highest >= least)):
        area = habitat_km2[of[k]]
        yield Inhabitant(model.name, taxa[k], float(highest[k]), expected[k] / area if area else 0.0, expected[k])


def _vectors(model: Model, resolutions: Sequence[Resolution]) -> np.ndarray:
    """The unit vectors (S, dim) of many species."""
    vectors = np.array(model.species_embeddings([resolution.taxon for resolution in resolutions]))
    for k, resolution in enumerate(resolutions):
        if resolution.origin == "all":
            vectors[k] = model.species_embedding(resolution)
    return vectors


def _tiles(grid: Grid, point: tuple[float, float] | None) -> Iterator[Tile]:
    """The tiles of a grid, or the pixel in which a position, degrees, lies."""
    if point is None:
        yield from grid.tiles()
        return
    x, y = point if grid.crs == WGS84 else transformer(WGS84, grid.crs).transform(*point)
    if grid.is_geographic:
        left, right = grid.geobox.boundingbox.left, grid.geobox.boundingbox.right
        x += 360.0 * round(((left + right) / 2 - x) / 360.0)
    column, row = (math.floor(value) for value in ~grid.geobox.affine @ (x, y))
    rows, columns = grid.shape
    row, column = min(max(row, 0), rows - 1), min(max(column, 0), columns - 1)
    yield Tile((0, 0), slice(row, row + 1), slice(column, column + 1))
