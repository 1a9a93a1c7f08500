"""Weighted means of the weights of encoders."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from sdm.errors import ModelError
from sdm.training.spaces import FROZEN_SUFFIXES, State


def blend(states: Sequence[State], weights: Sequence[float], what: str = "the encoder") -> dict[str, Tensor]:
    """The weighted mean of states of one architecture.

    It is computed in float32 and returned in the types of the first. Integers (counters) are those of the state with
    the largest weight; frozen random features must be the same in all.

    Parameters
    ----------
    states : the states
    weights : one per state; they add up to 1
    what : names the encoder in messages

    Raises
    ------
    ModelError : when the states differ in architecture or in frozen features
    """
    if abs(sum(weights) - 1.0) > 1e-6:
        raise ValueError(f"the weights {weights} do not add up to 1")
    first, heaviest = states[0], states[int(np.argmax(weights))]
    for other in states[1:]:
        _check_compatible(first, other, what)
    mixed = {}
    for key, value in first.items():
        if not value.is_floating_point() or key.endswith(FROZEN_SUFFIXES):
            mixed[key] = heaviest[key].clone()
        else:
            # States of weight 0 are skipped, so that an end point is exact even if another holds inf or NaN.
            parts = [w * s[key].float() for s, w in zip(states, weights, strict=True) if w]
            mixed[key] = torch.stack(parts).sum(0).to(value.dtype)
    return mixed


def _check_compatible(first: State, other: State, what: str) -> None:
    """Raise ModelError when two states differ in architecture or in frozen features."""
    if differing := sorted(first.keys() ^ other.keys()):
        raise ModelError(f"{what} cannot be patched: the architectures differ, only one has {differing[0]}.")
    for key, value in first.items():
        if other[key].shape != value.shape:
            raise ModelError(
                f"{what} cannot be patched: the architectures differ, {key} has the shape {tuple(value.shape)} in "
                f"one and {tuple(other[key].shape)} in another."
            )
        if key.endswith(FROZEN_SUFFIXES) and not torch.equal(other[key].float(), value.float()):
            raise ModelError(
                f"{what} cannot be patched: {key} differs, so the two do not descend from the same weights; "
                "fine-tune from the locked model."
            )


def average(states: Sequence[State], what: str = "the encoder") -> dict[str, Tensor]:
    """The plain mean of states, e.g. of checkpoints along a run (SWA, Izmailov et al. 2018, arXiv 1803.05407)."""
    return blend(states, [1.0 / len(states)] * len(states), what)
