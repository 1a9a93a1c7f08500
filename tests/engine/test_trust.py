"""Bands beside a map: interpolated from a lattice, the same in any tiling, of fits and of named species alike."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import rasterio
import xarray as xr

import sdm
from sdm.engine import trust
from sdm.engine.encode import embed_positions
from sdm.engine.places import Plan, Target
from sdm.engine.suitability import Probability
from sdm.engine.tile import map_tile, score_tile
from sdm.grid import BBox, Tile, make_grid
from sdm.index import build_index, plan_index
from sdm.maps.fitted import fit
from sdm.models.registry import list_models
from sdm.outputs.metadata import Band
from sdm.records.features import ModelFeatures
from sdm.records.table import Records
from sdm.records.target import FittedScore, FittedTrust
from sdm.request import Area, Sampling
from sdm.request.records import FitOptions

GRIDS = {
    # Name: bbox, CRS, resolution. Lattices of 4 and 10 pixels, and one of every pixel.
    "degrees": ((-125.03, 47.0, -119.0, 50.9), "EPSG:4326", 0.05),
    "fine": ((-122.0, 48.0, -118.6, 49.4), "EPSG:4326", 0.02),
    "albers": ((-154.0, 57.0, -148.0, 60.0), "EPSG:3338", 7000.0),
    "coarse": ((100.0, -10.0, 140.0, 20.0), "EPSG:4326", 0.5),
}
MODEL = list_models()[0]


class Warmth:
    """A toy: of the model's own, without a fit. Counts the places it is asked for."""

    def __init__(self):
        self.bands = (Band("warmth", "The first variable, for a test.", valid_range=(-9, 9)),)
        self.asked = 0

    def trust(self, embeddings, environment, space):
        assert embeddings.shape[1] == space.shape[1] == MODEL.dim
        np.testing.assert_allclose(np.linalg.norm(space, axis=1), 1, atol=1e-4)
        self.asked += len(environment)
        return environment[:, :1].T


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """A species fitted to 50 records in the Pacific Northwest."""
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("records") / "records.csv"
    rows = [f"{x:.4f},{y:.4f}" for x, y in zip(rng.uniform(-123, -120, 50), rng.uniform(47, 50, 50), strict=True)]
    path.write_text("\n".join(["longitude,latitude", *rows]))
    options = FitOptions(background_places=400, refits=4, gate=False)
    return fit(Records.read(path), model=MODEL, options=options)


OPTIONS = {"bbox": (-124.0, 30.0, -112.0, 50.0), "resolution": 0.25, "tile_size": 32, "evaluate": False}


def targets(fitted):
    """A fit, a named species without bands, and one with bands of the model's own."""
    vector = MODEL.species_embedding(MODEL.resolve("Puma concolor"))
    score = Probability(*MODEL.calibration(MODEL.place_modalities))
    none = np.zeros(MODEL.dim, dtype=np.float32)
    return (
        Target(none, FittedScore.of(fitted), "land", fit=fitted, trust=FittedTrust(fitted)),
        Target(vector, score, "land"),
        Target(vector, score, trust=Warmth()),
    )


def plan_of(grid, fitted, step=None):
    bbox, crs, resolution = GRIDS[grid]
    return Plan(
        model=MODEL,
        grid=make_grid(BBox(*bbox), None, crs, resolution, tile_size=64),
        sampling=Sampling(modalities=MODEL.place_modalities, step=step),
        targets=targets(fitted),
    )


def whole_map(plan, tile_size):
    """Values (S, rows, columns) and bands (B, rows, columns), one target's after the other's."""
    grid = dataclasses.replace(plan.grid, tile_size=tile_size)
    plan = dataclasses.replace(plan, grid=grid)
    values = np.empty((len(plan.targets), *grid.shape), dtype=np.float32)
    bands = np.empty((sum(len(t.bands) for t in plan.targets), *grid.shape), dtype=np.float32)
    for tile in grid.tiles():
        maps = map_tile(plan, tile)
        values[:, tile.rows, tile.cols] = maps.values
        bands[:, tile.rows, tile.cols] = np.concatenate(maps.bands)
    return values, bands


def exact(plan):
    """The bands computed at every pixel."""
    rows, cols = plan.grid.shape
    lon, lat = (a.ravel() for a in plan.grid.lonlat(np.arange(rows), np.arange(cols)))
    embeddings, known = embed_positions(MODEL, plan.sampling, lon, lat)
    environment, there = plan.environment(lon, lat)
    space = ModelFeatures(MODEL).environment_embedding(environment)
    parts = [t.trust.trust(embeddings, environment, space) for t in plan.targets if t.trust]
    out = np.concatenate(parts)
    out[:, ~(known & there)] = np.nan
    return out.reshape(-1, rows, cols)


