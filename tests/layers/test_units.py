"""Units of a user's rasters against the bundled variables, and what stands for no value in them."""

import numpy as np
import pytest
import rasterio

from sdm.errors import LayerError
from sdm.files.paths import folder
from sdm.layers.environment import Environment, Input
from sdm.layers.raster import RasterLayer
from sdm.layers.satellite import Satellite
from sdm.layers.units import check_units

# Scandinavia, on the grid of the bundled layers' multiples.
WEST, NORTH, CELL, ROWS, COLUMNS = 8.0, 66.0, 0.25, 24, 48
LON, LAT = (a.ravel() for a in np.meshgrid(np.linspace(8.5, 19.5, 24), np.linspace(60.5, 65.5, 24)))


def bundled(name):
    """The bundled values of a variable on the grid above, (rows, columns)."""
    file = "landcover.tif" if name == "landcover" else "elevation.tif" if name == "elevation" else "bioclim.tif"
    layer = RasterLayer(folder("data") / file)
    band = next(k for k, text in enumerate(layer.descriptions, 1) if text.startswith(f"{name}:"))
    lon = WEST + CELL * (np.arange(COLUMNS) + 0.5)
    lat = NORTH - CELL * (np.arange(ROWS) + 0.5)
    return layer.nearest(*np.meshgrid(lon, lat), band).astype(np.float32)


@pytest.mark.parametrize(
    ("name", "convert", "says"),
    [
        ("bio1", lambda v: v + 273.15, "not degrees Celsius"),
        ("bio1", lambda v: v * 10, "tenths of a degree"),
        ("bio1", lambda v: v * 1.8 + 32, "degrees Fahrenheit, not degrees Celsius"),
        ("bio7", lambda v: v * 10, "tenths of a degree|not degrees"),
        ("bio12", lambda v: v / 1000, "in metres, not mm"),
        ("bio12", lambda v: v / 10, "in centimetres, not mm"),
        ("bio12", lambda v: v / 25.4, "in inches, not mm"),
        ("bio13", lambda v: v * 10, "tenths of a mm, not mm"),
        ("bio4", lambda v: v / 100, "degrees, not hundredths of a degree"),
        ("bio15", lambda v: v / 100, "fractions of 1, not percent"),
        ("elevation", lambda v: v * 3.28084, "feet, not metres"),
        ("landcover", lambda v: np.where(v == 0, 80, 10 * np.minimum(v, 10)), "classes .* IGBP"),
    ],
)
def test_other_units_are_refused(write_raster, name, convert, says):
    values = convert(bundled(name)).astype(np.float32)
    environment = Environment([Input(name)], [write_raster(values, f"{name}.tif", WEST, NORTH, CELL)])
    with pytest.raises(LayerError, match=says) as caught:
        environment.check(LON, LAT)
    assert caught.value.exit_code == 4 and str(caught.value).count(". ") <= 1


@pytest.mark.parametrize(
    ("name", "convert"),
    [
        ("bio1", lambda v: v + 7.0),  # a warm future
        ("bio1", lambda v: v - 12.0),  # an ice age
        ("bio12", lambda v: v * 1.6),
        ("bio12", lambda v: v * 0.5),
        ("bio7", lambda v: v * 1.2),
        ("elevation", lambda v: v + 40.0),
        ("landcover", lambda v: np.where(v == 5, 12, v)),
        ("landcover", lambda v: np.full_like(v, 12)),
    ],
)
def test_scenarios_are_taken(write_raster, name, convert):
    values = convert(bundled(name)).astype(np.float32)
    Environment([Input(name)], [write_raster(values, f"{name}.tif", WEST, NORTH, CELL)]).check(LON, LAT)


def test_few_places_are_not_compared():
    check_units("a.tif", "bio12", np.full(5, 1.2), np.full(5, 1200.0))
    with pytest.raises(LayerError, match="metres"):
        check_units("a.tif", "bio12", np.full(50, 1.2), np.full(50, 1200.0))


def sampled(path):
    """bio1 of a raster at a masked place (10 E) and at one with a value (18 E)."""
    return Environment([Input("bio1")], [path]).sample(np.array([10.0, 18.0]), np.array([63.0, 63.0]), False)[:, 0]


def test_a_mask_band_alpha_infinities_and_sentinels_are_no_values(write_raster):
    values = np.full((ROWS, COLUMNS), 3.0, np.float32)
    hidden = np.broadcast_to(np.arange(COLUMNS) < COLUMNS // 2, values.shape)
    expected = [np.nan, 3.0]

    masked = write_raster(np.where(hidden, 0, values), "bio1.tif", WEST, NORTH, CELL, descriptions=["bio1"])
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(masked, "r+") as file:
        file.write_mask(~hidden)
    np.testing.assert_array_equal(sampled(masked), expected)

    both = np.stack([np.where(hidden, 0, values), np.where(hidden, 0, 255).astype(np.float32)])
    alpha = write_raster(both, "alpha/bio1.tif", WEST, NORTH, CELL, alpha="YES", photometric="MINISBLACK")
    with rasterio.open(alpha, "r+") as file:
        file.set_band_description(1, "bio1")
    assert RasterLayer(alpha).count == 1
    np.testing.assert_array_equal(sampled(alpha), expected)

    for k, none in enumerate((np.inf, -np.inf, -9999, -32768, -3.4e38, 1e20, -999, 9999)):
        path = write_raster(np.where(hidden, np.float32(none), values), f"{k}/bio1.tif", WEST, NORTH, CELL)
        np.testing.assert_array_equal(sampled(path), expected, err_msg=str(none))
        Environment([Input("bio1")], [path]).check(LON, LAT)
    whole = np.where(hidden, -9999, 3).astype(np.int16)
    np.testing.assert_array_equal(sampled(write_raster(whole, "whole/bio1.tif", WEST, NORTH, CELL)), expected)


def test_a_mask_holds_where_a_raster_is_warped(write_raster):
    values = np.full((40, 40), 3.0, np.float32)
    hidden = np.broadcast_to(np.arange(40) < 20, values.shape)
    place = rasterio.transform.from_origin(200_000, 7_200_000, 20_000, 20_000)
    path = write_raster(np.where(hidden, 0, values), "bio1.tif", transform=place, crs="EPSG:32633")
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "r+") as file:
        file.write_mask(~hidden)
    np.testing.assert_array_equal(sampled(path), [np.nan, 3.0])


def test_imagery_with_alpha_is_known_where_it_is_opaque(write_raster):
    values = np.zeros((4, 60, 60), np.uint8)
    values[:3], values[3, :, 30:] = 90, 255
    path = write_raster(values, "rgba.tif", 5.0, 50.0, 0.1)
    imagery = Satellite(4, 0.5, path)
    np.testing.assert_array_equal(imagery.known(np.array([6.0, 10.0]), np.array([47.0, 47.0])), [False, True])
    assert (imagery.crops(np.array([9.8]), np.array([47.0])) == 90).all()
