"""What is computed: which places are encoded, how, and what they are compared with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from sdm.engine.doubt import UNCERTAINTY, Doubt
from sdm.engine.inputs import Inputs, Read, check_month, open_inputs
from sdm.engine.limits import Limit, Pixels
from sdm.engine.suitability import Suitability
from sdm.errors import RequestError
from sdm.grid import Grid, Tile
from sdm.models.device import local_device
from sdm.models.known_ranges import KnownRange
from sdm.models.protocol import Model
from sdm.outputs.metadata import Band
from sdm.request import Sampling
from sdm.request.box import KM_PER_DEGREE
from sdm.request.choices import LAND_SHARE

TRUST_STRIDES = 4, 8
"""Fewest and most pixels between the places at which bands are computed. Measured on fits to 1,000 records in British
Columbia at 0.05 degrees: interpolated over 4 pixels novelty is off by 5 percentiles on average, uncertainty by 0.02."""


Extent = tuple[float, float, float, float]
"""(west, south, east, north), degrees."""


class Source(Protocol):
    """Where the embeddings of places lie ready: a window of a region index. Thread-safe; travels to workers."""

    @property
    def digest(self) -> str:
        """Changes with anything that changes an embedding."""
        ...

    @property
    def note(self) -> str:
        """For the user of a map."""
        ...

    @property
    def info(self) -> dict[str, Any]:
        """For its report, as JSON values."""
        ...

    def embeddings(self, tile: Tile) -> tuple[np.ndarray, np.ndarray]:
        """Of all pixels of a tile that are held, as `embed_tile` returns them."""
        ...

    def encoded(self, tile: Tile) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The same as it is stored: codes (N, dim) of any number type, scales (N,) float32, pixels (N,)."""
        ...

    def values(self, targets: Sequence[Target], tile: Tile) -> np.ndarray:
        """As `score_tile` returns them, but for the region."""
        ...

    @property
    def has_agreement(self) -> bool:
        """Whether `agreement` is known."""
        ...

    def agreement(self, tile: Tile) -> np.ndarray:
        """How well the modalities agree (`sdm.engine.doubt`): (rows, columns) float32, NaN where nothing is held."""
        ...


