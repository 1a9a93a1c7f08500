"""What is held out of training: blocks, cells, continents, climates or species.

Random blocks test how well a model fills gaps; single cells (groups of places), whether it knows ranges that are too
small for blocks; a continent or a climate, whether what it learned of places holds
elsewhere; species, whether it knows them by their relatives.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import shapely

from sdm.layers.environment import Environment, Input
from sdm.layers.landmask import land_sample
from sdm.training.data.continents import OUTLINES
from sdm.training.recipe.sections import KOEPPEN, TAILS, check_split


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
    """Positions that a split holds out.

    Parameters
    ----------
    split : blocks, cells (each position by itself), continents, climate, or species, which holds out no position
    lonlat : (N, 2) degrees (lon, lat)
    fraction : share of the blocks, of the cells, or of the land for a tail of the climate
    seed : of the random blocks or cells
    block_degrees : side of a block
    continents : names of those held out
    climate : classes of `koeppen`, or tails: hot, cold, wet, dry

    Returns
    -------
    (N,) bool

    Raises
    ------
    RequestError : for an unknown split, continent or climate
    """
    check_split(split, continents, climate)
    match split:
        case "blocks":
            return in_blocks(lonlat, block_degrees, fraction, seed)
        case "cells":
            return np.random.default_rng(seed).random(len(lonlat)) < fraction
        case "continents":
            return in_continents(lonlat, continents)
        case "climate":
            return in_climate(lonlat, climate, fraction)
    return np.zeros(len(lonlat), bool)


def block_numbers(lonlat: np.ndarray, degrees: float) -> np.ndarray:
    """(N,) number of the square block that each position (N, 2) (lon, lat) lies in."""
    across = int(np.ceil(360.0 / degrees))
    row = np.floor((lonlat[:, 1] + 90.0) / degrees).astype(np.int64)
    col = np.floor((lonlat[:, 0] + 180.0) / degrees).astype(np.int64) % across
    return row * across + col


def in_blocks(lonlat: np.ndarray, degrees: float, fraction: float, seed: int) -> np.ndarray:
    """(N,) bool: the position lies in a block of a random sample, `fraction` of the blocks that hold positions."""
    number = block_numbers(lonlat, degrees)
    unique = np.unique(number)
    chosen = np.random.default_rng(seed).choice(unique, int(fraction * unique.size), replace=False)
    return np.isin(number, chosen)


def continents_at(lonlat: np.ndarray) -> np.ndarray:
    """(N,) name of the continent of positions (N, 2) (lon, lat), "" in the open sea."""
    out = np.full(len(lonlat), "", dtype="U16")
    lon, lat = lonlat.T
    points = shapely.points(lon, lat)
    for name, ring in OUTLINES.items():
        shape = shapely.make_valid(shapely.Polygon(ring))
        out[(out == "") & shapely.intersects(shape, points)] = name
    # East of the date line: Chukotka as far as the strait, and Polynesia.
    out[(lon < -168.9) & (lat > 60) & (lat < 75)] = "asia"
    out[(lon < -125) & (lat < 10) & (lat > -60)] = "australia"
    return out


def in_continents(lonlat: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """(N,) bool: the position lies on one of the named continents."""
    return np.isin(continents_at(lonlat), list(names))


def climate_at(lonlat: np.ndarray) -> dict[str, np.ndarray]:
    """Climate at positions (N, 2) (lon, lat), each value (N,), NaN where unknown.

    mean, warmest, coldest: annual mean temperature and the warmest and coldest monthly mean, degrees Celsius; rain,
    rain_warm, rain_cold: rain of the year, the warmest and the coldest quarter, mm.
    """
    names = {
        "mean": "bio1",
        "warmest": "bio5",
        "coldest": "bio6",
        "rain": "bio12",
        "rain_warm": "bio18",
        "rain_cold": "bio19",
    }
    lon, lat = np.ascontiguousarray(lonlat[:, 0]), np.ascontiguousarray(lonlat[:, 1])
    values = Environment([Input(n) for n in names.values()]).sample(lon, lat, standardise=False)
    return dict(zip(names, values.T, strict=True))


def koeppen(lonlat: np.ndarray) -> np.ndarray:
    """(N,) main class of Köppen and Geiger, "A" to "E", for positions (N, 2) (lon, lat), "" where unknown.

    As defined by Kottek et al. (2006, doi:10.1127/0941-2948/2006/0130), with one change: the season of the rain is
    taken from the warmest and the coldest quarter instead of from half-years. The bundled bio5 and bio6 are of
    monthly means, as the definition requires.
    """
    c = climate_at(lonlat)
    both = c["rain_warm"] + c["rain_cold"]
    with np.errstate(invalid="ignore", divide="ignore"):
        summer = np.where(both > 0, c["rain_warm"] / both, 0.5)
        extra = np.where(summer >= 2 / 3, 28.0, np.where(summer <= 1 / 3, 0.0, 14.0))
        dry = c["rain"] < 10 * np.maximum(2 * c["mean"] + extra, 0.0)
        cold = np.where(c["coldest"] >= 18, "A", np.where(c["coldest"] > -3, "C", "D"))
        out = np.where(c["warmest"] < 10, "E", np.where(dry, "B", cold))
    return np.where(np.isfinite(sum(c.values())), out, "")


def in_climate(lonlat: np.ndarray, climate: Sequence[str], fraction: float = 0.2) -> np.ndarray:
    """(N,) bool: the position has one of the climates, classes of `koeppen` or tails.

    "hot" and "cold" lie beyond the quantile `fraction` of annual mean temperature over the land, "wet" and "dry" of
    annual rain.
    """
    out = np.isin(koeppen(lonlat), [c for c in climate if c in KOEPPEN])
    if tails := [c for c in climate if c in TAILS]:
        here, land = climate_at(lonlat), climate_at(np.stack(land_sample(5000), axis=1))
        for name in tails:
            key = "mean" if name in ("hot", "cold") else "rain"
            high = name in ("hot", "wet")
            limit = np.nanquantile(land[key], 1 - fraction if high else fraction)
            out |= (here[key] > limit) if high else (here[key] < limit)
    return out


def held_out_species(species: Sequence[str], fraction: float, seed: int) -> np.ndarray:
    """(S,) bool: a random sample of species, to be trained without labels and without a vector of their own."""
    out = np.zeros(len(species), bool)
    chosen = np.random.default_rng(seed).choice(len(species), round(fraction * len(species)), replace=False)
    out[chosen] = True
    return out
