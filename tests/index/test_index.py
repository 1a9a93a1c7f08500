"""The region index: exact in its pixels, bounded in its error, resumed to the byte, wary of strangers."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import odc.geo.xr  # noqa: F401  the .odc accessor
import pytest
import rasterio
import rioxarray  # noqa: F401  the .rio accessor
import shapely
import xarray as xr
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from numcodecs import Blosc

import sdm
from sdm.engine.targets import named_target, probability
from sdm.engine.tile import embed_tile
from sdm.errors import BoxError, OutputError, RegionIndexError, RequestError, SdmError, SpeciesNameError, TooLargeError
from sdm.grid import Region, Tile
from sdm.index import Index, build, build_index, checksums, plan_index, reader, store, tiles
from sdm.index.encoding import cosines, decode, encode
from sdm.index.verify import damaged
from sdm.maps.plan import plan
from sdm.maps.write import write_maps
from sdm.request import Sampling

COAST = (-124.6, 46.3, -121.1, 48.5)
"""Land, sea and lakes; 70 x 44 pixels, so that edge tiles are thin."""
OPTIONS = {"resolution": 0.05, "tile_size": 32}


def build_(path, bbox=COAST, *, reuse=None, overwrite=False, **options):
    job = plan_index(bbox, **{**OPTIONS, **options})
    return build_index(job, path, threads=1, reuse=reuse, overwrite=overwrite)


@pytest.fixture(scope="session")
def land(tmp_path_factory):
    """Path of an index of land."""
    path = tmp_path_factory.mktemp("land") / "coast.zarr"
    build_(path)
    return path


@pytest.fixture(scope="session")
def both(tmp_path_factory):
    """Path of an index of land and sea, float16, with each modality."""
    path = tmp_path_factory.mktemp("both") / "coast.zarr"
    build_(path, mask="none", encoding="float16", each=True)
    return path


def exact(modalities=None, mask="none"):
    """Embeddings (rows x columns, dim) of the coast as the engine computes them, NaN where it has none."""
    places = plan_index(COAST, **OPTIONS, **({"modalities": modalities} if modalities else {})).places
    rows, cols = places.grid.shape
    out = np.full((rows * cols, places.model.dim), np.nan, dtype=np.float32)
    vectors, pixels, _ = embed_tile(places, Tile((0, 0), slice(0, rows), slice(0, cols)), mask)
    out[pixels] = vectors
    return out


def content(folder):
    """Every file of a folder: name -> bytes."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(Path(folder).rglob("*")) if p.is_file()}


# Encoding ----------------------------------------------------------------------------------------


@given(st.integers(1, 40), st.integers(2, 300), st.floats(-3, 3), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_what_is_stored_is_a_unit_vector_near_the_vector(count, dim, spread, seed):
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(count, dim)) * np.exp(spread * rng.normal(size=(1, dim)))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    for encoding in ("int8", "float16"):
        codes, scales = encode(vectors, encoding)
        found = decode(codes, scales)
        assert codes.dtype == encoding and np.isfinite(scales).all()
        np.testing.assert_allclose(np.linalg.norm(found.astype(np.float64), axis=1), 1.0, atol=2e-6)
        # Half a step per number, and what the new length makes of it.
        step = np.abs(vectors).max(axis=1, keepdims=True) / 127 if encoding == "int8" else 2.0**-10
        assert (np.abs(found - vectors) <= step * (1.0 + np.sqrt(dim) * np.abs(vectors))).all()
    species = vectors[:3]
    np.testing.assert_allclose(cosines(codes, scales, species), species @ found.T, atol=1e-5)


def test_products_do_not_depend_on_blocks(monkeypatch):
    rng = np.random.default_rng(0)
    codes, scales = encode(rng.normal(size=(9001, 256)).astype(np.float32), "int8")
    species = rng.normal(size=(2, 256)).astype(np.float32)
    exact = (codes.astype(np.float64) * scales[:, None] @ species.T.astype(np.float64)).T
    np.testing.assert_allclose(cosines(codes, scales, species), exact, atol=2e-6)


# What an index holds -----------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "mask", "largest"), [("land", "land", 0.1), ("both", "none", 0.002)])
def test_index_holds_the_engine_s_embeddings_within_the_error_it_states(name, mask, largest, request):
    index = Index.open(request.getfixturevalue(name))
    rows, cols = index.grid.shape
    vectors, pixels = index.embeddings(slice(0, rows), slice(0, cols))
    expected = exact(mask=mask)
    assert np.array_equal(pixels, np.flatnonzero(np.isfinite(expected[:, 0])))
    assert index.notes["pixels_held"] == len(pixels)
    species = tiles.sample_of_species(index.model)
    score = probability(index.model, index.modalities)
    difference = np.abs(score.values(vectors @ species.T) - score.values(expected[pixels] @ species.T))
    stated = index.notes["error_of_probability"]
    assert difference.max() < largest and stated["largest"] <= difference.max() + 1e-5
    assert 0.5 < difference.mean() / stated["mean"] < 2
    assert stated["compared"] > 10 * len(species)


def test_each_modality_is_held_on_request(both, land):
    index = Index.open(both)
    rows, cols = (slice(0, n) for n in index.grid.shape)
    assert index.held == index.modalities == ("location", "satellite", "environment")
    for modality in index.held:
        vectors, pixels = index.embeddings(rows, cols, modality)
        expected = exact(modality)
        assert np.array_equal(pixels, np.flatnonzero(np.isfinite(expected[:, 0])))
        np.testing.assert_allclose(vectors, expected[pixels], atol=1e-3)
    with pytest.raises(RegionIndexError, match="--each"):
        Index.open(land).embeddings(rows, cols, "location")


