"""Boxes, regions, pixel grids, tiles, and where a pixel lies on the globe."""

import concurrent.futures
import itertools
import math
import pickle
import tracemalloc

import geopandas
import numpy as np
import pyproj
import pytest
import shapely
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sdm.errors import BoxError, LayerError, RequestError, SdmError, TooLargeError
from sdm.grid import BBox, Grid, Region, Tile, _outline, make_grid, wrap_longitude

NAN, INF = float("nan"), float("inf")
ALASKA = shapely.MultiPolygon([shapely.box(-180, 51, -140, 70), shapely.box(172, 51, 180, 53)])


def all_pixels(grid):
    return np.arange(grid.shape[0]), np.arange(grid.shape[1])


def whole(grid):
    rows, cols = grid.shape
    return Tile((0, 0), slice(0, rows), slice(0, cols))


# Boxes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("box", "says"),
    [
        ((5, 10, 10, 0), "south 10 is greater than north 0"),
        ((5, 5, 5, 10), "encloses no area"),
        ((5, 5, 10, 5), "encloses no area"),
        ((180, 0, -180, 10), "encloses no area"),
        ((NAN, 0, 1, 1), "west is nan"),
        ((0, NAN, 1, 1), "south is nan"),
        ((0, 0, INF, 1), "east is inf"),
        ((0, 0, 1, -INF), "north is -inf"),
        ((-181, 0, 1, 1), "west -181 is outside -180..180"),
        ((0, 0, 190, 1), "east 190 is outside -180..180"),
        ((0, -91, 1, 1), "south -91 is outside -90..90"),
        ((0, 0, 1, 90.001), "north 90.001 is outside -90..90"),
        (("west", 0, 1, 1), "west 'west' is not a number"),
        ((None, 0, 1, 1), "west 'None' is not a number"),
        (([1], 0, 1, 1), "is not a number"),
    ],
)
def test_bad_box_is_named(box, says):
    with pytest.raises(BoxError, match=r"bbox") as caught:
        BBox(*box)
    assert says in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("box", [(0, 0, 1), (0, 0, 1, 1, 2), ()])
def test_box_of_wrong_length(box):
    with pytest.raises(BoxError, match=f"bbox has {len(box)} numbers"):
        make_grid(box)


def test_numbers_as_text_are_numbers():
    assert BBox("1", "2", "3", "4").as_tuple() == (1.0, 2.0, 3.0, 4.0)


def test_box_across_the_antimeridian():
    box = BBox(170, -20, -170, -10)
    assert box.crosses_antimeridian
    assert box.width == 20.0
    assert box.unwrapped_east == 190.0
    assert _outline(box).bounds == (170.0, -20.0, 190.0, -10.0)
    assert not BBox(-170, -20, 170, -10).crosses_antimeridian


# Pixel grids in degrees --------------------------------------------------------------------------


def test_grid_of_the_bear():
    grid = make_grid((-170, 48, -100, 72), resolution=0.05)
    assert grid.shape == (480, 1400)
    assert tuple(grid.geobox.affine)[:6] == (0.05, 0.0, -170.0, 0.0, -0.05, 72.0)
    assert grid.crs == "EPSG:4326"
    assert grid.bbox == (-170.0, 48.0, -100.0, 72.0)
    assert grid.pixels == 672_000


def test_grid_covers_the_box_by_less_than_a_pixel_more():
    grid = make_grid((0.03, 10.02, 1.01, 11.07), resolution=0.1)
    assert np.allclose(grid.geobox.boundingbox.bbox, (0.0, 10.0, 1.1, 11.1))
    assert grid.shape == (11, 11)


@pytest.mark.parametrize("resolution", [0.05, 0.1, 1 / 12, 1 / 3, 0.07, 0.25])
def test_neighbouring_boxes_share_pixels(resolution):
    left = make_grid((-125.03, 31, -110, 49), resolution=resolution)
    right = make_grid((-118.01, 20.2, -100, 40), resolution=resolution)
    x_left, y_left = left.xy(*all_pixels(left))
    x_right, y_right = right.xy(*all_pixels(right))
    for a, b in ((x_left[0], x_right[0]), (y_left[:, 0], y_right[:, 0])):
        offset = (b[0] - a[0]) / resolution
        assert abs(offset - round(offset)) < 1e-6


