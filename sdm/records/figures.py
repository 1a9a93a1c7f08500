"""Figures of the report as SVG to put into a page: no scripts, no requests, the same bytes every time."""

from __future__ import annotations

import io
import json
import math
import re
import textwrap
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import shapely

from sdm.outputs.overlay import MAX_LATITUDE, RADIUS, Overlay, mercator, palette
from sdm.records import measures
from sdm.records.decided import Decided
from sdm.records.explain import Importance, Response
from sdm.records.folds import Folds
from sdm.records.thresholds import Threshold

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Floats = npt.NDArray[np.float64]

METHOD = "#24527a"
CONTRAST_COLOURS = {"land": METHOD, "group": "#c2601c", "absences": "#3f7d4e"}
_OTHERS = ("#8a6fb0", "#a3852f", "#4f9a9a", "#b8577d", "#7c8792", "#5f7fd0")
_FOLDS = ("#24527a", "#d0772c", "#4c9a63", "#a6508a", "#c9a227", "#5aa7c7", "#8c5a3c", "#76808c", "#d05a5a", "#6b66b5")
_INK, _SOFT, _LAND, _SEA = "#1d2530", "#5b6673", "#eceae2", "#f7f9fb"

_STYLE = {
    "svg.fonttype": "none",  # the reader's own fonts: any script can be displayed, and text can be searched
    "text.parse_math": False,  # names from outside are no formulas
    "font.size": 9.0,
    "axes.labelcolor": _SOFT,
    "axes.edgecolor": "#a9b2bc",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlecolor": _INK,
    "xtick.color": "#a9b2bc",
    "ytick.color": "#a9b2bc",
    "xtick.labelcolor": _SOFT,
    "ytick.labelcolor": _SOFT,
    "legend.frameon": False,
    "legend.fontsize": 8.0,
    "legend.labelcolor": _INK,
    "lines.solid_capstyle": "round",
}

_LOCK = threading.Lock()  # matplotlib's settings belong to the process


@dataclass(frozen=True)
class Figure:
    """A figure as an SVG element, and what it shows in words."""

    name: str
    svg: str
    text: str
    width: float
    """Largest width on the page, in inches of 110 pixels."""


@dataclass(frozen=True)
class Line:
    """Scores of presences and of comparison places that become one line of a curve."""

    label: str
    presence: Floats
    others: Floats
    colour: str
    width: float = 1.2
    dashed: bool = False


def other_colour(number: int) -> str:
    """Colour of the baseline with this number."""
    return _OTHERS[number % len(_OTHERS)]


@dataclass(frozen=True)
class Size:
    """Size of a figure and the margins around its axes, in inches."""

    width: float
    height: float
    left: float = 0.52
    right: float = 0.1
    bottom: float = 0.46
    top: float = 0.16

    @property
    def axes(self) -> tuple[float, float, float, float]:
        """Left, bottom, width and height of the axes as shares of the figure."""
        inner = (self.width - self.left - self.right) / self.width, (self.height - self.bottom - self.top) / self.height
        return (self.left / self.width, self.bottom / self.height, *inner)


_SQUARE = Size(4.1, 3.7)


def draw(name: str, text: str, size: Size, paint: Callable[[Axes], None]) -> Figure:
    """Let `paint` draw on axes of a figure; `name` keeps its parts apart from those of other figures."""
    import matplotlib.style
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure as Canvas

    with _LOCK, matplotlib.style.context(["default", {**_STYLE, "svg.hashsalt": name}]):
        # Fixed margins: to let matplotlib find them takes as long as the drawing.
        figure = Canvas(figsize=(size.width, size.height))
        FigureCanvasSVG(figure)
        paint(figure.add_axes(size.axes))
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", facecolor="none", metadata={"Date": None})
    return Figure(name, _inlined(buffer.getvalue(), name), text, size.width)


