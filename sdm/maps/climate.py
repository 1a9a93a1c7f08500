"""Maps of another climate: what lies outside the trained range, how novel it is, and what changes from a baseline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from sdm.engine.encode import environment_embeddings
from sdm.engine.inputs import open_inputs, trained_range
from sdm.engine.places import Plan
from sdm.engine.setup import check_layers
from sdm.errors import RequestError
from sdm.files.paths import absolute
from sdm.files.release import data_file
from sdm.layers.landmask import LandMask, land_sample
from sdm.layers.surroundings import around
from sdm.models.layerspec import StandardisedVariables, Variable
from sdm.models.protocol import Model
from sdm.models.registry import open_model
from sdm.outputs.metadata import Band
from sdm.records.fitted import Fitted
from sdm.records.target import NOVELTY as NOVELTY_OF_FITS
from sdm.records.trust import Reference
from sdm.records.variables import variable_name

CURRENT = "current"
"""The bundled layers as a baseline."""
SAMPLED = 60
"""Rows and columns of a map at which the environment is compared with the trained range, at most."""
LAND_PLACES = 2000
MARGIN = 1e-4
"""Standard deviations beyond the trained range that count as within it: rounding of the layers."""

NOVELTY = replace(
    NOVELTY_OF_FITS,
    quantity="How unlike the environment is to that of the world's land today: percentile of the distances among its "
    "own places",
    caution="hardly any land today has an environment like this",
)


@dataclass(frozen=True)
class ClimateTrust:
    """Novelty of the environment against the world's land today, as a `sdm.engine.places.Trust`."""

    reference: Reference

    @property
    def bands(self) -> tuple[Band, ...]:
        """Novelty."""
        return (NOVELTY,)

    def trust(self, embeddings: np.ndarray, environment: np.ndarray, space: np.ndarray | None) -> np.ndarray:
        """The bands (1, N) of N places; arguments as in `sdm.engine.places.Trust`."""
        if space is None:
            return np.zeros((1, len(environment)), dtype=np.float32)
        return np.clip(self.reference.novelty(space), 0.0, 100.0)[None]


def climate_trust(model: Model) -> ClimateTrust | None:
    """The novelty of maps by name from the user's rasters; None for a model whose variables have no names."""
    if not isinstance(model.layers.get("environment"), StandardisedVariables):
        return None
    return ClimateTrust(_reference(str(model.folder), model.digest))


@lru_cache(maxsize=4)
def _reference(folder: str, digest: str) -> Reference:
    model = open_model(folder)
    environment, known = open_inputs(model, ("environment",)).read["environment"](*land_sample(LAND_PLACES))
    environment = environment[known]
    half = np.arange(len(environment)) % 2 == 0
    return Reference.of(environment_embeddings(model, environment, "cpu"), environment, half, seed=0)


@dataclass(frozen=True)
class Outside:
    """How much of a map has an environment outside the trained range."""

    share: float
    """Of the sampled pixels, those where any variable is outside."""
    variable: str
    """The one that is outside most often; "" for none."""
    variable_share: float
    clamped: bool
    pixels: int

    @property
    def sentence(self) -> str:
        """For the user of a map."""
        if not self.variable:
            return f"No variable is outside the trained range at {self.pixels:,} sampled pixels."
        done = "clamped to it" if self.clamped else "used as they are (--clamp limits them)"
        return (
            f"{self.share:.1%} of the map has values outside the trained range, most often {self.variable} "
            f"({self.variable_share:.1%}); they are {done}."
        )

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "share": round(self.share, 4),
            "variable": self.variable,
            "variable_share": round(self.variable_share, 4),
            "clamped": self.clamped,
            "sampled_pixels": self.pixels,
        }


def outside(plan: Plan, fitted: Fitted | None = None) -> Outside | None:
    """Compare the environment of a map with the trained range, at a grid of its pixels.

    The range is that of the places of a fit, else of the model. None where nothing is known of it, or nowhere covered.
    """
    spec = plan.model.layers.get("environment")
    names: Sequence[str] = [_in_words(v) for v in spec.variables] if isinstance(spec, StandardisedVariables) else ()
    if fitted is not None:
        low, high = fitted.reference.quantiles[0], fitted.reference.quantiles[-1]
        names = names or fitted.covariates.names
    elif isinstance(spec, StandardisedVariables):
        low, high = trained_range(spec)
    else:
        return None
    rows, cols = (np.unique(np.linspace(0, n - 1, SAMPLED).astype(int)) for n in plan.grid.shape)
    lon, lat = (a.ravel() for a in plan.grid.lonlat(rows, cols))
    keep = np.isfinite(lon) & (lat >= plan.model.domain[0]) & (lat <= plan.model.domain[1])
    mask = plan.targets[0].mask
    keep[keep] = LandMask().keep(mask, lon[keep], lat[keep])
    unclamped = replace(plan, sampling=replace(plan.sampling, clamp=False))
    environment, known = unclamped.environment(lon[keep], lat[keep])
    environment = environment[known]
    if not len(environment):
        return None
    beyond = (environment < low - MARGIN) | (environment > high + MARGIN)
    shares = beyond.mean(axis=0)
    most = int(shares.argmax())
    name = names[most] if shares[most] > 0 else ""
    any_beyond = float(beyond.any(axis=1).mean())
    return Outside(any_beyond, name, float(shares[most]), plan.sampling.clamp, len(environment))


def _in_words(variable: Variable) -> str:
    """Name of a variable of a model, also of a mean around the place."""
    meaning = around(variable.layer)
    if meaning is None:
        return variable_name(variable)
    return f"{variable_name(Variable(meaning.variable))}, mean within {meaning.km:g} km"


def baseline(plan: Plan, compare_with: Sequence[str]) -> Plan:
    """The same map of another climate: "current", the bundled layers, or rasters. Raises LayerError, RequestError."""
    if not plan.sampling.environment and plan.model.dim:
        raise RequestError("--compare-with compares rasters given with --environment; add them.")
    if CURRENT in compare_with and len(compare_with) > 1:
        raise RequestError(f"--compare-with {CURRENT} cannot be combined with rasters; give either.")
    if compare_with[0] == CURRENT:
        # By name, so that it is computed at every pixel as the scenario is: the change holds no interpolation.
        rasters: tuple[str, ...] = (str(data_file("bioclim.tif")),)
    else:
        rasters = tuple(absolute(path) for path in compare_with)
    plain = tuple(replace(target, trust=None, doubt=None) for target in plan.targets)
    other = replace(plan, sampling=replace(plan.sampling, environment=rasters), targets=plain)
    check_layers(other)
    return other
