"""Raster layers sampled at places, against references that share no code with the readers."""

import concurrent.futures
import pickle

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.warp import transform as warp_points
from scipy.interpolate import RegularGridInterpolator

from sdm.errors import LayerError
from sdm.files.paths import folder
from sdm.layers import raster
from sdm.layers.environment import Environment, Input
from sdm.layers.landmask import LandMask
from sdm.layers.raster import RasterLayer
from sdm.layers.satellite import Satellite

RNG = np.random.default_rng(5)


def plain(window):
    return window


def values_at(layer, lon, lat, bands=None):
    lon, lat = np.atleast_1d(np.asarray(lon, float)), np.atleast_1d(np.asarray(lat, float))
    return layer.bilinear(lon, lat, plain, len(bands or range(layer.count)), bands)


def random_places(n, west=-180.0, south=-89.0, east=180.0, north=89.0, seed=1):
    rng = np.random.default_rng(seed)
    return rng.uniform(west, east, n), rng.uniform(south, north, n)


def reference(values, west, north, cell):
    """Bilinear between cell centres by SciPy; a global layer gets a column more at either end."""
    rows, cols = values.shape
    x = west + (np.arange(-1, cols + 1) + 0.5) * cell
    y = north - (np.arange(rows) + 0.5) * cell
    wide = np.concatenate([values[:, -1:], values, values[:, :1]], axis=1).astype(float)
    at = RegularGridInterpolator((y[::-1], x), wide[::-1])
    return lambda lon, lat: at(np.stack([np.clip(lat, y[-1], y[0]), lon], axis=-1))


# Values ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "float32", "float64"])
def test_bilinear_on_a_global_layer(write_raster, dtype):
    values = RNG.integers(0, 200, (36, 72)).astype(dtype)
    layer = RasterLayer(write_raster(values, cell=5.0))
    lon, lat = random_places(500)
    expected = reference(values, -180, 90, 5.0)(lon, lat)
    got = values_at(layer, lon, lat)
    assert got.dtype == np.float32
    assert got.shape == (500, 1)
    assert np.abs(got[:, 0] - expected).max() < 1e-3


def test_a_global_layer_has_no_seam(write_raster):
    values = np.tile(np.arange(72.0, dtype=np.float32), (36, 1))
    layer = RasterLayer(write_raster(values, cell=5.0))
    assert layer.is_global
    # Cell centres at 177.5 (71) and -177.5 (0): the meridian of 180 is halfway.
    assert values_at(layer, [177.5, 180.0 - 1e-12, -180.0, -177.5], [0, 0, 0, 0])[:, 0].tolist() == [
        71,
        35.5,
        35.5,
        0,
    ]
    assert values_at(layer, -178.75, 0)[0, 0] == pytest.approx(71 * 0.25)


def test_a_layer_of_0_to_360_is_the_same_layer(write_raster):
    values = RNG.random((18, 36)).astype(np.float32)
    west = RasterLayer(write_raster(values, "west.tif", cell=10.0))
    east = RasterLayer(write_raster(np.roll(values, 18, axis=1), "east.tif", west=0.0, cell=10.0))
    lon, lat = random_places(300)
    assert east.is_global
    assert np.allclose(values_at(west, lon, lat), values_at(east, lon, lat), atol=1e-6)
    assert np.array_equal(west.nearest(lon, lat), east.nearest(lon, lat))


def test_a_layer_across_the_antimeridian(write_raster):
    values = np.arange(200, dtype=np.float32).reshape(10, 20)
    layer = RasterLayer(write_raster(values, west=170.0, north=5.0, cell=1.0))
    assert layer.nearest(np.array([170.5, 179.5, -179.5, -170.5]), np.full(4, 4.5)).tolist() == [0, 9, 10, 19]
    assert np.isnan(layer.nearest(np.array([169.0, -169.0, 0.0]), np.full(3, 4.5))).all()


def test_edges_of_a_regional_layer(write_raster):
    values = np.array([[1, 3], [5, 9]], dtype=np.float32)
    layer = RasterLayer(write_raster(values, west=10.0, north=50.0, cell=1.0))
    lon = [10.0, 10.25, 12.0, 11.0, 9.99, 12.01, 11.0, 11.0]
    lat = [50.0, 49.75, 48.0, 49.0, 49.0, 49.0, 50.01, 47.99]
    got = values_at(layer, lon, lat)[:, 0]
    # Within half a cell of the edge the outermost cell is repeated; beyond the edge there is nothing.
    assert got[:4].tolist() == [1.0, 1.0, 9.0, 4.5]
    assert np.isnan(got[4:]).all()
    assert layer.bounds == (10.0, 48.0, 12.0, 50.0)


def test_nearest_against_gdal(write_raster):
    values = RNG.integers(0, 255, (180, 360)).astype(np.uint8)
    path = write_raster(values)
    lon, lat = random_places(400)
    with rasterio.open(path) as src:
        expected = [v[0] for v in src.sample(zip(lon, lat, strict=True))]
    assert RasterLayer(path).nearest(lon, lat).tolist() == expected


