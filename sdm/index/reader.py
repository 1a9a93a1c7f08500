"""Open a region index and ask it: is it of this model and these layers, and what do maps of it look like."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sdm.engine.dataarray import data_array
from sdm.engine.inputs import check_month, layer_fingerprints
from sdm.engine.places import Places, Target
from sdm.engine.targets import named_target, probability
from sdm.errors import RegionIndexError, RequestError, TooLargeError
from sdm.grid import Region, Tile, parse_crs
from sdm.index.pixels import StoredPixels
from sdm.index.window import locate
from sdm.models.choice import resolve_in, resolved
from sdm.models.joint import members_of, narrowed, spaces
from sdm.models.origin import of_origin
from sdm.models.protocol import Model
from sdm.models.registry import list_models, open_model
from sdm.models.shared import EARLIER
from sdm.names import Resolution
from sdm.request import Area, BBox, Query, Sampling
from sdm.request.choices import parse_device
from sdm.request.months import month_name

if TYPE_CHECKING:
    import xarray as xr

Species = str | Resolution | np.ndarray
"""A name, a resolved name, or a vector (dim,) of the model's space."""
_FREE = ("clamp", "bbox", "region", "layer", "where", "tile_size", "max_pixels", "satellite", "environment")
"""Options of a map that need not be as the index was built, or are checked otherwise (`Index.check`)."""


