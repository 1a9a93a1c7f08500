"""A list of species in one pass: values, statistics, resuming after any interruption, two runs at once."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import rasterio
import xarray as xr
from PIL import Image

import sdm
from sdm.engine import compare
from sdm.engine import tile as engine_tile
from sdm.engine.compare import score_embeddings
from sdm.engine.tile import embed_tile, mappable
from sdm.errors import OutputError, RequestError, SpeciesNameError
from sdm.files import records
from sdm.grid import Tile
from sdm.maps.batch import map_batch, plan_batch, write_batch
from sdm.maps.batch import tiles as batch_tiles
from sdm.maps.batch.texts import confidence
from sdm.outputs import cube
from sdm.outputs.overlay import levels

LIST = ["Ursus arctos", "Puma concolor", "gray whale", "harbor seal", "Picea engelmannii", "grizzly"]
BOX = (-128, 46, -120, 52)
SMALL = {"bbox": BOX, "resolution": 0.1, "tile_size": 24}
FAST = {**SMALL, "modalities": "location"}


def everything(folder, skip_times=True):
    """Content of every file below a folder, by relative name."""
    found = {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
    if skip_times:
        report = json.loads(found["batch.json"])
        assert report.pop("run").keys() >= {"started", "written"}
        del report["checksums"]["batch.json"]
        found["batch.json"] = json.dumps(report).encode()
    return found


def names(folder):
    return {p.name for p in folder.iterdir()} if folder.exists() else set()


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A finished batch with all modalities, in an equal-area CRS."""
    out = tmp_path_factory.mktemp("batch") / "out"
    batch = plan_batch([*LIST, "elk"], BOX, crs=6933, resolution=10_000, tile_size=24, limits="none")
    return batch, write_batch(batch, out, formats="cog,html", command="the command")


# Values ------------------------------------------------------------------------------------------


def test_store_holds_the_probabilities(done):
    """Against the engine's embeddings of the whole map, compared and squashed in float64, pixel by pixel."""
    batch, result = done
    plan = batch.job.plan
    values = result.open().probability.values
    whole = Tile((0, 0), *(slice(0, n) for n in plan.grid.shape))
    embeddings, pixels, _ = embed_tile(plan, whole)
    habitats = [(t.mask, t.extent) for t in plan.targets]
    places = mappable(plan, whole, habitats, *plan.lonlat(*plan.pixels(whole)))
    assert len({t.mask for t in plan.targets}) == 3
    lon, lat = (a.ravel()[pixels] for a in plan.lonlat(*plan.pixels(whole)))
    for k, target in enumerate(plan.targets):
        scale, bias = target.score.scale, target.score.bias
        cosines = embeddings.astype(np.float64) @ target.vector.astype(np.float64)
        expected = np.full(plan.grid.pixels, np.nan)
        known = 0.0 if target.known is None else target.known.times(scale).shift(lon, lat)
        expected[pixels] = 1 / (1 + np.exp(-(scale * cosines + bias + known)))
        expected = np.where(places[k], expected.reshape(plan.grid.shape), np.nan)
        assert np.isfinite(expected).any()
        np.testing.assert_allclose(values[k], expected, atol=cube.STEP / 2 + 2e-5)
        finite = values[k][np.isfinite(values[k])]
        assert (finite * 8192 == np.rint(finite * 8192)).all()


def test_store_agrees_with_single_maps():
    options = {"bbox": BOX, "resolution": 0.04}
    alone = sdm.map_species(["Ursus arctos", "Picea engelmannii"], **options).compute().values
    batch = plan_batch(["Ursus arctos", "Picea engelmannii"], **options)
    together = np.empty_like(alone)
    for tile in batch.job.grid.tiles():
        embeddings, pixels, _ = embed_tile(batch.job.plan, tile, "land")
        places = batch.job.plan
        lonlat = tuple(a.ravel()[pixels] for a in places.lonlat(*places.pixels(tile)))
        for k, row in score_embeddings(embeddings, batch.job.plan.targets, lonlat=lonlat):
            layer = np.full(tile.shape, np.nan, np.float32)
            layer.ravel()[pixels] = row
            together[k, tile.rows, tile.cols] = layer
    assert np.array_equal(np.isnan(alone), np.isnan(together))
    difference = np.abs(alone - together)
    assert 0 < np.nanmean(difference) < 0.002 and np.nanquantile(difference, 0.99) < 0.02