def test_query_is_the_map_of_the_engine(both):
    """Against a map in which every pixel is encoded: what is left is the interpolation of the slow modalities."""
    for species in ("Puma concolor", "Pseudotsuga menziesii", "Eschrichtius robustus", "Ursus maritimus"):
        found = Index.open(both).query(species)
        wanted = sdm.map_species(species, bbox=COAST, step=1, **OPTIONS).values
        assert np.array_equal(np.isnan(found.values), np.isnan(wanted)), species
        assert np.nanquantile(np.abs(found.values - wanted), 0.99) < 0.06, species
        assert found.odc.geobox == Index.open(both).grid.geobox and np.isnan(found.rio.nodata)


def test_the_two_ways_to_an_array_give_the_same_form(land):
    index = Index.open(land)
    for species in ("Puma concolor", ["Puma concolor", "Lynx rufus"]):
        query, mapped = index.query(species), sdm.map_species(species, index=index)
        xr.testing.assert_identical(query.drop_attrs(), mapped.compute().drop_attrs())
        assert query.attrs["long_name"] == mapped.attrs["long_name"] and query.rio.crs == mapped.rio.crs


def test_any_window_gives_the_same_bits(land):
    index = Index.open(land)
    rows, cols = index.grid.shape
    model = index.model
    targets = [named_target(model, model.taxa.resolve(n), index.modalities) for n in ("Puma concolor", "Lynx rufus")]
    whole = index.values(targets, slice(0, rows), slice(0, cols))
    vectors, pixels = index.embeddings(slice(0, rows), slice(0, cols))
    table = np.zeros((rows * cols, index.dim), dtype=np.float32)
    table[pixels] = vectors
    held = np.zeros(rows * cols, dtype=bool)
    held[pixels] = True
    rng = np.random.default_rng(3)
    for _ in range(25):
        r, c = (np.sort(rng.choice(n + 1, 2, replace=False)) for n in (rows, cols))
        window = slice(int(r[0]), int(r[1])), slice(int(c[0]), int(c[1]))
        assert np.array_equal(index.values(targets, *window), whole[:, window[0], window[1]], equal_nan=True)
        inside = np.arange(rows * cols).reshape(rows, cols)[window].ravel()
        part, where = index.embeddings(*window)
        assert np.array_equal(where, np.flatnonzero(held[inside])) and np.array_equal(part, table[inside[where]])
    for bad in ((slice(0, rows + 1), slice(0, 1)), (slice(-3, 2), slice(0, 1)), (slice(0, 9, 2), slice(0, 1))):
        with pytest.raises(RequestError, match="does not lie within"):
            index.values(targets, *bad)


def test_queries_from_many_threads_read_each_tile_once(land, monkeypatch):
    index = Index.open(land)
    reads, read = [], Index._read
    monkeypatch.setattr(Index, "_read", lambda self, tile, m: reads.append(tile.index) or read(self, tile, m))
    species = ["Puma concolor", "Lynx rufus", "Canis lupus", "Ursus arctos"] * 3
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(index.query, species))
    assert sorted(reads) == sorted(t.index for t in index.grid.tiles())
    several = Index.open(land).query(species[:4])
    for k in range(12):
        assert np.array_equal(found[k], several[k % 4], equal_nan=True)
    assert list(several.species.values) == species[:4]


def test_memory_of_a_query_is_bounded(land):
    index = Index.open(land, cache_bytes=600_000)
    whole = Index.open(land).query("Puma concolor")
    for _ in range(3):
        assert np.array_equal(index.query("Puma concolor"), whole, equal_nan=True)
        cache = index._tiles
        assert sum(e.nbytes for e in cache._tiles.values()) == cache._bytes <= 600_000
        assert not cache._reading
    assert cache._tiles


def test_query_of_a_vector(both):
    index = Index.open(both)
    vector = index.model.species_embedding(index.model.taxa.resolve("Puma concolor"))
    found = index.query(7 * vector)
    named = index.query("Puma concolor", mask="none")
    np.testing.assert_allclose(found, named, atol=1e-6)
    assert int(np.isfinite(found).sum()) == index.notes["pixels_held"]
    for bad in (vector[:5], vector * np.nan, vector * 0):
        with pytest.raises(RequestError, match="vector of 256"):
            index.query(bad)


def test_query_of_a_species_that_the_model_does_not_know(land):
    index = Index.open(land)
    with pytest.raises(SpeciesNameError) as refused:
        sdm.plan("Ursus minimus", index=index)
    with pytest.raises(SpeciesNameError) as caught:
        index.query(["Puma concolor", "Ursus minimus"])
    assert str(caught.value) == str(refused.value) and "--as-group to map the genus Ursus" in str(caught.value)
    genus = index.query("Ursus")
    np.testing.assert_array_equal(index.query("Ursus minimus", as_group=True).values, genus.values)
    with pytest.raises(SpeciesNameError, match="domestic"):
        index.query("Canis familiaris", as_group=True)


def test_store_is_read_by_other_programs(both):
    dataset = xr.open_zarr(both, decode_coords="all")
    index = Index.open(both)
    assert dataset.embedding.dims == ("y", "x", "dimension") and dataset.embedding.dtype == np.float16
    assert dataset.rio.crs.to_epsg() == 4326 and dataset.odc.geobox == index.grid.geobox
    surface = dataset.surface.values
    assert dataset.surface.attrs["flag_values"] == [0, 1, 2, 3, 4] and set(np.unique(surface)) <= {0, 1, 2, 3}
    land = sdm.map_species("Puma concolor", bbox=COAST, **OPTIONS).values
    assert np.array_equal(surface.astype(int) % 2 == 1, np.isfinite(land)) and (surface == 3).any()
    vectors = dataset.embedding.values.astype(np.float32) * dataset.scale.values[..., None]
    np.testing.assert_allclose(np.linalg.norm(vectors[surface > 0], axis=1), 1.0, atol=1e-5)


# Maps from an index ------------------------------------------------------------------------------


