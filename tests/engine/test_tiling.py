"""Any tiling, any number of threads: the same bytes."""

from __future__ import annotations

import copy
import dataclasses
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from sdm.engine import slopes
from sdm.engine.inputs import open_inputs
from sdm.engine.places import Plan, Target
from sdm.engine.suitability import Probability
from sdm.engine.tile import score_tile
from sdm.grid import BBox, make_grid
from sdm.models.bundled import BundledModel
from sdm.models.registry import list_models
from sdm.request import Sampling
from sdm.request.choices import MODALITIES

TILES = (64, 100, 256, 512, 4096)
GRIDS = {
    # Name: bbox, CRS, resolution. Coasts, so that masks cut; odd sizes, so that edge tiles are thin.
    "degrees": ((-125.03, 47.0, -119.0, 52.9), "EPSG:4326", 0.05),
    "antimeridian": ((172.0, 60.0, -168.0, 68.0), "EPSG:4326", 0.16),
    "fine": ((6.0, 43.0, 14.4, 46.4), "EPSG:4326", 0.02),
    "albers": ((-160.0, 57.0, -148.0, 63.0), "EPSG:3338", 7000.0),
    "coarse": ((100.0, -10.0, 160.0, 20.0), "EPSG:4326", 0.5),
}


@pytest.fixture(scope="module")
def model() -> BundledModel:
    return list_models()[0]


def plan_of(model: BundledModel, grid: str, *, step: int | None = None, modalities=MODALITIES, mask="land") -> Plan:
    bbox, crs, resolution = GRIDS[grid]
    vectors = np.random.default_rng(1).normal(size=(3, model.dim)).astype(np.float32)
    for k, taxon in enumerate(list(model.taxa)[:2]):
        vectors[k] = model.load("cpu").text.embed(taxon.lineage).numpy()
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    score = Probability(*model.calibration(modalities))
    return Plan(
        model=model,
        grid=make_grid(BBox(*bbox), None, crs, resolution, tile_size=64),
        sampling=Sampling(modalities=modalities, step=step),
        targets=tuple(Target(v, score, m) for v, m in zip(vectors, (mask, "none", "sea"), strict=True)),
    )


def whole_map(plan: Plan, tile_size: int, threads: int = 1) -> np.ndarray:
    grid = dataclasses.replace(plan.grid, tile_size=tile_size)
    plan = dataclasses.replace(plan, grid=grid)
    tiles = list(grid.tiles())
    out = np.empty((len(plan.species), *grid.shape), dtype=np.float32)
    with ThreadPoolExecutor(threads) as pool:
        for tile, values in zip(tiles, pool.map(lambda tile: score_tile(plan, tile), tiles), strict=True):
            out[:, tile.rows, tile.cols] = values
    return out


def assert_same_bytes(plan: Plan) -> np.ndarray:
    whole = whole_map(plan, 4096)
    assert np.isfinite(whole).any() and np.isnan(whole).any()
    for tile_size in TILES[:-1]:
        assert whole_map(plan, tile_size).tobytes() == whole.tobytes(), f"tiles of {tile_size}"
    assert whole_map(plan, 64, threads=2).tobytes() == whole.tobytes(), "two threads"
    return whole


@pytest.mark.parametrize("grid", GRIDS)
def test_any_tiling_gives_the_same_bytes(model, grid):
    assert_same_bytes(plan_of(model, grid))


@pytest.mark.parametrize("grid", ["antimeridian", "albers"])
@pytest.mark.parametrize("step", [1, 3])
def test_any_tiling_gives_the_same_bytes_at_a_given_step(model, grid, step):
    assert_same_bytes(plan_of(model, grid, step=step))


@pytest.mark.parametrize("modalities", [("location",), ("satellite",), ("environment",), ("location", "environment")])
def test_any_tiling_gives_the_same_bytes_for_any_modalities(model, modalities):
    assert_same_bytes(plan_of(model, "degrees", modalities=modalities))


