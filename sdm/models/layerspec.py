"""Declarations of the layers that the encoders of a model read.

A model names one specification per modality; `sdm.engine.inputs` opens the layers that they describe.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class Position:
    """Longitude and latitude of the place, in degrees."""

    bundled: ClassVar[bool] = True
    """Whether the data come with this package; if not, the user has to name a source."""


@dataclass(frozen=True)
class Variable:
    """One column of the environment vector; the fields are those of `sdm.layers.environment.Input`."""

    layer: str
    transform: str = "identity"
    value: int = 0
    mean: float = 0.0
    std: float = 1.0


@dataclass(frozen=True)
class StandardisedVariables:
    """The bundled climate, terrain and land cover, each variable standardised by the model's own mean and deviation.

    The user's rasters may replace some of the variables.
    """

    variables: tuple[Variable, ...]
    bundled: ClassVar[bool] = True


@dataclass(frozen=True)
class MosaicCrops:
    """Crops of `size` x `size` cells of the bundled true-colour mosaic, or of the user's raster in its place."""

    size: int
    pixel: float
    """Degrees on a side of a cell."""
    bundled: ClassVar[bool] = True


@dataclass(frozen=True)
class WorldClimChannels:
    """Elevation and the 19 bioclimatic variables of WorldClim, standardised as in the TaxaBind paper.

    Approximated from the bundled layers, or read from the one source that the user names.
    """

    bundled: ClassVar[bool] = True


@dataclass(frozen=True)
class ImageryCrops:
    """Crops of `size` x `size` pixels of imagery at a resolution that is not bundled."""

    size: int
    pixel: float
    """Metres on a side of a pixel."""
    bundled: ClassVar[bool] = False


@dataclass(frozen=True)
class RasterBands:
    """All bands of the user's own rasters as they are, for a fit without a model."""

    paths: tuple[str, ...]
    categorical: tuple[str, ...] = ()
    bands: tuple[str, ...] = ()
    """Names of the bands to read, in this order; none: all of them."""
    bundled: ClassVar[bool] = True
    """They are named here already."""


LayerSpec = RasterBands | Position | StandardisedVariables | MosaicCrops | WorldClimChannels | ImageryCrops
