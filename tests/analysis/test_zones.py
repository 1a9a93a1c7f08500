"""Maps summed over zones, against overlays of every pixel with every zone."""

import csv

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
from pyproj import Geod, Transformer

from sdm import cli
from sdm.analysis.zones import Zones, open_maps, sum_zones
from sdm.errors import LayerError, RequestError

GEOD = Geod(ellps="WGS84")
COLUMNS = ("modelled_km2", "mean", "max", "expected_km2", "above_km2", "share_of_range")


def field(rows, columns, seed=0):
    rng = np.random.default_rng(seed)
    values = rng.random((rows, columns), dtype=np.float32)
    values[rng.random(values.shape) < 0.2] = np.nan
    return values


def geod_km2(geometry):
    return (
        sum(
            abs(GEOD.geometry_area_perimeter(shapely.orient_polygons(shapely.segmentize(p, 0.02)))[0])
            for part in shapely.get_parts(geometry)
            for p in shapely.get_parts(part)
        )
        / 1e6
    )


def by_overlay(values, transform, polygon, threshold, to_lonlat=None):
    """The numbers of one zone from the polygons of all pixels cut by it, with areas by geodesics."""
    rows, columns = values.shape
    cells = [
        shapely.box(*(transform @ (c, r + 1)), *(transform @ (c + 1, r))) for r in range(rows) for c in range(columns)
    ]
    cut = shapely.intersection(cells, polygon)
    areas = np.array([0.0 if g.is_empty else geod_km2(to_lonlat(g) if to_lonlat else g) for g in cut])
    p = values.ravel().astype(float)
    known = np.isfinite(p) & (areas > 0)
    whole = np.array([geod_km2(to_lonlat(c) if to_lonlat else c) for c in cells])
    modelled, expected = areas[known].sum(), (areas * p)[known].sum()
    above = areas[known & (p >= threshold)].sum()
    return modelled, expected / modelled, p[known].max(), expected, above, expected / np.nansum(whole * p)


def frame(tmp_path, geometry, names, crs=4326, name="parks.gpkg"):
    path = tmp_path / name
    geopandas.GeoDataFrame({"site": names}, geometry=geometry, crs=crs).to_file(path)
    return path


ZONES = [
    shapely.Polygon([(10.13, 50.2), (12.4, 51.37), (11.8, 49.05), (10.9, 49.9)]),
    shapely.box(10.6, 49.4, 11.35, 50.85),  # overlaps the first
    shapely.Point(12.0, 50.5).buffer(0.02),  # within one pixel
    shapely.box(12.6, 48.0, 20.0, 60.0),  # reaches beyond the map
    shapely.MultiPolygon([shapely.box(10.1, 48.6, 10.2, 48.7), shapely.box(12.1, 48.6, 12.55, 48.95)]),
]


def test_zones_equal_the_overlay(write_raster, tmp_path):
    values = field(12, 15)
    path = write_raster(values, west=10.0, north=51.5, cell=0.25, nodata=np.nan)
    zones = Zones.read(frame(tmp_path, ZONES, list("abcde")), "site")
    sums = sum_zones(zones, open_maps([path]), 0.6)
    transform = rasterio.open(path).transform
    for z, polygon in enumerate(ZONES):
        expected = by_overlay(values, transform, polygon, 0.6)
        got = [getattr(sums, name)[z, 0] for name in COLUMNS]
        # Within a pixel all places weigh alike, in degrees: a zone inside one pixel is off most.
        np.testing.assert_allclose(got, expected, rtol=4e-3, err_msg=str(z))
        assert zones.area_km2[z] == pytest.approx(geod_km2(polygon), rel=1e-5)


def test_zones_of_another_crs_on_a_projected_map(write_raster, tmp_path):
    values = field(10, 12, seed=1)
    place = rasterio.transform.from_origin(4_000_000, 3_000_000, 40_000, 40_000)
    path = write_raster(values, transform=place, crs="EPSG:3035", nodata=np.nan)
    utm = [shapely.box(400_000, 5_300_000, 640_000, 5_520_000), shapely.Point(560_000, 5_420_000).buffer(90_000)]
    sums = sum_zones(Zones.read(frame(tmp_path, utm, [1, 2], 32632), "site"), open_maps([path]))
    back = Transformer.from_crs(32632, 3035, always_xy=True)
    to_degrees = Transformer.from_crs(3035, 4326, always_xy=True)

    def lonlat(g):
        return shapely.transform(shapely.segmentize(g, 4_000), lambda xy: np.column_stack(to_degrees.transform(*xy.T)))

    for z, polygon in enumerate(utm):
        dense = shapely.transform(shapely.segmentize(polygon, 2_000), lambda xy: np.column_stack(back.transform(*xy.T)))
        expected = by_overlay(values, place, dense, 0.5, lonlat)
        got = [getattr(sums, name)[z, 0] for name in COLUMNS]
        np.testing.assert_allclose(got, expected, rtol=2e-3, err_msg=str(z))


