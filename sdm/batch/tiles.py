"""One tile of a batch: its embeddings compared with all species; chunks, statistics and pictures written."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sdm.batch.plan import Batch
from sdm.batch.texts import STORE, cube_metadata, labels, richness_metadata
from sdm.engine import Plan, score_embeddings, shown, stored_tile
from sdm.grid import Tile
from sdm.outputs import cube, gallery, ledger
from sdm.outputs.metadata import MapMetadata
from sdm.outputs.overlay import levels
from sdm.outputs.statistics import PixelArea

if TYPE_CHECKING:
    from odc.geo.geobox import GeoBox

PICTURED = 512
"""Species whose pictures are drawn together, at most: 30 MB."""


@dataclass(frozen=True)
class Work:
    """What the tasks of a batch need; small, and the same for all."""

    plan: Plan
    batch: Batch
    store: Path
    tiles: Path
    tmp: Path
    new: Path
    command: str

    @classmethod
    def of(cls, batch: Batch, space: ledger.Workspace, command: str) -> Work:
        """For a batch in a workspace."""
        # Absolute: a worker has its own working folder.
        new, tmp, tiles = (path.absolute() for path in (space.new, space.tmp, space.tiles))
        return cls(batch.job.plan, batch, new / STORE, tiles, tmp, new, command)

    @property
    def mask(self) -> str:
        """What all species have in common: pixels of the other kind need no embedding."""
        masks = {target.mask for target in self.plan.targets}
        return masks.pop() if len(masks) == 1 else "none"

    @property
    def metadata(self) -> MapMetadata:
        """Of the variable (species, y, x)."""
        return cube_metadata(self.batch, self.command)

    @property
    def richness(self) -> MapMetadata:
        """Of the sum over the species."""
        return richness_metadata(self.batch, self.command)

    def create_store(self) -> None:
        """Make the empty store; it appears whole or not at all."""
        grid = self.plan.grid
        part = self.tmp / STORE
        cube.create(part, grid.geobox, grid.tile_size, labels(self.batch), self.metadata, self.richness)
        part.rename(self.store)


def map_tile(tile: Tile, work: Work) -> str:
    """Compute a tile for all species, write its chunks and then its record; returns the device."""
    plan, targets = work.plan, work.plan.targets
    device = plan.here
    codes, scales, pixels = stored_tile(plan, tile, work.mask)
    habitats, of = _habitats(work, tile, pixels)
    values = {name: np.zeros(len(targets)) for name in ("count", "sum", "modelled", "expected", "above", "hit")}
    values |= {"min": np.full(len(targets), np.inf), "max": np.full(len(targets), -np.inf)}
    whole = tuple(min(plan.grid.tile_size, length) for length in plan.grid.shape)
    species = min(cube.SPECIES, len(targets))
    block = np.empty((species, *tile.shape), dtype=np.float32)
    present = np.zeros(species, dtype=bool)
    pictures = _Pictures(work, tile)
    empty: dict[tuple[int, ...], bytes] = {}  # the chunks of absent species: most are, and they are all alike
    files = []
    scored = score_embeddings(codes, targets, device, cube.STEP / 2, scales) if pixels.size else ()
    for k, row in scored:
        at, habitat = k % species, habitats[of[k]]
        present[at] = habitat.add(row, k, work.batch.threshold, values, block[at])
        pictures.add(k, block[at] if present[at] else habitat.absent, absent=None if present[at] else of[k])
        if at < species - 1 and k < len(targets) - 1:
            continue
        kinds = tuple(of[k - at : k + 1])
        if not any(habitats[h].size for h in kinds):
            continue
        encoded = None if present[: at + 1].any() else empty.get(kinds)
        if encoded is None:
            for layer, here, h in zip(block, present, kinds, strict=False):
                if not here:
                    layer[...] = habitats[h].absent
            encoded = cube.encode_chunk(block[: at + 1], (species, *whole))
            if not present[: at + 1].any():
                empty[kinds] = encoded
        index = (k // species, *tile.index)
        files.append(cube.write_chunk(work.store, work.metadata.variable, index, encoded, work.tmp))
    total = np.full(tile.shape[0] * tile.shape[1], np.nan)
    for habitat in habitats:
        places = habitat.pixels
        total[places] = np.where(np.isnan(total[places]), 0.0, total[places]) + habitat.total
    if not np.isnan(total).all():
        layer = total.astype(np.float32).reshape(tile.shape)
        encoded = cube.encode_chunk(layer, whole)
        files.append(cube.write_chunk(work.store, work.richness.variable, tile.index, encoded, work.tmp))
    values |= pictures.encoded | {"device": np.array(device.partition(":")[0])}
    ledger.write_record(work.tiles / f"{tile.index[0]}.{tile.index[1]}.npz", work.tmp, files, values)
    return device


class _Habitat:
    """The pixels of a tile where some of the species may be shown, and their true areas.

    `pixels`: flat indices into the tile of all embeddings (N,); `shown`: boolean (N,); `area`: km2 (N,).
    """

    def __init__(self, pixels: np.ndarray, shown: np.ndarray, area: np.ndarray, shape: tuple[int, int]) -> None:
        self.kept = None if shown.all() else np.flatnonzero(shown)
        self.pixels, self.area = pixels[shown], area[shown]
        self.size = self.pixels.size
        self.modelled = float(self.area.sum())
        self.total = np.zeros(self.size)  # float64: sums of multiples of 1/8192 are exact
        self.absent = np.full(shape, np.nan, dtype=np.float32)
        self.absent.ravel()[self.pixels] = 0.0
        # Where in a row, with a NaN added at its end, the value of each pixel of the tile is found.
        self.source = np.full(shape, self.size)
        self.source.ravel()[self.pixels] = np.arange(self.size)
        self.row = np.full(self.size + 1, np.nan, dtype=np.float32)

    def add(
        self, scored: np.ndarray | None, k: int, threshold: float, values: dict[str, np.ndarray], layer: np.ndarray
    ) -> bool:
        """Take in the values (N,) of species k, None: 0 everywhere. Its statistics go into entry k of each
        array of `values`, the values, rounded, into the total and to their pixels of `layer`, NaN elsewhere.

        Returns False for a species that is 0 everywhere; then the layer is left as it is.
        """
        if not self.size:
            return False
        values["count"][k], values["modelled"][k] = self.size, self.modelled
        values["min"][k] = values["max"][k] = 0.0
        if scored is None:
            return False
        row = self.row[:-1]
        row[...] = scored if self.kept is None else scored.take(self.kept)
        cube.round_(row)
        values["min"][k], values["max"][k] = row.min(), row.max()
        if values["max"][k] == values["min"][k] == 0.0:
            return False
        if self.size == layer.size:
            layer[...] = row.reshape(layer.shape)
        else:
            np.take(self.row, self.source, out=layer, mode="clip")
        wide = row.astype(np.float64)
        self.total += wide
        values["sum"][k], values["expected"][k] = wide.sum(), _dot(wide, self.area)
        if values["max"][k] >= threshold:
            above = np.where(row >= np.float32(threshold), self.area, 0.0)
            values["above"][k], values["hit"][k] = above.sum(), _dot(wide, above)
        return True


def _dot(a: np.ndarray, b: np.ndarray) -> float:
    # Not `@`: its library starts threads of its own, which spin while the tiles' threads need the processors.
    return float(np.einsum("i,i->", a, b))


class _Pictures:
    """A tile's part of the pictures: every n-th pixel of each species' layer, some species to a group."""

    def __init__(self, work: Work, tile: Tile) -> None:
        self.step, self.range = gallery.stride(work.plan.grid.shape), work.metadata.valid_range
        self.species = len(work.plan.targets)
        # Counted from the first pixel of the map: the pictures do not depend on the tiles.
        self.rows, self.cols = (slice(-part.start % self.step, None, self.step) for part in (tile.rows, tile.cols))
        shape = np.empty(tile.shape)[self.rows, self.cols].shape
        self.group = np.empty((min(PICTURED, self.species), *shape), dtype=np.uint8)
        self.encoded: dict[str, np.ndarray] = {}
        self.absent: dict[int | None, np.ndarray] = {}

    def add(self, k: int, layer: np.ndarray, absent: int | None) -> None:
        """Take in the layer of species k, the next one; `absent`: the habitat in which it is 0 everywhere."""
        picture = self.absent.get(absent)
        if picture is None:
            picture = levels(layer[self.rows, self.cols], self.range)
            if absent is not None:
                self.absent[absent] = picture
        self.group[k % PICTURED] = picture
        if self.group.size and (k % PICTURED == PICTURED - 1 or k == self.species - 1):
            pictures = self.group[: k % PICTURED + 1]
            self.encoded[f"pictures_{k // PICTURED}"] = np.frombuffer(cube.codec().encode(pictures), dtype=np.uint8)


def _habitats(work: Work, tile: Tile, pixels: np.ndarray) -> tuple[list[_Habitat], list[int]]:
    """The different habitats of the targets within a tile, and which one each target has."""
    plan = work.plan
    asked = [(t.mask, t.extent) for t in plan.targets]
    different = list(dict.fromkeys(asked))
    number = {habitat: k for k, habitat in enumerate(different)}
    lon, lat = plan.lonlat(*plan.pixels(tile))
    places = shown(plan, tile, different, lon, lat).reshape(len(different), -1)[:, pixels]
    area = np.broadcast_to(_areas(plan.grid.geobox).block(tile.rows, tile.cols) / 1e6, tile.shape).ravel()[pixels]
    return [_Habitat(pixels, p, area, tile.shape) for p in places], [number[habitat] for habitat in asked]


@lru_cache(maxsize=2)
def _areas(geobox: GeoBox) -> PixelArea:
    return PixelArea(geobox)
