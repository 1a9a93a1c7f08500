"""Cosines between the nodes of a lattice, from their slopes along what varies within its cells.

Between four nodes the cosine follows two things. What varies slowly, such as the climate of the surroundings, is in the
cosines of the nodes and interpolated with them. What varies from pixel to pixel, such as the height, is read at each
pixel: times the slopes of the cosine, its departure from the interpolated one corrects the cosine. The four nodes each
have slopes of their own. Where these do not lead to the same value, or the correction is large, a pixel is encoded.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from sdm.engine.encode import one_thread
from sdm.engine.frame import Frame
from sdm.engine.inputs import Detail
from sdm.engine.lattice import Nodes, upsample
from sdm.engine.places import Plan
from sdm.layers.raster import CHUNK, mix
from sdm.models.protocol import SlopedEncoders

AGREED = 0.01
"""How far the values from the slopes of single nodes may lie apart, and how much a correction may change a value.

Smaller values cost time and gain little: most of what is left of the difference from every pixel encoded is that of
location and imagery (`benchmarks/interpolation_error.py`)."""


class Estimate(NamedTuple):
    """Cosines of a tile as far as slopes tell them."""

    cosines: np.ndarray
    """(S, rows, columns) float32, with what is known of the ranges."""
    agreement: np.ndarray
    """Of the modalities: (1, rows, columns), or (0, ...) where it is not asked for."""
    known: np.ndarray
    """(rows, columns) bool."""
    unsettled: np.ndarray
    """(S, rows, columns) bool: the pixels that must be encoded."""


def detail_of(plan: Plan, stride: int) -> Detail | None:
    """What slopes are taken along; None where every pixel that nodes do not settle has to be encoded.

    Slopes cost an encoding for each target: more targets than half the pixels of a cell are encoded faster.
    """
    if plan.fitted or 2 * len(plan.targets) > stride * stride or "environment" not in plan.modalities:
        return None
    if "environment" in plan.blended or not isinstance(plan.model.load(plan.here), SlopedEncoders):
        return None
    return plan.inputs.layers["environment"].detail


def estimate(
    plan: Plan, frame: Frame, nodes: Nodes, keep: np.ndarray, inside: tuple[slice, slice], detail: Detail
) -> Estimate:
    """The cosines of a tile that lies `inside` the frame, each pixel from the four nodes around it.

    `keep` (S, rows, columns): the pixels that may be shown.
    """
    k, count = nodes.stride, len(keep)
    rows, cols = frame.rows[inside[0]], frame.cols[inside[1]]
    sloped = frame.slopes(plan, nodes.wanted, detail.columns)
    at_nodes, nodes_known = nodes.of(sloped.raw), nodes.of(sloped.known)
    smooth, known = upsample(at_nodes, nodes_known, rows, cols, k)
    cosines = smooth[:count].reshape(count, -1)
    row, col = rows // k - rows[0] // k, cols // k - cols[0] // k
    whole = np.logical_and.reduce([nodes_known[np.ix_(row + d, col + a)] for d in (0, 1) for a in (0, 1)])
    between = (rows % k > 0)[:, None] | (cols % k > 0)[None, :]
    unsettled = np.broadcast_to((between & ~whole).ravel(), cosines.shape).copy()
    shown = keep.any(axis=0)
    pixels = np.flatnonzero(shown & whole & between)
    lon, lat = (a[inside].ravel() for a in (frame.lon, frame.lat))
    values, read = detail.read(lon[pixels], lat[pixels])
    unsettled[:, pixels[~read]] = True
    pixels, values = pixels[read], values[read]
    y, x = np.divmod(pixels, cols.size)
    # The rows of the tables in which the nodes around each pixel are: only wanted nodes have one.
    entry = nodes.of((np.cumsum(nodes.wanted.ravel()) - 1).reshape(nodes.wanted.shape))
    corners = [entry[row[y] + d, col[x] + a] for d in (0, 1) for a in (0, 1)]
    down, across = ((i % k / k).astype(np.float32)[:, None] for i in (rows[y], cols[x]))
    with one_thread(plan.here):
        values -= mix(sloped.values, corners, down, across)
        for n, target in enumerate(plan.targets):
            low, middle, high = _corrections(sloped.slopes[n], values, corners, down[:, 0], across[:, 0])
            flat = cosines[n, pixels]
            target.add_known(flat, lon[pixels], lat[pixels])
            plain, below, guess, above = (target.values(flat + c) for c in (np.float32(0.0), low, middle, high))
            unsettled[n, pixels] = (above - below > AGREED) | (np.abs(guess - plain) > AGREED)
            rest = np.ones(lon.size, dtype=bool)
            rest[pixels] = False
            others = np.flatnonzero(rest & shown.ravel())
            moved = cosines[n, others]
            target.add_known(moved, lon[others], lat[others])
            cosines[n, others], cosines[n, pixels] = moved, flat + middle
    shape = (count, rows.size, cols.size)
    return Estimate(cosines.reshape(shape), smooth[count:], known, unsettled.reshape(shape))


def _corrections(
    slopes: np.ndarray, departures: np.ndarray, corners: list[np.ndarray], down: np.ndarray, across: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Products of departures (P, F) with the slopes (N, F) of the four nodes: least, interpolated, greatest (P,).

    `corners`: the rows of the nodes, each (P,); `down`, `across` (P,): where the pixel lies between them. Every
    pixel by itself.
    """
    low, middle, high = (np.empty(len(departures), dtype=np.float32) for _ in range(3))
    for start in range(0, len(departures), CHUNK):
        part = slice(start, start + CHUNK)
        each = [np.einsum("pf,pf->p", slopes.take(corner[part], 0), departures[part]) for corner in corners]
        low[part], high[part] = np.minimum.reduce(each), np.maximum.reduce(each)
        upper = each[0] + (each[1] - each[0]) * across[part]
        lower = each[2] + (each[3] - each[2]) * across[part]
        middle[part] = upper + (lower - upper) * down[part]
    return low, middle, high
