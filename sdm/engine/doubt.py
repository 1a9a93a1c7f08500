"""How uncertain a pixel is beyond its probability, from how well the modalities of its place agree.

The embedding of a place is the sum of the unit embeddings of its modalities. Where they agree the sum is long, where
each points elsewhere it is short. On places that a model was not trained on, this length tells how often the map is
wrong among pixels of the same probability (`recipes/uncertainty.py` measures it, and fits what is here).
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

import numpy as np

from sdm.errors import ModelError
from sdm.models.config import calibration_key
from sdm.models.coverage import UNCOVERED
from sdm.outputs.metadata import Band
from sdm.request.choices import MODALITIES

FILE = "uncertainty.json"
"""In a model folder: {set of modalities: coefficients}. No embedding depends on it."""
STEPS = 250
"""Steps of the band between 0 and 1: without noise in their last digits, files are small and quickly written."""
LARGEST_LOGIT = 16.0
"""Beyond it a float32 probability is 0 or 1."""
MAX_BYTES = 1 << 16

UNCERTAINTY = Band(
    "uncertainty",
    "Twice the chance that the place is on the other side of one half than its probability: 0 sure, 1 no better than a "
    "guess",
    valid_range=(0.0, 1.0),
    limit=0.7,
    caution="one in three such places is on the other side of one half",
)


@dataclass(frozen=True)
class Doubt:
    """Presence where a map says `logit` and modalities agree by g: sigmoid(a + b logit + c g + d g logit)."""

    a: float
    b: float
    c: float
    d: float
    low: float
    high: float
    """Agreement between which this was measured; beyond it counts as these."""

    def uncertainty(self, probability: np.ndarray, agreement: np.ndarray) -> np.ndarray:
        """The band `UNCERTAINTY`, float32, of arrays of one shape; NaN where either is.

        Parameters
        ----------
        probability : values of the map.
        agreement : length of the sum of the modalities' unit embeddings divided by their number, 0 to 1; 0 also where
            the model has no reliable training data, which makes it at least `UNCOVERED`.
        """
        p = np.asarray(probability, dtype=np.float32)
        with np.errstate(divide="ignore", invalid="ignore"):
            logit = np.clip(np.log(p) - np.log1p(-p), -LARGEST_LOGIT, LARGEST_LOGIT)
        g = np.clip(np.asarray(agreement, dtype=np.float32), np.float32(self.low), np.float32(self.high))
        refined = np.float32(self.a) + np.float32(self.c) * g + (np.float32(self.b) + np.float32(self.d) * g) * logit
        # The chance of the other side: of presence below one half, of absence above.
        wrong = 1.0 / (1.0 + np.exp(np.where(logit > 0.0, refined, -refined)))
        twice = np.where(np.asarray(agreement) <= 0.0, np.maximum(2.0 * wrong, UNCOVERED), 2.0 * wrong)
        return (np.rint(np.minimum(twice, 1.0) * STEPS) / np.float32(STEPS)).astype(np.float32)

    @classmethod
    def read(cls, folder: Path, modalities: Sequence[str]) -> Self | None:
        """Of a set of modalities, from a model folder; None where it was not measured. Raises ModelError."""
        path = folder / FILE
        try:
            if not path.is_file():
                return None
            if path.stat().st_size > MAX_BYTES:
                raise ValueError(f"it has more than {MAX_BYTES} bytes")
            entry = json.loads(path.read_text(encoding="utf-8")).get(calibration_key(tuple(modalities)))
            if entry is None:
                return None
            numbers = {f.name: float(entry[f.name]) for f in fields(cls)}
            if not all(math.isfinite(v) and abs(v) < 1e3 for v in numbers.values()):
                raise ValueError("its coefficients are no small numbers")
            if not 0.0 <= numbers["low"] < numbers["high"] <= 1.0:
                raise ValueError("its bounds do not increase within 0..1")
            return cls(**numbers)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ModelError(f"model folder {str(folder)!r}: {FILE} cannot be read: {error}.") from error

    @property
    def explanation(self) -> str:
        """How the band is computed, as a formula."""
        return (
            f"With p of the map, L = ln(p / (1 - p)) and g the agreement within {self.low:g}..{self.high:g}: presence "
            f"has chance q = 1 / (1 + exp(-({self.a:g} {self.c:+g} g + ({self.b:g} {self.d:+g} g) L))); uncertainty "
            "is twice q where p is below one half, else twice 1 - q, at most 1."
        )

    def to_dict(self) -> dict[str, float]:
        """As JSON values."""
        return asdict(self)


def uncertainty(
    probability: Any, agreement: Any, model: str = "mammals-trees", modalities: Sequence[str] = MODALITIES
) -> Any:
    """The uncertainty of species from their probabilities and `agreement`, both from the Zarr store of a batch.

        data = xarray.open_zarr("west/probability.zarr")
        sdm.uncertainty(data.probability, data.agreement)

    Parameters
    ----------
    probability : (species, y, x) or any shape: values of maps of named species.
    agreement : (y, x), or a shape that broadcasts.
    model : bundled model, or a model folder.
    modalities : those of the maps.

    Returns
    -------
    float32 in the shape of `probability`, a DataArray (lazy, if they are) if they are DataArrays. See `UNCERTAINTY`.

    Raises
    ------
    ModelError : the model has no measure of uncertainty for these modalities.
    """
    from sdm.models.registry import open_model

    doubt = Doubt.read(open_model(model).folder, modalities)
    if doubt is None:
        raise ModelError(f"model {model!r} has no measure of uncertainty for {','.join(modalities)}.")
    if not hasattr(probability, "dims"):
        return doubt.uncertainty(probability, agreement)
    import xarray as xr

    out = xr.apply_ufunc(
        doubt.uncertainty, probability, agreement, dask="parallelized", output_dtypes=[np.float32], keep_attrs=False
    )
    return out.rename(UNCERTAINTY.name).assign_attrs(long_name=UNCERTAINTY.quantity, units=UNCERTAINTY.unit)
