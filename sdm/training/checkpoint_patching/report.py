"""The table and the plot of a search for alphas."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sdm.files.paths import replace_file
from sdm.training.checkpoint_patching.search import AlphaSearch

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def write_report(search: AlphaSearch, chosen: Sequence[float], folder: Path) -> None:
    """Write patching.csv, every evaluation in order, and patching.png, the metric against alpha, into a folder.

    Without matplotlib there is no plot, and the search's log says so.
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
    _draw(search, chosen, figure.add_subplot())
    content = io.BytesIO()
    FigureCanvasAgg(figure).print_png(content)
    replace_file(folder / "patching.png", content.getvalue())


def _draw(search: AlphaSearch, chosen: Sequence[float], axes: Axes) -> None:
    """The metric against alpha: a line per scan of an axis, dots for the other evaluations."""
    for axis, name in enumerate(search.names):
        # One line for each setting of the other alphas: a search may scan an axis more than once.
        lines: dict[tuple[float, ...], set[tuple[float, float]]] = {}
        for t in search.trials:
            if t.step == name:
                others = (*t.alphas[:axis], *t.alphas[axis + 1 :])
                lines.setdefault(others, set()).add((t.alphas[axis], t.score))
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