def test_map_from_an_index_is_its_query(land, tmp_path):
    index = Index.open(land)
    job = plan("Puma concolor", (-124, 46.52, -122.5, 48), index=str(land))
    (result,) = write_maps(job, tmp_path, formats="cog", threads=2)
    whole = index.query("Puma concolor")
    with rasterio.open(result.files["tif"]) as dataset:
        values, tags = dataset.read(1), dataset.tags()
        assert dataset.transform == job.grid.geobox.affine
    expected = whole.sel(x=slice(-124, -122.5), y=slice(48, 46.5))
    assert values.shape == (30, 30) and np.array_equal(values, expected, equal_nan=True)
    assert tags["index"].startswith(index.digest)
    report = json.loads((tmp_path / "puma-concolor.json").read_text())
    assert report["index"]["digest"] == index.digest and report["index"]["error_of_probability"]["largest"] > 0
    assert report["request"]["index"] == str(land) and "int8" in report["notes"][-1]


def test_a_box_of_the_index_has_the_pixels_of_the_same_map_without_it(land):
    for bbox in ((-124, 46.52, -122.5, 48), (-124.58, 46.31, -121.12, 48.49)):
        with_index = plan("Puma concolor", bbox, index=land).grid
        without = plan("Puma concolor", bbox, resolution=0.05).grid
        assert with_index.geobox == without.geobox and with_index.bbox == without.bbox


def test_a_region_masks_a_map_from_an_index(land):
    triangle = shapely.Polygon([(-123.9, 46.5), (-122, 46.6), (-122.6, 48.3)])
    found = sdm.map_species("Puma concolor", region=triangle, index=land)
    direct = sdm.map_species("Puma concolor", region=triangle, resolution=0.05)
    assert np.array_equal(np.isnan(found), np.isnan(direct)) and np.isfinite(found).sum() > 100
    query = Index.open(land).query("Puma concolor", region=Region.from_geometry(triangle))
    assert np.array_equal(found, query, equal_nan=True)


def test_an_index_of_a_region_holds_its_inside_only(tmp_path):
    triangle = shapely.Polygon([(-123.9, 46.5), (-122, 46.6), (-122.6, 48.3)])
    job = plan_index(region=triangle, **OPTIONS)
    index = build_index(job, tmp_path / "t.zarr", threads=1)
    direct = sdm.map_species("Puma concolor", region=triangle, **OPTIONS)
    assert np.array_equal(np.isnan(index.query("Puma concolor")), np.isnan(direct))
    other = plan_index(region=triangle.buffer(0.01), **OPTIONS)
    assert plan_index(region=shapely.reverse(triangle), **OPTIONS).digest == job.digest != other.digest


def test_index_across_the_antimeridian_answers_from_either_side(tmp_path):
    index = build_(tmp_path / "fiji.zarr", (176, -19, -178, -15.5), resolution=0.1, mask="none")
    assert index.grid.bbox[2] == 182
    whole = index.query("Pteropus tonganus")
    east = index.query("Pteropus tonganus", (-180, -18, -178, -16))
    west = index.query("Pteropus tonganus", (177, -18, 180, -16))
    assert np.isfinite(whole).sum() > 50
    assert np.array_equal(east, whole[5:25, 40:60], equal_nan=True)
    assert np.array_equal(west, whole[5:25, 10:40], equal_nan=True)
    with pytest.raises(BoxError, match="extends beyond"):
        index.query("Pteropus tonganus", (-180, -18, -177, -16))


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"crs": "EPSG:3338"}, RequestError, "--crs is given, .* built with EPSG:4326"),
        ({"resolution": 0.1}, RequestError, "--resolution is given, .* built with 0.05"),
        ({"modalities": "location"}, RequestError, "--modalities is given, .* location,satellite,environment"),
        ({"step": 1}, RequestError, "--step is given, .* built with none"),
        ({"satellite_step": 2}, RequestError, "--satellite-step is given, .* built with none"),
        ({"month": 5}, RequestError, "model 'mammals-trees' is not seasonal; omit the month May"),
        ({"bbox": (-125, 46.5, -122, 48)}, BoxError, "-125 46.5 -122 48 extends .* -124.6 46.3 -121.1 48.5"),
        ({"bbox": (10, 40, 12, 42)}, BoxError, "10 40 12 42 extends .* -124.6 46.3 -121.1 48.5"),
        (
            {"species": "Eschrichtius robustus"},
            RegionIndexError,
            "contains only land, but Eschrichtius .* mapped on sea",
        ),
        ({"species": "Ursus maritimus"}, RegionIndexError, "mapped on land and sea; .* --mask none"),
        ({"mask": "sea"}, RegionIndexError, "contains only land"),
        ({"max_pixels": 100}, TooLargeError, "--max-pixels"),
        ({"index": "nowhere.zarr"}, RegionIndexError, "nowhere.zarr"),
    ],
    ids=lambda v: "-".join(v) if isinstance(v, dict) else "",
)
def test_what_an_index_cannot_give_is_refused(land, options, error, says):
    with pytest.raises(error, match=says):
        plan(**{"species": "Puma concolor", "index": land, **options})


def test_what_is_the_same_as_in_the_index_may_be_given(land):
    job = plan(
        "Ursus maritimus",
        index=land,
        crs=4326,
        resolution=0.05,
        mask="land",
        modalities="environment,location,satellite",
        model="mammals-trees",
    )
    shore, stored = job.notes[0]
    assert job.grid == Index.open(land).grid and "animal of the shore" in shore and "int8" in stored


# Another model, other layers ---------------------------------------------------------------------


