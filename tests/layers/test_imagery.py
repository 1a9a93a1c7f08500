"""Satellite crops from files: where each pixel lies, against PROJ; what is averaged, masked, mosaicked, refused."""

import concurrent.futures
import pickle

import numpy as np
import pyproj
import pytest
import rasterio
from affine import Affine
from rasterio.enums import ColorInterp

from sdm.errors import LayerError, TooLargeError
from sdm.layers.imagery import Imagery, open_imagery

RNG = np.random.default_rng(3)


def east_north(lon, lat, lon0, lat0):
    """Metres east and north of a place on the plane touching the Earth there, by PROJ."""
    pipeline = (
        "+proj=pipeline +step +proj=unitconvert +xy_in=deg +xy_out=rad +step +proj=cart +ellps=WGS84 "
        f"+step +proj=topocentric +ellps=WGS84 +lon_0={lon0} +lat_0={lat0} +h_0=0"
    )
    east, north, _ = pyproj.Transformer.from_pipeline(pipeline).transform(lon, lat, np.zeros_like(lon))
    return east, north


def ramp(path, crs, lon, lat, cell, side, turned=0.0):
    """A float raster around a place whose bands are metres east, metres north, and 0."""
    to_crs = pyproj.Transformer.from_crs("EPSG:4326", crs, always_xy=True)
    x, y = to_crs.transform(lon, lat)
    rows, cols = (side, side) if np.isscalar(side) else side
    a, b = cell * np.cos(np.radians(turned)), cell * np.sin(np.radians(turned))
    transform = Affine(a, b, x - (a * cols + b * rows) / 2, b, -a, y - (b * cols - a * rows) / 2)
    c, r = np.meshgrid(np.arange(cols) + 0.5, np.arange(rows) + 0.5)
    x, y = transform.a * c + transform.b * r + transform.c, transform.d * c + transform.e * r + transform.f
    there = to_crs.transform(x, y, direction="INVERSE")
    east, north = east_north(*there, lon, lat)
    write(path, np.stack([east, north, np.zeros_like(east)]).astype(np.float32), transform, crs)
    return path


def write(path, values, transform, crs, **profile):
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        count=len(values),
        height=values.shape[1],
        width=values.shape[2],
        dtype=values.dtype,
        crs=crs,
        transform=transform,
        **profile,
    ) as dst:
        dst.write(values)
    return path


def flat(path, colour, west, north, cell, side, crs="EPSG:32633", **profile):
    """One colour over a square."""
    values = np.empty((len(colour), side, side), np.uint8)
    values[:] = np.reshape(colour, (-1, 1, 1))
    return write(path, values, Affine(cell, 0, west, 0, -cell, north), crs, **profile)


def crop_at(spec, lon, lat, **options):
    """One crop as float, and whether it is known."""
    crops, known = open_imagery(spec, **options).read(np.array([lon]), np.array([lat]))
    return crops[0].astype(float), bool(known[0])


# Where a pixel lies --------------------------------------------------------------------------------

PLACES = [
    ("EPSG:32633", 14.0, 50.0, 10.0, 400, 0.0),
    ("EPSG:32633", 10.5, 70.0, 10.0, 420, 0.0),
    ("EPSG:32633", 14.0, 50.0, 10.0, 560, 33.0),  # turned geotransform
    ("EPSG:32733", 18.9, -33.9, 20.0, 200, 180.0),  # south up
    ("EPSG:3857", -120.0, 60.0, 20.0, 400, 0.0),
    ("EPSG:3857", 7.0, -80.0, 40.0, 480, 0.0),
    ("EPSG:4326", 30.0, 60.0, 8.98e-5, (400, 800), 0.0),
    ("EPSG:4326", 30.0, 85.0, 8.98e-5, (400, 4600), 0.0),
    ("EPSG:3413", 20.0, 88.0, 10.0, 560, 0.0),
    ("EPSG:3413", 20.0, 89.999, 10.0, 560, 0.0),
    ("EPSG:3031", 100.0, -75.0, 10.0, 560, 0.0),
    ("EPSG:32660", 179.9999, 52.0, 10.0, 420, 0.0),
    ("EPSG:32633", 14.0, 50.0, 2.5, 1600, 0.0),
    ("EPSG:32633", 14.0, 50.0, 37.0, 110, 12.0),
    ("EPSG:2056", 8.2, 46.8, 10.0, 420, 0.0),  # another datum
]


