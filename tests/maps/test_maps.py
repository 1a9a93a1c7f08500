"""The two calls users make: a lazy array, and files on disk."""

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
import xarray as xr

import sdm
from sdm.engine.cluster import active_client
from sdm.engine.tile import TileMaps
from sdm.errors import BoxError, OutputError, RequestError, SdmError, SpeciesNameError
from sdm.maps import write

BOX = (-112, 38, -108, 41)
ALL = {
    "puma-concolor.tif",
    "puma-concolor.qml",
    "puma-concolor.zarr",
    "puma-concolor.html",
    "puma-concolor.json",
}


def job(species="Puma concolor", **options):
    return sdm.plan(species, **{"bbox": BOX, "resolution": 0.1, "tile_size": 16, **options})


def names(folder):
    return {p.name for p in folder.iterdir()} if folder.exists() else set()


# The lazy array ----------------------------------------------------------------------------------


def test_map_is_a_georeferenced_lazy_array():
    array = sdm.map_species("Puma concolor", bbox=BOX, resolution=0.1)
    assert isinstance(array, xr.DataArray)
    assert hasattr(array.data, "dask")
    assert (array.dims, array.shape, array.dtype) == (("y", "x"), (30, 40), np.float32)
    assert array.rio.crs.to_epsg() == 4326
    assert array.rio.transform()[:6] == pytest.approx((0.1, 0, -112, 0, -0.1, 41))
    assert np.isnan(array.rio.nodata)
    assert array.x.values[[0, -1]] == pytest.approx([-111.95, -108.05])
    assert array.y.values[[0, -1]] == pytest.approx([40.95, 38.05])
    assert str(array.species.values) == "Puma concolor"
    assert "Puma concolor" in array.attrs["long_name"]
    assert array.attrs["modalities"] == "location,satellite,environment"


def test_map_of_several_species_has_a_dimension(tmp_path):
    array = sdm.map_species(["brown bear", "Puma concolor"], bbox=BOX, resolution=0.2)
    assert array.dims == ("species", "y", "x")
    assert array.species.values.tolist() == ["Ursus arctos", "Puma concolor"]
    assert hasattr(array.data, "dask")
    alone = sdm.map_species("Puma concolor", bbox=BOX, resolution=0.2).compute()
    assert np.allclose(array.sel(species="Puma concolor"), alone, atol=1e-6, equal_nan=True)


def test_map_in_a_projected_crs():
    array = sdm.map_species("Ursus arctos", bbox=(172, 51, -130, 72), crs=3338, resolution=50_000)
    assert array.rio.crs.to_epsg() == 3338
    assert array.rio.resolution() == (50_000, -50_000)
    assert array.x.values[0] % 50_000 == 25_000


def test_rioxarray_writes_what_was_computed(tmp_path):
    array = sdm.map_species("Puma concolor", bbox=BOX, resolution=0.2)
    array.rio.to_raster(tmp_path / "puma.tif")
    with rasterio.open(tmp_path / "puma.tif") as src:
        assert np.isnan(src.nodata)
        assert src.crs.to_epsg() == 4326
        assert np.allclose(src.read(1), array.compute(), equal_nan=True)


@pytest.mark.parametrize("kind", ["geometry", "frame", "file"])
def test_region_in_any_form(tmp_path, kind):
    geometry = shapely.Polygon([(-112, 38), (-108, 38), (-110, 41)])
    frame = geopandas.GeoDataFrame(geometry=[geometry], crs=4326)
    frame.to_file(tmp_path / "triangle.gpkg")
    region = {"geometry": geometry, "frame": frame.to_crs(3857), "file": tmp_path / "triangle.gpkg"}[kind]
    array = sdm.map_species("Puma concolor", region=region, resolution=0.1).compute()
    assert array.shape == (30, 40)
    assert np.isnan(array.values[0, [0, -1]]).all()
    assert np.isfinite(array.values[-1]).mean() > 0.9
    assert 0.4 < np.isfinite(array.values).mean() < 0.6