def test_richness_is_the_sum_and_nan_only_where_nothing_is_modelled(done):
    _, result = done
    data = result.open()
    p, r = data.probability.values, data.richness.values
    assert np.array_equal(np.isnan(r), np.isnan(p).all(axis=0))
    assert np.array_equal(np.nan_to_num(r), np.nansum(p, axis=0, dtype=np.float64).astype(np.float32))
    with rasterio.open(result.folder / "richness.tif") as src:
        assert np.array_equal(src.read(1), r, equal_nan=True)
        assert src.units == ("species",) and "expected_area_km2" not in src.tags()


def test_summary_against_the_store(done):
    """In an equal-area CRS areas are numbers of pixels, 100 km2 each."""
    _, result = done
    with (result.folder / "summary.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [r["query"] for r in rows] == [*LIST, "elk"]
    data = result.open()
    for row in rows[:-1]:
        p = data.probability.sel(species=row["species"]).values.astype(np.float64)
        p = p[np.isfinite(p)]
        above = p >= 0.5
        assert int(row["pixels"]) == p.size
        expected = {
            "modelled_area_km2": 100 * p.size,
            "area_above_threshold_km2": 100 * above.sum(),
            "expected_area_km2": 100 * p.sum(),
            "expected_precision": p[above].mean(),
            "expected_recall": p[above].sum() / p.sum(),
        }
        assert {k: float(row[k]) for k in expected} == pytest.approx(expected, rel=2e-4)
        exact = {"mean": p.mean(), "min": p.min(), "max": p.max()}
        assert {k: float(row[k]) for k in exact} == pytest.approx(exact, rel=1e-8)
        assert (result.folder / row["picture"]).is_file() and row["confidence"] == "species"
        assert all((result.folder / name).is_file() for name in row["files"].split(";"))
    grizzly, elk = rows[-2:]
    assert (
        grizzly["species"] == "Ursus arctos"
        and grizzly["same_as_row"] == "1"
        and grizzly["resolved_by"] == "common name"
    )
    assert "Alces alces" in elk["error"] and elk["species"] == elk["mean"] == ""
    assert rows[0]["same_as_row"] == "" and rows[0]["error"] == ""


def test_store_is_georeferenced_and_labelled(done):
    batch, result = done
    data = xr.open_zarr(result.folder / "probability.zarr", decode_coords="all")
    assert data.probability.dims == ("species", "y", "x") and data.probability.dtype == np.float32
    assert data.species.values.tolist() == [r.taxon.name for r in batch.job.resolutions]
    assert data.sel(species="Ursus arctos").common_name.compute().item() == "brown bear"
    assert data["mask"].values.tolist() == ["land", "land", "sea", "none", "land"]
    assert data.rio.crs.to_epsg() == 6933 and data.probability.odc.geobox == batch.job.grid.geobox
    store = result.folder / "probability.zarr"
    for variable, band in (("richness", data.richness), ("probability:2", data.probability[2])):
        with rasterio.open(f'ZARR:"{store}":/{variable}') as src:
            assert src.crs.to_epsg() == 6933 and src.transform.almost_equals(batch.job.grid.geobox.affine)
            assert np.isnan(src.nodata) and np.array_equal(src.read(1), band.values, equal_nan=True)


def test_files_of_one_species(done):
    batch, result = done
    assert names(result.folder / "species") == {f"{s}.{e}" for s in batch.stems for e in ("tif", "qml", "html")}
    with rasterio.open(result.folder / "species" / "phoca-vitulina.tif") as src:
        assert np.array_equal(src.read(1), result.open().probability.sel(species="Phoca vitulina"), equal_nan=True)
        assert src.tags()["query"] == "harbor seal" and src.tags()["command"] == "the command"
        assert "every pixel" in src.tags()["TIFFTAG_IMAGEDESCRIPTION"]
    assert names(result.folder) == {*result.report["outputs"]}  # nothing is left over
    assert names(result.folder / "gallery") == {f"{s}.png" for s in batch.stems}


def test_pictures_show_the_maps(done):
    batch, result = done
    for k, stem in enumerate(batch.stems):
        with Image.open(result.folder / "gallery" / f"{stem}.png") as picture:
            assert np.array_equal(np.asarray(picture), levels(result.open().probability[k].values, (0, 1)))


def test_pictures_of_a_large_map_show_every_nth_pixel(tmp_path):
    """Whatever tiles they come from: these begin at odd and at even pixels, and the last is one pixel wide."""
    result = map_batch(
        ["Ursus arctos", "gray whale"], BOX, out=tmp_path / "o", resolution=0.02, tile_size=133, modalities="location"
    )
    values = result.open().probability.values
    assert values.shape == (2, 300, 400)
    for layer, stem in zip(values, ("ursus-arctos", "eschrichtius-robustus"), strict=True):
        with Image.open(tmp_path / "o" / "gallery" / f"{stem}.png") as picture:
            assert np.array_equal(np.asarray(picture), levels(layer[::2, ::2], (0, 1)))


@pytest.mark.parametrize("side", [16, 37, 256])
def test_tiles_change_nothing_but_the_last_bit(tmp_path, side):
    a = map_batch(LIST, out=tmp_path / "a", **FAST).open()
    b = map_batch(LIST, out=tmp_path / "b", **{**FAST, "tile_size": side}).open()
    assert np.array_equal(np.isnan(a.probability), np.isnan(b.probability))
    assert np.nanmax(np.abs(a.probability.values - b.probability.values)) <= cube.STEP


def test_more_species_than_one_product_and_one_chunk(tmp_path, monkeypatch):
    """Blocks of any size give the same maps."""
    listed = [t.name for t in sdm.list_models()[0].taxa][:40]
    options = {**FAST, "resolution": 0.5, "tile_size": 16}
    a = map_batch(listed, out=tmp_path / "a", **options)
    assert a.open().probability.chunks[0] == (16, 16, 8)
    monkeypatch.setattr(compare, "TARGETS_AT_ONCE", 7)
    monkeypatch.setattr(compare, "PLACES_AT_ONCE", 50)
    monkeypatch.setattr(cube, "SPECIES", 3)
    monkeypatch.setattr(batch_tiles, "PICTURED", 11)
    b = map_batch(listed, out=tmp_path / "b", **options)
    np.testing.assert_allclose(a.open().probability, b.open().probability, atol=cube.STEP)
    for picture in (tmp_path / "a" / "gallery").iterdir():
        drawn = [np.asarray(Image.open(tmp_path / o / "gallery" / picture.name)).astype(int) for o in "ab"]
        assert np.abs(drawn[0] - drawn[1]).max() <= 1
    for one, other in zip(a.summary, b.summary, strict=True):
        assert one["expected_area_km2"] == pytest.approx(other["expected_area_km2"], rel=1e-3, abs=1)


def test_a_region_without_any_modelled_pixel(tmp_path):
    result = map_batch(
        ["Ursus arctos"], (-150, 20, -148, 22), out=tmp_path / "o", resolution=0.1, modalities="location"
    )
    assert result.summary[0]["pixels"] == 0 and result.summary[0]["max"] == ""
    assert np.isnan(result.open().richness).all() and result.report["richness"]["max"] is None


# A region index ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    from sdm.index import build_index, plan_index

    out = tmp_path_factory.mktemp("index") / "west.zarr"
    build_index(plan_index((-129, 45, -119, 53), resolution=0.1, tile_size=32, mask="land", modalities="location"), out)
    return out


def test_with_an_index_nothing_is_encoded(tmp_path, monkeypatch, index):
    """The same maps, within what int8 costs; a box that begins inside a tile of the index; no sea in it."""
    listed = ["Ursus arctos", "gray whale", "Picea engelmannii"]
    encoded = map_batch(listed, out=tmp_path / "a", **FAST)
    monkeypatch.setattr(engine_tile, "Frame", None)
    read = map_batch(listed, BOX, out=tmp_path / "b", index=index)
    a, b = encoded.open().probability.sel(species=["Ursus arctos", "Picea engelmannii"]), read.open().probability
    assert b.species.values.tolist() == ["Ursus arctos", "Picea engelmannii"] and a.shape == b.shape
    assert np.array_equal(np.isnan(a), np.isnan(b)) and np.array_equal(a.x, b.x) and np.array_equal(a.y, b.y)
    assert 0 < np.nanmean(np.abs(a.values - b.values)) < 0.003
    assert "contains only land" in read.summary[1]["error"] and read.summary[1]["species"] == ""
    assert read.report["configuration"]["index"]
    with pytest.raises(SpeciesNameError, match=r"row 2.*contains only land"):
        plan_batch(listed, BOX, index=index, strict=True)
    with pytest.raises(OutputError, match="index nothing, not"):
        map_batch(listed, BOX, out=tmp_path / "a", index=index, tile_size=24)


# Names -------------------------------------------------------------------------------------------


def test_unknown_names_are_skipped_or_fatal():
    listed = ["Ursus arctos", "Ursus arctoss", "elk", "Felis concolor", "Myotis nova"]
    rows = plan_batch(listed, **FAST).rows
    assert [r.target for r in rows] == [0, None, None, 1, None]
    assert "the map of its genus Myotis instead may be wrong" in rows[4].error and "--as-group" in rows[4].error
    rows = plan_batch(listed, as_group=True, **FAST).rows
    assert [r.target for r in rows] == [0, None, None, 1, 2]
    assert "Ursus arctos" in rows[1].error and "Cervus canadensis" in rows[2].error
    assert confidence(rows[4].resolution) == "stand-in: genus"
    with pytest.raises(SpeciesNameError, match="row 2: Unknown species 'Ursus arctoss'"):
        plan_batch(["Ursus arctos", "Ursus arctoss", "elk"], strict=True, **FAST)
    with pytest.raises(SpeciesNameError, match="no name of the list"):
        plan_batch(["elk", "zzzz"], **FAST)


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"species": []}, SpeciesNameError, "no name"),
        ({"species": 3}, RequestError, "neither names"),
        ({"species": ["Ursus arctos", 3]}, SpeciesNameError, "species 2"),
        ({"threshold": 1.0}, RequestError, "between 0 and 1"),
        ({"threshold": "x"}, RequestError, "not a number"),
        ({"tile_size": 2048}, RequestError, "1024"),
        ({"column": "x"}, RequestError, "not a file"),
        ({"species": "nope.csv"}, RequestError, "nope.csv"),
    ],
)
def test_bad_requests(arguments, error, says):
    with pytest.raises(error, match=says):
        plan_batch(**{"species": ["Ursus arctos"], **FAST, **arguments})


