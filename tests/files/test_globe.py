"""Polygons of projected CRSs on the globe, and as regions of maps."""

import json

import geopandas
import numpy as np
import pyproj
import pytest
import shapely
from pyproj import Geod, Transformer

from sdm.errors import BoxError, LayerError
from sdm.files.globe import to_lonlat
from sdm.grid import Region, Tile, as_region, make_grid

GEOD = Geod(ellps="WGS84")


def placed(geometry, code):
    return to_lonlat(geometry, pyproj.CRS.from_epsg(code))


def area_km2(geometry):
    return abs(GEOD.geometry_area_perimeter(geometry)[0]) / 1e6


def true_lonlat_inside(polygon, code, lon, lat):
    """Whether places lie in a polygon of a CRS: tested there, without any edge on the globe."""
    x, y = Transformer.from_crs(4326, code, always_xy=True).transform(lon, lat)
    return shapely.contains_xy(polygon, x, y)


@pytest.mark.parametrize(
    ("code", "box"),
    [
        (5070, (-2_300_000, 300_000, 2_200_000, 3_100_000)),  # the United States, in equal area
        (3035, (2_500_000, 1_400_000, 6_000_000, 5_200_000)),  # Europe
        (3338, (-2_200_000, 400_000, 1_400_000, 2_300_000)),  # Alaska with the Aleutians, across 180
        (2193, (700_000, 4_300_000, 3_000_000, 6_900_000)),  # New Zealand with the Chathams, across 180
        (3031, (-2_000_000, -1_500_000, 1_800_000, 2_500_000)),  # around the South Pole
        (3995, (-900_000, -700_000, 2_500_000, 1_200_000)),  # around the North Pole
        (3995, (0, 0, 2_000_000, 1_500_000)),  # a corner on the Pole
        (3995, (-1_500_000, 0, 1_500_000, 1_000_000)),  # an edge through the Pole
        (3413, (200_000, -1_800_000, 1_900_000, -150_000)),  # beside it
    ],
)
def test_a_box_of_a_projection_holds_the_same_places_on_the_globe(code, box):
    polygon = shapely.box(*box)
    lonlat = placed(polygon, code)
    assert shapely.is_valid(lonlat)
    rng = np.random.default_rng(0)
    x, y = rng.uniform(box[0] - 3e5, box[2] + 3e5, 4000), rng.uniform(box[1] - 3e5, box[3] + 3e5, 4000)
    lon, lat = Transformer.from_crs(code, 4326, always_xy=True).transform(x, y)
    away = np.abs(shapely.distance(polygon.exterior, shapely.points(x, y))) > 10.0  # metres
    expected = shapely.contains_xy(polygon, x, y)
    found = np.any([shapely.contains_xy(lonlat, lon + turn, lat) for turn in (-360, 0, 360)], axis=0)
    np.testing.assert_array_equal(found[away], expected[away])
    west, _, east, _ = lonlat.bounds
    assert east - west <= 360.0 + 1e-9


def test_a_hole_stays_a_hole_across_180_and_around_a_pole():
    ring = shapely.box(-2e6, -2e6, 2e6, 2e6) - shapely.box(-1e6, -1e6, 1e6, 1e6)
    lonlat = placed(ring, 3031)
    x, y = np.array([1.5e6, 0.0, -1.5e6, 0.2e6]), np.array([0.0, 1.5e6, 1.2e6, 0.3e6])
    lon, lat = Transformer.from_crs(3031, 4326, always_xy=True).transform(x, y)
    found = np.any([shapely.contains_xy(lonlat, lon + turn, lat) for turn in (-360, 0, 360)], axis=0)
    np.testing.assert_array_equal(found, [True, True, True, False])
    across = shapely.box(-1.8e6, 5e5, -1e6, 1.2e6) - shapely.box(-1.6e6, 7e5, -1.2e6, 1e6)
    assert area_km2(placed(across, 3338)) == pytest.approx(across.area / 1e6, rel=1e-3)  # Alaska Albers is equal area


