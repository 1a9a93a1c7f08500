"""A map as a lazy Dask array."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sdm.engine.places import Plan
from sdm.engine.tile import TileMaps, map_tile, score_tile
from sdm.grid import Grid

if TYPE_CHECKING:
    import dask.array as da


def to_dask(plan: Plan) -> da.Array:
    """The map as a lazy Dask array (S, rows, columns) float32: one task, one chunk per tile."""
    import dask.array as da
    from dask.base import tokenize

    grid = plan.grid
    tiles = {tile.index: tile for tile in grid.tiles()}
    name = "suitability-" + tokenize(*plan.identity, plan.targets)
    # The plan is an entry of its own: on a cluster it reaches a worker once, not with each tile.
    common = f"plan-{name}"
    graph = {common: plan} | {(name, 0, i, j): (score_tile, common, tile) for (i, j), tile in tiles.items()}
    # The dtype and meta are stated: otherwise Dask would run a tile, and load the model, to guess them.
    chunks = _chunks(len(plan.species), plan.grid)
    return da.Array(graph, name, chunks, dtype=np.float32, meta=np.empty((0, 0, 0), dtype=np.float32))


def to_dask_with_bands(plan: Plan) -> tuple[da.Array, list[da.Array]]:
    """`to_dask`, and the further bands of each target (B, rows, columns): a tile is computed once for all of them."""
    import dask.array as da
    from dask.base import tokenize

    tiles = {tile.index: tile for tile in plan.grid.tiles()}
    name = "maps-" + tokenize(*plan.identity, plan.targets)
    common = f"plan-{name}"
    graph = {common: plan} | {(name, i, j): (map_tile, common, tile) for (i, j), tile in tiles.items()}
    meta = np.empty((0, 0, 0), dtype=np.float32)
    layers = []
    for k, count in enumerate((len(plan.targets), *(len(t.bands) for t in plan.targets))):
        part = f"{'bands' if k else 'values'}-{k}-{name}"
        select = graph | {(part, 0, i, j): (_layer, (name, i, j), k) for i, j in tiles}
        layers.append(da.Array(select, part, _chunks(count, plan.grid), dtype=np.float32, meta=meta))
    return layers[0], layers[1:]


def _layer(maps: TileMaps, k: int) -> np.ndarray:
    """The values of a tile (k = 0), or the bands of target k - 1."""
    return maps.bands[k - 1] if k else maps.values


def _chunks(count: int, grid: Grid) -> tuple[tuple[int, ...], ...]:
    """Chunks of (count, rows, columns) by tiles."""
    (rows, cols), size = grid.shape, grid.tile_size
    return (
        (count,),
        tuple(min(size, rows - r) for r in range(0, rows, size)),
        tuple(min(size, cols - c) for c in range(0, cols, size)),
    )
