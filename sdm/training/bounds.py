"""What the numbers of a recipe must be, beside being numbers."""

from __future__ import annotations

from math import inf

MOST = 10**9
"""Of steps and the like."""

LIMITS: dict[str, tuple[float, float, str]] = {
    # [optimiser]
    "steps": (1, MOST, "[]"), "batch": (1, 1 << 20, "[]"), "warm_up": (0, 1, "()"), "restart_every": (0, MOST, "[]"),
    "betas": (0, 1, "[)"), "eps": (0, 1, "(]"), "clip": (0, inf, "[)"), "ema": (0, 1, "[)"), "seed": (0, 2**63, "[)"),
    "checkpoint_every": (1, MOST, "[]"), "validate_every": (0, MOST, "[]"), "snapshot_every": (0, MOST, "[]"),
    "learning_rate": (0, inf, "()"), "text_learning_rate": (0, inf, "[)"), "weight_decay": (0, inf, "[)"),
    "text_weight_decay": (0, inf, "[)"),
    # [objective] and [binding]
    "species_dropout": (0, 1, "[]"), "genus_dropout": (0, 1, "[]"), "dropout": (0, 1, "[)"),
    "env_dropout": (0, 1, "[)"), "start_scale": (0, 1e4, "(]"), "max_scale": (0, 1e6, "(]"),
    "places_per_cell": (1, 1000, "[]"),
    "temperature": (0, inf, "()"), "location_weights": (0, inf, "[)"), "sum_weight": (0, inf, "[)"),
    "modality_dropout": (0, 1, "[)"), "distil": (0, inf, "[)"),
    # [[data.source]]
    "share": (0, inf, "[)"), "weight": (0, inf, "[)"), "points_per_cell": (0, 1000, "[]"),
    "points_per_cell_sea": (0, 1000, "[]"), "land_share": (0, 1, "[]"), "points": (0, 10**7, "[]"),
    "cell_weight": (0, inf, "()"), "thin": (0, 90, "[]"), "min_records": (1, MOST, "[]"),
    "background_places": (0, 10**7, "[]"), "background_share": (0, 1, "()"), "margin": (0, 180, "[]"),
    # [architecture]
    "dim": (1, 16384, "[]"), "features": (1, 16384, "[]"), "width": (1, 16384, "[]"), "depth": (1, 64, "[]"),
    "sigmas": (0, inf, "()"), "pitch": (0, 90, "(]"), "size": (1, 1024, "[]"), "pixel": (0, 10, "(]"),
    # [evaluation]
    "held_out": (0, 1, "()"), "block_degrees": (0.01, 90, "[]"), "min_cells": (1, MOST, "[]"),
    "max_places": (1, 10**7, "[]"),
}  # fmt: skip
"""By key: lowest, highest, and whether those are allowed themselves, as one writes intervals."""


def broken(key: str, value: float) -> str:
    """The rule that a number breaks, in words; "" if it is allowed."""
    low, high, ends = LIMITS.get(key, (-inf, inf, "()"))
    above = value >= low if ends[0] == "[" else value > low
    below = value <= high if ends[1] == "]" else value < high
    if above and below:
        return ""
    rules = [f"{'at least' if ends[0] == '[' else 'above'} {low:,}"] if low > -inf else []
    rules += [f"{'at most' if ends[1] == ']' else 'below'} {high:,}"] if high < inf else []
    return " and ".join(rules) or "finite"
