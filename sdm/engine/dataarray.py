"""A map as an xarray.DataArray that rioxarray and odc-geo understand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sdm.grid import Grid

if TYPE_CHECKING:
    import xarray as xr


def data_array(
    grid: Grid,
    values: Any,
    name: str,
    attrs: Mapping[str, Any],
    species: Sequence[str] | None = None,
    month: int = 0,
) -> xr.DataArray:
    """Values on a grid, with CRS, transform and nodata (NaN) set.

    Parameters
    ----------
    grid : the pixels.
    values : array, lazy or not: (S, rows, columns) with `species`, else (rows, columns); float32, NaN not modelled.
    name : of the array.
    attrs : its attributes.
    species : names along the first dimension.
    month : 1 to 12 becomes a scalar coordinate; 0: none.
    """
    import rioxarray  # noqa: F401  the .rio accessor
    import xarray as xr

    a = grid.geobox.affine
    rows, cols = grid.shape
    coords: dict[str, Any] = {} if species is None else {"species": list(species)}
    coords |= {"y": a.f + a.e * (np.arange(rows) + 0.5), "x": a.c + a.a * (np.arange(cols) + 0.5)}
    array = xr.DataArray(values, dims=tuple(coords), coords=coords, name=name)
    array.attrs = dict(attrs)
    if month:
        array = array.assign_coords(month=month)
    return array.rio.write_crs(grid.crs).rio.write_transform(a).rio.write_nodata(np.nan)
