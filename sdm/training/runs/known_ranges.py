"""The table of known ranges of a trained model: fitted, measured and written (`sdm.models.known_ranges`).

The vectors of species with small ranges are learned from few places, so their probabilities are too low where they
live. For ranges of up to `WHOLE` cells the logit gets an offset, less a drop with the distance to the range; the offset
is such that the area at 0.5 is `AREA` times that of the range. Both fade out towards `FADED` cells. A larger range gets
a lift only in its outposts, parts of a few cells apart from the others, and in its inner cells, those between four
others of it, where half of the places or more are below 0.5: as much as half of them need. Its other cells are at its
edge, where the atlas is coarser than the model. The calibration of a model is that of its first source; the species of
polygons get an offset whatever their size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sdm.engine.encode import embed_positions
from sdm.files.paths import replace_file
from sdm.layers.landmask import LandMask
from sdm.models.bundled import BundledModel
from sdm.models.config import KNOWN_RANGES
from sdm.models.folder import read_folder
from sdm.models.known_ranges import KnownRange, pack_known_ranges
from sdm.names import Resolution, Taxon
from sdm.names.habitat import mask_for
from sdm.request import Sampling
from sdm.request.box import KM_PER_DEGREE
from sdm.request.choices import MASKS
from sdm.training.data.labels import PackedLabels, Places
from sdm.training.data.range_parts import FADED, RangeParts, cell_boxes, range_parts
from sdm.training.data.ranges import RangeRaster
from sdm.training.data.source import Source
from sdm.training.data.sources import Polygons, Ranges, open_sources
from sdm.training.measures.range_area import (
    CLASSES,
    RangeScore,
    by_size,
    offset_to_area,
    range_score,
    size_class,
)
from sdm.training.measures.scores import average_precision
from sdm.training.recipe.range_recipe import Recipe
from sdm.training.runs.folder import Log

WHOLE = 10
"""Cells up to which the known range counts fully."""
AREA = 1.1
"""Area at 0.5 over that of the range, as far as it is mapped, that offsets are fitted to."""
DROP = 8.0
"""Logits by which a place is less likely at the reach of the range and beyond: about 1 in 3,000."""
SHOWN = 0.2
"""Logit that some place in each small range has at least: a little above 0.5."""
MOST = 12.0
"""Logits: largest offset."""
STEP = 0.5
"""Logits between the lifts of parts of larger ranges."""
FINE, COARSE, SEA = 0.15, 0.5, 2.0
"""Degrees between the places in small ranges, on other land and at sea."""
FINEST = 0.02
"""Degrees between the places in ranges in which no other place is mapped: small islands."""
LAND = "land"
AT_ONCE = 64
"""Species compared with all places at once: 80 MB."""


def weight(size: float) -> float:
    """How much the known range of a species counts: 1 up to `WHOLE` cells, 0 from `FADED` on."""
    if size <= WHOLE:
        return 1.0
    return max(0.0, math.log(FADED / size) / math.log(FADED / WHOLE))


@dataclass(frozen=True)
class World:
    """Places all over the world with their embeddings, and the area that each stands for."""

    lon: np.ndarray
    lat: np.ndarray
    area: np.ndarray
    """(N,) km2."""
    mapped: dict[str, np.ndarray]
    """(N,) bool for the masks land, sea and none."""
    embeddings: np.ndarray
    """(N, dim) float16 unit vectors."""

    @property
    def places(self) -> Places:
        """Of no source."""
        none = np.zeros(self.lon.size, np.int8)
        return Places.single(np.stack([self.lon, self.lat], axis=1), none, none - 1, np.arange(self.lon.size))


def fit_known_ranges(recipe: Recipe, folder: Path, log: Log) -> dict[str, Any]:
    """Fit the table of the model in a folder to the ranges of its recipe, write it, and return its measures.

    {source: {"model", "with_known_ranges": measures by size of range (`by_size`)}}; {}, and no table, for a recipe
    without small ranges.
    The model's calibration for all its modalities is used.
    """
    model = BundledModel(folder.resolve(), *read_folder(folder.resolve(), made_here=True))
    sources = open_sources(recipe.data.source, model.taxa, recipe.optimiser.seed)
    species = {name.lower() for name in model.taxa.by_name}
    parts = {
        k: {name: part for name, part in range_parts(source) if name.lower() in species and part.size > 0}
        for k, source in enumerate(sources)
    }
    if not any(part.boxes.size or part.outposts or part.inner.size for of in parts.values() for part in of.values()):
        return {}
    world = make_world(model, {name: part for of in parts.values() for name, part in of.items()})
    log(f"known ranges: {world.lon.size} places of the world")
    table: dict[str, KnownRange] = {}
    metrics: dict[str, Any] = {}
    for k, source in enumerate(sources):
        if parts[k]:
            known, before, after = _fit_source(model, source, parts[k], world)
            table |= known
            sizes = {name: part.size for name, part in parts[k].items()}
            metrics[source.name] = {"model": by_size(before, sizes), "with_known_ranges": by_size(after, sizes)}
            for how, classes in metrics[source.name].items():
                for label, found in classes.items():
                    log(f"ranges {source.name}, {how}, {label} cells: {_text(found)}")
    vocabulary = (folder / "vocabulary.txt").read_text(encoding="utf-8").split("\n")
    replace_file(folder / KNOWN_RANGES, pack_known_ranges(table, [token for token in vocabulary if token]))
    return metrics


def _text(found: dict[str, float]) -> str:
    return (
        f"{found['species']} species, {found['reach']:.1%} reach 0.5, recall {found['recall']:.3f}, precision "
        f"{found['precision']:.3f}, area {found['area_ratio']:.2f} (expected {found['expected_ratio']:.2f})"
    )


def _fit_source(
    model: BundledModel, source: Source, parts: dict[str, RangeParts], world: World
) -> tuple[dict[str, KnownRange], dict[str, RangeScore], dict[str, RangeScore]]:
    """The known ranges of the species of a source, and the scores of the model without and with them."""
    block = source.block(world.places, -2)
    assert isinstance(block.table, PackedLabels)
    scale, bias = model.calibration(model.modalities, source.settings.group)
    table: dict[str, KnownRange] = {}
    before: dict[str, RangeScore] = {}
    after: dict[str, RangeScore] = {}
    columns = [k for k, name in enumerate(source.species) if name in parts]
    for start in range(0, len(columns), AT_ONCE):
        some = columns[start : start + AT_ONCE]
        taxa = [model.taxa.by_name[source.species[column].lower()] for column in some]
        vectors = np.stack([model.species_embedding(Resolution(t.name, t, True, "")) for t in taxa])
        logits = _logits(world.embeddings, vectors, scale, bias)
        for k, taxon in enumerate(taxa):
            part = parts[taxon.name]
            there = np.flatnonzero(_mapped(model, world, taxon) & (block.rows >= 0))
            lon, lat, area, logit = world.lon[there], world.lat[there], world.area[there], logits[k][there]
            if part.boxes.size and isinstance(source, Polygons):
                inside = in_boxes(part.boxes, lon, lat)  # polygons may be too small for any place
            else:
                inside = block.table.column(block.rows[there], some[k])
            known = _fit(part, logit, inside, area, (lon, lat), isinstance(source, Polygons))
            if isinstance(source, Ranges) and (part.outposts or part.inner.size):
                known = _lifted(part, source.raster, logit, block.rows[there])
            before[taxon.name] = range_score(logit, inside, area)
            moved = logit + known.shift(lon, lat) if known.adds else logit
            after[taxon.name] = range_score(moved, inside, area)
            table[taxon.name] = replace(known, highest=after[taxon.name].highest, alone=before[taxon.name].highest)
    return table, before, after


def held_out_by_size(
    source: Source, cosines: np.ndarray, scale: float, label: np.ndarray, lonlat: np.ndarray
) -> dict[str, dict[str, float]]:
    """How well the species of a raster are ranked at held-out cells, by the size of their ranges.

    Parameters
    ----------
    source : a source of ranges; for others the result is {}.
    cosines, label : (N, S) at one place in each held-out cell.
    scale : of the cosines.
    lonlat : (N, 2) degrees, of the places.

    Returns
    -------
    {class of size, and "all": {"species", "ap", "ap_with_known_range"}}, means over the species with a presence in a
    held-out cell. A known range consists of the cells that are not held out.
    """
    if not isinstance(source, Ranges):
        return {}
    kept = np.ones(len(source.raster.presence), dtype=bool)
    kept[source.raster.cells(*lonlat.T)] = False
    found: dict[str, list[tuple[float, float]]] = {}
    for k, (_, part) in enumerate(range_parts(source, kept)):
        present = label[:, k] > 0
        if not present.any() or present.all():
            continue
        logit = scale * cosines[:, k]
        share = weight(part.size) if part.boxes.size else 0.0
        known = KnownRange(part.boxes, 0.0, DROP * share, part.reach, 0.0, 0.0)
        moved = logit + known.shift(*lonlat.T) if share else logit
        pair = average_precision(logit, present), average_precision(moved, present)
        for group in (size_class(part.size + present.sum()), "all"):
            found.setdefault(group, []).append(pair)
    return {group: _mean_precisions(found[group]) for group in (*CLASSES, "all") if group in found}


def _mean_precisions(pairs: Sequence[tuple[float, float]]) -> dict[str, float]:
    alone, with_known_range = np.mean(pairs, axis=0).tolist()
    return {"species": len(pairs), "ap": alone, "ap_with_known_range": with_known_range}


def _fit(
    part: RangeParts,
    logit: np.ndarray,
    inside: np.ndarray,
    area: np.ndarray,
    lonlat: tuple[np.ndarray, np.ndarray],
    exact: bool,
) -> KnownRange:
    """What a species gets, from logits (N,) at the places where it is mapped.

    `exact`: the area of its range is known whatever its size, as that of polygons is.
    """
    nothing = KnownRange(part.boxes[:0], 0.0, 0.0, part.reach, 0.0, 0.0)
    share = weight(part.size) if part.boxes.size else 0.0
    if (share > 0.0 or exact) and inside.any():
        known = replace(nothing, boxes=part.boxes, drop=DROP * share) if share > 0.0 else nothing
        moved = logit + known.shift(*lonlat)
        offset = float(np.clip(offset_to_area(moved, area, AREA * float(area[inside].sum())), -MOST, MOST))
        # Whatever lies outside: the best place of the range is shown.
        offset = max(offset * (1.0 if exact else share), SHOWN - float(moved[inside].max()))
        return replace(known, offset=offset)
    return nothing


def _lifted(part: RangeParts, raster: RangeRaster, logit: np.ndarray, cells: np.ndarray) -> KnownRange:
    """What a species of a larger range gets, from logits (N,) at places and the cells (N,) that these lie in."""
    number = np.full(raster.shape[0] * raster.shape[1], -1)
    number[part.inner] = np.arange(part.inner.size)
    for k, apart in enumerate(part.outposts):
        number[apart] = part.inner.size + k
    there = number[cells] >= 0
    medians = pd.Series(logit[there]).groupby(number[cells[there]]).median()
    lacking = medians[medians < 0.0]
    # In steps, so that neighbours share a box.
    steps = np.ceil((SHOWN - lacking) / STEP).astype(int)
    boxes, lifts = [np.empty((0, 4), np.float32)], [np.empty(0, np.float32)]
    for step, some in steps.groupby(steps):
        own = cell_boxes(raster, np.flatnonzero(np.isin(number, some.index)))
        boxes.append(own)
        lifts.append(np.full(len(own), min(step * STEP, MOST), np.float32))
    return KnownRange(np.concatenate(boxes), 0.0, 0.0, 0.5 * part.reach, 0.0, 0.0, np.concatenate(lifts))


def in_boxes(boxes: np.ndarray, lon: np.ndarray, lat: np.ndarray) -> np.ndarray:
    """(N,) bool: whether positions lie in any of some boxes (K, 4)."""
    out = np.zeros(lon.size, dtype=bool)
    for west, south, east, north in boxes.tolist():
        out |= (lon >= west) & (lon <= east) & (lat >= south) & (lat <= north)
    return out


def _logits(embeddings: np.ndarray, vectors: np.ndarray, scale: float, bias: float) -> np.ndarray:
    """(S, N) float32 of places (N, dim) and species (S, dim)."""
    out = np.empty((len(vectors), len(embeddings)), dtype=np.float32)
    for start in range(0, len(embeddings), 8192):
        out[:, start : start + 8192] = vectors @ embeddings[start : start + 8192].astype(np.float32).T
    out *= scale
    out += bias
    return out


def _mapped(model: BundledModel, world: World, taxon: Taxon) -> np.ndarray:
    """(N,) bool: the places at which maps of a taxon show a value."""
    mapped = world.mapped[mask_for(taxon)]
    extent = model.extent(taxon.group)
    if extent is None:
        return mapped
    west, south, east, north = extent
    return mapped & (world.lon >= west) & (world.lon <= east) & (world.lat >= south) & (world.lat <= north)


def make_world(model: BundledModel, parts: Mapping[str, RangeParts]) -> World:
    """Places all over the world, closer together in small ranges, with what a model makes of them."""
    mask = LandMask()
    fine, islands = [np.empty((0, 2))], [np.empty((0, 2))]
    for name, part in parts.items():
        if not part.boxes.size or part.size > WHOLE:
            continue
        own = _grid_in_boxes(part.boxes, FINE)
        own = own[mask.keep(LAND, *own.T)]
        fine.append(own)
        if not own.size and mask_for(model.taxa.by_name[name.lower()]) == LAND:
            own = _grid_in_boxes(part.boxes, FINEST)
            islands.append(own[mask.keep(LAND, *own.T)])
    dense = np.unique(np.concatenate(fine), axis=0)
    points = [(dense, FINE), (np.unique(np.concatenate(islands), axis=0), FINEST)]
    taken = np.unique(_squares(dense, COARSE))
    for step, kind in ((COARSE, LAND), (SEA, "sea")):
        grid = np.stack(np.meshgrid(_centres(-180, 180, step), _centres(model.domain[0], 90, step)), axis=-1)
        grid = grid.reshape(-1, 2)
        free = mask.keep(kind, *grid.T) & ~np.isin(_squares(grid, COARSE), taken)
        points.append((grid[free], step))
    lonlat = np.concatenate([p for p, _ in points])
    side = np.concatenate([np.full(len(p), step * KM_PER_DEGREE) for p, step in points])
    lon, lat = (np.ascontiguousarray(a) for a in lonlat.T)
    embeddings, known = embed_positions(model, Sampling(), lon, lat)
    lon, lat, side = lon[known], lat[known], side[known]
    mapped = {kind: mask.keep(kind, lon, lat) for kind in MASKS}
    return World(lon, lat, side**2 * np.cos(np.radians(lat)), mapped, embeddings[known].astype(np.float16))


def _centres(low: float, high: float, step: float) -> np.ndarray:
    """Centres of the squares of a grid between two coordinates."""
    return (np.arange(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)) + 0.5) * step


def _squares(lonlat: np.ndarray, step: float) -> np.ndarray:
    """(N,) numbers of the squares of a grid that hold positions (N, 2)."""
    col, row = np.floor(lonlat / step).astype(np.int64).T
    return row * 1_000_000 + col


def _grid_in_boxes(boxes: np.ndarray, step: float) -> np.ndarray:
    """(N, 2) (lon, lat) of all centres of a grid that lie in any of some boxes (K, 4)."""
    found = [np.empty((0, 2))]
    for west, south, east, north in boxes.tolist():
        # In whole steps, so that a place has the same bits in each box.
        cols = np.arange(math.ceil(west / step - 0.5), math.floor(east / step - 0.5) + 1)
        rows = np.arange(math.ceil(south / step - 0.5), math.floor(north / step - 0.5) + 1)
        found.append((np.stack(np.meshgrid(cols, rows), axis=-1).reshape(-1, 2) + 0.5) * step)
    return np.unique(np.concatenate(found), axis=0)