@dataclass(frozen=True, kw_only=True)
class Places:
    """Which places are encoded, and how: all that does not depend on the species.

    Small enough to send to a worker: no weights, no open files.
    """

    model: Model
    grid: Grid
    sampling: Sampling
    """Its modalities are stated, its paths absolute."""
    device: str = "cpu"
    """auto, cpu, cuda or cuda:N, of the process that computes (`here`)."""
    source: Source | None = None
    """Take the embeddings from here, and encode nothing."""

    def __post_init__(self) -> None:
        if not self.modalities:
            raise RequestError("no modality is left to map with.")
        check_month(self.model, self.month)

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modalities that are encoded and added."""
        return self.sampling.modalities or ()

    @property
    def land_share(self) -> float:
        """Share of a pixel that must be of the kind of a mask."""
        share = self.sampling.land_share
        return LAND_SHARE if share is None else share

    def supported(self, agreement: np.ndarray, lon: np.ndarray, lat: np.ndarray) -> np.ndarray:
        """How well modalities agree, (..., N) or (..., n, m): 0 where the model has no reliable training data.

        `lon`, `lat`: degrees of the places, in the shape of the last axes.
        """
        coverage = self.model.coverage
        return agreement if coverage is None else np.where(coverage.keep(lon, lat), agreement, np.float32(0.0))

    @property
    def hides_uncovered(self) -> bool:
        """Whether pixels without reliable training data are left out."""
        return self.sampling.uncovered == "hide"

    @property
    def month(self) -> int:
        """Of a seasonal model: 1 to 12; 0: the whole year."""
        return self.sampling.month or 0

    @cached_property
    def strides(self) -> dict[str, int]:
        """Pixels between encoded places, per modality."""
        step, imagery = self.sampling.step, self.sampling.satellite_step
        if step is not None:
            return dict.fromkeys(self.modalities, step)
        pixel = self.grid.resolution
        if not self.grid.is_geographic:
            pixel = pixel * self.grid.metres_per_unit / (KM_PER_DEGREE * 1000.0)
        strides = {m: max(1, int(self.model.pitch(m) / pixel + 1e-6)) for m in self.modalities}
        if self.sampling.environment and "environment" in strides:
            # The user's rasters may hold detail that the corners of a lattice cell do not tell.
            strides["environment"] = 1
        if imagery is not None and "satellite" in strides:
            strides["satellite"] = imagery
        return strides

    @property
    def inputs(self) -> Inputs:
        """The layers, open in this process."""
        s = self.sampling
        return open_inputs(self.model, self.modalities, s.environment, s.satellite, s.clamp)

    @property
    def here(self) -> str:
        """The torch device in this process: a client without a GPU may send tasks to workers with one."""
        return local_device(self.device)

    @property
    def identity(self) -> tuple[Any, ...]:
        """All that the embeddings depend on: what Dask names them by."""
        source = None if self.source is None else self.source.digest
        return self.model.digest, self.grid, self.sampling.to_dict(), self.device, source

    @cached_property
    def anchor(self) -> tuple[int, int]:
        """Pixels from a node shared by all lattices, north-west of the map, to its first pixel: (rows, columns).

        Pixel edges lie on whole multiples of the resolution (`make_grid`), so nodes are common to all maps
        of one CRS and resolution: a larger box holds the very pixels of a smaller one.
        """
        period = math.lcm(*self.strides.values(), self.trust_stride)
        a = self.grid.geobox.affine
        return round(a.f / a.e) % period, round(a.c / a.a) % period

    def lonlat(self, rows: np.ndarray, cols: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """`Grid.lonlat` of pixels numbered from the anchor: (lon, lat) degrees, each (len(rows), len(cols))."""
        return self.grid.lonlat(rows - self.anchor[0], cols - self.anchor[1])

    def pixels(self, tile: Tile) -> tuple[np.ndarray, np.ndarray]:
        """Row and column numbers of a tile's pixels, counted from the anchor."""
        first_row, first_col = self.anchor
        return (
            np.arange(tile.rows.start, tile.rows.stop) + first_row,
            np.arange(tile.cols.start, tile.cols.stop) + first_col,
        )

    @property
    def blended(self) -> tuple[str, ...]:
        """The modalities whose embeddings are interpolated; the others are encoded where a place is scored."""
        return tuple(
            m for m in self.modalities if m != "environment" and self.strides[m] > 1 and not self.sampling.step
        )

    @property
    def lattice(self) -> int:
        """Pixels between the places that are scored first."""
        return self.sampling.step or self.strides.get("environment", 1)

    @property
    def trust_stride(self) -> int:
        """Pixels between the places at which bands are computed."""
        least, most = TRUST_STRIDES
        return max(least, self.sampling.step or min(self.lattice, most))


class PlaceFit(Protocol):
    """A species fitted to its records: a score of places that is not the cosine with one vector."""

    def logit(self, embeddings: np.ndarray, environment: np.ndarray) -> np.ndarray:
        """Scores (N,) float32 of places.

        `embeddings`: (N, dim) unit sums; `environment`: (N, D) what the model reads of the environment.
        """
        ...


class Trust(Protocol):
    """How far the values of a target may be trusted at a place, as bands beside the map."""

    @property
    def bands(self) -> tuple[Band, ...]:
        """What is measured: at least one."""
        ...

    def trust(self, embeddings: np.ndarray, environment: np.ndarray, space: np.ndarray | None) -> np.ndarray:
        """The B bands of N places, each place by itself: (B, N) float32.

        Parameters
        ----------
        embeddings : (N, dim) unit sums.
        environment : (N, D) what the model reads of the environment; D = 0 where it reads none.
        space : (N, K) unit environment embeddings; None where the model has no environment encoder.
        """
        ...


