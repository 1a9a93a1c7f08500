"""The user's own rasters in the place of a model: nothing is encoded, only their values are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Never

from sdm.errors import ModelError, SpeciesNameError
from sdm.files.fingerprint import of_files, of_parts
from sdm.files.paths import absolute
from sdm.layers.environment import expand
from sdm.models.layerspec import LayerSpec, RasterBands
from sdm.models.protocol import Check

if TYPE_CHECKING:
    import numpy as np
    import torch

    from sdm.names import Resolution, Taxon, TaxonTable

BATCH = 8192
"""Places read and scored together."""


@dataclass(frozen=True)
class CovariateModel:
    """As a `sdm.models.protocol.Model`, for maps of fits to the user's covariates alone.

    Parameters
    ----------
    paths : raster files, or folders of them.
    categorical : names of bands whose values are classes.
    bands : names of the bands to read, in this order; none: all of them.
    """

    paths: tuple[str, ...]
    categorical: tuple[str, ...] = ()
    bands: tuple[str, ...] = ()
    name: str = "covariates"
    title: str = "the user's own covariates"
    version: str = ""
    licence: str = ""
    folder: Path = Path()
    dim: int = 0
    calibrated: bool = False
    modalities: tuple[str, ...] = ("environment",)
    place_modalities: tuple[str, ...] = ("environment",)
    seasonal: bool = False
    ranges: str = ""
    introduced: frozenset[str] = frozenset()
    coverage: None = None
    domain: tuple[float, float] = (-90.0, 90.0)

    @classmethod
    def of_rasters(
        cls, paths: Sequence[str | Path], categorical: Sequence[str] = (), bands: Sequence[str] = ()
    ) -> CovariateModel:
        """For rasters; their paths are made absolute."""
        return cls(tuple(absolute(path) for path in paths), tuple(categorical), tuple(bands))

    @cached_property
    def digest(self) -> str:
        """Hash of the content of the rasters."""
        return of_parts([of_files(expand(self.paths)), *self.categorical, "bands", *self.bands])

    @property
    def space(self) -> tuple[str, str]:
        """See `Model`: it has no encoders."""
        return self.name, self.digest

    @property
    def layers(self) -> Mapping[str, LayerSpec]:
        """All bands of the rasters."""
        return {"environment": RasterBands(self.paths, self.categorical, self.bands)}

    @property
    def taxa(self) -> TaxonTable:
        """There are none."""
        self._refuse()

    def remarks(self, species: str) -> tuple[str, ...]:
        """There are none."""
        return ()

    def known_range(self, taxon: Taxon) -> None:
        """Nothing is known of ranges."""

    def extent(self, group: str) -> None:
        """Nothing is known of where groups live."""

    def batch(self, modalities: Sequence[str], device: str) -> int:
        """Places read and scored together."""
        return BATCH

    def pitch(self, modality: str) -> float:
        """Every pixel is read."""
        return 0.0

    def calibration(self, modalities: tuple[str, ...], group: str = "") -> tuple[float, float]:
        """There is none."""
        self._refuse()

    def resolve(self, query: str) -> Resolution:
        """No name is known."""
        raise SpeciesNameError(f"rasters do not know the name {query!r}; give records of it.")

    def species_embedding(self, resolution: Resolution) -> np.ndarray:
        """There are none."""
        self._refuse()

    def species_embeddings(self, taxa: Sequence[Taxon]) -> np.ndarray:
        """There are none."""
        self._refuse()

    def embed(self, modality: str, values: Any) -> np.ndarray:
        """There are none."""
        self._refuse()

    def load(self, device: str = "cpu") -> NoEncoders:
        """Encoders of nothing."""
        import torch

        return NoEncoders(torch.device(device))

    def files(self) -> list[dict[str, Any]]:
        """Path and bytes of the rasters."""
        return [{"path": str(p), "bytes": p.stat().st_size} for p in expand(self.paths)]

    def verify(self) -> list[Check]:
        """Nothing is expected of rasters."""
        return []

    def _refuse(self) -> Never:
        raise ModelError("rasters alone have no embeddings; give --model, or fit to records.")


@dataclass(frozen=True)
class NoEncoders:
    """Encoders whose embeddings have no dimensions."""

    device: torch.device

    def encode(self, modality: str, values: Any) -> torch.Tensor:
        """(N, 0) for N places."""
        import torch

        return torch.empty((len(values), 0), device=self.device)
