"""Evaluation of rasters and cross-validation on planted cases."""

import numpy as np
import pytest
import rasterio
import xarray as xr
from affine import Affine
from odc.geo.geobox import GeoBox
from pyproj import Transformer

from sdm.errors import LayerError, RecordsError
from sdm.layers.environment import Input
from sdm.models.layerspec import Variable
from sdm.models.registry import open_model
from sdm.outputs.metadata import MapMetadata
from sdm.outputs.zarr_store import create, open_map, write_tile
from sdm.records import measures
from sdm.records.baselines import (
    distance_to_records,
    elapid_maxent,
    fixed_scores,
    has_elapid,
)
from sdm.records.evaluate import (
    EvaluateOptions,
    Places,
    cross_validate,
    evaluate,
    measure,
    random_places_in,
)
from sdm.records.explain import importance, responses
from sdm.records.folds import leave_location_out, random_folds, spatial_folds
from sdm.records.sample import open_sampler
from sdm.records.sphere import nearest_km, unit_vectors
from sdm.records.table import Records
from sdm.records.variables import in_units, variable_name

RANDOM = EvaluateOptions(places=500, surface="none")


def gradient(rows=60, columns=100):
    """Values that rise from west to east, different in every pixel, 0 to 1."""
    return (np.arange(rows)[:, None] / 1e6 + np.arange(columns)[None, :] / columns).astype(np.float32)


def records(lon, lat, present=None):
    return Records.from_points(np.asarray(lon, float), np.asarray(lat, float), present)


def test_a_pixel_is_the_one_the_place_falls_in(write_raster):
    values = np.arange(20, dtype=np.float32).reshape(4, 5)
    values[1, 1] = -9999
    path = write_raster(values, west=10.0, north=50.0, cell=0.5, nodata=-9999.0)
    sampler = open_sampler(path)
    lon = [10.01, 10.49, 10.51, 12.49, 12.51, 9.99, 10.7, 370.2]
    lat = [49.99, 49.99, 48.01, 48.01, 49.0, 49.0, 49.2, 49.9]
    expected = [0, 0, 16, 19, np.nan, np.nan, np.nan, 0]
    np.testing.assert_array_equal(sampler.values(sampler.pixels(lon, lat)), expected)
    np.testing.assert_allclose(sampler.bounds, (10, 48, 12.5, 50))


def test_the_meaning_of_a_band_is_its_tag_or_its_name(write_raster):
    path = write_raster(gradient(), descriptions=["Suitability"])
    assert open_sampler(path).quantity == "Suitability"
    with rasterio.open(path, "r+") as file:
        file.update_tags(1, quantity="Probability that it is there")
    assert open_sampler(path).quantity == "Probability that it is there"


@pytest.mark.parametrize("crs", ["EPSG:3035", "EPSG:3413", "EPSG:32633"])
def test_projected_rasters_are_read_without_resampling(write_raster, crs):
    random = np.random.default_rng(0)
    values = random.normal(size=(80, 90)).astype(np.float32)
    to_crs = Transformer.from_crs("EPSG:4326", crs, always_xy=True)
    x, y = to_crs.transform(15.0, 52.0)
    path = write_raster(values, crs=crs, transform=Affine(5000, 0, x - 200_000, 0, -5000, y + 200_000))
    rows, columns = random.integers(0, 80, 50), random.integers(0, 90, 50)
    shift = random.uniform(-0.49, 0.49, (2, 50))
    px, py = Affine(5000, 0, x - 200_000, 0, -5000, y + 200_000) @ (columns + 0.5 + shift[0], rows + 0.5 + shift[1])
    lon, lat = to_crs.transform(px, py, direction="INVERSE")
    sampler = open_sampler(path)
    np.testing.assert_array_equal(sampler.values(sampler.pixels(lon, lat)), values[rows, columns])