def test_nearest_keeps_the_shape_and_leaves_nan(write_raster):
    layer = RasterLayer(write_raster(np.ones((18, 36), np.uint8), cell=10.0))
    lon, lat = np.meshgrid([0.0, np.nan, 20.0], [10.0, 20.0])
    got = layer.nearest(lon, lat)
    assert got.shape == (2, 3)
    assert np.array_equal(np.isnan(got), np.isnan(lon))


def test_positions_that_are_not_numbers(write_raster):
    layer = RasterLayer(write_raster(np.ones((18, 36), np.float32), cell=10.0))
    got = values_at(layer, [np.nan, 0, np.nan, 5], [0, np.nan, np.nan, 5])[:, 0]
    assert np.array_equal(got, [np.nan, np.nan, np.nan, 1], equal_nan=True)
    assert np.isnan(values_at(layer, [np.nan] * 100, [np.nan] * 100)).all()
    assert values_at(layer, [], []).shape == (0, 1)


@pytest.mark.parametrize(("dtype", "nodata"), [("int16", -32768), ("float32", -3.4e38), ("float32", np.nan)])
def test_holes_are_left_out_of_the_mean(write_raster, dtype, nodata):
    values = np.array([[10, 20], [30, nodata]], dtype=np.float64).astype(dtype)
    layer = RasterLayer(write_raster(values, west=0.0, north=2.0, cell=1.0, nodata=nodata))
    # Weights at (0.75, 1.0): left 0.75, right 0.25, each row half; the hole weighs 0.125.
    expected = (10 * 0.375 + 20 * 0.125 + 30 * 0.375) / 0.875
    got = values_at(layer, [0.75, 0.5, 1.5, 1.5], [1.0, 1.5, 0.5, 0.01])[:, 0]
    assert got[0] == pytest.approx(expected, rel=1e-6)
    assert got[1] == 10
    assert np.isnan(got[2:]).all()
    assert np.isnan(layer.nearest(np.array([1.5]), np.array([0.5]))).all()


def test_scale_and_offset(write_raster):
    values = np.array([[100, 200], [300, -9999]], dtype=np.int16)
    path = write_raster(values, west=0.0, north=2.0, cell=1.0, nodata=-9999, scale=0.1, offset=-5.0)
    layer = RasterLayer(path)
    assert values_at(layer, [0.5, 1.5, 0.5, 1.0], [1.5, 1.5, 0.5, 1.5])[:, 0] == pytest.approx([5, 15, 25, 10])
    assert np.isnan(values_at(layer, 1.5, 0.5)).all()


def test_transforms_apply_before_neighbours_are_mixed(write_raster):
    layer = RasterLayer(write_raster(np.array([[1.0, 100.0]], np.float32), west=0.0, north=1.0))
    got = layer.bilinear(np.array([1.0]), np.array([0.5]), np.log, 1)
    assert got[0, 0] == pytest.approx(np.log(10.0), rel=1e-6)


def test_bands_are_read_in_the_order_asked(write_raster):
    layer = RasterLayer(
        write_raster(np.arange(4, dtype=np.uint8)[:, None, None] * np.ones((1, 18, 36), np.uint8), cell=10)
    )
    assert layer.bilinear(np.array([0.0]), np.array([0.0]), plain, 3, [4, 1, 3]).tolist() == [[3, 0, 2]]


# The window must not matter ----------------------------------------------------------------------


@pytest.fixture
def noisy(write_raster):
    values = RNG.normal(size=(90, 180)).astype(np.float32)
    values[RNG.random(values.shape) < 0.4] = -1e9
    return RasterLayer(write_raster(values, cell=2.0, nodata=-1e9))


def test_value_does_not_depend_on_the_window(noisy):
    lon, lat = random_places(300)
    together = values_at(noisy, lon, lat)
    alone = np.concatenate([values_at(noisy, x, y) for x, y in zip(lon, lat, strict=True)])
    assert np.array_equal(together, alone, equal_nan=True)
    assert 0 < np.isnan(together).mean() < 0.1


def test_value_does_not_depend_on_the_split(noisy, monkeypatch):
    lon, lat = random_places(3000)
    bilinear, nearest = values_at(noisy, lon, lat), noisy.nearest(lon, lat)
    sizes = []
    read = RasterLayer._read

    def watched(self, r0, r1, c0, c1, bands, masks=False):
        sizes.append((r1 - r0) * (c1 - c0))
        return read(self, r0, r1, c0, c1, bands, masks)

    monkeypatch.setattr(raster, "MAX_WINDOW", 2000)
    monkeypatch.setattr(RasterLayer, "_read", watched)
    order = np.lexsort([lon, lat])  # as a map asks: row by row
    assert np.array_equal(values_at(noisy, lon[order], lat[order]), bilinear[order], equal_nan=True)
    assert np.array_equal(noisy.nearest(lon[order], lat[order]), nearest[order], equal_nan=True)
    assert len(sizes) > 10


