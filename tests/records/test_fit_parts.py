"""The parts of a fit, on arrays alone."""

import json
import os
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file
from scipy.special import expit
from sklearn.tree import DecisionTreeRegressor

from sdm.errors import RecordsError, RequestError
from sdm.layers.landmask import LandMask
from sdm.records import maxent
from sdm.records.background import (
    Positions,
    cell_numbers,
    choose_kind,
    group_places,
    near,
    random_places,
    thinned,
)
from sdm.records.calibration import relative, with_prevalence
from sdm.records.features import Covariates, Features, Memory
from sdm.records.fitparts import FitInfo
from sdm.records.fitted import Fitted, check_covariates
from sdm.records.forest import Forest, _spread, fit_forest
from sdm.records.gate import leave_out, neighbour_folds, share_below
from sdm.records.likelihood import Problem, Rows, fit_ridge, refit, unpenalised
from sdm.records.measures import auc
from sdm.records.members import Ensemble, RankScale, Ridge, Trees
from sdm.records.sample import open_sampler
from sdm.records.sphere import distances_km, unit_vectors
from sdm.records.trust import Reference, shares
from sdm.request.records import FitOptions


def world(n=4000, d=6, presences=300, seed=0):
    """Background drawn from a normal, presences from a density that rises in column 0 and peaks in column 1."""
    rng = np.random.default_rng(seed)
    background = rng.normal(size=(n, d))
    intensity = np.exp(1.2 * background[:, 0] - background[:, 1] ** 2)
    seen = background[rng.choice(n, presences, p=intensity / intensity.sum())] + rng.normal(0, 1e-3, (presences, d))
    x = np.concatenate([seen, background]).astype(np.float32)
    presence = np.repeat([1.0, 0.0], [presences, n])
    return x, presence, np.ones(n + presences)


@pytest.mark.parametrize("absences", [False, True])
def test_ridge_reaches_the_optimum(absences):
    x, presence, background = world()
    background = 1.0 - presence if absences else background
    rows = Rows(x, np.linspace(-1, 1, len(x)).astype(np.float32), presence, background, absences)
    solution = fit_ridge(rows, np.full(6, 3.0))
    problem = Problem(rows, np.full(6, 3.0))
    beta = np.append(solution.coefficients, solution.intercept) if absences else solution.coefficients
    best = problem.value(beta)
    for k in range(beta.size):
        for step in (-0.05, 0.05):
            moved = beta.copy()
            moved[k] += step
            assert problem.value(moved) < best
    assert np.abs(problem.gradient(beta)).max() < 0.01 * presence.sum()


def test_presence_only_fit_does_not_depend_on_the_size_of_background_weights():
    x, presence, background = world()
    rows = Rows(x, np.zeros(len(x), np.float32), presence, background)
    a = fit_ridge(rows, np.ones(6)).coefficients
    b = fit_ridge(replace(rows, background=17.0 * background), np.ones(6)).coefficients
    assert np.allclose(a, b, atol=1e-3)
    assert a[0] > 0.8 and np.abs(a[2:]).max() < 0.2


def test_presence_absence_fit_predicts_the_share_of_presences():
    x, presence, _ = world()
    rows = Rows(x, np.zeros(len(x), np.float32), presence, 1.0 - presence, absences=True)
    solution = fit_ridge(rows, np.ones(6))
    assert expit(x @ solution.coefficients + solution.intercept).mean() == pytest.approx(presence.mean(), rel=0.01)


def test_refit_comes_close_to_the_fit_of_resampled_presences():
    x, presence, background = world()
    rows = Rows(x, np.zeros(len(x), np.float32), presence, background)
    first = fit_ridge(rows, np.ones(6))
    again = replace(rows, presence=presence * np.random.default_rng(3).poisson(1.0, presence.size))
    exact, cheap = fit_ridge(again, np.ones(6)).coefficients, refit(again, np.ones(6), first).coefficients
    assert np.abs(cheap - exact).max() < 0.2 * np.abs(first.coefficients - exact).max()


