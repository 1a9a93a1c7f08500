import subprocess
import sys
import textwrap

import numpy as np
import pytest
import rasterio
import xarray as xr
from affine import Affine
from odc.geo.geobox import GeoBox
from rasterio.windows import Window
from rio_cogeo.cogeo import cog_validate

from sdm.errors import OutputError
from sdm.outputs import cog, zarr_store
from sdm.outputs.statistics import PixelArea, summarise_band

from .conftest import BANDS, GRIDS, band_fields, field


def test_round_trip(grid, store, tmp_path, metadata):
    zarr, values = store(grid)
    path = tmp_path / "map.tif"
    summary = cog.write_cog(path, zarr_store.open_map(zarr), grid, metadata)
    assert cog_validate(path)[0]
    with rasterio.open(path) as file:
        assert file.crs.to_epsg() == grid.crs.epsg and file.transform.almost_equals(grid.affine)
        assert np.isnan(file.nodata) and file.dtypes == ("float32",)
        np.testing.assert_array_equal(file.read(1), values)
        assert file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert file.tags(ns="IMAGE_STRUCTURE")["PREDICTOR"] == "3"
        assert file.descriptions == (metadata.variable,) and file.units == ("1",)
        assert file.tags(1)["quantity"] == metadata.quantity
        assert file.colorinterp[0].name == "gray"
        tags, band = file.tags(), file.tags(1)
    assert tags["AREA_OR_POINT"] == "Area" and tags["tag_AREA_OR_POINT"] == "Point"
    assert tags["species"] == "Ursus arctos" and tags["odd_key__"] == "a b"
    assert tags["TIFFTAG_IMAGEDESCRIPTION"].endswith("A test. Second line.")
    valid = values[~np.isnan(values)].astype(np.float64)
    assert float(band["STATISTICS_MINIMUM"]) == valid.min() and float(band["STATISTICS_MAXIMUM"]) == valid.max()
    assert float(band["STATISTICS_MEAN"]) == pytest.approx(valid.mean(), rel=1e-12) == summary.mean
    assert float(band["STATISTICS_STDDEV"]) == pytest.approx(valid.std(), rel=1e-10)
    assert summary.nodata_count == np.count_nonzero(np.isnan(values))
    assert [item.name for item in tmp_path.iterdir() if item.suffix != ".zarr"] == ["map.tif"]


def test_overviews_average_what_is_modelled(tmp_path, metadata):
    grid = GeoBox((2048, 1024), Affine(0.01, 0, 0, 0, -0.01, 60), "EPSG:4326")
    values = np.random.default_rng(0).random(grid.shape, dtype=np.float32)
    values[:300, :300] = np.nan
    values[301, 100:200:2] = np.nan
    cog.write_cog(tmp_path / "map.tif", values, grid, metadata)
    with rasterio.open(tmp_path / "map.tif", overview_level=0) as overview:
        found = overview.read(1)
    squares = values.reshape(1024, 2, 512, 2)
    with np.errstate(invalid="ignore"), pytest.warns(RuntimeWarning, match="empty slice"):
        expected = np.nanmean(squares, axis=(1, 3))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert np.isnan(found[:150, :150]).all() and not np.isnan(found[151:]).any()


@pytest.mark.parametrize("value", [np.nan, 0.0, 1.0, 0.3])
def test_constant_maps(tmp_path, metadata, value):
    grid = GRIDS["geographic"]
    values = np.full(grid.shape, value, np.float32)
    summary = cog.write_cog(tmp_path / "map.tif", values, grid, metadata)
    with rasterio.open(tmp_path / "map.tif") as file:
        np.testing.assert_array_equal(file.read(1), values)
        assert ("STATISTICS_MINIMUM" in file.tags(1)) == (not np.isnan(value))
    assert summary.count == (0 if np.isnan(value) else values.size)


def test_one_pixel(tmp_path, metadata):
    grid = GeoBox((1, 1), Affine(1, 0, 0, 0, -1, 3), "EPSG:4326")
    cog.write_cog(tmp_path / "map.tif", np.array([[0.25]], np.float32), grid, metadata)
    with rasterio.open(tmp_path / "map.tif") as file:
        assert file.read(1) == 0.25


