"""The rule that cuts a map into range and not range."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Self

from sdm.errors import RequestError

EXPECTED = {
    "precision": "the largest range of which the given share is expected to lie within the true range",
    "recall": "the smallest range that is expected to hold the given share of the true range",
    "area": "the range whose area is the expected area of the true range",
}
"""Rules that follow from probabilities, and what they mean; all but `area` take a share."""
FROM_RECORDS = {
    "mtp": "minimum training presence: the lowest value of a presence of the fit",
    "p10": "10th percentile of training presences: at most a tenth of them have a lower value",
    "equal": "equal sensitivity and specificity at the places of the fit",
    "max-tss": "largest sum of sensitivity and specificity (TSS) at the places of the fit",
}
"""Rules that follow from the records of a fit."""
_ALIASES = {"equal-sensitivity-specificity": "equal", "maxtss": "max-tss"}
FIXED = "fixed"
_WORDS = "a number such as 0.5, precision=P, recall=R, area, or, for a fit to records, " + ", ".join(FROM_RECORDS)


@dataclass(frozen=True)
class RangeRule:
    """A rule for the value from which on a place belongs to the range."""

    kind: str
    """`fixed`, a key of `EXPECTED`, or a key of `FROM_RECORDS`."""
    value: float | None = None
    """The threshold of `fixed`; the share of `precision` and `recall`."""

    @classmethod
    def parse(cls, rule: Any) -> Self:
        """From `0.5`, `precision=0.9`, `recall=0.9`, `area`, `mtp`, ...; a rule is returned as it is.

        Raises RequestError.
        """
        if isinstance(rule, cls):
            return rule
        text = str(rule).strip().lower()
        kind, equals, share = (part.strip() for part in text.partition("="))
        kind = _ALIASES.get(kind, kind)
        if kind in ("precision", "recall"):
            number = _number(share)
            if number is None or not 0.0 < number <= 1.0:
                raise RequestError(f"range {text[:40]!r} needs a share above 0 and up to 1, for example {kind}=0.9.")
            return cls(kind, number)
        if not equals and (kind in EXPECTED or kind in FROM_RECORDS):
            return cls(kind)
        number = _number(text)
        if number is None or isinstance(rule, bool):
            raise RequestError(f"range {text[:40]!r} is not a rule; give {_WORDS}.")
        return cls(FIXED, number)

    def __str__(self) -> str:
        if self.kind == FIXED:
            return f"{self.value:g}"
        return self.kind if self.value is None else f"{self.kind}={self.value:g}"

    @property
    def name(self) -> str:
        """The rule as it was given."""
        return str(self)

    @property
    def meaning(self) -> str:
        """What the rule stands for, as a clause."""
        return "a fixed value" if self.kind == FIXED else (EXPECTED | FROM_RECORDS)[self.kind]


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
