"""Ranges beside maps: of one and several names, from records and saved fits, over an index, in batches."""

import csv
import json

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
from pyproj import Geod

import sdm
from sdm.errors import RequestError
from sdm.maps.batch import map_batch, plan_batch, write_batch
from sdm.maps.fit_files import _range_area
from sdm.maps.plan import plan
from sdm.outputs.statistics import PixelArea

BOX = (-128, 46, -120, 52)
SMALL = {"bbox": BOX, "resolution": 0.1, "modalities": "location"}
ALPS = (6.0, 45.0, 10.0, 48.0)
FAST = {"resolution": 0.1, "background_places": 200, "reach_km": 300.0, "evaluate": False}
SIDES = ("range_low", "range", "range_high")
FIELDS = {"binomial", "rule", "threshold", "area_km2", "expected_precision", "expected_recall", "model", "citation"}


def read(path):
    with rasterio.open(path) as file:
        return file.read(1), file.tags()


def layers(path):
    assert set(geopandas.list_layers(path).name) <= set(SIDES)
    return {name: geopandas.read_file(path, layer=name) for name in geopandas.list_layers(path).name}


def geodesic_km2(shape):
    return sum(Geod(ellps="WGS84").geometry_area_perimeter(p)[0] for p in shapely.orient_polygons(shape).geoms) / 1e6


@pytest.fixture(scope="module")
def hawkers(tmp_path_factory):
    """A file of records of a species that no bundled model knows."""
    rng = np.random.default_rng(4)
    path = tmp_path_factory.mktemp("records") / "hawkers.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("species", "decimalLongitude", "decimalLatitude"))
        writer.writerows(("Aeshna affinis", *place) for place in rng.uniform((7.0, 45.9), (9.0, 46.8), (40, 2)))
    return path


@pytest.fixture(scope="module")
def fitted(hawkers, tmp_path_factory):
    """The folder of a map of it with a range, and the result."""
    folder = tmp_path_factory.mktemp("hawkers")
    return folder, sdm.write_maps(plan(records=hawkers, bbox=ALPS, **FAST, refits=5), folder, range="p10")[0]


def test_a_range_beside_each_of_several_maps(tmp_path):
    job = plan(["Puma concolor", "Ursus arctos"], **SMALL)
    for result in sdm.write_maps(job, tmp_path, range="precision=0.8", command="the command"):
        assert all(path.exists() for path in result.files.values())
        stem = result.files["range.tif"].name.removesuffix("-range.tif")
        values, _ = read(tmp_path / f"{stem}.tif")
        mask, tags = read(result.files["range.tif"])
        told = json.loads(result.files["json"].read_text())["range"]
        assert tags["rule"] == told["rule"] == "precision=0.8" and tags["command"] == "the command"
        threshold = float(tags["threshold"])
        np.testing.assert_array_equal(mask, np.where(np.isnan(values), 255, values >= np.float32(threshold)))
        area = PixelArea(job.grid.geobox).block(slice(0, 60), slice(0, 80)) / 1e6
        expected = values.astype(float) * area
        inside = mask == 1
        assert told["area_km2"] == pytest.approx((inside * area).sum())
        assert told["expected_precision"] == pytest.approx(expected[inside].sum() / told["area_km2"])
        assert told["expected_recall"] == pytest.approx(expected[inside].sum() / np.nansum(expected))
        assert told["expected_precision"] == pytest.approx(0.8, abs=0.01) or np.nanmin(values) == threshold
        found = layers(result.files["range.gpkg"])
        for name, layer in found.items():
            assert set(layer.columns) == FIELDS | {"geometry"} and len(layer) == 1
            assert (
                layer.binomial[0] == result.species and "CC0" in layer.citation[0] and "mammals-trees" in layer.model[0]
            )
            assert layer.is_valid.all() and layer.crs.to_epsg() == 4326
            assert geodesic_km2(layer.geometry[0]) == pytest.approx(layer.area_km2[0], rel=1e-4)
            assert name == "range" or told[name.removeprefix("range_")]["area_km2"] == pytest.approx(layer.area_km2[0])
        low, own, high = (found[name].geometry[0] for name in SIDES)
        assert shapely.difference(low, own).area < 1e-9 and shapely.difference(own, high).area < 1e-9
        assert found["range_low"].expected_precision[0] >= 0.949 and found["range_high"].expected_recall[0] >= 0.949
        page = (tmp_path / f"{stem}.html").read_text(encoding="utf-8")
        assert "sdmOutline(" in page and "Range (precision" in page and f"{stem}-range.gpkg" in page


def test_without_a_rule_nothing_is_different(tmp_path):
    (result,) = sdm.write_maps(plan("Puma concolor", **SMALL), tmp_path)
    assert "range" not in result.report and "range.tif" not in result.files
    assert "var outline" not in (tmp_path / "puma-concolor.html").read_text(encoding="utf-8")