# Refusals ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"bbox": None}, RequestError, "either a bbox"),
        ({"bbox": (1, 2, 3)}, BoxError, "3 numbers"),
        ({"bbox": "1234567"}, BoxError, "numbers"),
        ({"bbox": ("a", "b", "c", "d")}, BoxError, "number"),
        ({"bbox": (0, 10, 10, 0)}, BoxError, "south 10 is greater"),
        ({"region": shapely.box(0, 0, 1, 1)}, RequestError, "either a bbox"),
        ({"species": []}, SpeciesNameError, "no species given"),
        ({"species": ["Puma concolor"] * 65}, RequestError, "at most 64"),
        ({"species": "Puma concolour"}, SpeciesNameError, "Puma concolor"),
        ({"species": "qwertyuiop"}, SpeciesNameError, "qwertyuiop"),
        ({"species": ["Ursus arctos", "grizzly"]}, RequestError, "same taxon"),
        ({"species": ["Puma concolor", "Puma concolor"]}, RequestError, "same taxon"),
        ({"species": ["Puma concolor", "Felis concolor"]}, RequestError, "same taxon"),
        ({"mask": "water"}, RequestError, "mask 'water' is not known"),
        ({"modalities": "sound"}, RequestError, "modality 'sound'"),
        ({"modalities": ()}, RequestError, "modalit"),
        ({"device": "tpu"}, RequestError, "device 'tpu'"),
        ({"device": "cuda:x"}, RequestError, "device 'cuda:x'"),
        ({"crs": "EPSG:0"}, RequestError, "not known"),
        ({"tile_size": 8}, RequestError, "tile size"),
        ({"resolution": -0.1}, RequestError, "resolution"),
    ],
)
def test_bad_request_is_one_sentence(options, error, says):
    species = options.pop("species", "Puma concolor")
    with pytest.raises(error, match=says) as caught:
        job(species, **options)
    assert len(str(caught.value)) < 500
    assert "\n" not in str(caught.value)


def test_a_species_the_model_does_not_know_is_its_genus_only_where_asked_for():
    with pytest.raises(SpeciesNameError, match="give --as-group to map the genus Ursus"):
        job("Ursus minimus")
    planned = job("Ursus minimus", as_group=True)
    assert planned.resolutions[0].taxon.name == "Ursus"
    assert not planned.resolutions[0].known
    assert any("genus Ursus" in note for note in planned.notes[0])
    assert planned.slugs == ("ursus",)


def test_map_without_location_is_said_not_to_be_a_range():
    assert any("Without location" in note for note in job(modalities="environment").notes[0])
    assert not job().notes[0]


def test_estimate():
    estimate = job(["Puma concolor", "Ursus arctos"]).estimate()
    assert (estimate["columns"], estimate["rows"], estimate["pixels"], estimate["tiles"]) == (40, 30, 1200, 6)
    assert estimate["species"] == ["Puma concolor", "Ursus arctos"]
    assert 2 * 1200 * 4 <= estimate["bytes_at_most"] < 100 * 1200


# Files -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    out = tmp_path_factory.mktemp("maps") / "new folder"
    steps = []
    results = sdm.write_maps(
        job(region=shapely.box(-112, 38, -108, 41), bbox=None),
        out,
        command="taxabind-map test",
        progress=lambda *step: steps.append(step),
    )
    return out, results, steps


def test_all_files_and_nothing_else(written):
    out, results, _ = written
    assert names(out) == ALL
    assert len(results) == 1
    assert {p.name for p in results[0].files.values()} == ALL
    assert all(p.exists() for p in results[0].files.values())


def test_files_hold_the_computed_map(written):
    out, _, _ = written
    expected = sdm.map_species("Puma concolor", bbox=BOX, resolution=0.1, tile_size=16).compute().values
    with rasterio.open(out / "puma-concolor.tif") as src:
        assert src.crs.to_epsg() == 4326
        assert src.transform[:6] == pytest.approx((0.1, 0, -112, 0, -0.1, 41))
        assert np.isnan(src.nodata)
        assert np.allclose(src.read(1), expected, atol=1e-6, equal_nan=True)
        assert src.tags()["species"] == "Puma concolor"
    store = xr.open_zarr(out / "puma-concolor.zarr", decode_coords="all")
    variable = next(v for v in store.data_vars.values() if v.ndim == 2)
    assert np.allclose(variable.values, expected, atol=1e-6, equal_nan=True)
    assert "Puma concolor" in (out / "puma-concolor.html").read_text()


