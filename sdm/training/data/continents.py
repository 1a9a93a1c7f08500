"""Rough outlines of the continents, for holding one out of training."""

from __future__ import annotations


def _ring(text: str) -> list[tuple[float, float]]:
    """Vertices (lon, lat) from "lon lat, lon lat, ..."."""
    pairs = (pair.split() for pair in text.split(","))
    return [(float(lon), float(lat)) for lon, lat in pairs]


OUTLINES = {
    "africa": _ring(
        "-20 15, -18 29, -10 36.2, 11.5 37.6, 12.6 35.4, 25 34, 32.6 31.4, 34.5 27.7, 43.2 12.3, 52 14, 66 0, 66 "
        "-35, 20 -45, -20 -30"
    ),
    "antarctica": _ring("-180 -90, 180 -90, 180 -60, -180 -60"),
    "asia": _ring(
        "32.6 31.4, 25 34, 26.2 39.5, 29.1 41.3, 41 41.5, 49 42, 49 46.5, 60 51, 59 56, 66 68.5, 60 75, 70 83, "
        "180 83, 180 55, 150 40, 150 10, 130 4, 129 -1, 125 -11, 95 -12, 66 0, 52 14, 43.2 12.3, 34.5 27.7"
    ),
    "australia": _ring("129 -1, 130 4, 180 25, 180 -60, 100 -60, 95 -12, 125 -11"),
    "europe": _ring(
        "-35 60, -35 32, -10 36.2, 11.5 37.6, 12.6 35.4, 25 34, 26.2 39.5, 29.1 41.3, 41 41.5, 49 42, 49 46.5, 60 "
        "51, 59 56, 66 68.5, 60 75, 70 83, -8 83, -11 71, -26 67.5"
    ),
    "north-america": _ring(
        "-180 83.9, -8 83.9, -11 71, -26 67.5, -35 60, -35 32, -59 20, -60.5 10.6, -77.3 8.7, -77.8 7.1, -90 4, -180 10"
    ),
    "south-america": _ring("-77.3 8.7, -60.5 10.6, -30 8, -30 -60, -95 -60, -95 4.2, -90 4, -77.8 7.1"),
}
"""Polygons, (lon, lat), drawn through the seas; Australia stands for Oceania. The parts of Asia and Oceania beyond
the date line are added in `sdm.training.data.splits.continents_at`."""
