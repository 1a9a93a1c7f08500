"""Distances on the globe: positions as unit vectors, great circles in km."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

EARTH_KM = 6371.0088
"""Mean radius of the Earth (IUGG)."""
_AT_ONCE = 2_000_000  # distances computed at once


def unit_vectors(lon: npt.ArrayLike, lat: npt.ArrayLike) -> Floats:
    """Positions in degrees, each of shape (n,), as points on the unit sphere, shape (n, 3)."""
    east, north = np.radians(np.asarray(lon, float)), np.radians(np.asarray(lat, float))
    return np.stack([np.cos(north) * np.cos(east), np.cos(north) * np.sin(east), np.sin(north)], axis=-1)


def arc_km(chord: Floats) -> Floats:
    """Great-circle distance of points that are `chord` apart on the unit sphere, any shape."""
    return 2 * EARTH_KM * np.arcsin(np.minimum(chord / 2, 1))


def distances_km(a: Floats, b: Floats) -> Floats:
    """Great-circle distances between unit vectors of shapes (n, 3) and (m, 3), shape (n, m)."""
    return arc_km(np.sqrt(np.square(a[:, None, :] - b[None, :, :]).sum(-1)))


def nearest_km(points: Floats, targets: Floats) -> Floats:
    """Distance from each of `points` (n, 3) to the nearest of `targets` (m, 3), unit vectors; shape (n,) km."""
    chord = np.empty(len(points))
    step = max(1, _AT_ONCE // max(1, len(targets)))
    for start in range(0, len(points), step):
        part = points[start : start + step]
        # The largest cosine finds the nearest; near 1 it is too coarse to measure with.
        nearest = targets[np.argmax(part @ targets.T, axis=1)]
        chord[start : start + step] = np.sqrt(np.square(part - nearest).sum(axis=1))
    return arc_km(chord)


def distance_km(lon: npt.ArrayLike, lat: npt.ArrayLike, to_lon: npt.ArrayLike, to_lat: npt.ArrayLike) -> Floats:
    """Great-circle distances between points in degrees, of shapes that fit each other."""
    chord = np.square(unit_vectors(lon, lat) - unit_vectors(to_lon, to_lat)).sum(axis=-1)
    return arc_km(np.sqrt(chord))
