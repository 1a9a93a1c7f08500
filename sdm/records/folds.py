"""Folds of cross-validation: spatial blocks, one location at a time, or random.

Neighbouring places resemble each other, so a random fold is tested on near copies of its training places.
Blocks as large as the range of this resemblance avoid that (Roberts et al. 2017, Ecography 40:913; Valavi et
al. 2019, Methods Ecol. Evol. 10:225). Positions are (lon, lat) in degrees, distances great circles in km.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from sdm.records.sphere import EARTH_KM, distances_km, unit_vectors

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Booleans = npt.NDArray[np.bool_]

_MAX_PLACES = 1500  # whose pairs make a variogram: about a million
_BINS = 20  # of distance, with equally many pairs
_SMALLEST_KM = 1.0  # of a block
_LARGEST_KM = 5000.0
_FEWEST_IN_BLOCKS = 10  # positions of presences
_MOST_LEFT_OUT = 2000  # presences whose distances to each other are held in memory


@dataclass(frozen=True)
class Variogram:
    """How unlike places are by their distance, and the distance from which they are unrelated.

    The semivariance is the mean over standardised variables; a spherical model with nugget is fitted to it.
    """

    distance_km: Floats
    """Mean distance of the pairs in each bin, shape (bins,)."""
    semivariance: Floats
    """Of each bin, shape (bins,)."""
    nugget: float
    sill: float
    """Semivariance beyond the range."""
    range_km: float
    """Where the model reaches its sill: the range of autocorrelation."""
    reached: bool
    """False where the semivariance still rises at the largest distance looked at: the range is longer."""

    def model(self, distance_km: npt.ArrayLike) -> Floats:
        """The fitted semivariance at distances of any shape."""
        return self.nugget + (self.sill - self.nugget) * _spherical(np.asarray(distance_km, float) / self.range_km)


@dataclass(frozen=True)
class Folds:
    """A division of n places into parts that are tested one after the other."""

    kind: str
    """"blocks", "locations" or "random"."""
    fold: Integers
    """The fold of each place, shape (n,)."""
    count: int
    """How many folds there are."""
    block: Integers
    """The block or location of each place, shape (n,); with random folds each place is its own."""
    block_km: float | None = None
    """Side of a block, or the distance within which records are one location."""
    range_km: float | None = None
    """Range of autocorrelation that the blocks were sized by, where one was estimated."""
    limited: bool = False
    """True where blocks of that range would have been too few, so that smaller ones were taken."""
    size_from: str = "a size that was given"
    """Where the side of the blocks is from, if not from the range of autocorrelation."""
    excluded: Booleans | None = None
    """Places too near to the tested ones to be trained on, shape (count, n)."""

    def __iter__(self) -> Iterator[tuple[Integers, Integers]]:
        """(indices to train on, indices to test on) of each fold."""
        for fold in range(self.count):
            test = self.fold == fold
            train = ~test if self.excluded is None else ~test & ~self.excluded[fold]
            yield np.flatnonzero(train), np.flatnonzero(test)

    def describe(self) -> str:
        """One sentence for people: how the folds were made."""
        if self.kind == "random":
            return f"{self.count} random folds, which ignore that neighbouring records resemble each other."
        if self.kind == "locations":
            return (
                f"Each of {self.count} locations (records within {_km(self.block_km)}) is left out once; "
                "places as near to it as that are not trained on."
            )
        size = f"{self.count} folds of spatial blocks with sides of {_km(self.block_km)}"
        if self.range_km is None:
            return f"{size}, {self.size_from}."
        if self.limited:
            return (
                f"{size}. The range of autocorrelation is {_km(self.range_km)}, but blocks of that size "
                "would be too few, so results are still somewhat too good."
            )
        return f"{size}, the range of autocorrelation of the environment at the records."


def _km(value: float | None) -> str:
    """A distance to three digits."""
    rounded = float(f"{value or 0.0:.3g}")
    return f"{rounded:,.0f} km" if rounded >= 100 else f"{rounded:g} km"


def variogram(lon: npt.ArrayLike, lat: npt.ArrayLike, values: npt.ArrayLike, seed: int = 0) -> Variogram:
    """Empirical variogram of environment or embedding at places, and its range.

    Parameters
    ----------
    lon, lat : degrees, shape (n,)
    values : shape (n, p); each column is standardised, columns that do not vary are left out
    seed : chooses the places where there are more than can be paired

    Distances go up to half the largest one (Journel & Huijbregts 1978). Raises ValueError with fewer than 5
    places that differ, or without a column that varies.
    """
    points, table = unit_vectors(lon, lat), np.asarray(values, float)
    if table.ndim != 2 or len(table) != len(points):
        raise ValueError(f"values of shape {table.shape} do not belong to {len(points)} places")
    if len(points) > _MAX_PLACES:
        chosen = np.sort(np.random.default_rng(seed).choice(len(points), _MAX_PLACES, replace=False))
        points, table = points[chosen], table[chosen]
    spread = table.std(axis=0)
    table = table[:, spread > 1e-9 * (1 + np.abs(table).max(axis=0, initial=0))]
    if not table.shape[1]:
        raise ValueError("no variable varies between the places")
    table = (table - table.mean(axis=0)) / table.std(axis=0)
    first, second = np.triu_indices(len(points), 1)
    distance = distances_km(points, points)[first, second]
    near = (distance > 0) & (distance <= distance.max(initial=0) / 2)
    distance, first, second = distance[near], first[near], second[near]
    if distance.size < _BINS:
        raise ValueError(f"{len(points)} places are too few for a variogram")
    squares = np.square(table).sum(axis=1)
    cross = (table @ table.T)[first, second]
    half = (squares[first] + squares[second] - 2 * cross) / (2 * table.shape[1])
    order = np.argsort(distance, kind="stable")
    bins = np.empty(order.size, dtype=np.int64)
    bins[order] = np.arange(order.size) * _BINS // order.size
    pairs = np.bincount(bins)
    return _fitted(np.bincount(bins, distance) / pairs, np.bincount(bins, half) / pairs)


def _fitted(distance: Floats, semivariance: Floats) -> Variogram:
    """Spherical model by least squares: nugget and sill are linear once the range is fixed."""
    candidates = np.geomspace(distance[0] / 2, distance[-1], 200)
    best: tuple[float, float, float, float] | None = None
    for reach in candidates:
        shape = _spherical(distance / reach)
        nugget, partial = _line(shape, semivariance)
        error = float(np.square(nugget + partial * shape - semivariance).sum())
        if best is None or error < best[0] * (1 - 1e-9):
            best = (error, float(reach), nugget, partial)
    assert best is not None
    _, reach, nugget, partial = best
    return Variogram(distance, semivariance, nugget, nugget + partial, reach, reach < candidates[-1])


def _line(x: Floats, y: Floats) -> tuple[float, float]:
    """Intercept and slope of least squares, neither below 0."""
    spread = float(np.square(x - x.mean()).sum())
    slope = float((x - x.mean()) @ (y - y.mean())) / spread if spread > 1e-12 else 0.0
    slope = max(slope, 0.0)
    intercept = float(y.mean() - slope * x.mean())
    if intercept < 0:
        return 0.0, float(x @ y / (x @ x))
    return intercept, slope


def _spherical(ratio: Floats) -> Floats:
    ratio = np.minimum(ratio, 1.0)
    return 1.5 * ratio - 0.5 * ratio**3


def blocks(lon: npt.ArrayLike, lat: npt.ArrayLike, side_km: float) -> Integers:
    """The block of each place, numbered from 0; shape (n,).

    Blocks are bands of latitude cut into equal parts of about `side_km`: all have nearly that side, there is
    none that is cut at 180 degrees, and near the poles there are fewer.
    """
    east, north = np.asarray(lon, float) % 360.0, np.asarray(lat, float)
    rows = max(1, round(math.pi * EARTH_KM / side_km))
    row = np.clip(((90.0 - north) / 180.0 * rows).astype(np.int64), 0, rows - 1)
    middle = np.radians(90.0 - (row + 0.5) * 180.0 / rows)
    columns = np.maximum(1, np.rint(2 * math.pi * EARTH_KM * np.cos(middle) / side_km).astype(np.int64))
    column = np.minimum((east / 360.0 * columns).astype(np.int64), columns - 1)
    _, number = np.unique(np.stack([row, column]), axis=1, return_inverse=True)
    return np.ravel(number).astype(np.int64)


def spatial_folds(
    lon: npt.ArrayLike,
    lat: npt.ArrayLike,
    present: npt.ArrayLike,
    *,
    values: npt.ArrayLike | None = None,
    side_km: float | None = None,
    count: int = 5,
    seed: int = 0,
) -> Folds:
    """Folds of whole blocks, balanced in presences and then in other places.

    Parameters
    ----------
    lon, lat : degrees, shape (n,)
    present : True for presences, shape (n,)
    values : environment or embedding, shape (n, p); blocks get the range of its autocorrelation at the presences
    side_km : side of the blocks, instead of `values`
    count : folds
    seed : decides between blocks that are equally large

    Returns
    -------
    Folds, with the side of the blocks and the range in km. Blocks are made smaller, and `limited` is set, until
    at least `count` of them hold presences.

    Raises
    ------
    ValueError without a size and values, or where the presences are at fewer than `count` positions.
    """
    lon, lat, is_present = np.asarray(lon, float), np.asarray(lat, float), np.asarray(present, bool)
    _require_positions(lon, lat, is_present, count)
    reach: float | None = None
    if side_km is None:
        if values is None:
            raise ValueError("blocks need a size in km, or values to find one from")
        table = np.asarray(values, float)
        reach = side_km = variogram(lon[is_present], lat[is_present], table[is_present], seed).range_km
    side = float(np.clip(side_km, _SMALLEST_KM, _LARGEST_KM))
    limited = False
    while True:
        block = blocks(lon, lat, side)
        if np.unique(block[is_present]).size >= count:
            break
        side, limited = side / 1.25, True
    fold = _balanced(block, is_present, count, seed)
    return Folds("blocks", fold, count, block, block_km=side, range_km=reach, limited=limited)


def _require_positions(lon: Floats, lat: Floats, present: Booleans, count: int) -> None:
    if count < 2:
        raise ValueError(f"{count} folds; at least 2 are needed")
    positions = np.unique(np.stack([lon[present], lat[present]]), axis=1).shape[1]
    if positions < count:
        raise ValueError(f"{positions} positions with a presence cannot be divided into {count} folds")


def _balanced(block: Integers, present: Booleans, count: int, seed: int) -> Integers:
    """Fold of each place: the largest block first, each to the fold that has the least so far."""
    presences = np.bincount(block, weights=present)
    others = np.bincount(block, weights=~present)
    shuffled = np.random.default_rng(seed).permutation(presences.size)
    order = shuffled[np.lexsort((-others[shuffled], -presences[shuffled]))]
    target = np.zeros(presences.size, dtype=np.int64)
    load = np.zeros((count, 2))
    for one in order:
        # Blocks with presences balance those; the rest then even out the other places.
        key = load[:, 0] if presences[one] else load[:, 1]
        tie = load[:, 1] if presences[one] else load[:, 0]
        chosen = int(np.lexsort((tie, key))[0])
        target[one] = chosen
        load[chosen] += presences[one], others[one]
    return target[block]


def random_folds(present: npt.ArrayLike, count: int = 5, seed: int = 0) -> Folds:
    """Random folds with equal numbers of presences and of other places. Raises ValueError with too few presences."""
    is_present = np.asarray(present, bool)
    if count < 2 or is_present.sum() < count:
        raise ValueError(f"{int(is_present.sum())} presences cannot be divided into {count} folds of at least one")
    random = np.random.default_rng(seed)
    fold = np.empty(is_present.size, dtype=np.int64)
    for part in (is_present, ~is_present):
        index = random.permutation(np.flatnonzero(part))
        fold[index] = np.arange(index.size) % count
    return Folds("random", fold, count, np.arange(is_present.size))


def leave_location_out(
    lon: npt.ArrayLike, lat: npt.ArrayLike, present: npt.ArrayLike, within_km: float = 50.0, seed: int = 0
) -> Folds:
    """For few records: each location is left out once (Meyer et al. 2018, Environ. Model. Softw. 101:1).

    Parameters
    ----------
    lon, lat : degrees, shape (n,)
    present : True for presences, shape (n,)
    within_km : presences linked by steps of at most this distance are one location; places as near to it as
        this are left out of its training too
    seed : draws which other places are tested with which location

    Raises
    ------
    ValueError when all presences are one location, or with more than 2,000 of them, where blocks serve better.
    """
    is_present = np.asarray(present, bool)
    points = unit_vectors(lon, lat)
    here = np.flatnonzero(is_present)
    if here.size > _MOST_LEFT_OUT:
        raise ValueError(f"{here.size:,} presences are too many to leave out one location at a time; use blocks")
    location = _linked(distances_km(points[here], points[here]) <= within_km)
    count = int(location.max(initial=-1)) + 1
    if count < 2:
        raise ValueError(f"the presences are one location within {within_km:g} km; two are needed to leave one out")
    fold = np.empty(is_present.size, dtype=np.int64)
    fold[here] = location
    others = np.random.default_rng(seed).permutation(np.flatnonzero(~is_present))
    fold[others] = np.arange(others.size) % count
    near = np.empty((count, is_present.size), dtype=bool)
    for one in range(count):
        near[one] = distances_km(points[here[location == one]], points).min(axis=0) <= within_km
    block = np.where(is_present, fold, count + np.arange(is_present.size))
    return Folds("locations", fold, count, block, block_km=within_km, excluded=near)


def standard_folds(
    lon: npt.ArrayLike, lat: npt.ArrayLike, present: npt.ArrayLike, values: npt.ArrayLike, seed: int = 0
) -> dict[str, Folds]:
    """The folds that a report uses, the ones to believe first.

    From 10 presences on five folds of spatial blocks, and five random ones for comparison; below that each
    location is left out once. Empty where all presences are one location. Parameters as of `spatial_folds`.
    """
    lon, lat, is_present = np.asarray(lon, float), np.asarray(lat, float), np.asarray(present, bool)
    positions = np.unique(np.stack([lon[is_present], lat[is_present]]), axis=1).shape[1]
    if positions >= _FEWEST_IN_BLOCKS:
        return {
            "blocks": _blocked(lon, lat, is_present, values, seed),
            "random": random_folds(is_present, seed=seed),
        }
    try:
        return {"locations": leave_location_out(lon, lat, is_present, seed=seed)}
    except ValueError:
        return {}


def _blocked(lon: Floats, lat: Floats, present: Booleans, values: npt.ArrayLike, seed: int) -> Folds:
    """Blocks as large as the range of autocorrelation, or by the extent of the presences where it has none."""
    try:
        return spatial_folds(lon, lat, present, values=values, seed=seed)
    except ValueError:  # too few pairs of presences for a variogram, or the same values at all of them
        points = unit_vectors(lon[present], lat[present])
        side = float(distances_km(points[:1], points).max()) / 3
        folds = spatial_folds(lon, lat, present, side_km=side, seed=seed)
        return replace(folds, size_from="as the records do not show a range of autocorrelation")


def _linked(near: Booleans) -> Integers:
    """Number of the group of each place, where `near`, shape (n, n), links places; numbered by first place."""
    group = np.full(len(near), -1, dtype=np.int64)
    count = 0
    for start in range(len(near)):
        if group[start] >= 0:
            continue
        frontier = np.zeros(len(near), dtype=bool)
        frontier[start] = True
        while frontier.any():
            group[frontier] = count
            frontier = near[frontier].any(axis=0) & (group < 0)
        count += 1
    return group