def test_an_index_of_other_encoders_is_refused(land, tmp_path):
    index = Index.open(land)
    other = tmp_path / "model"
    shutil.copytree(index.model.folder, other)
    config = json.loads((other / "config.json").read_text())
    config["calibration"]["location+satellite+environment"]["bias"] += 0.25
    (other / "config.json").write_text(json.dumps(config))
    # Another calibration, or other species, of the same encoders are welcome.
    assert float(index.query("Puma concolor", model=other).max()) > float(index.query("Puma concolor").max())
    config["location"]["pitch"] = 0.25
    (other / "config.json").write_text(json.dumps(config))
    with pytest.raises(RegionIndexError, match=r"with the encoders of model 'mammals-trees'.*not with"):
        plan("Puma concolor", index=land, model=other)
    with pytest.raises(RegionIndexError, match="not with"):
        index.query("Puma concolor", model=other)
    # Its own index needs the model to be named: it is not a bundled one.
    mine = build_(tmp_path / "mine.zarr", (-122, 47, -121.5, 47.5), model=other)
    with pytest.raises(RegionIndexError, match="not bundled here; give its folder"):
        mine.query("Puma concolor")
    assert np.isfinite(mine.query("Puma concolor", model=other)).any()


def test_an_index_of_other_layers_is_refused(land, monkeypatch):
    real = reader.layer_fingerprints
    changed = {"satellite": "bundled:0123456789abcdef"}
    monkeypatch.setattr(reader, "layer_fingerprints", lambda *a: real(*a) | changed)
    with pytest.raises(RegionIndexError, match="another bundled satellite layer"):
        plan("Puma concolor", index=land)


def test_the_user_s_own_layers_belong_to_the_index(land, tmp_path, write_raster):
    box = (-122, 47, -121.2, 47.6)
    cold, warm = (
        write_raster(np.full((20, 20), t, dtype=np.float32), f"{name}/bio1.tif", west=-123, north=48, cell=0.1)
        for name, t in (("cold", -5.0), ("warm", 25.0))
    )
    index = build_(tmp_path / "own.zarr", box, environment=cold)
    copy = tmp_path / "elsewhere" / "bio1.tif"
    copy.parent.mkdir()
    shutil.copy(cold, copy)
    for rasters in ((), (cold,), (copy,)):
        index.check(index.model, Sampling(environment=rasters))
    with pytest.raises(RegionIndexError, match="made with other environment rasters than those given"):
        index.check(index.model, Sampling(environment=[warm]))
    with pytest.raises(
        RegionIndexError, match="made with other environment rasters than those given; omit --environment"
    ):
        plan("Puma concolor", index=land, environment=[cold])
    with pytest.raises(RegionIndexError, match="made with other satellite rasters than those given"):
        plan("Puma concolor", index=land, satellite=cold)
    with pytest.raises(RegionIndexError, match="not bundled"):
        index.places(index.model)
    bundled = build_(tmp_path / "bundled.zarr", box)
    assert np.nanmax(np.abs(bundled.query("Marmota olympus") - index.query("Marmota olympus"))) > 0.001


# Building: interrupted, resumed, side by side ----------------------------------------------------

BUILD = """
import sys
from sdm.index import build_index, plan_index
job = plan_index({bbox}, **{options})
build_index(job, sys.argv[1], threads=1)
"""


def test_killed_and_resumed_it_ends_with_the_same_bytes(land, tmp_path, monkeypatch):
    out = tmp_path / "coast.zarr"
    script = BUILD.format(bbox=COAST, options=OPTIONS)
    records = tmp_path / "coast.zarr.partial" / "tiles"
    process = subprocess.Popen([sys.executable, "-c", script, out])
    end = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < end and len(list(records.glob("*.npz"))) < 2:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not out.exists()
    with pytest.raises(RegionIndexError, match="still being built"):
        Index.open(out)
    done = {tuple(map(int, p.stem.split("."))) for p in records.glob("*.npz")}
    all_ = {t.index for t in plan_index(COAST, **OPTIONS).grid.tiles()}
    assert 2 <= len(done) < len(all_)
    # What a kill or a power cut can leave: half a chunk, a chunk that is not what was written, a cut record.
    chunks = tmp_path / "coast.zarr.partial" / "new" / "coast.zarr" / "embedding"
    (chunks / "0.0.0.abc.partial").write_bytes(b"half")
    damaged, cut = sorted(done)[:2]
    file = chunks / f"{damaged[0]}.{damaged[1]}.0"
    file.write_bytes(file.read_bytes()[:-100] + bytes(100))
    record = records / f"{cut[0]}.{cut[1]}.npz"
    record.write_bytes(record.read_bytes()[:60])
    encoded, real = [], tiles.embed_tile
    monkeypatch.setattr(tiles, "embed_tile", lambda p, t, *rest: encoded.append(t.index) or real(p, t, *rest))
    build_(out)
    assert set(encoded) == all_ - done | {damaged, cut} and len(encoded) == len(set(encoded))
    assert content(out) == content(land)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["coast.zarr"]
    encoded.clear()
    build_(out)
    assert not encoded


def test_an_interruption_keeps_what_is_done_and_a_change_of_mind_is_refused(land, tmp_path, monkeypatch):
    out, real = tmp_path / "coast.zarr", tiles.embed_tile

    def failing(places, tile, *rest):
        if tile.index == (1, 1):
            raise KeyboardInterrupt
        return real(places, tile, *rest)

    monkeypatch.setattr(tiles, "embed_tile", failing)
    with pytest.raises(KeyboardInterrupt):
        build_(out)
    monkeypatch.setattr(tiles, "embed_tile", real)
    assert (tmp_path / "coast.zarr.partial" / "build.json").exists() and not out.exists()
    for options, says in (
        ({"encoding": "float16"}, "being built with encoding int8, not float16"),
        ({"mask": "none"}, "mask land, not none"),
        ({"tile_size": 64}, "grid tile 32, not 64"),
        ({"each": True}, "each false, not true"),
        ({"modalities": "location"}, "modalities"),
        ({"bbox": (-124.6, 46.3, -121.1, 48.55)}, "grid"),
    ):
        with pytest.raises(OutputError, match=says):
            build_(out, **options)
    assert content(build_(out).url) == content(land)
    with pytest.raises(OutputError, match=r"exists already, made with mask land, not none; .*--overwrite"):
        build_(out, mask="none")
    assert build_(out, (-122, 47, -121.5, 47.5), overwrite=True).grid.pixels == 100


