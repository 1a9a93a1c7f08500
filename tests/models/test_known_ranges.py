"""The table of known ranges: what it adds to a logit, and that a file of it is not trusted."""

import numpy as np
import pytest
from safetensors.numpy import load, save

from sdm.errors import ModelError
from sdm.models.config import KNOWN_RANGES as FILE
from sdm.models.known_ranges import Extent, KnownRange, pack_known_ranges, read_known_ranges

VOCABULARY = ["class:Mammalia", "species:Lynx pardinus", "species:Ursus arctos"]
BOXES = np.array([[-4, 38, -3, 39], [178, 10, 181, 11]], dtype=np.float32)
LYNX = KnownRange(BOXES, 2.0, 8.0, 100.0, 0.9, 0.1)


def test_shift_falls_with_the_distance_to_the_nearest_box():
    lon = np.array([-3.5, -3.5, -3.5, 60.0, -179.5, -178.0])
    lat = np.array([38.5, 39.45, 45.0, 0.0, 10.5, 10.5])
    shift = LYNX.shift(lon, lat)
    assert shift.dtype == np.float32
    assert shift[0] == 2.0 and shift[4] == 2.0  # inside, also across the antimeridian
    assert shift[1] == pytest.approx(2.0 - 8.0 * 0.45 * 1.11195, abs=1e-3)  # 0.45 degrees north
    assert shift[2] == shift[3] == -6.0
    # One degree east, at 10.5 north.
    assert shift[5] == pytest.approx(2.0 - 8.0 * min(1.11195 * np.cos(np.radians(10.5)), 1), abs=1e-3)
    assert KnownRange(BOXES[:0], 1.5, 0.0, 100.0, 0.9, 0.1).shift(lon, lat).tolist() == [1.5] * 6


def test_lifts_are_each_of_their_own_box():
    lifts = np.array([3.0, 1.0], np.float32)
    lion = KnownRange(BOXES, 0.0, 0.0, 100.0, 0.9, 0.1, lifts)
    lon = np.array([-3.5, -179.5, -3.5, 60.0])
    lat = np.array([38.5, 10.5, 39.45, 0.0])
    shift = lion.shift(lon, lat)
    assert lion.adds and lion.in_parts and shift.dtype == np.float32
    assert shift[:2].tolist() == [3.0, 1.0] and shift[3] == 0.0
    assert shift[2] == pytest.approx(3.0 * (1 - 0.45 * 1.11195), abs=1e-3)
    assert lion.most(Extent.of(lon, lat)) >= 3.0 and lion.most(Extent.of(lon[3:], np.array([60.0]))) == pytest.approx(
        0.0, abs=1e-3
    )
    assert lion.most(Extent.of(lon[2:3], lat[2:3])) >= shift[2]
    assert lion.times(0.5).shift(lon, lat) == pytest.approx(0.5 * shift)
    assert not KnownRange(BOXES, 0.0, 0.0, 100.0, 0.9, 0.1, 0 * lifts).adds
    assert lion.reaches((-10, 30, 10, 45)) and lion.reaches((170, 0, -170, 20)) and lion.reaches((-2.5, 38, 0, 39))
    assert lion.reaches((-180, -90, 180, 90)) and lion.reaches((-180, 0, -175, 20))
    for elsewhere in ((20, 30, 40, 45), (-10, 50, 10, 60), (0, 0, 170, 20)):
        assert not lion.reaches(elsewhere)
    assert LYNX.reaches((20, 30, 40, 45))  # its drop is everywhere


def test_each_place_is_computed_by_itself():
    rng = np.random.default_rng(3)
    lon, lat = rng.uniform(-180, 180, 999), rng.uniform(-90, 90, 999)
    whole = LYNX.shift(lon, lat)
    parts = [LYNX.shift(lon[k : k + 7], lat[k : k + 7]) for k in range(0, 999, 7)]
    assert np.array_equal(whole, np.concatenate(parts))
    for k in range(0, 999, 50):
        assert LYNX.most(Extent.of(lon[k : k + 50], lat[k : k + 50])) >= whole[k : k + 50].max()
    near = LYNX.shift(np.array([-3.5]), np.array([38.5]))
    assert LYNX.most(Extent.of(np.array([-3.5]), np.array([38.5]))) >= near.max()
    assert LYNX.most(Extent.of(np.array([0.0, 1.0]), np.array([50.0, 51.0]))) == pytest.approx(-6.0, abs=1e-3)
    assert LYNX.times(0.5).shift(lon, lat) == pytest.approx(0.5 * whole)