def test_maps_across_180_degrees_and_on_0_to_360(write_raster):
    values = np.arange(40, dtype=np.float32).reshape(1, 40)
    sampler = open_sampler(write_raster(values, west=170.0, north=5.0, cell=0.5))
    got = sampler.values(sampler.pixels([171.1, 179.9, -179.9, -170.1, 0.0], [4.9] * 5))
    np.testing.assert_array_equal(got, [2, 19, 20, 39, np.nan])
    west, _, east, _ = sampler.bounds
    assert (west, east) == pytest.approx((170.0, -170.0))
    sampler = open_sampler(write_raster(np.arange(360.0).reshape(1, 360), name="b.tif", west=0.0, north=0.5))
    np.testing.assert_array_equal(
        sampler.values(sampler.pixels([0.5, -0.5, 179.5, -179.5], [0.0] * 4)), [0, 359, 179, 180]
    )


def test_reading_stays_within_windows(write_raster):
    values = np.random.default_rng(1).normal(size=(3000, 2500)).astype(np.float32)
    path = write_raster(values, west=0.0, north=30.0, cell=0.01, tiled=True, blockxsize=256, blockysize=256)
    sampler = open_sampler(path)
    sizes = []
    read = sampler.read

    def counted(rows, columns):
        sizes.append((rows.stop - rows.start) * (columns.stop - columns.start))
        return read(rows, columns)

    object.__setattr__(sampler, "read", counted)
    pixel = np.random.default_rng(2).integers(0, values.size, 500)
    np.testing.assert_array_equal(sampler.values(pixel), values.ravel()[pixel])
    assert max(sizes) <= 256 * 256 and len(sizes) <= 120


def test_zarr_and_arrays_equal_the_raster(write_raster, tmp_path):
    values = gradient()
    path = write_raster(values, west=0.0, north=30.0, cell=0.5)
    geobox = GeoBox(values.shape, Affine(0.5, 0, 0, 0, -0.5, 30), "EPSG:4326")
    metadata = MapMetadata("A", "Probability that it is there")
    create(tmp_path / "map.zarr", geobox, values.shape, metadata)
    write_tile(tmp_path / "map.zarr", slice(0, 60), slice(0, 100), values)
    random = np.random.default_rng(0)
    places = records(random.uniform(25, 49, 40), random.uniform(1, 29, 40))
    results = [
        evaluate(source, places, RANDOM) for source in (path, tmp_path / "map.zarr", open_map(tmp_path / "map.zarr"))
    ]
    assert results[0].scores == results[1].scores == results[2].scores
    assert [one.probability for one in results] == [False, True, True]


def test_hostile_and_unusable_maps_are_refused(tmp_path, write_raster):
    places = records([1.0], [1.0])
    (tmp_path / "a.vrt").write_text("<VRTDataset rasterXSize='1' rasterYSize='1'></VRTDataset>")
    (tmp_path / "a.tif").write_text("<VRTDataset rasterXSize='1' rasterYSize='1'></VRTDataset>")
    for name in ("missing.tif", "a.vrt", "a.tif"):
        with pytest.raises(LayerError):
            evaluate(tmp_path / name, places)
    with pytest.raises(LayerError, match="no band 3"):
        evaluate(write_raster(gradient()), places, EvaluateOptions(band=3))
    with pytest.raises(LayerError, match="CRS"):
        evaluate(xr.DataArray(np.zeros((3, 3)), dims=("y", "x")), places)