@pytest.mark.parametrize(
    ("crs", "lon", "lat", "cell", "side", "turned"), PLACES, ids=lambda v: v if isinstance(v, str) else ""
)
def test_pixels_lie_where_they_say(tmp_path, crs, lon, lat, cell, side, turned):
    path = ramp(tmp_path / "ramp.tif", crs, lon, lat, cell, side, turned)
    offset = (np.arange(256) - 127.5) * 10.0  # of pixel centres, metres
    # In the middle and at all four rims to 1.5 m, of which 0.8 m are the eight bits of this narrow scale.
    for low, cols, rows in (
        (-100, slice(120, 136), slice(120, 136)),
        (1150, slice(245, 256), slice(0, 11)),
        (-1350, slice(0, 11), slice(245, 256)),
    ):
        crop, known = crop_at(f"{path}#scale={low},{low + 200}", lon, lat)
        assert known
        metres = crop / 255 * 200 + low
        assert np.abs(metres[:, cols, 0] - offset[cols])[rows if low == -100 else slice(None)].max() < 1.5
        assert np.abs(metres[rows, :, 1] + offset[rows][:, None])[:, cols if low == -100 else slice(None)].max() < 1.5


def test_pitch_and_size(tmp_path):
    path = ramp(tmp_path / "ramp.tif", "EPSG:32633", 14.0, 50.0, 10.0, 400)
    crop, known = crop_at(f"{path}#scale=-600,600", 14.0, 50.0, pitch=25.0, size=32)
    assert known
    assert crop.shape == (32, 32, 3)
    metres = crop / 255 * 1200 - 600
    assert np.abs(metres[..., 0] - (np.arange(32) - 15.5) * 25.0).max() < 5.0  # 4.7 m to a level


def globe(path, west=-180.0, crs="EPSG:4326"):
    """The whole globe, its colours smooth and without a seam: 1800 x 3600 cells."""
    lat, lon = np.meshgrid(89.95 - np.arange(1800) * 0.1, west + 0.05 + np.arange(3600) * 0.1, indexing="ij")
    write(path, colour_of(lon, lat), Affine(0.1, 0, west, 0, -0.1, 90.0), crs)
    return path


def colour_of(lon, lat):
    """(3, ...) uint8 of a position on the globe."""
    a, b = np.radians(lon), np.radians(lat)
    vector = (np.cos(a) * np.cos(b), np.sin(a) * np.cos(b), np.sin(b))
    return np.rint(127.5 + 127.0 * np.stack(vector)).astype(np.uint8)


@pytest.mark.parametrize("west", [-180.0, 0.0, -30.0])
def test_a_global_raster_has_no_seam(tmp_path, west):
    """Crops of 128 km: over the antimeridian, over the seam of 0..360, near and on the poles."""
    imagery = open_imagery(globe(tmp_path / "g.tif", west), pitch=1000.0, size=128)
    lon = np.array([180.0, -180.0, 179.5, -179.9, 0.0, -30.0, -170.0])
    lat = np.array([10.0, -40.0, 60.0, 75.0, 0.0, 45.0, -81.0])
    crops, known = imagery.read(lon, lat)
    assert known.all()
    offset = (np.arange(128) - 63.5) * 1000.0
    for k in range(lon.size):
        east, north = np.meshgrid(offset, -offset)
        pipeline = (
            f"+proj=pipeline +step +inv +proj=topocentric +ellps=WGS84 +lon_0={lon[k]} +lat_0={lat[k]} +h_0=0 "
            "+step +inv +proj=cart +ellps=WGS84 +step +proj=unitconvert +xy_in=rad +xy_out=deg"
        )
        x, y, _ = pyproj.Transformer.from_pipeline(pipeline).transform(east, north, np.zeros_like(east))
        expected = np.moveaxis(colour_of(x, y), 0, 2).astype(float)
        assert np.abs(crops[k] - expected).max() <= 2, (lon[k], lat[k])