def test_fit_without_presences_is_refused():
    x, presence, background = world()
    with pytest.raises(RequestError, match="presences"):
        fit_ridge(Rows(x, np.zeros(len(x), np.float32), 0 * presence, background), np.ones(6))


def test_a_place_far_from_all_others_that_does_not_count_leaves_a_fit_as_it_is():
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(1.0, 1.0, (12, 2)), rng.normal(0.0, 1.0, (400, 2)), [[4000.0, 4000.0]]])
    presence, background = np.repeat([1.0, 0.0], [12, 401]), np.repeat([1.0, 0.0], [412, 1])
    rows = Rows(x.astype(np.float32), np.zeros(413), presence, background)
    alone = fit_ridge(rows.select(np.arange(412)), np.full(2, 0.1)).coefficients
    assert alone.min() > 0.3  # so that the far place has a score of thousands
    np.testing.assert_allclose(fit_ridge(rows, np.full(2, 0.1)).coefficients, alone, rtol=1e-6)
    near = refit(rows, np.full(2, 0.1), fit_ridge(rows, np.full(2, 0.1)))
    np.testing.assert_allclose(near.coefficients, alone, rtol=1e-2)


def test_maxent_meets_the_conditions_of_the_lasso():
    x, presence, background = world()
    terms = maxent.candidate_terms(x, presence, np.zeros(6, bool))
    features = terms.matrix(x)
    penalty = maxent.penalties(terms, features, presence)
    rows = Rows(features, np.zeros(len(x), np.float32), presence, background)
    coefficients, _ = maxent.fit_lasso(rows, penalty)
    gradient = unpenalised(rows, np.ones(penalty.size)).gradient(coefficients)
    slack = 0.01 * presence.sum()
    assert (np.abs(gradient) <= penalty + slack).all()
    used = coefficients != 0
    assert 3 <= used.sum() < penalty.size / 2
    assert np.abs(gradient[used] - np.sign(coefficients[used]) * penalty[used]).max() < slack


def test_maxent_finds_an_optimum_a_category_and_an_interaction():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(6000, 3)).astype(np.float32)
    x[:, 2] = rng.integers(0, 4, 6000)
    f = 0.8 * x[:, 0] * x[:, 1] + 1.5 * (x[:, 2] == 3)
    seen = rng.choice(6000, 300, p=np.exp(f) / np.exp(f).sum())
    presence = np.zeros(6300)
    presence[:300] = 1.0
    places = np.concatenate([x[seen], x])
    terms, _, _ = maxent.fit_maxent(places, presence, np.ones(6300), categorical=np.array([False, False, True]))
    assert np.corrcoef(terms.logit(x), f)[0, 1] > 0.8
    product, third = terms.kind == maxent.PRODUCT, (terms.kind == maxent.CATEGORY) & (terms.low == 3)
    assert (terms.coefficient[product] > 0).any() and (terms.coefficient[third] > 0).all() and third.any()
    unseen = x[:5].copy()
    unseen[:, 2] = 99.0  # a class that training did not see
    assert np.isfinite(terms.logit(unseen)).all()


@pytest.mark.parametrize(("n", "kinds"), [(5, 1), (12, 2), (40, 3), (100, 4)])
def test_maxent_allows_features_by_the_number_of_presences(n, kinds):
    assert len(maxent.classes_for(n)) == kinds


def test_forest_gives_the_shares_of_the_trees_it_was_grown_from():
    x, presence, _ = world()
    trees = [DecisionTreeRegressor(max_depth=8, random_state=k).fit(x[k::5], presence[k::5]) for k in range(2)]
    forest = Forest(*(np.stack(arrays) for arrays in zip(*(_spread(tree.tree_, 8) for tree in trees), strict=True)))
    assert np.allclose(forest.share(x), np.mean([tree.predict(x) for tree in trees], axis=0), atol=1e-6)
    several = np.concatenate([forest.share(part) for part in (x[:1], x[1:130], x[130:])])
    assert np.array_equal(several, forest.share(x)), "a place's share depends on the places that it is asked for with"


