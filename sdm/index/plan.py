"""Everything about an index decided, nothing encoded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdm.engine.inputs import layer_fingerprints
from sdm.engine.places import Places
from sdm.engine.setup import open_grid, open_places
from sdm.errors import RequestError
from sdm.grid import Grid
from sdm.index import store
from sdm.index.encoding import DTYPES
from sdm.models.joint import encoding_model
from sdm.models.registry import default_model
from sdm.request import BBox, IndexRequest, Storage

if TYPE_CHECKING:
    import geopandas
    import shapely

MAX_PIXELS = 1_000_000_000
"""Default limit of pixels of an index."""


@dataclass(frozen=True)
class IndexJob:
    """A planned index."""

    places: Places
    storage: Storage
    identity: dict[str, Any]

    @property
    def grid(self) -> Grid:
        """The pixel grid."""
        return self.places.grid

    @property
    def digest(self) -> str:
        """The digest the index will have."""
        return store.digest(self.identity)

    def estimate(self) -> dict[str, Any]:
        """The estimate of a build: pixels, tiles, bytes on disk at most."""
        rows, cols = self.grid.shape
        embeddings = 1 + (len(self.places.modalities) if self.storage.each else 0)
        per_pixel = embeddings * (self.places.model.dim * DTYPES[self.storage.encoding].itemsize + 4) + 2
        return {
            "crs": self.grid.crs,
            "resolution": self.grid.resolution,
            "columns": cols,
            "rows": rows,
            "pixels": self.grid.pixels,
            "tiles": self.grid.tile_count,
            "bytes_at_most": self.grid.pixels * per_pixel,
            "model": self.places.model.name,
            "modalities": list(self.places.modalities),
            **self.storage.to_dict(),
            "device": self.places.device,
            "digest": self.digest,
            "month": self.places.month or None,
        }


def plan_index(
    bbox: BBox | Sequence[float] | None = None,
    region: str | Path | geopandas.GeoDataFrame | shapely.Geometry | None = None,
    *,
    device: str = "auto",
    **options: Any,
) -> IndexJob:
    """Decide everything about an index without encoding a place.

    Parameters
    ----------
    bbox : (west, south, east, north) in degrees; west > east crosses the antimeridian.
    region : in place of a box, a vector file, GeoDataFrame or WGS84 geometry (lon, lat); its outside is not held.
    device : auto, cpu, cuda or cuda:N.
    crs, resolution, modalities, satellite, environment : as in `sdm.plan`.
    model : name or folder, by default a bundled one; the index is of its encoders, and of every model that shares them.
    mask : which pixels are held: land (without lakes), sea, or none for both. A species that lives elsewhere cannot
        be mapped with the index.
    encoding : int8 or float16.
    each : store the embedding of each modality too.
    month : as in `sdm.plan`; all maps of the index are of this month.
    tile_size : side of a tile in pixels; also the chunk.
    max_pixels : refuse larger indexes; by default 1,000,000,000.

    Returns
    -------
    An `IndexJob` for `sdm.build_index`.

    Raises
    ------
    SdmError : a subclass, see `sdm.errors`.
    """
    return plan_build(IndexRequest.of(**{"max_pixels": MAX_PIXELS, "bbox": bbox, "region": region, **options}), device)


def plan_build(request: IndexRequest, device: str = "auto") -> IndexJob:
    """As `plan_index`, from one object."""
    # Cheap checks first: a wrong box is reported before a model is opened.
    grid, storage = open_grid(request.area), request.storage
    model = encoding_model(default_model(request.model.model))
    places = open_places(model, grid, request.sampling, device)
    if not model.calibrated:
        raise RequestError(f"model {model.name!r} is not calibrated; region indexes support calibrated models only.")
    if grid.tile_size**2 * model.dim * DTYPES[storage.encoding].itemsize > store.MAX_CHUNK:
        raise RequestError(
            f"tile size {grid.tile_size} makes chunks of more than {store.MAX_CHUNK >> 20} MB; choose a smaller one."
        )
    sampling = places.sampling
    layers = layer_fingerprints(model, places.modalities, sampling.environment, sampling.satellite)
    return IndexJob(places, storage, store.identity(model, layers, grid, sampling, storage))
