"""Measures against scikit-learn, SciPy, published numbers and plain loops."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sdm.records.measures import (
    auc,
    auc_prg,
    boyce,
    brier,
    calibration,
    correlation,
    log_loss,
    max_tss,
    mid_ranks,
    omission,
    prg,
    roc,
    share_above,
)

metrics = pytest.importorskip("sklearn.metrics")
stats = pytest.importorskip("scipy.stats")

SCORES = st.lists(st.integers(0, 6).map(float), min_size=1, max_size=25)


def drawn(seed, n=40, m=300, shift=1.0, digits=1):
    """Scores with ties of `n` presences and `m` background places, and weights of the latter."""
    random = np.random.default_rng(seed)
    return (
        random.normal(shift, 1, n).round(digits),
        random.normal(0, 1, m).round(digits),
        random.uniform(0.1, 3, m),
    )


def together(presence, background):
    return np.repeat([1, 0], [len(presence), len(background)]), np.concatenate([presence, background])


@given(SCORES, SCORES)
def test_auc_is_the_share_of_pairs_in_order(presence, background):
    pairs = [(p > b) + 0.5 * (p == b) for p in presence for b in background]
    assert auc(presence, background) == pytest.approx(np.mean(pairs), abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_auc_and_roc_equal_scikit_learn(seed):
    presence, background, weight = drawn(seed)
    label, score = together(presence, background)
    assert auc(presence, background) == pytest.approx(metrics.roc_auc_score(label, score), abs=1e-12)
    weights = np.concatenate([np.ones(presence.size), weight])
    expected = metrics.roc_auc_score(label, score, sample_weight=weights)
    assert auc(presence, background, weight) == pytest.approx(expected, abs=1e-12)
    alarms, hits, _ = metrics.roc_curve(label, score, drop_intermediate=False)
    curve = roc(presence, background)
    np.testing.assert_allclose(curve.x, alarms, atol=1e-12)
    np.testing.assert_allclose(curve.y, hits, atol=1e-12)


def test_a_weight_of_two_is_the_place_twice():
    presence, background, _ = drawn(1)
    weight = np.where(np.arange(background.size) % 3 == 0, 2.0, 1.0)
    twice = np.repeat(background, weight.astype(int))
    assert auc(presence, background, weight) == pytest.approx(auc(presence, twice), abs=1e-12)
    assert max_tss(presence, background, weight) == pytest.approx(max_tss(presence, twice), abs=1e-12)
    one, other = boyce(presence, background, weight), boyce(presence, twice)
    assert one.index == pytest.approx(other.index, abs=1e-9)
    np.testing.assert_allclose(one.curve.y, other.curve.y, atol=1e-9)


def test_auc_prg_equals_the_authors_implementation():
    # The example in the documentation of the authors' package prg, computed with its Python version 0.1.1.
    label = np.array([1, 1, 1, 0, 1, 1, 1, 1, 1, 1, 0, 1, 1, 1, 0, 1, 0, 0, 1, 0, 0, 0, 1, 0, 1])
    score = np.arange(25, 0, -1) / 25
    assert auc_prg(score[label == 1], score[label == 0]) == pytest.approx(0.43246210357423226, abs=1e-12)


def test_auc_prg_at_its_fixed_points():
    assert auc_prg([3.0, 2.0], [1.0, 0.0, 0.5]) == pytest.approx(1.0)
    assert auc_prg([1.0, 1.0], [1.0, 1.0, 1.0]) == pytest.approx(0.0)
    assert auc_prg([0.0, 0.1], [1.0, 2.0, 3.0]) < 0


@given(SCORES, SCORES)
@example([0.0, 0.0, 2.0, 2.0, 2.0, 2.0], [0.0, 0.0, 1.0])  # a recall gain of 0 but for rounding
def test_auc_prg_by_integration_over_recall(presence, background):
    """Along the straight lines of the ROC curve, mapped point by point to gains and summed finely."""
    curve = roc(presence, background)
    odds = len(presence) / len(background)
    hits = np.linspace(0, 1, 4001)[1:]
    alarms = np.interp(hits, curve.y, curve.x)
    recall = 1 - odds * (1 - hits) / hits
    inside = recall >= 0
    if inside.sum() < 2:
        return
    precision = 1 - alarms / hits
    area = np.sum(np.diff(recall[inside]) * (precision[inside][1:] + precision[inside][:-1]) / 2)
    steps = (np.diff(curve.y) > 0).sum()
    # Where the false positive rate jumps, numerical integration misses up to one step.
    tolerance = 2e-3 * (1 + steps) * (1 + np.abs(precision[inside]).max()) * (1 + 1 / odds)
    assert auc_prg(presence, background) == pytest.approx(area, abs=tolerance)


def test_prg_gains_at_one_threshold():
    """4 presences, 6 background places, 3 hits and 2 alarms: precision 0.6, recall 0.75, prevalence 0.4."""
    curve = prg([9, 9, 9, 1], [9, 9, 1, 1, 1, 1])
    assert curve.x[-1] == pytest.approx(1.0)
    assert curve.x[-2] == pytest.approx((0.75 - 0.4) / (0.6 * 0.75))
    assert curve.y[-2] == pytest.approx((0.6 - 0.4) / (0.6 * 0.6))


@given(SCORES, SCORES)
def test_tss_is_the_best_over_all_thresholds(presence, background):
    tss, threshold = max_tss(presence, background)
    p, b = np.array(presence), np.array(background)
    tried = {t: (p >= t).mean() - (b >= t).mean() for t in {*presence, *background}}
    assert tss == pytest.approx(max(tried.values()))
    assert threshold == max(t for t, value in tried.items() if value == pytest.approx(tss))


def boyce_by_loops(presence, background):
    """The recipe of Hirzel et al. and ecospat, window by window."""
    low, high = min(*presence, *background), max(*presence, *background)
    width = (high - low) / 10
    ratios, scores = [], []
    for step in range(101):
        start = low + step * (high - width - low) / 100
        end = high if step == 100 else start + width
        observed = sum(start <= p <= end for p in presence) / len(presence)
        expected = sum(start <= b <= end for b in background) / len(background)
        if expected:
            ratios.append(round(observed / expected, 10))
            scores.append(start)
    kept = [i for i in range(len(ratios)) if i + 1 == len(ratios) or ratios[i] != ratios[i + 1]]
    return stats.spearmanr([ratios[i] for i in kept], [scores[i] for i in kept]).statistic


@pytest.mark.parametrize("seed", range(5))
def test_boyce_equals_the_recipe_in_loops(seed):
    presence, background, _ = drawn(seed, digits=8)
    expected = boyce_by_loops(presence.tolist(), background.tolist())
    assert boyce(presence, background).index == pytest.approx(expected, abs=1e-9)


def test_boyce_tells_good_from_inverted_and_constant():
    random = np.random.default_rng(0)
    background = random.uniform(0, 1, 20_000)
    presence = np.sqrt(random.uniform(0, 1, 20_000))  # density 2x: the ratio rises with the score
    good = boyce(presence, background)
    assert good.index > 0.98
    np.testing.assert_allclose(good.curve.y, 2 * good.curve.x, atol=0.12)
    assert boyce(1 - presence, background).index < -0.98
    assert np.isnan(boyce([0.5, 0.5], [0.5, 0.5, 0.5]).index)


def test_correlation_equals_pearson_and_is_elith_cor():
    presence, background, _ = drawn(3)
    label, score = together(presence, background)
    assert correlation(presence, background) == pytest.approx(stats.pearsonr(score, label).statistic, abs=1e-12)
    assert np.isnan(correlation([1.0, 1.0], [1.0]))


def test_omission_and_predicted_share():
    np.testing.assert_allclose(omission([1, 2, 3, 4], [0, 2, 2.5, 9]), [0, 0.25, 0.5, 1])
    np.testing.assert_allclose(share_above([1, 2, 3, 4], [0, 2, 2.5, 9]), [1, 0.75, 0.5, 0])
    np.testing.assert_allclose(share_above([1, 2], [2], [1, 3]), [0.75])


@pytest.mark.parametrize("seed", range(3))
def test_probability_measures_equal_scikit_learn(seed):
    random = np.random.default_rng(seed)
    p = random.uniform(0, 1, 200)
    present = random.uniform(0, 1, 200) < p**2
    weight = random.uniform(0.5, 2, 200)
    for weights in (None, weight):
        expected = metrics.log_loss(present, p, sample_weight=weights)
        assert log_loss(p, present, weights) == pytest.approx(expected, abs=1e-12)
        expected = metrics.brier_score_loss(present, p, sample_weight=weights)
        assert brier(p, present, weights) == pytest.approx(expected, abs=1e-12)


def test_calibration_curve_equals_scikit_learn():
    from sklearn.calibration import calibration_curve

    random = np.random.default_rng(5)
    p = random.permutation(np.linspace(0.01, 0.99, 500))
    present = random.uniform(0, 1, 500) < p
    result = calibration(p, present)
    observed, predicted = calibration_curve(present, p, n_bins=10, strategy="quantile")
    np.testing.assert_allclose(result.predicted, predicted)
    np.testing.assert_allclose(result.observed, observed)
    assert result.count.tolist() == [50] * 10
    assert result.error == pytest.approx(np.mean(np.abs(observed - predicted)))


def test_calibration_error_of_planted_bias():
    p = np.repeat([0.2, 0.6], 500)
    present = np.concatenate([np.arange(500) < 100, np.arange(500) < 200])  # 0.2 and 0.4 are true
    result = calibration(p, present)
    assert result.predicted.tolist() == pytest.approx([0.2, 0.6])  # ties stay together
    assert result.error == pytest.approx(0.1)


def test_mid_ranks_equal_scipy():
    values = np.random.default_rng(0).integers(0, 8, 50)
    np.testing.assert_allclose(mid_ranks(values), stats.rankdata(values))


def test_unusable_scores_are_refused():
    for presence, background in (([], [1.0]), ([1.0], []), ([np.nan], [1.0]), ([1.0], [np.inf])):
        with pytest.raises(ValueError, match="score"):
            auc(presence, background)
    with pytest.raises(ValueError, match="between 0 and 1"):
        brier([1.2], [True])
    with pytest.raises(ValueError, match="weights"):
        auc([1.0], [0.0, 1.0], [1.0, -1.0])