def test_summary_is_no_formula_and_one_line(tmp_path):
    listed = ["Ursus arctos", "=HYPERLINK(1)", "a\x00\nb\x1b[31m", "@x", "-1+1"]
    map_batch(listed, out=tmp_path / "o", **FAST)
    text = (tmp_path / "o" / "summary.csv").read_text(encoding="utf-8")
    assert text.isprintable() or set(text) - set(filter(str.isprintable, text)) == {"\n"}
    rows = list(csv.DictReader(text.splitlines()))
    assert [r["query"][0] for r in rows] == ["U", "'", "a", "'", "'"]


# Resuming ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What a run that was never interrupted leaves."""
    out = tmp_path_factory.mktemp("whole") / "out"
    map_batch(LIST, out=out, formats="cog,html", **FAST)
    return everything(out)


CHILD = textwrap.dedent("""
    import os, signal, sys, threading
    import sdm
    from pathlib import Path
    from sdm.maps.batch import map_batch

    # Every file gets its name by one of these: the process dies by SIGKILL at the n-th of them.
    count, lock, at, sent = 0, threading.Lock(), int(sys.argv[2]), getattr(sys.modules["signal"], sys.argv[3])
    def dying(function):
        def call(*arguments, **options):
            global count
            with lock:
                count += 1
                if count == at:
                    os.kill(os.getpid(), sent)
            return function(*arguments, **options)
        return call
    os.replace, Path.rename = dying(os.replace), dying(Path.rename)
    map_batch(%r, out=sys.argv[1], formats="cog,html", threads=2, **%r)
    print(count)
""") % (LIST, FAST)


