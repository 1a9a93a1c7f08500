"""A map as a lazy xarray.DataArray."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sdm.engine.cluster import active_client
from sdm.engine.graph import to_dask
from sdm.maps.plan import plan
from sdm.maps.report import describe
from sdm.models.device import local_device

if TYPE_CHECKING:
    import xarray as xr


def map_species(species: str | Sequence[str] = (), bbox: Sequence[float] | None = None, **options: Any) -> xr.DataArray:
    """The map as a lazy DataArray (y, x), or (species, y, x) for several names: float32.

    Options are those of `plan`. NaN means not modelled, never absent. CRS, transform and nodata are
    set for rioxarray and odc-geo. Nothing is encoded until it is computed or written.

        sdm.map_species("Ursus arctos", bbox=(-170, 48, -100, 72)).rio.to_raster("bear.tif")
    """
    import rioxarray  # noqa: F401  the .rio accessor
    import xarray as xr

    job = plan(species, bbox, **options)
    if active_client() is None:
        local_device(job.plan.device)  # now, not in the middle of a computation
    grid = job.grid
    a = grid.geobox.affine
    rows, cols = grid.shape
    names = [r.taxon.name for r in job.resolutions]
    array = xr.DataArray(
        to_dask(job.plan),
        dims=("species", "y", "x"),
        coords={
            "species": names,
            "y": a.f + a.e * (np.arange(rows) + 0.5),
            "x": a.c + a.a * (np.arange(cols) + 0.5),
        },
        name=job.plan.targets[0].score.name,
    )
    metadata = [describe(job, k) for k in range(len(names))]
    array.attrs = {"long_name": job.plan.targets[0].score.phrase.format("the species"), "units": "1"}
    if isinstance(species, str) or not species:
        array = array.isel(species=0)
        array.attrs = {"long_name": metadata[0].quantity, "units": "1", **metadata[0].tags}
    if job.plan.month:
        array = array.assign_coords(month=job.plan.month)
    array = array.rio.write_crs(grid.crs).rio.write_transform(a)
    return array.rio.write_nodata(np.nan)
