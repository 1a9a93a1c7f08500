"""Simple methods that a fit is compared with in the same folds.

A method is a function of the indices to train on that returns a function of the indices to score.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from sdm.records.sphere import nearest_km, unit_vectors

Indices: TypeAlias = npt.NDArray[np.int64]
Scores: TypeAlias = npt.NDArray[np.float64]
Scorer: TypeAlias = Callable[[Indices], Scores]
Fitter: TypeAlias = Callable[[Indices], Scorer]


def distance_to_records(lon: npt.ArrayLike, lat: npt.ArrayLike, present: npt.ArrayLike) -> Fitter:
    """The nearer to a training presence, the more suitable: minus the distance in km.

    Any model of the environment should beat it between blocks; between random folds few do.
    """
    points, is_present = unit_vectors(lon, lat), np.asarray(present, bool)

    def fit(train: Indices) -> Scorer:
        records = points[train[is_present[train]]]
        return lambda test: -nearest_km(points[test], records)

    return fit


def fixed_scores(scores: npt.ArrayLike) -> Fitter:
    """A map made without the records, such as the zero-shot map: its values at all places, shape (n,)."""
    values = np.asarray(scores, float)
    return lambda train: lambda test: values[test]


def has_elapid() -> bool:
    """Whether elapid, a Maxent in Python, is installed."""
    return find_spec("elapid") is not None


def elapid_maxent(features: npt.ArrayLike, present: npt.ArrayLike) -> Fitter:
    """elapid's Maxent at its defaults (cloglog) on `features` (n, p), numbers only.

    A fold in which elapid fails is scored NaN. Only where `has_elapid`.
    """
    table, is_present = np.asarray(features, float), np.asarray(present, bool)

    def fit(train: Indices) -> Scorer:
        import elapid

        model = elapid.MaxentModel()
        try:
            model.fit(table[train], is_present[train].astype(int))
        except (ValueError, RuntimeError, ArithmeticError, np.linalg.LinAlgError):
            return lambda test: np.full(test.size, np.nan)
        return lambda test: np.asarray(model.predict(table[test]), float).ravel()

    return fit
