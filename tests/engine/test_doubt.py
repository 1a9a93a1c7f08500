"""The band `uncertainty` of named species: from their probability and how well the modalities of a place agree."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import rasterio
import xarray as xr

import sdm
from sdm.engine.doubt import FILE, UNCERTAINTY, Doubt
from sdm.engine.inputs import open_inputs
from sdm.engine.tile import embed_tile, map_tile, score_tile
from sdm.errors import ModelError, RegionIndexError
from sdm.grid import Tile
from sdm.index import Index, build_index, plan_index
from sdm.models.registry import list_models

MODEL = list_models()[0]
DOUBT = Doubt.read(MODEL.folder, MODEL.place_modalities)
BOX = {"bbox": (-116.0, 40.0, -106.0, 49.0), "resolution": 0.25, "tile_size": 16}


def mapped(plan, tile_size):
    """Values and bands (S, rows, columns) of a plan whose targets have one band each."""
    plan = dataclasses.replace(plan, grid=dataclasses.replace(plan.grid, tile_size=tile_size))
    values, bands = (np.empty((len(plan.targets), *plan.grid.shape), np.float32) for _ in range(2))
    for tile in plan.grid.tiles():
        maps = map_tile(plan, tile)
        values[:, tile.rows, tile.cols] = maps.values
        bands[:, tile.rows, tile.cols] = np.concatenate(maps.bands)
    return values, bands


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    path = tmp_path_factory.mktemp("index") / "rockies.zarr"
    return build_index(plan_index(**BOX), path, threads=1)


def test_uncertainty_is_the_chance_of_the_other_side_of_one_half():
    doubt = Doubt(0.5, -1.0, -1.0, 3.0, 0.6, 0.8)
    p = np.array([0.01, 0.3, 0.499, 0.501, 0.7, 0.99, 0.0, 1.0, np.nan], np.float32)
    for g in (0.6, 0.7, 0.8):
        with np.errstate(divide="ignore"):
            logit = np.clip(np.log(p.astype(float) / (1 - p)), -16, 16)
        q = 1 / (1 + np.exp(-(0.5 - g + (-1 + 3 * g) * logit)))
        expected = np.minimum(2 * np.where(p > 0.5, 1 - q, q), 1)
        got = doubt.uncertainty(p, np.full(p.shape, g))
        assert got.dtype == np.float32 and np.isnan(got[-1])
        np.testing.assert_allclose(got[:-1], expected[:-1], atol=0.002 + 1e-6)
        assert np.array_equal(got, np.rint(got * 250) / np.float32(250), equal_nan=True)
    low, high = (doubt.uncertainty(p, np.full(p.shape, g)) for g in (0.1, 0.99))
    assert np.array_equal(low, doubt.uncertainty(p, np.full(p.shape, 0.6)), equal_nan=True)
    assert np.array_equal(high, doubt.uncertainty(p, np.full(p.shape, 0.8)), equal_nan=True)


@pytest.mark.parametrize("subset", ["location+environment", "location+satellite+environment"])
def test_modalities_that_disagree_make_a_map_less_certain(subset):
    doubt = Doubt.read(MODEL.folder, subset.split("+"))
    p = np.array([0.02, 0.1, 0.9, 0.98])
    apart, near = (doubt.uncertainty(p, np.full(4, g)) for g in (doubt.low, doubt.high))
    assert (apart > near).all() and (near >= 0).all() and (apart <= 1).all()


def test_it_follows_from_the_embeddings_of_a_place():
    """At every pixel (step 1) the band is that of the modalities' own embeddings, encoded one by one."""
    job = sdm.plan("Ursus arctos", step=1, **BOX)
    values, bands = mapped(job.plan, 64)
    lon, lat = (a.ravel() for a in job.grid.lonlat(*(np.arange(n) for n in job.grid.shape)))
    read = open_inputs(MODEL, MODEL.place_modalities).read
    total = sum(MODEL.embed(m, read[m](lon, lat)[0]) for m in MODEL.place_modalities)
    agreement = np.linalg.norm(total, axis=1).reshape(job.grid.shape) / 3
    expected = DOUBT.uncertainty(values[0], agreement)
    shown = np.isfinite(values[0])
    assert np.array_equal(np.isnan(bands[0]), ~shown)
    assert np.abs(bands[0] - expected)[shown].max() <= 0.008 and np.ptp(bands[0][shown]) > 0.5


