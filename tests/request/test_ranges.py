"""Rules of ranges as users write them."""

import pytest

from sdm.errors import RequestError
from sdm.request import Delivery, RangeRule


@pytest.mark.parametrize(
    ("given", "kind", "value", "text"),
    [
        ("0.5", "fixed", 0.5, "0.5"),
        (0.25, "fixed", 0.25, "0.25"),
        (" Precision = 0.9 ", "precision", 0.9, "precision=0.9"),
        ("recall=1", "recall", 1.0, "recall=1"),
        ("area", "area", None, "area"),
        ("mtp", "mtp", None, "mtp"),
        ("P10", "p10", None, "p10"),
        ("equal-sensitivity-specificity", "equal", None, "equal"),
        ("equal", "equal", None, "equal"),
        ("max-tss", "max-tss", None, "max-tss"),
    ],
)
def test_rules(given, kind, value, text):
    rule = RangeRule.parse(given)
    assert (rule.kind, rule.value, str(rule)) == (kind, value, text)
    assert RangeRule.parse(rule) is rule and RangeRule.parse(str(rule)) == rule
    assert rule.meaning
    assert Delivery(range=given).to_dict()["range"] == text


@pytest.mark.parametrize("given", ["", "best", "precision", "precision=0", "recall=1.1", "area=3", "nan", "inf", True])
def test_no_rules(given):
    with pytest.raises(RequestError, match="range "):
        RangeRule.parse(given)
