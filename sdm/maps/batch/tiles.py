"""One tile of a batch: its embeddings compared with all species; chunks, statistics and pictures written."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sdm.engine.compare import score_embeddings, score_fits
from sdm.engine.places import Plan, limit_pixels
from sdm.engine.tile import mappable, measured_tile, stored_tile
from sdm.engine.trust import bands_of
from sdm.files import records, workspace
from sdm.grid import Tile
from sdm.maps.batch.plan import Batch
from sdm.maps.batch.texts import (
    AGREEMENT,
    STORE,
    agreement_metadata,
    bands_metadata,
    cube_metadata,
    labels,
    richness_metadata,
)
from sdm.outputs import cube, gallery
from sdm.outputs.metadata import MapMetadata
from sdm.outputs.overlay import levels
from sdm.outputs.statistics import PixelArea
from sdm.request import RangeRule

if TYPE_CHECKING:
    from odc.geo.geobox import GeoBox

AGREEMENT_STEPS = 256
"""Of agreement between 0 and 1, as it is stored: noise in its last digits would not compress."""
PICTURED = 512
"""Species whose pictures are drawn together, at most: 30 MB."""


@dataclass(frozen=True)
class Work:
    """The arguments that all tasks of a batch share; small."""

    plan: Plan
    batch: Batch
    store: Path
    tiles: Path
    tmp: Path
    new: Path
    command: str
    rule: RangeRule | None = None
    """Of the ranges that are written as well."""

    @classmethod
    def of(cls, batch: Batch, space: workspace.Workspace, command: str, rule: RangeRule | None = None) -> Work:
        """For a batch in a workspace."""
        # Absolute: a worker has its own working folder.
        new, tmp, tiles = (path.absolute() for path in (space.new, space.tmp, space.tiles))
        # The records and training places of fits stay here: no task needs them.
        fits = tuple(replace(one, case=None, review=None) for one in batch.job.fits)
        light = replace(batch, job=replace(batch.job, fits=fits))
        return cls(light.job.plan, light, new / STORE, tiles, tmp, new, command, rule)

    @property
    def mask(self) -> str:
        """The mask that all species share, else none: pixels outside it need no embedding."""
        masks = {target.mask for target in self.plan.targets}
        return masks.pop() if len(masks) == 1 else "none"

    @property
    def metadata(self) -> MapMetadata:
        """Metadata of the variable (species, y, x)."""
        return cube_metadata(self.batch, self.command)

    @property
    def richness(self) -> MapMetadata:
        """Metadata of the sum over the species."""
        return richness_metadata(self.batch, self.command)

    def create_store(self) -> None:
        """Make the empty store; it appears whole or not at all."""
        grid = self.plan.grid
        part = self.tmp / STORE
        further = agreement_metadata(self.batch)
        bands = bands_metadata(self.batch)
        cube.create(part, grid.geobox, grid.tile_size, labels(self.batch), self.metadata, self.richness, further, bands)
        part.rename(self.store)


def map_tile(tile: Tile, work: Work) -> str:
    """Compute a tile for all species, write its chunks and then its record; returns the device."""
    plan = work.plan
    device = plan.here
    codes, scales, pixels, agreement = stored_tile(plan, tile, work.mask)
    environment = None
    if plan.fitted:
        environment, known = _environment(plan, tile, pixels)
        codes, pixels, scales = codes[known], pixels[known], None if scales is None else scales[known]
    habitats, index = _habitats(work, tile, pixels)
    statistics = _Statistics(habitats, index, work.batch.threshold)
    chunks, pictures = _Chunks(work, tile, habitats, index), _Pictures(work, tile, habitats, index)
    scored: Iterable[tuple[int, np.ndarray | None]] = ()
    lon, lat = plan.lonlat(*plan.pixels(tile))
    if pixels.size and environment is not None:
        scored = score_fits(codes, environment, plan.targets, scales)
    elif pixels.size:
        where = lon.ravel()[pixels], lat.ravel()[pixels]
        scored = score_embeddings(codes, plan.targets, device, cube.STEP / 2, scales, where)
    limited = limit_pixels(plan.grid, tile, lon, lat, pixels)
    for k, row in scored:
        if row is not None:
            limited.apply(plan.targets[k].limits, row)
        # None: absent from the tile, as most species are from most tiles; the initial values are already right.
        if row is not None and habitats[index[k]].place(row, chunks.layer(k)):
            statistics.add(k)
            pictures.add(k, chunks.layer(k))
            chunks.present(k)
        chunks.passed(k)
        pictures.passed(k)
    total = np.full(tile.shape[0] * tile.shape[1], np.nan)
    for habitat in habitats:
        before = total[habitat.pixels]
        total[habitat.pixels] = np.where(np.isnan(before), 0.0, before) + habitat.total
    highest = -np.inf if np.isnan(total).all() else np.float32(np.nanmax(total))
    if pixels.size:
        _write_agreement(plan, tile, pixels, agreement, chunks)
        _write_bands(plan, tile, habitats, index, chunks)
    if np.isfinite(highest):
        chunks.write(work.richness.variable, tile.index, total.astype(np.float32).reshape(tile.shape))
    values = statistics.values | pictures.encoded
    values |= {"device": np.array(device.partition(":")[0]), "highest": np.array(highest)}
    records.write_record(records.record_path(work.tiles, tile.index), work.tmp, chunks.files, values)
    return device


def _write_agreement(plan: Plan, tile: Tile, pixels: np.ndarray, agreement: np.ndarray | None, chunks: _Chunks) -> None:
    """Write how well the modalities agree at pixels, where the uncertainty of a species follows from it."""
    if plan.doubted and agreement is not None:
        agreed = np.full(tile.shape, np.nan, dtype=np.float32)
        agreed.reshape(-1)[pixels] = np.rint(agreement * AGREEMENT_STEPS) / np.float32(AGREEMENT_STEPS)
        chunks.write(AGREEMENT, tile.index, agreed)


def _write_bands(plan: Plan, tile: Tile, habitats: Sequence[_Habitat], index: Sequence[int], chunks: _Chunks) -> None:
    """Write the measured bands of all species, where their maps have values."""
    if not plan.trusted:
        return
    needed = mappable(plan, tile, plan.habitats[0], *plan.lonlat(*plan.pixels(tile)))
    lattice = measured_tile(plan, tile, np.asarray(needed.any(axis=0)))
    single = [lattice.around(one) for one in needed]
    shown = [np.isfinite(habitat.absent) for habitat in habitats]
    names = {band.name for target in plan.targets for band in target.measured}
    for first in range(0, len(plan.targets), chunks.count):
        part = plan.targets[first : first + chunks.count]
        blocks = {name: np.full((len(part), *tile.shape), np.nan, dtype=np.float32) for name in names}
        for at, target in enumerate(part):
            k, here = first + at, shown[index[first + at]]
            if target.measured and here.any():
                layers = single[index[k]].at(here, bands_of(plan, k))
                for band, layer in zip(target.measured, layers, strict=True):
                    blocks[band.name][at, here] = layer[here]
        for name, block in blocks.items():
            if np.isfinite(block).any():
                chunks.write_group(name, first // chunks.count, block)


class _Habitat:
    """The pixels of a tile where the species of one mask and extent are mapped, and their true areas.

    `pixels`: flat indices into the tile of all embeddings (N,); `mapped`: boolean (N,); `area`: km2 (N,).
    """

    def __init__(self, pixels: np.ndarray, mapped: np.ndarray, area: np.ndarray, shape: tuple[int, int]) -> None:
        self.kept = None if mapped.all() else np.flatnonzero(mapped)
        self.pixels, self.area = pixels[mapped], area[mapped]
        self.size = self.pixels.size
        self.total = np.zeros(self.size)  # float64: sums of multiples of 1/8192 are exact
        self.absent = np.full(shape, np.nan, dtype=np.float32)
        """The layer of a species that is 0 everywhere."""
        self.absent.ravel()[self.pixels] = 0.0
        # Position of each pixel's value in a row that ends with an additional NaN.
        self.source = np.full(shape, self.size)
        self.source.ravel()[self.pixels] = np.arange(self.size)
        self.row = np.full(self.size + 1, np.nan, dtype=np.float32)

    def place(self, scored: np.ndarray, layer: np.ndarray) -> bool:
        """Round the values (N,) of a species, keep them in `row`, and write them to their pixels of `layer`.

        Returns False, and writes nothing, when all are 0 or there are none.
        """
        row = self.row[:-1]
        row[...] = scored if self.kept is None else scored.take(self.kept)
        cube.round_(row)
        if not row.any():
            return False
        if self.size == layer.size:
            layer[...] = row.reshape(layer.shape)
        else:
            np.take(self.row, self.source, out=layer, mode="clip")
        return True


class _Statistics:
    """Statistics of each species over a tile: `values`, arrays with an entry per species; areas in km2.

    `index`: the position in `habitats` of each species' habitat.
    """

    def __init__(self, habitats: Sequence[_Habitat], index: Sequence[int], threshold: float) -> None:
        self.habitats, self.index, self.threshold = habitats, index, np.float32(threshold)
        size = np.array([habitat.size for habitat in habitats])[index]
        area = np.array([habitat.area.sum() for habitat in habitats])[index]
        self.values = {"count": size.astype(np.float64), "modelled": area}
        self.values |= {name: np.zeros(len(index)) for name in ("sum", "expected", "above", "hit")}
        self.values |= {"min": np.where(size > 0, 0.0, np.inf), "max": np.where(size > 0, 0.0, -np.inf)}

    def add(self, k: int) -> None:
        """Set the statistics of species k from the row of its habitat, and add the row to the habitat's total."""
        values, habitat = self.values, self.habitats[self.index[k]]
        row = habitat.row[:-1]
        wide = row.astype(np.float64)
        habitat.total += wide
        values["min"][k], values["max"][k] = row.min(), row.max()
        values["sum"][k], values["expected"][k] = wide.sum(), _dot(wide, habitat.area)
        if values["max"][k] >= self.threshold:
            above = np.where(row >= self.threshold, habitat.area, 0.0)
            values["above"][k], values["hit"][k] = above.sum(), _dot(wide, above)