def test_evaluation_of_a_planted_map(write_raster):
    path = write_raster(gradient(), west=0.0, north=30.0, cell=0.5)
    random = np.random.default_rng(0)
    lon, lat = random.uniform(30, 50, 60), random.uniform(0, 30, 60)  # the eastern two fifths
    lon = np.concatenate([lon, lon[:5], [120.0]])  # the same pixels again, and one off the map
    lat = np.concatenate([lat, lat[:5], [10.0]])
    away = (random.uniform(0, 20, 80), random.uniform(0, 30, 80))
    everything = records(np.concatenate([lon, away[0]]), np.concatenate([lat, away[1]]), np.arange(66 + 80) < 66)
    group = (random.uniform(24, 50, 3000), random.uniform(0, 30, 3000))
    options = EvaluateOptions(within_km=8000.0, places=3000, surface="none", group=group, thresholds={"fixed": 0.8})
    result = evaluate(path, everything, options)
    assert result.off_map == 1 and result.presences + result.same_pixel == 65 and result.same_pixel >= 5
    assert set(result.scores) == {"land", "group", "absences"}
    assert result.scores["absences"].auc == 1.0 and result.scores["absences"].tss == 1.0
    # Presences fill the upper 40 % of the scores: random places score lower with 0.6 + 0.4 / 2.
    assert result.scores["land"].auc == pytest.approx(0.8, abs=0.04)
    assert result.scores["group"].auc == pytest.approx((6 + 20 / 2) / 26, abs=0.05)
    assert result.scores["land"].auc > result.scores["group"].auc + 0.1
    assert result.omission["fixed"] == pytest.approx(0.5, abs=0.15)
    assert result.scores["absences"].log_loss is None  # suitability is no probability
    told = evaluate(path, everything, EvaluateOptions(places=500, surface="none", probability=True))
    p = np.concatenate([told.values["presence"], told.values["absences"]])
    label = np.arange(p.size) < told.values["presence"].size
    assert told.scores["absences"].log_loss == pytest.approx(measures.log_loss(p, label))
    assert told.scores["land"].log_loss is None  # random places are no absences


def test_evaluation_without_anything_to_judge_by(write_raster):
    path = write_raster(gradient(), west=0.0, north=30.0, cell=0.5)
    with pytest.raises(RecordsError, match="none of the 1 presences"):
        evaluate(path, records([100.0], [10.0]))
    result = evaluate(path, records([25.0], [10.0]), EvaluateOptions(group=([200.0], [0.0])))
    assert "group" not in result.scores and any("group" in note for note in result.notes)


def test_random_places_are_on_land_within_reach_and_spread_by_area():
    lon, lat = np.array([179.0, -178.0]), np.array([66.0, 67.0])
    options = EvaluateOptions(within_km=700.0, places=2000)
    x, y = random_places_in(lon, lat, options)
    assert x.size == 2000 and (x < 0).any() and (x > 0).any()
    assert nearest_km(unit_vectors(x, y), unit_vectors(lon, lat)).max() <= 700.0
    from sdm.layers.landmask import LandMask

    assert LandMask().keep("land", x, y).all()
    again = random_places_in(lon, lat, options)
    assert np.array_equal(x, again[0]) and np.array_equal(y, again[1])
    # By area: of a cap of 2,000 km around the pole half of the places lie within 1,414 km of it.
    x, y = random_places_in([0.0], [90.0], EvaluateOptions(within_km=2000.0, places=4000, surface="none"))
    distance = nearest_km(unit_vectors(x, y), unit_vectors([0.0], [90.0]))
    assert (distance < 1414).mean() == pytest.approx(0.5, abs=0.03)


def planted(n=120, m=600, seed=0):
    """Presences that follow variable 0 of a smooth field; variable 1 is noise."""
    random = np.random.default_rng(seed)
    lon, lat = random.uniform(0, 20, 20_000), random.uniform(40, 55, 20_000)
    suitability = np.sin(lon / 2.5) + np.cos(lat / 2.0)
    presence = random.choice(20_000, n, replace=False, p=np.exp(2 * suitability) / np.exp(2 * suitability).sum())
    index = np.concatenate([presence, random.choice(20_000, m, replace=False)])
    kind = np.repeat(["presence", "land", "group"], [n, m - 200, 200])
    table = np.column_stack([suitability[index], random.normal(size=index.size)])
    return Places(lon[index], lat[index], kind), table


def logistic(places, table):
    """A plain linear discriminant as the method under test."""

    def fit(train):
        x, y = table[train], places.present[train]
        difference = x[y].mean(0) - x[~y].mean(0)
        coefficients = np.linalg.solve(np.cov(x.T) + 1e-6 * np.eye(x.shape[1]), difference)
        return lambda test: table[test] @ coefficients

    return fit