class Index(StoredPixels):
    """A region encoded once: the unit summed embedding of each of its pixels.

    Thread-safe, read-only. A copy sent to another process opens the index again there.
    """

    @property
    def model_name(self) -> str:
        """Name of the model whose encoders of places made it."""
        return self.identity["model"]["name"]

    @property
    def encoders(self) -> str:
        """16 hexadecimal digits that stand for those encoders; of an unknown version, for the model they came from."""
        return EARLIER.get(self.encoders_then, self.encoders_then)

    @property
    def encoders_then(self) -> str:
        """The digits that stood for them when the index was made."""
        made = self.identity["model"]
        return str(made["encoders"] if "encoders" in made else made["digest"])

    @property
    def month(self) -> int:
        """The month it was encoded for, 1 to 12; 0: the whole year."""
        return self.identity.get("month", 0)

    # The model and the layers ---------------------------------------------------------------------

    def check(self, model: Model, sampling: Sampling | None = None) -> None:
        """Raise RegionIndexError unless the index was made with the encoders of this model and with these layers.

        `sampling`: with the user's own rasters, where they are meant to be in the index. Bundled layers are compared
        with those of this installation.
        """
        if not self._is_of(model):
            raise RegionIndexError(
                f"region index {self.url!r} was made with the encoders of model {self.model_name!r} "
                f"({self.encoders}), not with those of {model.name!r} ({model.space[1]}); give that model, or build "
                "the index again."
            )
        sampling = sampling or Sampling()
        before = self.identity["layers"]
        now = layer_fingerprints(model, self.modalities, sampling.environment, sampling.satellite)
        for name in sorted({*before, *now}):
            was, given = before.get(name), now.get(name)
            if was == given or (was and was.startswith("own:") and not _is_given(name, sampling)):
                continue  # rasters of the user's that are in the index are not needed to use it
            layer = name.removesuffix("_own")
            if given is None or given.startswith("own:"):
                raise RegionIndexError(
                    f"region index {self.url!r} was made with other {layer} rasters than those given; omit --{layer}, "
                    "or build the index again with them."
                )
            raise RegionIndexError(
                f"region index {self.url!r} was made with another bundled {layer} layer than this version of "
                "taxabind-map has; build the index again."
            )

    def _is_of(self, model: Model) -> bool:
        return self.encoders in (model.space[1], *(member.digest for member in members_of(model)))

    def find_model(self, model: Model | str | Path | None = None) -> Model:
        """The model given, else all bundled ones that share the encoders of the index. Raises RegionIndexError."""
        if model is not None:
            opened = open_model(model)
            self.check(opened)
            return opened
        found = next((joined for joined in spaces(list_models()) if self._is_of(joined)), None)
        if found is None:
            raise RegionIndexError(
                f"region index {self.url!r} was made with the encoders of model {self.model_name!r} "
                f"({self.encoders}), which is not bundled here; give its folder with --model, or build the index again."
            )
        self.check(found)
        return found

    @cached_property
    def model(self) -> Model:
        """The bundled models whose species can be mapped with the index, as one."""
        return self.find_model()

    # Places --------------------------------------------------------------------------------------

    def places(self, model: Model, modalities: Sequence[str] | None = None, device: str = "cpu") -> Places:
        """The same places for the engine, to encode some of them again.

        Raises RegionIndexError for an index made with the user's own rasters, since it does not know where they are.
        """
        if any(value.startswith("own:") for value in self.identity["layers"].values()):
            raise RegionIndexError(f"region index {self.url!r} was made with rasters that are not bundled.")
        return Places(model=model, grid=self.grid, sampling=self._sampling(modalities), device=device)

    def places_in(self, model: Model, area: Area, sampling: Sampling, device: str = "auto") -> Places:
        """The places of a map whose embeddings are taken from the index.

        Parameters
        ----------
        model : one that shares the encoders of the index.
        area : a box, a region, or neither: all of the index. Its CRS and resolution, if stated, must be those of the
            index; its tile size is ignored.
        sampling : whatever it states must be as in the index.
        device : auto, cpu, cuda or cuda:N.

        Raises
        ------
        RequestError : an option differs from what the index was built with.
        RegionIndexError : another model, or other layers.
        BoxError : the area reaches out of the index.
        TooLargeError : more than `area.max_pixels`.
        """
        self.check(model, sampling)
        check_month(model, sampling.month or 0)
        self._refuse_other_options(area, sampling)
        grid, (row, col) = locate(self.grid, area, self.url)
        if grid.pixels > area.max_pixels:
            raise TooLargeError(
                f"the map would have {grid.pixels:,} pixels, more than the limit of {area.max_pixels:,}; choose a "
                "smaller box, or raise --max-pixels."
            )
        return Places(
            model=model,
            grid=grid,
            sampling=self._sampling(),
            device=parse_device(device),
            source=IndexSource(self, row, col),
        )

    def _sampling(self, modalities: Sequence[str] | None = None) -> Sampling:
        return Sampling(
            modalities=modalities or self.modalities,
            month=self.month or None,
            land_share=self.land_share,
            uncovered=self.uncovered,
        )

    def _refuse_other_options(self, area: Area, sampling: Sampling) -> None:
        """Raise RequestError for an option that is stated, and not as the index was built."""
        built = {
            "crs": self.grid.crs,
            "resolution": self.grid.resolution,
            "modalities": self.modalities,
            "month": self.month,
            "land_share": self.land_share,
            "uncovered": self.uncovered,
        }
        for part in (area, sampling):
            for field in fields(part):
                stated, was = getattr(part, field.name), built.get(field.name)
                if field.name in _FREE or stated is None:
                    continue
                if (parse_crs(stated) if field.name == "crs" else stated) != was:
                    raise RequestError(
                        f"--{field.name.replace('_', '-')} is given, but region index {self.url!r} was built with "
                        f"{_in_words(field.name, was)}; omit it, or build another index."
                    )

    # Maps ----------------------------------------------------------------------------------------

    def query(
        self,
        species: Species | Sequence[Species],
        bbox: BBox | Sequence[float] | None = None,
        *,
        region: Region | Any = None,
        mask: str = "auto",
        model: Model | str | Path | None = None,
        as_group: bool = False,
        origin: str = "native",
        limits: str = "auto",
    ) -> xr.DataArray:
        """Map of a species over the index, or over a box or region in it.

        Parameters
        ----------
        species : a name, a resolved name, or a vector of the model's space (dim,); or a list of them.
        bbox : (west, south, east, north) in degrees.
        region : its outside is masked; a vector file, a GeoDataFrame, or a WGS84 geometry (lon, lat).
        mask : land, sea, none, or auto: the species' habitat; of a vector, all that is held.
        model : whose species are mapped: by default all bundled ones that share the encoders of the index.
        as_group : map a species that the model does not know as its genus or family; by default it is refused.
        origin : native, the native range of a name; or all: also where people introduced the species.
        limits : auto, or none: as of `sdm.plan`.

        Returns
        -------
        (y, x) float32, or (species, y, x) for a list; NaN = not modelled. CRS, transform and nodata are set for
        rioxarray and odc-geo.

        Raises
        ------
        SpeciesNameError : a name that is unknown, ambiguous or that of a domestic animal.
        BoxError : the box is not valid, or reaches out of the index.
        RegionIndexError : the index does not hold what is asked.
        """
        query = Query(mask=mask, as_group=as_group, origin=origin, limits=limits)
        opened = self.model if model is None else self.find_model(model)
        single = isinstance(species, str | Resolution) or (isinstance(species, np.ndarray) and species.ndim == 1)
        asked: list[Species] = [species] if single else list(species)  # type: ignore[list-item,arg-type]
        labels, targets = zip(*(self._target(opened, one, query) for one in asked), strict=True)
        grid, (row, col) = locate(self.grid, Area(bbox=bbox, region=region), self.url)
        values = self.values_at_once(targets, slice(row, row + grid.shape[0]), slice(col, col + grid.shape[1]))
        for tile in grid.tiles():
            if (inside := grid.inside_region(tile)) is not None:
                values[:, tile.rows, tile.cols][:, ~inside] = np.nan
        score = targets[0].score
        known = [taxon for label in labels if (taxon := opened.taxa.by_name.get(label.lower())) is not None]
        quantity = score.phrase.format(labels[0] if single and labels[0] else "the species")
        attrs = self._attributes(quantity, narrowed(opened, known))
        if not single:
            return data_array(grid, values, score.name, attrs, labels, self.month)
        attrs |= {"species": labels[0], "mask": targets[0].mask, "atlas": targets[0].atlas}
        return data_array(grid, values[0], score.name, attrs, month=self.month).assign_coords(species=labels[0])

    def _attributes(self, quantity: str, model: Model) -> dict[str, Any]:
        """Attributes of maps of a model from the index."""
        return {
            "long_name": quantity,
            "units": "1",
            "model": model.name,
            "model_hash": model.digest,
            "modalities": ",".join(self.modalities),
            "index": self.digest,
            "index_encoding": self.encoding,
            **({"month": self.month} if self.month else {}),
        }

    def _target(self, model: Model, species: Species, query: Query) -> tuple[str, Target]:
        mask = query.mask
        if isinstance(species, np.ndarray):
            if species.shape != (self.dim,) or not np.isfinite(species).all() or not species.any():
                raise RequestError(f"embedding of shape {species.shape} is not a finite vector of {self.dim} numbers.")
            vector = (species / np.linalg.norm(species)).astype(np.float32)
            return "", Target(vector, probability(model, self.modalities), self.mask if mask == "auto" else mask)
        if isinstance(species, Resolution):
            resolution = species
        else:
            resolution = of_origin(model, resolved(resolve_in(model, species, query.as_group)), query.origin)
        return resolution.taxon.name, named_target(
            model, resolution, self.modalities, mask, query.atlas, query.limits, self.month
        )

    def info(self) -> dict[str, Any]:
        """The content of `sdm index info`."""
        rows, cols = self.grid.shape
        return {
            "url": self.url,
            "digest": self.digest,
            "model": {"name": self.model_name, "encoders": self.encoders},
            "modalities": list(self.modalities),
            "each": list(self.held),
            "mask": self.mask,
            "encoding": self.encoding,
            "land_share": self.land_share,
            "uncovered": self.uncovered,
            "dim": self.dim,
            "crs": self.grid.crs,
            "resolution": self.grid.resolution,
            "rows": rows,
            "columns": cols,
            "pixels": self.grid.pixels,
            "tiles": self.grid.tile_count,
            "tile_size": self.grid.tile_size,
            "bbox": list(self.grid.bbox),
            "layers": dict(self.identity["layers"]),
            "region": self.identity["region"],
            "month": self.month or None,
            **self.notes,
        }


