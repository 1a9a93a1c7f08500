"""Thresholds, binary rasters and range polygons against brute force and exact areas of pixels."""

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox
from rio_cogeo.cogeo import cog_validate

from sdm.errors import OutputError, RecordsError
from sdm.outputs.statistics import PixelArea
from sdm.records.thresholds import (
    NODATA,
    RULES,
    Threshold,
    area_km2,
    binary,
    range_polygon,
    threshold,
    write_binary,
    write_range,
)

SCORES = st.lists(st.integers(0, 9).map(float), min_size=1, max_size=30)
FIXED = Threshold("fixed", 0.5, 1.0, 1.0, 0.0)

GRIDS = {
    "degrees": GeoBox((60, 80), Affine(0.5, 0, 5, 0, -0.5, 65), "EPSG:4326"),
    "across 180": GeoBox((60, 80), Affine(0.5, 0, 160, 0, -0.5, 75), "EPSG:4326"),
    "whole globe": GeoBox((90, 180), Affine(2, 0, -180, 0, -2, 90), "EPSG:4326"),
    "Europe, equal area": GeoBox((60, 80), Affine(40_000, 0, 3e6, 0, -40_000, 4.5e6), "EPSG:3035"),
    "UTM": GeoBox((60, 80), Affine(5_000, 0, 3e5, 0, -5_000, 5.8e6), "EPSG:32633"),
    "Alaska": GeoBox((80, 80), Affine(40_000, 0, -2.2e6, 0, -40_000, 3.2e6), "EPSG:3338"),
    "pole": GeoBox((80, 80), Affine(50_000, 0, -2e6, 0, -50_000, 2e6), "EPSG:3413"),
}


def island(grid):
    """A ring with a hole and a diagonal, on a map with an unmodelled corner."""
    y, x = np.mgrid[: grid.height, : grid.width]
    radius = np.hypot(y - grid.height / 2, x - grid.width / 2)
    values = np.where((radius < grid.height / 3) & (radius > grid.height / 8), 0.9, 0.1).astype(np.float32)
    values[np.arange(10), np.arange(10)] = 0.7
    values[-8:, -8:] = np.nan
    return values


def exact_km2(values, grid, value=0.5):
    area = np.broadcast_to(PixelArea(grid).block(slice(0, grid.height), slice(0, grid.width)), values.shape)
    return float(area[values >= value].sum()) / 1e6


@given(SCORES, SCORES)
def test_rules_by_brute_force(presence, background):
    p, b = np.array(presence), np.array(background)
    candidates = sorted({*presence, *background})
    sensitivity = {t: (p >= t).mean() for t in candidates}
    specificity = {t: (b < t).mean() for t in candidates}
    by_rule = {rule: threshold(rule, presence, background) for rule in RULES if rule != "fixed"}
    assert by_rule["mtp"].value == min(presence) and by_rule["mtp"].sensitivity == 1.0
    p10 = by_rule["p10"].value
    assert (p < p10).mean() <= 0.1 + 1e-12
    assert all((p < t).mean() > 0.1 for t in presence if t > p10)
    gap = min(abs(sensitivity[t] - specificity[t]) for t in candidates)
    equal = by_rule["equal"]
    assert abs(equal.sensitivity - equal.specificity) == pytest.approx(gap)
    best = max(sensitivity[t] + specificity[t] for t in candidates)
    assert by_rule["maxtss"].sensitivity + by_rule["maxtss"].specificity == pytest.approx(best)
    for one in by_rule.values():
        assert one.sensitivity == pytest.approx(sensitivity[one.value])
        assert one.specificity == pytest.approx(specificity[one.value])
        assert one.area_share == pytest.approx(1 - one.specificity)


