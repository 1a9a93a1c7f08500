"""EOO and AOO against counts known by construction, and areas by other programs and projections."""

import csv
import json

import geopandas
import numpy as np
import pytest
import shapely
from pyproj import Geod, Transformer
from typer.testing import CliRunner

import sdm
from sdm.analysis.assess import NO_AOO, assess, write_assessments
from sdm.analysis.redlist import B1, B2, Plane, eoo_of_polygons, extent, met, occupied
from sdm.cli import assess as _assess  # noqa: F401  adds the command
from sdm.cli import evaluate as _evaluate  # noqa: F401  a second one: a lone command has no name
from sdm.cli.app import sdm_app
from sdm.errors import LayerError, OutputError, RecordsError, RequestError

GEOD = Geod(ellps="WGS84")


def geodesic_km2(shape):
    """By PROJ alone."""
    return sum(GEOD.geometry_area_perimeter(p)[0] for p in shapely.get_parts(shapely.orient_polygons(shape))) / 1e6


def write_csv(path, rows, header=("species", "lon", "lat")):
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)
    return path


# Area of occupancy -------------------------------------------------------------------------------


def test_points_on_a_diagonal_occupy_a_cell_each():
    """The example of redlistr's own tests: five points (1, 1) to (5, 5), cells of 1, area of occupancy 5 cells."""
    points = np.arange(1, 6)[:, None] * [2000.0, 2000.0]
    assert len(occupied(points).cells) == 5


@pytest.mark.parametrize("by", [(0.0, 0.0), (731.0, -1999.0), (-123_456.0, 1_000.0)])
def test_the_grid_begins_where_fewest_cells_are_occupied(by):
    """A block of 2 x 2 km of records lies in one cell, wherever it begins, to the 200 m of the offsets."""
    rng = np.random.default_rng(0)
    points = rng.uniform(0, 1750, (200, 2)) + np.array(by)
    found = occupied(points)
    assert len(found.cells) == 1 and found.km2 == 4.0
    assert shapely.contains_xy(found.squares[0].buffer(1e-6), points).all()


def test_a_full_rectangle_has_its_area():
    x, y = np.meshgrid(np.arange(100, 20_000, 200), np.arange(100, 12_000, 200))
    found = occupied(np.column_stack([x.ravel(), y.ravel()]).astype(float))
    assert found.km2 == 240.0 and found.origin == (0.0, 0.0)


def test_fewest_by_trying_all_offsets():
    points = np.random.default_rng(3).normal(0, 9_000, (300, 2))
    counts = [
        len({(np.floor((x - right) / 2000), np.floor((y - up) / 2000)) for x, y in points})
        for right in range(0, 2000, 200)
        for up in range(0, 2000, 200)
    ]
    found = occupied(points)
    assert len(found.cells) == min(counts) < max(counts)
    inside = shapely.contains_xy(shapely.union_all(found.squares).buffer(1e-6), points)
    assert inside.all()


def test_both_as_redlistr_does_with_other_programs():
    """Its example of a species: points in EPSG:3112, the hull, and the cells of 2 km on 99 grids placed at random."""
    rng = np.random.default_rng(8)
    lon, lat = rng.normal(150.0, 0.15, 200), rng.normal(-33.4, 0.1, 200)
    points = geopandas.GeoSeries(geopandas.points_from_xy(lon, lat), crs=4326).to_crs(3112)
    counts = []
    for shift in rng.uniform(0, 2000, (99, 2)):
        cells = np.floor((np.column_stack([points.x, points.y]) + shift) / 2000)
        counts.append(len(np.unique(cells, axis=0)))
    found = extent(lon, lat)
    # The fewest of 100 systematic offsets: near the fewest of 99 random ones, in another projection.
    assert min(counts) - 4 <= found.aoo_km2 / 4 <= min(counts) + 4 < np.median(counts) + 4
    hull = points.to_crs(9473).union_all().convex_hull  # GDA2020 / Australian Albers, equal area
    cell = 2000 * np.sqrt(2)
    assert hull.area / 1e6 <= found.eoo_km2 <= hull.buffer(cell, join_style="mitre").area / 1e6


