import json
import subprocess

import numpy as np
import odc.geo.xr  # noqa: F401
import pytest
import rasterio
import rioxarray  # noqa: F401
import xarray as xr
from affine import Affine
from odc.geo.geobox import GeoBox

from sdm.errors import OutputError
from sdm.outputs import zarr_store

from .conftest import BANDS, GRIDS, HOSTILE, band_fields, field, tiles


def test_round_trip(grid, store):
    path, values = store(grid)
    opened = zarr_store.open_map(path)
    assert opened.odc.geobox == grid and opened.dims == ("y", "x") and opened.dtype == np.float32
    assert opened.data.chunksize == (256, 256)  # lazy, and tile == chunk
    assert opened.rio.crs == rasterio.crs.CRS.from_user_input(str(grid.crs))
    assert opened.rio.transform().almost_equals(grid.affine)
    assert np.isnan(opened.rio.nodata) and opened.attrs["units"] == "1"
    np.testing.assert_array_equal(opened.values, values)


def test_other_readers_see_the_same_crs(grid, store):
    path, values = store(grid)
    for options in ({}, {"decode_coords": "all"}):
        opened = xr.open_zarr(path, **options)["probability"]
        assert opened.odc.geobox == grid
        assert opened.rio.crs.to_epsg() == grid.crs.epsg
        np.testing.assert_array_equal(opened.values, values)
    with rasterio.open(f'ZARR:"{path}":/probability') as file:
        assert file.crs.to_epsg() == grid.crs.epsg and file.transform.almost_equals(grid.affine)
        assert np.isnan(file.nodata)
        np.testing.assert_array_equal(file.read(1), values)


def test_old_gdal_reads_it(grid, store):
    path, _ = store(grid)
    try:
        run = subprocess.run(
            ["gdalinfo", "-json", f'ZARR:"{path}":/probability'], capture_output=True, text=True, check=True
        )
    except (FileNotFoundError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no gdalinfo with Zarr: {error}")
    info = json.loads(run.stdout)
    assert np.allclose(info["geoTransform"], grid.affine.to_gdal(), rtol=1e-9)
    assert f'ID["EPSG",{grid.crs.epsg}]' in info["coordinateSystem"]["wkt"]
    assert info["bands"][0]["noDataValue"] == "NaN"


@pytest.mark.parametrize(
    ("rows", "cols"),
    [
        (slice(0, 255), slice(0, 256)),
        (slice(1, 256), slice(0, 256)),
        (slice(0, 256), slice(0, 300)),
        (slice(0, 256), slice(-256, 0)),
        (slice(0, 256, 2), slice(0, 256)),
        (slice(0, 256), slice(None)),
        (slice(512, 768), slice(0, 256)),
        (slice(0, 0), slice(0, 256)),
    ],
)
def test_unaligned_regions_are_refused(store, rows, cols):
    path, values = store(GRIDS["geographic"])
    with pytest.raises(ValueError, match=r"[yx]: "):
        zarr_store.write_tile(path, rows, cols, np.zeros((256, 256), np.float32))
    np.testing.assert_array_equal(zarr_store.open_map(path).values, values)


def test_wrong_shape_is_refused(store):
    path, _ = store(GRIDS["geographic"])
    with pytest.raises(ValueError, match="shape"):
        zarr_store.write_tile(path, slice(0, 256), slice(0, 256), np.float32(0))


def test_small_map_and_whole_chunks_at_the_edge(store):
    grid = GeoBox((3, 2), Affine(1, 0, 0, 0, -1, 3), "EPSG:4326")
    values = np.array([[0, 1], [np.nan, 0.5], [0.25, 0]], np.float32)
    path, _ = store(grid, values=values)
    np.testing.assert_array_equal(zarr_store.open_map(path).values, values)
    assert zarr_store.open_map(path).odc.geobox == grid


def test_unwritten_is_not_modelled(tmp_path, metadata):
    zarr_store.create(tmp_path / "a.zarr", GRIDS["alaska"], (256, 256), metadata)
    assert np.isnan(zarr_store.open_map(tmp_path / "a.zarr").values).all()


def test_metadata_is_valid_json_whatever_the_texts(tmp_path, metadata):
    from dataclasses import replace

    def refuse(constant):
        raise AssertionError(constant)

    hostile = replace(metadata, title=HOSTILE, tags={HOSTILE: HOSTILE + "\ud800"}, quantity=HOSTILE)
    zarr_store.create(tmp_path / "a.zarr", GRIDS["alaska"], (256, 256), hostile)
    for file in tmp_path.rglob(".z*"):
        json.loads(file.read_text(), parse_constant=refuse)
    assert xr.open_zarr(tmp_path / "a.zarr").attrs["title"] == HOSTILE


def test_refusals(tmp_path, metadata):
    with pytest.raises(ValueError, match="rotation"):
        zarr_store.create(tmp_path / "a.zarr", GRIDS["alaska"].rotate(10), (9, 9), metadata)
    with pytest.raises(OutputError, match="not a map"):
        zarr_store.open_map(tmp_path / "missing.zarr")
    zarr_store.create(tmp_path / "a.zarr", GRIDS["alaska"], (256, 256), metadata)
    with pytest.raises(OutputError, match="exists"):
        zarr_store.create(tmp_path / "a.zarr", GRIDS["alaska"], (256, 256), metadata)


def test_concurrent_tiles(tmp_path, metadata):
    from concurrent.futures import ThreadPoolExecutor

    from .conftest import tiles

    grid, path = GRIDS["geographic"], tmp_path / "a.zarr"
    values = field(grid)
    zarr_store.create(path, grid, (64, 64), metadata)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda part: zarr_store.write_tile(path, *part, values[part]), tiles(grid, 64)))
    np.testing.assert_array_equal(zarr_store.open_map(path).values, values)


def test_each_further_band_is_a_variable(tmp_path, grid, banded):
    path = tmp_path / "map.zarr"
    zarr_store.create(path, grid, (256, 256), banded)
    layers = dict(zip(("uncertainty", "novelty", "depth"), band_fields(grid), strict=True))
    for rows, cols in tiles(grid, 256):
        zarr_store.write_tile(path, rows, cols, field(grid)[rows, cols])
        for name, layer in layers.items():
            zarr_store.write_tile(path, rows, cols, layer[rows, cols], name)
    opened = xr.open_zarr(path, decode_coords="all")
    assert set(opened.data_vars) == {"probability", *layers}
    np.testing.assert_array_equal(zarr_store.open_map(path).values, field(grid))
    for band in BANDS:
        layer = zarr_store.open_map(path, band.name)
        np.testing.assert_array_equal(layer.values, layers[band.name])
        assert layer.attrs["long_name"] == band.quantity and layer.attrs["units"] == band.unit
        assert layer.chunks == opened["probability"].chunks and layer.odc.geobox == grid
        assert layer.attrs.get("low_trust_above") == band.limit