def _dot(a: np.ndarray, b: np.ndarray) -> float:
    # Not `@`: BLAS starts threads of its own, which compete with those of the tiles.
    return float(np.einsum("i,i->", a, b))


class _Chunks:
    """The layers of a tile, written as chunks of `cube.SPECIES` species each; `files` lists what was written."""

    def __init__(self, work: Work, tile: Tile, habitats: Sequence[_Habitat], index: Sequence[int]) -> None:
        self.work, self.tile, self.habitats, self.index = work, tile, habitats, index
        self.count = min(cube.SPECIES, len(index))
        self.block = np.empty((self.count, *tile.shape), dtype=np.float32)
        self.here = np.zeros(self.count, dtype=bool)
        grid = work.plan.grid
        self.side = tuple(min(grid.tile_size, length) for length in grid.shape)
        self.empty: dict[tuple[int, ...], bytes] = {}
        self.files: list[tuple[str, int, int]] = []

    def layer(self, k: int) -> np.ndarray:
        """The buffer for the layer of species k."""
        return self.block[k % self.count]

    def present(self, k: int) -> None:
        """The layer of species k has been written."""
        self.here[k % self.count] = True

    def passed(self, k: int) -> None:
        """All of species k is known: write its chunk, if it is the last one in it."""
        last = k % self.count
        if last < self.count - 1 and k < len(self.index) - 1:
            return
        kinds, any_here = tuple(self.index[k - last : k + 1]), self.here.any()
        if any(self.habitats[h].size for h in kinds):
            encoded = None if any_here else self.empty.get(kinds)
            if encoded is None:
                for at, h in enumerate(kinds):
                    if not self.here[at]:
                        self.block[at] = self.habitats[h].absent
                encoded = cube.encode_chunk(self.block[: last + 1], (self.count, *self.side))
            if not any_here:
                self.empty[kinds] = encoded
            self._put(self.work.metadata.variable, (k // self.count, *self.tile.index), encoded)
        self.here[:] = False

    def write(self, variable: str, index: tuple[int, ...], layer: np.ndarray) -> None:
        """Write a chunk of one layer (rows, columns)."""
        self._put(variable, index, cube.encode_chunk(layer, self.side))

    def write_group(self, variable: str, group: int, layers: np.ndarray) -> None:
        """Write the chunk of the layers (species, rows, columns) of the group-th `cube.SPECIES` species."""
        encoded = cube.encode_chunk(cube.round_(layers), (self.count, *self.side))
        self._put(variable, (group, *self.tile.index), encoded)

    def _put(self, variable: str, index: tuple[int, ...], encoded: bytes) -> None:
        self.files.append(cube.write_chunk(self.work.store, variable, index, encoded, self.work.tmp))


class _Pictures:
    """A tile's part of the pictures: every n-th pixel of each species' layer; `encoded`, in groups of species."""

    def __init__(self, work: Work, tile: Tile, habitats: Sequence[_Habitat], index: Sequence[int]) -> None:
        self.step, self.range, self.index = gallery.stride(work.plan.grid.shape), work.metadata.valid_range, index
        # Counted from the first pixel of the map: the pictures do not depend on the tiles.
        self.rows, self.cols = (slice(-part.start % self.step, None, self.step) for part in (tile.rows, tile.cols))
        self.absent = np.stack([self._picture(habitat.absent) for habitat in habitats])
        self.encoded: dict[str, np.ndarray] = {}
        self._begin(0)

    def add(self, k: int, layer: np.ndarray) -> None:
        """Take in the layer of species k."""
        self.group[k % PICTURED] = self._picture(layer)

    def passed(self, k: int) -> None:
        """All of species k is known: pack its group, if it is the last one in it."""
        if k % PICTURED < PICTURED - 1 and k < len(self.index) - 1:
            return
        if self.group.size:  # else no n-th pixel lies in the tile
            packed = cube.codec().encode(self.group)
            self.encoded[f"pictures_{k // PICTURED}"] = np.frombuffer(packed, dtype=np.uint8)
        self._begin(k + 1)

    def _begin(self, k: int) -> None:
        self.group = self.absent[self.index[k : k + PICTURED]]

    def _picture(self, layer: np.ndarray) -> np.ndarray:
        return levels(layer[self.rows, self.cols], self.range)


def _habitats(work: Work, tile: Tile, pixels: np.ndarray) -> tuple[list[_Habitat], list[int]]:
    """The different habitats of the targets within a tile, and which one each target has."""
    plan = work.plan
    different, index = plan.habitats
    lon, lat = plan.lonlat(*plan.pixels(tile))
    places = mappable(plan, tile, different, lon, lat).reshape(len(different), -1)[:, pixels]
    area = np.broadcast_to(_areas(plan.grid.geobox).block(tile.rows, tile.cols) / 1e6, tile.shape).ravel()[pixels]
    return [_Habitat(pixels, p, area, tile.shape) for p in places], index


def _environment(plan: Plan, tile: Tile, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The environment at pixels (N,) of a tile that fits read, and where all layers cover them.

    The environment (K, D) is that of the K covered pixels; the second array is boolean (N,).
    """
    lon, lat = (a.ravel()[pixels] for a in plan.lonlat(*plan.pixels(tile)))
    environment, known = plan.environment(lon, lat)
    return environment[known], known


@lru_cache(maxsize=2)
def _areas(geobox: GeoBox) -> PixelArea:
    return PixelArea(geobox)
