"""Places on all the land of the world, and what the encoders of a model make of them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sdm.engine.encode import embed_positions
from sdm.files.paths import replace_file
from sdm.layers.landmask import LandMask
from sdm.models.protocol import Model
from sdm.request import Sampling
from sdm.request.box import KM_PER_DEGREE
from sdm.request.choices import MODALITIES
from sdm.training.data.grids import DegreeGrid

TRIES, MORE = 24, 600
"""Random positions in a cell among which its places on land are chosen; of cells that the first find too little in."""
SEED = 0


@dataclass(frozen=True)
class World:
    """Places on land, some in each cell of a grid."""

    grid: DegreeGrid
    lonlat: np.ndarray
    """(P, 2) degrees."""
    area: np.ndarray
    """(P,) km2 of land that each stands for."""
    cell: np.ndarray
    """(P,) its cell, ascending."""
    embeddings: dict[str, np.ndarray]
    """{modality: (P, dim) float16 unit vectors}."""

    def combined(self, modalities: Sequence[str] = MODALITIES) -> np.ndarray:
        """(P, dim) float32 unit vectors: the normalised sum of some modalities."""
        total = np.zeros(self.embeddings[MODALITIES[0]].shape, np.float32)
        for modality in modalities:
            total += self.embeddings[modality]
        return total / np.linalg.norm(total, axis=1, keepdims=True)

    def firsts(self) -> np.ndarray:
        """The first place of each cell."""
        return np.unique(self.cell, return_index=True)[1]


def make_world(model: Model, grid: DegreeGrid, points: int, needed: np.ndarray, more: np.ndarray, cache: Path) -> World:
    """Up to `points` random places on land in each cell of a grid, in the domain of a model.

    `needed` (N,): cells in which land is looked for more closely: those of ranges, which may be small islands.
    `more` (N, 2): further places, of which those on land are taken. The embeddings are kept in the folder `cache`, for
    the same places and encoders.
    """
    lonlat, cell, area = with_places(grid, land_places(grid, points, needed, model.domain[0]), more, model.domain[0])
    key = hashlib.sha256(lonlat.tobytes() + model.digest.encode()).hexdigest()[:16]
    path = cache / f"places-{key}.npz"
    if not path.is_file():
        lon, lat = (np.ascontiguousarray(column) for column in lonlat.T)
        found = {m: embed_positions(model, Sampling(modalities=(m,)), lon, lat) for m in MODALITIES}
        arrays = {m: embeddings.astype(np.float16) for m, (embeddings, _) in found.items()}
        arrays["known"] = np.all([known for _, known in found.values()], axis=0)
        replace_file(path, _packed(arrays))
    with np.load(path, allow_pickle=False) as file:
        known = file["known"]
        embeddings = {m: file[m][known] for m in MODALITIES}
    return World(grid, lonlat[known], area[known], cell[known], embeddings)


def land_places(
    grid: DegreeGrid, points: int, needed: np.ndarray, south: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Positions (P, 2), their cells (P,) ascending, and the km2 of land (P,) that each stands for."""
    rows, cols = grid.shape
    cells = np.arange(min(rows, int(np.ceil((90.0 - south) / grid.step))) * cols)
    rng, mask = np.random.default_rng(SEED), LandMask()
    lonlat, cell, land = _draw(grid, cells, TRIES, points, rng, mask)
    scarce = np.intersect1d(needed[needed < cells.size], np.flatnonzero(land * TRIES < points))
    kept = ~np.isin(cell, scarce)
    more, its_cell, finer = _draw(grid, scarce, MORE, points, rng, mask)
    land[scarce] = finer
    lonlat, cell = np.concatenate([lonlat[kept], more]), np.concatenate([cell[kept], its_cell])
    order = np.argsort(cell, kind="stable")
    lonlat, cell = lonlat[order], cell[order]
    size = (grid.step * KM_PER_DEGREE) ** 2 * np.cos(np.radians(grid.centres(cell)[:, 1]))
    return lonlat, cell, size * land[cell] / np.bincount(cell, minlength=cells.size)[cell]


Places = tuple[np.ndarray, np.ndarray, np.ndarray]


def with_places(grid: DegreeGrid, places: Places, more: np.ndarray, south: float) -> Places:
    """What `land_places` gave, with further positions (N, 2) on land; the places of a cell share its land."""
    lonlat, cell, area = places
    more = more[more[:, 1] > south]
    more = more[LandMask().keep("land", *np.ascontiguousarray(more.T))] if len(more) else more
    their = grid.cells(*more.T)
    land = np.zeros(grid.shape[0] * grid.shape[1])
    np.add.at(land, cell, area)
    more, their = more[land[their] > 0], their[land[their] > 0]
    lonlat, cell = np.concatenate([lonlat, more]), np.concatenate([cell, their])
    order = np.argsort(cell, kind="stable")
    lonlat, cell = lonlat[order], cell[order]
    return lonlat, cell, land[cell] / np.bincount(cell, minlength=land.size)[cell]


def _draw(
    grid: DegreeGrid, cells: np.ndarray, tries: int, points: int, rng: np.random.Generator, mask: LandMask
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Positions on land (P, 2) and their cells (P,), at most `points` a cell; the share of land (cells,)."""
    west, north = grid.corners(cells)
    u, v = rng.random((2, cells.size, tries))
    lon, lat = west[:, None] + grid.step * u, north[:, None] - grid.step * v
    on_land = mask.keep("land", lon.ravel(), lat.ravel()).reshape(lon.shape)
    chosen = on_land & (np.cumsum(on_land, axis=1) <= points)
    lonlat = np.stack([lon[chosen], lat[chosen]], axis=1)
    return lonlat, np.repeat(cells, chosen.sum(axis=1)), on_land.mean(axis=1)


def _packed(arrays: dict[str, Any]) -> bytes:
    import io

    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()