def child(out, at, sent="SIGKILL"):
    return subprocess.run(
        [sys.executable, "-c", CHILD, str(out), str(at), sent], capture_output=True, text=True, timeout=120
    )


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no POSIX signals")
def test_killed_anywhere_it_goes_on_and_ends_with_the_same_bytes(tmp_path, whole):
    total = int(child(tmp_path / "whole", 0).stdout)
    assert everything(tmp_path / "whole") == whole
    computed = []
    tiles = plan_batch(LIST, **FAST).job.grid.tile_count
    # While the store is made, among the tiles, among the files of species, and between the last renames.
    for at in (1, total // 3, total - 45, total - 35, total - 20, total - 4, total - 1):
        out = tmp_path / str(at)
        assert child(out, at).returncode == -signal.SIGKILL
        assert "index.html" not in names(out) or at > total - 12
        result = map_batch(LIST, out=out, formats="cog,html", **FAST)
        assert everything(out) == whole, at
        if result.computed:
            computed.append(result.report["run"]["tiles_computed_last"])
    assert computed[0] == tiles and computed == sorted(computed, reverse=True) and computed[-1] == 0
    assert any(0 < n < tiles for n in computed)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no POSIX signals")
def test_killed_twice(tmp_path, whole):
    out = tmp_path / "o"
    assert child(out, 70).returncode == child(out, 15).returncode == -signal.SIGKILL
    map_batch(LIST, out=out, formats="cog,html", **FAST)
    assert everything(out) == whole


class Stop(Exception):
    pass


def stop_after(monkeypatch, tiles):
    """The run fails in its n-th tile, after its chunks and before its record."""
    write, count = records.write_record, [0]

    def failing(*arguments):
        count[0] += 1
        if count[0] > tiles:
            raise Stop
        write(*arguments)

    monkeypatch.setattr(records, "write_record", failing)


def begun(monkeypatch, out, tiles=5, **options):
    with monkeypatch.context() as patch:
        stop_after(patch, tiles)
        with pytest.raises(Stop):
            map_batch(LIST, out=out, threads=1, formats="cog,html", **{**FAST, **options})
    assert names(out) == {"batch.partial"}


def test_finished_tiles_are_not_computed_again(tmp_path, monkeypatch, whole):
    out = tmp_path / "o"
    begun(monkeypatch, out)
    before = {tuple(map(int, p.stem.split("."))) for p in (out / "batch.partial" / "tiles").iterdir()}
    seen = []
    embed = batch_tiles.stored_tile
    monkeypatch.setattr(
        batch_tiles, "stored_tile", lambda plan, tile, mask: seen.append(tile.index) or embed(plan, tile, mask)
    )
    stages = []
    result = map_batch(LIST, out=out, formats="cog,html", progress=lambda *news: stages.append(news), **FAST)
    tiles = [t.index for t in plan_batch(LIST, **FAST).job.grid.tiles()]
    assert len(before) == 5 and {*seen} == {*tiles} - before and len(seen) == len(tiles) - 5
    assert result.report["run"]["tiles_computed_last"] == len(seen)
    assert ("tiles", 5, len(tiles)) in stages and ("tiles", len(tiles), len(tiles)) in stages
    assert everything(out) == whole


@pytest.mark.parametrize(
    "harm", ["chunk cut", "chunk gone", "chunk changed", "record cut", "record gone", "left-overs"]
)
def test_what_a_power_cut_can_leave_is_found_and_done_again(tmp_path, monkeypatch, whole, harm):
    out = tmp_path / "o"
    begun(monkeypatch, out)
    partial = out / "batch.partial"
    record = sorted((partial / "tiles").iterdir(), key=lambda path: path.stat().st_size)[-1]
    chunk = partial / "new" / "probability.zarr" / str(np.load(record)["files"][0])
    content = bytearray(chunk.read_bytes())
    if harm == "chunk cut":
        chunk.write_bytes(content[:-7])
    elif harm == "chunk changed":
        content[len(content) // 2] ^= 1
        chunk.write_bytes(content)
    elif harm == "chunk gone":
        chunk.unlink()
    elif harm == "record cut":
        record.write_bytes(record.read_bytes()[:100])
    elif harm == "record gone":
        record.unlink()
    else:
        (partial / "tmp" / "abc").write_bytes(b"x")
        (partial / "run.json.part").write_bytes(b"x")
    result = map_batch(LIST, out=out, formats="cog,html", **FAST)
    assert everything(out) == whole
    again = result.report["run"]["tiles_computed_last"]
    tiles = plan_batch(LIST, **FAST).job.grid.tile_count
    assert again == tiles - 5 + (harm != "left-overs")


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"resolution": 0.2}, "resolution 0.1, not 0.2"),
        ({"bbox": (-128, 46, -120, 51)}, "size 80 x 60 pixels, not 80 x 50 pixels"),
        ({"tile_size": 32}, "tile size 24, not 32"),
        ({"modalities": "location,environment"}, "modalities location, not location,environment"),
        ({"mask": "none"}, "mask auto, not none"),
        ({"threshold": 0.4}, "threshold 0.5, not 0.4"),
        ({"formats": "cog"}, "format zarr,cog,html, not zarr,cog"),
        ({"species": LIST[:-1]}, "6 names, sha256 .*, not 5 names"),
        ({"species": [*LIST[:-1], "Canis lupus"]}, "6 names, sha256 .*, not 6 names"),
    ],
)
def test_a_changed_request_is_refused_with_both_values(tmp_path, monkeypatch, changed, says):
    out = tmp_path / "o"
    begun(monkeypatch, out, tiles=1)
    before = everything(out, skip_times=False)
    with pytest.raises(OutputError, match=says):
        map_batch(**{"species": LIST, "out": out, "formats": "cog,html", **FAST, **changed})
    assert everything(out, skip_times=False) == before


