"""Thresholds of expectation, binary rasters and polygons against brute force and exact areas of pixels."""

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine
from odc.geo.geobox import GeoBox
from pyproj import Geod, Transformer
from rio_cogeo.cogeo import cog_validate

from sdm.errors import OutputError
from sdm.outputs.basemap import outline
from sdm.outputs.binary import NODATA, at_least, cut, write_binary
from sdm.outputs.expectation import thresholds
from sdm.outputs.geopackage import Layer, write_layers
from sdm.outputs.polygons import area_km2, polygons_of
from sdm.outputs.statistics import PixelArea
from sdm.request import RangeRule

GRIDS = {
    "degrees": GeoBox((60, 80), Affine(0.5, 0, 5, 0, -0.5, 65), "EPSG:4326"),
    "across 180": GeoBox((60, 80), Affine(0.5, 0, 160, 0, -0.5, 75), "EPSG:4326"),
    "across 180, NAD83": GeoBox((60, 80), Affine(0.5, 0, 160, 0, -0.5, 75), "EPSG:4269"),
    "whole globe": GeoBox((90, 180), Affine(2, 0, -180, 0, -2, 90), "EPSG:4326"),
    "from 0 to 360": GeoBox((90, 180), Affine(2, 0, 0, 0, -2, 90), "EPSG:4326"),
    "Europe, equal area": GeoBox((60, 80), Affine(40_000, 0, 3e6, 0, -40_000, 4.5e6), "EPSG:3035"),
    "UTM": GeoBox((60, 80), Affine(5_000, 0, 3e5, 0, -5_000, 5.8e6), "EPSG:32633"),
    "Alaska, across 180": GeoBox((80, 80), Affine(40_000, 0, -2.2e6, 0, -40_000, 3.2e6), "EPSG:3338"),
    "north pole": GeoBox((80, 80), Affine(50_000, 0, -2e6, 0, -50_000, 2e6), "EPSG:3413"),
    "south pole": GeoBox((80, 80), Affine(50_000, 0, -2.03e6, 0, -50_000, 2.01e6), "EPSG:3031"),
}


def island(grid):
    """A ring with a hole and a diagonal, on a map with an unmodelled corner."""
    y, x = np.mgrid[: grid.height, : grid.width]
    radius = np.hypot(y - grid.height / 2, x - grid.width / 2)
    values = np.where((radius < grid.height / 3) & (radius > grid.height / 8), 0.9, 0.1).astype(np.float32)
    values[np.arange(10), np.arange(10)] = 0.7
    values[-8:, -8:] = np.nan
    return values


def pixel_km2(grid):
    area = PixelArea(grid).block(slice(0, grid.height), slice(0, grid.width)) / 1e6
    return np.broadcast_to(area, grid.shape)


def independent_km2(polygons):
    """By PROJ alone."""
    parts = shapely.get_parts(shapely.orient_polygons(polygons))
    return sum(Geod(ellps="WGS84").geometry_area_perimeter(part)[0] for part in parts) / 1e6


# Thresholds --------------------------------------------------------------------------------------


def by_sorting(values, area, rule):
    """The threshold of a rule from all values of the map; None where there is none."""
    known = values > 0
    p, w = values[known].astype(float), area[known]
    candidates = np.unique(p)
    above = np.array([w[p >= t].sum() for t in candidates])
    hit = np.array([(w * p)[p >= t].sum() for t in candidates])
    if rule.kind == "precision":
        good = np.flatnonzero(hit >= rule.value * above * (1 - 1e-6))
        return candidates[good[0]] if good.size else None
    if rule.kind == "recall":
        return candidates[np.flatnonzero(hit >= rule.value * hit[0] * (1 - 1e-6))[-1]]
    return candidates[np.argmin(np.abs(above - hit[0]))]


@pytest.mark.parametrize("seed", range(12))
def test_thresholds_are_those_found_by_sorting(seed):
    rng, grid = np.random.default_rng(seed), GRIDS["degrees" if seed % 2 else "UTM"]
    values = (rng.random(grid.shape) ** rng.integers(1, 6) * rng.random()).astype(np.float32)
    if seed % 3 == 0:
        values = np.round(values, 2)  # many ties
    values[rng.random(grid.shape) < 0.1] = np.nan
    values[rng.random(grid.shape) < 0.2] = rng.choice([0.0, -0.0])
    rules = [RangeRule.parse(r) for r in ("precision=0.9", "precision=0.3", "precision=0.02", "recall=0.9", "recall=1")]
    rules.append(RangeRule.parse("area"))
    for rule, got in zip(rules, thresholds(values, grid, rules), strict=True):
        expected = by_sorting(values, pixel_km2(grid), rule)
        assert got > np.nanmax(values) if expected is None else got == expected, str(rule)


