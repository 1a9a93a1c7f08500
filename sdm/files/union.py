"""The union of polygons, of any number and tangle, in bounded time and memory."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import shapely

from sdm.errors import LayerError

MAX_VERTICES = 1_000_000
"""Vertices of a region."""
MAX_CROSSINGS = 50_000
"""Places where edges of a region cross each other: each becomes a vertex that takes 2 kB on the way to the union."""

_MAX_PAIRS = 12_000_000
"""Pairs of edges that are examined; an ordinary outline has three or four for each edge."""
_PAIRS_AT_ONCE = 1_000_000
FEW = 1000
"""Parts that are united one with another; of more, first those that touch."""


def union(shapes: np.ndarray, source: str = "region") -> shapely.Geometry:
    """The union of geometries (N,), repaired. Raises LayerError, naming `source`, where it would take all memory."""
    vertices = int(shapely.get_num_coordinates(shapes).sum())
    if vertices > MAX_VERTICES:
        raise LayerError(f"{source} has {vertices:,} vertices, more than {MAX_VERTICES:,}; simplify it.")
    if _crosses_too_often(shapes):
        raise LayerError(
            f"{source} has edges that cross each other more than {MAX_CROSSINGS:,} times; repair, dissolve or simplify "
            "it (for example with 'Fix geometries' and 'Dissolve' in QGIS)."
        )
    return union_of_valid(shapely.make_valid(shapes))


def union_of_valid(shapes: np.ndarray | list[shapely.Polygon]) -> shapely.Geometry:
    """The union of valid geometries."""
    # Parts that are far from each other are united a hundred times faster this way; few keep the order they had.
    return shapely.union_all(shapes) if len(shapes) <= FEW else shapely.disjoint_subset_union_all(shapes)


def _crosses_too_often(shapes: np.ndarray) -> bool:
    # A valid geometry away from all others has no crossings.
    edges = _edges(shapes[~(shapely.is_valid(shapes) & _alone(shapes))])
    edges = edges[np.argsort(-np.abs(edges[:, 1] - edges[:, 0]).sum(axis=1), kind="stable")]
    pairs = crossings = 0
    for first, second in _overlapping(shapely.linestrings(edges)):
        pairs += len(first)
        once = first < second
        crossings += int(_cross(edges[first[once]], edges[second[once]]).sum())
        if pairs > _MAX_PAIRS or crossings > MAX_CROSSINGS:
            return True
    return False


def _alone(shapes: np.ndarray) -> np.ndarray:
    """(N,) bool: the box around the geometry meets no other; false for all where very many do."""
    west, south, east, north = shapely.bounds(shapes).T
    order = np.argsort(-np.nan_to_num(east - west + north - south), kind="stable")
    met = np.zeros(len(shapes), np.int64)
    for first, _ in _overlapping(shapes[order]):
        met += np.bincount(first, minlength=len(shapes))
        if met.sum() > _MAX_PAIRS:
            return np.zeros(len(shapes), bool)
    alone = np.empty(len(shapes), bool)
    alone[order] = met <= 1
    return alone


def _overlapping(shapes: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs of geometries, by their number, of which the boxes meet; each also with itself.

    The largest must come first, so that the number of pairs for each falls and the pairs of one step stay few.
    """
    tree = shapely.STRtree(shapes)
    start, size = 0, 1
    while start < len(shapes):
        first, second = tree.query(shapes[start : start + size])
        yield first + start, second
        start += size
        size = max(1, min(4 * size, size * _PAIRS_AT_ONCE // max(4 * len(first), 1)))


def _edges(shapes: np.ndarray) -> np.ndarray:
    """(N, 2, 2): the two ends (lon, lat) of each edge."""
    rings = shapely.get_rings(shapes)
    xy, ring = shapely.get_coordinates(rings, return_index=True)
    return np.stack([xy[:-1], xy[1:]], axis=1)[ring[:-1] == ring[1:]]


def _cross(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(N,) bool: the edges (N, 2, 2) cross in their inside."""

    def side(edge: np.ndarray, point: np.ndarray) -> np.ndarray:
        along, to = edge[:, 1] - edge[:, 0], point - edge[:, 0]
        return np.sign(along[:, 0] * to[:, 1] - along[:, 1] * to[:, 0])

    with np.errstate(invalid="ignore", over="ignore"):
        return (side(a, b[:, 0]) * side(a, b[:, 1]) < 0) & (side(b, a[:, 0]) * side(b, a[:, 1]) < 0)