def test_overwrite_starts_anew_or_goes_on(tmp_path, monkeypatch, whole):
    out = tmp_path / "o"
    begun(monkeypatch, out, threshold=0.3)
    result = map_batch(LIST, out=out, formats="cog,html", overwrite=True, **FAST)
    assert result.report["run"]["tiles_computed_last"] == plan_batch(LIST, **FAST).job.grid.tile_count
    assert everything(out) == whole
    # Cut off while it replaces a finished batch, it goes on with --overwrite, and says so without.
    (out / "species" / "note.txt").write_text("x")
    with monkeypatch.context() as patch:
        stop_after(patch, 5)
        with pytest.raises(Stop):
            map_batch(LIST, out=out, formats="cog", threads=1, overwrite=True, **FAST)
    assert (out / "index.html").exists()
    with pytest.raises(OutputError, match="--overwrite"):
        map_batch(LIST, out=out, formats="cog", **FAST)
    result = map_batch(LIST, out=out, formats="cog", overwrite=True, **FAST)
    assert result.report["run"]["tiles_computed_last"] == plan_batch(LIST, **FAST).job.grid.tile_count - 5
    assert not list((out / "species").glob("*.html")) and names(out) == {*result.report["outputs"]}


def test_a_finished_batch_is_left_as_it_is(tmp_path):
    out = tmp_path / "o"
    first = map_batch(LIST, out=out, **FAST)
    before = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in out.rglob("*") if p.is_file()}
    again = map_batch(LIST, out=out, **FAST)
    assert not again.computed and again.report == first.report and len(again.summary) == len(first.summary)
    assert {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in out.rglob("*") if p.is_file()} == before
    with pytest.raises(OutputError, match=r"finished run with threshold 0.5, not 0.2.*--overwrite"):
        map_batch(LIST, out=out, threshold=0.2, **FAST)


