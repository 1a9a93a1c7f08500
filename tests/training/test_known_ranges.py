"""Known ranges: the parts of a range, the offsets that are fitted, and the table that a recipe makes."""

import json
from dataclasses import replace

import numpy as np
import pyproj
import pytest
import shapely

from sdm.models.bundled import BundledModel
from sdm.models.known_ranges import Extent
from sdm.training.data.range_parts import RangeParts, cell_boxes, inner_cells, outposts, polygon_boxes
from sdm.training.data.ranges import RangePolygons, RangeRaster
from sdm.training.measures.edges import edge_calibration, place_shares, touched_shares
from sdm.training.measures.range_area import by_size, offset_to_area, range_score, size_class
from sdm.training.runs import known_ranges
from sdm.training.runs.range_run import run_recipe
from tests.training.tiny import BEHRMANN


def test_boxes_of_cells_cover_them_and_no_others(world):
    rows, cols = world.shape
    cells = np.sort(np.random.default_rng(5).choice(rows * cols, 60, replace=False))
    boxes = cell_boxes(world, cells)
    assert len(boxes) < cells.size  # neighbours in a row share one
    middle = np.full(rows * cols, 0.5)
    lon, lat = world.positions(np.arange(rows * cols), middle, middle)
    inside = known_ranges.in_boxes(boxes, lon, lat)
    assert np.array_equal(np.flatnonzero(inside), cells)


def test_outposts_are_the_small_parts_apart():
    present = np.zeros((12, 20), bool)
    present[0:6, 0:6] = True  # 36 cells: no outpost
    present[9, 15] = present[10, 16] = True  # touch at a corner: one part
    present[0, 18] = True
    raster = RangeRaster(["Ursus arctos"], np.zeros((240, 1), np.uint8), (12, 20), (1, 0, 0, 0, -1, 0), "")
    parts = outposts(raster, np.flatnonzero(present))
    assert sorted(map(len, parts)) == [1, 2] and all(present.ravel()[p].all() for p in parts)


def test_inner_cells_lie_between_four_others():
    present = np.zeros((12, 20), bool)
    present[0:4, 0:4] = present[8:11, 10:13] = True
    present[8, 10] = False
    raster = RangeRaster(["Ursus arctos"], np.zeros((240, 1), np.uint8), (12, 20), (1, 0, 0, 0, -1, 0), "")
    assert inner_cells(raster, np.flatnonzero(present)).tolist() == [21, 22, 41, 42, 9 * 20 + 11]


def test_parts_of_a_large_range_that_the_model_misses_are_lifted(world):
    """A blank outpost and a blank cell amid the range reach one half; an edge and a cell that is shown stay."""
    outpost, inner = np.array([3]), np.array([6 * world.shape[1] + 15, 6 * world.shape[1] + 20])
    part = RangeParts(400.0, np.empty((0, 4), np.float32), 200.0, (outpost,), inner)
    cells = np.repeat([3, *inner, 7 * world.shape[1] + 15], 5)
    logit = np.repeat([-3.0, -1.0, 2.0, -4.0], 5).astype(np.float32)
    known = known_ranges._lifted(part, world, logit, cells)
    lon, lat = world.positions(np.array([3, *inner, 0]), np.full(4, 0.5), np.full(4, 0.5))
    assert known.in_parts and known.shift(lon, lat).tolist() == [3.5, 1.5, 0.0, 0.0]
    assert known.most(Extent.of(lon, lat)) >= 3.5
    shown = known_ranges._lifted(part, world, np.abs(logit), cells)
    assert not shown.adds


def test_boxes_of_polygons_touch_them():
    shape = shapely.union(shapely.Point(10.03, 50.01).buffer(0.35), shapely.box(-3.001, 7.0, -2.999, 7.001))
    boxes = polygon_boxes(shape)
    assert all(shapely.intersects(shape, shapely.box(*box)) for box in boxes.astype(float))
    assert shapely.union_all(shapely.box(*boxes.astype(float).T)).buffer(1e-5).contains(shape)
    assert len(boxes) < 15


def test_offset_brings_the_area_above_one_half_to_that_of_the_range():
    rng = np.random.default_rng(1)
    logit, area = rng.normal(-6, 2, 500).astype(np.float32), rng.uniform(50, 150, 500)
    offset = offset_to_area(logit, area, 9000.0)
    assert area[logit + offset >= 0].sum() == pytest.approx(9000.0, abs=150)
    assert offset_to_area(logit, area, 1e9) == pytest.approx(-float(logit.min()))


