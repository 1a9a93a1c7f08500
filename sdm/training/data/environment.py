"""The environment vector of a place: the layers it holds, and how each is transformed."""

from __future__ import annotations

from collections.abc import Sequence

from sdm.errors import RequestError
from sdm.layers.environment import Input

TEMPERATURE_LIKE = (1, 4, 5, 6, 7, 8, 9, 10, 11, 15)
RAIN = (12, 13, 14, 16, 17, 18, 19)
IGBP_CLASSES = range(17)
AROUND = (
    *(f"bio{n}" for n in (1, 4, 5, 6, 8, 9, 12, 13, 14, 15, 18, 19)),
    *("height", "depth", "relief"),
    *(f"landcover{k}" for k in (0, 1, 2, 4, 5, 7, 8, 9, 10, 12, 15, 16)),
)
FAR_AROUND = (
    *(f"bio{n}" for n in (1, 4, 5, 6, 12, 14, 15, 18)),
    *("height", "depth", "relief"),
    *(f"landcover{k}" for k in (0, 2, 10, 16)),
)
AROUND_KM = {100: AROUND, 300: AROUND, 900: FAR_AROUND}
"""Widths and variables of the bands of surroundings.tif, `mean100km-bio1` and so on."""


def environment_inputs(around_km: Sequence[int]) -> list[Input]:
    """The inputs before standardisation: 17 bioclim, terrain, land-cover fractions, and their means around the place.

    `around_km`: widths of those means. Raises RequestError for a width that surroundings.tif does not have.
    """
    if unknown := [km for km in around_km if km not in AROUND_KM]:
        known = ", ".join(map(str, AROUND_KM))
        raise RequestError(f"[architecture] environment around_km has {unknown[0]!r}; surroundings.tif has {known}.")
    inputs = [Input(f"bio{n}", "log1p" if n in RAIN else "identity") for n in sorted(TEMPERATURE_LIKE + RAIN)]
    inputs += [Input("elevation", t) for t in ("land_km", "sea_km", "symlog")]
    inputs += [Input("relief", "log1p")]
    inputs += [Input("landcover", "class", value=k) for k in IGBP_CLASSES]
    return inputs + [Input(f"mean{km}km-{name}") for km in around_km for name in AROUND_KM[km]]