def test_across_180_degrees_in_a_projected_crs(tmp_path):
    job = plan("gray whale", (170, 50, -150, 68), crs=3338, resolution=50_000, modalities="location")
    (result,) = sdm.write_maps(job, tmp_path, range="area", formats="cog")
    shape = layers(result.files["range.gpkg"])["range"]
    assert shape.geometry[0].is_valid and shape.total_bounds[0] == -180 and shape.total_bounds[2] == 180
    assert geodesic_km2(shape.geometry[0]) == pytest.approx(shape.area_km2[0], rel=1e-4)
    assert shape.area_km2[0] == pytest.approx(result.report["statistics"]["expected_area_km2"], rel=0.02)


def test_a_month_and_a_region(tmp_path):
    region = tmp_path / "region.geojson"
    region.write_text(shapely.to_geojson(shapely.Point(8, 47).buffer(1.0)))
    job = plan("barn swallow", region=region, resolution=0.1, month="may", model="birds")
    (result,) = sdm.write_maps(job, tmp_path / "out", range=0.3, formats="cog")
    assert result.files["range.gpkg"].name == "hirundo-rustica-month-05-range.gpkg"
    mask, tags = read(result.files["range.tif"])
    assert tags["month"] == "5" and set(np.unique(mask)) <= {0, 1, 255} and (mask == 255).mean() > 0.1


def test_a_fit_has_low_and_high_from_its_uncertainty(fitted):
    folder, result = fitted
    told = result.report["range"]
    assert told["rule"] == "p10" and told["expected_precision"] is None
    with rasterio.open(folder / "aeshna-affinis.tif") as file:
        values, deviation = (a.astype(float) for a in file.read([1, 2]))
        assert file.descriptions[1] == "uncertainty"
    score = np.log(-np.log1p(-np.minimum(values, 0.9999999)))
    least = np.log(-np.log1p(-told["threshold"]))
    area = PixelArea(plan(fitted=folder / "aeshna-affinis.fit.safetensors", bbox=ALPS, resolution=0.1).grid.geobox)
    area = area.block(slice(0, 30), slice(0, 40)) / 1e6
    for side, by in (("low", -1.645), ("high", 1.645)):
        inside = score + by * deviation >= least
        assert told[side]["area_km2"] == pytest.approx((inside * area).sum(), rel=1e-3)
    assert told["low"]["area_km2"] < told["area_km2"] < told["high"]["area_km2"]
    found = layers(folder / "aeshna-affinis-range.gpkg")
    for side in SIDES:
        assert geodesic_km2(found[side].geometry[0]) == pytest.approx(found[side].area_km2[0], rel=1e-4)
    assert found["range"].expected_recall.isna().all()


def test_a_saved_fit_keeps_its_thresholds(fitted, tmp_path):
    folder, first = fitted
    job = plan(fitted=folder / "aeshna-affinis.fit.safetensors", bbox=ALPS, resolution=0.1)
    (result,) = sdm.write_maps(job, tmp_path / "again", range="p10", formats="cog")
    assert result.report["range"]["threshold"] == first.report["range"]["threshold"]
    np.testing.assert_array_equal(read(result.files["range.tif"])[0], read(folder / "aeshna-affinis-range.tif")[0])
    thresholds = job.fits[0].fitted.info.thresholds
    assert thresholds["mtp"] <= thresholds["p10"] <= max(thresholds.values())
    (bare,) = sdm.write_maps(
        plan(fitted=folder / "aeshna-affinis.fit.safetensors", bbox=ALPS, resolution=0.1, trust=False),
        tmp_path / "bare",
        range="max-tss",
        formats="cog",
    )
    assert "low" not in bare.report["range"] and "not known" in bare.report["range"]["low_and_high"]


def test_the_report_of_a_fit_is_given_the_range(fitted):
    told = fitted[1].report["range"]
    area = _range_area(told)
    assert (area.km2, area.low_km2, area.high_km2) == (
        told["area_km2"],
        told["low"]["area_km2"],
        told["high"]["area_km2"],
    )
    assert area.rule == "p10" and "standard deviations" in area.bounds
    assert _range_area({k: v for k, v in told.items() if k not in ("low", "high")}).low_km2 is None


def test_over_an_index(tmp_path):
    index = sdm.build_index(sdm.plan_index(BOX, resolution=0.2, modalities="location"), tmp_path / "west.zarr")
    (result,) = sdm.write_maps(plan("Puma concolor", index=index), tmp_path / "out", range="recall=0.9", formats="cog")
    assert result.report["range"]["expected_recall"] == pytest.approx(0.9, abs=0.01)


@pytest.mark.parametrize(
    ("rule", "options", "message"),
    [
        ("p10", {}, "follows from the records"),
        (1.5, {}, "outside the values of the map, above 0 and up to 1"),
        ("area", {"score": "cosine"}, "holds cosine, which adds up to no area; give a number"),
    ],
)
def test_rules_without_a_meaning_are_refused_before_anything_is_computed(tmp_path, rule, options, message):
    with pytest.raises(RequestError, match=message):
        sdm.write_maps(plan("Puma concolor", **SMALL, **options), tmp_path / "out", range=rule)
    assert not (tmp_path / "out").exists()


