import numpy as np
import pytest
import xarray as xr
from affine import Affine
from odc.geo.geobox import GeoBox
from pyproj import Geod, Transformer

from sdm.outputs.blocks import iter_blocks
from sdm.outputs.statistics import PixelArea, summarise

from .conftest import GRIDS, field

EARTH_KM2 = 510_065_621.724  # WGS 84


@pytest.mark.parametrize("chunks", [None, (100, 130), (620, 700)])
@pytest.mark.parametrize("limit", [1, 5000, 1 << 20])
def test_blocks_cover_the_source_once(chunks, limit):
    values = field(GRIDS["geographic"])
    source = xr.DataArray(values, dims=("y", "x"))
    if chunks:
        source = source.chunk(dict(zip(("y", "x"), chunks, strict=True)))
    seen = np.zeros(values.shape, int)
    for rows, columns, block in iter_blocks(source, limit):
        seen[rows, columns] += 1
        np.testing.assert_array_equal(block, values[rows, columns])
        assert (
            block.size <= max(limit, 512 * 700 if not chunks else chunks[0] * chunks[1]) and block.dtype == np.float32
        )
    assert (seen == 1).all()


def test_statistics_are_exact(grid):
    values = field(grid)
    summary = summarise(xr.DataArray(values, dims=("y", "x")).chunk({"y": 100, "x": 90}), grid)
    valid = values[~np.isnan(values)].astype(np.float64)
    assert summary.count == valid.size and summary.nodata_count == values.size - valid.size
    assert summary.min == valid.min() == 0 and summary.max == valid.max()
    assert summary.mean == pytest.approx(valid.mean(), rel=1e-12)
    assert summary.std == pytest.approx(valid.std(), rel=1e-10)
    assert sum(summary.histogram) == valid.size
    assert summary.histogram[0] == np.count_nonzero(valid * 20 < 1)
    area = PixelArea(grid).block(slice(0, grid.height), slice(0, grid.width)) + np.zeros(values.shape)
    assert summary.modelled_area_km2 == pytest.approx(area[~np.isnan(values)].sum() / 1e6)
    assert summary.expected_area_km2 == pytest.approx(np.nansum(area * values.astype(float)) / 1e6)


def test_nothing_modelled():
    grid = GRIDS["geographic"]
    summary = summarise(np.full(grid.shape, np.nan, np.float32), grid)
    assert summary.count == 0 and summary.mean is None and summary.min is None
    assert summary.modelled_area_km2 == 0 and sum(summary.histogram) == 0


def test_zero_is_modelled():
    grid = GRIDS["geographic"]
    summary = summarise(np.zeros(grid.shape, np.float32), grid)
    assert summary.nodata_count == 0 and summary.mean == 0 and summary.expected_area_km2 == 0
    assert summary.modelled_area_km2 > 0


def test_whole_earth():
    grid = GeoBox((180, 360), Affine(1, 0, -180, 0, -1, 90), "EPSG:4326")
    assert summarise(np.ones(grid.shape), grid).modelled_area_km2 == pytest.approx(EARTH_KM2, rel=1e-9)


def test_pixel_area_is_the_geodesic_area(grid):
    to_wgs84 = Transformer.from_crs(grid.crs.proj, "EPSG:4326", always_xy=True)
    for row, column in ((0, 0), (grid.height // 2, grid.width // 3), (grid.height - 1, grid.width - 1)):
        side = np.linspace(0, 1, 20)  # parallels and grid lines are not geodesics: densify
        columns = np.concatenate([column + side, np.full(20, column + 1), column + 1 - side, np.full(20, column)])
        rows = np.concatenate([np.full(20, row), row + side, np.full(20, row + 1), row + 1 - side])
        expected, _ = Geod(ellps="WGS84").polygon_area_perimeter(*to_wgs84.transform(*grid.pix2wld(columns, rows)))
        found = PixelArea(grid).block(slice(row, row + 1), slice(column, column + 1))
        assert found.item() == pytest.approx(abs(expected), rel=2e-4)


def test_same_region_same_area_in_every_crs():
    geographic = GeoBox((600, 600), Affine(0.02, 0, -160, 0, -0.02, 70), "EPSG:4326")
    truth = summarise(np.ones(geographic.shape), geographic).modelled_area_km2
    for crs in ("EPSG:3338", "EPSG:3857", "EPSG:3995", "EPSG:2225"):  # the last one in US feet
        grid = geographic.to_crs(crs)
        x, y = np.meshgrid(np.arange(grid.width) + 0.5, np.arange(grid.height) + 0.5)
        longitude, latitude = Transformer.from_crs(crs, "EPSG:4326", always_xy=True).transform(*grid.pix2wld(x, y))
        inside = (longitude > -160) & (longitude < -148) & (latitude > 58) & (latitude < 70)
        values = np.where(inside, 1.0, np.nan)
        assert summarise(values, grid).expected_area_km2 == pytest.approx(truth, rel=2e-3), crs
