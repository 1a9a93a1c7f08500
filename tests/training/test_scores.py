"""Ranking and calibration, by hand and against known truths."""

import numpy as np
import pytest

from sdm.training.measures import scores


def test_average_precision_and_auc_by_hand():
    score = np.array([0.9, 0.8, 0.7, 0.6, 0.5])
    present = np.array([1, 0, 1, 0, 0])
    assert scores.average_precision(score, present) == pytest.approx((1 / 1 + 2 / 3) / 2)
    # Pairs (presence, absence): 6; lost: 0.7 against 0.8.
    assert scores.auc(score, present) == pytest.approx(5 / 6)
    assert scores.auc(np.zeros(5), present) == pytest.approx(0.5)


def test_calibration_error_by_hand():
    p = np.array([0.1, 0.1, 0.9, 0.9])
    y = np.array([0, 1, 1, 1])
    # |0.2 - 1| in one bin, |1.8 - 2| in another, over four pairs.
    ece, above, table = scores.calibration_error(p, y)
    assert ece == pytest.approx((0.8 + 0.2) / 4)
    assert above == pytest.approx((0.8 + 0.2) / 4)  # 0.1 lies in the second of 15 bins
    assert [row[2] for row in table] == [2, 2]


def test_fit_calibration_recovers_the_truth():
    rng = np.random.default_rng(1)
    x = rng.uniform(-0.5, 0.9, 200_000)
    y = rng.random(x.size) < 1 / (1 + np.exp(-(17.0 * x - 6.0)))
    scale, bias = scores.fit_calibration(x, y, (5.0, 0.0))
    assert scale == pytest.approx(17.0, rel=0.03)
    assert bias == pytest.approx(-6.0, rel=0.03)
    # A start far too sure of itself, from which a full Newton step runs away.
    assert scores.fit_calibration(x, y, (90.0, -2.0)) == pytest.approx((scale, bias), rel=1e-4)
    # Probabilities as labels say more than draws from them.
    soft = scores.fit_calibration(x, 1 / (1 + np.exp(-(17.0 * x - 6.0))), (5.0, 0.0))
    assert soft == pytest.approx((17.0, -6.0), rel=1e-3)


def test_scores_of_soft_and_partly_known_labels():
    rng = np.random.default_rng(3)
    label = rng.random((300, 4)).astype(np.float32)
    score = label + rng.normal(0, 0.3, label.shape)
    known = rng.random(label.shape) < 0.7
    result = scores.score_predictions(score, label, label, known, min_places=5)
    expected = [scores.auc(score[known[:, j], j], label[known[:, j], j] >= 0.5) for j in range(4)]
    assert result["auc"] == pytest.approx(np.mean(expected)) and result["species"] == 4
    assert result["ece"] == pytest.approx(0, abs=1e-6)  # the label itself as probability
    nothing = scores.score_predictions(score, label, label * 0, None, min_places=5)
    assert nothing["ap"] is None and nothing["species"] == 0