@pytest.mark.parametrize("grid", ["degrees", "albers"])
def test_maps_of_overlapping_boxes_agree(model, grid):
    """Lattices belong to the CRS: a box inside another has its very pixels, wherever it begins."""
    plan = plan_of(model, grid)
    whole = whole_map(plan, 256)
    for rows, cols in ((slice(3, 41), slice(7, 50)), (slice(20, 33), slice(11, 45))):
        grid_ = dataclasses.replace(plan.grid, geobox=plan.grid.geobox[rows, cols])
        part = dataclasses.replace(plan, grid=grid_)
        assert plan.anchor != part.anchor
        assert np.array_equal(whole_map(part, 256), whole[:, rows, cols], equal_nan=True)


def test_cells_are_encoded_again_where_the_lattice_does_not_settle_them(model):
    """With a coarse lattice the environment is refined, in any tiling alike, and close to every pixel."""
    config = copy.deepcopy(model.config)
    config["environment"]["pitch"] = 0.2
    plan = plan_of(dataclasses.replace(model, config=config), "degrees")
    assert plan.lattice == 4
    coarse = assert_same_bytes(plan)
    config = copy.deepcopy(config)
    config["environment"]["pitch"] = 0.05
    exact = whole_map(dataclasses.replace(plan, model=dataclasses.replace(model, config=config)), 512)
    assert np.array_equal(np.isnan(coarse), np.isnan(exact))
    assert np.nanquantile(np.abs(coarse - exact), 0.999) < 0.01


def test_slopes_spare_most_of_the_encodings(model, monkeypatch):
    plan = plan_of(model, "degrees")
    bear = model.species_embedding(model.resolve("Ursus arctos"))
    alone = dataclasses.replace(plan, targets=(dataclasses.replace(plan.targets[0], vector=bear),))
    assert alone.lattice == 4
    encoders, counted = model.load("cpu"), dict.fromkeys(MODALITIES, 0)
    plain = encoders.encode

    def counting(modality, values):
        counted[modality] += len(values)
        return plain(modality, values)

    monkeypatch.setattr(encoders, "encode", counting)
    by_slopes = whole_map(alone, 4096)[0]
    spared, counted["environment"] = counted["environment"], 0
    monkeypatch.setattr(slopes, "AGREED", -1.0)  # nothing agrees
    exact = whole_map(alone, 4096)[0]
    assert 0 < spared < 0.5 * counted["environment"]  # in coastal mountains
    difference = np.abs(by_slopes - exact)
    assert 0.0 < np.nanmean(difference) < 0.002
    assert np.nanquantile(difference, 0.999) < 0.05


def test_torch_threads_change_nothing_and_are_left_as_they_were(model):
    plan = plan_of(model, "fine")
    expected = whole_map(plan, 100)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            assert whole_map(plan, 100).tobytes() == expected.tobytes(), f"{threads} torch threads"
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_a_species_does_not_depend_on_those_mapped_with_it(model):
    plan = plan_of(model, "degrees")
    together = whole_map(plan, 256)
    for k in range(2):
        alone = dataclasses.replace(plan, targets=plan.targets[k : k + 1])
        # Only the product with the species may round differently: its shape is the number of species.
        np.testing.assert_allclose(whole_map(alone, 256)[0], together[k], atol=2e-6)


@pytest.mark.parametrize("modality", MODALITIES)
def test_an_embedding_does_not_depend_on_its_place_in_the_batch(model, modality):
    read = open_inputs(model, MODALITIES).read
    rng = np.random.default_rng(0)
    size = model.batch(MODALITIES, "cpu")
    inputs = read[modality](rng.uniform(60, 80, size), rng.uniform(40, 60, size))[0]
    order = rng.permutation(size)
    encoders = model.load("cpu")
    assert torch.equal(encoders.encode(modality, inputs)[order], encoders.encode(modality, inputs[order]))