def test_few_places_have_the_values_they_have_among_many(noisy):
    lon, lat = random_places(3000)
    whole = noisy.block((0, noisy.height, 0, noisy.width), [1])
    bilinear, nearest = values_at(noisy, lon, lat), noisy.nearest(lon, lat)
    assert 3000 * 4 * raster.SPARSE > noisy.height * noisy.width > 30 * 4 * raster.SPARSE
    for part in np.array_split(np.arange(3000), 100):  # of each window only these cells are decoded
        assert np.array_equal(values_at(noisy, lon[part], lat[part]), bilinear[part], equal_nan=True)
        assert np.array_equal(noisy.nearest(lon[part], lat[part]), nearest[part], equal_nan=True)
    rows, columns = np.array([3, 0, 7]), np.array([5, 11, 0])
    some = noisy.block((0, noisy.height, 0, noisy.width), [1], at=(rows, columns))
    assert np.array_equal(some, whole[rows, columns], equal_nan=True)


def test_a_few_places_far_apart_are_not_read_through_one_window(noisy, monkeypatch):
    cells = []
    read = RasterLayer._read

    def watched(self, r0, r1, c0, c1, bands, masks=False):
        cells.append((r1 - r0) * (c1 - c0))
        return read(self, r0, r1, c0, c1, bands, masks)

    monkeypatch.setattr(raster, "MAX_WINDOW", 2000)
    monkeypatch.setattr(RasterLayer, "_read", watched)
    values_at(noisy, *random_places(40))
    assert max(cells) <= 2000


@pytest.mark.parametrize("lon", [(179.5, -179.5), (-180.0, 179.99), (-1.0, 1.0), (-179.0, 0.0, 179.0)])
def test_window_across_the_antimeridian_is_small(noisy, monkeypatch, lon):
    widths = []
    read = RasterLayer._read

    def watched(self, r0, r1, c0, c1, bands, masks=False):
        widths.append(c1 - c0)
        return read(self, r0, r1, c0, c1, bands, masks)

    alone = [values_at(noisy, x, 10.0)[0] for x in lon]
    monkeypatch.setattr(RasterLayer, "_read", watched)
    got = values_at(noisy, list(lon), [10.0] * len(lon))
    assert np.array_equal(got, alone, equal_nan=True)
    assert sum(widths) <= (8 if len(lon) == 2 else 180)


def test_a_block_is_decoded_once(tmp_path):
    """Blocks that were read come from memory, not from the file again."""
    values = np.random.default_rng(0).integers(0, 1000, (2, 256, 256), dtype=np.int16)
    path = tmp_path / "blocks.tif"
    options = {"tiled": True, "blockxsize": 128, "blockysize": 128, "compress": "deflate"}
    grid = {"crs": "EPSG:4326", "transform": Affine(0.1, 0, 0, 0, -0.1, 20)}
    with rasterio.open(path, "w", "GTiff", 256, 256, 2, dtype="int16", **grid, **options) as target:
        target.write(values)
    layer = RasterLayer(path)
    lon, lat = np.meshgrid(np.linspace(0.2, 25, 50), np.linspace(-5, 19.8, 50))
    before = layer.nearest(lon, lat, 2)
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
    assert np.array_equal(layer.nearest(lon, lat, 2), before)


def test_many_threads_read_alike(noisy):
    lon, lat = random_places(4000)
    expected = values_at(noisy, lon, lat)
    parts = np.array_split(np.arange(4000), 64)
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        got = list(pool.map(lambda i: values_at(noisy, lon[i], lat[i]), parts))
    assert np.array_equal(np.concatenate(got), expected, equal_nan=True)


def test_a_layer_travels_as_a_path(noisy):
    lon, lat = random_places(50)
    expected = values_at(noisy, lon, lat)
    blob = pickle.dumps(noisy)
    assert len(blob) < 2000
    assert np.array_equal(values_at(pickle.loads(blob), lon, lat), expected, equal_nan=True)


# Other CRS ---------------------------------------------------------------------------------------


@pytest.fixture
def utm(write_raster):
    """400 x 300 km around 57 N, 15 E in UTM 33: the value is the easting in km."""
    x = 300.5 + np.arange(400)
    return write_raster(
        np.tile(x.astype(np.float32), (300, 1)),
        "utm.tif",
        crs="EPSG:32633",
        transform=Affine(1000, 0, 300_000, 0, -1000, 6_500_000),
    )


def test_projected_raster_is_warped(utm):
    layer = RasterLayer(utm)
    x, y = RNG.uniform(310_000, 690_000, 200), RNG.uniform(6_210_000, 6_490_000, 200)
    lon, lat = map(np.array, warp_points("EPSG:32633", "EPSG:4326", x, y))
    assert np.abs(values_at(layer, lon, lat)[:, 0] - x / 1000).max() < 0.5
    assert np.abs(layer.nearest(lon, lat) - x / 1000).max() < 2.0