def test_real_absences_give_the_specificity_and_random_places_the_area():
    presence, land, absence = [0.9, 0.8, 0.7, 0.6], [0.1, 0.2, 0.65, 0.95], [0.05, 0.1, 0.65]
    one = threshold("maxtss", presence, land, absence=absence)
    assert one.value == 0.7 and one.specificity == 1.0 and one.area_share == 0.25
    weighted = threshold("fixed", presence, land, weights=[1, 1, 1, 5], value=0.7)
    assert weighted.area_share == pytest.approx(5 / 8) and weighted.sensitivity == 0.75
    assert threshold("p10", np.arange(1, 21), land).value == 3.0  # 18 of 20 are kept
    assert threshold("p10", np.arange(1, 10), land).value == 1.0


def test_unusable_rules_are_refused():
    with pytest.raises(RecordsError, match="mtp, p10"):
        threshold("best", [1.0], [0.0])
    for value in (None, float("nan")):
        with pytest.raises(RecordsError, match="fixed"):
            threshold("fixed", [1.0], [0.0], value=value)


def test_a_presence_in_float32_is_above_its_own_threshold():
    score = np.float32(0.1)
    assert binary(np.array([score, np.nan, 0.0], np.float32), float(np.float64(0.1))).tolist() == [1, NODATA, 0]


@pytest.mark.parametrize("where", GRIDS)
def test_binary_raster(tmp_path, where):
    grid = GRIDS[where]
    values = island(grid)
    chosen = threshold("p10", [0.9, 0.8, 0.3], [0.1, 0.2])
    path = tmp_path / "a-binary.tif"
    write_binary(path, values, grid, chosen, {"species": "A\nB"})
    assert cog_validate(path, quiet=True)[1] in ([], ["The file is greater than 512xH or 512xW, but is not tiled"])
    with rasterio.open(path) as file:
        got = file.read(1)
        assert file.dtypes == ("uint8",) and file.nodata == NODATA and file.tags()["species"] == "A B"
        assert file.tags()["threshold_rule"] == "p10" and float(file.tags()["threshold"]) == 0.3
    np.testing.assert_array_equal(got, np.where(np.isnan(values), NODATA, values >= 0.3))
    first = path.read_bytes()
    write_binary(path, values, grid, chosen, {"species": "A\nB"})
    assert path.read_bytes() == first
    assert [one.name for one in tmp_path.iterdir()] == ["a-binary.tif"]


def test_large_binary_raster_has_overviews(tmp_path):
    grid = GeoBox((1500, 1200), Affine(0.01, 0, 0, 0, -0.01, 60), "EPSG:4326")
    values = np.random.default_rng(0).random(grid.shape, dtype=np.float32)
    write_binary(tmp_path / "a.tif", values, grid, FIXED, {})
    assert cog_validate(tmp_path / "a.tif", quiet=True)[0]
    with rasterio.open(tmp_path / "a.tif") as file:
        assert file.overviews(1)
        np.testing.assert_array_equal(file.read(1), values >= 0.5)


@pytest.mark.parametrize("where", GRIDS)
def test_polygons_are_valid_keep_holes_and_have_the_area_of_the_pixels(where):
    grid = GRIDS[where]
    values = island(grid)
    shape = range_polygon(values, grid, 0.5)
    assert shape.is_valid and shape.geom_type == "MultiPolygon"
    west, south, east, north = shape.bounds
    assert west >= -180 and east <= 180 and south >= -90 and north <= 90
    # Projected maps with a seam are laid on degrees first, so their edges shift by half a pixel.
    tolerance = 0.02 if where in ("Alaska", "pole") else 3e-4
    assert area_km2(shape) == pytest.approx(exact_km2(values, grid), rel=tolerance)
    # The places that are in it are those whose pixels are.
    random = np.random.default_rng(0)
    rows, columns = random.integers(0, grid.height, 300), random.integers(0, grid.width, 300)
    from pyproj import Transformer

    lon, lat = Transformer.from_crs(grid.crs.proj, 4326, always_xy=True).transform(
        *grid.pix2wld(columns + 0.5, rows + 0.5)
    )
    inside = shapely.contains_xy(shape, (np.asarray(lon) + 180) % 360 - 180, lat)
    agree = inside == (values[rows, columns] >= 0.5)
    assert agree.mean() > (0.97 if where in ("Alaska", "pole") else 0.999)