def test_antimeridian_grid_runs_on_and_positions_wrap():
    grid = make_grid((170, -20, -170, -10), resolution=0.5)
    assert grid.shape == (20, 40)
    assert grid.geobox.boundingbox.bbox == (170.0, -20.0, 190.0, -10.0)
    lon, lat = grid.lonlat(*all_pixels(grid))
    assert np.allclose(lon[0, [0, 19, 20, 39]], [170.25, 179.75, -179.75, -170.25])
    assert np.allclose(lat[[0, -1], 0], [-10.25, -19.75])


def test_grid_past_the_pole_is_off_the_globe():
    grid = make_grid((0, 89, 3, 90), resolution=0.35)
    lon, lat = grid.lonlat(*all_pixels(grid))
    y = grid.xy(*all_pixels(grid))[1]
    assert (y > 90).any()
    assert np.array_equal(np.isnan(lat), y > 90)
    assert np.array_equal(np.isnan(lon), y > 90)


@given(st.floats(-1e4, 1e4))
@example(180.0)
@example(-180.0)
@example(-180.00000000000003)
@example(540.0)
def test_wrapped_longitude_is_the_same_meridian(lon):
    wrapped = float(wrap_longitude(np.array(lon)))
    assert -180.0 <= wrapped < 180.0
    assert math.isclose(math.cos(math.radians(wrapped)), math.cos(math.radians(lon)), abs_tol=1e-9)
    assert math.isclose(math.sin(math.radians(wrapped)), math.sin(math.radians(lon)), abs_tol=1e-9)
    if -180.0 <= lon < 180.0:
        assert wrapped == lon


@pytest.mark.parametrize(
    ("box", "crs", "expected"),
    [
        ((-180, -90, 180, 90), "EPSG:4326", 0.25),  # 1440 x 720; 0.2 would be 1800 x 900
        ((-170, 48, -100, 72), "EPSG:4326", 0.05),
        ((0, 0, 1, 1), "EPSG:4326", 0.01),  # never finer than 0.01 degree
        ((24, 60, 25, 61), "EPSG:3035", 1000.0),  # never finer than 1 km
    ],
)
def test_default_resolution(box, crs, expected):
    assert make_grid(box, crs=crs).resolution == expected


@given(st.floats(-180, 179), st.floats(-60, 59), st.floats(0.2, 360), st.floats(0.2, 60))
@settings(max_examples=60, deadline=None)
def test_default_resolution_is_the_finest_round_number_that_fits(west, south, width, height):
    east, north = min(west + width, 180.0), min(south + height, 90.0)
    grid = make_grid((west, south, east, north))
    mantissa = grid.resolution / 10.0 ** math.floor(math.log10(grid.resolution) + 1e-9)
    assert min(abs(mantissa - m) for m in (1, 2, 2.5, 5)) < 1e-9
    assert math.ceil((east - west) / grid.resolution) * math.ceil((north - south) / grid.resolution) <= 1_100_000
    rank = {1: 0.5, 2: 0.5, 2.5: 0.8, 5: 0.5}[min((1, 2, 2.5, 5), key=lambda m: abs(m - mantissa))]
    finer = grid.resolution * rank
    if finer >= 0.0099:
        assert math.ceil((east - west) / finer) * math.ceil((north - south) / finer) > 1_100_000


@pytest.mark.parametrize("resolution", [0, -1, NAN, INF, -INF, "fine", [1]])
def test_resolution_must_be_a_positive_number(resolution):
    with pytest.raises(RequestError, match="resolution"):
        make_grid((0, 0, 10, 10), resolution=resolution)


@pytest.mark.parametrize("resolution", [1e300, 25.0])
def test_resolution_larger_than_the_map(resolution):
    with pytest.raises(RequestError, match="larger than the whole map"):
        make_grid((0, 0, 10, 10), resolution=resolution)