@dataclass(frozen=True)
class Target:
    """What is mapped: a vector of the space, where it may be shown, and what a cosine with it means."""

    vector: np.ndarray
    """(dim,) float32 unit vector; zeros for a fit."""
    score: Suitability
    """What a cosine, or the logit of `fit`, means."""
    mask: str = "none"
    """"land", "sea" or "none"."""
    extent: Extent | None = None
    """Outside it nothing is known of the species."""
    fit: PlaceFit | None = None
    """Scores places in place of the cosine."""
    trust: Trust | None = None
    """Measures further bands."""
    doubt: Doubt | None = None
    """Gives the uncertainty of its probability, its first band."""
    known: KnownRange | None = None
    """What is added to the cosine, in its unit; None: nothing."""

    @property
    def atlas(self) -> str:
        """What the values take from the model's atlas: "prior", or "none"."""
        return "none" if self.known is None else "prior"

    limits: tuple[Limit, ...] = ()
    """Factors of its values by place."""

    @property
    def bands(self) -> tuple[Band, ...]:
        """Of the map, beyond its values."""
        return self.measured if self.doubt is None else (UNCERTAINTY, *self.measured)

    @property
    def measured(self) -> tuple[Band, ...]:
        """The bands that are measured at places (`trust`)."""
        return () if self.trust is None else self.trust.bands

    def add_known(self, cosines: np.ndarray, lon: np.ndarray, lat: np.ndarray) -> None:
        """Add to cosines (N,) float32 at positions (N,), (N,) degrees what is known of the range, in place."""
        if self.known is not None:
            cosines += self.known.shift(lon, lat)

    def values(self, raw: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """Values float32 of cosines or logits of any shape: a new array, or `out`, which may be the argument."""
        return self.score.values(raw, out=out)


@dataclass(frozen=True, kw_only=True)
class Plan(Places):
    """Everything a tile task needs to map some species."""

    targets: tuple[Target, ...]

    @cached_property
    def species(self) -> np.ndarray:
        """The vectors of the targets: (S, dim) float32."""
        return np.stack([t.vector for t in self.targets])

    @property
    def banded(self) -> bool:
        """Whether any map has further bands."""
        return any(target.bands for target in self.targets)

    @property
    def trusted(self) -> bool:
        """Whether any map has bands that are measured at places."""
        return any(target.measured for target in self.targets)

    @property
    def doubted(self) -> bool:
        """Whether any map has the band that follows from its probability and the agreement of the modalities."""
        return any(target.doubt is not None for target in self.targets)

    @cached_property
    def habitats(self) -> tuple[list[tuple[str, Extent | None]], list[int]]:
        """The different (mask, extent) pairs of the targets, and which of them each target has."""
        asked = [(t.mask, t.extent) for t in self.targets]
        number = {habitat: k for k, habitat in enumerate(dict.fromkeys(asked))}
        return list(number), [number[habitat] for habitat in asked]

    def values(self, cosines: np.ndarray, offsets: float = 0.0) -> np.ndarray:
        """Cosines or logits (S, ...), moved by `offsets` times each score's margin -> values (S, ...) float32."""
        pairs = zip(self.targets, cosines, strict=True)
        return np.stack([t.values(c + offsets * t.score.margin) for t, c in pairs])

    def limit(self, values: np.ndarray, tile: Tile, lon: np.ndarray, lat: np.ndarray) -> None:
        """Multiply values (S, rows, columns) of a tile by the limits of the targets, in place.

        `lon`, `lat` (rows, columns) degrees.
        """
        if any(target.limits for target in self.targets):
            pixels = limit_pixels(self.grid, tile, lon, lat)
            for target, layer in zip(self.targets, values, strict=True):
                pixels.apply(target.limits, layer.reshape(-1))

    @property
    def fitted(self) -> bool:
        """Whether any target is fitted to records."""
        return any(target.fit is not None for target in self.targets)

    @property
    def environment(self) -> Read:
        """What the model reads of the environment at places, for fits and bands."""
        if "environment" not in self.model.layers:
            return _no_environment
        s = self.sampling
        return open_inputs(self.model, ("environment",), s.environment, clamp=s.clamp).read["environment"]


def limit_pixels(grid: Grid, tile: Tile, lon: np.ndarray, lat: np.ndarray, chosen: np.ndarray | None = None) -> Pixels:
    """The pixels of a tile, or the `chosen` (N,) flat indices, for limits; `lon`, `lat` (rows, columns) degrees."""
    rows, cols = np.arange(tile.rows.start, tile.rows.stop), np.arange(tile.cols.start, tile.cols.stop)
    height = np.broadcast_to(grid.pixel_size(rows, cols)[1], lon.shape)
    flat = (a.ravel() if chosen is None else a.ravel()[chosen] for a in (lon, lat, height))
    return Pixels(*flat)


def _no_environment(lon: np.ndarray, lat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.empty((lon.size, 0), dtype=np.float32), np.ones(lon.size, dtype=bool)
