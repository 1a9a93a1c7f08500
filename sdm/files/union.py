"""The union of polygons, of any number and tangle, in bounded time and memory."""

from __future__ import annotations

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
_FEW = 1000


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
    return shapely.union_all(shapes) if len(shapes) <= _FEW else shapely.disjoint_subset_union_all(shapes)


def _crosses_too_often(shapes: np.ndarray) -> bool:
    valid = shapely.is_valid(shapes)
    # A valid geometry away from all others has no crossings.
    index, _ = shapely.STRtree(shapes).query(shapes)
    alone = np.bincount(index, minlength=len(shapes)) <= 1
    edges = _edges(shapes[~(valid & alone)])
    if len(edges) < 4:
        return False
    # The longest come first, so that the number of pairs for each edge falls and memory stays bounded.
    edges = edges[np.argsort(-np.abs(edges[:, 1] - edges[:, 0]).sum(axis=1), kind="stable")]
    lines = shapely.linestrings(edges)
    tree = shapely.STRtree(lines)
    start, size, pairs, crossings = 0, 1, 0, 0
    while start < len(lines):
        first, second = tree.query(lines[start : start + size])
        pairs += len(first)
        first = first + start
        once = first < second
        crossings += int(_cross(edges[first[once]], edges[second[once]]).sum())
        if pairs > _MAX_PAIRS or crossings > MAX_CROSSINGS:
            return True
        start += size
        size = max(1, min(4 * size, size * _PAIRS_AT_ONCE // max(4 * len(once), 1)))
    return False


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

    return (side(a, b[:, 0]) * side(a, b[:, 1]) < 0) & (side(b, a[:, 0]) * side(b, a[:, 1]) < 0)