@pytest.mark.parametrize("centre", [(-3.0, 38.0), (179.5, 10.0), (-179.5, 11.0), (20.0, 84.0), (90.0, -5.0)])
def test_ranges_far_from_all_places_are_left_out_without_a_difference(centre):
    """One place at a time nothing can be left out, and nothing held, that matters to another."""
    rng = np.random.default_rng(4)
    south, west = rng.uniform(-80, 85, 60), rng.uniform(-180, 180, 60)
    corners = [west, south, west + rng.uniform(0.1, 40, 60), south + rng.uniform(0.1, 5, 60)]
    boxes = np.stack(corners, axis=1).astype(np.float32)
    lon, lat = (c + rng.uniform(-2, 2, 500) for c in centre)
    lat[7] = np.nan
    for drop, lifts in ((8.0, None), (0.0, rng.uniform(0, 3, 60).astype(np.float32))):
        known = KnownRange(boxes, 1.0, drop, 300.0, 0.9, 0.1, lifts)
        whole = known.shift(lon, lat)
        single = [known.shift(lon[k : k + 1], lat[k : k + 1])[0] for k in range(500)]
        assert np.array_equal(whole, single, equal_nan=True)
        assert known.most(Extent.of(lon, lat)) >= np.nanmax(whole)


def test_file_round_trip(tmp_path):
    assert read_known_ranges(tmp_path, VOCABULARY) == {}
    bear = KnownRange(BOXES[:0], 0.0, 0.0, 200.0, 0.99, 0.99)
    (tmp_path / FILE).write_bytes(pack_known_ranges({"Ursus arctos": bear, "Lynx pardinus": LYNX}, VOCABULARY))
    read = read_known_ranges(tmp_path, VOCABULARY)
    assert set(read) == {"Ursus arctos", "Lynx pardinus"}
    assert np.array_equal(read["Lynx pardinus"].boxes, BOXES) and read["Lynx pardinus"].adds
    parts = KnownRange(BOXES, 0.0, 0.0, 100.0, 0.9, 0.1, np.array([2, 0.5], np.float32))
    (tmp_path / FILE).write_bytes(pack_known_ranges({"Ursus arctos": parts}, VOCABULARY))
    assert read_known_ranges(tmp_path, VOCABULARY)["Ursus arctos"].lifts.tolist() == [2.0, 0.5]
    old = {name: tensor for name, tensor in load((tmp_path / FILE).read_bytes()).items() if name != "lift"}
    (tmp_path / FILE).write_bytes(save(old))
    assert not read_known_ranges(tmp_path, VOCABULARY)["Ursus arctos"].in_parts
    assert read["Lynx pardinus"].highest == pytest.approx(0.9) and not read["Ursus arctos"].adds


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("offset", np.array([np.nan], np.float32), "not finite"),
        ("offset", np.array([1e9], np.float32), "more than"),
        ("drop", np.array([-1], np.float32), "below 0"),
        ("lift", np.array([0, -1], np.float32), "below 0"),
        ("lift", np.array([0], np.float32), "shapes"),
        ("lift", np.array([0, np.inf], np.float32), "not finite"),
        ("reach", np.array([0], np.float32), "not positive"),
        ("first", np.array([0, 9], np.int32), "fit their boxes"),
        ("first", np.array([0], np.int32), "shapes"),
        ("species", np.array([0], np.int32), "no species"),
        ("species", np.array([77], np.int32), "no species"),
        ("boxes", np.array([[5, 0, 4, 1], [0, 0, 1, 1]], np.float32), "a box"),
        ("boxes", np.array([[0, 0, 1, 1], [0, 0, 1, 91]], np.float32), "a box"),
        ("boxes", np.zeros((2, 4), np.float64), "type float32"),
        ("boxes", np.zeros((2, 3), np.float32), "shapes"),
    ],
)
def test_hostile_files_are_refused(tmp_path, name, value, says):
    tensors = load(pack_known_ranges({"Lynx pardinus": LYNX}, VOCABULARY))
    (tmp_path / FILE).write_bytes(save({**tensors, name: value}))
    with pytest.raises(ModelError, match=says):
        read_known_ranges(tmp_path, VOCABULARY)


def test_truncated_file_is_refused(tmp_path):
    (tmp_path / FILE).write_bytes(pack_known_ranges({"Lynx pardinus": LYNX}, VOCABULARY)[:-9])
    with pytest.raises(ModelError, match="cannot be read"):
        read_known_ranges(tmp_path, VOCABULARY)