def test_cross_validation_equals_the_folds_done_by_hand():
    places, table = planted()
    folds = {
        "blocks": spatial_folds(places.lon, places.lat, places.present, side_km=300.0),
        "random": random_folds(places.present),
    }
    methods = {"method": logistic(places, table), "zero-shot": fixed_scores(table[:, 1])}
    result = cross_validate(places, methods, folds)
    assert len(result.results) == 2 * 2 * 2
    one = result.result("method", "blocks", "group")
    scores = np.full(places.lon.size, np.nan)
    for number, (train, test) in enumerate(folds["blocks"]):
        scores[test] = logistic(places, table)(train)(test)
        presence, others = test[places.present[test]], test[places.kind[test] == "group"]
        assert one.folds[number].auc == pytest.approx(measures.auc(scores[presence], scores[others]))
    pooled = measures.auc(scores[places.present], scores[places.kind == "group"])
    assert one.pooled.auc == pytest.approx(pooled)
    values = [fold.auc for fold in one.folds]
    assert one.mean("auc") == pytest.approx(np.mean(values))
    assert one.standard_error("auc") == pytest.approx(np.std(values, ddof=1) / np.sqrt(5))
    np.testing.assert_allclose(result.predictions["method", "blocks"], scores)


def test_no_place_is_scored_by_a_fit_that_saw_it():
    places, _ = planted(60, 400)
    seen = []

    def spy(train):
        def score(test):
            seen.append(not set(train) & set(test))
            return np.zeros(test.size)

        return score

    folds = {
        "random": random_folds(places.present),
        "blocks": spatial_folds(places.lon, places.lat, places.present, side_km=200.0),
        "locations": leave_location_out(places.lon, places.lat, places.present, 10.0),
    }
    cross_validate(places, {"spy": spy}, folds)
    assert seen and all(seen)


def test_distance_to_records_wins_at_random_and_loses_between_blocks():
    """Presences in a few tight clusters: near copies of training places fall into random folds only."""
    random = np.random.default_rng(3)
    centres = random.uniform([0, 40], [20, 55], (12, 2))
    presence = np.repeat(centres, 10, axis=0) + random.normal(0, 0.05, (120, 2))
    land = random.uniform([0, 40], [20, 55], (600, 2))
    lon, lat = np.concatenate([presence, land]).T
    places = Places(lon, lat, np.repeat(["presence", "land"], [120, 600]))
    folds = {"blocks": spatial_folds(lon, lat, places.present, side_km=250.0), "random": random_folds(places.present)}
    result = cross_validate(places, {"distance": distance_to_records(lon, lat, places.present)}, folds)
    blocked, at_random = (result.result("distance", scheme, "land").mean("auc") for scheme in folds)
    assert at_random > 0.97 and blocked < 0.7


def test_folds_and_methods_that_cannot_be_measured_are_left_empty():
    places, _ = planted(40, 300)
    folds = {"random": random_folds(places.present, 4)}
    result = cross_validate(places, {"broken": lambda train: lambda test: np.full(test.size, np.nan)}, folds)
    one = result.result("broken", "random", "land")
    assert one.mean("auc") is None and one.pooled.auc is None and one.standard_error("auc") is None
    with pytest.raises(ValueError, match="folds 'random'"):
        cross_validate(places, {}, {"random": random_folds(places.present[:-1], 4)})
    with pytest.raises(ValueError, match="kinds"):
        Places(places.lon, places.lat, np.full(places.lon.size, "sea"))


@pytest.mark.skipif(not has_elapid(), reason="elapid is not installed")
def test_elapid_beats_chance():
    places, table = planted()
    folds = {"random": random_folds(places.present, 3)}
    result = cross_validate(places, {"elapid": elapid_maxent(table, places.present)}, folds)
    assert result.result("elapid", "random", "land").mean("auc") > 0.75


