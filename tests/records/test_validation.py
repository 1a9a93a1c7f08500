"""From a fit to its report: planted species on rasters, and the bundled model in a small region."""

import csv
import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import rasterio
from affine import Affine
from odc.geo.geobox import GeoBox

from sdm.models.registry import open_model
from sdm.records.background import Positions
from sdm.records.features import ModelFeatures, RasterFeatures
from sdm.records.fit import fit_core, fit_prepared, prepare
from sdm.records.measures import auc
from sdm.records.odmap import write_odmap
from sdm.records.prior import species_prior
from sdm.records.report import MapPicture, write_json, write_report
from sdm.records.review import review_case
from sdm.records.table import Records
from sdm.records.validation import FOLD_TREES, METHOD, NOT_USED, ZERO_SHOT, Case, cross_validate_fit
from sdm.request.records import FitOptions

WEST, NORTH, CELL, SIDE = 5.0, 50.0, 0.05, 120


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Rasters inland: waves, on which planted species depend, noise, and classes."""
    path = tmp_path_factory.mktemp("rasters") / "site.tif"
    row, col = np.mgrid[:SIDE, :SIDE] / SIDE
    waves = np.sin(14 * col) + np.cos(11 * row)
    noise = np.random.default_rng(0).normal(size=(SIDE, SIDE))
    bands = np.stack([waves, noise, (5 * row).astype(int)]).astype("f4")
    profile = {"driver": "GTiff", "height": SIDE, "width": SIDE, "dtype": "float32", "crs": "EPSG:4326", "count": 3}
    with rasterio.open(path, "w", transform=Affine(CELL, 0, WEST, 0, -CELL, NORTH), **profile) as file:
        file.write(bands)
        file.descriptions = ("waves", "noise", "soil")
    return RasterFeatures([path], ["soil"])


def positions(count, seed):
    random = np.random.default_rng(seed)
    span = CELL * SIDE
    return Positions(random.uniform(WEST, WEST + span, count), random.uniform(NORTH - span, NORTH, count))


def planted(source, count, seed=1):
    """Presences where the waves are high."""
    drawn = positions(40 * count, seed)
    value = source.read(drawn.lon, drawn.lat).environment[:, 0]
    chosen = np.flatnonzero(np.random.default_rng(seed).random(value.size) < 1 / (1 + np.exp(3 - 4 * value)))
    return drawn.select(chosen[:count])


def case_of(source, seen, absent=None, group=None, prior=None, species="Planta inventa", year=None, **options):
    parts = [seen] if absent is None else [seen, absent]
    lon, lat = (np.concatenate([getattr(p, axis) for p in parts]) for axis in ("lon", "lat"))
    present = np.arange(lon.size) < len(seen)
    records = Records.from_points(lon, lat, present, species=species, year=year)
    settings = FitOptions(**{"thin": 0.0, "reach_km": 200, "background_places": 700, "refits": 2} | options)
    training, info = prepare(records, source, group, settings)
    fitted = fit_prepared(training, info, source, prior, settings)
    return Case(records, fitted, training, source, prior, settings, group)


@pytest.fixture(scope="module")
def case(source):
    return case_of(source, planted(source, 60), year=np.full(60, 2011))


@pytest.fixture(scope="module")
def reviewed(case):
    return review_case(case)


def block_auc(validation, method=METHOD, contrast="land"):
    return validation.result(method, "blocks", contrast).mean("auc")


def test_a_planted_species_is_found_in_blocks_that_were_left_out(reviewed):
    validation = reviewed.validation
    assert list(validation.folds) == ["blocks", "random"]
    assert validation.folds["blocks"].range_km > 10
    assert validation.methods == (METHOD, "Maxent", "Random forest", "Distance to records")
    assert block_auc(validation) > 0.75
    # The waves repeat: what is near does not say where the species is.
    assert block_auc(validation) > block_auc(validation, "Distance to records") + 0.05


def test_a_fold_is_scored_by_a_fit_that_has_not_seen_it(case):
    validated = cross_validate_fit(case)
    pool, folds = validated.pool, validated.result.folds["blocks"]
    train, test = list(folds)[2]
    options = replace(case.options, refits=0, gate=False)
    by_hand = fit_core(pool.training.select(train), case.source.covariates, None, options, trees=FOLD_TREES)
    scores = validated.result.predictions[METHOD, "blocks"][test]
    np.testing.assert_array_equal(scores, by_hand.values(pool.features.select(test)).astype(float))
    part = pool.features.select(test)
    assert np.abs(scores - case.fitted.values(part.embedding, part.environment)).max() > 0.01


def test_without_a_signal_the_auc_is_that_of_chance(source):
    """A forest knows its own records by heart; only left-out ones tell that there is nothing to be found."""
    case = case_of(source, positions(80, 5))
    places = case.training
    value = case.fitted.values(places.features.embedding, places.features.environment)
    seen = auc(value[places.presence], value[~places.presence])
    validation = cross_validate_fit(case).result
    unseen = validation.result(METHOD, "random", "land").mean("auc")
    assert seen > 0.7 and abs(unseen - 0.5) < 0.12


def test_absences_are_compared_with_and_random_land_too(source):
    seen = planted(source, 60)
    absent = positions(150, 8)
    absent = absent.select(source.read(absent.lon, absent.lat).environment[:, 0] < 0.5)
    case = case_of(source, seen, absent)
    assert case.fitted.info.background == "absences" and not case.training.random.any()
    result = review_case(case)
    assert result.validation.places.contrasts == ("absences", "land")
    assert block_auc(result.validation, contrast="absences") > block_auc(result.validation)
    judged = result.validation.result(METHOD, "random", "absences")
    assert 0 < judged.mean("brier") < 0.25 and judged.mean("log_loss") < 0.7
    assert result.validation.result("Maxent", "random", "absences").mean("brier") is None
    assert result.report().probability


@pytest.mark.parametrize(("kind", "trained"), [("random", "random"), ("group", "group"), ("mixed", "random group")])
def test_both_comparisons_are_made_whatever_the_background(source, kind, trained):
    case = case_of(source, planted(source, 40), group=positions(150, 9), background_kind=kind)
    assert [name for name in ("random", "group") if getattr(case.training, name).any()] == trained.split()
    validated = cross_validate_fit(case)
    assert validated.result.places.contrasts == ("land", "group")
    assert all(0.5 < block_auc(validated.result, contrast=name) < 1 for name in ("land", "group"))
    # Places of the other comparison are tested on and never trained on.
    size = len(validated.pool.training.presence)
    assert (validated.pool.places.lon.size > size) == (kind != "mixed")


def test_few_records_are_left_out_one_location_at_a_time(source):
    validation = review_case(case_of(source, planted(source, 6))).validation
    assert list(validation.folds) == ["locations"] and validation.folds["locations"].count >= 4
    assert validation.result(METHOD, "locations", "land").mean("auc") is not None


def test_one_location_cannot_be_tested_and_the_report_says_so(source, tmp_path):
    result = review_case(case_of(source, planted(source, 1)))
    assert result.validation is None and result.importance == ()
    report = result.report()
    assert any("one location" in text for text in report.limits)
    write_report(tmp_path / "a.html", report)
    page = (tmp_path / "a.html").read_text()
    assert "nothing can be left out" in page and "With one presence all measures" in page


def test_presences_too_far_apart_for_a_variogram_still_get_blocks(source):
    angle = np.linspace(0, 2 * np.pi, 10, endpoint=False)
    ring = Positions(8 + 2.5 * np.cos(angle), 47 + 2.5 * np.sin(angle))
    validation = cross_validate_fit(case_of(source, ring)).result
    assert validation.folds["blocks"].range_km is None
    assert "do not show a range" in validation.folds["blocks"].describe()


def test_thresholds_are_those_of_the_values_of_the_map(case, reviewed):
    training = case.training
    value = case.fitted.values(training.features.embedding, training.features.environment).astype(float)
    seen, land = value[training.presence], value[training.random]
    by_rule = {one.rule: one for one in reviewed.thresholds}
    assert list(by_rule) == ["mtp", "p10", "equal", "max-tss"]
    assert by_rule["mtp"].value == seen.min() and by_rule["mtp"].sensitivity == 1
    assert by_rule["p10"].value == np.sort(seen)[6]
    for one in by_rule.values():
        assert one.sensitivity == pytest.approx((seen >= one.value).mean())
        assert one.area_share == pytest.approx((land >= one.value).mean())
    assert abs(by_rule["equal"].sensitivity - by_rule["equal"].specificity) < 0.03


def test_the_report_says_how_many_new_presences_a_threshold_misses(reviewed):
    p10 = next(one for one in reviewed.thresholds if one.rule == "p10")
    validation = reviewed.validation
    scores = validation.predictions[METHOD, "blocks"][validation.places.present]
    missed = (scores < p10.value).mean()
    assert missed > 1 - p10.sensitivity
    assert any(
        text.endswith(f"{missed:.0%} of the presences left out of the folds.") for text in reviewed.report().limits
    )


def test_what_matters_is_found_and_classes_have_no_curve(reviewed):
    drop = {one.name: one.drop for one in reviewed.importance}
    assert set(drop) == {"waves", "noise", "soil"}
    assert reviewed.importance[0].name == "waves" and drop["waves"] > 0.15
    assert abs(drop["noise"]) < 0.05
    assert {one.name for one in reviewed.responses} == {"waves", "noise"}
    waves = reviewed.responses[0]
    assert waves.name == "waves"
    assert waves.mean[-5:].mean() > 3 * waves.mean[:10].mean()


def test_report_and_protocol_say_what_was_done(reviewed, case, tmp_path):
    grid = GeoBox((SIDE, SIDE), Affine(CELL, 0, WEST, 0, -CELL, NORTH), "EPSG:4326")
    picture = MapPicture(np.full((SIDE, SIDE), 0.4, np.float32), grid, "Relative suitability")
    report = reviewed.report(picture, links={"GeoTIFF": "a.tif"})
    write_json(tmp_path / "a.json", report)
    write_report(tmp_path / "a.html", report)
    numbers = json.loads((tmp_path / "a.json").read_text())
    assert numbers["records"]["presences"] == 60 and numbers["probability"] is False
    first = numbers["cross_validation"]["results"][0]
    assert first["method"] == METHOD and first["mean"]["auc"] == block_auc(reviewed.validation)
    assert [one["rule"] for one in numbers["thresholds"]] == ["mtp", "p10", "equal", "max-tss"]
    compared = f"{case.training.random.sum()} random places on land within 200 km of the records: no records of other"
    assert numbers["provenance"]["Compared with"].startswith(compared)
    page = (tmp_path / "a.html").read_text()
    assert "Planta inventa" in page and case.fitted.info.method in page and "a.tif" in page

    write_odmap(tmp_path / "a.csv", reviewed.protocol(grid, rule="max-tss"))
    rows = list(csv.DictReader((tmp_path / "a.csv").open()))
    values = {(row["subsection"], row["element"]): row["Value"] for row in rows}
    told = {element: text for (_, element), text in values.items() if text}
    assert told["Target output"] == "relative suitability, 0 to 1"
    assert told["Spatial extent"] == "5, 11, 44, 50 (xmin, xmax, ymin, ymax)"
    assert told["Temporal extent"] == "2011 to 2011 (records)"
    assert "Maximum entropy (Maxent); Down-sampled random forest; Penalised" in told["Modelling techniques"]
    assert "linear, quadratic, hinge" in told["Model settings (fitting)"]
    assert "waves; noise; soil" in told["Predictor variables"]
    assert "over 2 bootstrap refits" in told["Parameter uncertainty"]
    chosen = next(one for one in reviewed.thresholds if one.rule == "max-tss")
    assert f"{chosen.value:.4g}" in " ".join(told.values())


# With the bundled model


@pytest.fixture(scope="module")
def bear():
    """The brown bear around the Rocky Mountains, with the model's features of 600 random places."""
    model = open_model("mammals-trees")
    source = ModelFeatures(model)
    prior = species_prior(model, source.modalities, model.resolve("Ursus arctos"))
    random = np.random.default_rng(3)
    pool = Positions(random.uniform(-120, -108, 600), random.uniform(44, 54, 600))
    return SimpleNamespace(model=model, source=source, prior=prior, pool=pool, features=source.read(pool.lon, pool.lat))


