"""A map as a lazy xarray.DataArray."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sdm.engine.cluster import active_client
from sdm.engine.dataarray import data_array
from sdm.engine.graph import to_dask
from sdm.maps.plan import plan
from sdm.maps.report import describe
from sdm.models.device import local_device

if TYPE_CHECKING:
    import xarray as xr


def map_species(species: str | Sequence[str] = (), bbox: Sequence[float] | None = None, **options: Any) -> xr.DataArray:
    """The map as a lazy DataArray (y, x), or (species, y, x) for several names: float32.

    Options are those of `plan`. NaN means not modelled, never absent. CRS, transform and nodata are set for rioxarray
    and odc-geo. Nothing is encoded until it is computed or written.

        sdm.map_species("Ursus arctos", bbox=(-170, 48, -100, 72)).rio.to_raster("bear.tif")
    """
    job = plan(species, bbox, **options)
    if active_client() is None:
        local_device(job.plan.device)  # now, not in the middle of a computation
    values, score = to_dask(job.plan), job.plan.targets[0].score
    if isinstance(species, str) or not species:
        described = describe(job, 0)
        attrs = {"long_name": described.quantity, "units": "1", **described.tags}
        array = data_array(job.grid, values[0], score.name, attrs, month=job.plan.month)
        return array.assign_coords(species=job.resolutions[0].taxon.name)
    attrs = {"long_name": score.phrase.format("the species"), "units": "1"}
    names = [r.taxon.name for r in job.resolutions]
    return data_array(job.grid, values, score.name, attrs, names, job.plan.month)