def test_forest_is_reproducible_and_better_than_chance_and_quick():
    x, presence, background = world()
    forest = fit_forest(x, presence, background, seed=5)
    again = fit_forest(x, presence, background, seed=5)
    assert np.array_equal(forest.threshold, again.threshold) and np.array_equal(forest.leaf, again.leaf)
    fresh, truth, _ = world(seed=9)
    scores = forest.share(fresh)
    assert auc(scores[truth == 1], scores[truth == 0]) > 0.8
    tile = np.tile(x, (16, 1))[:65_536]
    start = time.process_time()
    forest.share(tile)
    assert time.process_time() - start < 1.5


def test_rank_scale_ranks_and_inverts():
    scores = np.random.default_rng(0).normal(size=5000)
    scale = RankScale.of(scores, np.ones(5000))
    assert (np.diff(scale.values) > 0).all() and (np.diff(scale.levels) > 0).all()
    assert scale.rank(np.array([0.0]))[0] == pytest.approx(0.5, abs=0.02)
    assert np.allclose(scale.value(scale.rank(np.array([-1.0, 0.3, 1.9]))), [-1.0, 0.3, 1.9], atol=0.02)
    tied = RankScale.of(np.repeat([0.0, 1.0], [90, 10]), np.ones(100))
    assert tied.rank(np.array([0.0, 1.0])) == pytest.approx([0.45, 0.95])


def test_ensemble_keeps_the_distribution_of_its_first_member():
    x, presence, background = world()
    nothing = np.empty(0, np.float32)
    weight = np.array([1.2, 0, 0, 0, 0, 0, 0, -1, 0, 0, 0, 0], np.float32)
    ridge = Ridge(
        nothing, np.zeros(6, np.float32), np.ones(6, np.float32), weight, np.zeros(1, np.float32),
        np.empty((2, 0), np.float32), np.stack([weight, 2 * weight]), np.zeros(2, np.float32),
    )  # fmt: skip
    trees = Trees(np.arange(6, dtype=np.int32), np.empty((0, 0), np.float32), fit_forest(x, presence, background))
    places = np.empty((len(x), 0), np.float32), x
    joined = Ensemble.joined((ridge, trees), (1.0, 0.5), places, background)
    first, both = ridge.score(*places), joined.logit(*places)
    assert np.allclose(np.quantile(both, [0.1, 0.5, 0.9]), np.quantile(first, [0.1, 0.5, 0.9]), atol=0.1)
    assert 0.8 < np.corrcoef(first, both)[0, 1] < 0.9999
    assert joined.refits(*places).shape == (2, len(x))


def test_random_background_is_land_within_reach_and_repeats():
    records = Positions(np.array([-120.0, -118.0]), np.array([45.0, 46.0]))
    places = random_places(records, 500, 300.0, seed=2)
    km = distances_km(unit_vectors(places.lon, places.lat), unit_vectors(records.lon, records.lat)).min(axis=1)
    assert len(places) == 500 and km.max() <= 300.0 and km.max() > 250.0
    assert LandMask().keep("land", places.lon, places.lat).all()
    assert np.array_equal(random_places(records, 500, 300.0, seed=2).lon, places.lon)
    few = random_places(records, 100, 300.0, seed=2)
    assert np.isin(few.lon, places.lon).all()
    inside = random_places(records, 200, 300.0, bounds=(-120.0, 45.0, -119.5, 45.5), known=lambda at: at.lat > 45.2)
    assert len(inside) == 200 and inside.lat.min() > 45.2
    assert ((inside.lon >= -120.0) & (inside.lon <= -119.5) & (inside.lat <= 45.5)).all()
    assert not np.array_equal(random_places(records, 500, 300.0, seed=3).lon, places.lon)


def test_random_background_lies_on_both_sides_of_the_antimeridian():
    places = random_places(Positions(np.array([179.5]), np.array([67.0])), 300, 400.0)
    assert (places.lon > 170).sum() > 30 and (places.lon < -170).sum() > 30


def test_background_without_any_land_is_refused():
    with pytest.raises(RecordsError, match="no land within 50 km"):
        random_places(Positions(np.array([-140.0]), np.array([-40.0])), 100, 50.0)