@pytest.mark.parametrize(("resolution", "crs"), [(0.05, None), (0.5, None), (20_000.0, "EPSG:5070")])
def test_any_tiling_gives_the_same_bytes(resolution, crs):
    options = {"bbox": (-113.0, 42.0, -108.0, 47.0), "resolution": resolution, **({"crs": crs} if crs else {})}
    job = sdm.plan(["Ursus arctos", "Antilocapra americana"], **options)
    values, bands = mapped(job.plan, 4096)
    for tile_size in (16, 37):
        again = mapped(job.plan, tile_size)
        assert again[0].tobytes() == values.tobytes() and again[1].tobytes() == bands.tobytes(), tile_size
    plain = sdm.plan(["Ursus arctos", "Antilocapra americana"], trust=False, **options).plan
    whole = Tile((0, 0), *(slice(0, n) for n in plain.grid.shape))
    assert not plain.banded and score_tile(plain, whole).tobytes() == values.tobytes()
    alone = mapped(sdm.plan("Antilocapra americana", **options).plan, 64)
    # Which places are encoded for another species changes a value in its last bits at most.
    assert np.nanmax(np.abs(alone[1][0] - bands[1])) <= 0.0041


def test_every_output_has_the_band(tmp_path):
    (result,) = sdm.write_maps(sdm.plan("Ursus arctos", **BOX), tmp_path / "with", threads=1)
    with rasterio.open(result.files["tif"]) as file:
        assert file.descriptions == ("probability", "uncertainty")
        assert float(file.tags(2)["low_trust_above"]) == UNCERTAINTY.limit
        written = file.read()
    data = xr.open_zarr(result.files["zarr"], decode_coords="all")
    np.testing.assert_array_equal(data["uncertainty"].values, written[1])
    assert "sdmHatchLegend" in result.files["html"].read_text()
    assert 0 < result.report["trust"]["share_uncertain"] < 0.5
    lazy = sdm.map_species("Ursus arctos", bands=True, **BOX)
    np.testing.assert_array_equal(lazy["uncertainty"].values, written[1])
    (plain,) = sdm.write_maps(sdm.plan("Ursus arctos", trust=False, **BOX), tmp_path / "without", threads=1)
    with rasterio.open(plain.files["tif"]) as file:
        assert file.count == 1
        np.testing.assert_array_equal(file.read(1), written[0])
    assert "trust" not in plain.report and "sdmHatch" not in plain.files["html"].read_text()


def test_an_index_holds_what_it_follows_from(index, tmp_path):
    encoded = mapped(sdm.plan("Ursus arctos", **BOX).plan, 64)
    plan = sdm.plan("Ursus arctos", index=index).plan
    values, bands = mapped(plan, 4096)
    assert mapped(plan, 16)[1].tobytes() == bands.tobytes()
    shown = np.isfinite(values)
    assert np.array_equal(shown, np.isfinite(bands))
    assert np.abs(bands - encoded[1])[shown].mean() < 0.02
    stored = {
        n: sum(f.stat().st_size for f in (Path(index.url) / n).glob("[0-9]*")) for n in ("agreement", "embedding")
    }
    assert 0 < stored["agreement"] < 0.02 * stored["embedding"]
    part = index.agreement(slice(3, 9), slice(0, 20))
    assert np.array_equal(part, index.agreement(slice(0, 36), slice(0, 40))[3:9, :20], equal_nan=True)


