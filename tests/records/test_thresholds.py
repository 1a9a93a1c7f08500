"""Thresholds against brute force."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdm.errors import RecordsError
from sdm.records.thresholds import RULES, threshold

SCORES = st.lists(st.integers(0, 9).map(float), min_size=1, max_size=30)


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
    assert by_rule["max-tss"].sensitivity + by_rule["max-tss"].specificity == pytest.approx(best)
    for one in by_rule.values():
        assert one.sensitivity == pytest.approx(sensitivity[one.value])
        assert one.specificity == pytest.approx(specificity[one.value])
        assert one.area_share == pytest.approx(1 - one.specificity)


def test_real_absences_give_the_specificity_and_random_places_the_area():
    presence, land, absence = [0.9, 0.8, 0.7, 0.6], [0.1, 0.2, 0.65, 0.95], [0.05, 0.1, 0.65]
    one = threshold("max-tss", presence, land, absence=absence)
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
