"""A map as a lazy Dask array."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sdm.engine.places import Plan
from sdm.engine.tile import score_tile

if TYPE_CHECKING:
    import dask.array as da


def to_dask(plan: Plan) -> da.Array:
    """The map as a lazy Dask array (S, rows, columns) float32: one task, one chunk per tile."""
    import dask.array as da
    from dask.base import tokenize

    grid = plan.grid
    rows, cols = grid.shape
    size = grid.tile_size
    chunks = (
        (len(plan.species),),
        tuple(min(size, rows - r) for r in range(0, rows, size)),
        tuple(min(size, cols - c) for c in range(0, cols, size)),
    )
    tiles = {tile.index: tile for tile in grid.tiles()}
    name = "suitability-" + tokenize(*plan.identity, plan.targets)
    # The plan is an entry of its own: on a cluster it reaches a worker once, not with each tile.
    common = f"plan-{name}"
    graph = {common: plan} | {(name, 0, i, j): (score_tile, common, tile) for (i, j), tile in tiles.items()}
    # The dtype and meta are stated: otherwise Dask would run a tile, and load the model, to guess them.
    return da.Array(graph, name, chunks, dtype=np.float32, meta=np.empty((0, 0, 0), dtype=np.float32))
