"""Multimodal patching: weights between a locked and a fine-tuned state, chosen by a validation metric.

A new modality that is tuned together with the binding one fits better, and what the binding one was aligned to
before fits worse. TaxaBind (arXiv 2411.00683, section 3.3) interpolates the whole state of an encoder between the
two, `theta = (1 - alpha) * locked + alpha * fine-tuned`, one modality after another, each keeping the alpha with
the best zero-shot accuracy. Here also: several fine-tuned states of a modality at once, blended on a simplex,
and the alphas of all modalities searched together.

Interpolating weights goes back to WiSE-FT (Wortsman et al. 2022, arXiv 2109.01903) and to patching by
interpolation (Ilharco et al. 2022, arXiv 2208.05592).
"""

from __future__ import annotations

import csv
import io
import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from sdm.errors import ModelError, RequestError
from sdm.files.paths import replace_file

State = Mapping[str, Tensor]
"""Weights and buffers of one encoder, by name."""
States = Mapping[str, State]
"""By modality."""
FROZEN = ("frequencies", "windows", "capsule.0.b")
"""Ends of names of what is drawn once and never trained: between two draws lies no third, only noise."""
MODES = ("one", "sequential", "together", "joint", "average")
KEPT = 64
"""Embeddings of so many blends are kept for reuse."""


def blend(states: Sequence[State], weights: Sequence[float], what: str = "the encoder") -> dict[str, Tensor]:
    """The weighted mean of states of one architecture; the weights add up to 1.

    Computed in float32, returned in the types of the first. Whole numbers (counters) are those of the state with
    the largest weight; frozen random features must be the same in all. Raises ModelError, naming `what`, when the
    states differ in architecture or in frozen features.
    """
    if abs(sum(weights) - 1.0) > 1e-6:
        raise ValueError(f"the weights {weights} do not add up to 1")
    first, heaviest = states[0], states[int(np.argmax(weights))]
    for other in states[1:]:
        if differing := sorted(first.keys() ^ other.keys()):
            raise ModelError(f"{what} cannot be patched: the architectures differ, only one has {differing[0]}.")
        for key, value in first.items():
            if other[key].shape != value.shape:
                raise ModelError(
                    f"{what} cannot be patched: the architectures differ, {key} has the shape {tuple(value.shape)} in "
                    f"one and {tuple(other[key].shape)} in another."
                )
            if key.endswith(FROZEN) and not torch.equal(other[key].float(), value.float()):
                raise ModelError(
                    f"{what} cannot be patched: {key} was drawn anew, so the two do not descend from the same weights; "
                    "fine-tune from the locked model."
                )
    mixed = {}
    for key, value in first.items():
        if not value.is_floating_point() or key.endswith(FROZEN):
            mixed[key] = heaviest[key].clone()
        else:
            # An end point exactly, whatever the other holds.
            parts = [w * s[key].float() for s, w in zip(states, weights, strict=True) if w]
            mixed[key] = torch.stack(parts).sum(0).to(value.dtype)
    return mixed


def average(states: Sequence[State], what: str = "the encoder") -> dict[str, Tensor]:
    """The plain mean of states, e.g. of checkpoints along a run (SWA, Izmailov et al. 2018, arXiv 1803.05407)."""
    return blend(states, [1.0 / len(states)] * len(states), what)


def average_precisions(score: Tensor, present: Tensor) -> Tensor:
    """(S,) average precision of each species (column) over places (rows); as `evaluate.average_precision`.

    score (N, S), present (N, S) bool, every column with at least one presence.
    """
    order = score.T.contiguous().argsort(dim=1, descending=True, stable=True)
    hits = present.T.gather(1, order).float()
    precision = hits.cumsum(1) / torch.arange(1, hits.shape[1] + 1, device=hits.device)
    return (precision * hits).sum(1) / hits.sum(1)


class Validation(Protocol):
    """What alphas are judged by; never the test set."""

    metric: str
    """Its name, for tables."""

    def embed(self, modality: str, state: State) -> Tensor:
        """Unit embeddings (N, dim) of the validation set by an encoder with this state."""
        ...

    def score(self, embeddings: Mapping[str, Tensor]) -> float:
        """Higher is better; embeddings by modality."""
        ...


@dataclass(frozen=True)
class Trial:
    """One evaluation."""

    step: str
    """Which part of a search asked for it: "satellite" for a scan of that alpha, "coarse", "refine"."""
    alphas: tuple[float, ...]
    score: float