def test_measures_by_size_of_range():
    logit, area = np.array([2.0, -1.0, 1.0, -9.0]), np.array([10.0, 10.0, 20.0, 60.0])
    inside = np.array([True, True, False, False])
    score = range_score(logit, inside, area)
    assert (score.area, score.above, score.both) == (20.0, 30.0, 10.0)
    assert score.highest == pytest.approx(1 / (1 + np.exp(-2.0)))
    assert [size_class(s) for s in (0.01, 1, 2, 3, 10, 11, 100, 5000)] == [
        "1", "1", "2-3", "2-3", "4-10", "11-100", "11-100", "more than 100",
    ]  # fmt: skip
    blank = range_score(np.full(4, -9.0), inside, area)
    found = by_size({"a": score, "b": blank, "c": score}, {"a": 1, "b": 1, "c": 50})
    assert found["1"]["reach"] == 0.5 and found["11-100"]["recall"] == 0.5 and found["all"]["species"] == 3
    assert found["1"]["precision"] == pytest.approx(1 / 3)
    assert by_size({}, {}) == {}


def test_cells_at_edges_count_as_their_share():
    """Half-planes: about half of the cells that their edges cross lie outside, those within are whole."""
    rows, cols = 30, 60
    to_grid = pyproj.Transformer.from_crs(4326, BEHRMANN, always_xy=True)
    x0, y1 = to_grid.transform(-60, 60)
    wkt = pyproj.CRS.from_user_input(BEHRMANN).to_wkt()
    grid = ((rows, cols), (-2 * x0 / cols, 0, x0, 0, -2 * y1 / rows, y1), wkt)
    land = np.ones(rows * cols, bool)
    edges = np.random.default_rng(0).uniform(-25, 25, 60)
    shapes = np.array([shapely.box(-55, -50, float(edge), 50) for edge in edges], dtype=object)
    raster = RangeRaster(["Ursus arctos"], np.zeros((rows * cols, 1), np.uint8), *grid)
    shares = touched_shares(raster, land, RangePolygons([f"s{k}" for k in range(60)], shapes))
    assert shares[0] == 1.0 and shares[3] == pytest.approx(0.5, abs=0.15)
    present = np.zeros((rows, cols), bool)
    present[:, :30] = True
    half = replace(raster, presence=np.packbits(present.reshape(-1, 1), axis=1))
    cells = np.array([10 * cols + 5, 10 * cols + 29, 10 * cols + 30])
    found = place_shares(half, land, cells, shares)[:, 0]
    assert found == pytest.approx([1.0, shares[3], 0.0])
    ece, table = edge_calibration(np.array([[0.95], [0.45], [0.05]]), found[:, None], np.ones((3, 1), bool))
    assert ece == pytest.approx((0.05 + abs(shares[3] - 0.45) + 0.05) / 3, abs=1e-3) and len(table) == 3


def test_a_recipe_with_a_small_range_makes_a_table(tmp_path, tiny, world, monkeypatch, capsys):
    """The small range is blank after a few steps of training; with the table it is not, and only there."""
    for name, value in (("COARSE", 3.0), ("FINE", 0.5), ("SEA", 20.0)):
        monkeypatch.setattr(known_ranges, name, value)
    recipe, out = tiny(6)
    with np.load(tmp_path / "phylacine_current_ranges.npz") as file:
        arrays = dict(file)
    bits = np.unpackbits(arrays["packed"], axis=1)[:, : world.shape[0] * world.shape[1]]
    small = np.zeros_like(bits[:1])
    small[0, 6 * world.shape[1] + 15] = 1  # in east Africa
    bits = np.concatenate([bits, small])
    arrays |= {"packed": np.packbits(bits, axis=1), "n_cells": bits.sum(1)}
    arrays["species"] = np.array([*arrays["species"], "Ursus_ater"])
    np.savez(tmp_path / "phylacine_current_ranges.npz", **arrays)
    metrics = run_recipe(recipe, out, tmp_path / "run", ("develop", "ship"))
    found = metrics["known_ranges"]["mammals"]
    assert found["with_known_ranges"]["1"]["reach"] == 1.0 and found["with_known_ranges"]["1"]["species"] == 1
    assert found["with_known_ranges"]["1"]["precision"] > 0.5
    assert "ranges mammals, with_known_ranges, 1 cells: 1 species" in capsys.readouterr().out
    held = json.loads((tmp_path / "run" / "metrics.json").read_text())["held_out"]["mammals"]
    assert {"edge_ece", "edge_reliability", "by_size"} <= held["location+satellite+environment"].keys()
    model = BundledModel.open(out)
    taxon = model.taxa.by_name["ursus ater"]
    known = model.known_range(taxon)
    assert known.adds and known.highest >= 0.5 and known.drop == known_ranges.DROP
    assert model.known_range(replace(taxon, rank="genus")) is None
    bear = model.known_range(model.taxa.by_name["ursus arctos"])
    assert bear.offset == bear.drop == 0.0 and bear.highest >= bear.alone
    before = (out / "known_ranges.safetensors").read_bytes()
    run_recipe(recipe, out, tmp_path / "run", ("ranges",))
    assert (out / "known_ranges.safetensors").read_bytes() == before