def test_relative_suitability_has_no_expected_area(fitted, tmp_path):
    job = plan(fitted=fitted[0] / "aeshna-affinis.fit.safetensors", bbox=ALPS, resolution=0.1)
    with pytest.raises(RequestError, match=r"holds relative suitability.*mtp, p10, equal, max-tss"):
        sdm.write_maps(job, tmp_path / "out", range="precision=0.9")


def test_a_stand_in_has_no_range(tmp_path):
    job = plan(["Ursus nonexistens", "Puma concolor"], **SMALL, as_group=True)
    group, puma = sdm.write_maps(job, tmp_path, range="0.5", formats="cog")
    assert "range.tif" not in group.files and not list(tmp_path.glob("ursus-range*"))
    assert "the map is that of its genus Ursus" in group.report["range"]["omitted"]
    assert puma.files["range.gpkg"].exists()


def test_ranges_of_a_batch(tmp_path):
    names = ["Ursus arctos", "gray whale", "Ursus nonexistens", "Puma concolor", "grizzly"]
    batch = plan_batch(names, **SMALL, tile_size=32, as_group=True)
    result = write_batch(batch, tmp_path / "out", range="area", formats="html")
    rows = {row["query"]: row for row in result.summary}
    for query, stem in (("Ursus arctos", "ursus-arctos"), ("gray whale", "eschrichtius-robustus")):
        mask, tags = read(tmp_path / "out" / "species" / f"{stem}-range.tif")
        row = rows[query]
        assert row["range_threshold"] == float(tags["threshold"])
        values = result.open().probability.sel(species=row["species"]).values
        np.testing.assert_array_equal(mask == 1, values >= np.float32(row["range_threshold"]))
        layer = layers(tmp_path / "out" / "species" / f"{stem}-range.gpkg")["range"]
        assert geodesic_km2(layer.geometry[0]) == pytest.approx(row["range_area_km2"], rel=1e-4)
        assert f"species/{stem}-range.gpkg" in row["files"]
        assert "sdmOutline(" in (tmp_path / "out" / "species" / f"{stem}.html").read_text(encoding="utf-8")
    assert rows["grizzly"]["range_area_km2"] == rows["Ursus arctos"]["range_area_km2"]
    group = rows["Ursus nonexistens"]
    assert group["range_area_km2"] == "" and "No range is written" in group["notes"]
    assert not list((tmp_path / "out" / "species").glob("ursus-range*"))
    assert result.report["range"]["rule"] == "area" and result.report["range"]["species"] == 3
    with pytest.raises(RequestError, match="follows from the records"):
        write_batch(batch, tmp_path / "other", range="mtp")
    assert not write_batch(batch, tmp_path / "out", range="area", formats="html").computed


def test_an_interrupted_batch_keeps_its_finished_ranges(tmp_path, monkeypatch):
    from sdm.maps import ranges

    batch = plan_batch(["Ursus arctos", "Puma concolor", "Picea engelmannii"], **SMALL)
    whole = write_batch(batch, tmp_path / "whole", range="0.4", threads=1)
    written, real = [], ranges.write_range

    def failing(job, k, *rest, **options):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(k)
        return real(job, k, *rest, **options)

    monkeypatch.setattr(ranges, "write_range", failing)
    with pytest.raises(KeyboardInterrupt):
        write_batch(batch, tmp_path / "out", range="0.4", threads=1)
    assert not (tmp_path / "out" / "species").exists()
    monkeypatch.setattr(ranges, "write_range", lambda job, k, *a, **b: (written.append(k), real(job, k, *a, **b))[1])
    again = write_batch(batch, tmp_path / "out", range="0.4", threads=1)
    assert sorted(written) == [0, 1, 2]
    assert [r["range_area_km2"] for r in again.summary] == [r["range_area_km2"] for r in whole.summary]
    for path in (tmp_path / "whole" / "species").iterdir():
        same = (tmp_path / "out" / "species" / path.name).read_bytes() == path.read_bytes()
        assert same, path.name


def test_ranges_of_a_file_of_records(tmp_path):
    rng = np.random.default_rng(1)
    path = tmp_path / "two.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("species", "lon", "lat"))
        for name, west in (("Aeshna affinis", 6.5), ("Lacerta nowhere", 8.5)):
            writer.writerows((name, *p) for p in rng.uniform((west, 46.0), (west + 1, 47.0), (15, 2)))
    from sdm.maps.batch.records import plan_records
    from sdm.request import ListOptions, MapRequest

    request = MapRequest.of(records=path, bbox=ALPS, **FAST)
    result = write_batch(plan_records(request, ListOptions()), tmp_path / "out", range="p10")
    assert all(float(row["range_area_km2"]) > 100 for row in result.summary)
    assert set(layers(tmp_path / "out" / "species" / "aeshna-affinis-range.gpkg")) == {"range"}


def test_map_batch_passes_the_rule_on(tmp_path):
    assert map_batch(["Puma concolor"], out=tmp_path, range="0.5", **SMALL).summary[0]["range_area_km2"] > 0