@dataclass(frozen=True)
class IndexSource:
    """A part of an index as the source of a map's tiles; see `sdm.engine.places.Source`."""

    index: Index
    row: int
    col: int
    """Row and column of the map's first pixel in the index."""

    @property
    def note(self) -> str:
        """Note for the user of the map."""
        error = self.index.notes["error_of_probability"]
        return (
            f"Read from the region index {self.index.digest}, where embeddings are stored as {self.index.encoding}: "
            f"that changed probabilities by {error['mean']:.2g} on average, at most {error['largest']:.2g}, in a "
            "sample of its pixels and species."
        )

    @property
    def info(self) -> dict[str, Any]:
        """The entry of the index in a report."""
        index = self.index
        return {"url": index.url, "digest": index.digest, "encoding": index.encoding, **index.notes}

    @property
    def digest(self) -> str:
        """Stands for the content."""
        return f"{self.index.digest}-{self.row}-{self.col}"

    def embeddings(self, tile: Tile) -> tuple[np.ndarray, np.ndarray]:
        """See `Index.embeddings`."""
        return self.index.embeddings(*self._window(tile))

    def encoded(self, tile: Tile) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """See `Index.encoded`."""
        return self.index.encoded(*self._window(tile), keep=False)

    @property
    def has_agreement(self) -> bool:
        """See `Index.has_agreement`."""
        return self.index.has_agreement

    def agreement(self, tile: Tile) -> np.ndarray:
        """See `Index.agreement`."""
        return self.index.agreement(*self._window(tile))

    def values(self, targets: Sequence[Target], tile: Tile) -> np.ndarray:
        """See `Index.values`."""
        return self.index.values(targets, *self._window(tile))

    def _window(self, tile: Tile) -> tuple[slice, slice]:
        rows, cols = tile.rows, tile.cols
        return (
            slice(rows.start + self.row, rows.stop + self.row),
            slice(cols.start + self.col, cols.stop + self.col),
        )


def _is_given(layer: str, sampling: Sampling) -> bool:
    return bool(sampling.environment) if layer.startswith("environment") else sampling.satellite is not None


def _in_words(option: str, value: Any) -> str:
    if option == "month":
        return month_name(value)
    return ",".join(value) if isinstance(value, tuple) else str(value or "none")