def test_two_builders_one_wins(tmp_path):
    with build.workspace(tmp_path / "a.zarr"), pytest.raises(OutputError, match=r"another run is writing to .*a\.zarr"):
        build_(tmp_path / "a.zarr", (-122, 47, -121.5, 47.5))
    build_(tmp_path / "a.zarr", (-122, 47, -121.5, 47.5))


def test_only_its_own_folders_are_replaced(tmp_path):
    box = (-122, 47, -121.5, 47.5)
    (tmp_path / "a.zarr").mkdir()
    (tmp_path / "a.zarr" / "thesis.txt").write_text("mine")
    with pytest.raises(OutputError, match="exists already"):
        build_(tmp_path / "a.zarr", box)
    with pytest.raises(OutputError, match="not a Zarr store"):
        build_(tmp_path / "a.zarr", box, overwrite=True)
    (tmp_path / "b.zarr.partial").mkdir()
    (tmp_path / "b.zarr.partial" / "thesis.txt").write_text("mine")
    with pytest.raises(OutputError, match="not made by this program"):
        build_(tmp_path / "b.zarr", box, overwrite=True)
    assert content(tmp_path) == {"a.zarr/thesis.txt": b"mine", "b.zarr.partial/thesis.txt": b"mine"}
    with pytest.raises(OutputError, match="not a local folder"):
        build_("s3://bucket/a.zarr", box)
    with pytest.raises(RequestError, match="--mask land leaves no pixel to store"):
        build_(tmp_path / "c.zarr", (-160, 20, -159, 21))


def test_a_larger_index_takes_over_the_pixels_of_a_smaller_one(land, tmp_path, monkeypatch):
    """Grown by odd numbers of pixels on every side, it has the bytes of one built at once."""
    larger = (-125.05, 45.95, -120.8, 48.65)
    fresh = build_(tmp_path / "fresh.zarr", larger)
    counted, real = [], tiles.embed_tile
    monkeypatch.setattr(tiles, "embed_tile", lambda *a: (lambda r: counted.append(len(r[1])) or r)(real(*a)))
    grown = build_(tmp_path / "grown.zarr", larger, reuse=land)
    assert content(grown.url) == content(fresh.url)
    new = fresh.notes["pixels_held"] - Index.open(land).notes["pixels_held"]
    assert new <= sum(counted) <= new + 0.02 * fresh.notes["pixels_held"]
    for options in ({"resolution": 0.1}, {"encoding": "float16"}, {"modalities": "location"}, {"each": True}):
        with pytest.raises(RegionIndexError, match="cannot be reused"):
            build_(tmp_path / "no.zarr", larger, reuse=land, **options)
    # A mask that needs more encodes what is missing.
    all_ = build_(tmp_path / "all.zarr", COAST, reuse=land, mask="none")
    assert content(all_.url) == content(build_(tmp_path / "again.zarr", COAST, mask="none").url)


@pytest.mark.slow
def test_workers_build_the_same_bytes(land, tmp_path):
    script = BUILD.format(bbox=COAST, options=OPTIONS).replace("threads=1", "workers=2")
    script = "if __name__ == '__main__':" + script.replace("\n", "\n    ")
    (tmp_path / "build.py").write_text(script)
    subprocess.run([sys.executable, tmp_path / "build.py", tmp_path / "coast.zarr"], check=True, timeout=300)
    assert content(tmp_path / "coast.zarr") == content(land)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"mask": "auto"}, "mask 'auto' is not known"),
        ({"encoding": "int4"}, "encoding 'int4' is not known"),
        ({"tile_size": 8192, "encoding": "float16"}, "chunks of more than"),
        ({"modalities": "sound"}, "modality 'sound'"),
    ],
    ids=lambda v: "-".join(v) if isinstance(v, dict) else "",
)
def test_bad_requests_are_refused(options, says):
    with pytest.raises(RequestError, match=says):
        plan_index(COAST, **{**OPTIONS, **options})


# Stores of strangers -----------------------------------------------------------------------------


def changed(path, tmp_path, change):
    """A copy of an index whose consolidated metadata has been changed."""
    copy = tmp_path / "copy.zarr"
    shutil.copytree(path, copy)
    metadata = json.loads((copy / ".zmetadata").read_text())
    change(metadata["metadata"])
    with contextlib.suppress(KeyError, AttributeError):  # where there is a header, of the changed metadata
        header = metadata["metadata"][".zattrs"]["region_index"]
        header["checksums"]["metadata"] = checksums.of_metadata(metadata["metadata"], "region_index")
    (copy / ".zmetadata").write_text(json.dumps(metadata))
    return copy


def edit(name, **values):
    return lambda m: m[f"{name}/.zarray"].update(values)


def lie(*keys, value, sign=True):
    """Change the identity; `sign`: with the digest that fits."""

    def change(metadata):
        found = metadata[".zattrs"]["region_index"]
        part = found["identity"]
        for key in keys[:-1]:
            part = part[key]
        part[keys[-1]] = value
        if sign:
            found["digest"] = store.digest(found["identity"])

    return change