def test_lazy_source_with_ragged_chunks(tmp_path, metadata):
    grid = GRIDS["geographic"]
    values = field(grid)
    source = xr.DataArray(values, dims=("y", "x")).chunk({"y": (100, 7, 513), "x": (699, 1)})
    cog.write_cog(tmp_path / "map.tif", source, grid, metadata)
    with rasterio.open(tmp_path / "map.tif") as file:
        np.testing.assert_array_equal(file.read(1), values)


def test_wrong_shape(tmp_path, metadata):
    with pytest.raises(ValueError, match="does not fit"):
        cog.write_cog(tmp_path / "map.tif", np.zeros((3, 3)), GRIDS["alaska"], metadata)


@pytest.mark.parametrize("damage", ["cut", "flip", "pixels"])
def test_damaged_file_is_noticed_and_removed(tmp_path, metadata, monkeypatch, damage):
    import rasterio.shutil

    grid = GRIDS["geographic"]
    (tmp_path / "map.tif").write_text("old")
    real = rasterio.shutil.copy

    def damaging(source, target, **options):
        if damage == "pixels":
            with rasterio.open(source, "r+") as file:
                file.write(np.full((1, 1), 0.123, np.float32), 1, window=Window(0, 0, 1, 1))
        real(source, target, **options)
        content = bytearray(target.read_bytes())
        if damage == "cut":
            content = content[: len(content) // 5]
        elif damage == "flip":
            middle = len(content) // 2
            content[middle : middle + 400] = bytes(400)
        target.write_bytes(content)

    monkeypatch.setattr(rasterio.shutil, "copy", damaging)
    with pytest.raises(OutputError, match=r"map\.tif"):
        cog.write_cog(tmp_path / "map.tif", field(grid), grid, metadata)
    assert [path.name for path in tmp_path.iterdir()] == ["map.tif"]
    assert (tmp_path / "map.tif").read_text() == "old"


def test_overviews_that_do_not_average_are_noticed(tmp_path, metadata, monkeypatch):
    import rasterio.shutil

    real = rasterio.shutil.copy
    monkeypatch.setattr(
        rasterio.shutil,
        "copy",
        lambda *names, **options: real(*names, **options | {"OVERVIEW_RESAMPLING": "LANCZOS"}),
    )
    grid = GRIDS["geographic"]
    step = np.zeros(grid.shape, np.float32)
    step[:, 301:] = 1  # Lanczos overshoots at the edge
    with pytest.raises(OutputError, match="overview"):
        cog.write_cog(tmp_path / "map.tif", step, grid, metadata)


@pytest.mark.slow
def test_memory_stays_bounded(tmp_path):
    script = textwrap.dedent("""
        import resource, sys
        from pathlib import Path
        import dask.array as da, numpy as np, xarray as xr
        from affine import Affine
        from odc.geo.geobox import GeoBox
        from sdm.outputs.cog import write_cog
        from sdm.outputs.metadata import MapMetadata
        def peak():
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        def grid(n):
            return GeoBox((n, n), Affine(40 / n, 0, 0, 0, -40 / n, 60), "EPSG:4326")
        write_cog(Path(sys.argv[1]), np.zeros((600, 600), "f4"), grid(600), MapMetadata("t", "q"))
        before = peak()
        n = 8192
        rows = da.arange(n, chunks=512, dtype="f4") / n
        source = xr.DataArray(rows[:, None] * rows[None, :], dims=("y", "x"))
        write_cog(Path(sys.argv[1]), source, grid(n), MapMetadata("t", "q"))
        print(peak() - before)
    """)
    run = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "map.tif")], capture_output=True, text=True, check=True
    )
    assert int(run.stdout) < 220  # MB; the map itself has 256 MB


