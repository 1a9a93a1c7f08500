"""Names and units of the bundled environment: from a model's standardised columns to what an analyst reads."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sdm.errors import LayerError
from sdm.models.layerspec import Variable

Floats = npt.NDArray[np.float64]

_BIOCLIM = {
    1: "Annual mean temperature (°C)",
    2: "Mean diurnal range (°C)",
    3: "Isothermality (%)",
    4: "Temperature seasonality (100 × SD, °C)",
    5: "Maximum temperature of the warmest month (°C)",
    6: "Minimum temperature of the coldest month (°C)",
    7: "Annual temperature range (°C)",
    8: "Mean temperature of the wettest quarter (°C)",
    9: "Mean temperature of the driest quarter (°C)",
    10: "Mean temperature of the warmest quarter (°C)",
    11: "Mean temperature of the coldest quarter (°C)",
    12: "Annual precipitation (mm)",
    13: "Precipitation of the wettest month (mm)",
    14: "Precipitation of the driest month (mm)",
    15: "Precipitation seasonality (CV, %)",
    16: "Precipitation of the wettest quarter (mm)",
    17: "Precipitation of the driest quarter (mm)",
    18: "Precipitation of the warmest quarter (mm)",
    19: "Precipitation of the coldest quarter (mm)",
}
_OTHERS = {
    ("elevation", "land_km"): "Elevation of the land, 0 at sea (m)",
    ("elevation", "sea_km"): "Elevation of the sea floor, 0 on land (m)",
}
_PLAIN = {f"bio{number}": name for number, name in _BIOCLIM.items()} | {
    "elevation": "Elevation (m)",
    "relief": "Relief (m)",
}
_LAND_COVER = (
    "Water",
    "Evergreen needleleaf forest",
    "Evergreen broadleaf forest",
    "Deciduous needleleaf forest",
    "Deciduous broadleaf forest",
    "Mixed forest",
    "Closed shrubland",
    "Open shrubland",
    "Woody savanna",
    "Savanna",
    "Grassland",
    "Permanent wetland",
    "Cropland",
    "Urban and built-up land",
    "Cropland and natural vegetation",
    "Snow and ice",
    "Barren land",
)
"""Classes of the International Geosphere-Biosphere Programme by their numbers, water as 0."""


def variable_name(variable: Variable) -> str:
    """Name of a variable with its unit, for figures and tables."""
    if variable.transform == "class":
        named = 0 <= variable.value < len(_LAND_COVER)
        return f"{_LAND_COVER[variable.value] if named else f'{variable.layer} {variable.value}'} (share)"
    return _OTHERS.get((variable.layer, variable.transform)) or _PLAIN.get(variable.layer, variable.layer)


def in_units(variable: Variable, standardised: Floats) -> Floats:
    """Standardised values of a variable in the units of its layer, such as degrees Celsius, mm or m.

    The inverse of `sdm.layers.environment.Input.apply`, except for values that were clipped there.
    """
    x = np.asarray(standardised, float) * variable.std + variable.mean
    match variable.transform:
        case "identity":
            return x
        case "log1p":
            return np.maximum(np.expm1(x), 0.0)
        case "land_km" | "sea_km":
            return x * 1000.0
        case "symlog":
            return np.sign(x) * np.expm1(np.abs(x))
        case "class":
            return np.clip(x, 0.0, 1.0)
        case other:
            raise LayerError(f"environment input {variable.layer!r} names the unknown transform {other!r}.")
