import base64
import io

import numpy as np
import pytest
import xarray as xr
from affine import Affine
from odc.geo.geobox import GeoBox
from PIL import Image
from pyproj import Transformer

from sdm.outputs.overlay import LEVELS, MAX_LATITUDE, palette, warp, warp_flags

from .conftest import GRIDS, band_fields, field


def mercator(latitude):
    return np.arcsinh(np.tan(np.radians(latitude)))


def at(overlay, longitude, latitude):
    """Byte of the picture at a place, by the rule Leaflet uses: linear in longitude and Mercator y."""
    height, width = overlay.levels.shape
    longitude = overlay.west + (longitude - overlay.west) % 360
    column = (longitude - overlay.west) / (overlay.east - overlay.west) * width
    top, bottom = mercator(overlay.north), mercator(overlay.south)
    row = (top - mercator(latitude)) / (top - bottom) * height
    return overlay.levels[min(int(row), height - 1), min(int(column), width - 1)]


@pytest.mark.parametrize("resolution", [0.05, 0.5, 2.0])
def test_line_at_60_north_is_at_60_north(resolution):
    height = round(80 / resolution)
    grid = GeoBox((height, 40), Affine(resolution, 0, 0, 0, -resolution, 84), "EPSG:4326")
    latitudes = 84 - resolution * (np.arange(height) + 0.5)
    values = np.where(np.abs(latitudes - 60) < resolution, 1.0, 0.0)[:, None] * np.ones((1, 40))
    overlay = warp(values.astype(np.float32), grid)
    rows = np.flatnonzero((overlay.levels == 251).all(axis=1))
    top, bottom = mercator(overlay.north), mercator(overlay.south)
    edges = top + (bottom - top) * np.array([rows[0], rows[-1] + 1]) / overlay.levels.shape[0]
    found = np.degrees(np.arctan(np.sinh(edges)))
    pixel = 80 / overlay.levels.shape[0]
    assert found == pytest.approx([60 + resolution, 60 - resolution], abs=1.5 * pixel)


def test_every_place_has_its_value(grid):
    values = field(grid)
    overlay = warp(xr.DataArray(values, dims=("y", "x")).chunk({"y": 200, "x": 200}), grid)
    assert 0 < overlay.east - overlay.west <= 360
    to_wgs84 = Transformer.from_crs(grid.crs.proj, "EPSG:4326", always_xy=True)
    random = np.random.default_rng(1)
    rows, columns = random.integers(3, grid.height - 3, 300), random.integers(3, grid.width - 3, 300)
    longitudes, latitudes = to_wgs84.transform(*grid.pix2wld(columns + 0.5, rows + 0.5))
    for row, column, longitude, latitude in zip(rows, columns, longitudes, latitudes, strict=True):
        near = values[row - 2 : row + 3, column - 2 : column + 3]
        found = at(overlay, longitude, latitude)
        if np.isnan(near).all():
            assert found == 0
        elif not np.isnan(near).any():
            assert np.nanmin(near) - 0.01 <= (int(found) - 1) / 250 <= np.nanmax(near) + 0.01


def test_zero_is_not_nodata():
    grid = GRIDS["geographic"]
    values = np.zeros(grid.shape, np.float32)
    values[:300] = np.nan
    overlay = warp(values, grid)
    assert set(np.unique(overlay.levels)) == {0, 1}


def test_bounds():
    antimeridian = warp(field(GRIDS["antimeridian"]), GRIDS["antimeridian"])
    assert (antimeridian.west, antimeridian.east) == (168, 194)
    alaska = warp(field(GRIDS["alaska"]), GRIDS["alaska"])
    assert alaska.west < -180 < alaska.east < -100
    world = GeoBox((180, 360), Affine(1, 0, -180, 0, -1, 90), "EPSG:4326")
    whole = warp(np.ones(world.shape, np.float32), world)
    assert (whole.west, whole.east) == (-180, 180) and whole.north == MAX_LATITUDE == -whole.south
    assert (whole.levels == 251).all()
    polar = GeoBox((500, 500), Affine(8000, 0, -2e6, 0, -8000, 2e6), "EPSG:3995")
    arctic = warp(np.ones(polar.shape, np.float32), polar)
    assert (arctic.west, arctic.east, arctic.north) == (-180, 180, MAX_LATITUDE)
    assert (arctic.levels[2] == 251).all()
    beyond = GeoBox((2, 20), Affine(1, 0, 0, 0, -1, 90), "EPSG:4326")
    assert warp(np.ones(beyond.shape, np.float32), beyond) is None


def test_large_maps_are_averaged_and_bounded():
    grid = GeoBox((300, 9001), Affine(0.001, 0, 0, 0, -0.001, 10), "EPSG:4326")
    values = np.tile(np.array([0.0, 1.0], np.float32), 4501)[:9001] * np.ones((300, 1), np.float32)
    values[100:200] = np.nan
    values[150, ::7] = 0.5
    source = xr.DataArray(values, dims=("y", "x")).chunk({"y": 70, "x": 1111})
    overlay = warp(source, grid)
    assert max(overlay.levels.shape) <= 2000
    modelled = overlay.levels[: overlay.levels.shape[0] // 4]
    assert (np.abs(modelled.astype(int) - 126) <= 30).all() and abs(modelled.mean() - 126) < 3
    assert at(overlay, 3, 9.87) == 0 == at(overlay, 6, 9.82) and at(overlay, 3, 9.75) > 0


def test_png():
    overlay = warp(field(GRIDS["geographic"]), GRIDS["geographic"])
    url = overlay.png_url()
    picture = Image.open(io.BytesIO(base64.b64decode(url.removeprefix("data:image/png;base64,"))))
    rgba = np.asarray(picture.convert("RGBA"))
    np.testing.assert_array_equal(rgba[..., 3], np.where(overlay.levels == 0, 0, 255))
    shown = overlay.levels > 0
    np.testing.assert_array_equal(rgba[shown][:, :3], palette()[overlay.levels[shown]])


def test_flags_lie_on_the_pixels_of_the_map(grid):
    layers = band_fields(grid)[:2]
    flags, overlay = warp_flags(layers, [1.5, 95], grid), warp(field(grid), grid)
    assert flags.bits.shape == overlay.levels.shape
    # Nothing is flagged off the map; and each bit is that of its own layer, warped alone.
    assert not flags.bits[overlay.levels == 0].any() and flags.bits.max() == 3
    for number, layer in enumerate(layers):
        alone = warp(layer, grid, (0.0, float(np.nanmax(layer)))).levels
        limit = 1 + (LEVELS - 1) * (1.5 / 3 if number == 0 else 0.95)
        assert np.array_equal((flags.bits >> number & 1) > 0, alone > limit)
    image = Image.open(io.BytesIO(base64.b64decode(flags.png_url().partition(",")[2]))).convert("RGBA")
    assert np.array_equal(np.asarray(image)[..., 0] * (np.asarray(image)[..., 3] > 0), flags.bits)
    assert np.array_equal(np.asarray(image)[..., 3] > 0, flags.bits > 0)