# Extent of occurrence ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lon", "lat"), [((5, 12), (44, 49)), ((172, 189), (-20, -12)), ((-60, -50), (-5, 5)), ((0, 360), (78, 84))]
)
def test_extent_against_geodesics_and_another_projection(lon, lat):
    rng = np.random.default_rng(7)
    lons = (rng.uniform(*lon, 60) + 180) % 360 - 180
    lats = rng.uniform(*lat, 60)
    found = extent(lons, lats)
    assert found.aoo_km2 == 240.0  # no two of them are near
    around = found.plane.degrees(np.array([found.hull], dtype=object))
    assert around.is_valid and around.bounds[0] >= -180 and around.bounds[2] <= 180
    assert geodesic_km2(around) == pytest.approx(found.eoo_km2, rel=1e-4)
    assert shapely.contains_xy(around, lons, lats).all()
    flat = Transformer.from_crs(4326, found.plane.crs, always_xy=True).transform(lons, lats)
    points = shapely.convex_hull(shapely.multipoints(np.column_stack(flat)))
    assert found.of_points_km2 == pytest.approx(points.area / 1e6)
    # Around the points: at least half a kilometre of margin on average, at most the diagonal of a cell.
    assert points.buffer(200).area / 1e6 < found.eoo_km2 < points.buffer(2830).area / 1e6
    squares = found.plane.degrees(found.cells.squares)
    assert squares.is_valid and geodesic_km2(squares) == pytest.approx(240.0, rel=1e-4)


def test_180_degrees_is_no_edge():
    rng = np.random.default_rng(5)
    lon, lat = rng.uniform(-6, 6, 40), rng.uniform(60, 66, 40)
    here, there = extent(lon, lat), extent((lon + 180 + 180) % 360 - 180, lat)
    assert there.eoo_km2 == pytest.approx(here.eoo_km2, rel=1e-6) and there.aoo_km2 == here.aoo_km2


def test_few_records():
    one = extent(np.array([11.0]), np.array([47.0]))
    assert (one.eoo_km2, one.aoo_km2, one.of_points_km2) == (4.0, 4.0, 0.0)
    two = extent(np.array([11.0, 11.2]), np.array([47.0, 47.0]))
    assert two.aoo_km2 == 8.0 and 8.0 < two.eoo_km2 < 80.0 and two.of_points_km2 == 0.0
    assert not two.wide


def test_records_all_over_the_globe():
    lon, lat = np.array([0.0, 90.0, 180.0, -90.0, 30.0, 0.0]), np.array([0.0, 10.0, 0.0, -10.0, 80.0, -80.0])
    found = extent(lon, lat)
    assert found.wide and np.isfinite(found.eoo_km2) and found.aoo_km2 == 24.0
    assert found.plane.degrees(np.array([found.hull], dtype=object)).is_valid


def test_extent_of_polygons():
    square = shapely.box(10, 45, 12, 47)
    area, around = eoo_of_polygons(shapely.union_all([square, shapely.box(10.5, 45.5, 11, 46)]))
    assert area == pytest.approx(geodesic_km2(around), rel=1e-4) and area == pytest.approx(
        geodesic_km2(square), rel=0.01
    )
    assert shapely.contains(around.buffer(1e-9), square.buffer(-0.05))
    split = shapely.MultiPolygon([shapely.box(179, 0, 180, 1), shapely.box(-180, 0, -179, 1)])
    assert eoo_of_polygons(split)[0] == pytest.approx(geodesic_km2(split), rel=0.01)
    assert eoo_of_polygons(shapely.MultiPolygon())[0] == 0.0


