"""Whether records improve on the zero-shot map of a known species, by leaving some of them out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from sdm.records.folds import blocks

FOLDS = 5
BLOCKS_KM = (500.0, 250.0, 100.0, 50.0, 25.0)
LEAST_BLOCKS = 15
LEAST_NEAR = 30
CAUTION, CAUTION_FEW, FEW = 1.0, 1.75, 30
"""Standard errors that the mean gain against the target group must exceed 0 by; the second below `FEW` presences.

Against random land nearly every fit is better than the zero-shot map, and a mean gain of 0 is enough. Against the
target group a third are worse, and ten left-out records hardly show it. Known species of iNaturalist, half and half,
that a fit made worse by more than 0.01 AUC in either contrast: with 10 records 39 % without a gate, 14 % with half a
standard error and 4 % with 1.75, which keeps the zero-shot map of 73 % (112 species). With 30 records 26 % without,
9 % with half and 4 % with one, for 0.009 and 0.003 less gain against land and group (23 species); 1.75 would leave
none, for 0.047 less. Errors between folds in place of records, and an error against land too, were no better."""


@dataclass(frozen=True)
class Evidence:
    """Gains in AUC over the zero-shot map at left-out presences: by contrast ("land", "group"), mean and its error."""

    gains: dict[str, tuple[float, float]]
    presences: int

    @property
    def accepted(self) -> bool:
        """Whether the fit is at least as good in every contrast."""
        return all(mean >= self._needed(name, error) for name, (mean, error) in self.gains.items())

    def _needed(self, contrast: str, error: float) -> float:
        if contrast != "group":
            return 0.0
        return (CAUTION if self.presences >= FEW else CAUTION_FEW) * error

    def sentence(self) -> str:
        """The evidence and what follows from it, as one sentence."""
        numbers = ", ".join(f"{mean:+.3f} ± {error:.3f} against {name}" for name, (mean, error) in self.gains.items())
        verdict = "the fit is used" if self.accepted else "the zero-shot map is kept"
        return f"At left-out records, the gain in AUC over the zero-shot map is {numbers}: {verdict}."


def leave_out(
    fold: np.ndarray,
    presence: np.ndarray,
    contrasts: dict[str, np.ndarray],
    scores_without: Callable[[np.ndarray], np.ndarray],
    zero_shot: np.ndarray,
) -> Evidence:
    """Compare a fit with the zero-shot map at presences that the fit did not see.

    Parameters
    ----------
    fold : (R,) fold of each place, -1 for one that is never left out.
    presence : (R,) bool.
    contrasts : by name, which places (R,) bool presences are compared with. Of "group" only those left out too count,
        where there are enough: a fit has learned that the others are no presences.
    scores_without : given which places (R,) bool are left out, fits to the others and returns the scores (R,) of all.
    zero_shot : (R,) scores.
    """
    gains = {name: np.zeros(fold.size) for name in contrasts}
    for number in np.unique(fold[presence]):
        out = fold == number
        scores, seen = scores_without(out), out & presence
        for name, mask in contrasts.items():
            near = mask & out
            other = near if name == "group" and np.count_nonzero(near) >= LEAST_NEAR else mask
            before = share_below(zero_shot[other], zero_shot[seen])
            gains[name][seen] = share_below(scores[other], scores[seen]) - before
    found = {name: _mean_and_error(gain[presence]) for name, gain in gains.items()}
    return Evidence(found, int(np.count_nonzero(presence)))


def neighbour_folds(
    lon: np.ndarray, lat: np.ndarray, presence: np.ndarray, count: int = FOLDS, seed: int = 0
) -> np.ndarray:
    """Folds of places (R,) such that presences in one lie near each other; -1: in none.

    Whole blocks where there are enough of them, of the largest size of which at least `LEAST_BLOCKS` hold presences;
    a fit without a block sees none of its background places either, or it would learn that nothing lives there. Else
    the presences alone are put in order along the axis of their largest extent, and that is cut into equal parts.
    """
    for side in BLOCKS_KM:
        block = blocks(lon, lat, side)
        occupied = np.unique(block[presence])
        if occupied.size >= LEAST_BLOCKS:
            number = np.full(int(block.max()) + 1, -1)
            number[occupied] = np.random.default_rng(seed).permutation(occupied.size) % count
            return number[block]
    seen = np.flatnonzero(presence)
    east, north = np.unwrap(np.radians(lon[seen])), np.radians(lat[seen])
    x = np.column_stack([east * np.cos(north.mean()), north])
    x = x - x.mean(axis=0)
    axis = np.linalg.svd(x, full_matrices=False)[2][0]
    fold = np.full(lon.size, -1)
    for k, part in enumerate(np.array_split(np.argsort(x @ axis, kind="stable"), min(count, seen.size))):
        fold[seen[part]] = k
    return fold


def share_below(background: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Share of the background (B,) that scores lower than each of (n,), ties counted half: its part of an AUC."""
    ordered = np.sort(background)
    below, upto = (np.searchsorted(ordered, scores, side=side) for side in ("left", "right"))
    return 0.5 * (below + upto) / ordered.size


def _mean_and_error(gain: np.ndarray) -> tuple[float, float]:
    error = float(gain.std(ddof=1) / np.sqrt(gain.size)) if gain.size > 1 else float("inf")
    return float(gain.mean()), error