@pytest.mark.parametrize("west", [170.0, -190.0])
def test_across_180(write_raster, tmp_path, west):
    values = np.full((8, 40), 0.5, np.float32)
    path = write_raster(values, west=west, north=-10.0, cell=0.5)
    fiji = [shapely.box(-180, -13, -178, -11), shapely.box(177, -13, 180, -11), shapely.box(0, -13, 2, -11)]
    zones = Zones.read(frame(tmp_path, fiji, ["fiji", "fiji", "benin"]), "site")
    assert zones.ids == ("fiji", "benin") and "share their site" in zones.notes[0]
    sums = sum_zones(zones, open_maps([path]))
    whole = geod_km2(fiji[0]) + geod_km2(fiji[1])
    covered = geod_km2(fiji[1]) + geod_km2(fiji[0]) if west == 170.0 else geod_km2(fiji[0]) + geod_km2(fiji[1])
    assert zones.area_km2[0] == pytest.approx(whole, rel=1e-5)
    assert sums.modelled_km2[:, 0] == pytest.approx([covered, 0.0], rel=1e-4)
    assert sums.expected_km2[0, 0] == pytest.approx(0.5 * covered, rel=1e-4)


def test_many_zones_and_maps_in_strips(write_raster, tmp_path, monkeypatch):
    """Read in narrow strips and few maps at once, the numbers are the same."""
    from sdm.analysis import zones as module

    paths = [write_raster(field(40, 30, k), f"s{k}.tif", 0.0, 10.0, 0.25, nodata=np.nan) for k in range(5)]
    rng = np.random.default_rng(1)
    places, sizes = rng.uniform((0, 0), (7, 10), (200, 2)), rng.uniform(0.05, 1, 200)
    circles = shapely.buffer(shapely.points(places), sizes)
    zones = Zones.read(frame(tmp_path, circles, range(200)), "site")
    one = sum_zones(zones, open_maps(paths))
    monkeypatch.setattr(module, "STRIP", 90)
    monkeypatch.setattr(module, "AT_ONCE", 2)
    other = sum_zones(zones, open_maps(paths))
    for name in COLUMNS:
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), rtol=1e-9, err_msg=name)
    assert one.names == tuple(f"s{k}" for k in range(5))
    most = one.modelled_km2.max(axis=1)
    np.testing.assert_allclose(one.richness, one.expected_km2.sum(axis=1) / most)


def test_the_command_writes_a_table_and_polygons(run, write_raster, tmp_path):
    path = write_raster(field(12, 15), "puma.tif", 10.0, 51.5, 0.25, nodata=np.nan)
    frame(tmp_path, ZONES, list("abcde"))
    line = ("zones", path, "--zones", "parks.gpkg", "--id", "SITE", "--out", "o")
    code, out, err = run(*line, entry=cli.main_sdm)
    assert code == 0 and "5 zones, 1 maps" in out, err
    rows = list(csv.DictReader((tmp_path / "o" / "parks-zones.csv").open()))
    assert [row["site"] for row in rows] == list("abcde") and {row["species"] for row in rows} == {"puma"}
    table = geopandas.read_file(tmp_path / "o" / "parks-zones.gpkg", layer="zones")
    assert list(table.site) == list("abcde") and table.crs.to_epsg() == 4326
    assert table.expected_km2.to_numpy() == pytest.approx([float(row["expected_km2"]) for row in rows])
    assert shapely.equals(
        shapely.normalize(table.geometry.iloc[0]), shapely.normalize(shapely.MultiPolygon([ZONES[0]]))
    )
    assert run(*line, entry=cli.main_sdm)[0] == 6
    for options, code, words in (
        (("--zones", "parks.gpkg", "--id", "code"), 4, "no attribute 'code'; it has 'site'"),
        (("--zones", "none.gpkg"), 4, "does not exist"),
        ((), 2, "--zones"),
        (("--zones", "parks.gpkg", "--threshold", "2"), 2, "between 0 and 1"),
    ):
        got, _, err = run("zones", path, *options, "--out", "p", entry=cli.main_sdm)
        assert got == code and words in err and err.count("\n") == 1, err


def test_a_batch_is_read_as_its_maps_are(run, tmp_path, write_model):
    (tmp_path / "list.csv").write_text("species\nUrsus arctos\nPuma concolor\nCanis lupus\n")
    batch = ("--species", "list.csv", "--bbox", "-120,40,-112,46", "--resolution", "0.5", "--format", "cog")
    assert run(*batch, "--out", "west")[0] == 0
    zones = Zones.read(frame(tmp_path, [shapely.box(-119.3, 41.1, -113.8, 45.2)], ["x"]), "site")
    whole = sum_zones(zones, open_maps(["west"]))
    single = sum_zones(zones, open_maps(["west/species"]))
    assert set(whole.names) == set(single.names) and len(whole.names) == 3
    for name in COLUMNS:
        pairs = [
            (getattr(whole, name)[0, whole.names.index(n)], getattr(single, name)[0, k])
            for k, n in enumerate(single.names)
        ]
        np.testing.assert_allclose(*zip(*pairs, strict=True), rtol=2e-3, err_msg=name)
    # As the store of fits whose values are no probabilities.
    store = tmp_path / "west" / "probability.zarr"
    (store / "probability").rename(store / "relative_suitability")
    metadata = (store / ".zmetadata").read_text().replace('"probability/', '"relative_suitability/')
    (store / ".zmetadata").write_text(metadata)
    relative = sum_zones(zones, open_maps(["west"]))
    np.testing.assert_array_equal(relative.mean, whole.mean)
    assert np.isnan(relative.expected_km2).all() and np.isnan(relative.richness).all()