@pytest.mark.parametrize(
    "change",
    [
        edit("embedding", dtype="|O", filters=[{"id": "pickle"}]),
        edit("embedding", filters=[{"id": "pickle"}]),
        edit("embedding", compressor={"id": "gzip", "level": 1}),
        edit("embedding", compressor=None),
        edit("embedding", shape=[2**40, 2**40, 256]),
        edit("embedding", chunks=[1, 1, 256]),
        edit("embedding", dtype="<f8"),
        edit("scale", dtype="|S9", fill_value=""),
        edit("surface", chunks=[64, 64]),
        lambda m: m.pop("scale/.zarray"),
        lambda m: m.pop(".zattrs"),
        lambda m: m[".zattrs"].pop("region_index"),
        lambda m: m[".zattrs"].update(region_index=[1]),
        lambda m: m[".zattrs"]["region_index"].pop("checksums"),
        lambda m: m[".zattrs"]["region_index"].update(checksums={"table": "", "metadata": ""}),
        lambda m: m[".zattrs"]["region_index"]["checksums"].update(table="0" * 64),
        edit("checksum", shape=[1, 1, 3]),
        lambda m: m.pop("checksum/.zarray"),
        lambda m: m[".zattrs"]["region_index"].update(notes={"error_of_probability": {"mean": "<b>"}}),
        lie("format", value="taxabind-map-index/99"),
        lie("mask", value="none", sign=False),
        lie("mask", value="moon"),
        lie("dim", value=10**9),
        lie("dim", value=True),
        lie("encoding", value="object"),
        lie("grid", "shape", value=[10**12, 10**12]),
        lie("grid", "shape", value=[-4, 70]),
        lie("grid", "tile", value=10**6),
        lie("grid", "crs", value="EPSG:999999"),
        lie("grid", "crs", value="x" * 10**6),
        lie("grid", "transform", value=[0.05, 0.1, -124.6, 0.0, -0.05, 48.5]),
        lie("grid", "transform", value=[0.0, 0.0, -124.6, 0.0, 0.0, 48.5]),
        lie("grid", "transform", value=[float("nan")] * 6),
        lie("modalities", value=["environment", "location"]),
        lie("modalities", value=[]),
        lie("model", value="mammals-trees"),
        lie("each", value=True),
        lie("each", value="yes"),
    ],
)
def test_metadata_that_does_not_hold_together_is_refused(land, tmp_path, change):
    with pytest.raises(RegionIndexError, match=r"copy\.zarr"):
        Index.open(changed(land, tmp_path, change))


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"[" * 10**6, b'{"metadata": 3}', b" " * (store.MAX_METADATA + 1)])
def test_metadata_that_is_none_is_refused(land, tmp_path, text):
    copy = changed(land, tmp_path, lambda m: None)
    (copy / ".zmetadata").write_bytes(text)
    with pytest.raises(RegionIndexError, match="not a region index"):
        Index.open(copy)


def bomb(path):
    """A small chunk that claims, and is, 900 MB."""
    path.write_bytes(Blosc("zstd").encode(np.zeros(900 << 20, dtype=np.uint8)))


@pytest.mark.parametrize(
    ("chunk", "change"),
    [
        ("embedding/1.1.0", lambda p: p.unlink()),
        ("embedding/1.1.0", lambda p: p.write_bytes(p.read_bytes()[:1000])),
        ("embedding/1.1.0", lambda p: p.write_bytes(b"\x02")),
        ("embedding/1.1.0", lambda p: p.write_bytes(Blosc("zstd").encode(np.zeros(99, dtype=np.uint8)))),
        ("embedding/1.1.0", bomb),
        ("scale/1.1", lambda p: p.unlink()),
        ("scale/1.1", lambda p: p.write_bytes(Blosc("zstd").encode(np.full((32, 32), np.nan, dtype=np.float32)))),
        ("scale/1.1", lambda p: p.write_bytes(Blosc("zstd").encode(np.full((32, 32), -1.0, dtype=np.float32)))),
        ("surface/1.1", lambda p: p.unlink()),
        ("surface/1.1", lambda p: p.write_bytes(Blosc("zstd").encode(np.full((32, 32), 77, dtype=np.uint8)))),
    ],
)
def test_damaged_chunks_are_an_error_not_a_map(land, tmp_path, chunk, change):
    copy = changed(land, tmp_path, lambda m: None)
    change(copy / chunk)
    index = Index.open(copy)
    with pytest.raises(RegionIndexError, match=r"copy\.zarr.*1, 1"):
        index.query("Puma concolor")


def flip(path, at=0.5):
    """Change one bit of a file."""
    found = bytearray(path.read_bytes())
    found[int(at * (len(found) - 1))] ^= 4
    path.write_bytes(found)


def swap(path, other):
    """Exchange two files."""
    first, second = path.read_bytes(), other.read_bytes()
    assert first != second
    path.write_bytes(second), other.write_bytes(first)


def tile_files(path):
    """The files of one tile beside those of another."""
    return [(f"{name}/1.1{end}", f"{name}/0.1{end}") for name, end in (("embedding", ".0"), ("scale", ""))]


ACCIDENTS = {
    "a bit of an embedding": lambda p: flip(p / "embedding/1.1.0"),
    "the last bit of an embedding": lambda p: flip(p / "embedding/1.1.0", 1.0),
    "the header of a chunk": lambda p: flip(p / "embedding/1.1.0", 0.0),
    "a bit of a scale": lambda p: flip(p / "scale/1.1"),
    "a bit of a surface": lambda p: flip(p / "surface/1.1"),
    "embeddings exchanged": lambda p: swap(p / "embedding/1.1.0", p / "embedding/0.1.0"),
    "tiles exchanged": lambda p: [swap(p / one, p / other) for one, other in tile_files(p)],
    "a tile copied over another": lambda p: [shutil.copy(p / other, p / one) for one, other in tile_files(p)],
    "a scale from nowhere": lambda p: (p / "scale/1.1").unlink(),
    "a longer chunk": lambda p: (p / "embedding/1.1.0").write_bytes((p / "embedding/1.1.0").read_bytes() + b"0"),
    "the checksums": lambda p: flip(p / "checksum/0.0.0"),
    "a digit of the metadata": lambda p: (p / ".zmetadata").write_text(
        (p / ".zmetadata").read_text().replace('"compared": ', '"compared": 1', 1)
    ),
    "a pipe": lambda p: ((p / "embedding/1.1.0").unlink(), os.mkfifo(p / "embedding/1.1.0")),
    "a device": lambda p: ((p / "scale/1.1").unlink(), (p / "scale/1.1").symlink_to("/dev/zero")),
    "a folder": lambda p: ((p / "scale/1.1").unlink(), (p / "scale/1.1").mkdir()),
    "a pipe of metadata": lambda p: ((p / ".zmetadata").unlink(), os.mkfifo(p / ".zmetadata")),
}
"""Damage to an index that still looks like one."""