@pytest.mark.parametrize("resolution", [1e-5, 1e-12, 1e-300, 5e-324])
def test_too_many_pixels_is_refused_before_memory(resolution):
    tracemalloc.start()
    try:
        with pytest.raises(TooLargeError, match="--max-pixels") as caught:
            make_grid((-180, -90, 180, 90), resolution=resolution)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2_000_000
    assert caught.value.exit_code == 7


def test_max_pixels_is_exact():
    assert make_grid((0, 0, 1, 1), resolution=0.1, max_pixels=100).pixels == 100
    with pytest.raises(TooLargeError, match="100 pixels"):
        make_grid((0, 0, 1, 1), resolution=0.1, max_pixels=99)


@pytest.mark.parametrize("size", [0, 15, 8193, -256, NAN, 16.5, "256"])
def test_tile_size_out_of_bounds(size):
    with pytest.raises(RequestError, match="tile size"):
        make_grid((0, 0, 1, 1), tile_size=size)


def test_box_or_region_not_both():
    with pytest.raises(RequestError, match="either a bbox"):
        make_grid()
    with pytest.raises(RequestError, match="either a bbox"):
        make_grid((0, 0, 1, 1), Region.from_geometry(shapely.box(0, 0, 1, 1)))


# Other CRS ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("crs", "says"),
    [
        ("EPSG:999999", "not known"),
        ("a map please", "not known"),
        ("", "not known"),
        (None, "not known"),
        ("x" * 5000, "not known"),
        ("EPSG:4978", "neither geographic nor projected"),  # geocentric
        ("EPSG:5773", "neither geographic nor projected"),  # vertical
        ("EPSG:4807", "not in degrees"),  # grads from Paris
    ],
)
def test_unusable_crs(crs, says):
    with pytest.raises(RequestError, match=says) as caught:
        make_grid((0, 40, 10, 50), crs=crs)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(("crs", "flat"), [("EPSG:7405", "EPSG:27700"), ("EPSG:4979", "EPSG:4326")])
def test_heights_of_a_crs_are_dropped(crs, flat):
    assert make_grid((-3, 50, 0, 52), crs=crs).crs == flat


PROJECTED = [
    ("EPSG:3338", (172, 51, -130, 72), 5000),
    ("EPSG:3857", (-20, 30, 40, 72), 20000),
    ("EPSG:3035", (-10, 35, 30, 70), 10000),
    ("EPSG:3413", (-180, 60, 180, 90), 25000),  # the pole inside
    ("EPSG:3031", (-180, -90, 180, -60), 25000),
    ("EPSG:2193", (166, -48, -176, -34), 10000),  # axes are northing, easting; crosses 180
    ("EPSG:2230", (-118, 32, -115, 34), 5000),  # feet
    ("EPSG:32633", (12, 45, 18, 55), 5000),
    ("EPSG:3832", (170, -25, -170, 0), 10000),
]