def test_group_background_is_thinned_without_the_cells_of_the_records():
    rng = np.random.default_rng(0)
    group = Positions(rng.uniform(5, 15, 3000), rng.uniform(45, 50, 3000))
    records = group.select(np.arange(20))
    places = group_places(records, group, 10_000, 200.0)
    cells = cell_numbers(places, 0.1)
    assert np.unique(cells).size == cells.size
    assert not np.isin(cells, cell_numbers(records, 0.1)).any()
    assert near(places, records, 200.0).all()
    assert len(thinned(group, 0.1)) < 3000 and len(thinned(group, 0.0)) == 3000


@pytest.mark.parametrize(
    ("asked", "absences", "group", "kind"),
    [("auto", 0, 0, "random"), ("auto", 0, 20, "random"), ("auto", 0, 400, "mixed"), ("auto", 50, 400, "absences"),
     ("random", 50, 400, "random"), ("group", 0, 400, "group")],
)  # fmt: skip
def test_background_is_chosen_by_a_stated_rule(asked, absences, group, kind):
    chosen, rule = choose_kind(asked, 100, absences, group)
    assert chosen == kind and rule
    with pytest.raises(RecordsError, match="target-group"):
        choose_kind("group", 100, 0, 0)


def test_gate_keeps_the_zero_shot_map_unless_left_out_records_agree():
    rng = np.random.default_rng(0)
    presence = np.arange(440) < 40
    land, group = (np.arange(440) >= 40) & (np.arange(440) < 240), np.arange(440) >= 240
    fold = np.arange(440) % 5
    good, bad = rng.normal(0.0, 1.0, 440) + 2.0 * presence, rng.normal(0.0, 1.0, 440)
    better = leave_out(fold, presence, {"land": land}, lambda out: good, bad)
    worse = leave_out(fold, presence, {"land": land}, lambda out: bad, good)
    assert better.accepted and "the fit is used" in better.sentence()
    assert not worse.accepted and "zero-shot map is kept" in worse.sentence()
    assert better.sentence().startswith("At left-out records, the gain in AUC") and better.sentence().endswith(" used.")
    torn = leave_out(fold, presence, {"land": land, "group": group}, lambda out: good + 9.0 * group, bad)
    assert torn.gains["land"][0] > 0 > torn.gains["group"][0] and not torn.accepted
    left = []
    leave_out(fold, presence, {"land": land}, lambda out: left.append(out) or good, bad)
    assert len(left) == 5 and np.array_equal(np.sum(left, axis=0), np.ones(440))


def test_share_below_averages_to_the_auc():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 9, 50).astype(float), rng.integers(0, 6, 300).astype(float)
    assert share_below(b, a).mean() == pytest.approx(auc(a, b))


def test_folds_keep_neighbours_together():
    rng = np.random.default_rng(0)
    lon, lat = rng.uniform(-120, -80, 800), rng.uniform(30, 50, 800)
    presence = np.arange(800) < 400
    fold = neighbour_folds(lon, lat, presence)
    km = distances_km(unit_vectors(lon, lat), unit_vectors(lon, lat)) + 1e9 * np.eye(800)
    assert set(fold[presence]) == {0, 1, 2, 3, 4}
    assert (fold[km.argmin(axis=1)] == fold).mean() > 0.75  # background places too
    few = neighbour_folds(lon[:600], lat[:600], np.arange(600) < 6)
    assert np.bincount(few[:6]).max() <= 2 and few[:6].min() == 0 and (few == -1).any()
    dateline = neighbour_folds(np.array([179.9, -179.9, 179.0]), np.zeros(3), np.ones(3, bool))
    assert set(dateline) == {0, 1, 2}


def test_prevalence_sets_the_mean_and_nothing_else():
    logit = np.random.default_rng(0).normal(-2, 3, 5000).astype(np.float32)
    calibration = with_prevalence(logit, 0.07, "given")
    values = calibration.values(logit)
    assert values.mean() == pytest.approx(0.07, abs=1e-4)
    assert np.array_equal(np.argsort(logit, kind="stable"), np.argsort(logit + calibration.shift, kind="stable"))