def where(bear, score):
    """The 40 of 600 places with the highest scores."""
    return bear.pool.select(np.argsort(-np.where(bear.features.known, score, -np.inf))[:40])


def test_records_that_contradict_the_model_make_the_fit_better_than_zero_shot(bear):
    zero_shot = bear.features.embedding @ bear.prior.zero_shot
    seen = where(bear, -zero_shot)
    case = case_of(bear.source, seen, prior=bear.prior, species="Ursus arctos", reach_km=300)
    assert not case.fitted.info.zero_shot
    result = review_case(replace(case, group=positions(5, 1)))
    validation = result.validation
    assert validation.methods[:2] == (METHOD, ZERO_SHOT)
    assert block_auc(validation, ZERO_SHOT) < 0.4 < 0.6 < block_auc(validation)
    assert {one.name for one in result.importance} == {
        "Embedding of the place",
        "Climate",
        "Terrain",
        "Land cover",
        "Surroundings",
    }
    assert len(result.responses) == 12 and not any(one.name.startswith("mean") for one in result.responses)
    texts = " ".join(result.report().limits)
    assert "The embedding of a place depends on climate" in texts and "decided once, with all records" in texts


def test_where_the_zero_shot_map_is_kept_it_is_what_is_tested(bear):
    zero_shot = bear.features.embedding @ bear.prior.zero_shot
    noise = np.random.default_rng(5).normal(size=zero_shot.size)
    seen = where(bear, zero_shot + 2 * noise * zero_shot.std()).select(np.arange(12))
    case = case_of(bear.source, seen, prior=bear.prior, species="Ursus arctos", reach_km=300)
    kept = replace(case, fitted=replace(case.fitted, info=replace(case.fitted.info, zero_shot=True, gate="kept")))
    result = review_case(kept)
    assert result.validation.methods[:2] == (METHOD, NOT_USED)
    places = result.validation.places
    features = bear.source.read(places.lon, places.lat)
    expected = 1 / (1 + np.exp(-(features.embedding @ bear.prior.zero_shot + bear.prior.bias).astype(float)))
    np.testing.assert_allclose(result.validation.predictions[METHOD, "blocks"], expected, rtol=1e-4)
    assert result.importance == () and result.responses == ()
    assert "do not improve" in result.report().lead
    assert result.protocol().techniques == ["Zero-shot map"]


def test_a_correction_of_the_zero_shot_vector_is_repeated_as_such_in_the_folds(bear):
    case = case_of(
        bear.source, where(bear, bear.features.environment[:, 0]), prior=bear.prior, reach_km=300, gate=False
    )
    core = fit_core(case.training, case.source.covariates, bear.prior, case.options, offset_only=True)
    case = replace(case, fitted=replace(case.fitted, ensemble=core.ensemble))
    validated = cross_validate_fit(case)
    train, _ = next(iter(validated.result.folds["blocks"]))
    fold = validated.fits.core(train).ensemble
    assert len(fold.members) == 1
    np.testing.assert_array_equal(fold.members[0].vector, bear.prior.zero_shot)
    assert not np.array_equal(fold.members[0].weight, core.ensemble.members[0].weight)


def test_a_species_without_a_name_in_the_model_has_no_zero_shot_baseline(bear):
    prior = species_prior(bear.model, bear.source.modalities, None)
    case = case_of(bear.source, where(bear, bear.features.environment[:, 0]), prior=prior, species="", reach_km=300)
    result = review_case(case)
    assert ZERO_SHOT not in result.validation.methods and block_auc(result.validation) > 0.7
    assert result.report().title == "Species without a name"
