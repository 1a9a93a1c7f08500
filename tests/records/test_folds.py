"""Folds: planted ranges of autocorrelation, sizes of blocks, and what is never trained on."""

import numpy as np
import pytest

from sdm.records.folds import (
    blocks,
    leave_location_out,
    random_folds,
    spatial_folds,
    standard_folds,
    variogram,
)
from sdm.records.sphere import EARTH_KM, distances_km, unit_vectors


def field(lon, lat, reach_km, columns=8, seed=0, nugget=0.1):
    """Gaussian fields at places whose covariance is spherical and ends at `reach_km`; shape (n, columns)."""
    points = unit_vectors(lon, lat)
    ratio = np.minimum(distances_km(points, points) / reach_km, 1)
    covariance = 1 - 1.5 * ratio + 0.5 * ratio**3
    root = np.linalg.cholesky(covariance + nugget * np.eye(len(lon)))
    return root @ np.random.default_rng(seed).normal(size=(len(lon), columns))


def scattered(n=400, seed=1, west=0.0, east=30.0, south=35.0, north=60.0):
    random = np.random.default_rng(seed)
    return random.uniform(west, east, n), random.uniform(south, north, n)


def test_distances_equal_the_haversine_formula():
    lon, lat = scattered(30, west=-180, east=180, south=-90, north=90)
    a, b = np.radians(lat)[:, None], np.radians(lat)[None, :]
    h = (
        np.sin((b - a) / 2) ** 2
        + np.cos(a) * np.cos(b) * np.sin(np.radians(lon)[:, None] / 2 - np.radians(lon) / 2) ** 2
    )
    points = unit_vectors(lon, lat)
    np.testing.assert_allclose(distances_km(points, points), 2 * EARTH_KM * np.arcsin(np.sqrt(h)), atol=1e-3)
    quarter = distances_km(unit_vectors([0.0], [0.0]), unit_vectors([0.0, 179.9], [90.0, 0.0]))
    assert quarter[0] == pytest.approx([np.pi / 2 * EARTH_KM, np.radians(179.9) * EARTH_KM])


@pytest.mark.parametrize("planted", [150.0, 400.0, 900.0])
def test_the_planted_range_is_found(planted):
    lon, lat = scattered(600)
    result = variogram(lon, lat, field(lon, lat, planted, columns=20))
    assert result.reached
    assert planted * 0.6 < result.range_km < planted * 1.6
    assert result.nugget < result.sill
    assert result.model([1e6])[0] == pytest.approx(result.sill)