def test_relative_suitability_is_the_cloglog_of_maxent():
    logit = np.random.default_rng(0).normal(0, 2, 3000).astype(np.float32)
    raw = np.exp(logit.astype(float))
    raw /= raw.sum()
    entropy = -(raw * np.log(raw)).sum()
    calibration = relative(logit, np.ones(3000), "no prevalence is known")
    assert np.allclose(calibration.values(logit), 1 - np.exp(-np.exp(entropy) * raw), atol=1e-5)
    assert calibration.meaning == "relative suitability" and calibration.prevalence is None


def test_novelty_is_a_percentile_of_the_training_places_own():
    rng = np.random.default_rng(0)

    def unit(x):
        return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)

    axis = np.eye(16)[0]
    space = unit(axis + 0.1 * rng.normal(size=(2000, 16)))
    reference = Reference.of(space, rng.normal(size=(2000, 3)), rng.random(2000) < 0.1, seed=0)
    fresh = reference.novelty(unit(axis + 0.1 * rng.normal(size=(2000, 16))))
    assert 30 < np.median(fresh) < 75 and fresh.min() < 10
    assert (reference.novelty(unit(-axis + 0.1 * rng.normal(size=(50, 16)))) == 100).all()


def test_mess_is_negative_outside_the_trained_range():
    environment = np.random.default_rng(0).uniform(0, 1, (500, 3))
    reference = Reference.of(np.ones((500, 1), np.float32), environment, np.arange(500) < 9, seed=0)
    mess = reference.mess(np.array([[0.5, 0.5, 0.5], [1.5, 0.5, 0.5], [0.5, -1.0, 0.5]]))
    assert mess[0] > 80 and mess[1] == pytest.approx(-50, abs=2) and mess[2] == pytest.approx(-100, abs=2)


def saved_fit(path):
    """A fit to two covariates, written to a file."""
    covariates = Covariates(("bio1", "bio12"), ("climate", "climate"), (False, False))
    environment = np.random.default_rng(0).normal(size=(400, 2)).astype(np.float32)
    nothing, none = np.empty(0, np.float32), np.empty((0, 0), np.float32)
    weight = np.array([1.0, 0.5, 0.0, -0.5], np.float32)
    ridge = Ridge(
        nothing,
        np.zeros(2, np.float32),
        np.ones(2, np.float32),
        weight,
        np.zeros(1, np.float32),
        none,
        np.empty((0, 4), np.float32),
        nothing,
    )
    ensemble = Ensemble((ridge,), np.ones(1, np.float32))
    logit = ensemble.logit(np.empty((400, 0), np.float32), environment)
    space = np.column_stack([environment, np.ones(400)]).astype(np.float32)
    reference = Reference.of(space, environment, np.arange(400) < 40, seed=0)
    info = FitInfo("Vipera berus", "covariates", extent=(170.0, -10.0, -170.0, 10.0))
    return Fitted(info, covariates, ensemble, relative(logit, np.ones(400), "none is known"), reference, {}).save(path)


def edited(path, arrays=None, **info):
    """The file of a fit with other arrays and other entries of its `info`."""
    with safe_open(path, framework="numpy") as file:
        meta, held = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    fit = json.loads(meta["fit"])
    fit["info"] |= info
    save_file(held | (arrays or {}), path, metadata={"format": meta["format"], "fit": json.dumps(fit)})
    return path


def test_a_fit_across_180_degrees_is_read(tmp_path):
    assert Fitted.open(saved_fit(tmp_path / "a.fit.safetensors")).info.extent == (170.0, -10.0, -170.0, 10.0)


@pytest.mark.parametrize(
    "extent", [[-181, 0, 0, 1], [0, 0, 181, 1], [0, -91, 1, 0], [0, 0, 1, 91], [0, 5, 1, 4], [1e300, 0, 1, 1]]
)
def test_a_fit_with_an_extent_that_is_not_on_the_globe_is_refused(tmp_path, extent):
    path = edited(saved_fit(tmp_path / "a.fit.safetensors"), extent=extent)
    with pytest.raises(RecordsError, match="its extent is not on the globe"):
        Fitted.open(path)