@pytest.mark.parametrize("accident", ACCIDENTS)
def test_accidents_are_an_error_not_a_map(land, tmp_path, accident):
    copy = changed(land, tmp_path, lambda m: None)
    before = content(copy)
    ACCIDENTS[accident](copy)
    assert "pipe" in accident or "device" in accident or content(copy) != before
    with pytest.raises(RegionIndexError, match=r"copy\.zarr"):
        Index.open(copy).query("Puma concolor")
    with pytest.raises(RegionIndexError, match=r"copy\.zarr"):
        Index.open(copy.as_uri()).query("Puma concolor")
    with pytest.raises(SdmError):
        build_(tmp_path / "larger.zarr", reuse=copy)
    assert not (tmp_path / "larger.zarr").exists()


def test_a_finished_index_that_was_damaged_is_not_passed_over(tmp_path):
    area = (-122, 47, -121.5, 47.5)
    index = build_(tmp_path / "a.zarr", area)
    assert damaged(index) == []
    flip(tmp_path / "a.zarr/x/0")
    assert damaged(index) == ["chunk 'x/0' is not what was written there"]
    with pytest.raises(OutputError, match=r"a\.zarr was built before, and is damaged: chunk 'x/0' .*--over"):
        build_(tmp_path / "a.zarr", area)
    assert damaged(build_(tmp_path / "a.zarr", area, overwrite=True)) == []


# Elsewhere: other processes, object stores -------------------------------------------------------


def test_index_travels_to_other_processes(land, monkeypatch):
    monkeypatch.chdir(land.parent)
    index = Index.open(land.name)
    again = pickle.loads(pickle.dumps(index))
    assert again.url == str(land) and again.digest == index.digest
    assert pickle.loads(pickle.dumps(index)) is again  # one per process, with one cache
    code = (
        "import pickle, sys\nindex = pickle.load(sys.stdin.buffer)\n"
        "sys.stdout.buffer.write(index.query('Puma concolor').values.tobytes())"
    )
    argv = [sys.executable, "-c", code]
    run = subprocess.run(argv, input=pickle.dumps(index), capture_output=True, cwd="/", check=True)
    assert run.stdout == index.query("Puma concolor").values.tobytes()


def test_an_index_replaced_meanwhile_is_noticed(tmp_path):
    index = build_(tmp_path / "a.zarr", (-122, 47, -121.5, 47.5))
    travelling = pickle.dumps(index)
    build_(tmp_path / "a.zarr", (-122, 47, -121.5, 47.6), overwrite=True)
    with pytest.raises(RegionIndexError, match="was replaced while it was open"):
        pickle.loads(travelling)


@pytest.fixture(scope="module")
def object_store(land, request):
    """An S3 server with the index in a bucket: (storage_options, http address)."""
    server_module = pytest.importorskip("moto.server")
    import fsspec

    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    request.addfinalizer(server.stop)
    address = "http://{}:{}".format(*server.get_host_and_port())
    options = {"endpoint_url": address, "key": "test", "secret": "test"}
    files = fsspec.filesystem("s3", **options)
    files.mkdir("indexes", acl="public-read")
    files.put(str(land), "indexes/coast.zarr", recursive=True)
    return options, address


def test_read_from_an_s3_server(land, object_store):
    options, _ = object_store
    index = Index.open("s3://indexes/coast.zarr", options)
    local = Index.open(land)
    assert index.digest == local.digest
    assert np.array_equal(index.query("Puma concolor"), local.query("Puma concolor"), equal_nan=True)
    assert pickle.loads(pickle.dumps(index)).digest == index.digest
    found = sdm.map_species("Puma concolor", (-124, 46.52, -122.5, 48), index=index)
    assert np.array_equal(found, local.query("Puma concolor", (-124, 46.52, -122.5, 48)), equal_nan=True)
    for url in ("s3://indexes/other.zarr", "s3://no-such-bucket/coast.zarr"):
        with pytest.raises(RegionIndexError, match="not a region index"):
            Index.open(url, options)


def test_s3_chunks_that_are_gone_or_changed_are_an_error(object_store):
    import fsspec

    options, _ = object_store
    files = fsspec.filesystem("s3", **options)
    files.copy("indexes/coast.zarr", "indexes/broken.zarr", recursive=True)
    files.rm("indexes/broken.zarr/surface/1.1")
    files.pipe("indexes/broken.zarr/scale/0.0", b"no")
    index = Index.open("s3://indexes/broken.zarr", options)
    with pytest.raises(RegionIndexError, match="tile"):
        index.query("Puma concolor")


class _Plain(SimpleHTTPRequestHandler):
    """A server that ignores Range, as Python's own does."""

    def log_message(self, *args):
        pass


def test_read_over_http_with_and_without_ranges(land, object_store):
    local = Index.open(land).query("Puma concolor")
    server = ThreadingHTTPServer(("127.0.0.1", 0), lambda *a: _Plain(*a, directory=land.parent))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        for url in (f"http://127.0.0.1:{server.server_port}/{land.name}", f"{object_store[1]}/indexes/coast.zarr"):
            assert np.array_equal(Index.open(url).query("Puma concolor"), local, equal_nan=True)
        with pytest.raises(RegionIndexError, match="not a region index"):
            Index.open(f"http://127.0.0.1:{server.server_port}/nothing.zarr")
    finally:
        server.shutdown()
        server.server_close()
    with pytest.raises(RegionIndexError, match="cannot be read"):
        Index.open(f"http://127.0.0.1:{server.server_port}/{land.name}")