@pytest.mark.parametrize(("grid", "step"), [(g, None) for g in GRIDS] + [("albers", 3)])
def test_any_tiling_gives_the_same_bytes(fitted, grid, step):
    plan = plan_of(grid, fitted, step)
    values, bands = whole_map(plan, 4096)
    assert len(bands) == 3
    for tile_size in (64, 100):
        again = whole_map(plan, tile_size)
        assert again[0].tobytes() == values.tobytes() and again[1].tobytes() == bands.tobytes(), tile_size
    whole = Tile((0, 0), *(slice(0, length) for length in plan.grid.shape))
    assert score_tile(plan, whole).tobytes() == values.tobytes(), "bands change no value"
    for band, target in zip(bands, (0, 0, 2), strict=True):
        assert np.array_equal(np.isnan(band), np.isnan(values[target]))
    assert np.isnan(values[0]).any() or grid == "fine"
    for maps in (map_tile(plan, whole),):
        assert [len(b) for b in maps.bands] == [2, 0, 1]


@pytest.mark.parametrize("grid", ["degrees", "fine"])
def test_bands_are_close_to_those_of_every_pixel(fitted, grid):
    plan = plan_of(grid, fitted)
    _, bands = whole_map(plan, 4096)
    for got, true, largest in zip(bands, exact(plan), (0.05, 10.0, 0.05), strict=True):
        assert np.nanmean(np.abs(got - true)) < largest
        both = np.isfinite(got) & np.isfinite(true)
        assert np.corrcoef(got[both], true[both])[0, 1] > 0.7


def test_bands_at_the_nodes_are_exact(fitted):
    plan = plan_of("degrees", fitted)
    _, bands = whole_map(plan, 4096)
    rows, cols = plan.pixels(Tile((0, 0), *(slice(0, length) for length in plan.grid.shape)))
    nodes = np.ix_(rows % plan.trust_stride == 0, cols % plan.trust_stride == 0)
    for got, true in zip(bands, exact(plan), strict=True):
        got, true = got[nodes], true[nodes]
        shown = np.isfinite(got)
        assert shown.sum() > 100
        # Location and imagery are interpolated in a map, which moves the embedding a little.
        np.testing.assert_allclose(got[shown], true[shown], atol=0.3, rtol=0.02)


def test_few_places_are_measured(fitted):
    plan = plan_of("degrees", fitted)
    values, _ = whole_map(plan, 4096)
    batch = MODEL.batch(MODEL.place_modalities, "cpu")
    assert 0 < plan.targets[2].trust.asked < values[0].size / 12 + 2 * batch


def test_maps_of_overlapping_boxes_agree(fitted):
    plan = plan_of("degrees", fitted)
    values, bands = whole_map(plan, 256)
    rows, cols = slice(3, 41), slice(7, 50)
    part = dataclasses.replace(plan, grid=dataclasses.replace(plan.grid, geobox=plan.grid.geobox[rows, cols]))
    assert plan.anchor != part.anchor
    inner = whole_map(part, 256)
    assert np.array_equal(inner[0], values[:, rows, cols], equal_nan=True)
    assert np.array_equal(inner[1], bands[:, rows, cols], equal_nan=True)


def test_an_index_gives_nearly_the_same_bands_in_any_tiling(fitted, tmp_path):
    bbox = (-124.6, 46.3, -121.1, 48.5)
    build_index(plan_index(bbox, resolution=0.05, tile_size=32), tmp_path / "coast.zarr", threads=1)
    from sdm.index import Index

    index = Index.open(tmp_path / "coast.zarr")
    places = index.places_in(MODEL, Area(bbox=bbox), Sampling(), "cpu")
    named = dataclasses.replace(targets(fitted)[2], mask="land")
    chosen = (targets(fitted)[0], named)
    plan = Plan(**{f.name: getattr(places, f.name) for f in dataclasses.fields(places)}, targets=chosen)
    assert plan.source is not None
    values, bands = whole_map(plan, 32)
    for tile_size in (20, 4096):
        again = whole_map(plan, tile_size)
        assert again[0].tobytes() == values.tobytes() and again[1].tobytes() == bands.tobytes(), tile_size
    assert np.array_equal(np.isnan(bands[1]), np.isnan(values[0])) and np.isnan(values[0]).any()
    encoded = whole_map(dataclasses.replace(plan, source=None), 4096)
    both = np.isfinite(values[0]) & np.isfinite(encoded[0][0])
    for got, true, largest in zip(bands, encoded[1], (0.05, 5.0, 0.05), strict=True):
        assert np.mean(np.abs(got - true)[both]) < largest < np.std(true[both])


