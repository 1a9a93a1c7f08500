"""What a fit makes of its variables: response curves and permutation importance.

Both ask only for a function from a table of variables, shape (n, p), to scores, shape (n,).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from sdm.records import measures

Floats: TypeAlias = npt.NDArray[np.float64]
Predict: TypeAlias = Callable[[Floats], Floats]


@dataclass(frozen=True)
class Response:
    """How the score changes with one variable while the others stay as they are."""

    name: str
    x: Floats
    """Values of the variable, shape (k,)."""
    mean: Floats
    """Mean score over places, shape (k,)."""
    low: Floats
    """10th percentile over places."""
    high: Floats
    """90th percentile over places."""
    presences: Floats
    """Deciles of the variable at the presences, 10th to 90th, shape (9,)."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        arrays = ("x", "mean", "low", "high", "presences")
        return {"name": self.name} | {name: getattr(self, name).tolist() for name in arrays}


@dataclass(frozen=True)
class Importance:
    """How much the AUC falls when one variable, or one group of them, is shuffled between places."""

    name: str
    drop: float
    """Mean over the repeats."""
    spread: float
    """Standard deviation over the repeats."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {"name": self.name, "drop_of_auc": self.drop, "standard_deviation": self.spread}


def responses(
    predict: Predict,
    table: npt.ArrayLike,
    present: npt.ArrayLike,
    columns: Mapping[str, int],
    *,
    points: int = 40,
    places: int = 200,
    seed: int = 0,
) -> tuple[Response, ...]:
    """Partial dependence (Friedman 2001, Ann. Stat. 29:1189) of the score on single variables.

    Parameters
    ----------
    predict : from a table (n, p) to scores (n,)
    table : variables at presences and other places, shape (n, p)
    present : True for presences, shape (n,)
    columns : name and column of each variable wanted
    points : values per curve, between the 1st and 99th percentile
    places : places that the score is averaged over, drawn with `seed`
    """
    table, is_present = np.asarray(table, float), np.asarray(present, bool)
    others = np.flatnonzero(~is_present)
    others = others if others.size else np.arange(len(table))
    random = np.random.default_rng(seed)
    base = table[np.sort(random.choice(others, min(places, others.size), replace=False))]
    curves = []
    for name, column in columns.items():
        low, high = np.percentile(table[:, column], [1, 99])
        x = np.linspace(low, high, points)
        changed = np.repeat(base[None], points, axis=0)
        changed[:, :, column] = x[:, None]
        scores = np.asarray(predict(changed.reshape(-1, table.shape[1])), float).reshape(points, -1)
        deciles = np.percentile(table[is_present, column], np.arange(10, 100, 10))
        band = np.percentile(scores, [10, 90], axis=1)
        curves.append(Response(name, x, scores.mean(axis=1), band[0], band[1], deciles))
    return tuple(curves)


def importance(
    predict: Predict,
    table: npt.ArrayLike,
    present: npt.ArrayLike,
    groups: Mapping[str, Sequence[int]],
    *,
    repeats: int = 5,
    seed: int = 0,
) -> tuple[Importance, ...]:
    """Permutation importance (Breiman 2001, Mach. Learn. 45:5), the most important first.

    Parameters
    ----------
    predict : from a table (n, p) to scores (n,)
    table : variables at presences and other places, best such as were not trained on, shape (n, p)
    present : True for presences, shape (n,)
    groups : name and columns of each variable, or of variables that are shuffled together
    repeats : shuffles of each
    """
    table, is_present = np.asarray(table, float), np.asarray(present, bool)

    def auc(values: Floats) -> float:
        scores = np.asarray(predict(values), float)
        return measures.auc(scores[is_present], scores[~is_present])

    whole, random = auc(table), np.random.default_rng(seed)
    orders = [random.permutation(len(table)) for _ in range(repeats)]  # the same for all, so that they compare
    results = []
    for name, columns in groups.items():
        drops, index = [], np.asarray(columns, dtype=np.int64)
        for order in orders:
            shuffled = table.copy()
            shuffled[:, index] = table[np.ix_(order, index)]
            drops.append(whole - auc(shuffled))
        results.append(Importance(name, float(np.mean(drops)), float(np.std(drops))))
    return tuple(sorted(results, key=lambda one: (-one.drop, one.name)))
