"""The range that each number of a recipe must lie in."""

from __future__ import annotations

from math import inf
from typing import NamedTuple

MAX_COUNT = 10**9
"""Of steps and the like."""


class Interval(NamedTuple):
    """An interval of numbers."""

    low: float
    high: float
    ends: str
    """Brackets as in mathematics: "[" and "]" include the limit, "(" and ")" exclude it."""


OPTIMISER = {
    "steps": Interval(1, MAX_COUNT, "[]"),
    "batch": Interval(1, 1 << 20, "[]"),
    "warm_up": Interval(0, 1, "()"),
    "restart_every": Interval(0, MAX_COUNT, "[]"),
    "betas": Interval(0, 1, "[)"),
    "eps": Interval(0, 1, "(]"),
    "clip": Interval(0, inf, "[)"),
    "ema": Interval(0, 1, "[)"),
    "seed": Interval(0, 2**63, "[)"),
    "checkpoint_every": Interval(1, MAX_COUNT, "[]"),
    "validate_every": Interval(0, MAX_COUNT, "[]"),
    "snapshot_every": Interval(0, MAX_COUNT, "[]"),
    "learning_rate": Interval(0, inf, "()"),
    "text_learning_rate": Interval(0, inf, "[)"),
    "weight_decay": Interval(0, inf, "[)"),
    "text_weight_decay": Interval(0, inf, "[)"),
}
OBJECTIVE = {
    "species_dropout": Interval(0, 1, "[]"),
    "genus_dropout": Interval(0, 1, "[]"),
    "dropout": Interval(0, 1, "[)"),
    "env_dropout": Interval(0, 1, "[)"),
    "start_scale": Interval(0, 1e4, "(]"),
    "max_scale": Interval(0, 1e6, "(]"),
    "places_per_cell": Interval(1, 1000, "[]"),
}
BINDING = {
    "temperature": Interval(0, inf, "()"),
    "location_weights": Interval(0, inf, "[)"),
    "sum_weight": Interval(0, inf, "[)"),
    "modality_dropout": Interval(0, 1, "[)"),
    "distil": Interval(0, inf, "[)"),
}
SOURCE = {
    "share": Interval(0, inf, "[)"),
    "weight": Interval(0, inf, "[)"),
    "points_per_cell": Interval(0, 1000, "[]"),
    "points_per_cell_sea": Interval(0, 1000, "[]"),
    "land_share": Interval(0, 1, "[]"),
    "points": Interval(0, 10**7, "[]"),
    "cell_weight": Interval(0, inf, "()"),
    "thin": Interval(0, 90, "[]"),
    "min_records": Interval(1, MAX_COUNT, "[]"),
    "background_places": Interval(0, 10**7, "[]"),
    "background_share": Interval(0, 1, "()"),
    "margin": Interval(0, 180, "[]"),
}
ARCHITECTURE = {
    "dim": Interval(1, 16384, "[]"),
    "features": Interval(1, 16384, "[]"),
    "width": Interval(1, 16384, "[]"),
    "depth": Interval(1, 64, "[]"),
    "sigmas": Interval(0, inf, "()"),
    "pitch": Interval(0, 90, "(]"),
    "size": Interval(1, 1024, "[]"),
    "pixel": Interval(0, 10, "(]"),
}
EVALUATION = {
    "held_out": Interval(0, 1, "()"),
    "block_degrees": Interval(0.01, 90, "[]"),
    "min_cells": Interval(1, MAX_COUNT, "[]"),
    "max_places": Interval(1, 10**7, "[]"),
    "edge_weight": Interval(0, 1000, "[]"),
}
FIT = {
    "fit_steps": Interval(1, MAX_COUNT, "[]"),
    "species_decay": Interval(0, inf, "[)"),
    "group_decay": Interval(0, inf, "[)"),
}
LIMITS: dict[str, Interval] = {**OPTIMISER, **OBJECTIVE, **BINDING, **SOURCE, **ARCHITECTURE, **EVALUATION, **FIT}
"""By key; a key that several sections have means the same in each."""


def violated_limit(key: str, value: float) -> str:
    """The rule that a number violates, in words; "" if it is allowed."""
    low, high, ends = LIMITS.get(key, Interval(-inf, inf, "()"))
    above = value >= low if ends[0] == "[" else value > low
    below = value <= high if ends[1] == "]" else value < high
    if above and below:
        return ""
    rules = [f"{'at least' if ends[0] == '[' else 'above'} {low:,}"] if low > -inf else []
    rules += [f"{'at most' if ends[1] == ']' else 'below'} {high:,}"] if high < inf else []
    return " and ".join(rules) or "finite"