def test_web_mercator_across_the_antimeridian(tmp_path):
    """Two files, one on either side of 180, as tiles of a mosaic are."""
    to_mercator = pyproj.Transformer.from_crs("EPSG:4326", "EPSG:3857", always_xy=True)
    edge, y = to_mercator.transform(180.0, 55.0)
    side, cell = 300, 20.0
    for name, west in (("a.tif", edge - side * cell), ("b.tif", -edge)):
        c, r = np.meshgrid(np.arange(side) + 0.5, np.arange(side) + 0.5)
        x = west + c * cell
        lon, lat = to_mercator.transform(x, y + (side / 2 - r) * cell, direction="INVERSE")
        east, north = east_north(lon, lat, 180.0, 55.0)
        values = np.stack([east, north, 0 * east]).astype(np.float32)
        write(tmp_path / "m" / name, values, Affine(cell, 0, west, 0, -cell, y + side / 2 * cell), "EPSG:3857")
    for lon in (180.0, -180.0):
        crop, known = crop_at(f"{tmp_path / 'm'}#scale=-1500,1500", lon, 55.0)
        assert known
        metres = crop / 255 * 3000 - 1500
        error = metres[..., 0] - (np.arange(256) - 127.5) * 10.0
        assert np.abs(error).max() < 12.0  # at the seam the outermost half cell repeats


def test_a_crop_is_the_same_in_any_company(tmp_path):
    values = RNG.integers(0, 256, (3, 900, 900)).astype(np.uint8)
    x, y = pyproj.Transformer.from_crs("EPSG:4326", "EPSG:32633", always_xy=True).transform(14.0, 50.0)
    path = write(tmp_path / "a.tif", values, Affine(10, 0, x - 4500, 0, -10, y + 4500), "EPSG:32633", tiled=True)
    lon, lat = 14.0 + RNG.uniform(-0.05, 0.05, 40), 50.0 + RNG.uniform(-0.04, 0.04, 40)
    imagery = open_imagery(path)
    together, known = imagery.read(lon, lat)
    assert np.array_equal(imagery.known(lon, lat), known)
    for k in range(0, 40, 7):
        assert np.array_equal(imagery.crops(lon[k : k + 1], lat[k : k + 1])[0], together[k])
    again = pickle.loads(pickle.dumps(imagery))
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        single = list(pool.map(lambda k: again.crops(lon[k : k + 1], lat[k : k + 1])[0], range(40)))
    assert np.array_equal(np.stack(single), together)
    blocks = list(imagery.in_blocks(lon, lat, block=16))
    assert [b[0] for b in blocks] == [slice(0, 16), slice(16, 32), slice(32, 48)]
    assert np.array_equal(np.concatenate([b[1] for b in blocks]), together)


# Averages ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("overviews", [False, True])
@pytest.mark.parametrize("factor", [2, 5, 20])
def test_finer_sources_are_averaged_by_area(tmp_path, factor, overviews):
    """Against exact block means; the place is on the central meridian, where grid and crop agree to 0.05 pixel."""
    blocks = 40
    fine = RNG.integers(0, 256, (3, blocks * factor, blocks * factor)).astype(np.uint8)
    # Smooth across blocks, so that the last twentieth of a pixel does not matter.
    smooth = np.linspace(0, 120, blocks * factor)
    fine = (0.5 * fine + smooth).astype(np.uint8)
    x, y = pyproj.Transformer.from_crs("EPSG:4326", "EPSG:32633", always_xy=True).transform(15.0, 50.0)
    half = blocks * 5.0
    path = write(
        tmp_path / "fine.tif",
        fine,
        Affine(10 / factor, 0, x - half, 0, -10 / factor, y + half),
        "EPSG:32633",
        tiled=True,
        blockxsize=128,
        blockysize=128,
    )
    if overviews:
        with rasterio.open(path, "r+") as dst:
            dst.build_overviews([2, 4, 8], rasterio.enums.Resampling.average)
    crop, known = crop_at(path, 15.0, 50.0, size=32)
    assert known
    expected = fine.reshape(3, blocks, factor, blocks, factor).mean(axis=(2, 4))[:, 4:-4, 4:-4]
    error = np.moveaxis(crop, 2, 0) - expected
    assert abs(error.mean()) < 0.6
    # A sample instead of a mean would be off by about 35.
    assert error.std() < 4.0


