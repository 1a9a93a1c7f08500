"""The curves of a run: one row of numbers every few steps, as a table and a picture."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path

from sdm.files.paths import replace_file


def column_names(rows: list[dict[str, float]]) -> list[str]:
    """Names of all numbers, in the order in which they first appear."""
    return list(dict.fromkeys(k for row in rows for k in row))


def write_curves(rows: list[dict[str, float]], path: Path) -> None:
    """Write rows as CSV in one step; a cell is empty where a row lacks that number."""
    text = io.StringIO()
    writer = csv.DictWriter(text, column_names(rows), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: f"{v:.6g}" for k, v in row.items()} for row in rows)
    replace_file(path, text.getvalue().encode())


def draw_curves(rows: list[dict[str, float]], path: Path, log: Callable[[str], None] = print) -> None:
    """Draw every number against the step, one panel each, as PNG; without matplotlib, only a line to the log."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        log(f"no {path.name}: matplotlib is not installed (pip install 'taxabind-map[train]')")
        return
    names = [n for n in column_names(rows) if n not in ("step", "seconds")]
    columns = min(3, max(1, len(names)))
    rows_of_panels = -(-len(names) // columns)
    figure = Figure(figsize=(4.2 * columns, 2.8 * rows_of_panels), layout="constrained")
    for k, name in enumerate(names):
        axes = figure.add_subplot(rows_of_panels, columns, k + 1)
        points = [row for row in rows if name in row]
        axes.plot([r["step"] for r in points], [r[name] for r in points], linewidth=1.2)
        axes.set_title(name, fontsize=9)
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.3)
    content = io.BytesIO()
    FigureCanvasAgg(figure).print_png(content)
    replace_file(path, content.getvalue())