class Search:
    """Alphas by axis, an axis being a modality and one of its fine-tuned states; every evaluation is kept.

    `locked`: states of all modalities that the validation needs. `tuned`: fine-tuned states, each of some or all
    modalities. Alphas of one modality are at least 0 and add up to at most 1; the rest is the locked state's share.
    """

    def __init__(
        self,
        locked: States,
        tuned: Sequence[States],
        validation: Validation,
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
        for m in chosen:  # a refusal before the first evaluation rather than in the middle
            self.state(m, tuple(1.0 / len(self.axes) for _ in self.axes))

    @property
    def none(self) -> tuple[float, ...]:
        """All locked."""
        return (0.0,) * len(self.axes)

    def shares(self, modality: str, point: Sequence[float]) -> dict[int, float]:
        """Alphas of a modality at a point, by fine-tuned state."""
        return {k: float(a) for (m, k), a in zip(self.axes, point, strict=True) if m == modality}

    def state(self, modality: str, point: Sequence[float]) -> State:
        """The blended state of a modality at a point."""
        shares = {k: a for k, a in self.shares(modality, point).items() if a}
        if not shares:
            return self.locked[modality]
        states = [self.locked[modality], *(self.tuned[k][modality] for k in shares)]
        return blend(states, [1.0 - sum(shares.values()), *shares.values()], f"the {modality} encoder")

    def states(self, point: Sequence[float]) -> dict[str, State]:
        """Of all modalities that are patched."""
        return {m: self.state(m, point) for m, _ in self.axes}

    def embeddings(self, point: Sequence[float]) -> dict[str, Tensor]:
        """Of the validation set, by modality; what has been embedded before is reused."""
        found = {}
        for m in self.locked:
            key = (m, *self.shares(m, point).values())
            if key not in self._embeddings:
                self._embeddings[key] = self.validation.embed(m, self.state(m, point))
            self._embeddings.move_to_end(key)
            found[m] = self._embeddings[key]
        while len(self._embeddings) > max(KEPT, len(self.locked)):
            self._embeddings.popitem(last=False)
        return found

    def score(self, point: Sequence[float], step: str = "") -> float:
        """The metric at a point, -inf outside the simplex; computed once."""
        point = _rounded(point)
        inside = all(
            min(v := self.shares(m, point).values()) >= 0 and sum(v) <= 1 + 1e-9 for m in {m for m, _ in self.axes}
        )
        if not inside:
            return -math.inf
        if point not in self._scores:
            self._scores[point] = self.validation.score(self.embeddings(point))
            told = ", ".join(f"{n} {a:g}" for n, a in zip(self.names, point, strict=True))
            self.log(f"{step}: alpha of {told}: {self.validation.metric} {self._scores[point]:.4f}")
        self.trials.append(Trial(step, point, self._scores[point]))
        return self._scores[point]

    def scan(self, point: Sequence[float], axis: int, alphas: Sequence[float], step: str = "") -> tuple[float, ...]:
        """The best of some alphas on one axis, the others as at `point`; the smallest where several are best."""
        points = [_rounded((*point[:axis], a, *point[axis + 1 :])) for a in sorted(alphas)]
        return max(points, key=lambda p: self.score(p, step or self.names[axis]))

    def one(self, alphas: Sequence[float]) -> tuple[float, ...]:
        """Each axis alone; the best of all."""
        found = [self.scan(self.none, axis, alphas) for axis in range(len(self.axes))]
        return max(found, key=self._best)

    def sequential(self, alphas: Sequence[float]) -> tuple[float, ...]:
        """One axis after another, each from where the last one ended: the paper's way."""
        point = self.none
        for axis in range(len(self.axes)):
            point = self.scan(point, axis, alphas)
        return point

    def together(self, alphas: Sequence[float]) -> tuple[float, ...]:
        """One alpha for all modalities: WiSE-FT; several fine-tuned states share it equally."""
        each = [1.0 / len(self.shares(m, self.none)) for m, _ in self.axes]
        points = [_rounded(a * e for e in each) for a in sorted(alphas)]
        return max(points, key=lambda p: self.score(p, "together"))

    def joint(self, alphas: Sequence[float], coarse: int = 100, refine: int = 40, seed: int = 0) -> tuple[float, ...]:
        """All at once: a coarse grid, then axis by axis on the fine one, then Nelder and Mead's simplex.

        coarse: most points of the coarse grid; where the corners and middles of the box are more, as many random
        points. refine: most evaluations of the last step.
        """
        n = len(self.axes)
        if 3**n <= coarse:
            points = list(product((0.0, 0.5, 1.0), repeat=n))
        else:
            rng = np.random.default_rng(seed)
            points = [self.none, *(self._random(rng) for _ in range(coarse - 1))]
        best = max(points, key=lambda p: self.score(p, "coarse"))
        for _ in range(3):
            before = best
            for axis in range(n):
                best = self.scan(best, axis, sorted({*alphas, best[axis]}), "fine")
            if best == before:
                break
        if refine > n:
            self._simplex(best, refine)
        # The trials before count too: they were paid for.
        return max(self._scores, key=self._best)

    def _best(self, point: tuple[float, ...]) -> float:
        return self._scores[_rounded(point)]

    def _random(self, rng: np.random.Generator) -> tuple[float, ...]:
        """Uniform on the product of the simplices of the modalities."""
        point = dict.fromkeys(self.axes, 0.0)
        for modality in dict.fromkeys(m for m, _ in self.axes):
            own = [a for a in self.axes if a[0] == modality]
            point.update(zip(own, rng.dirichlet(np.ones(len(own) + 1))[1:].tolist(), strict=True))
        return tuple(round(point[a], 3) for a in self.axes)

    def _simplex(self, start: Sequence[float], most: int) -> None:
        from scipy.optimize import minimize

        x = np.array(start, float)
        # Steps of 0.1 towards the inside of the box.
        around = [x, *(x + np.where(np.arange(x.size) == k, 0.1 if x[k] < 0.5 else -0.1, 0) for k in range(x.size))]
        minimize(
            lambda p: -self.score(np.round(p, 3), "refine"), x, method="Nelder-Mead", bounds=[(0.0, 1.0)] * x.size,
            options={"initial_simplex": np.array(around), "maxfev": most, "xatol": 0.01, "fatol": 1e-5},
        )  # fmt: skip


def _rounded(point: Iterable[float]) -> tuple[float, ...]:
    """So that the same point is the same key, however it was come by."""
    return tuple(round(float(a), 6) for a in point)


def write_report(search: Search, chosen: Sequence[float], folder: Path) -> None:
    """patching.csv, every evaluation in order, and patching.png, the metric against alpha, into a folder.

    Without matplotlib there is no picture, and the search's log says so.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["step", *(f"alpha {n}" for n in search.names), search.validation.metric])
    writer.writerows([t.step, *(f"{a:g}" for a in t.alphas), f"{t.score:.6f}"] for t in search.trials)
    replace_file(folder / "patching.csv", text.getvalue().encode())
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        search.log("no patching.png: matplotlib is not installed (pip install 'taxabind-map[train]')")
        return
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.add_subplot()
    for axis, name in enumerate(search.names):
        # One line for each setting of the other alphas: a search may scan an axis more than once.
        lines: dict[tuple[float, ...], set[tuple[float, float]]] = {}
        for t in search.trials:
            if t.step == name:
                rest = (*t.alphas[:axis], *t.alphas[axis + 1 :])
                lines.setdefault(rest, set()).add((t.alphas[axis], t.score))
        for k, scan in enumerate(lines.values()):
            label = name if k == 0 else "_" + name  # an underscore keeps it out of the legend
            axes.plot(*zip(*sorted(scan), strict=True), color=f"C{axis}", marker="o", markersize=3, label=label)
    for step, tone in (("together", "black"), ("coarse", "0.8"), ("fine", "0.6"), ("refine", "0.4")):
        points = [(float(np.mean(t.alphas)), t.score) for t in search.trials if t.step == step]
        if points:
            axes.plot(*zip(*points, strict=True), ".", color=tone, markersize=4, label=f"{step} (mean alpha)")
    best = search.score(chosen, "chosen")
    axes.axhline(best, color="black", linewidth=0.8, linestyle=":", label=f"chosen: {best:.4f}")
    axes.set_xlabel("alpha: 0 locked, 1 fine-tuned")
    axes.set_ylabel(f"{search.validation.metric}, validation")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    content = io.BytesIO()
    FigureCanvasAgg(figure).print_png(content)
    replace_file(folder / "patching.png", content.getvalue())
