"""A map as a lazy xarray.DataArray, or a Dataset with its further bands."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np

from sdm.engine.cluster import active_client
from sdm.engine.dataarray import data_array
from sdm.engine.graph import to_dask, to_dask_with_bands
from sdm.maps.plan import Job, plan
from sdm.maps.report import describe
from sdm.models.device import local_device

if TYPE_CHECKING:
    import dask.array as da
    import xarray as xr

    from sdm.outputs.metadata import Band


@overload
def map_species(
    species: str | Sequence[str] = ...,
    bbox: Sequence[float] | None = ...,
    *,
    bands: Literal[False] = ...,
    **options: Any,
) -> xr.DataArray: ...


@overload
def map_species(
    species: str | Sequence[str] = ..., bbox: Sequence[float] | None = ..., *, bands: Literal[True], **options: Any
) -> xr.Dataset: ...


def map_species(
    species: str | Sequence[str] = (), bbox: Sequence[float] | None = None, *, bands: bool = False, **options: Any
) -> xr.DataArray | xr.Dataset:
    """The map as a lazy DataArray (y, x), or (species, y, x) for several names: float32.

    Options are those of `plan`. NaN means not modelled, never absent. CRS, transform and nodata are set for rioxarray
    and odc-geo. Nothing is encoded until it is computed or written.

        sdm.map_species("Ursus arctos", bbox=(-170, 48, -100, 72)).rio.to_raster("bear.tif")

    `bands`: return a Dataset instead, with the map and its further bands (uncertainty, novelty), if it has any, as
    variables of the same shape. A map that was written holds them too: as bands 2 and following of the GeoTIFF, and
    as variables of `xarray.open_zarr("NAME.zarr", decode_coords="all")`.
    """
    job = plan(species, bbox, **options)
    if active_client() is None:
        local_device(job.plan.device)  # now, not in the middle of a computation
    if not bands:
        return _values(job, to_dask(job.plan), species)
    import xarray as xr

    values, further = to_dask_with_bands(job.plan)
    array = _values(job, values, species)
    variables = {array.name: array}
    for band in dict.fromkeys(band for target in job.plan.targets for band in target.bands):
        layers = [_layer(job, k, band, further[k]) for k in range(len(further))]
        variables[band.name] = _band(job, band, layers, array)
    return xr.Dataset(variables)


def _values(job: Job, values: da.Array, species: str | Sequence[str]) -> xr.DataArray:
    """The map itself, of one species or several as they were asked for."""
    score = job.plan.targets[0].score
    if len(job.resolutions) == 1 and (isinstance(species, str) or not species):
        described = describe(job, 0)
        attrs = {"long_name": described.quantity, "units": "1", **described.tags}
        array = data_array(job.grid, values[0], score.name, attrs, month=job.plan.month)
        return array.assign_coords(species=job.resolutions[0].taxon.name)
    attrs = {"long_name": score.phrase.format("the species"), "units": "1"}
    names = [r.taxon.name for r in job.resolutions]
    array = data_array(job.grid, values, score.name, attrs, names, job.plan.month)
    meanings = [target.score.name for target in job.plan.targets]
    # Fits of one file may differ in what their values mean.
    return array.assign_coords(score=("species", meanings)) if len(set(meanings)) > 1 else array


def _layer(job: Job, k: int, band: Band, further: da.Array) -> da.Array:
    """One band (rows, columns) of the k-th species; NaN where it has no such band."""
    import dask.array as da

    names = [b.name for b in job.plan.targets[k].bands]
    if band.name in names:
        return further[names.index(band.name)]
    return da.full(job.grid.shape, np.nan, dtype=np.float32, chunks=further.chunks[1:])


def _band(job: Job, band: Band, layers: Sequence[da.Array], like: xr.DataArray) -> xr.DataArray:
    """A band of the species of `like`."""
    import dask.array as da

    attrs = {"long_name": band.quantity, "units": band.unit}
    names = list(like["species"].values) if "species" in like.dims else None
    values = layers[0] if names is None else da.stack(layers)
    return data_array(job.grid, values, band.name, attrs, names, job.plan.month)