def test_the_plane_keeps_areas():
    plane = Plane.around(np.array([170.0, -170.0]), np.array([50.0, 52.0]))
    square = shapely.box(-1e6, -1e6, 1e6, 1e6)
    assert geodesic_km2(plane.degrees(np.array([square], dtype=object))) == pytest.approx(4e6, rel=1e-4)


def test_thresholds_of_area():
    assert met(4_999.9, B1) == {"CR": "not met", "EN": "met", "VU": "met"}
    assert met(5_000.0, B1) == {"CR": "not met", "EN": "not met", "VU": "met"}
    assert met(9.9, B2) == {"CR": "met", "EN": "met", "VU": "met"}
    assert met(2_000.0, B2) == {"CR": "not met", "EN": "not met", "VU": "not met"}


# Files, maps and the command ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def mapped(tmp_path_factory):
    """A folder with a map of the puma and its range."""
    folder = tmp_path_factory.mktemp("maps")
    job = sdm.plan("Puma concolor", (-112, 38, -108, 41), resolution=0.1, modalities="location")
    sdm.write_maps(job, folder, range="recall=0.9", formats="cog")
    return folder


@pytest.fixture
def many(tmp_path):
    rng = np.random.default_rng(2)
    rows = [("Puma concolor", *p) for p in rng.uniform((-111.9, 38.1), (-108.1, 40.9), (30, 2))]
    rows += [("=Lynx rufus", *p) for p in rng.uniform((-111.0, 38.1), (-110.9, 38.2), (5, 2))]
    rows += [("Broken one", "x", "y")]
    return write_csv(tmp_path / "many.csv", rows)


def test_many_species_and_a_map(many, mapped, tmp_path):
    done = {one.species: one for one in assess(many, mapped / "puma-concolor.tif")}
    puma, broken = done["Puma concolor"], done["Broken one"]
    assert broken.extent is None and "no usable presence" in broken.error
    frames = {s: geopandas.read_file(mapped / "puma-concolor-range.gpkg", layer=s) for s in ("range_low", "range")}
    corners = shapely.get_coordinates(frames["range"].geometry[0])
    flat = np.column_stack(Transformer.from_crs(4326, 6350, always_xy=True).transform(*corners.T))  # Albers, equal area
    assert puma.map.eoo_km2["range"] == pytest.approx(
        shapely.convex_hull(shapely.multipoints(flat)).area / 1e6, rel=0.02
    )
    assert puma.map.rule == "recall=0.9" and puma.map.eoo_km2["low"] <= puma.map.eoo_km2["range"]
    files = write_assessments(list(done.values()), tmp_path / "out", "many")
    with files[0].open(newline="") as file:
        rows = {row["species"]: row for row in csv.DictReader(file)}
    assert set(rows) == {"Broken one", "Puma concolor", "'=Lynx rufus"}
    assert float(rows["Puma concolor"]["aoo_km2"]) == 4 * int(rows["Puma concolor"]["aoo_cells"])
    assert rows["Puma concolor"]["b1_vu"] == "not met" and rows["'=Lynx rufus"]["b2_en"] == "met"
    assert rows["Puma concolor"]["map_low_eoo_km2"] and not rows["'=Lynx rufus"]["map_low_eoo_km2"]
    told = json.loads(files[1].read_text())
    assert told["method"]["aoo_of_map"] == NO_AOO and "category" in told["method"]
    assert not any("category" in key for one in told["species"] for key in one)
    layers = {name: geopandas.read_file(files[2], layer=name) for name in geopandas.list_layers(files[2]).name}
    assert set(layers) == {"eoo", "aoo", "eoo_of_map"}
    for layer in layers.values():
        assert layer.is_valid.all() and layer.crs.to_epsg() == 4326
    for row, shape in zip(layers["eoo"].eoo_km2, layers["eoo"].geometry, strict=True):
        assert geodesic_km2(shape) == pytest.approx(row, rel=1e-4)
    for row, shape in zip(layers["aoo"].cells, layers["aoo"].geometry, strict=True):
        assert len(shape.geoms) == row
    with pytest.raises(OutputError, match="exists already"):
        write_assessments(list(done.values()), tmp_path / "out", "many")


