"""The month of a map: 1 to 12, or 0 for the whole year.

Only the standard library is imported here, so that a wrong month is reported before anything heavy loads.
"""

from __future__ import annotations

import operator
from typing import SupportsIndex

from sdm.errors import RequestError

MONTHS = (
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
)
WHOLE_YEAR = "whole year"


def parse_month(month: int | str | None) -> int:
    """A month by number (1 to 12) or English name or abbreviation (jan, Sept., May); None: 0, the whole year.

    Raises RequestError for anything else.
    """
    if month is None:
        return 0
    number = _number(month.strip().lower().removesuffix(".")) if isinstance(month, str) else _integer(month)
    if isinstance(month, bool) or not 1 <= number <= 12:
        raise RequestError(
            f"month {str(month)[:40]!r} is not known; give 1 to 12 or a name such as May, or omit it for the "
            "whole year."
        )
    return number


def _number(text: str) -> int:
    """1 to 12 for a number or the beginning of an English name of three letters or more; else 0."""
    if len(text) <= 2 and text.isascii() and text.isdigit():
        return int(text)
    starting = [number for number, name in enumerate(MONTHS, 1) if len(text) >= 3 and name.lower().startswith(text)]
    return starting[0] if starting else 0


def _integer(month: SupportsIndex) -> int:
    try:
        return operator.index(month)
    except TypeError:
        return 0


def month_name(month: int) -> str:
    """ "May" for 5, "whole year" for 0."""
    return MONTHS[month - 1] if month else WHOLE_YEAR


def when(month: int) -> str:
    """The same within a sentence: "in May", "at any time of the year"."""
    return f"in {MONTHS[month - 1]}" if month else "at any time of the year"


def suffix(month: int) -> str:
    """The ending of the names of a month's files, such as "-month-05", which sorts; "" for the whole year."""
    return f"-month-{month:02d}" if month else ""