def test_a_threshold_keeps_what_its_rule_promises():
    grid = GRIDS["degrees"]
    values = np.random.default_rng(1).beta(0.4, 0.8, grid.shape).astype(np.float32)
    rules = [RangeRule.parse(rule) for rule in ("precision=0.8", "recall=0.7", "area")]
    precise, sure, large = (cut(values, grid, at_least(t)) for t in thresholds(values, grid, rules))
    assert precise.precision == pytest.approx(0.8, abs=1e-3)
    assert sure.recall == pytest.approx(0.7, abs=1e-3)
    assert large.area_km2 == pytest.approx(large.expected_km2, rel=1e-3)
    assert large.expected_km2 == pytest.approx(float((values * pixel_km2(grid)).sum()))


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_a_map_of_nothing_has_an_empty_range(value):
    grid = GRIDS["degrees"]
    values = np.full(grid.shape, value, np.float32)
    for rule in map(RangeRule.parse, ("precision=0.9", "recall=0.9", "area")):
        found = cut(values, grid, at_least(*thresholds(values, grid, [rule])))
        assert found.area_km2 == 0.0 and found.precision is None and found.recall is None


def test_a_map_of_one_value_is_all_range():
    grid = GRIDS["degrees"]
    values = np.full(grid.shape, 0.9, np.float32)
    assert thresholds(values, grid, [RangeRule.parse("precision=0.9")]) == (float(np.float32(0.9)),)


# Rasters -----------------------------------------------------------------------------------------


def test_a_presence_in_float32_is_above_its_own_threshold():
    grid = GeoBox((1, 3), Affine(1, 0, 0, 0, -1, 1), "EPSG:4326")
    values = np.array([[np.float32(0.1), np.nan, 0.0]], np.float32)
    assert cut(values, grid, at_least(0.1)).mask.tolist() == [[1, NODATA, 0]]


@pytest.mark.parametrize("where", ["degrees", "Alaska, across 180"])
def test_binary_raster(tmp_path, where):
    grid = GRIDS[where]
    values = island(grid)
    found = cut(values, grid, at_least(0.5))
    assert found.area_km2 == pytest.approx(float(pixel_km2(grid)[values >= 0.5].sum()))
    path = tmp_path / "a-range.tif"
    write_binary(path, found.mask, grid, "1: in, 0: not", {"species": "A\nB", "threshold": "0.5"})
    assert cog_validate(path, quiet=True)[1] in ([], ["The file is greater than 512xH or 512xW, but is not tiled"])
    with rasterio.open(path) as file:
        got = file.read(1)
        assert file.dtypes == ("uint8",) and file.nodata == NODATA and file.descriptions == ("range",)
        assert file.tags()["species"] == "A B" and float(file.tags()["threshold"]) == 0.5
        assert file.crs.to_epsg() == int(str(grid.crs).removeprefix("EPSG:"))
    np.testing.assert_array_equal(got, np.where(np.isnan(values), NODATA, values >= 0.5))
    first = path.read_bytes()
    write_binary(path, found.mask, grid, "1: in, 0: not", {"species": "A\nB", "threshold": "0.5"})
    assert path.read_bytes() == first
    assert [one.name for one in tmp_path.iterdir()] == ["a-range.tif"]


def test_large_binary_raster_has_overviews(tmp_path):
    grid = GeoBox((1500, 1200), Affine(0.01, 0, 0, 0, -0.01, 60), "EPSG:4326")
    mask = (np.random.default_rng(0).random(grid.shape) > 0.5).astype(np.uint8)
    write_binary(tmp_path / "a.tif", mask, grid, "", {})
    assert cog_validate(tmp_path / "a.tif", quiet=True)[0]
    with rasterio.open(tmp_path / "a.tif") as file:
        assert file.overviews(1)
        np.testing.assert_array_equal(file.read(1), mask)


# Polygons ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", GRIDS)
def test_polygons_are_valid_keep_holes_and_have_the_area_of_the_pixels(where):
    grid = GRIDS[where]
    values = island(grid)
    shape = polygons_of((values >= 0.5).astype(np.uint8), grid)
    assert shape.is_valid and shape.geom_type == "MultiPolygon"
    west, south, east, north = shape.bounds
    assert west >= -180 and east <= 180 and south >= -90 and north <= 90
    exact = float(pixel_km2(grid)[values >= 0.5].sum())
    assert area_km2(shape) == pytest.approx(exact, rel=2e-5)
    assert independent_km2(shape) == pytest.approx(exact, rel=2e-5)
    # The places that are in it are those whose pixels are.
    random = np.random.default_rng(0)
    rows, columns = random.integers(0, grid.height, 300), random.integers(0, grid.width, 300)
    to_degrees = Transformer.from_crs(grid.crs.proj, 4326, always_xy=True)
    lon, lat = to_degrees.transform(*grid.pix2wld(columns + 0.5, rows + 0.5))
    inside = shapely.contains_xy(shape, (np.asarray(lon) + 180) % 360 - 180, lat)
    np.testing.assert_array_equal(inside, values[rows, columns] >= 0.5)


