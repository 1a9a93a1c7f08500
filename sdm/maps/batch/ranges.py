"""The ranges of a batch: which species have one, and why others have none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sdm.errors import RequestError
from sdm.maps import ranges
from sdm.maps.batch.plan import Batch
from sdm.request import RangeRule


def check_ranges(batch: Batch, rule: RangeRule | None) -> list[int]:
    """The numbers of the taxa that get a range; none without a rule.

    A group in place of a species has none, nor has a map for which the rule has no meaning. Raises RequestError where
    that is so of all maps.
    """
    if rule is None:
        return []
    numbers = range(len(batch.job.resolutions))
    possible = [k for k in numbers if not ranges.refusal(batch.job, k, rule)]
    if not possible:
        raise RequestError(ranges.refusal(batch.job, 0, rule))
    return [k for k in possible if not ranges.is_stand_in(batch.job, k)]


def note_ranges(batch: Batch, rows: Sequence[dict[str, Any]], rule: RangeRule | None) -> None:
    """Add to the notes of the rows of the summary why a map has no range."""
    if rule is None:
        return
    for line in rows:
        if (k := line["store_index"]) == "" or line["range_area_km2"] != "":
            continue
        reason = ranges.refusal(batch.job, k, rule) or ranges.stand_in_note(batch.job, k)
        line["notes"] = " ".join(filter(None, [line["notes"], reason]))
