"""The options of reading and cleaning occurrence records."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any

from sdm.errors import RequestError
from sdm.request.choices import MASKS, parse_word
from sdm.request.options import Option, Options, whole_number

_READ = "Records: how to read them"
_CLEAN = "Records: which to drop"


@dataclass(frozen=True, kw_only=True)
class ReadOptions(Options):
    """Which columns of a file mean what, where that is not clear from their names."""

    species_column: Annotated[str | None, Option("Column with the scientific names.", panel=_READ)] = None
    lon_column: Annotated[str | None, Option("Column with the longitudes, or x.", panel=_READ)] = None
    lat_column: Annotated[str | None, Option("Column with the latitudes, or y.", panel=_READ)] = None
    presence_column: Annotated[
        str | None, Option("Column with presence and absence: 1/0, yes/no, present/absent.", panel=_READ)
    ] = None
    records_layer: Annotated[str | None, Option("Layer of a GeoPackage with several.", panel=_READ)] = None
    records_crs: Annotated[
        str | None, Option("CRS of the coordinates. Default: the file's, else WGS84 degrees.", panel=_READ)
    ] = None


@dataclass(frozen=True, kw_only=True)
class CleanOptions(Options):
    """Which checks are made, and their limits. None, 0 and False switch a check off."""

    drop_zero: Annotated[
        bool, Option("Drop coordinates at (0, 0), and equal longitude and latitude.", panel=_CLEAN)
    ] = True
    check_country: Annotated[
        bool,
        Option(
            "Compare coordinates with the record's country: repair swapped ones and wrong signs, drop others.",
            panel=_CLEAN,
        ),
    ] = True
    drop_fossils: Annotated[bool, Option("Drop fossils.", panel=_CLEAN)] = True
    drop_captive: Annotated[bool, Option("Drop captive and cultivated individuals.", panel=_CLEAN)] = True
    first_year: Annotated[
        int | None, Option("Drop records before this year; those without a year are kept.", panel=_CLEAN)
    ] = None
    max_uncertainty_m: Annotated[
        float | None,
        Option(
            "Drop records with a larger coordinate uncertainty, in metres; unknown uncertainty is kept.", panel=_CLEAN
        ),
    ] = None
    centroid_km: Annotated[
        float | None, Option("Drop presences this close to a country's centroid, in km; 0: no check.", panel=_CLEAN)
    ] = 1.0
    capital_km: Annotated[
        float | None, Option("Drop presences this close to the centre of a capital, in km; 0: no check.", panel=_CLEAN)
    ] = 10.0
    habitat: Annotated[
        Any,
        Option(
            "land: drop records at sea; sea: drop records on land; none: no check.",
            panel=_CLEAN,
            metavar="|".join(MASKS),
        ),
    ] = "none"
    """ "land", "sea" or "none"."""
    shore_km: Annotated[
        float,
        Option(
            "Records this close to the shore, in km, count as both on land and at sea.", panel=_CLEAN, low=0, high=50
        ),
    ] = 5.0
    drop_duplicates: Annotated[bool, Option("Keep one record per location (to 0.00001 degrees).", panel=_CLEAN)] = True
    """Presences and absences are counted apart."""

    def __post_init__(self) -> None:
        self._set(habitat=parse_word("habitat", self.habitat, MASKS))
        if self.first_year is not None:
            whole_number("first_year", self.first_year)
        for name, high in (
            ("max_uncertainty_m", math.inf),
            ("centroid_km", 100),
            ("capital_km", 100),
            ("shore_km", 50),
        ):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= high:
                raise RequestError(f"{name} {value!r} is outside 0..{high:g}.")