def test_the_area_of_a_band_around_the_globe_is_exact():
    """Long edges along parallels are no geodesics: without vertices this would be off by a tenth."""
    band = shapely.MultiPolygon([shapely.box(-180, 60, 180, 70)])
    grid = GeoBox((1, 1), Affine(360, 0, -180, 0, -10, 70), "EPSG:4326")
    exact = float(PixelArea(grid).block(slice(0, 1), slice(0, 1))[0, 0]) / 1e6
    assert area_km2(band) == pytest.approx(exact, rel=1e-5)
    hole = shapely.difference(band, shapely.MultiPolygon([shapely.box(0, 62, 10, 64)]))
    assert area_km2(band) - area_km2(hole) == pytest.approx(area_km2(shapely.box(0, 62, 10, 64)), rel=1e-6)


def test_range_file_with_refits(tmp_path):
    grid = GRIDS["across 180"]
    values = island(grid)
    random = np.random.default_rng(0)
    refits = [(values + random.normal(0, 0.15, values.shape).astype(np.float32), 0.5) for _ in range(20)]
    area = write_range(tmp_path / "a-range.gpkg", values, grid, FIXED, species="=Ursus <b>", refits=refits)
    areas = [exact_km2(one, grid) for one, _ in refits]
    assert area.low_km2 == pytest.approx(np.percentile(areas, 5)) and area.low_km2 <= area.high_km2
    assert area.high_km2 == pytest.approx(np.percentile(areas, 95))
    assert area.km2 == pytest.approx(exact_km2(values, grid), rel=3e-4)
    layers = dict(geopandas.list_layers(tmp_path / "a-range.gpkg").values)
    assert set(layers) == {"range", "range_low", "range_high"}
    whole, low, high = (geopandas.read_file(tmp_path / "a-range.gpkg", layer=name) for name in sorted(layers, key=len))
    assert whole.area_low_km2[0] == pytest.approx(area.low_km2) and whole.species[0] == "=Ursus <b>"
    assert low.geometry[0].is_valid and high.geometry[0].is_valid
    assert low.area_km2[0] < whole.area_km2[0] < high.area_km2[0]
    assert shapely.difference(low.geometry[0], high.geometry[0]).area < 1e-9
    counts = np.sum([one >= 0.5 for one, _ in refits], axis=0)
    assert low.area_km2[0] == pytest.approx(exact_km2(counts.astype(np.float32), grid, 19), rel=3e-4)
    assert high.area_km2[0] == pytest.approx(exact_km2(counts.astype(np.float32), grid, 1), rel=3e-4)


def test_range_files_have_the_same_bytes_every_time(tmp_path):
    grid = GRIDS["degrees"]
    for name in ("a.gpkg", "b.gpkg"):
        write_range(tmp_path / name, island(grid), grid, FIXED, species="A")
    assert (tmp_path / "a.gpkg").read_bytes() == (tmp_path / "b.gpkg").read_bytes()
    assert len(list(tmp_path.iterdir())) == 2


def test_an_empty_range_is_a_file_too(tmp_path):
    grid = GRIDS["degrees"]
    area = write_range(tmp_path / "a.gpkg", np.zeros(grid.shape, np.float32), grid, FIXED)
    assert area.km2 == 0.0 and len(geopandas.read_file(tmp_path / "a.gpkg")) == 1


def test_a_missing_folder_is_an_output_error(tmp_path):
    grid = GRIDS["degrees"]
    for write in (write_range, lambda *rest: write_binary(*rest, {})):
        with pytest.raises(OutputError):
            write(tmp_path / "missing" / "a.gpkg", island(grid), grid, FIXED)