@pytest.mark.parametrize("turned", [30.0, 45.0, 90.0])
def test_finer_sources_are_averaged_though_turned(tmp_path, turned):
    """A chessboard of 2.5 m seen at 10 m is grey; samples of it would be black and white."""
    path = ramp(tmp_path / "a.tif", "EPSG:32633", 14.0, 50.0, 2.5, 600, turned)
    board = np.broadcast_to((np.indices((600, 600)).sum(axis=0) % 2 * 250).astype(np.float32), (3, 600, 600))
    with rasterio.open(path, "r+") as dst:
        dst.write(board)
    crop, known = crop_at(f"{path}#scale=0,255", 14.0, 50.0, size=64)
    assert known
    assert np.abs(crop - 125).max() < 30
    assert crop.std() < 10


def test_coarser_sources_are_interpolated(tmp_path):
    values = np.zeros((3, 40, 40), np.uint8)
    values[:, :, 20:] = 200
    x, y = pyproj.Transformer.from_crs("EPSG:4326", "EPSG:32633", always_xy=True).transform(15.0, 50.0)
    path = write(tmp_path / "coarse.tif", values, Affine(100, 0, x - 2000, 0, -100, y + 2000), "EPSG:32633")
    crop, _ = crop_at(path, 15.0, 50.0)
    # From the centre of one cell to that of the next, 10 pixels, in steps of 20.
    row = crop[128, :, 0]
    assert row[:122].max() == 0
    assert row[134:].min() == 200
    assert np.abs(np.diff(row[123:133]) - 20).max() <= 1.5


# What is there -------------------------------------------------------------------------------------


def test_first_by_name_wins_and_gaps_are_filled(tmp_path):
    x, y = pyproj.Transformer.from_crs("EPSG:4326", "EPSG:32633", always_xy=True).transform(14.0, 50.0)
    folder = tmp_path / "scenes"
    # b has a hole (nodata) south of the place, a lies further east, c fills what is left, in another CRS.
    b = np.full((3, 300, 300), 90, np.uint8)
    b[:, 150:] = 0
    write(folder / "b.tif", b, Affine(10, 0, x - 1500, 0, -10, y + 1500), "EPSG:32633", nodata=0)
    flat(folder / "a.tif", (10, 20, 30), x + 500, y + 1500, 10.0, 300)
    ramp_x, ramp_y = pyproj.Transformer.from_crs("EPSG:4326", "EPSG:3857", always_xy=True).transform(14.0, 50.0)
    flat(folder / "c.TIF", (200, 201, 202), ramp_x - 4000, ramp_y + 4000, 16.0, 500, "EPSG:3857")
    (folder / "readme.txt").write_text("not a raster")
    imagery = open_imagery(folder)
    crop = imagery.crops(np.array([14.0]), np.array([50.0]))[0]
    assert crop[40, 40].tolist() == [90, 90, 90]
    assert crop[40, 240].tolist() == [10, 20, 30]
    assert crop[200, 40].tolist() == [200, 201, 202]
    assert crop[200, 240].tolist() == [10, 20, 30]
    assert sorted(np.unique(crop.reshape(-1, 3), axis=0).tolist()) == [[10, 20, 30], [90, 90, 90], [200, 201, 202]]
    assert "3 rasters" in imagery.describe()