def test_a_pixel_without_a_known_node_is_measured_itself():
    at_nodes = np.array([[[1.0, 3.0], [5.0, 7.0]]], dtype=np.float32)
    rows = cols = np.arange(4)
    shown = np.ones((4, 4), dtype=bool)
    asked = []

    def exact_at(pixels):
        asked.append(pixels.copy())
        return np.full((1, 4, 4), 9, dtype=np.float32)

    every = trust.interpolate(at_nodes, np.ones((2, 2), bool), rows, cols, 4, shown, exact_at)
    assert not asked and every[0, 2, 2] == 4.0 and every[0, 0, 2] == 2.0
    corner = np.array([[False, False], [False, True]])
    lonely = trust.interpolate(at_nodes, corner, rows, cols, 4, shown, exact_at)
    # Along the edges that do not touch the one known node, nothing is known.
    assert np.array_equal(asked[0], (np.arange(4) == 0)[:, None] | (np.arange(4) == 0)[None, :])
    assert (lonely[0, 1:, 1:] == 7.0).all() and (lonely[0, 0] == 9.0).all()


def test_places_that_lie_ready_are_measured_in_batches_of_one_size(monkeypatch):
    monkeypatch.setattr(trust, "ROWS_AT_ONCE", 8)
    sizes = []

    def double(embeddings, environment):
        sizes.append(len(embeddings))
        return 2 * environment[:, 0]

    environment = np.arange(19.0)[:, None]
    np.testing.assert_array_equal(trust.in_batches(double, environment, environment), 2 * np.arange(19.0))
    assert sizes == [8, 8, 8]


def test_every_output_of_a_map_has_the_bands(fitted, tmp_path):
    job = sdm.plan(fitted=fitted, **OPTIONS)
    values, bands = whole_map(job.plan, 4096)
    (result,) = sdm.write_maps(job, tmp_path, threads=2)
    with rasterio.open(result.files["tif"]) as file:
        assert file.descriptions[1:] == ("uncertainty", "novelty")
        written = file.read()
    store = xr.open_zarr(result.files["zarr"], decode_coords="all")
    names = (job.plan.targets[0].score.name, "uncertainty", "novelty")
    for layer, name, in_tif in zip((values[0], *bands), names, written, strict=True):
        np.testing.assert_array_equal(in_tif, layer)
        np.testing.assert_array_equal(store[name].values, layer)
    assert "sdmHatchLegend" in result.files["html"].read_text()
    reported = json.loads(result.files["json"].read_text())
    assert [band["name"] for band in reported["bands"]] == ["uncertainty", "novelty"]
    assert all(band["quantity"] for band in reported["bands"])
    mean = reported["bands"][1]["statistics"]["mean"]
    assert mean == pytest.approx(np.nanmean(bands[1]), rel=1e-4)
    share = reported["trust"]["share_novel"]
    shown = np.isfinite(bands[1])
    latitude = np.broadcast_to(store["y"].values[:, None], shown.shape)[shown]
    expected = np.average(bands[1][shown] > 95, weights=np.cos(np.radians(latitude)))
    assert 0.05 < share < 0.95 and share == pytest.approx(expected, rel=0.01)
    assert result.report["trust"] == reported["trust"]
    again = sdm.write_maps(job, tmp_path / "zarr", formats="zarr", threads=1)[0].report
    assert again["trust"]["share_novel"] == pytest.approx(share)


def test_the_bands_can_be_left_out(fitted, tmp_path):
    job = sdm.plan(fitted=fitted, trust=False, **OPTIONS)
    assert not job.plan.banded
    (result,) = sdm.write_maps(job, tmp_path, threads=1)
    with rasterio.open(result.files["tif"]) as file:
        assert file.count == 1
    assert "bands" not in result.report and "trust" not in result.report
    assert "sdmHatch" not in result.files["html"].read_text()


def test_a_dataset_holds_the_bands_where_asked(fitted):
    array = sdm.map_species(fitted=fitted, **OPTIONS)
    assert isinstance(array, xr.DataArray)
    data = sdm.map_species(fitted=fitted, bands=True, **OPTIONS)
    assert list(data.data_vars) == [array.name, "uncertainty", "novelty"]
    np.testing.assert_array_equal(data[array.name].values, array.values)
    _, bands = whole_map(sdm.plan(fitted=fitted, **OPTIONS).plan, 4096)
    np.testing.assert_array_equal(data["novelty"].values, bands[1])
    assert data["novelty"].rio.crs.to_epsg() == 4326 and data["novelty"].attrs["units"] == "percent"
    named = sdm.map_species(["Puma concolor"], bbox=OPTIONS["bbox"], resolution=0.5, bands=True)
    assert list(named.data_vars) == ["probability", "uncertainty"]
    assert named["probability"].dims == named["uncertainty"].dims == ("species", "y", "x")