@pytest.mark.parametrize("value", [1e31, -3e38])
def test_a_fit_with_huge_weights_is_refused(tmp_path, value):
    weight = np.array([1.0, value, 0.0, 0.0], np.float32)
    path = edited(saved_fit(tmp_path / "a.fit.safetensors"), {"member0.weight": weight})
    with pytest.raises(RecordsError, match=r"'member0.weight' holds numbers beyond 1e\+30"):
        Fitted.open(path)


def test_a_fit_with_other_covariates_than_the_model_is_refused(tmp_path):
    fitted = Fitted.open(saved_fit(tmp_path / "a.fit.safetensors"))

    def source(*names):
        return SimpleNamespace(covariates=Covariates(names, names, (False,) * len(names)))

    check_covariates(fitted, source("bio1", "bio12"))
    with pytest.raises(RecordsError, match="covariate 'bio1' where the model reads 'bio12'"):
        check_covariates(fitted, source("bio12", "bio1"))
    with pytest.raises(RecordsError, match="2 covariates, but the model reads 1"):
        check_covariates(fitted, source("bio1"))


@pytest.mark.parametrize("open_file", [Fitted.open, open_sampler])
def test_pipes_devices_and_folders_are_refused_at_once(tmp_path, open_file):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty").touch()
    for path, message in [
        (tmp_path / "pipe", "is not a file"),
        (Path("/dev/zero"), "is not a file"),
        (tmp_path / "folder", "is a folder"),
        (tmp_path / "empty", "is an empty file"),
    ]:
        with pytest.raises(RecordsError, match=message) as error:
            open_file(path)
        assert "\n" not in str(error.value)


def test_shares_sum_to_one():
    parts = {"embedding": np.array([3.0, 0.0]), "climate": np.array([-1.0, 2.0])}
    out = shares(parts, {"climate": 0.0, "embedding": 0.0})
    assert out["embedding"] == pytest.approx([0.75, 0.0]) and out["climate"] == pytest.approx([0.25, 1.0])


@pytest.mark.parametrize(
    "options",
    [{"prevalence": 1.0}, {"prevalence": "much"}, {"background_kind": "all"}, {"thin": -1}, {"reach_km": float("nan")},
     {"refits": 1.5}, {"prior": "x"}],
)  # fmt: skip
def test_options_are_checked(options):
    with pytest.raises(RequestError):
        FitOptions(**options)


def test_random_places_serve_every_species_that_they_are_within_reach_of():
    adder = Positions(np.array([8.0, 9.0]), np.array([46.5, 47.0]))
    lizard = Positions(np.array([10.0, 12.0, 11.0]), np.array([48.0, 47.5, 46.0]))
    first, second = random_places(adder, 1000, 500.0), random_places(lizard, 1000, 500.0)
    assert np.isin(second.lon, first.lon).mean() > 0.5
    # By area: the places of a sequence are spread evenly over what they are drawn from.
    everywhere = random_places(Positions(np.array([0.0]), np.array([0.0])), 4000, 20_040.0, mask="none", seed=1)
    assert np.abs(np.sin(np.radians(everywhere.lat)).mean()) < 0.03
    assert np.abs(everywhere.lon.mean()) < 6.0 and (np.abs(everywhere.lat) < 30.0).mean() == pytest.approx(
        0.5, abs=0.03
    )


def test_places_are_read_once(monkeypatch):
    asked = []

    def read(lon, lat):
        asked.append(lon.size)
        return Features(np.empty((lon.size, 0)), np.column_stack([lon, lat]), np.ones(lon.size, bool))

    monkeypatch.setattr("sdm.records.features.REMEMBERED", 6)
    memory = Memory()
    one, two, three = np.array([1.0, 2.0, 2.0, 3.0]), np.array([3.0, 4.0, 1.0]), np.arange(10.0)
    for lon in (one, two, three, three):
        np.testing.assert_array_equal(memory.read(read, lon, -lon).environment, np.column_stack([lon, -lon]))
    # Of the ten places of the last but one four had been read, and the latest six are kept.
    assert asked == [3, 1, 6, 4]