@pytest.mark.parametrize("kind", ["nodata", "alpha", "mask", "nan", "edge"])
def test_what_is_masked_is_not_known(tmp_path, kind):
    x, y = pyproj.Transformer.from_crs("EPSG:4326", "EPSG:32633", always_xy=True).transform(14.0, 50.0)
    place = Affine(10, 0, x - 2000, 0, -10, y + 2000)
    there = np.zeros((400, 400), bool)
    there[:, :220] = True  # up to 200 m east of the place
    values = np.where(there, np.reshape([100, 150, 200], (3, 1, 1)), 0).astype(np.uint8)
    path, scale = tmp_path / "a.tif", ""
    if kind == "nodata":
        write(path, values, place, "EPSG:32633", nodata=0)
    elif kind == "alpha":
        write(
            path,
            np.concatenate([values, there[None] * np.uint8(255)]),
            place,
            "EPSG:32633",
            photometric="RGB",
            alpha="YES",
        )
    elif kind == "mask":
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
            write(path, values, place, "EPSG:32633")
            with rasterio.open(path, "r+") as dst:
                dst.write_mask(there)
    elif kind == "nan":
        write(path, np.where(there, values, np.nan).astype(np.float32), place, "EPSG:32633")
        scale = "#scale=0,255"
    else:
        write(path, values[:, :, :220], place, "EPSG:32633")
    imagery = open_imagery(f"{path}{scale}")
    shift = np.degrees(np.array([-300, 0, 180, 220, 300]) / (6.378e6 * np.cos(np.radians(50.0))))
    lon, lat = 14.0 + shift, np.full(5, 50.0)
    crops, known = imagery.read(lon, lat)
    assert known.tolist() == [True, True, True, False, False]
    assert imagery.known(lon, lat).tolist() == known.tolist()
    # A known crop has no black in it: what is missing takes the mean of the rest.
    assert np.abs(crops[:3].astype(int) - [100, 150, 200]).max() <= 1
    assert not crops[3:].any()


def test_places_that_are_nowhere(tmp_path):
    imagery = open_imagery(globe(tmp_path / "g.tif"), pitch=1000.0, size=16)
    crops, known = imagery.read(np.array([np.nan, 5.0, 5.0, 5.0]), np.array([0.0, np.inf, 90.5, 0.0]))
    assert known.tolist() == [False, False, False, True]
    assert not crops[:3].any()
    assert imagery.read(np.array([]), np.array([]))[0].shape == (0, 16, 16, 3)


def test_check_sees_whether_a_map_is_covered(tmp_path):
    x, y = pyproj.Transformer.from_crs("EPSG:4326", "EPSG:32660", always_xy=True).transform(179.99, 52.0)
    path = flat(tmp_path / "a.tif", (1, 2, 3), x - 4000, y + 4000, 10.0, 800, "EPSG:32660")
    imagery = open_imagery(path)
    imagery.check(np.array([0.0, 179.98]), np.array([0.0, 52.0]))
    imagery.check(np.array([-179.97]), np.array([52.0]))
    with pytest.raises(LayerError, match=r"covers .* does not overlap the map"):
        imagery.check(np.array([178.0, 0.0]), np.array([52.0, 52.0]))


# Values --------------------------------------------------------------------------------------------


def test_sixteen_bits_need_a_scale(tmp_path):
    x, y = pyproj.Transformer.from_crs("EPSG:4326", "EPSG:32633", always_xy=True).transform(14.0, 50.0)
    values = np.empty((4, 400, 400), np.uint16)
    values[:] = np.reshape([3100, 600, 1500, 2400], (4, 1, 1))  # near infrared, blue, green, red
    path = write(
        tmp_path / "s2.tif", values, Affine(10, 0, x - 2000, 0, -10, y + 2000), "EPSG:32633", photometric="MINISBLACK"
    )
    with pytest.raises(LayerError, match="does not say which are red"):
        open_imagery(path)
    with pytest.raises(LayerError, match=r"uint16, not 8-bit.*#scale=0,3000"):
        open_imagery(f"{path}#bands=4,3,2")
    for spec in (
        f"{path}#bands=4,3,2&scale=0,3000",
        f"{path}?bands=4,3,2&scale=0,3000",
        f"{path}?scale=0,3000#bands=4,3,2",
    ):
        crop, known = crop_at(spec, 14.0, 50.0)
        assert known
        assert crop[128, 128].tolist() == [204, 128, 51]  # 2400, 1500, 600 of 3000 (127.5 to even)
    assert "0 to 3000" in open_imagery(f"{path}#bands=4,3,2&scale=0,3000").describe()
    with pytest.raises(LayerError, match=r"bands 1\.\.4"):
        open_imagery(f"{path}#bands=4,3,7&scale=0,3000")