def test_read_from_any_fsspec_store(land):
    import fsspec

    fsspec.filesystem("memory").put(str(land), "/indexes/coast.zarr", recursive=True)
    index = Index.open("memory://indexes/coast.zarr")
    assert np.array_equal(index.query("Lynx rufus"), Index.open(land).query("Lynx rufus"), equal_nan=True)
    with pytest.raises(RegionIndexError, match="Protocol not known"):
        Index.open("carrierpigeon://coop/coast.zarr")


# Command line ------------------------------------------------------------------------------------


def command(*arguments, cwd):
    environment = {**os.environ, "TAXABIND_MAP_DEBUG": ""}
    return subprocess.run(
        [sys.executable, "-c", "from sdm.cli import main_sdm; main_sdm()", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=environment,
        timeout=200,
    )


def test_commands(tmp_path):
    where = ["--bbox", "-122", "47", "-121.5", "47.5", "--resolution", "0.05"]
    dry = command("index", "build", *where, "--out", "a.zarr", "--dry-run", "--json", cwd=tmp_path)
    assert json.loads(dry.stdout)["pixels"] == 100 and not list(tmp_path.iterdir())
    built = command("index", "build", *where, "--out", "a.zarr", cwd=tmp_path)
    assert built.returncode == 0 and "10 x 10 pixels" in built.stdout, built.stderr
    info = json.loads(command("index", "info", "a.zarr", "--json", cwd=tmp_path).stdout)
    assert info["digest"] == Index.open(tmp_path / "a.zarr").digest == json.loads(dry.stdout)["digest"]
    mapped = command("map", "Puma concolor", "--index", "a.zarr", "--out", "maps", "--json", cwd=tmp_path)
    assert json.loads(mapped.stdout)["index"]["digest"] == info["digest"]
    for arguments, code, says in (
        (["index", "info", "b.zarr"], 4, "b.zarr"),
        (["index", "build", *where, "--out", "a.zarr", "--mask", "sea"], 6, "exists already"),
        (["index", "build", *where, "--out", "b.zarr", "--encoding", "int4"], 2, "int4"),
        (["map", "Puma concolor", "--index", "a.zarr", "--bbox", "0", "0", "1", "1"], 2, "extends beyond"),
        (["map", "Orcinus orca", "--index", "a.zarr"], 4, "contains only land"),
    ):
        failed = command(*arguments, cwd=tmp_path)
        assert failed.returncode == code and says in failed.stderr and failed.stderr.startswith("error: "), failed
        assert failed.stderr.count("\n") == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.zarr", "maps"]


def test_every_error_has_its_exit_code():
    assert RegionIndexError("x").exit_code == 4 and issubclass(RegionIndexError, SdmError)


EARLIER = {
    "format": "taxabind-map-index/1",
    "model": {"name": "mammals-trees", "version": "3", "digest": "8c71826faddec1f2"},
    "layers": {
        "landmask": "bundled:75d5df2b6dc02880",
        "environment": "bundled:951f75ed41fedde1",
        "satellite": "bundled:d02e800cbd3a2283",
    },
    "grid": {
        "crs": "EPSG:4326",
        "transform": [0.05, 0.0, -124.6, 0.0, -0.05, 48.5],
        "shape": [44, 70],
        "tile": 32,
        "bbox": [-124.6, 46.3, -121.1, 48.5],
    },
    "region": None,
    "modalities": ["location", "satellite", "environment"],
    "each": False,
    "mask": "land",
    "encoding": "int8",
    "dim": 256,
}
"""The identity of an index of the coast that an earlier version has built."""


def test_an_index_of_an_earlier_version_has_its_digest_and_today_s_request_the_same_identity():
    assert store.digest(EARLIER) == "006e059335f68515"
    now = dict(plan_index(COAST, **OPTIONS).identity)
    assert now.pop("agreement")
    assert now.pop("land_share") == 0.1 and now.pop("uncovered") == "show"  # new: it had pixels by their centres
    assert list(now) == list(EARLIER)
    # Other weights or other bundled layers are another index.
    assert now["layers"].keys() == EARLIER["layers"].keys()
    assert now == EARLIER | {"model": now["model"], "layers": now["layers"]}


def test_an_index_of_an_earlier_version_is_of_the_encoders_of_the_model_that_it_states(land):
    index = Index.open(land)
    assert index.identity["model"] == {"name": "mammals-trees", "encoders": index.model.space[1]}
    # Versions 3 and 4, and the encoders that were interpolated at other pitches: the weights are the same.
    for digest in ("8c71826faddec1f2", "598a888d2720d993", "6dffb57f7e02d494"):
        index.identity["model"] = EARLIER["model"] | {"digest": digest}
        assert index.encoders == index.model.space[1]
        index.check(index.model)
    index.identity["model"] = EARLIER["model"] | {"digest": "c3daa1b96173add2"}
    with pytest.raises(RegionIndexError, match="not bundled here"):
        index.find_model()


def test_an_unchanged_request_keeps_its_digest(land):
    """The digest is of the request alone: neither of the time, nor of the folder, nor of the order of keys."""
    index = Index.open(land)
    shuffled = dict(reversed(list(index.identity.items())))
    assert store.digest(shuffled) == index.digest == plan_index(COAST, **OPTIONS).digest
    assert dataclasses.replace(plan_index(COAST, **OPTIONS)).digest == index.digest
    assert zarr.open_group(land, mode="r", zarr_format=2).attrs["region_index"]["digest"] == index.digest