def test_projected_raster_holds_nothing_beyond_its_corners(utm):
    layer = RasterLayer(utm)
    west, south, east, north = layer.bounds
    lon, lat = np.meshgrid(np.linspace(west, east, 60), np.linspace(south, north, 60))
    x, y = (np.array(v) for v in warp_points("EPSG:4326", "EPSG:32633", lon.ravel(), lat.ravel()))
    outside = (x < 297_000) | (x > 703_000) | (y < 6_197_000) | (y > 6_503_000)
    inside = (x > 303_000) & (x < 697_000) & (y > 6_203_000) & (y < 6_497_000)
    got = values_at(layer, lon.ravel(), lat.ravel())[:, 0]
    assert outside.sum() > 50
    assert np.isnan(got[outside]).all()
    assert np.isfinite(got[inside]).all()


def test_south_up_raster(write_raster):
    values = np.arange(18, dtype=np.float32)[:, None] * np.ones((1, 36), np.float32)
    layer = RasterLayer(write_raster(values, transform=Affine(10, 0, -180, 0, 10, -90)))
    got = values_at(layer, [5.0, 5.0], [-44.9, 45.1])[:, 0]
    assert got == pytest.approx([4.0, 13.0], abs=0.6)


# Crops -------------------------------------------------------------------------------------------


@pytest.fixture
def picture(write_raster):
    rows, cols = np.mgrid[0:90, 0:180]
    return RasterLayer(write_raster(np.stack([rows, cols, rows ^ cols]).astype(np.uint8), cell=2.0))


def test_crop_is_north_up_around_the_place(picture):
    crop = picture.crops(np.array([21.0]), np.array([31.0]), 4)
    assert crop.shape == (1, 4, 4, 3)
    assert crop.dtype == np.uint8
    # The place lies in row (90 - 31) / 2, column (21 + 180) / 2, which is cell [2, 2] of the crop.
    assert crop[0, :, 0, 0].tolist() == [27, 28, 29, 30]
    assert crop[0, 0, :, 1].tolist() == [98, 99, 100, 101]