def _inlined(svg: str, name: str) -> str:
    """The <svg> element alone, without its size, with identifiers of its own."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # A rule for everything in the page; the page has it for figures.
    svg = re.sub(r"<style[^>]*>\*\{[^}]*\}</style>", "", svg)
    svg = re.sub(r"<!--.*?-->\s*", "", svg, flags=re.DOTALL)
    head, rest = svg.split(">", 1)
    head = re.sub(r'\s(width|height|version|xmlns(:\w+)?)="[^"]*"', "", head)
    svg = f"{head}>{rest}"
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r"url\(#", f"url(#{name}-", svg)
    return re.sub(r'href="#', f'href="#{name}-', svg).strip()


def roc(lines: Sequence[Line]) -> Figure:
    """ROC curves."""

    def paint(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color="#c9d0d7", linewidth=1)
        for line in lines:
            _curve(axes, line, measures.roc(line.presence, line.others))
        _unit_square(axes, "Share of comparison places predicted", "Share of presences predicted")
        axes.legend(loc="lower right", handlelength=1.6)

    return draw("roc", "ROC curves", _SQUARE, paint)


def prg(lines: Sequence[Line]) -> Figure:
    """Precision-recall-gain curves."""

    def paint(axes: Axes) -> None:
        for line in lines:
            _curve(axes, line, measures.prg(line.presence, line.others))
        axes.axhline(0, color="#c9d0d7", linewidth=1)
        _unit_square(axes, "Recall gain", "Precision gain")

    return draw("prg", "Precision-recall-gain curves", _SQUARE, paint)


def boyce(lines: Sequence[Line]) -> Figure:
    """Ratio of presences to comparison places along the score, the curve of the Boyce index."""

    def paint(axes: Axes) -> None:
        axes.axhline(1, color="#c9d0d7", linewidth=1)
        for line in lines:
            curve = measures.boyce(line.presence, line.others).curve
            axes.plot(curve.x, curve.y, **_stroke(line))
        axes.set_xlabel("Score")
        axes.set_ylabel("Ratio to chance")
        axes.set_ylim(bottom=0)
        axes.locator_params(axis="y", nbins=5)
        axes.legend(loc="upper left", handlelength=1.6)

    # Ratios may have three digits, so their labels need a wider margin than those of shares.
    size = replace(_SQUARE, left=0.66)
    return draw("boyce", "Ratio of presences to comparison places along the score", size, paint)


def calibration(line: Line) -> Figure:
    """Observed frequency against predicted probability."""
    p = np.concatenate([line.presence, line.others])
    result = measures.calibration(p, np.arange(p.size) < line.presence.size)

    def paint(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color="#c9d0d7", linewidth=1)
        axes.plot(result.predicted, result.observed, marker="o", markersize=4, **_stroke(line))
        _unit_square(axes, "Predicted probability", "Observed share of presences")
        note = f"Calibration error {result.error:.3f}\n{result.count.size} bins of equal size"
        axes.text(0.04, 0.96, note, transform=axes.transAxes, va="top", color=_SOFT, fontsize=8)

    return draw("calibration", "Calibration curve", _SQUARE, paint)


def omission(line: Line, thresholds: Sequence[Threshold] = ()) -> Figure:
    """Presences missed and area predicted against the threshold."""

    def paint(axes: Axes) -> None:
        low, high = min(line.presence.min(), line.others.min()), max(line.presence.max(), line.others.max())
        at = np.linspace(low, high, 200)
        axes.plot(at, measures.omission(line.presence, at), color=METHOD, linewidth=1.8, label="Presences missed")
        area = measures.share_above(line.others, at)
        axes.plot(at, area, color="#4c9a63", linewidth=1.8, label="Area predicted")
        _threshold_marks(axes, [one for one in thresholds if low <= one.value <= high], high - low)
        axes.set_xlabel("Threshold")
        axes.set_ylabel("Share")
        axes.set_ylim(-0.02, 1.28)
        axes.set_yticks(np.linspace(0, 1, 6))
        axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 0.98), ncols=2, handlelength=1.6)

    return draw("omission", "Omission and predicted area by threshold", Size(4.1, 3.7, top=0.34), paint)


def _threshold_marks(axes: Axes, thresholds: Sequence[Threshold], span: float) -> None:
    """Dashed lines with the names of the rules, on other rows where they would overlap."""
    ends = [-math.inf] * 4
    for one in sorted(thresholds, key=lambda each: each.value):
        half = (0.013 * len(one.rule) + 0.012) * span
        row = next((at for at, end in enumerate(ends) if one.value - half > end), len(ends) - 1)
        ends[row] = one.value + half
        axes.plot([one.value] * 2, [-0.02, 1.03 + 0.065 * row], color="#a9b2bc", linewidth=0.9, linestyle=(0, (3, 2)))
        axes.text(one.value, 1.035 + 0.065 * row, one.rule, ha="center", va="bottom", color=_SOFT, fontsize=7.5)


def response(number: int, curve: Response) -> Figure:
    """The response curve of one variable."""

    def paint(axes: Axes) -> None:
        axes.fill_between(curve.x, curve.low, curve.high, color=METHOD, alpha=0.13, linewidth=0)
        axes.plot(curve.x, curve.mean, color=METHOD, linewidth=1.8)
        floor, top = float(curve.low.min()), float(curve.high.max())
        room = 0.06 * (top - floor or 1.0)
        axes.set_ylim(floor - 2 * room, top + room)
        marks = curve.presences[(curve.presences >= curve.x[0]) & (curve.presences <= curve.x[-1])]
        axes.plot(marks, np.full(marks.size, floor - room), "|", color=_INK, markersize=6, markeredgewidth=0.9)
        # As a text: of a title matplotlib measures all tick labels first, to keep it clear of them.
        title = textwrap.fill(_short(curve.name, 58), 30)
        axes.text(0, 1.04, title, transform=axes.transAxes, va="bottom", fontsize=8.5, fontweight="bold", color=_INK)
        axes.locator_params(axis="both", nbins=5)

    return draw(
        f"response{number}", f"Response to {curve.name}", Size(2.9, 2.35, left=0.42, bottom=0.28, top=0.41), paint
    )


def importance(rows: Sequence[Importance], most: int = 15) -> Figure:
    """Bars of permutation importance."""
    rows = rows[:most]

    def paint(axes: Axes) -> None:
        y = np.arange(len(rows))[::-1]
        drop = [row.drop for row in rows]
        axes.barh(y, drop, xerr=[row.spread for row in rows], color=METHOD, height=0.62, ecolor="#9fb3c6")
        axes.set_yticks(y, [_short(row.name, 32) for row in rows])
        axes.tick_params(axis="y", length=0, labelcolor=_INK)
        axes.axvline(0, color="#a9b2bc", linewidth=0.8)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel("Fall of AUC when shuffled")

    return draw(
        "importance", "Importance of the variables", Size(6.2, 0.6 + 0.26 * len(rows), left=2.5, top=0.04), paint
    )


def decided(rows: Sequence[Decided]) -> Figure:
    """Bars of the shares of the parts of a score, at presences and at comparison places."""

    def paint(axes: Axes) -> None:
        y = np.arange(len(rows))[::-1]
        axes.barh(y + 0.19, [100 * row.presences for row in rows], color=METHOD, height=0.36, label="presences")
        others = [100 * row.others for row in rows]
        axes.barh(y - 0.19, others, color="#c3cdd6", height=0.36, label="comparison places")
        axes.set_yticks(y, [_short(row.name, 32) for row in rows])
        axes.tick_params(axis="y", length=0, labelcolor=_INK)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel("Share of the score (%)")
        axes.legend(loc="lower right", frameon=False)

    return draw("decided", "What decides the score", Size(6.2, 0.7 + 0.34 * len(rows), left=2.5, top=0.04), paint)


@dataclass(frozen=True)
class View:
    """A piece of the globe in Web Mercator; degrees, east may exceed 180."""

    west: float
    south: float
    east: float
    north: float

    def xy(self, lon: npt.ArrayLike, lat: npt.ArrayLike) -> tuple[Floats, Floats]:
        """Mercator metres from the western edge, and northing; longitudes are turned into the view."""
        lon = np.asarray(lon, float)
        middle = (self.west + self.east) / 2
        lon = lon - 360.0 * np.floor((lon - middle) / 360.0 + 0.5)
        latitude = np.radians(np.clip(np.asarray(lat, float), -MAX_LATITUDE, MAX_LATITUDE))
        return np.radians(lon - self.west) * RADIUS, RADIUS * np.arcsinh(np.tan(latitude))

    @property
    def extent(self) -> tuple[float, float, float, float]:
        """Left, right, bottom, top in metres."""
        width = math.radians(self.east - self.west) * RADIUS
        return 0.0, width, mercator(self.south), mercator(self.north)


def fit_view(lon: npt.ArrayLike, lat: npt.ArrayLike) -> View:
    """The view that holds all positions (degrees) with a margin, whichever side of 180 degrees they are."""
    lat, around = np.asarray(lat, float), np.sort(np.asarray(lon, float) % 360.0)
    gaps = np.diff(around, append=around[0] + 360.0)
    widest = int(gaps.argmax())
    west, width = float(around[(widest + 1) % around.size]), 360.0 - float(gaps[widest])
    margin = max(1.0, 0.12 * max(width, float(np.ptp(lat))))
    west = west - 360.0 if west >= 180.0 else west
    if width + 2 * margin >= 360:
        west, width, margin = -180.0, 360.0, 0.0
    south, north = float(lat.min()) - max(margin, 1.0), float(lat.max()) + max(margin, 1.0)
    return View(west - margin, max(south, -MAX_LATITUDE), west + width + margin, min(north, MAX_LATITUDE))


def map_picture(
    overlay: Overlay, lon: npt.ArrayLike, lat: npt.ArrayLike, present: npt.ArrayLike, ticks: tuple[float, float]
) -> Figure:
    """The map with the records on it, and its legend; `ticks`: values at the ends of the ramp."""
    view = View(overlay.west, overlay.south, overlay.east, overlay.north)
    is_present = np.asarray(present, bool)
    x, y = view.xy(lon, lat)
    size = _map_size(view, 7.4)

    def paint(axes: Axes) -> None:
        _land(axes, view)
        colour = palette()
        picture = np.dstack([colour[overlay.levels], np.where(overlay.levels > 0, 255, 0).astype(np.uint8)])
        axes.imshow(picture, extent=view.extent, interpolation="none", zorder=2, aspect="equal")
        _borders(axes, view)
        dot = 13 if is_present.sum() < 200 else 5
        for mask, face, label in ((is_present, "#e4572e", "Presences"), (~is_present, "white", "Absences")):
            if mask.any():
                axes.scatter(
                    x[mask], y[mask], s=dot, color=face, edgecolor="#3a1508", linewidth=0.4, zorder=4, label=label
                )
        _frame(axes, view)
        if is_present.size:
            _legend_below(axes, 2)
        _ramp(axes, ticks, size.height * size.axes[3])

    return draw("map", "The map with the records", size, paint)


def folds_map(folds: Folds, lon: npt.ArrayLike, lat: npt.ArrayLike, present: npt.ArrayLike) -> Figure:
    """Presences and other places in the colours of their folds."""
    is_present = np.asarray(present, bool)
    lon, lat = np.asarray(lon, float), np.asarray(lat, float)
    view = fit_view(lon[is_present], lat[is_present])
    x, y = view.xy(lon, lat)
    left, right, bottom, top = view.extent
    near = (x >= left) & (x <= right) & (y >= bottom) & (y <= top)
    others = np.flatnonzero(near & ~is_present)[:1500]

    def paint(axes: Axes) -> None:
        _land(axes, view)
        _borders(axes, view)
        for fold in range(folds.count):
            colour = _FOLDS[fold % len(_FOLDS)]
            here = others[folds.fold[others] == fold]
            axes.scatter(x[here], y[here], s=3.5, color=colour, alpha=0.3, linewidth=0, zorder=3)
            here = np.flatnonzero(is_present & (folds.fold == fold))
            label = f"Fold {fold + 1}" if folds.count <= len(_FOLDS) else None
            axes.scatter(x[here], y[here], s=17, color=colour, edgecolor="white", linewidth=0.5, zorder=4, label=label)
        _frame(axes, view)
        if folds.count <= len(_FOLDS):
            _legend_below(axes, folds.count)

    return draw("folds", "Records by fold", _map_size(view, 5.6, 5.0), paint)


def _map_size(view: View, widest: float, highest: float = 6.4) -> Size:
    left, right, bottom, top = view.extent
    ratio = (top - bottom) / (right - left)
    width = min(widest, highest / ratio)
    below = 0.42
    return Size(width, max(1.5, width * ratio) + below, left=0.02, right=0.02, bottom=below, top=0.02)


def _legend_below(axes: Axes, columns: int) -> None:
    axes.legend(
        loc="upper left",
        bbox_to_anchor=(-0.01, 0.0),
        ncols=columns,
        handletextpad=0.1,
        columnspacing=0.9,
        borderaxespad=0.2,
    )


def _land(axes: Axes, view: View) -> None:
    from matplotlib.collections import PathCollection

    axes.set_facecolor(_SEA)
    land, _ = _outlines(view)
    axes.add_collection(PathCollection(_paths(land, view), facecolor=_LAND, edgecolor="none", zorder=1))


def _borders(axes: Axes, view: View) -> None:
    from matplotlib.collections import PathCollection

    _, lines = _outlines(view)
    axes.add_collection(
        PathCollection(_paths(lines, view), facecolor="none", edgecolor="#6b7683", linewidth=0.5, alpha=0.8, zorder=3)
    )


@lru_cache(maxsize=2)
def _outlines(view: View) -> tuple[shapely.Geometry, shapely.Geometry]:
    """Land and borders in the view, degrees."""
    from sdm.files.vectors import countries
    from sdm.outputs.basemap import land_and_borders

    window = (view.west, view.south, view.east, view.north)
    extent = max(view.east - view.west, view.north - view.south)
    texts = land_and_borders(countries((-180.0, view.south, 180.0, view.north)), window, 2 * extent)
    land, lines = (shapely.from_geojson(json.dumps(json.loads(text))) for text in texts)
    return land, lines


def _paths(geometry: shapely.Geometry, view: View) -> list:
    """Matplotlib paths of polygons, with their holes, and of lines, in Mercator metres."""
    from matplotlib.path import Path

    paths = []
    for part in shapely.get_parts(shapely.get_parts(geometry)):
        rings = [part.exterior, *part.interiors] if part.geom_type == "Polygon" else [part]
        pieces = []
        for ring in rings:
            points = shapely.get_coordinates(ring)
            x = np.radians(points[:, 0] - view.west) * RADIUS
            latitude = np.radians(np.clip(points[:, 1], -MAX_LATITUDE, MAX_LATITUDE))
            pieces.append(Path(np.column_stack([x, RADIUS * np.arcsinh(np.tan(latitude))])))
        paths.append(Path.make_compound_path(*pieces))
    return paths


def _frame(axes: Axes, view: View) -> None:
    left, right, bottom, top = view.extent
    axes.set_xlim(left, right)
    axes.set_ylim(bottom, top)
    axes.set_aspect("equal")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(True)
        spine.set_color("#c9d0d7")


def _ramp(axes: Axes, ticks: tuple[float, float], height: float) -> None:
    """The legend of the colours, below axes that are `height` inches high."""
    inset = axes.inset_axes((0.62, -0.19 / height, 0.36, 0.12 / height))
    inset.imshow(palette()[None, 1:252], aspect="auto", interpolation="none", extent=(ticks[0], ticks[1], 0, 1))
    inset.set_yticks([])
    inset.set_xticks(np.linspace(*ticks, 5), [f"{tick:.3g}" for tick in np.linspace(*ticks, 5)])
    inset.tick_params(labelsize=8, length=2)
    for spine in inset.spines.values():
        spine.set_visible(False)


def _curve(axes: Axes, line: Line, curve: measures.Curve) -> None:
    points = np.column_stack([curve.x, curve.y])
    if len(points) > 100:
        points = shapely.get_coordinates(shapely.simplify(shapely.linestrings(points), 0.0005))
    axes.plot(points[:, 0], points[:, 1], **_stroke(line))


def _stroke(line: Line) -> Mapping:
    dashes = {"linestyle": (0, (4, 1.6))} if line.dashed else {}
    return {"color": line.colour, "linewidth": line.width, "label": _short(line.label, 36), **dashes}


def _unit_square(axes: Axes, x: str, y: str) -> None:
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.02)
    axes.set_xticks(np.linspace(0, 1, 6))
    axes.set_yticks(np.linspace(0, 1, 6))
    axes.set_xlabel(x)
    axes.set_ylabel(y)


def _short(text: str, most: int) -> str:
    line = " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())
    return line if len(line) <= most else f"{line[: most - 1]}…"