def test_a_map_without_a_range_is_cut_at_its_expected_area(many, mapped, tmp_path):
    (tmp_path / "puma.tif").write_bytes((mapped / "puma-concolor.tif").read_bytes())
    (puma,) = assess(many, tmp_path / "puma.tif", "Puma concolor")
    assert puma.map.rule == "area"
    assert 0 < puma.map.eoo_km2["low"] <= puma.map.eoo_km2["range"] <= puma.map.eoo_km2["high"]


def test_an_empty_range_has_no_extent(many, tmp_path):
    job = sdm.plan("Puma concolor", (-112, 38, -108, 41), resolution=0.2, modalities="location")
    sdm.write_maps(job, tmp_path, range=0.999999, formats="cog")
    (puma,) = assess(many, tmp_path / "puma-concolor.tif", "Puma concolor")
    assert "range" in puma.map.empty and "range" not in puma.map.eoo_km2
    row = puma.row()
    assert row["map_range_eoo_km2"] == "" and row["b1_map_range_cr"] == "" and "is empty" in row["notes"]


def test_uncertain_places_are_told(tmp_path):
    rows = [("A b", 11.0, 47.0, 5000), ("A b", 12.0, 48.0, 100), ("A b", 12.5, 48.0, "")]
    path = write_csv(tmp_path / "a.csv", rows, ("species", "lon", "lat", "coordinateUncertaintyInMeters"))
    (one,) = sdm.assess(path)
    assert any("1 of 3 presences are uncertain by more than 2,000 m" in note for note in one.notes)


def test_maps_that_do_not_belong_are_refused(many, mapped, tmp_path, write_raster):
    with pytest.raises(RequestError, match="is of 'Puma concolor', but the records are of '=Lynx rufus'"):
        assess(many, mapped / "puma-concolor.tif", "=Lynx rufus")
    foreign = write_raster(np.ones((4, 4), np.float32), "foreign.tif")
    with pytest.raises(LayerError, match="holds no probabilities that this program wrote"):
        assess(many, foreign, "Puma concolor")
    with pytest.raises(LayerError, match="cannot be read"):
        assess(many, tmp_path / "none.tif", "Puma concolor")
    with pytest.raises(RecordsError, match="no usable presence"):
        assess(many, species="Broken one")
    with pytest.raises(RequestError, match="two maps"):
        assess(many, [mapped / "puma-concolor.tif"] * 2)


def test_the_command(many, tmp_path):
    runner = CliRunner()
    done = runner.invoke(sdm_app, ["assess", "--records", str(many), "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert "B2 CR not met, EN met, VU met" in done.output and "give no category" in done.output
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "many-assessment.csv",
        "many-assessment.json",
        "many-assessment.gpkg",
    }
    told = runner.invoke(sdm_app, ["assess", "--records", str(many), "--species", "Puma concolor", "--json"])
    assert json.loads(told.stdout)["species"][0]["aoo_km2"] > 100
    absent = runner.invoke(sdm_app, ["assess", "--map", "maps/puma-concolor.tif"])
    assert isinstance(absent.exception, RequestError) and "area of occupancy is not computed from a map" in str(
        absent.exception
    )


def test_absences_and_cleaning_count(tmp_path):
    rows = [("A b", 11.0, 47.0, "present"), ("A b", 12.0, 48.0, "absent"), ("A b", 0.0, 0.0, "present")]
    path = write_csv(tmp_path / "a.csv", rows, ("species", "lon", "lat", "occurrenceStatus"))
    (one,) = sdm.assess(path)
    assert one.extent.aoo_km2 == 4.0 and one.row()["presences"] == 1
