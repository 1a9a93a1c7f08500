"""The units of a user's rasters, judged by what is known of the same variable at the same places."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sdm.errors import LayerError


class Scale(NamedTuple):
    """Another unit: a value in it is that in the usual unit times `factor`, plus `offset`."""

    name: str
    factor: float
    offset: float = 0.0


class Kind(NamedTuple):
    """What is measured by some variables."""

    unit: str
    low: float
    """Less than any place on Earth has; a value below stands for none."""
    high: float
    tolerance: float
    """Difference, in the unit, that a scenario may make."""
    others: Sequence[Scale]


_METRES = (Scale("feet", 3.28084), Scale("kilometres", 0.001), Scale("decimetres", 10.0), Scale("centimetres", 100.0))
TEMPERATURE = Kind(
    "degrees Celsius",
    -90.0,
    65.0,
    5.0,
    (
        Scale("kelvin", 1.0, 273.15),
        Scale("tenths of a degree", 10.0),
        Scale("degrees Fahrenheit", 1.8, 32.0),
        Scale("tenths of a kelvin", 10.0, 2731.5),
        Scale("hundredths of a degree", 100.0),
    ),
)
RANGE = Kind(
    "degrees Celsius",
    0.0,
    110.0,
    3.0,
    (Scale("tenths of a degree", 10.0), Scale("degrees Fahrenheit", 1.8), Scale("hundredths of a degree", 100.0)),
)
PRECIPITATION = Kind(
    "mm",
    0.0,
    30_000.0,
    20.0,
    (
        Scale("metres", 0.001),
        Scale("centimetres", 0.1),
        Scale("inches", 1.0 / 25.4),
        Scale("tenths of a mm", 10.0),
        Scale("metres a day", 1.0 / 365_250.0),
        Scale("mm a day", 1.0 / 365.25),
        Scale("mm a day", 12.0 / 365.25),
        Scale("mm a month", 1.0 / 12.0),
        Scale("kg a square metre and second", 1.0 / 31_557_600.0),
    ),
)
SEASONALITY = Kind("hundredths of a degree", 0.0, 10_000.0, 50.0, (Scale("degrees", 0.01), Scale("tenths", 0.1)))
PERCENT = Kind("percent", 0.0, 400.0, 5.0, (Scale("fractions of 1", 0.01), Scale("tenths of a percent", 10.0)))
ELEVATION = Kind("metres", -12_000.0, 9_500.0, 50.0, _METRES)
RELIEF = Kind("metres", 0.0, 9_500.0, 20.0, _METRES)
CLASSES = 0.0, 17.0
"""Least and largest class of land cover, of the scheme IGBP."""

_KINDS = {
    **dict.fromkeys((1, 5, 6, 8, 9, 10, 11), TEMPERATURE),
    **dict.fromkeys((2, 7), RANGE),
    **dict.fromkeys((3, 15), PERCENT),
    4: SEASONALITY,
    **dict.fromkeys((12, 13, 14, 16, 17, 18, 19), PRECIPITATION),
}
_FEWEST = 10
"""Places with a known value that are compared."""


def kind_of(variable: str) -> Kind | None:
    """What a variable measures: "bio1", "elevation", "relief"; None for another."""
    if variable.startswith("bio") and variable[3:].isdigit():
        return _KINDS.get(int(variable[3:]))
    return {"elevation": ELEVATION, "relief": RELIEF}.get(variable)


def limits(variable: str) -> tuple[float, float] | None:
    """The least and the largest value that a variable can have; beyond, a value is none."""
    if variable == "landcover":
        return CLASSES
    kind = kind_of(variable)
    return None if kind is None else (kind.low, kind.high)


def check_units(path: str, variable: str, values: np.ndarray, known: np.ndarray) -> None:
    """Raise LayerError where the values of a raster are in other units than the variable has.

    Parameters
    ----------
    path, variable : of the raster, for the message.
    values, known : (N,) the raster's and the bundled values of the variable at the same places; NaN for none.
    """
    if variable == "landcover":
        _check_classes(path, values, known)
        return
    kind = kind_of(variable)
    if kind is None:
        return
    source = f"environment raster {path!r}: {variable}"
    finite = values[np.isfinite(values)]
    beyond = finite[(finite < kind.low) | (finite > kind.high)]
    # One value that nothing can have, at some places only, says that there is none.
    if beyond.size and (beyond.size == finite.size or np.ptp(beyond) > 0):
        unit = "mm of rain" if kind is PRECIPITATION else kind.unit
        hint = " (kelvin, or tenths of a degree as in WorldClim 1?)" if kind is TEMPERATURE else ""
        raise LayerError(
            f"{source} runs from {finite.min():g} to {finite.max():g}, which is not {unit}{hint}; convert it or set "
            "the band's scale and offset."
        )
    both = np.isfinite(values) & np.isfinite(known) & (values >= kind.low) & (values <= kind.high)
    if both.sum() >= _FEWEST:
        _compare(source, kind, values[both].astype(float), known[both].astype(float))


def _compare(source: str, kind: Kind, values: np.ndarray, known: np.ndarray) -> None:
    def error(scale: Scale) -> float:
        return float(np.median(np.abs((values - scale.offset) / scale.factor - known)))

    usual = error(Scale("", 1.0))
    if usual <= kind.tolerance:
        return
    best = min(kind.others, key=error)
    middle, there = float(np.median(values)), float(np.median(known))
    if error(best) < usual / 5.0:
        raise LayerError(
            f"{source} is about {middle:.3g} where {there:.3g} {kind.unit} are known, as if it were in {best.name}, "
            f"not {kind.unit}; convert it or set the band's scale and offset."
        )
    if kind.low == 0.0 and there > kind.tolerance and not there / 20.0 < middle < there * 20.0:
        raise LayerError(
            f"{source} is about {middle:.3g} where {there:.3g} {kind.unit} are known, so it is not {kind.unit}; "
            "convert it or set the band's scale and offset."
        )


def _check_classes(path: str, values: np.ndarray, known: np.ndarray) -> None:
    """Raise LayerError for classes of another scheme than IGBP."""
    codes = np.unique(values[np.isfinite(values)])
    foreign = codes[(codes < CLASSES[0]) | (codes > CLASSES[1]) | (codes != np.floor(codes))]
    both = np.isfinite(values) & np.isfinite(known)
    tens = bool(codes.size) and bool((codes % 10 == 0).all()) and both.sum() >= _FEWEST
    if foreign.size > (1 if foreign.size and foreign[-1] >= 250 else 0) or (
        tens and float((values[both] == known[both]).mean()) < 0.05
    ):
        shown = ", ".join(f"{code:g}" for code in (foreign if foreign.size else codes)[:6])
        raise LayerError(
            f"environment raster {path!r}: landcover has the classes {shown}, but the model reads those of the scheme "
            "IGBP, 0 (water) to 16 (barren); reclassify it, or leave it out."
        )