def test_report(written):
    out, _, _ = written
    report = json.loads((out / "puma-concolor.json").read_text())
    assert report["species"] == report["query"] == "Puma concolor"
    assert report["resolved"]["known"] is True
    assert report["resolved"]["lineage"][-2:] == ["Puma", "Puma concolor"]
    assert report["command"] == "taxabind-map test"
    assert report["model"]["hash"] == sdm.Model.open(report["model"]["name"]).digest
    assert report["modalities"] == ["location", "satellite", "environment"]
    assert report["layers"]["mask"] == "land"
    grid = report["grid"]
    assert (grid["rows"], grid["columns"], grid["tiles"], grid["tile_size"]) == (30, 40, 6, 16)
    assert grid["bounds"] == pytest.approx([-112, 38, -108, 41])
    assert grid["crs"] == "EPSG:4326"
    assert set(report["files"].values()) == ALL
    assert report["timings"]["tiles_s"] >= 0
    assert report["versions"]["taxabind-map"] == sdm.__version__
    with rasterio.open(out / "puma-concolor.tif") as src:
        values = src.read(1).astype(float)
    for name, exact in (("min", np.nanmin(values)), ("max", np.nanmax(values)), ("mean", np.nanmean(values))):
        assert report["statistics"][name] == pytest.approx(exact, rel=1e-6)
    assert report["statistics"]["count"] == np.isfinite(values).sum()
    assert "NaN" not in (out / "puma-concolor.json").read_text()


def test_progress_counts_every_tile(written):
    _, _, steps = written
    assert [s for s in steps if s[0] == "tiles"] == [("tiles", k, 6) for k in range(7)]
    assert steps[-1] == ("writing", 1, 1)


@pytest.mark.parametrize(
    ("formats", "suffixes"),
    [
        ("cog", {".tif", ".qml", ".json"}),
        ("zarr", {".zarr", ".json"}),
        (["html", "zarr"], {".html", ".zarr", ".json"}),
    ],
)
def test_only_the_formats_asked_for(tmp_path, formats, suffixes):
    sdm.write_maps(job(resolution=0.5), tmp_path, formats=formats)
    assert names(tmp_path) == {f"puma-concolor{s}" for s in suffixes}


@pytest.mark.parametrize("formats", ["", "shp", "cog,png"])
def test_unknown_format(tmp_path, formats):
    with pytest.raises(RequestError, match="format"):
        sdm.write_maps(job(), tmp_path, formats=formats)
    assert names(tmp_path) == set()


def test_several_species_in_one_go(tmp_path):
    results = sdm.write_maps(job(["Puma concolor", "brown bear"], resolution=0.5), tmp_path, formats="cog")
    assert names(tmp_path) == {f"{s}{e}" for s in ("puma-concolor", "ursus-arctos") for e in (".tif", ".qml", ".json")}
    assert [r.species for r in results] == ["Puma concolor", "Ursus arctos"]
    with (
        rasterio.open(tmp_path / "puma-concolor.tif") as a,
        rasterio.open(tmp_path / "ursus-arctos.tif") as b,
    ):
        assert not np.allclose(a.read(1), b.read(1), equal_nan=True)


@pytest.mark.parametrize("existing", sorted(ALL))
def test_existing_outputs_are_never_lost_by_accident(tmp_path, existing):
    path = tmp_path / existing
    if existing.endswith(".zarr"):
        path.mkdir()
        path = path / ".zgroup"
    path.write_text("precious")
    with pytest.raises(OutputError, match="exists already"):
        sdm.write_maps(job(), tmp_path)
    assert path.read_text() == "precious"
    assert names(tmp_path) == {existing}


