"""What is held out of training: blocks, continents, climates or species.

Random blocks ask how well a model fills gaps; a continent or a climate, whether what it learned of places
holds elsewhere; species, whether it knows them by their relatives.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import shapely

from sdm.errors import RequestError

SPLITS = ("blocks", "continents", "climate", "species")
TAILS = ("hot", "cold", "wet", "dry")
KOEPPEN = ("A", "B", "C", "D", "E")

CONTINENTS = {
    "africa": [
        (-20, 15), (-18, 29), (-10, 36.2), (11.5, 37.6), (12.6, 35.4), (25, 34), (32.6, 31.4), (34.5, 27.7),
        (43.2, 12.3), (52, 14), (66, 0), (66, -35), (20, -45), (-20, -30),
    ],
    "antarctica": [
        (-180, -90), (180, -90), (180, -60), (-180, -60),
    ],
    "asia": [
        (32.6, 31.4), (25, 34), (26.2, 39.5), (29.1, 41.3), (41, 41.5), (49, 42), (49, 46.5), (60, 51), (59, 56),
        (66, 68.5), (60, 75), (70, 83), (180, 83), (180, 55), (150, 40), (150, 10), (130, 4), (129, -1), (125, -11),
        (95, -12), (66, 0), (52, 14), (43.2, 12.3), (34.5, 27.7),
    ],
    "australia": [
        (129, -1), (130, 4), (180, 25), (180, -60), (100, -60), (95, -12), (125, -11),
    ],
    "europe": [
        (-35, 60), (-35, 32), (-10, 36.2), (11.5, 37.6), (12.6, 35.4), (25, 34), (26.2, 39.5), (29.1, 41.3),
        (41, 41.5), (49, 42), (49, 46.5), (60, 51), (59, 56), (66, 68.5), (60, 75), (70, 83), (-8, 83), (-11, 71),
        (-26, 67.5),
    ],
    "north-america": [
        (-180, 83.9), (-8, 83.9), (-11, 71), (-26, 67.5), (-35, 60), (-35, 32), (-59, 20), (-60.5, 10.6),
        (-77.3, 8.7), (-77.8, 7.1), (-90, 4), (-180, 10),
    ],
    "south-america": [
        (-77.3, 8.7), (-60.5, 10.6), (-30, 8), (-30, -60), (-95, -60), (-95, 4.2), (-90, 4), (-77.8, 7.1),
    ],
}  # fmt: skip
"""Rough outlines, (lon, lat), drawn through the seas; Australia stands for Oceania. What lies beyond the date line
of Asia and Oceania is put right in `continent`."""


def held_out_places(
    split: str,
    lonlat: np.ndarray,
    *,
    fraction: float = 0.2,
    seed: int = 7,
    block_degrees: float = 10.0,
    continents: Sequence[str] = (),
    climate: Sequence[str] = (),
) -> np.ndarray:
    """(N,) bool: which positions (N, 2) (lon, lat) a split holds out; none for the split "species".

    Raises RequestError for a split, continent or climate that is not known.
    """
    check_split(split, continents, climate)
    match split:
        case "blocks":
            return in_blocks(lonlat, block_degrees, fraction, seed)
        case "continents":
            return in_continents(lonlat, continents)
        case "climate":
            return in_climate(lonlat, climate, fraction)
    return np.zeros(len(lonlat), bool)


def check_split(split: str, continents: Sequence[str], climate: Sequence[str]) -> None:
    """Raise RequestError for a split, a continent or a climate that is not known, or for a split that needs one."""
    if split not in SPLITS:
        raise RequestError(f"split {split!r} is not known; choose {', '.join(SPLITS)}.")
    for what, given, known in (("continent", continents, CONTINENTS), ("climate", climate, (*KOEPPEN, *TAILS))):
        for name in given:
            if name not in known:
                raise RequestError(f"{what} {name!r} is not known; choose {', '.join(known)}.")
    if split == "continents" and not continents:
        raise RequestError(f"split 'continents' needs continents, those held out: {', '.join(CONTINENTS)}.")
    if split == "climate" and not climate:
        raise RequestError(f"split 'climate' needs climate, what is held out: {', '.join((*KOEPPEN, *TAILS))}.")


def blocks(lonlat: np.ndarray, degrees: float) -> np.ndarray:
    """Block number of positions (N, 2) (lon, lat) on a grid of square blocks."""
    across = int(np.ceil(360.0 / degrees))
    row = np.floor((lonlat[:, 1] + 90.0) / degrees).astype(np.int64)
    col = np.floor((lonlat[:, 0] + 180.0) / degrees).astype(np.int64) % across
    return row * across + col


def in_blocks(lonlat: np.ndarray, degrees: float, fraction: float, seed: int) -> np.ndarray:
    """Boolean (N,): the position lies in one of the blocks chosen at random, `fraction` of those that have any."""
    number = blocks(lonlat, degrees)
    unique = np.unique(number)
    chosen = np.random.default_rng(seed).choice(unique, int(fraction * unique.size), replace=False)
    return np.isin(number, chosen)


def continent(lonlat: np.ndarray) -> np.ndarray:
    """(N,) names of CONTINENTS, "" at sea far from all, for positions (N, 2) (lon, lat)."""
    out = np.full(len(lonlat), "", dtype="U16")
    lon, lat = lonlat.T
    points = shapely.points(lon, lat)
    for name, ring in CONTINENTS.items():
        shape = shapely.make_valid(shapely.Polygon(ring))
        out[(out == "") & shapely.intersects(shape, points)] = name
    # East of the date line: Chukotka as far as the strait, and Polynesia.
    out[(lon < -168.9) & (lat > 60) & (lat < 75)] = "asia"
    out[(lon < -125) & (lat < 10) & (lat > -60)] = "australia"
    return out


def in_continents(lonlat: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Boolean (N,): the position lies on one of the continents, keys of CONTINENTS."""
    return np.isin(continent(lonlat), list(names))