def test_values_that_are_no_probabilities_are_not_summed_to_an_area(run, write_raster, tmp_path):
    paths = [write_raster(field(12, 15, k), f"s{k}.tif", 10.0, 51.5, 0.25, nodata=np.nan) for k in range(2)]
    zones = Zones.read(frame(tmp_path, ZONES[:2], list("ab")), "site")
    first, both = sum_zones(zones, open_maps(paths[:1])), sum_zones(zones, open_maps(paths))
    with rasterio.open(paths[1], "r+") as file:
        file.update_tags(score="relative_suitability")
    one = sum_zones(zones, open_maps(paths))
    assert np.isnan(one.expected_km2[:, 1]).all() and np.isnan(one.share_of_range[:, 1]).all()
    for name in ("mean", "max", "above_km2"):
        np.testing.assert_array_equal(getattr(one, name), getattr(both, name))
    np.testing.assert_array_equal(one.richness, first.richness)
    code, out, err = run("zones", paths[1], "--zones", "parks.gpkg", "--out", "o", entry=cli.main_sdm)
    assert code == 0 and "highest" in out and "expected" not in out, err


def test_what_cannot_be_summed_is_refused(write_raster, tmp_path):
    path = write_raster(field(3, 3))
    zones = Zones.read(frame(tmp_path, [shapely.box(0, 0, 1, 1)], ["x"]), "site")
    with pytest.raises(RequestError, match="two maps are named"):
        sum_zones(zones, open_maps([path, path]))
    with pytest.raises(LayerError, match="does not exist"):
        open_maps([tmp_path / "none.tif"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(LayerError, match="holds no map"):
        open_maps([tmp_path / "empty"])


def test_an_index_is_read_as_its_maps_are(run, tmp_path):
    """The maps of an index, of a list or of all its species; seas are left out of an index of land, and said so."""
    box = ("--bbox", "-120,40,-116,43", "--resolution", "0.25", "--tile-size", "16")
    assert run("index", "build", *box, "--out", "west.zarr", "--model", "mammals-trees", entry=cli.main_sdm)[0] == 0
    (tmp_path / "list.csv").write_text("species\nUrsus arctos\nPuma concolor\nOrcinus orca\nNessiteras rhombopteryx\n")
    assert run("--species", "list.csv", "--index", "west.zarr", "--out", "west")[0] == 0
    parks = frame(tmp_path, [shapely.box(-119.3, 40.1, -117.1, 42.2), shapely.box(-117, 40, -110, 42)], ["a", "b"])
    line = ("zones", "west.zarr", "--zones", parks, "--id", "site")
    code, _, err = run(*line, "--species", "list.csv", "--out", "listed", entry=cli.main_sdm)
    assert code == 0 and "1 of 4 names cannot be mapped" in err and "1 species live where" in err
    assert run("zones", "west", *line[2:], "--out", "batch", entry=cli.main_sdm)[0] == 0
    listed, batch = (
        {(row["site"], row["species"]): row for row in csv.DictReader((tmp_path / folder / "parks-zones.csv").open())}
        for folder in ("listed", "batch")
    )
    assert listed.keys() == batch.keys() and len(listed) == 4
    for key, row in listed.items():
        for column in COLUMNS:
            # A batch rounds to 1/8192, an index its embeddings.
            assert float(row[column]) == pytest.approx(float(batch[key][column]), rel=1e-2, abs=1e-4), (key, column)
    assert run("zones", "a.tif", "--species", "list.csv", *line[2:], entry=cli.main_sdm)[0] == 2


@pytest.mark.slow
def test_all_species_of_an_index(run, tmp_path):
    box = ("--bbox", "-120,40,-118,42", "--resolution", "0.25", "--tile-size", "16")
    assert run("index", "build", *box, "--out", "west.zarr", "--model", "mammals-trees", entry=cli.main_sdm)[0] == 0
    parks = frame(tmp_path, [shapely.box(-119.3, 40.1, -118.1, 41.2)], ["a"])
    code, _, err = run("zones", "west.zarr", "--zones", parks, "--id", "site", entry=cli.main_sdm)
    assert code == 0, err
    rows = list(csv.DictReader((tmp_path / "zones" / "parks-zones.csv").open()))
    assert len(rows) > 5000 and max(float(row["mean"]) for row in rows) > 0.9