def test_overwrite_replaces_and_keeps_what_is_not_ours(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    sdm.write_maps(job(resolution=0.5), tmp_path)
    before = (tmp_path / "puma-concolor.tif").read_bytes()
    sdm.write_maps(job(resolution=0.25), tmp_path, overwrite=True)
    assert (tmp_path / "puma-concolor.tif").read_bytes() != before
    assert names(tmp_path) == ALL | {"notes.txt"}
    with rasterio.open(tmp_path / "puma-concolor.tif") as src:
        assert src.shape == (12, 16)


# Failure in the middle ---------------------------------------------------------------------------


class _Broken(Exception):
    pass


def zeros(tile):
    """A tile of a map and its band."""
    values = np.zeros((1, *tile.shape), np.float32)
    return TileMaps(values, (values,))


@pytest.mark.parametrize("error", [_Broken, KeyboardInterrupt, MemoryError, SystemExit])
def test_a_failing_tile_leaves_nothing(tmp_path, monkeypatch, error):
    def failing(plan, tile):
        if tile.index == (1, 1):
            raise error("in the middle")
        return zeros(tile)

    monkeypatch.setattr(write, "map_tile", failing)
    out = tmp_path / "maps"
    with pytest.raises(error):
        sdm.write_maps(job(), out, threads=1)
    assert names(out) == set()


def test_no_tile_runs_on_after_another_has_failed(tmp_path, monkeypatch):
    running, finished, order = threading.Event(), threading.Event(), itertools.count()

    def one_fails(plan, tile):
        if next(order) == 0:
            running.wait(20)
            raise _Broken
        running.set()
        time.sleep(1.0)
        finished.set()
        return zeros(tile)

    monkeypatch.setattr(write, "map_tile", one_fails)
    out = tmp_path / "maps"
    with pytest.raises(_Broken):
        sdm.write_maps(job(), out, threads=2)
    assert finished.is_set()
    assert names(out) == set()


@pytest.mark.parametrize("writer", ["cog.write_cog", "webmap.write_html", "sidecar.write_json"])
def test_a_failing_writer_leaves_the_old_map(tmp_path, monkeypatch, writer):
    sdm.write_maps(job(resolution=0.5), tmp_path)
    before = (tmp_path / "puma-concolor.tif").read_bytes()

    def failing(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(f"sdm.outputs.{writer}", failing)
    with pytest.raises((SdmError, OSError)):
        sdm.write_maps(job(resolution=0.25), tmp_path, overwrite=True)
    assert names(tmp_path) == ALL
    assert (tmp_path / "puma-concolor.tif").read_bytes() == before


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_a_signal_in_the_middle_leaves_nothing(tmp_path, number):
    out = tmp_path / "maps"
    code = (
        "import time, sdm\n"
        "from sdm.maps import write\n"
        "compute = write.map_tile\n"
        "def slow(plan, tile):\n"
        "    time.sleep(0.1)\n"
        "    return compute(plan, tile)\n"
        "write.map_tile = slow\n"
        "job = sdm.plan('Puma concolor', bbox=(-120, 30, -90, 50), resolution=0.05, tile_size=32)\n"
        f"sdm.write_maps(job, {str(out)!r}, progress=lambda stage, done, _: print(stage, done, flush=True))\n"
    )
    pipe = subprocess.PIPE
    process = subprocess.Popen([sys.executable, "-c", code], stdout=pipe, stderr=pipe, text=True)
    try:
        for line in process.stdout:
            if line.split() == ["tiles", "4"]:
                break
        assert any(n.startswith(".sdm-staging") for n in names(out))
        process.send_signal(number)
        start = time.monotonic()
        process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode != 0
    assert names(out) == set()
    assert time.monotonic() - start < 30


# A cluster of the user's -------------------------------------------------------------------------


@pytest.mark.slow
def test_an_active_client_is_used_and_left_open(tmp_path, monkeypatch):
    distributed = pytest.importorskip("distributed")
    expected = sdm.map_species("Puma concolor", bbox=BOX, resolution=0.1, tile_size=16).compute().values
    cluster = distributed.LocalCluster(n_workers=1, threads_per_worker=2, processes=True, dashboard_address=None)
    with cluster, distributed.Client(cluster) as client:
        pids = client.run(os.getpid)
        assert os.getpid() not in pids.values()

        def never(*args, **kwargs):
            raise AssertionError("a tile was computed in this process")

        monkeypatch.setattr(write, "map_tile", never)
        steps = []
        sdm.write_maps(job(), tmp_path, formats="cog", progress=lambda *step: steps.append(step))
        assert client.status == "running"
        assert client.submit(lambda: 7).result(timeout=20) == 7
        assert client.run(os.getpid) == pids
    assert steps.count(("tiles", 6, 6)) == 1
    with rasterio.open(tmp_path / "puma-concolor.tif") as src:
        assert np.allclose(src.read(1), expected, atol=1e-6, equal_nan=True)


def test_no_client_is_made(tmp_path):
    sdm.write_maps(job(resolution=0.5), tmp_path, formats="zarr")
    assert active_client() is None
    assert os.environ.get("DASK_SCHEDULER_ADDRESS") is None