def test_an_older_index_says_what_it_lacks(index, monkeypatch):
    with_band = sdm.plan("Ursus arctos", index=index)
    monkeypatch.setattr(Index, "has_agreement", False)
    with pytest.raises(RegionIndexError, match="build it again"):
        index.agreement(slice(0, 1), slice(0, 1))
    job = sdm.plan("Ursus arctos", index=index)
    assert not job.plan.banded and any("build it again for that band" in note for note in job.notes[0])
    tile = next(iter(job.grid.tiles()))
    assert np.array_equal(score_tile(job.plan, tile), score_tile(with_band.plan, tile), equal_nan=True)


def test_a_batch_stores_the_agreement_once(tmp_path):
    sdm.map_batch(["Ursus arctos", "Puma concolor"], out=tmp_path / "west", formats="cog", threads=1, **BOX)
    data = xr.open_zarr(tmp_path / "west" / "probability.zarr")
    assert data["agreement"].dims == ("y", "x")
    computed = sdm.uncertainty(data["probability"], data["agreement"])
    assert computed.dims == ("species", "y", "x") and computed.name == "uncertainty"
    with rasterio.open(tmp_path / "west" / "species" / "ursus-arctos.tif") as file:
        assert file.descriptions == ("probability", "uncertainty")
        np.testing.assert_array_equal(file.read(2), computed.sel(species="Ursus arctos").values)
    encoded = mapped(sdm.plan("Ursus arctos", **BOX).plan, 64)[1][0]
    assert np.nanmean(np.abs(computed.sel(species="Ursus arctos").values - encoded)) < 0.02
    sdm.map_batch(["Ursus arctos"], out=tmp_path / "plain", trust=False, threads=1, **BOX)
    assert "agreement" not in xr.open_zarr(tmp_path / "plain" / "probability.zarr")


@pytest.mark.parametrize("damage", ["{", "[]", json.dumps({"location": {"a": 1}}), '{"location": {"a": "NaN"}}'])
def test_a_damaged_file_is_refused(tmp_path, damage):
    (tmp_path / FILE).write_text(damage)
    with pytest.raises(ModelError, match=FILE):
        Doubt.read(tmp_path, ("location",))


def test_a_model_without_the_file_has_no_band(tmp_path):
    assert Doubt.read(tmp_path, ("location",)) is None
    assert Doubt.read(MODEL.folder, ("location",)) is None
    with pytest.raises(ModelError, match="no measure of uncertainty"):
        sdm.uncertainty(np.zeros(2), np.ones(2), modalities=("location",))


def test_a_range_of_a_named_species_does_not_read_the_band_as_a_deviation(tmp_path):
    written = []
    for trust in (True, False):
        job = sdm.plan("Ursus arctos", trust=trust, **BOX)
        (result,) = sdm.write_maps(job, tmp_path / str(trust), threads=1, range="0.5", formats="cog")
        written.append({k: v for k, v in result.report["range"].items() if k != "files"})
    assert written[0] == written[1] and "area" in str(written[0])


def test_uncertain_where_the_model_has_no_reliable_training_data():
    """Birds of Siberia against those of Germany, computed and from stored agreement."""
    for box, least in (((100.0, 60.0, 101.0, 61.0), 0.9), ((10.0, 50.0, 11.0, 51.0), 0.0)):
        job = sdm.plan("Parus major", bbox=box, resolution=0.1, tile_size=16)
        tile = next(iter(job.grid.tiles()))
        values, bands = map_tile(job.plan, tile)
        shown = np.isfinite(values[0])
        assert shown.any() and (bands[0][0][shown] >= np.float32(least)).all()
        _, pixels, agreement = embed_tile(job.plan, tile)
        assert np.array_equal(agreement == 0.0, np.full(pixels.size, least > 0.0))
    doubt = job.plan.targets[0].doubt
    assert doubt.uncertainty(np.float32([0.99, 0.5, 0.99]), np.float32([0.0, 0.0, 0.9])).tolist() == [
        np.float32(0.9),
        1.0,
        np.float32(0.02),
    ]