def test_a_geographic_crs_keeps_its_turns():
    box = shapely.box(170, -20, 190, -10)
    for code in (4326, 4269, 4275):
        np.testing.assert_allclose(placed(box, code).bounds, box.bounds, atol=0.01)
    paris = pyproj.CRS.from_epsg(4807)  # grads from Paris
    west, south, east, north = to_lonlat(shapely.box(0, 50, 2, 52), paris).bounds
    assert west == pytest.approx(2.337, abs=0.01) and east == pytest.approx(2.337 + 1.8, abs=0.01)
    assert (south, north) == (pytest.approx(45.0, abs=0.01), pytest.approx(46.8, abs=0.01))


def test_what_lies_off_the_globe_is_refused():
    with pytest.raises(LayerError, match="beyond the domain of its CRS"):
        placed(shapely.box(-18e6, -9e6, 18e6, 9e6), 3035)


def write(tmp_path, polygons, code, name="area.gpkg"):
    path = tmp_path / name
    geopandas.GeoDataFrame(geometry=polygons, crs=code).to_file(path)
    return path


def test_a_rectangle_of_the_maps_crs_is_the_grid(tmp_path):
    path = write(tmp_path, [shapely.box(-2_300_000, 300_000, 2_250_000, 3_150_000)], 5070)
    grid = make_grid(None, as_region(path), "EPSG:5070", 50_000.0)
    assert grid.shape == (57, 91)
    assert grid.inside_region(Tile((0, 0), slice(0, 57), slice(0, 91))).all()
    assert grid.geobox.boundingbox.bbox == (-2_300_000, 300_000, 2_250_000, 3_150_000)


@pytest.mark.parametrize("crs", ["EPSG:4326", "EPSG:6933", "EPSG:3857"])
def test_a_projected_region_masks_another_crs_exactly(tmp_path, crs):
    polygon = shapely.box(2_500_000, 1_400_000, 6_000_000, 5_200_000)
    region = as_region(write(tmp_path, [polygon], 3035))
    grid = make_grid(None, region, crs, 0.2 if crs == "EPSG:4326" else 40_000.0)
    rows, cols = grid.shape
    inside = grid.inside_region(Tile((0, 0), slice(0, rows), slice(0, cols)))
    lon, lat = grid.lonlat(np.arange(rows), np.arange(cols))
    assert (inside != true_lonlat_inside(polygon, 3035, lon, lat)).mean() < 1e-4


def test_a_region_across_180_takes_the_short_way(tmp_path):
    to_nz = Transformer.from_crs(4326, 2193, always_xy=True)
    corners = np.column_stack(to_nz.transform([167, 179, -177, -177, 179, 167], [-47, -47, -47, -35, -35, -35]))
    path = write(tmp_path, [shapely.Polygon(corners)], 2193)
    west, _, east, _ = as_region(path).bounds
    assert (west, east) == (pytest.approx(167, abs=0.2), pytest.approx(183, abs=0.2))
    # Islands that are whole on either side, far apart in plain degrees.
    islands = [shapely.box(-178, -20, -177, -19), shapely.box(177, -18, 178, -17), shapely.box(160, -10, 161, -9)]
    west, _, east, _ = Region.from_geometry(shapely.MultiPolygon(islands)).bounds
    assert (west, east) == (160, 183)


def test_a_region_around_a_pole_spans_all_longitudes(tmp_path):
    parts = [shapely.Point(0, 0).buffer(2e6), shapely.box(-3e6, -1e5, -2.5e6, 1e5)]
    region = as_region(write(tmp_path, parts, 3995))
    assert region.bounds[0] == pytest.approx(-180) and region.bounds[2] == pytest.approx(180)
    assert region.bounds[3] == pytest.approx(90)
    grid = make_grid(None, region, "EPSG:3995", 100_000.0)
    assert grid.shape == (40, 50)
    assert make_grid(None, region, resolution=1.0).shape[1] == 360


def test_the_long_way_round_is_told():
    notes = Region.from_geometry(shapely.box(-170, -20, 175, -10), "fiji.geojson").notes
    assert len(notes) == 1 and "345 degrees" in notes[0] and "190 for -170" in notes[0]
    assert Region.from_geometry(shapely.box(-170, -20, -100, -10)).notes == ()
    assert Region.from_geometry(shapely.box(-180, -90, 180, 90)).notes == ()


