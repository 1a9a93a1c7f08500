"""Zarr format 3 with the GeoZarr conventions."""

import json

import numpy as np
import odc.geo.xr  # noqa: F401
import pytest
import rioxarray  # noqa: F401
import xarray as xr
import zarr_cm
from affine import Affine
from odc.geo.geobox import GeoBox

from sdm.errors import OutputError
from sdm.outputs import geozarr
from sdm.outputs.geozarr import write_geozarr

from .conftest import band_fields, field


@pytest.fixture
def written(tmp_path, grid, banded):
    values, bands = field(grid), band_fields(grid)
    write_geozarr(tmp_path / "map.v3.zarr", values, grid, banded, bands)
    return tmp_path / "map.v3.zarr", values, bands


def test_xarray_reads_every_band_with_its_crs(grid, written, banded):
    path, values, bands = written
    data = xr.open_zarr(path, group="0", decode_coords="all")
    for name, expected in zip(("probability", *(band.name for band in banded.bands)), (values, *bands), strict=True):
        np.testing.assert_array_equal(data[name].values, expected)
        assert data[name].dims == ("y", "x") and np.isnan(data[name].rio.nodata)
    assert data.odc.geobox == grid and data.rio.crs.to_epsg() == grid.crs.epsg
    assert data["probability"].attrs["units"] == "1"


def test_coarser_resolutions_are_means_of_the_modelled_pixels(tmp_path, metadata):
    grid = GeoBox((301, 530), Affine(0.1, 0, 10, 0, -0.1, 50), "EPSG:4326")
    values = np.random.default_rng(1).random(grid.shape, dtype=np.float32)
    values[:100, :100] = np.nan
    values[100, 100] = np.nan
    write_geozarr(tmp_path / "a.zarr", values, grid, metadata)
    tree = xr.open_datatree(tmp_path / "a.zarr", engine="zarr", decode_coords="all")
    assert [tree[level]["probability"].shape for level in ("0", "1", "2")] == [(301, 530), (151, 265), (76, 133)]
    half = tree["1"]["probability"].values
    assert half[50, 50] == pytest.approx(np.mean([values[100, 101], values[101, 100], values[101, 101]]))
    assert half[150, 0] == pytest.approx(values[300, 0:2].mean())  # an odd row has no partner
    assert np.isnan(half[:50, :50]).all() and not np.isnan(half[50:, :]).any()
    # Coarser pixels lie where the finer ones do.
    assert tree["1"]["x"].values[0] == pytest.approx(tree["0"]["x"].values[:2].mean())
    assert tree["1"]["y"].values[3] == pytest.approx(tree["0"]["y"].values[6:8].mean())


def test_the_conventions_say_where_the_pixels_are(grid, written):
    path, *_ = written
    root = json.loads((path / "zarr.json").read_text())
    about = root["attributes"]
    assert root["zarr_format"] == 3 and root["node_type"] == "group"
    for convention in (zarr_cm.multiscales, zarr_cm.proj, zarr_cm.spatial):
        assert convention.CMO in about["zarr_conventions"]
        convention.validate_group_metadata(root)
    assert about["proj:code"] == f"EPSG:{grid.crs.epsg}"
    assert about["spatial:dimensions"] == ["y", "x"]
    assert about["spatial:bbox"] == pytest.approx(list(grid.boundingbox.bbox))
    # With several resolutions, the place of the pixels is that of each.
    assert "spatial:transform" not in about and "spatial:shape" not in about
    for entry in about["multiscales"]["layout"]:
        level = json.loads((path / entry["asset"] / "zarr.json").read_text())
        zarr_cm.proj.validate_group_metadata(level)
        zarr_cm.spatial.validate_group_metadata(level)
        data = xr.open_zarr(path, group=entry["asset"], decode_coords="all")
        assert list(data.odc.geobox.shape) == entry["spatial:shape"]
        assert list(data.odc.geobox.affine)[:6] == pytest.approx(entry["spatial:transform"])
        assert data.attrs["spatial:transform"] == entry["spatial:transform"]
        assert ("derived_from" in entry) == (entry["asset"] != "0")
        array = json.loads((path / entry["asset"] / "probability" / "zarr.json").read_text())
        assert array["dimension_names"] == ["y", "x"] and array["attributes"]["grid_mapping"] == "spatial_ref"


def test_a_crs_without_a_code_is_written_as_text(tmp_path, metadata):
    grid = GeoBox((4, 5), Affine(1000, 0, 0, 0, -1000, 0), "+proj=laea +lat_0=10 +lon_0=20 +datum=WGS84")
    write_geozarr(tmp_path / "a.zarr", field(grid), grid, metadata)
    about = json.loads((tmp_path / "a.zarr" / "zarr.json").read_text())["attributes"]
    assert "proj:code" not in about and "Lambert Azimuthal" in about["proj:wkt2"]


def test_a_folder_that_cannot_be_written_is_one_error(tmp_path, metadata, monkeypatch):
    grid = GeoBox((4, 5), Affine(1, 0, 0, 0, -1, 0), "EPSG:4326")

    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(geozarr.zarr, "create_group", full)
    with pytest.raises(OutputError, match="space"):
        write_geozarr(tmp_path / "a.zarr", field(grid), grid, metadata)