def test_semivariance_equals_its_definition():
    lon, lat = scattered(40)
    values = np.random.default_rng(0).normal(size=(40, 3)) * [1, 10, 100] + [0, 5, 7]
    result = variogram(lon, lat, np.column_stack([values, np.ones(40)]))  # a constant column does not count
    z = (values - values.mean(0)) / values.std(0)
    points = unit_vectors(lon, lat)
    distance = distances_km(points, points)
    limit = distance.max() / 2
    linked = [(i, j) for i in range(40) for j in range(i) if distance[i, j] <= limit]
    pairs = sorted((distance[i, j], np.mean((z[i] - z[j]) ** 2) / 2) for i, j in linked)
    first = [pair for at, pair in enumerate(pairs) if at * 20 // len(pairs) == 0]
    assert result.distance_km[0] == pytest.approx(np.mean([d for d, _ in first]))
    assert result.semivariance[0] == pytest.approx(np.mean([s for _, s in first]))


def test_a_trend_without_end_is_said_to_have_none():
    lon, lat = scattered(300)
    assert not variogram(lon, lat, np.column_stack([lat, lon])).reached


def test_blocks_have_the_side_everywhere_even_at_the_pole_and_across_180():
    random = np.random.default_rng(0)
    lon, lat = random.uniform(-180, 180, 60_000), np.degrees(np.arcsin(random.uniform(-1, 1, 60_000)))
    number = blocks(lon, lat, 1000.0)
    assert set(number) == set(range(number.max() + 1))
    area = 4 * np.pi * EARTH_KM**2 / (number.max() + 1)
    assert area == pytest.approx(1000.0**2, rel=0.05)
    points = unit_vectors(lon, lat)
    for one in random.choice(number.max() + 1, 40, replace=False):
        inside = points[number == one]
        assert distances_km(inside, inside).max() < 1000 * np.sqrt(2) * 1.2
    # The same place by another name.
    assert np.array_equal(blocks(lon, lat, 300.0), blocks(lon + 360, lat, 300.0))
    same = blocks([180.0, -180.0, 0.0, 120.0], [10.0, 10.0, 90.0, 90.0], 500.0)
    assert same[0] == same[1]
    assert blocks([0.0, 90.0, 180.0], [-90.0, 90.0, 90.0], 30_000.0).max() == 0


def test_spatial_folds_keep_blocks_whole_and_balance_presences():
    lon, lat = scattered(500)
    present = np.arange(500) < 100
    folds = spatial_folds(lon, lat, present, values=field(lon, lat, 300.0), count=5)
    assert folds.kind == "blocks" and folds.count == 5
    assert folds.block_km == pytest.approx(folds.range_km) and not folds.limited
    for one in np.unique(folds.block):
        assert np.unique(folds.fold[folds.block == one]).size == 1
    presences = np.bincount(folds.fold[present], minlength=5)
    others = np.bincount(folds.fold[~present], minlength=5)
    assert presences.min() >= 15 and presences.sum() == 100
    assert others.max() - others.min() < 40
    tested = np.concatenate([test for _, test in folds])
    assert sorted(tested) == list(range(500))
    for train, test in folds:
        assert not set(folds.block[train]) & set(folds.block[test])


def test_spatial_folds_are_the_same_every_time_and_differ_by_seed():
    lon, lat = scattered(200)
    present = np.arange(200) < 60
    first, again, other = (spatial_folds(lon, lat, present, side_km=100, seed=seed).fold for seed in (0, 0, 1))
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_blocks_shrink_until_there_are_enough_and_say_so():
    lon, lat = scattered(60, east=2.0, south=45.0, north=46.0)
    folds = spatial_folds(lon, lat, np.arange(60) < 20, side_km=2000.0)
    assert folds.limited and folds.block_km < 150
    assert np.unique(folds.fold[:20]).size == 5
    with pytest.raises(ValueError, match="1 positions"):
        spatial_folds(np.zeros(9), np.zeros(9), np.ones(9), side_km=10.0)


def test_random_folds_are_stratified():
    present = np.arange(103) < 23
    folds = random_folds(present, 5)
    assert set(np.bincount(folds.fold[present])) <= {4, 5}
    assert set(np.bincount(folds.fold[~present])) == {16}
    with pytest.raises(ValueError, match="3 presences"):
        random_folds(np.arange(10) < 3, 5)


def test_leave_location_out_links_near_records_and_keeps_their_surroundings_out():
    lon = np.array([10.0, 10.2, 10.4, 20.0, -179.95, 179.95, *np.linspace(0, 30, 61)])
    lat = np.array([50.0, 50.0, 50.0, 50.0, 0.0, 0.0, *np.full(61, 50.0)])
    present = np.arange(67) < 6
    folds = leave_location_out(lon, lat, present, within_km=20.0)
    assert folds.count == 3
    assert folds.fold[:6].tolist() == [0, 0, 0, 1, 2, 2]  # linked step by step, and across 180 degrees
    points = unit_vectors(lon, lat)
    for train, test in folds:
        left_out = test[present[test]]
        assert distances_km(points[left_out], points[train]).min() > 20.0
        assert present[train].any() and (~present[test]).any()
    with pytest.raises(ValueError, match="one location"):
        leave_location_out([0.0, 0.1, 5.0], [0.0, 0.0, 5.0], [True, True, False])


def test_standard_folds_depend_on_the_number_of_positions():
    lon, lat = scattered(200)
    values = field(lon, lat, 300.0)
    by_number = {n: standard_folds(lon, lat, np.arange(200) < n, values) for n in (1, 2, 9, 10, 60)}
    assert [list(folds) for folds in by_number.values()] == [
        [],
        ["locations"],
        ["locations"],
        ["blocks", "random"],
        ["blocks", "random"],
    ]
    assert by_number[9]["locations"].count == 9


def test_descriptions_name_the_size():
    lon, lat = scattered(200)
    present = np.arange(200) < 60
    assert "sides of 100 km" in spatial_folds(lon, lat, present, side_km=100.0).describe()
    sized = spatial_folds(lon, lat, present, values=field(lon, lat, 300.0))
    assert "range of autocorrelation" in sized.describe()