def test_measures_of_one_comparison():
    presence, others = [0.9, 0.8, 0.6], [0.1, 0.7, 0.2, 0.3]
    scores = measure(presence, others, probability=True)
    assert scores.auc == pytest.approx(11 / 12) and (scores.presences, scores.places) == (3, 4)
    assert scores.brier == pytest.approx(np.mean(np.square([0.1, 0.2, 0.4, 0.1, 0.7, 0.2, 0.3])))
    assert measure([], others).auc is None and measure([np.nan], others).auc is None


def test_importance_finds_the_variable_that_matters():
    places, table = planted()
    result = importance(lambda x: 2 * x[:, 0], table, places.present, {"noise": [1], "both": [0, 1], "signal": [0]})
    by_name = {one.name: one.drop for one in result}
    assert by_name["noise"] == 0.0
    assert by_name["signal"] == by_name["both"] > 0.2
    # A shuffled variable tells nothing: the AUC falls to about a half.
    presence, others = table[places.present, 0], table[~places.present, 0]
    assert by_name["signal"] == pytest.approx(measures.auc(presence, others) - 0.5, abs=0.05)


def test_response_curves_of_a_known_function():
    _, table = planted()
    curve, flat = responses(
        lambda x: x[:, 0] ** 2 + x[:, 1], table, np.arange(len(table)) < 120, {"a": 0, "b": 1}, points=11
    )
    offset = curve.mean - curve.x**2
    np.testing.assert_allclose(offset, offset[0])  # the mean of the other variable
    assert (curve.low <= curve.mean).all() and (curve.mean <= curve.high).all()
    np.testing.assert_allclose(np.diff(flat.mean), np.diff(flat.x))
    np.testing.assert_allclose(curve.presences, np.percentile(table[:120, 0], range(10, 100, 10)))


def test_auc_prg_is_of_all_folds_together_and_not_given_with_few_presences():
    random = np.random.default_rng(2)
    for presences, given in ((30, True), (8, False)):
        present = np.arange(presences + 200) < presences
        places = Places(
            random.uniform(0, 5, present.size),
            random.uniform(0, 5, present.size),
            np.where(present, "presence", "land"),
        )
        score = present + random.normal(size=present.size)
        result = cross_validate(places, {"a": fixed_scores(score)}, {"random": random_folds(present)}).results[0]
        expected = measures.auc_prg(score[present], score[~present]) if given else None
        assert result.mean("auc_prg") == (pytest.approx(expected) if given else None)
        assert result.standard_error("auc_prg") is None and result.standard_error("auc") is not None


@pytest.mark.parametrize(
    ("layer", "transform", "raw"),
    [
        ("bio1", "identity", [-12.0, 0.0, 25.0]),
        ("bio12", "log1p", [0.0, 300.0, 4000.0]),
        ("elevation", "land_km", [0.0, 2500.0]),
        ("elevation", "sea_km", [-4000.0, 0.0]),
        ("elevation", "symlog", [-300.0, 0.0, 1200.0]),
    ],
)
def test_standardised_variables_return_to_their_units(layer, transform, raw):
    fields = {"layer": layer, "transform": transform, "mean": 0.7, "std": 6.5 if transform == "identity" else 2.5}
    standardised = Input(**fields).apply(np.array(raw))
    np.testing.assert_allclose(in_units(Variable(**fields), standardised), raw, rtol=1e-4, atol=1e-3)


def test_variables_have_the_names_that_analysts_read():
    assert variable_name(Variable("bio12", "log1p")) == "Annual precipitation (mm)"
    assert variable_name(Variable("elevation", "symlog")) == "Elevation (m)"
    assert variable_name(Variable("landcover", "class", 12)) == "Cropland (share)"
    for name in ("mammals-trees", "birds"):
        spec = open_model(name).layers["environment"]
        names = [variable_name(one) for one in spec.variables if not one.layer.startswith("mean")]
        assert len(names) == len(set(names)) and all(one.endswith(")") for one in names)