def test_what_is_not_ours_is_never_replaced(tmp_path):
    out = tmp_path / "o"
    (out / "gallery").mkdir(parents=True)
    (out / "gallery" / "holiday.jpg").write_bytes(b"x")
    (out / "other.txt").write_text("x")
    with pytest.raises(OutputError, match="gallery exists already"):
        map_batch(LIST, out=out, **FAST)
    with pytest.raises(OutputError, match="not made by a batch run"):
        map_batch(LIST, out=out, overwrite=True, **FAST)
    shutil.rmtree(out / "gallery")
    (out / "batch.partial").mkdir()
    (out / "batch.partial" / "mine").write_text("x")
    with pytest.raises(OutputError, match="not made by this program"):
        map_batch(LIST, out=out, overwrite=True, **FAST)
    shutil.rmtree(out / "batch.partial")
    map_batch(LIST, out=out, **FAST)
    assert (out / "other.txt").read_text() == "x"


def test_a_report_cannot_name_files_elsewhere(tmp_path):
    out = tmp_path / "o"
    map_batch(LIST, out=out, **FAST)
    (tmp_path / "precious").mkdir()
    report = json.loads((out / "batch.json").read_text())
    report["outputs"].append("../precious")
    (out / "batch.json").write_text(json.dumps(report))
    with pytest.raises(OutputError):  # no report of ours any more
        map_batch(LIST, out=out, overwrite=True, **FAST)
    assert (tmp_path / "precious").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="no POSIX locks")
