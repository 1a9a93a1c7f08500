"""How much of a map can have values at all, before any is computed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from affine import Affine
from odc.geo.geobox import GeoBox

from sdm.engine.places import Plan
from sdm.engine.tile import mappable
from sdm.grid import Tile

SAMPLE = 256
"""Rows, and columns, of pixels that are looked at, at most."""


def mapped_share(plan: Plan) -> float:
    """The share of the pixels, 0 to 1, in the region, on the mask of any target and within reach of model and layers.

    Exact for maps of up to 256 x 256 pixels, an estimate from as many places of larger ones.
    """
    rows, columns = (min(n, SAMPLE) for n in plan.grid.shape)
    height, width = plan.grid.shape
    affine = plan.grid.geobox.affine @ Affine.scale(width / columns, height / rows)
    grid = replace(plan.grid, geobox=GeoBox((rows, columns), affine, plan.grid.geobox.crs), tile_size=8192)
    sparse = replace(plan, grid=grid)
    lon, lat = grid.lonlat(np.arange(rows), np.arange(columns))
    tile = Tile((0, 0), slice(0, rows), slice(0, columns))
    keep = mappable(sparse, tile, plan.habitats[0], lon, lat).any(axis=0)
    if plan.source is None and keep.any():
        own = {"environment": bool(plan.sampling.environment), "satellite": plan.sampling.satellite is not None}
        for modality in (m for m in plan.modalities if own.get(m)):
            places = np.flatnonzero(keep)[:: max(1, int(keep.sum()) // 4096)]
            known = plan.inputs.read[modality](lon.ravel()[places], lat.ravel()[places])[1]
            return float(keep.mean()) * float(known.mean())
    return float(keep.mean())