def test_layers_are_chosen_or_named(tmp_path):
    path = tmp_path / "park.gpkg"
    frame = geopandas.GeoDataFrame({"kind": ["core", "rim"]}, geometry=[shapely.box(5, 45, 6, 46)] * 2, crs=4326)
    frame.loc[1, "geometry"] = shapely.box(6, 45, 9, 46)
    frame.to_file(path, layer="zones")
    geopandas.GeoDataFrame(geometry=[shapely.Point(5, 45)], crs=4326).to_file(path, layer="posts")
    region = as_region(path)
    assert region.bounds == (5, 45, 9, 46) and "'zones'" in region.notes[0]
    assert as_region(path, where="kind = 'core'").bounds == (5, 45, 6, 46)
    frame.iloc[:1].to_file(path, layer="old")
    with pytest.raises(LayerError, match=r"holds the layers 'zones', 'old'; choose one with --layer NAME"):
        as_region(path)
    assert as_region(path, "old").bounds == (5, 45, 6, 46) and as_region(path, "old").notes == ()
    for arguments, words in (
        (("new",), "has no layer 'new'; it has"),
        (("zones", "kind = 'none'"), "no feature where"),
        (("zones", "kin = 'core'"), "no condition on its attributes"),
        (("posts",), "holds no polygon|no geometry"),
    ):
        with pytest.raises((LayerError, BoxError), match=words):
            as_region(path, *arguments)


def test_a_zip_of_several_files_is_asked_about(tmp_path):
    import zipfile

    for name, box in (("core", (5, 45, 6, 46)), ("rim", (6, 45, 9, 46))):
        write(tmp_path, [shapely.box(*box)], 4326, f"{name}.shp")
    with zipfile.ZipFile(tmp_path / "both.zip", "w") as archive:
        for file in sorted(tmp_path.glob("core.*")) + sorted(tmp_path.glob("rim.*")):
            archive.write(file, f"my park/{file.name}")
    with pytest.raises(LayerError, match="holds the layers 'core', 'rim'; choose one with --layer NAME"):
        as_region(tmp_path / "both.zip")
    assert as_region(tmp_path / "both.zip", "rim").bounds == (6, 45, 9, 46)


def test_a_shapefile_alone_names_what_is_missing(tmp_path):
    path = write(tmp_path, [shapely.box(5, 45, 6, 46)], 4326, "park.shp")
    (tmp_path / "park.shx").unlink()
    with pytest.raises(LayerError, match=r"lacks park\.shx.*copy all files") as caught:
        as_region(path)
    assert "SHAPE_RESTORE" not in str(caught.value) and caught.value.exit_code == 4


def test_topojson_is_in_degrees(tmp_path):
    arcs = [[[0, 0], [300, 0], [0, 100], [-300, 0], [0, -100]]]
    topology = {
        "type": "Topology",
        "transform": {"scale": [0.01, 0.01], "translate": [5, 45]},
        "objects": {"park": {"type": "Polygon", "arcs": [[0]]}},
        "arcs": arcs,
    }
    (tmp_path / "park.json").write_text(json.dumps(topology))
    np.testing.assert_allclose(as_region(tmp_path / "park.json").bounds, (5, 45, 8, 46))


def test_a_region_between_pixels_is_refused_or_gets_finer_ones():
    sliver = Region.from_geometry(shapely.box(6.301, 45, 6.309, 47), "river.gpkg")
    with pytest.raises(
        BoxError, match=r"no pixel centre lies in region river\.gpkg at resolution 0\.05.*for example"
    ) as e:
        make_grid(None, sliver, resolution=0.05)
    finer = float(str(e.value).rpartition(" ")[2].rstrip("."))
    for grid in (make_grid(None, sliver, resolution=finer), make_grid(None, sliver)):
        assert any(grid.inside_region(tile).any() for tile in grid.tiles())
    assert make_grid((7, 46, 7.002, 46.001)).shape == (2, 4)
