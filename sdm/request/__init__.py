"""The options of a request, checked once. Only the standard library is imported here.

`parts` has the options in groups, frozen dataclasses; `options` how an option is declared and what follows from it;
`box` the box in degrees, `months` the month, `ranges` the rule of a range, `choices` the words that options may be.
"""

from sdm.request.box import BBox
from sdm.request.parts import (
    Area,
    Delivery,
    Execution,
    IndexRequest,
    ListOptions,
    MapRequest,
    ModelRef,
    Query,
    Sampling,
    Storage,
)
from sdm.request.ranges import RangeRule
from sdm.request.records import CleanOptions, FitOptions, ReadOptions, RecordsSource

__all__ = [
    "Area",
    "BBox",
    "CleanOptions",
    "Delivery",
    "Execution",
    "FitOptions",
    "IndexRequest",
    "ListOptions",
    "MapRequest",
    "ModelRef",
    "Query",
    "RangeRule",
    "ReadOptions",
    "RecordsSource",
    "Sampling",
    "Storage",
]