def climate_of(lonlat: np.ndarray) -> dict[str, np.ndarray]:
    """Annual mean temperature (degrees Celsius), warmest and coldest monthly mean, annual rain (mm): each (N,)."""
    from sdm.layers.environment import Environment, Input

    names = {"mean": "bio1", "warmest": "bio5", "coldest": "bio6", "rain": "bio12", "rain_warm": "bio18",
             "rain_cold": "bio19"}  # fmt: skip
    lon, lat = np.ascontiguousarray(lonlat[:, 0]), np.ascontiguousarray(lonlat[:, 1])
    values = Environment([Input(n) for n in names.values()]).sample(lon, lat, standardise=False)
    return dict(zip(names, values.T, strict=True))


def koeppen(lonlat: np.ndarray) -> np.ndarray:
    """(N,) the main class of Koeppen and Geiger, "A" to "E", for positions (N, 2) (lon, lat), "" where unknown.

    As Kottek et al. (2006, doi:10.1127/0941-2948/2006/0130) define them, with one change: which half of the
    year has the rain is judged by the warmest and the coldest quarter instead of by half-years. The bundled
    bio5 and bio6 are of monthly means, as the definition wants them.
    """
    c = climate_of(lonlat)
    both = c["rain_warm"] + c["rain_cold"]
    with np.errstate(invalid="ignore", divide="ignore"):
        summer = np.where(both > 0, c["rain_warm"] / both, 0.5)
        extra = np.where(summer >= 2 / 3, 28.0, np.where(summer <= 1 / 3, 0.0, 14.0))
        dry = c["rain"] < 10 * np.maximum(2 * c["mean"] + extra, 0.0)
        cold = np.where(c["coldest"] >= 18, "A", np.where(c["coldest"] > -3, "C", "D"))
        out = np.where(c["warmest"] < 10, "E", np.where(dry, "B", cold))
    return np.where(np.isfinite(sum(c.values())), out, "")


def in_climate(lonlat: np.ndarray, climate: Sequence[str], fraction: float = 0.2) -> np.ndarray:
    """Boolean (N,): the position has one of the climates: classes of `koeppen`, or tails.

    "hot" and "cold" are the land beyond the quantile `fraction` of annual mean temperature, "wet" and "dry" of
    annual rain.
    """
    from sdm.layers.landmask import land_sample

    out = np.isin(koeppen(lonlat), [c for c in climate if c in KOEPPEN])
    if tails := [c for c in climate if c in TAILS]:
        here, land = climate_of(lonlat), climate_of(np.stack(land_sample(5000), axis=1))
        for name in tails:
            key = "mean" if name in ("hot", "cold") else "rain"
            high = name in ("hot", "wet")
            limit = np.nanquantile(land[key], 1 - fraction if high else fraction)
            out |= (here[key] > limit) if high else (here[key] < limit)
    return out


def held_out_species(species: Sequence[str], fraction: float, seed: int) -> np.ndarray:
    """(S,) bool: species chosen at random to be trained without labels and without a vector of their own."""
    out = np.zeros(len(species), bool)
    chosen = np.random.default_rng(seed).choice(len(species), round(fraction * len(species)), replace=False)
    out[chosen] = True
    return out