def test_crs_without_a_code(store, tmp_path, metadata):
    from sdm.outputs.webmap import write_html

    crs = "+proj=laea +lat_0=60 +lon_0=178 +ellps=GRS80 +units=m +no_defs"
    grid = GeoBox((300, 280), Affine(5000, 0, -700_000, 0, -5000, 800_000), crs)
    zarr, values = store(grid)
    opened = zarr_store.open_map(zarr)
    assert opened.odc.geobox.crs.proj.equals(grid.crs.proj, ignore_axis_order=True)
    cog.write_cog(tmp_path / "map.tif", opened, grid, metadata)
    with rasterio.open(tmp_path / "map.tif") as file:
        assert "laea" in file.crs.to_proj4() and file.transform.almost_equals(grid.affine)
        np.testing.assert_array_equal(file.read(1), values)
    write_html(tmp_path / "map.html", opened, metadata)
    assert '"bounds":[[' in (tmp_path / "map.html").read_text()


def test_further_bands_are_written_named_and_measured(tmp_path, grid, banded):
    layers = band_fields(grid)
    summary = cog.write_cog(tmp_path / "map.tif", field(grid), grid, banded, layers)
    with rasterio.open(tmp_path / "map.tif") as file:
        assert file.count == 4 and file.descriptions[1:] == ("uncertainty", "novelty", "depth")
        assert file.descriptions[0] == banded.variable and file.units == ("1", "1", "percent", "m")
        assert all(np.isnan(value) for value in file.nodatavals)
        np.testing.assert_array_equal(file.read(1), field(grid))
        for number, layer in enumerate(layers, start=2):
            np.testing.assert_array_equal(file.read(number), layer)
            tags = file.tags(number)
            assert float(tags["STATISTICS_MEAN"]) == pytest.approx(np.nanmean(layer), rel=1e-5)
            assert tags["quantity"] == BANDS[number - 2].quantity
        assert file.tags(3)["low_trust_above"] == "95" and "low_trust_above" not in file.tags(4)
        assert len(file.overviews(2)) == len(file.overviews(1))
    errors = cog_validate(tmp_path / "map.tif", quiet=True)[1]
    assert [error for error in errors if "not tiled" not in error] == []
    area = np.broadcast_to(PixelArea(grid).block(slice(0, grid.height), slice(0, grid.width)), grid.shape)
    for layer, band, measured in zip(layers, BANDS, summary.bands, strict=True):
        assert measured == summarise_band(layer, grid, band)
        if band.limit is None:
            assert measured.share_above_limit is None
        else:
            expected = area[layer > band.limit].sum() / area[np.isfinite(layer)].sum()
            assert 0.1 < expected < 0.5 and measured.share_above_limit == pytest.approx(expected, rel=1e-6)
    assert "bands" not in summary.to_dict()


def test_a_map_without_bands_has_one(tmp_path, metadata, banded):
    grid = GRIDS["alaska"]
    with pytest.raises(ValueError, match="0 bands are given, and 3 described"):
        cog.write_cog(tmp_path / "map.tif", field(grid), grid, banded)
    with pytest.raises(ValueError, match="does not fit grid"):
        cog.write_cog(tmp_path / "map.tif", field(grid), grid, banded, [np.zeros((3, 3))] * 3)
    assert cog.write_cog(tmp_path / "map.tif", field(grid), grid, metadata).bands == ()


@pytest.mark.parametrize("number", [2, 3])
def test_a_band_that_changes_on_the_way_to_the_disk_is_noticed(tmp_path, banded, monkeypatch, number):
    grid, right = GRIDS["alaska"], cog._checksum
    calls = []

    def wrong(values):
        # The map is checked first, block by block, and then its bands.
        calls.append(values)
        return right(values) + (len(calls) == number)

    monkeypatch.setattr(cog, "_checksum", wrong)
    with pytest.raises(OutputError, match="pixels differ"):
        cog.write_cog(tmp_path / "map.tif", field(grid), grid, banded, band_fields(grid))
    assert list(tmp_path.iterdir()) == []


def test_an_empty_band_has_no_statistics(tmp_path, banded):
    grid = GRIDS["alaska"]
    empty = np.full(grid.shape, np.nan, np.float32)
    summary = cog.write_cog(tmp_path / "map.tif", empty, grid, banded, [empty] * 3)
    assert summary.bands[1].count == 0 and summary.bands[1].share_above_limit is None