@pytest.mark.parametrize(("crs", "box", "resolution"), PROJECTED)
def test_pixel_centres_agree_with_pyproj(crs, box, resolution):
    grid = make_grid(box, crs=crs, resolution=resolution)
    a = grid.geobox.affine
    assert (a.a, a.b, a.d, a.e) == (resolution, 0, 0, -resolution)
    assert a.c % resolution == 0
    assert a.f % resolution == 0
    rows, cols = np.array([0, grid.shape[0] // 2, grid.shape[0] - 1]), np.array([0, 3, grid.shape[1] - 1])
    lon, lat = grid.lonlat(rows, cols)
    inverse = pyproj.Transformer.from_crs(crs, "EPSG:4326", always_xy=True)
    for i, row in enumerate(rows):
        for j, col in enumerate(cols):
            x, y = a.c + (col + 0.5) * resolution, a.f - (row + 0.5) * resolution
            expected_lon, expected_lat = inverse.transform(x, y)
            assert abs((lon[i, j] - expected_lon + 180) % 360 - 180) < 1e-9
            assert abs(lat[i, j] - expected_lat) < 1e-9


@pytest.mark.parametrize(("crs", "box", "resolution"), PROJECTED)
def test_grid_covers_every_place_of_the_box(crs, box, resolution):
    grid = make_grid(box, crs=crs, resolution=resolution)
    west, south, east, north = _outline(BBox(*box)).bounds
    lon, lat = np.meshgrid(np.linspace(west, east, 181), np.linspace(south, north, 91))
    x, y = pyproj.Transformer.from_crs("EPSG:4326", crs, always_xy=True).transform(lon, lat)
    left, bottom, right, top = grid.geobox.boundingbox.bbox
    slack = 0.02 * resolution
    assert left - slack <= x.min() < left + resolution * 1.1
    assert right - resolution * 1.1 < x.max() <= right + slack
    assert bottom - slack <= y.min() < bottom + resolution * 1.1
    assert top - resolution * 1.1 < y.max() <= top + slack


def test_pole_inside_a_polar_grid():
    grid = make_grid((-180, 60, 180, 90), crs="EPSG:3413", resolution=25000)
    lat = grid.lonlat(*all_pixels(grid))[1]
    row, col = np.unravel_index(lat.argmax(), lat.shape)
    assert lat.max() > 89.8
    assert abs(row - grid.shape[0] / 2) <= 1
    assert abs(col - grid.shape[1] / 2) <= 1


def test_feet_are_not_metres():
    grid = make_grid((-118, 32, -115, 34), crs="EPSG:2230", resolution=5000)
    assert grid.metres_per_unit == pytest.approx(0.3048, rel=1e-4)
    # 3 degrees of longitude at 33 N are about 280 km, 919 000 feet.
    assert 180 <= grid.shape[1] <= 195


@pytest.mark.parametrize("crs", ["EPSG:8857", "ESRI:54009", "ESRI:54030"])
def test_outside_of_a_world_map_is_off_the_globe(crs):
    """No place of the globe is painted twice, and none is lost."""
    grid = make_grid((-180, -80, 180, 80), crs=crs, resolution=100_000)
    lon, lat = grid.lonlat(*all_pixels(grid))
    x, y = grid.xy(*all_pixels(grid))
    on = np.isfinite(lon)
    forward = pyproj.Transformer.from_crs("EPSG:4326", crs, always_xy=True)
    back_x, back_y = forward.transform(lon[on], lat[on])
    assert np.abs(back_x - x[on]).max() < 1000
    assert np.abs(back_y - y[on]).max() < 1000
    assert not on[0, 0]
    # The meridian of 180 degrees bounds the map: count the pixels left of it row by row.
    limit = np.array([forward.transform(179.9999, v)[0] if np.isfinite(v) else 0 for v in lat[:, lat.shape[1] // 2]])
    assert (np.abs(on.sum(1) - 2 * limit / 100_000) <= 2.5).all()


def test_off_globe_is_decided_alike_by_whole_and_by_tile():
    grid = make_grid((-180, -80, 180, 80), crs="EPSG:8857", resolution=100_000, tile_size=16)
    expected = grid.lonlat(*all_pixels(grid))[0]
    for tile in grid.tiles():
        part = grid.lonlat(np.arange(tile.rows.start, tile.rows.stop), np.arange(tile.cols.start, tile.cols.stop))[0]
        assert np.array_equal(part, expected[tile.rows, tile.cols], equal_nan=True)


@pytest.mark.parametrize(
    ("box", "crs", "says"),
    [
        ((-180, -90, 180, 90), "EPSG:3857", "larger than the Earth"),
        ((-180, -90, 180, 90), "EPSG:3413", "larger than the Earth"),
        ((-180, -90, 180, 90), "EPSG:2154", "outside the domain"),
        ((-180, -90, 180, 90), "+proj=ortho +lat_0=45", "outside the domain"),
        ((170, -20, -170, 20), "EPSG:3857", "cut open"),
        ((170, -20, -170, 20), "ESRI:54030", "cut open"),
    ],
)
def test_area_that_a_crs_cannot_show(box, crs, says):
    with pytest.raises(BoxError, match=says):
        make_grid(box, crs=crs)


def test_a_world_map_may_be_cut_anywhere():
    grid = make_grid((-180, -60, 180, 60), crs="EPSG:3832", resolution=100_000)  # centred on 150 E
    assert grid.shape[1] == pytest.approx(2 * math.pi * 6378137 / 100_000, abs=2)


# Regions -----------------------------------------------------------------------------------------


def reference_mask(polygon, grid):
    """Pixel centres inside a polygon, by rays counted edge by edge in the grid's own CRS."""
    x, y = grid.xy(*all_pixels(grid))
    inside = np.zeros(grid.shape, dtype=bool)
    for part in shapely.get_parts(polygon):
        for ring in (part.exterior, *part.interiors):
            xy = np.array(ring.coords)
            for (x0, y0), (x1, y1) in itertools.pairwise(xy):
                if y0 == y1:
                    continue
                crossing = ((y0 > y) != (y1 > y)) & (x < (x1 - x0) * (y - y0) / (y1 - y0) + x0)
                inside ^= crossing
    return inside


STAR = shapely.Polygon(
    [(3 + r * math.cos(t), 41 + r * math.sin(t)) for k in range(14) for r, t in [((3.0, 1.3)[k % 2], k * math.pi / 7)]],
    [[(2.6, 40.7), (3.4, 40.7), (3.3, 41.3), (2.7, 41.2)]],
)


@pytest.mark.parametrize("tile_size", [16, 37, 512])
def test_region_mask_against_ray_counting(tile_size):
    grid = make_grid(region=Region.from_geometry(STAR), resolution=0.0531, tile_size=tile_size)
    mask = np.zeros(grid.shape, dtype=bool)
    for tile in grid.tiles():
        mask[tile.rows, tile.cols] = grid.inside_region(tile)
    assert np.array_equal(mask, reference_mask(shapely.MultiPolygon([STAR]), grid))
    assert 0.1 < mask.mean() < 0.7


@pytest.mark.parametrize("crs", ["EPSG:3035", "EPSG:3857", "EPSG:32631"])
def test_region_mask_in_a_projected_crs(crs):
    grid = make_grid(region=Region.from_geometry(STAR), crs=crs, resolution=5000)
    mask = grid.inside_region(whole(grid))
    lon, lat = grid.lonlat(*all_pixels(grid))
    expected = shapely.contains_xy(STAR, lon, lat)
    doubtful = shapely.distance(STAR.boundary, shapely.points(lon, lat)) < 0.02
    assert np.array_equal(mask[~doubtful], expected[~doubtful])
    assert doubtful.mean() < 0.15


@pytest.mark.parametrize("crs", ["EPSG:4326", "EPSG:4269", "EPSG:4267", "EPSG:3338"])
def test_polygons_cut_at_180_stay_together(crs):
    region = Region.from_geometry(ALASKA)
    assert region.bounds == (172.0, 51.0, 220.0, 70.0)
    grid = make_grid(region=region, crs=crs)
    mask = grid.inside_region(whole(grid))
    lon, lat = grid.lonlat(*all_pixels(grid))
    expected = shapely.contains_xy(ALASKA, lon, lat)
    # Pixels on the seam itself belong to neither half of the cut polygon.
    near = np.abs(np.abs(lon) - 180) < 0.3
    assert (mask != expected)[~near].mean() < 0.01
    assert mask[near & (lat > 51.5) & (lat < 52.5)].all()
    assert grid.shape[1] < 1500


def test_region_torn_by_a_crs_is_refused():
    with pytest.raises(BoxError, match="cut open"):
        make_grid(region=Region.from_geometry(ALASKA), crs="EPSG:3857")


def test_no_region_no_mask():
    grid = make_grid((0, 0, 1, 1))
    assert grid.inside_region(whole(grid)) is None


def test_region_is_safe_among_threads():
    def fresh():
        return make_grid(
            region=Region.from_geometry(shapely.Point(10, 50).buffer(5, 400)), resolution=0.05, tile_size=16
        )

    expected = {t.index: fresh().inside_region(t) for t in list(fresh().tiles())[::17]}
    grid = fresh()
    tiles = [t for t in grid.tiles() if t.index in expected]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for tile, mask in zip(tiles, pool.map(grid.inside_region, tiles), strict=True):
            assert np.array_equal(mask, expected[tile.index])


def test_grid_travels_to_another_process():
    grid = make_grid(region=Region.from_geometry(STAR), resolution=0.1)
    mask = grid.inside_region(whole(grid))
    copy = pickle.loads(pickle.dumps(grid))
    assert copy.shape == grid.shape
    assert np.array_equal(copy.inside_region(whole(copy)), mask)


@pytest.mark.parametrize(
    ("geometry", "bounds"),
    [
        (shapely.box(190, 10, 200, 20), (-170, 10, -160, 20)),  # longitudes counted to 360
        (shapely.box(-200, 10, -190, 20), (160, 10, 170, 20)),
        (shapely.GeometryCollection([shapely.box(0, 0, 1, 1), shapely.Point(5, 5)]), (0, 0, 1, 1)),
        (shapely.Polygon([(0, 0), (2, 2), (2, 0), (0, 2)]), (0, 0, 2, 2)),  # a bow tie
    ],
)
def test_unusual_geometry_is_repaired(geometry, bounds):
    assert Region.from_geometry(geometry).bounds == bounds


@pytest.mark.parametrize(
    ("geometry", "says"),
    [
        (shapely.Point(0, 0), "no polygon with an area"),
        (shapely.LineString([(0, 0), (1, 1)]), "no polygon with an area"),
        (shapely.Polygon(), "no polygon with an area"),
        (None, "no polygon with an area"),
        (shapely.box(500_000, 4e6, 600_000, 5e6), "outside the globe"),  # metres taken for degrees
        (shapely.box(1000, 10, 1010, 20), "outside the globe"),
        (shapely.Polygon([(0, 0), (1, 0), (INF, 1)]), "not finite"),
        (shapely.Polygon([(0, 0), (1, 0), (NAN, 1)]), "not finite"),
    ],
)
def test_geometry_that_is_no_region(geometry, says):
    with pytest.raises(BoxError, match=says):
        Region.from_geometry(geometry)


@pytest.mark.parametrize("suffix", [".geojson", ".gpkg", ".shp", ".parquet", ".fgb"])
def test_region_file(tmp_path, suffix):
    frame = geopandas.GeoDataFrame({"name": ["star"]}, geometry=[STAR], crs=4326).to_crs(3035)
    path = tmp_path / f"region{suffix}"
    frame.to_parquet(path) if suffix == ".parquet" else frame.to_file(path)
    if suffix == ".geojson":
        frame.to_crs(4326).to_file(path)
    region = Region.from_file(path)
    assert region.bounds == pytest.approx(STAR.bounds, abs=1e-6)
    assert region.source == str(path)


def test_region_file_unites_its_polygons(tmp_path):
    path = tmp_path / "two.gpkg"
    geopandas.GeoDataFrame(geometry=[shapely.box(0, 0, 1, 1), None, shapely.box(1, 0, 2, 1)], crs=4326).to_file(path)
    geometry = Region.from_file(path).geometry
    assert geometry.area == pytest.approx(2.0)
    assert geometry.geom_type == "Polygon"


def bad_files(folder):
    frame = geopandas.GeoDataFrame(geometry=[STAR], crs=4326)
    (folder / "words.geojson").write_text("not a map")
    (folder / "words.parquet").write_text("not a map")
    (folder / "empty.geojson").write_text("")
    (folder / "cut.gpkg").write_bytes(b"")
    frame.to_file(folder / "whole.gpkg")
    (folder / "cut.gpkg").write_bytes((folder / "whole.gpkg").read_bytes()[:3000])
    frame.set_crs(None, allow_override=True).to_file(folder / "nowhere.shp")
    frame.iloc[:0].to_file(folder / "none.gpkg")
    geopandas.GeoDataFrame(geometry=[shapely.Point(0, 0)], crs=4326).to_file(folder / "points.geojson")
    (folder / "table.csv").write_text("a,b\n1,2\n")
    (folder / "a folder").mkdir()


@pytest.mark.parametrize(
    ("name", "error", "says"),
    [
        ("missing.geojson", LayerError, "does not exist"),
        ("words.geojson", LayerError, "cannot be read"),
        ("words.parquet", LayerError, "cannot be read"),
        ("empty.geojson", LayerError, "cannot be read"),
        ("cut.gpkg", LayerError, "cannot be read"),
        ("a folder", LayerError, "cannot be read"),
        ("nowhere.shp", LayerError, "no CRS"),
        ("none.gpkg", LayerError, "no geometry"),
        ("table.csv", LayerError, "cannot be read"),
        ("points.geojson", BoxError, "no polygon"),
    ],
)
def test_unusable_region_file(tmp_path, name, error, says):
    bad_files(tmp_path)
    with pytest.raises(error, match=says) as caught:
        Region.from_file(tmp_path / name)
    assert name in str(caught.value)


# Tiles -------------------------------------------------------------------------------------------


@given(st.integers(1, 700), st.integers(1, 700), st.integers(16, 800))
@settings(max_examples=40, deadline=None)
def test_tiles_cover_every_pixel_once(rows, cols, size):
    grid = make_grid((0, 0, cols * 0.1, rows * 0.1), resolution=0.1, tile_size=size)
    assert grid.shape == (rows, cols)
    count = np.zeros(grid.shape, dtype=np.uint8)
    tiles = list(grid.tiles())
    for tile in tiles:
        assert tile.shape == count[tile.rows, tile.cols].shape
        assert max(tile.shape) <= size
        count[tile.rows, tile.cols] += 1
    assert (count == 1).all()
    assert len(tiles) == grid.tile_count == len({t.index for t in tiles})


@given(
    st.floats(-180, 180),
    st.floats(-90, 90),
    st.floats(-180, 180),
    st.floats(-90, 90),
    st.one_of(st.none(), st.floats(allow_nan=True, allow_infinity=True)),
)
@settings(max_examples=150, deadline=None)
def test_any_numbers_give_a_grid_or_a_sentence(west, south, east, north, resolution):
    try:
        grid = make_grid((west, south, east, north), resolution=resolution, max_pixels=5_000_000)
    except SdmError as error:
        assert str(error)
    else:
        left, bottom, right, top = grid.geobox.boundingbox.bbox
        slack = 1e-5 * grid.resolution
        assert isinstance(grid, Grid)
        assert left <= west + slack
        assert right >= BBox(west, south, east, north).unwrapped_east - slack
        assert bottom <= south + slack
        assert top >= north - slack


@pytest.mark.parametrize("crs", ["EPSG:3338", "EPSG:3857", "EPSG:3035", "ESRI:54030"])
def test_size_of_a_projected_pixel_has_its_area(crs):
    grid = make_grid(
        (-160.0, 55.0, -150.0, 62.0) if crs != "EPSG:3035" else (5.0, 40.0, 20.0, 60.0), None, crs, 20_000.0
    )
    rows, cols = (np.arange(n) for n in grid.shape)
    width, height = grid.pixel_size(rows, cols)
    _, lat = grid.lonlat(rows, cols)
    from sdm.outputs.statistics import PixelArea

    area = PixelArea(grid.geobox).block(slice(0, rows.size), slice(0, cols.size)) / 1e6
    found = width * np.cos(np.radians(lat)) * height * 111.195**2
    assert np.nanmax(np.abs(found / area - 1)) < 0.012  # of a sphere
    part = grid.pixel_size(rows[3:9], cols[2:7])
    assert np.array_equal(part[0], width[3:9, 2:7]) and np.array_equal(part[1], height[3:9, 2:7])
