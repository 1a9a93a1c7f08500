"""Months by number and name."""

import pytest

from sdm.errors import RequestError
from sdm.request.months import MONTHS, month_name, parse_month, suffix, when


@pytest.mark.parametrize(
    ("given", "number"), [(None, 0), (1, 1), ("12", 12), ("05", 5), ("May", 5), (" sept. ", 9), ("JAN", 1), ("june", 6)]
)
def test_months(given, number):
    assert parse_month(given) == number


@pytest.mark.parametrize(
    "given", [0, 13, -1, True, 5.0, "0", "13", "", "ma", "mayor", "5.5", "٥", object(), [5], "x" * 99]
)
def test_what_is_not_a_month(given):
    with pytest.raises(RequestError, match="is not known; give 1 to 12 or a name such as May") as error:
        parse_month(given)
    assert len(str(error.value)) < 150


def test_names_of_months():
    assert [parse_month(name) for name in MONTHS] == list(range(1, 13))
    assert (month_name(5), when(5), suffix(5)) == ("May", "in May", "-month-05")
    assert (month_name(0), when(0), suffix(0)) == ("whole year", "at any time of the year", "")
