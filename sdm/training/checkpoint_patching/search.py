"""The search for alphas: shares of fine-tuned states in the weights of each encoder, chosen by a metric."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Protocol

import numpy as np
from torch import Tensor

from sdm.errors import RequestError
from sdm.training.checkpoint_patching.blending import blend
from sdm.training.spaces import State, States

SEARCHES = ("one", "sequential", "together", "joint")
"""Methods of `AlphaSearch`."""
MAX_KEPT_EMBEDDINGS = 64
"""Embeddings of so many blends are kept for reuse."""
JOINT_POINTS = 100
"""Most points of the coarse grid of a joint search."""
REFINEMENTS = 40
"""Most evaluations of its last step."""


class Metric(Protocol):
    """What alphas are judged by, as `sdm.training.measures.validation.Validation`; never the test set."""

    metric: str
    """Name of the metric, for tables."""

    def embed(self, modality: str, state: State) -> Tensor:
        """Unit embeddings (N, dim) of the validation set by an encoder with this state."""
        ...

    def score(self, embeddings: Mapping[str, Tensor]) -> float:
        """The metric of embeddings by modality; higher is better."""
        ...


@dataclass(frozen=True)
class Trial:
    """One evaluation."""

    step: str
    """The part of the search: the name of an axis for a scan of its alpha, or together, coarse, fine, refine."""
    alphas: tuple[float, ...]
    score: float


class AlphaSearch:
    """A search with one axis, and one alpha, per modality and fine-tuned state; every evaluation is kept.

    The alphas of one modality are at least 0 and add up to at most 1; the locked state has the rest.

    Parameters
    ----------
    locked : states of all modalities that the validation needs
    tuned : fine-tuned states, each of some or all modalities
    validation : the metric
    modalities : those to patch, in order; None: all that are in both
    log : called with a line per evaluation
    """

    def __init__(
        self,
        locked: States,
        tuned: Sequence[States],
        validation: Metric,
        modalities: Sequence[str] | None = None,
        log: Callable[[str], None] = print,
    ) -> None:
        there = [m for m in locked if any(m in t for t in tuned)]
        chosen = list(modalities or there)
        if missing := [m for m in chosen if m not in there]:
            raise RequestError(f"modality {missing[0]!r} is not in both models; patch any of {', '.join(there)}.")
        self.locked, self.tuned, self.validation, self.log = locked, tuned, validation, log
        self.axes = [(m, k) for m in chosen for k, t in enumerate(tuned) if m in t]
        several = {m for m in chosen if sum(m in t for t in tuned) > 1}
        self.names = [f"{m} {k + 1}" if m in several else m for m, k in self.axes]
        self.trials: list[Trial] = []
        self._scores: dict[tuple[float, ...], float] = {}
        self._embeddings: OrderedDict[tuple, Tensor] = OrderedDict()
        for m in chosen:  # states that do not fit are refused now rather than in the middle of the search
            self.state(m, tuple(1.0 / len(self.axes) for _ in self.axes))

    @property
    def evaluations(self) -> int:
        """Number of different points that were evaluated."""
        return len(self._scores)

    @property
    def all_locked(self) -> tuple[float, ...]:
        """The point at which every alpha is 0."""
        return (0.0,) * len(self.axes)

    def shares(self, modality: str, point: Sequence[float]) -> dict[int, float]:
        """{number of the fine-tuned state: alpha} of a modality at a point."""
        return {k: float(a) for (m, k), a in zip(self.axes, point, strict=True) if m == modality}

    def state(self, modality: str, point: Sequence[float]) -> State:
        """The blended state of a modality at a point."""
        shares = {k: a for k, a in self.shares(modality, point).items() if a}
        if not shares:
            return self.locked[modality]
        states = [self.locked[modality], *(self.tuned[k][modality] for k in shares)]
        return blend(states, [1.0 - sum(shares.values()), *shares.values()], f"the {modality} encoder")

    def states(self, point: Sequence[float]) -> dict[str, State]:
        """The blended states of all modalities that are patched."""
        return {m: self.state(m, point) for m, _ in self.axes}

    def embeddings(self, point: Sequence[float]) -> dict[str, Tensor]:
        """Embeddings of the validation set by modality; those of earlier blends are reused."""
        embeddings = {}
        for m in self.locked:
            key = (m, *self.shares(m, point).values())
            if key not in self._embeddings:
                self._embeddings[key] = self.validation.embed(m, self.state(m, point))
            self._embeddings.move_to_end(key)
            embeddings[m] = self._embeddings[key]
        while len(self._embeddings) > max(MAX_KEPT_EMBEDDINGS, len(self.locked)):
            self._embeddings.popitem(last=False)
        return embeddings

    def score(self, point: Sequence[float], step: str = "") -> float:
        """The metric at a point, -inf outside the simplex; computed once."""
        point = _rounded(point)
        for m in {m for m, _ in self.axes}:
            shares = self.shares(m, point).values()
            if min(shares) < 0 or sum(shares) > 1 + 1e-9:
                return -math.inf
        if point not in self._scores:
            self._scores[point] = self.validation.score(self.embeddings(point))
            alphas = ", ".join(f"{n} {a:g}" for n, a in zip(self.names, point, strict=True))
            self.log(f"{step}: alpha of {alphas}: {self.validation.metric} {self._scores[point]:.4f}")
        self.trials.append(Trial(step, point, self._scores[point]))
        return self._scores[point]

    def scan(self, point: Sequence[float], axis: int, alphas: Sequence[float], step: str = "") -> tuple[float, ...]:
        """The best of some alphas on one axis, the others as at `point`; the smallest if several are best."""
        points = [_rounded((*point[:axis], a, *point[axis + 1 :])) for a in sorted(alphas)]
        return max(points, key=lambda p: self.score(p, step or self.names[axis]))

    def one(self, alphas: Sequence[float]) -> tuple[float, ...]:
        """Each axis alone; the best of all."""
        points = [self.scan(self.all_locked, axis, alphas) for axis in range(len(self.axes))]
        return max(points, key=self._known_score)

    def sequential(self, alphas: Sequence[float]) -> tuple[float, ...]:
        """One axis after another, each starting from the result of the last: the method of the paper."""
        point = self.all_locked
        for axis in range(len(self.axes)):
            point = self.scan(point, axis, alphas)
        return point

    def together(self, alphas: Sequence[float]) -> tuple[float, ...]:
        """One alpha for all modalities, as WiSE-FT; several fine-tuned states share it equally."""
        shares = [1.0 / len(self.shares(m, self.all_locked)) for m, _ in self.axes]
        points = [_rounded(a * s for s in shares) for a in sorted(alphas)]
        return max(points, key=lambda p: self.score(p, "together"))

    def joint(self, alphas: Sequence[float], seed: int = 0) -> tuple[float, ...]:
        """All alphas at once: a coarse grid, then axis by axis on the fine one, then the Nelder-Mead simplex.

        The coarse grid has the corners and middles of the box; where these are more than JOINT_POINTS, as many random
        points.
        """
        n = len(self.axes)
        if 3**n <= JOINT_POINTS:
            points = list(product((0.0, 0.5, 1.0), repeat=n))
        else:
            rng = np.random.default_rng(seed)
            points = [self.all_locked, *(self._random_point(rng) for _ in range(JOINT_POINTS - 1))]
        best = max(points, key=lambda p: self.score(p, "coarse"))
        for _ in range(3):
            before = best
            for axis in range(n):
                best = self.scan(best, axis, sorted({*alphas, best[axis]}), "fine")
            if best == before:
                break
        if n < REFINEMENTS:
            self._refine(best)
        return max(self._scores, key=self._known_score)  # over earlier searches too

    def _known_score(self, point: tuple[float, ...]) -> float:
        return self._scores[_rounded(point)]

    def _random_point(self, rng: np.random.Generator) -> tuple[float, ...]:
        """Uniform on the product of the simplices of the modalities."""
        point = dict.fromkeys(self.axes, 0.0)
        for modality in dict.fromkeys(m for m, _ in self.axes):
            own = [a for a in self.axes if a[0] == modality]
            point.update(zip(own, rng.dirichlet(np.ones(len(own) + 1))[1:].tolist(), strict=True))
        return tuple(round(point[a], 3) for a in self.axes)

    def _refine(self, start: Sequence[float]) -> None:
        """Evaluate around a point by the Nelder-Mead simplex method."""
        from scipy.optimize import minimize

        x = np.array(start, float)

        def negative_score(p: np.ndarray) -> float:
            return -self.score(np.round(p, 3).tolist(), "refine")

        # Steps of 0.1 towards the inside of the box.
        steps = [np.where(np.arange(x.size) == k, 0.1 if x[k] < 0.5 else -0.1, 0) for k in range(x.size)]
        minimize(
            negative_score,
            x,
            method="Nelder-Mead",
            bounds=[(0.0, 1.0)] * x.size,
            options={
                "initial_simplex": np.array([x, *(x + step for step in steps)]),
                "maxfev": REFINEMENTS,
                "xatol": 0.01,
                "fatol": 1e-5,
            },
        )


def _rounded(point: Iterable[float]) -> tuple[float, ...]:
    """A point as a key, the same for all ways to compute it."""
    return tuple(round(float(a), 6) for a in point)
