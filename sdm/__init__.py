"""Species-distribution maps: location, satellite and environment embeddings, summed and compared with a species.

    import sdm

    bear = sdm.map_species("Ursus arctos", bbox=(-170, 48, -100, 72))   # lazy xarray.DataArray
    bear.rio.to_raster("bear.tif")

Boxes are (west, south, east, north), positions (lon, lat), both in degrees. The pieces underneath:
`sdm.grid`, `sdm.names`, `sdm.layers`, `sdm.encoders`, `sdm.model`, `sdm.score`, `sdm.engine`, `sdm.outputs`.
"""

from typing import TYPE_CHECKING

__version__ = "0.1.0"
__all__ = [
    "BBox", "Index", "Job", "Model", "Region", "__version__", "build_index", "list_models", "map_batch", "map_species",
    "plan", "plan_index", "write_maps",
]  # fmt: skip

if TYPE_CHECKING:
    from sdm.api import Job, map_species, plan, write_maps
    from sdm.batch import map_batch
    from sdm.grid import BBox, Region
    from sdm.index import Index, build_index, plan_index
    from sdm.model import Model, list_models

_HOME = {
    "BBox": "sdm.grid", "Region": "sdm.grid", "Model": "sdm.model", "list_models": "sdm.model",
    "Job": "sdm.api", "map_species": "sdm.api", "plan": "sdm.api", "write_maps": "sdm.api", "map_batch": "sdm.batch",
    "Index": "sdm.index", "build_index": "sdm.index", "plan_index": "sdm.index",
}  # fmt: skip


def __getattr__(name: str):
    # Looked up on first use: importing the package must not import torch, GDAL and Dask.
    if name in _HOME:
        from importlib import import_module

        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'sdm' has no attribute {name!r}")
