"""What lives at a place or in a region: every species that the models know there."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from sdm.engine.compare import PLACES_AT_ONCE, score_embeddings
from sdm.engine.places import Places, Target, limit_pixels
from sdm.engine.setup import open_grid, open_places
from sdm.engine.targets import calibration_group, limited, make_target, probability
from sdm.engine.tile import embed_tile, mappable
from sdm.errors import BoxError, RequestError
from sdm.grid import WGS84, Grid, Tile, transformer
from sdm.models.bundled import BundledModel
from sdm.models.joint import JointModel, member_of, members_of, spaces
from sdm.models.registry import list_models, open_model
from sdm.names import Resolution, Taxon
from sdm.names.habitat import mask_for
from sdm.request import Area, Sampling
from sdm.request.box import check_position
from sdm.request.months import month_name

if TYPE_CHECKING:
    from sdm.index import Index
    from sdm.models.protocol import Model

MOST_PIXELS = 20_000
"""Places of a region that are looked at, unless a resolution is given."""
POINT = 1e-4
"""Degrees of the pixel around a point: some ten metres."""
ROUNDING = 1e-3
"""Of a position, in pixels."""
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
    check_position(lon, lat)
    south, north = max(lat - POINT / 3, -90.0), min(lat + POINT / 3, 90.0)
    west, east = lon - POINT / 3, lon + POINT / 3
    box = ((west + 180.0) % 360.0 - 180.0, south, (east + 180.0) % 360.0 - 180.0, north)
    index = options.get("index")
    area = Area(bbox=box, resolution=POINT) if index is None else Area(max_pixels=index.grid.pixels)
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
    index : an opened region index in place of encoding; its species are those of all models that share its encoders.
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
    opened: Sequence[Model]
    opened = _models(models) if index is None else [index.find_model(models[0] if models else None)]
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


def _models(names: Sequence[str]) -> list[BundledModel | JointModel]:
    """The models, those that share their encoders as one: a place is encoded once for all of these."""
    if not names:
        return spaces(list_models())
    by_folder = {one.folder: one for name in names for one in members_of(open_model(name))}
    for model in by_folder.values():
        if not isinstance(model, BundledModel):
            raise RequestError(f"model {model.name!r} is not calibrated, so it gives no probability of species.")
    return spaces(model for model in by_folder.values() if isinstance(model, BundledModel))


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

    species = _Species(places, origin, least if point else _NEGLIGIBLE)
    highest, expected = np.zeros(len(species.taxa)), np.zeros(len(species.taxa))
    habitat_km2 = np.zeros(len(species.habitats))
    areas = PixelArea(places.grid.geobox)
    for tile in _tiles(places.grid, point):
        embeddings, pixels, *_ = embed_tile(places, tile)
        if not len(pixels):
            continue
        lon, lat = places.lonlat(*places.pixels(tile))
        keep = mappable(places, tile, species.habitats, lon, lat).reshape(len(species.habitats), -1)[:, pixels]
        km2 = np.broadcast_to(areas.block(tile.rows, tile.cols), tile.shape).ravel()[pixels] / 1e6
        habitat_km2 += keep @ km2
        of_pixels = lon.ravel()[pixels], lat.ravel()[pixels]
        there = species.within_reach(embeddings)
        targets = [species.target(k) for k in there]
        limits = limit_pixels(places.grid, tile, lon, lat, pixels)
        scored = score_embeddings(embeddings, targets, places.here, _NEGLIGIBLE, lonlat=of_pixels)
        for number, values in ((n, values) for n, values in scored if values is not None):
            k = there[number]
            limits.apply(targets[number].limits, values)
            mapped = np.where(keep[species.of[k]], values, 0.0)
            highest[k] = max(highest[k], float(mapped.max()))
            expected[k] += float(mapped @ km2)
    for k in map(int, np.flatnonzero(highest >= least)):
        area = habitat_km2[species.of[k]]
        mean = expected[k] / area if area else 0.0
        home = member_of(places.model, species.taxa[k]).name
        yield Inhabitant(home, species.taxa[k], float(highest[k]), mean, expected[k])


class _Species:
    """All species of a model; a target is made of those alone that may live at some places."""

    def __init__(self, places: Places, origin: str, floor: float) -> None:
        """`floor`: the probability below which a value does not matter."""
        model, self._month = places.model, places.month
        self.taxa, self._model = list(model.taxa), model
        self._resolutions = [
            Resolution(taxon.name, taxon, True, "", (), origin if taxon.name in model.introduced else "native")
            for taxon in self.taxa
        ]
        self._scores = [
            probability(member_of(model, r.taxon), places.modalities, calibration_group(r)) for r in self._resolutions
        ]
        self._vectors = _vectors(model, self._resolutions)
        pairs = [(mask_for(taxon), model.extent(taxon.group)) for taxon in self.taxa]
        self.habitats = list(dict.fromkeys(pairs))
        numbers = {pair: number for number, pair in enumerate(self.habitats)}
        self.of = np.array([numbers[pair] for pair in pairs])
        """Of each species, the number of its habitat."""
        self._targets: dict[int, Target] = {}
        known = [model.known_range(r.taxon) if r.origin == "native" else None for r in self._resolutions]
        self._floors = np.full(len(self.taxa), -np.inf)
        if 0.0 < floor < 1.0:
            for k, (one, score) in enumerate(zip(known, self._scores, strict=True)):
                gain = max(one.offset, 0.0) / score.scale if one is not None and one.adds else 0.0
                self._floors[k] = score.negligible(floor) - gain

    def within_reach(self, embeddings: np.ndarray) -> list[int]:
        """The species that may reach the floor at some of the places (N, dim)."""
        best = np.full(len(self.taxa), -np.inf)
        for start in range(0, len(embeddings), PLACES_AT_ONCE):
            cosines = self._vectors @ embeddings[start : start + PLACES_AT_ONCE].T
            np.maximum(best, cosines.max(axis=1), out=best)
        return np.flatnonzero(best >= self._floors).tolist()

    def target(self, k: int) -> Target:
        """The target of the k-th species."""
        if k not in self._targets:
            resolution = self._resolutions[k]
            made = make_target(self._model, resolution, self._vectors[k], self._scores[k])
            self._targets[k] = limited(made, self._model, resolution, month=self._month)
        return self._targets[k]


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
    rows, columns = grid.shape
    across, down = ~grid.geobox.affine @ (x, y)
    if not (-ROUNDING <= across <= columns + ROUNDING and -ROUNDING <= down <= rows + ROUNDING):
        west, south, east, north = grid.bbox
        raise BoxError(
            f"--at {point[0]:g} {point[1]:g} lies outside the region index, which covers {west:g} {south:g} {east:g} "
            f"{north:g} (west south east north); choose a place inside, or omit --index."
        )
    row, column = min(max(math.floor(down), 0), rows - 1), min(max(math.floor(across), 0), columns - 1)
    yield Tile((0, 0), slice(row, row + 1), slice(column, column + 1))