@pytest.mark.parametrize("lon", [-180.0, 179.999, -179.0, 178.2])
def test_crop_wraps_at_the_antimeridian(picture, lon):
    crop = picture.crops(np.array([lon]), np.array([0.5]), 6)
    centre = int((lon + 180) // 2)
    assert crop[0, 0, :, 1].tolist() == [(centre + k) % 180 for k in range(-3, 3)]


@pytest.mark.parametrize(("lat", "rows"), [(90.0, [0, 0, 0, 1]), (-90.0, [88, 89, 89, 89]), (-89.0, [87, 88, 89, 89])])
def test_crop_at_a_pole_repeats_the_last_row(picture, lat, rows):
    assert picture.crops(np.array([0.0]), np.array([lat]), 4)[0, :, 0, 0].tolist() == rows


def test_crops_do_not_depend_on_each_other(picture, monkeypatch):
    lon, lat = random_places(500)
    together = picture.crops(lon, lat, 8)
    alone = np.concatenate([picture.crops(lon[k : k + 1], lat[k : k + 1], 8) for k in range(0, 500, 10)])
    assert np.array_equal(together[::10], alone)
    monkeypatch.setattr(raster, "MAX_WINDOW", 3000)
    assert np.array_equal(picture.crops(lon, lat, 8), together)


def test_bundled_imagery_is_in_place():
    size = 16
    sahara, ocean, forest = (
        Satellite(size, 1 / 15).crops(np.array([10.0, -150.0, -62.0]), np.array([24.0, 0.0, -4.0])).mean((1, 2))
    )
    assert sahara.min() > 90
    assert sahara[0] > sahara[2] + 30  # sand: more red than blue
    assert ocean[2] > ocean[0] + 10
    assert ocean.max() < 100
    assert forest[1] > forest[0]
    assert forest[1] > forest[2]
    assert forest.max() < 100


def test_user_imagery_gives_the_same_crops(write_raster):
    """The bundled mosaic, cut out and handed in as a user would."""
    bundled = Satellite(16, 1 / 15)
    with rasterio.open(bundled.layer.path) as src:
        window = rasterio.windows.from_bounds(0, 30, 30, 60, src.transform)
        cut = src.read(window=window)
    own = Satellite(16, 1 / 15, write_raster(cut, "own.tif", transform=Affine(1 / 15, 0, 0, 0, -1 / 15, 60)))
    lon, lat = random_places(40, 2, 32, 28, 58)
    difference = own.crops(lon, lat).astype(int) - bundled.crops(lon, lat)
    assert np.abs(difference).mean() < 3
    assert own.known(np.array([15.0, -15.0]), np.array([45.0, 45.0])).tolist() == [True, False]


@pytest.mark.parametrize(
    "west",
    [
        -180.0,
        0.0,
    ],
)
def test_user_imagery_of_the_whole_world(write_raster, west):
    """Imagery counted from 0 to 360 degrees shows the same places."""
    colour = np.zeros((3, 180, 360), np.uint8)
    lon = (west + np.arange(360) + 0.5 + 180) % 360 - 180
    colour[:, :, lon < -100] = 200
    own = Satellite(4, 1 / 15, write_raster(colour, west=west))
    assert own.crops(np.array([-120.0, 50.0]), np.array([10.0, 10.0])).mean((1, 2, 3)).tolist() == [200, 0]


@pytest.mark.parametrize(
    ("values", "profile"),
    [
        (np.zeros((1, 18, 36), np.uint8), {}),
        (np.zeros((4, 18, 36), np.uint8), {"photometric": "MINISBLACK", "alpha": "UNSPECIFIED"}),
        (np.zeros((3, 18, 36), np.uint16), {}),
        (np.zeros((3, 18, 36), np.float32), {}),
    ],
)
def test_imagery_must_be_rgb(write_raster, values, profile):
    with pytest.raises(LayerError, match=r"three 8-bit bands"):
        Satellite(16, 1 / 15, write_raster(values, cell=10.0, **profile))


def test_imagery_elsewhere_is_refused(write_raster):
    own = Satellite(16, 1 / 15, write_raster(np.ones((3, 20, 20), np.uint8), west=0.0, north=20.0))
    own.check(np.array([10.0, 100.0]), np.array([10.0, 10.0]))
    with pytest.raises(LayerError, match="does not overlap"):
        own.check(np.array([100.0, 110.0]), np.array([10.0, 10.0]))


# Files that cannot be used -----------------------------------------------------------------------


def test_missing_file(tmp_path):
    with pytest.raises(LayerError, match="does not exist"):
        RasterLayer(tmp_path / "none.tif")


def test_no_crs(write_raster):
    with pytest.raises(LayerError, match="no georeference"):
        RasterLayer(write_raster(np.ones((5, 5), np.uint8), crs=None))


def test_metres_that_say_they_are_degrees(write_raster):
    with pytest.raises(LayerError, match="georeference is wrong"):
        RasterLayer(write_raster(np.ones((5, 5), np.uint8), west=500_000.0, north=6_000_000.0, cell=1000.0))


def test_layer_wider_than_the_globe(write_raster):
    with pytest.raises(LayerError, match="degrees of longitude"):
        RasterLayer(write_raster(np.ones((10, 40), np.uint8), cell=10.0, west=-200.0))


@pytest.mark.parametrize("name", ["words.tif", "empty.tif", "header.tif", "a folder"])
def test_unreadable_file(write_raster, tmp_path, name):
    (tmp_path / "words.tif").write_text("these are words")
    (tmp_path / "empty.tif").write_bytes(b"")
    (tmp_path / "a folder").mkdir()
    whole = write_raster(RNG.random((90, 180)).astype(np.float32), "whole.tif", cell=2.0)
    (tmp_path / "header.tif").write_bytes(whole.read_bytes()[:40])
    with pytest.raises(LayerError, match="cannot be read") as caught:
        RasterLayer(tmp_path / name)
    assert name in str(caught.value)


def test_file_cut_in_the_middle_fails_where_it_is_cut(write_raster, tmp_path):
    whole = write_raster(
        RNG.random((256, 256)).astype(np.float32),
        "whole.tif",
        west=0.0,
        north=64.0,
        cell=0.25,
        tiled=True,
        blockxsize=64,
        blockysize=64,
        compress="deflate",
    )
    cut = tmp_path / "cut.tif"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size * 2 // 3])
    with pytest.raises(LayerError, match=r"cut\.tif' cannot be read"):
        values_at(RasterLayer(cut), *random_places(50, 1, 1, 63, 63))


@pytest.mark.parametrize("wrap", ["{}", "<!-- {pad} -->{}", "\n\n{}"])
def test_vrt_is_refused(write_raster, tmp_path, wrap):
    secret = write_raster(np.ones((5, 5), np.uint8), "secret.tif")
    vrt = (
        '<VRTDataset rasterXSize="5" rasterYSize="5"><SRS>EPSG:4326</SRS>'
        "<GeoTransform>0,1,0,5,0,-1</GeoTransform>"
        f'<VRTRasterBand dataType="Byte" band="1"><SimpleSource><SourceFilename>{secret}</SourceFilename>'
        "</SimpleSource></VRTRasterBand></VRTDataset>"
    )
    path = tmp_path / "harmless.tif"
    path.write_text(wrap.replace("{pad}", "x" * 6000).replace("{}", vrt))
    with pytest.raises(LayerError, match=r"VRT|cannot be read|format"):
        RasterLayer(path)


@pytest.mark.parametrize(
    "path", ["/vsicurl/http://localhost/x.tif", "http://localhost:1/x.tif", "/vsimem/x", "GTIFF_DIR:1:x"]
)
def test_addresses_are_not_files(path):
    with pytest.raises(LayerError, match="does not exist"):
        RasterLayer(path)


# The environment ---------------------------------------------------------------------------------


def flat(value, bands=1):
    return np.full((bands, 18, 36), value, np.float32)


@pytest.mark.parametrize(
    ("file", "descriptions", "finds"),
    [
        ("wc2.1_5m_bio_12.tif", [""], "bio12"),
        ("wc2.1_30s_bio_1.tif", [""], "bio1"),
        ("bio01.tif", [""], "bio1"),
        ("BIO_1.TIF", [""], "bio1"),
        ("CHELSA_bio1_1981-2010_V.2.1.tif", [""], "bio1"),
        ("europe-bio-12.tif", ["Band 1"], "bio12"),
        ("anything.tif", ["bio12: annual precipitation"], "bio12"),
        ("wc2.1_30s_elev.tif", [""], "elevation"),
        ("my_dem.tif", [""], "elevation"),
        ("bio100.tif", [""], None),
        ("symbio1.tif", [""], None),
        ("demography.tif", [""], None),
    ],
)
def test_variables_are_recognised(write_raster, file, descriptions, finds):
    path = write_raster(flat(7.0), file, cell=10.0, descriptions=descriptions)
    inputs = [Input("bio1"), Input("bio12"), Input("elevation")]
    if finds is None:
        with pytest.raises(LayerError, match="no band that this model reads"):
            Environment(inputs, [path])
        return
    environment = Environment(inputs, [path])
    assert environment.replaced == (finds,)
    row = environment.sample(np.array([10.0]), np.array([50.0]), standardise=False)[0]
    assert [i.layer for i, v in zip(inputs, row, strict=True) if v == 7.0] == [finds]


def test_file_of_nineteen_bands(write_raster):
    values = np.arange(1, 20, dtype=np.float32)[:, None, None] * np.ones((1, 18, 36), np.float32)
    path = write_raster(values, "all.tif", cell=10.0, descriptions=[f"wc2.1_10m_bio_{k}" for k in range(1, 20)])
    inputs = [Input(f"bio{k}") for k in (19, 1, 12, 7)]
    environment = Environment(inputs, [path])
    assert sorted(environment.replaced) == ["bio1", "bio12", "bio19", "bio7"]
    got = environment.sample(np.array([10.0, -170.0]), np.array([50.0, -20.0]), standardise=False)
    assert got.tolist() == [[19, 1, 12, 7]] * 2


def test_folder_of_files(write_raster, tmp_path):
    for k in (1, 12):
        write_raster(flat(k), f"climate/wc_bio_{k}.tif", cell=10.0)
    (tmp_path / "climate" / "readme.txt").write_text("not a raster")
    environment = Environment([Input("bio12"), Input("bio1")], [tmp_path / "climate"])
    assert sorted(environment.replaced) == ["bio1", "bio12"]
    assert environment.sample(np.array([0.0]), np.array([0.0]), standardise=False).tolist() == [[12, 1]]
    (tmp_path / "nothing").mkdir()
    with pytest.raises(LayerError, match="holds no raster"):
        Environment([Input("bio1")], [tmp_path / "nothing"])


def test_names_of_chelsa_files(write_raster):
    """CHELSA 1 names all its variables bio10: CHELSA_bio10_01.tif is bio1."""
    paths = [write_raster(flat(k), f"CHELSA_bio10_{k:02d}.tif", cell=10.0) for k in (1, 12)]
    environment = Environment([Input("bio1"), Input("bio12")], paths)
    assert environment.replaced == ("bio1", "bio12")
    found = environment.sample(np.array([5.0]), np.array([5.0]), standardise=False)
    assert found.tolist() == [[1.0, 12.0]]


def test_two_files_for_one_variable_are_refused(write_raster):
    paths = [write_raster(flat(k), f"{k}/bio_12.tif", cell=10.0) for k in (1, 2)]
    with pytest.raises(LayerError, match="bio12 is in both"):
        Environment([Input("bio12")], paths)


def test_a_folder_may_hold_variables_the_model_does_not_read(write_raster):
    """WorldClim comes with bio2 and bio3."""
    files = [write_raster(flat(k), f"wc/wc2.1_5m_bio_{k}.tif", cell=10.0) for k in (2, 12)]
    assert Environment([Input("bio12")], [files[0].parent]).replaced == ("bio12",)


def test_unknown_variable():
    with pytest.raises(LayerError, match="'humidity'"):
        Environment([Input("humidity")])


@pytest.mark.parametrize(
    ("item", "raw", "expected"),
    [
        (Input("x"), [3.0], [3.0]),
        (Input("x", mean=1.0, std=2.0), [3.0, 100.0, -100.0], [1.0, 5.0, -5.0]),
        (Input("x", "log1p"), [0.0, np.e - 1, -4.0], [0.0, 1.0, 0.0]),
        (Input("x", "land_km"), [1500.0, -300.0], [1.5, 0.0]),
        (Input("x", "sea_km"), [1500.0, -300.0], [0.0, -0.3]),
        (Input("x", "symlog"), [np.e - 1, 1 - np.e], [1.0, -1.0]),
        (Input("x", "class", 4), [4.0, 5.0, np.nan], [1.0, 0.0, np.nan]),
        (Input("x", "log1p"), [np.nan], [np.nan]),
    ],
)
def test_transforms(item, raw, expected):
    assert np.allclose(item.apply(np.array(raw, np.float32)), expected, rtol=1e-6, equal_nan=True)


def test_classes_become_shares(write_raster):
    path = write_raster(np.array([[4, 9]], np.uint8), "landcover.tif", west=0.0, north=1.0)
    environment = Environment([Input("landcover", "class", 4), Input("landcover", "class", 9)], [path])
    got = environment.sample(np.array([0.5, 1.0, 1.25]), np.full(3, 0.5), standardise=False)
    assert got.tolist() == [[1, 0], [0.5, 0.5], [0.25, 0.75]]


def test_surroundings_hold_the_rasters_of_the_user_as_far_as_they_reach(write_raster):
    """A warmer copy of the bundled layer moves the means around a place, in full inside it, and not at all far off."""
    with rasterio.open(folder("data") / "bioclim.tif") as src:
        window = rasterio.windows.Window(2160, 400, 480, 360)  # 0..40 E, 26.7..56.7 N
        stored, north = src.read(1, window=window), 90 - 400 / 12
    celsius = stored.astype(np.float32) * 0.1
    inputs = [Input("bio1"), *(Input(f"mean{km}km-bio1") for km in (100, 300, 900)), Input("mean100km-bio4")]
    lon, lat = np.array([20.0, 0.0, -60.0]), np.array([42.0, 42.0, 42.0])  # its middle, its western edge, far off
    before = Environment(inputs).sample(lon, lat, standardise=False)

    def change(values, name):
        mine = Environment(inputs, [write_raster(values, name, cell=1 / 12, west=0.0, north=north)])
        return mine, mine.sample(lon, lat, standardise=False) - before

    warmer, shift = change(celsius + 3, "bio1.tif")
    assert warmer.replaced == ("bio1",) and warmer.surroundings == tuple(f"mean{k}km-bio1" for k in (100, 300, 900))
    assert np.allclose(shift[0, :3], 3, atol=0.03)
    # Half of what lies around a place on the edge; 900 km also reach beyond the other edges.
    assert np.allclose(shift[1, 1:3], 1.5, atol=0.25) and 0.8 < shift[1, 3] < 1.5 < shift[0, 3] < 2.9
    assert np.abs(shift[2, 1:]).max() < 0.01 and (shift[:2, 4] == 0).all()
    _, none = change(celsius, "same/bio1.tif")
    assert np.abs(none[:2, 1:]).max() < 1e-4


@pytest.mark.parametrize("cell", [1 / 12, 1 / 6, 1.0])
def test_surroundings_of_a_global_raster_of_any_pixel_size(write_raster, cell):
    """A constant everywhere has that mean everywhere, on both sides of the antimeridian and near the poles."""
    rows = round(180 / cell)
    path = write_raster(np.full((rows, 2 * rows), 1100, np.int16), "bio12.tif", cell=cell)
    inputs = [Input("mean100km-bio12"), Input("mean300km-bio12")]
    lon, lat = np.array([-179.9, 179.9, 0.0, 33.0]), np.array([0.0, -17.0, 84.0, 51.0])
    got = Environment([*inputs, Input("bio12")], [path]).sample(lon, lat, standardise=False)
    assert np.allclose(got[:, :2], np.log1p(1100), atol=0.05) and (got[:, 2] == 1100).all()


def test_a_scenario_of_worldclim_has_nineteen_bands(write_raster):
    bands = np.stack([np.full((18, 36), k, np.float32) for k in range(1, 20)])
    inputs = [Input("bio1"), Input("bio12"), Input("bio19")]
    for name, described in (
        ("wc2.1_10m_bioc_MPI-ESM1-2-HR_ssp585_2061-2080.tif", ()),
        ("future.tif", [f"bio{k:02d}" for k in range(1, 20)]),
        ("other.tif", [f"wc2.1_10m_bioc_MPI-ESM1-2-HR_ssp585_2061-2080_{k}" for k in range(1, 20)]),
    ):
        path = write_raster(bands, name, cell=10.0, descriptions=described)
        environment = Environment(inputs, [path])
        assert environment.replaced == ("bio1", "bio12", "bio19"), name
        got = environment.sample(np.array([10.0]), np.array([40.0]), standardise=False)
        assert got.tolist() == [[1, 12, 19]]
    with pytest.raises(LayerError, match="no band that this model reads"):
        Environment(inputs, [write_raster(bands, "habitats.tif", cell=10.0)])


def test_missing_part_of_a_users_raster(write_raster):
    path = write_raster(np.full((10, 10), 7, np.float32), "bio1.tif", west=0.0, north=50.0)
    environment = Environment([Input("bio1"), Input("bio12")], [path])
    got = environment.sample(np.array([5.0, 20.0]), np.array([45.0, 45.0]), standardise=False)
    assert got[0, 0] == 7
    assert np.isnan(got[1, 0])
    assert np.isfinite(got[:, 1]).all()


@pytest.mark.parametrize(
    ("file", "value", "says"),
    [
        ("bio1.tif", 284.0, "not degrees Celsius"),  # kelvin
        ("bio1.tif", 125.0, "not degrees Celsius"),  # tenths
        ("bio6.tif", -200.0, "not degrees Celsius"),
        ("bio12.tif", -5.0, "not mm of rain"),
        ("bio12.tif", 90000.0, "not mm of rain"),
    ],
)
def test_wrong_units(write_raster, file, value, says):
    environment = Environment(
        [Input("bio1"), Input("bio6"), Input("bio12")], [write_raster(flat(value), file, cell=10.0)]
    )
    with pytest.raises(LayerError, match=says):
        environment.check(*random_places(50))


def test_right_units_pass(write_raster):
    environment = Environment([Input("bio1")], [write_raster(flat(12.5), "bio1.tif", cell=10.0)])
    environment.check(*random_places(50))


def test_environment_elsewhere_is_refused(write_raster):
    path = write_raster(np.ones((10, 10), np.float32), "bio1.tif", west=0.0, north=50.0)
    environment = Environment([Input("bio1")], [path])
    environment.check(np.array([5.0, 100.0]), np.array([45.0, 45.0]))
    with pytest.raises(LayerError, match=r"covers 0 40 10 50 .* does not overlap"):
        environment.check(np.array([100.0, 110.0]), np.array([45.0, 45.0]))


def test_bundled_climate_at_known_places():
    inputs = [Input("bio1"), Input("bio12"), Input("elevation")]
    lon, lat = np.array([-0.12, 25.0, -60.0, 86.92]), np.array([51.5, 23.0, -3.1, 27.99])
    t, rain, height = Environment(inputs).sample(lon, lat, standardise=False).T
    london, sahara, manaus, everest = range(4)
    assert 9 < t[london] < 13
    assert 500 < rain[london] < 900
    assert t[sahara] > 20
    assert rain[sahara] < 50
    assert 25 < t[manaus] < 30
    assert rain[manaus] > 1700
    assert t[everest] < 0
    assert height[everest] > 5500


# The land mask -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("place", "lon", "lat", "land", "sea"),
    [
        ("London", -0.12, 51.5, True, False),
        ("Denver", -105.0, 39.74, True, False),
        ("South Pole", 0.0, -89.9, True, False),
        ("mid Atlantic", -40.0, 30.0, False, True),
        ("Lake Superior", -87.5, 47.7, False, True),
        ("off Fiji, west of 180", 179.9, -25.0, False, True),
        ("Vanua Levu", 179.0, -16.65, True, False),
        ("off the globe", np.nan, np.nan, False, False),
    ],
)
def test_land_and_sea(place, lon, lat, land, sea):
    mask, lon, lat = LandMask(), np.array([[lon]]), np.array([[lat]])
    assert mask.keep("land", lon, lat).tolist() == [[land]], place
    assert mask.keep("sea", lon, lat).tolist() == [[sea]], place
    assert mask.keep("none", lon, lat).tolist() == [[land or sea]], place