def test_a_range_over_a_pole_holds_it():
    grid = GRIDS["north pole"]
    y, x = np.mgrid[:80, :80]
    shape = polygons_of((np.hypot(y - 40, x - 40) < 20).astype(np.uint8), grid)
    assert shape.is_valid and shape.bounds[3] == 90.0
    assert shapely.contains_xy(shape, [0.0, 90.0, -179.5, 179.5], 89.0).all()
    equal_area = Transformer.from_crs(4326, 6931, always_xy=True)
    flat = shapely.transform(shapely.segmentize(shape, 0.02), equal_area.transform, interleaved=False)
    assert area_km2(shape) == pytest.approx(flat.area / 1e6, rel=1e-5)


def test_pixels_out_of_a_projection_do_not_reach_the_other_side():
    """Mollweide gives a place for coordinates beyond its outline, elsewhere."""
    grid = GeoBox((180, 380), Affine(100_000, 0, -19e6, 0, -100_000, 9e6), "ESRI:54009")
    mask = np.zeros(grid.shape, np.uint8)
    mask[60:80, 10:200] = 1  # from beyond its western edge to the middle
    shape = polygons_of(mask, grid)
    assert shape.is_valid and shape.bounds[0] < -179 and shape.bounds[2] < 15


def test_an_empty_range_is_an_empty_multipolygon():
    shape = polygons_of(np.zeros(GRIDS["UTM"].shape, np.uint8), GRIDS["UTM"])
    assert shape.is_empty and shape.geom_type == "MultiPolygon" and area_km2(shape) == 0.0


def test_the_area_of_a_band_around_the_globe_is_exact():
    """Long edges along parallels are no geodesics: without vertices this would be off by a tenth."""
    band = shapely.MultiPolygon([shapely.box(-180, 60, 180, 70)])
    grid = GeoBox((1, 1), Affine(360, 0, -180, 0, -10, 70), "EPSG:4326")
    assert area_km2(band) == pytest.approx(float(pixel_km2(grid)[0, 0]), rel=1e-5)
    hole = shapely.difference(band, shapely.MultiPolygon([shapely.box(0, 62, 10, 64)]))
    assert area_km2(band) - area_km2(hole) == pytest.approx(area_km2(shapely.box(0, 62, 10, 64)), rel=1e-6)
    most = GeoBox((1, 1), Affine(360, 0, -180, 0, -140, 70), "EPSG:4326")  # more than half of the Earth
    assert area_km2(shapely.box(-180, -70, 180, 70)) == pytest.approx(float(pixel_km2(most)[0, 0]), rel=1e-5)


def test_an_outline_is_drawn_where_the_map_is():
    """Across 180 degrees the window of the web map runs on, and the cut is no line of the outline."""
    whole = shapely.MultiPolygon([shapely.box(170, 50, 180, 60), shapely.box(-180, 50, -170, 60)])
    lines = shapely.from_geojson(outline(whole, (150, 40, 210, 70), 60.0))
    assert lines.bounds == (170.0, 50.0, 190.0, 60.0)
    assert lines.length == pytest.approx(60.0)
    assert shapely.from_geojson(outline(shapely.MultiPolygon(), (150, 40, 210, 70), 60.0)).is_empty


# Files -------------------------------------------------------------------------------------------


def test_layers_with_fields_and_the_same_bytes_every_time(tmp_path):
    grid = GRIDS["across 180"]
    shape = polygons_of((island(grid) >= 0.5).astype(np.uint8), grid)
    layers = [
        Layer("range", [shape], [{"binomial": "=Ursus\n<b>", "area_km2": 1.5, "recall": None}], ("area_km2", "recall")),
        Layer(
            "range_low", [shapely.MultiPolygon()], [{"binomial": "Ursus", "area_km2": 0, "recall": 0.1}], ("area_km2",)
        ),
    ]
    for name in ("a.gpkg", "b.gpkg"):
        write_layers(tmp_path / name, layers)
    assert (tmp_path / "a.gpkg").read_bytes() == (tmp_path / "b.gpkg").read_bytes()
    assert sorted(one.name for one in tmp_path.iterdir()) == ["a.gpkg", "b.gpkg"]
    read = geopandas.read_file(tmp_path / "a.gpkg", layer="range")
    assert read.crs.to_epsg() == 4326 and read.binomial[0] == "=Ursus <b>" and np.isnan(read.recall[0])
    assert shapely.equals(read.geometry[0], shape)
    assert len(geopandas.read_file(tmp_path / "a.gpkg", layer="range_low")) == 1


def test_a_missing_folder_is_an_output_error(tmp_path):
    grid = GRIDS["degrees"]
    with pytest.raises(OutputError):
        write_binary(tmp_path / "missing" / "a.tif", np.zeros(grid.shape, np.uint8), grid, "", {})
    with pytest.raises(OutputError):
        write_layers(tmp_path / "missing" / "a.gpkg", [Layer("range", [shapely.MultiPolygon()], [{"a": "b"}])])
