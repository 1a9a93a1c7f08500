"""Species-distribution maps: location, satellite and environment embeddings, summed and compared with a species.

    import sdm

    bear = sdm.map_species("Ursus arctos", bbox=(-170, 48, -100, 72))   # lazy xarray.DataArray
    bear.rio.to_raster("bear.tif")

Boxes are (west, south, east, north), positions (lon, lat), both in degrees. The pieces underneath:
`sdm.grid`, `sdm.names`, `sdm.layers`, `sdm.models`, `sdm.engine`, `sdm.records`, `sdm.outputs`.
"""

from __future__ import annotations

from sdm._version import __version__

# Nothing is imported here that Python has not loaded anyway: a program waits for this before it can mind signals.
TYPE_CHECKING = False

__all__ = [
    "BBox",
    "Fitted",
    "Index",
    "Job",
    "Model",
    "Records",
    "Region",
    "__version__",
    "assess",
    "build_index",
    "evaluate",
    "fit",
    "list_models",
    "map_batch",
    "map_species",
    "plan",
    "plan_index",
    "uncertainty",
    "write_maps",
]

if TYPE_CHECKING:
    from typing import Any

    from sdm.analysis.assess import assess
    from sdm.engine.doubt import uncertainty
    from sdm.grid import BBox, Region
    from sdm.index import Index, build_index, plan_index
    from sdm.maps.array import map_species
    from sdm.maps.batch import map_batch
    from sdm.maps.fitted import Fitted, fit
    from sdm.maps.plan import Job, plan
    from sdm.maps.write import write_maps
    from sdm.models.bundled import BundledModel as Model
    from sdm.models.registry import list_models
    from sdm.records.evaluate import evaluate
    from sdm.records.table import Records

_HOME = {
    "BBox": "sdm.grid",
    "Region": "sdm.grid",
    "Index": "sdm.index",
    "build_index": "sdm.index",
    "plan_index": "sdm.index",
    "map_species": "sdm.maps.array",
    "map_batch": "sdm.maps.batch",
    "Job": "sdm.maps.plan",
    "plan": "sdm.maps.plan",
    "uncertainty": "sdm.engine.doubt",
    "write_maps": "sdm.maps.write",
    "Model": "sdm.models.bundled",
    "list_models": "sdm.models.registry",
    "Records": "sdm.records.table",
    "assess": "sdm.analysis.assess",
    "evaluate": "sdm.records.evaluate",
    "fit": "sdm.maps.fitted",
    "Fitted": "sdm.maps.fitted",
}
_NAME_THERE = {"Model": "BundledModel"}


def __getattr__(name: str) -> Any:
    # Looked up on first use: importing the package must not import torch, GDAL and Dask.
    if name in _HOME:
        from importlib import import_module

        return getattr(import_module(_HOME[name]), _NAME_THERE.get(name, name))
    raise AttributeError(f"module 'sdm' has no attribute {name!r}")