def counted_land(lon, lat, width, height):
    """Share of land among the cells of the mask with their centre in a box, read one by one."""
    with rasterio.open(folder("data") / "landmask.tif") as src:
        rows = np.flatnonzero(np.abs(90 - (np.arange(src.height) + 0.5) / 48 - lat) < height / 2)
        centres = -180 + (np.arange(src.width) + 0.5) / 48
        cols = np.flatnonzero(np.abs((centres - lon + 180) % 360 - 180) < width / 2)
        return (src.read(1)[np.ix_(rows, cols)] == 1).mean()


@pytest.mark.parametrize(
    ("lon", "lat", "size", "within"),
    [
        (-3.021, 53.413, (0.13, 0.11), 0.0),
        (179.97, -16.52, (0.2, 0.17), 0.0),  # both sides of the antimeridian
        (12.51, 55.52, (1.003, 1.003), 0.015),  # in cells of 5'
        (-180.0, 68.2, (2.0, 2.0), 0.02),
    ],
)
def test_share_of_land_is_that_of_the_cells_in_the_box(lon, lat, size, within):
    around = np.linspace(-20, 20, 7)  # a box has the same share, whatever is asked with it
    alone = LandMask().land_share(np.array([lon]), np.array([lat]), size)[0]
    assert LandMask().land_share(np.append(lon, lon + around), np.append(lat, lat + around), size)[0] == alone
    expected = counted_land(lon, lat, *size)
    assert 0.02 < expected < 0.98 and abs(alone - expected) <= within


def test_a_pixel_of_the_coast_is_land_and_sea():
    mask, lon, lat = LandMask(), np.array([-9.9, -9.5, -7.5, np.nan]), np.array([39.0, 39.0, 39.0, 39.0])
    share = mask.land_share(lon, lat, (0.5, 0.5))
    assert share[0] < 0.1 < share[1] < 0.9 and share[2] > 0.95 and np.isnan(share[3])
    kept = {kind: mask.keep_pixels(kind, lon, lat, (0.5, 0.5), 0.1).tolist() for kind in ("land", "sea", "none")}
    assert kept["land"] == [False, True, True, False] and kept["sea"] == [True, True, False, False]
    assert kept["none"] == [True, True, True, False]
    assert mask.keep_pixels("land", lon, lat, (0.5, 0.5), 0.9).tolist() == [False, False, True, False]
    assert mask.keep_pixels("land", lon, lat, (0.5, 0.5), 0.0).tolist() == (share > 0).tolist()