def test_bands_are_found_by_their_meaning(tmp_path):
    x, y = pyproj.Transformer.from_crs("EPSG:4326", "EPSG:32633", always_xy=True).transform(14.0, 50.0)
    path = flat(tmp_path / "a.tif", (30, 20, 10), x - 2000, y + 2000, 10.0, 400)
    with rasterio.open(path, "r+") as dst:
        dst.colorinterp = [ColorInterp.blue, ColorInterp.green, ColorInterp.red]
    assert crop_at(path, 14.0, 50.0)[0][0, 0].tolist() == [10, 20, 30]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda p: p.write_text("<VRTDataset rasterXSize='1'/>"), "is a VRT"),
        (lambda p: p.write_text("hello"), "no format that is read"),
        (lambda p: p.write_bytes(b"II*\0" + bytes(100)), "cannot be read as a raster"),
        (lambda p: write(p, np.zeros((3, 9, 9), np.uint8), Affine(1, 0, 5, 0, -1, 5), None), "no georeference"),
        (lambda p: write(p, np.zeros((1, 9, 9), np.uint8), Affine(1, 0, 5, 0, -1, 5), "EPSG:4326"), "1 band"),
        (lambda p: None, "does not exist"),
        (lambda p: p.mkdir(), "holds no raster"),
    ],
    ids=["vrt", "text", "broken", "nowhere", "grey", "missing", "empty"],
)
def test_files_that_are_refused(tmp_path, make, words):
    path = tmp_path / "a.tif"
    make(path)
    with pytest.raises(LayerError, match=words):
        open_imagery(path)


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("scale=5,5", "first smaller"),
        ("scale=0", "2 numbers"),
        ("scale=0,inf", "2 numbers"),
        ("bands=1,2", "3 numbers"),
        ("colour=1", "known: scale"),
        ("maxzoom=99", "0 to 24"),
        ("tilesize=-1", "64 to 1024"),
    ],
)
def test_options_that_are_refused(tmp_path, option, words):
    path = flat(tmp_path / "a.tif", (1, 2, 3), 0, 0, 10.0, 4)
    with pytest.raises(LayerError, match=words):
        open_imagery(f"{path}#{option}")


def test_sizes_that_are_refused(tmp_path):
    path = flat(tmp_path / "a.tif", (1, 2, 3), 0, 0, 10.0, 4)
    for bad in ({"size": 255}, {"size": 0}, {"size": 100_000}, {"pitch": 0.0}, {"pitch": float("nan")}):
        with pytest.raises(LayerError, match="cannot be cut"):
            open_imagery(path, **bad)
    with pytest.raises(TooLargeError, match="in blocks"):
        open_imagery(path).read(np.zeros(20_000), np.zeros(20_000))


def test_fingerprint_follows_content_and_reading(tmp_path):
    a = open_imagery(flat(tmp_path / "a.tif", (1, 2, 3), 0, 0, 10.0, 4))
    copy = tmp_path / "copy.tif"
    copy.write_bytes((tmp_path / "a.tif").read_bytes())
    assert open_imagery(copy).fingerprint() == a.fingerprint()
    assert open_imagery(f"{copy}#bands=3,2,1").fingerprint() != a.fingerprint()
    assert open_imagery(copy, pitch=20.0).fingerprint() != a.fingerprint()
    flat(copy, (1, 2, 4), 0, 0, 10.0, 4)
    assert open_imagery(copy).fingerprint() != a.fingerprint()
    assert isinstance(a, Imagery)


def test_attribution(tmp_path):
    path = flat(tmp_path / "a.tif", (1, 2, 3), 0, 0, 10.0, 4)
    assert open_imagery(path).attribution == ""
    with rasterio.open(path, "r+") as dst:
        dst.update_tags(TIFFTAG_COPYRIGHT="swisstopo")
    assert open_imagery(path).attribution == "swisstopo"
    assert open_imagery(f"{path}#attribution=Me%20%26%20you").attribution == "Me & you"
