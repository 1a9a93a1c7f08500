"""What `sdm.fit` gives its users: a fit that maps itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdm.maps.array import map_species
from sdm.models.registry import default_model
from sdm.records import fitted
from sdm.records.background import Positions
from sdm.records.features import ModelFeatures, RasterFeatures
from sdm.records.fit import fit_source, prior_for
from sdm.records.table import Records
from sdm.request import FitOptions, Sampling

if TYPE_CHECKING:
    import xarray as xr

    from sdm.models.protocol import Model


@dataclass(frozen=True)
class Fitted(fitted.Fitted):
    """A species fitted to its records, from `sdm.fit` or `sdm.Fitted.open`; see `sdm.records.fitted.Fitted`."""

    def map(self, bbox: Sequence[float] | None = None, **options: Any) -> xr.DataArray | xr.Dataset:
        """The map of the fit as a lazy DataArray (y, x): float32, NaN where not modelled.

            sdm.fit(sdm.Records.read("adders.csv")).map(bbox=(5, 44, 12, 48)).rio.to_raster("adders.tif")

        Parameters
        ----------
        bbox : (west, south, east, north) in degrees; west > east crosses the antimeridian.
        options : as of `sdm.map_species`: region, crs, resolution, index, ...; `bands=True` returns a Dataset with its
            uncertainty and novelty. The modalities, the month and the model are those of the fit. Of a fit to your
            rasters alone give these as `environment`.

        Raises
        ------
        SdmError : a subclass, see `sdm.errors`.
        """
        return map_species(bbox=bbox, fitted=self, **options)

    @classmethod
    def of(cls, fit: fitted.Fitted) -> Fitted:
        """The same fit."""
        return cls(**{one.name: getattr(fit, one.name) for one in fields(fit)})


def fit(
    records: Records,
    *,
    model: Model | str | Path | None = None,
    sampling: Sampling | None = None,
    covariates: Sequence[str | Path] = (),
    group: Positions | None = None,
    options: FitOptions | None = None,
    device: str = "cpu",
) -> Fitted:
    """Fit a species to its records.

    Parameters
    ----------
    records : of one species, cleaned.
    model : whose embeddings and environment places are described with; by default the bundled one of most species.
    sampling : modalities, month, and layers in place of the bundled ones.
    covariates : rasters, or folders of them, to fit to alone: no model, no embedding.
    group : records of other species of its group, for a target-group background.
    options : of the fit.
    device : a torch device by name.

    Raises
    ------
    RecordsError : there is no presence that the layers cover, or nothing to compare presences with.
    """
    options = options or FitOptions()
    if covariates:
        return Fitted.of(fit_source(records, RasterFeatures(covariates, options.categorical), None, group, options))
    opened = default_model(model)
    source = ModelFeatures(opened, sampling or Sampling(), device)
    prior = prior_for(opened, source, records.species, options)
    return Fitted.of(fit_source(records, source, prior, group, options))