def test_two_runs_on_one_output(tmp_path, monkeypatch):
    out = tmp_path / "o"
    seen = []

    def second(stage, number, total):
        if not seen:
            with pytest.raises(OutputError, match=rf"another run is writing .*process {os.getpid()} on") as caught:
                map_batch(LIST, out=out, overwrite=True, **FAST)
            seen.append(caught.value.exit_code)

    map_batch(LIST, out=out, progress=second, **FAST)
    assert seen == [6] and "index.html" in names(out)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no POSIX signals")
@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_command_line_says_that_it_can_go_on(tmp_path, name, code):
    (tmp_path / "l.txt").write_text("\n".join(LIST))
    command = [
        sys.executable,
        "-m",
        "sdm",
        "--species",
        "l.txt",
        "--bbox",
        "-130",
        "-30",
        "-34",
        "60",
        "--resolution",
        "0.05",
        "--tile-size",
        "128",
        "--modalities",
        "location",
        "--out",
        "o",
    ]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while len(list(tmp_path.glob("o/batch.partial/tiles/*"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    other = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert other.returncode == 6 and "another run is writing" in other.stderr
    process.send_signal(getattr(signal, name))
    _, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert "the same command resumes" in err and "Traceback" not in err
    assert names(tmp_path / "o") == {"batch.partial"}


# Command line ------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    from sdm import cli

    def call(*arguments):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["taxabind-map", *arguments])
        try:
            cli.main()
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
        out, err = capsys.readouterr()
        return code, out, err

    return call


HERE = ("--bbox", "-128", "46", "-120", "52", "--resolution", "0.2", "--modalities", "location")


def test_command(run, tmp_path):
    (tmp_path / "l.csv").write_text(
        "no,binomial\n1,Ursus arctos\n2,elk\n3,Puma concolor Linnaeus 1771\n4,Felis concolor\n"
    )
    code, out, err = run("--species", "l.csv", *HERE, "--out", "o")
    assert code == 0 and "2 species mapped, 1 names not" in out and "not mapped, row 3: 'elk'" in err
    report = json.loads((tmp_path / "o" / "batch.json").read_text())
    assert report["command"].startswith("taxabind-map --species l.csv --bbox")
    code, out, _ = run("--species", "l.csv", *HERE, "--out", "o", "--json", "--quiet")
    assert code == 0 and json.loads(out) == report
    assert "finished before" in run("--species", "l.csv", *HERE, "--out", "o")[1]
    code, out, err = run("--species", "l.csv", *HERE, "--out", "o2", "--quiet")
    assert (code, out, err) == (0, "", "")


def test_command_refusals(run, tmp_path):
    (tmp_path / "l.csv").write_text("binomial\nelk\nUrsus arctos\n")
    (tmp_path / "none.txt").write_text("elk\n")
    for arguments, code, says in [
        (("--species", "l.csv", "--strict"), 3, "row 2"),
        (("--species", "none.txt"), 3, "no name of the list"),
        (("--species", "gone.csv"), 2, "gone.csv"),
        (("--species", "l.csv", "Ursus arctos"), 2, "not both"),
        (("--species", "l.csv", "--species-column", "x"), 2, "no column 'x'"),
        (("--species", "l.csv", "--format", "png"), 2, "png"),
        (("--species", "l.csv", "--threshold", "2"), 2, "between 0 and 1"),
        (tuple(f"Ursus {chr(97 + i // 26)}{chr(97 + i % 26)}" for i in range(65)), 2, "--species FILE"),
    ]:
        found, out, err = run(*arguments, *HERE)
        assert (found, out) == (code, "") and says in err, (arguments, err)
    assert names(tmp_path) == {"l.csv", "none.txt"}


def test_command_dry_run_and_config(run, tmp_path):
    (tmp_path / "l.txt").write_text("Ursus arctos\nelk\nPuma concolor\n")
    (tmp_path / "c.toml").write_text(
        'species-list = "l.txt"\nbbox = [-128, 46, -120, 52]\nresolution = 0.2\nformat = ["cog"]\n'
    )
    code, out, _ = run("--config", "c.toml", "--dry-run", "--json", "--quiet")
    estimate = json.loads(out)
    assert code == 0 and (estimate["species"], estimate["names"], estimate["names_not_mapped"]) == (2, 3, 1)
    assert estimate["pixels"] == 40 * 30 and names(tmp_path) == {"l.txt", "c.toml"}
    assert "2 species (3 names, 1 of them not mapped)" in run("--config", "c.toml", "--dry-run")[1]


def test_on_a_cluster(tmp_path, whole):
    """Workers write to the folder; the result is the same to the bit."""
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(2, threads_per_worker=1, processes=False, dashboard_address=None) as cluster,
        distributed.Client(cluster),
    ):
        map_batch(LIST, out=Path(tmp_path) / "o", formats="cog,html", device="cpu", **FAST)
    assert everything(tmp_path / "o") == whole


def test_records_are_read_one_at_a_time(tmp_path, monkeypatch):
    """Parsing their headers in several threads at once fails now and then in Python itself."""
    for k in range(6):
        records.write_record(tmp_path / f"{k}.npz", tmp_path, [("a", 1, k)], {"n": np.arange(k)})
    inside, most, load = [], [], np.load

    def slow(*args, **kwargs):
        inside.append(1)
        most.append(len(inside))
        time.sleep(0.01)
        try:
            return load(*args, **kwargs)
        finally:
            inside.pop()

    monkeypatch.setattr(np, "load", slow)
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda k: records.read_record(tmp_path / f"{k}.npz"), range(6)))
    assert [len(r["value_n"]) for r in found] == list(range(6)) and max(most) == 1
