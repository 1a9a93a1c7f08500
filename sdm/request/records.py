"""The options of occurrence records: where they come from, how they are read, cleaned and fitted."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any

from sdm.errors import RequestError
from sdm.request.choices import MASKS_OF_A_MAP, parse_word
from sdm.request.options import Option, Options, several, whole_number

_READ = "Records: how to read them"
_CLEAN = "Records: which to drop"


_SOURCE = "Your records"


@dataclass(frozen=True, kw_only=True)
class RecordsSource(Options):
    """Occurrence records that a species is fitted to, or a saved fit."""

    records: Annotated[
        Any,
        Option(
            "Occurrence records to fit to: Darwin Core archive, GBIF, iNaturalist or eBird download, CSV, GeoPackage, "
            "GeoJSON, shapefile, KML, Parquet.",
            panel=_SOURCE,
            metavar="FILE",
            kind=str,
        ),
    ] = None
    """A file, or `sdm.Records`."""
    gbif: Annotated[str | None, Option("Fetch records of this species from GBIF.", panel=_SOURCE, metavar="NAME")] = (
        None
    )
    background: Annotated[
        str | None,
        Option("Records of other species of the group, to compare the presences with.", panel=_SOURCE, metavar="FILE"),
    ] = None
    fitted: Annotated[
        Any,
        Option("A saved fit (NAME.fit.safetensors), used instead of records.", panel=_SOURCE, metavar="FILE", kind=str),
    ] = None
    """A file, or a `sdm.Fitted`."""
    evaluate: Annotated[
        bool,
        Option(
            "Cross-validate the fit and write a report; takes some seconds.",
            panel=_SOURCE,
            flags=("--evaluate/--no-evaluate",),
        ),
    ] = True

    def __post_init__(self) -> None:
        given = [name for name in ("records", "gbif", "fitted") if getattr(self, name) is not None]
        if len(given) > 1:
            raise RequestError(f"--{given[0]} and --{given[1]} are both given; give only one source of records.")
        if self.background is not None and not self.given:
            raise RequestError("--background is given without records; add --records.")

    @property
    def given(self) -> bool:
        """Whether records or a saved fit are given."""
        return self.records is not None or self.gbif is not None or self.fitted is not None


@dataclass(frozen=True, kw_only=True)
class ReadOptions(Options):
    """The columns, layer and CRS of a file of records that cannot be recognised."""

    species_column: Annotated[
        str | None, Option("Column with the scientific names.", panel=_READ, flags=("--records-species-column",))
    ] = None
    lon_column: Annotated[str | None, Option("Column with the longitudes, or x.", panel=_READ)] = None
    lat_column: Annotated[str | None, Option("Column with the latitudes, or y.", panel=_READ)] = None
    presence_column: Annotated[
        str | None, Option("Column with presence and absence: 1/0, yes/no, present/absent.", panel=_READ)
    ] = None
    records_layer: Annotated[str | None, Option("Layer to read from a GeoPackage with several.", panel=_READ)] = None
    records_crs: Annotated[
        str | None, Option("CRS of the coordinates. Default: the file's, else WGS84 degrees.", panel=_READ)
    ] = None


@dataclass(frozen=True, kw_only=True)
class CleanOptions(Options):
    """The cleaning checks and their limits.

    False switches a check off, as does a limit of 0, except in `shore_km`. So does None, except in `max_uncertainty_m`
    of a map: there it stands for the size of a pixel, and at least 5 km where a model describes places.
    """

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
            "Drop records with a larger coordinate uncertainty, in metres; unknown uncertainty is kept; 0: no check. "
            "Default: the size of a pixel, at least 5000 unless fitted to your rasters alone.",
            panel=_CLEAN,
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
            "land: drop records at sea; sea: drop records on land; none: no check; auto: by the habitat of a species "
            "that the model knows.",
            panel=_CLEAN,
            metavar="|".join(MASKS_OF_A_MAP),
        ),
    ] = "auto"
    """ "land", "sea", "none" or "auto"."""
    shore_km: Annotated[
        float,
        Option(
            "Records this close to the shore, in km, count as both on land and at sea.", panel=_CLEAN, low=0, high=50
        ),
    ] = 5.0
    drop_duplicates: Annotated[bool, Option("Keep one record per location (to 0.00001 degrees).", panel=_CLEAN)] = True
    """Presences and absences are counted apart."""

    def __post_init__(self) -> None:
        self._set(habitat=parse_word("habitat", self.habitat, MASKS_OF_A_MAP))
        if self.first_year is not None:
            whole_number("first_year", self.first_year)
        for name, high in (("max_uncertainty_m", math.inf), ("centroid_km", 100.0), ("capital_km", 100.0)):
            if (value := getattr(self, name)) is not None:
                self._set(**{name: _number(name, value, 0.0, high)})
        self._set(shore_km=_number("shore_km", self.shore_km, 0.0, 50.0))


BACKGROUNDS = ("auto", "random", "group", "mixed")

_FIT = "Fit to records"


@dataclass(frozen=True, kw_only=True)
class FitOptions(Options):
    """Settings of the fit of a species to its records."""

    background_kind: Annotated[
        str,
        Option(
            "What presences are compared with: random land, places of other species' records (group), half and half "
            "(mixed), or auto: absences where the records hold enough, mixed where enough records of other species lie "
            "within reach, else random.",
            panel=_FIT,
        ),
    ] = "auto"
    background_places: Annotated[
        int, Option("Maximum number of random places, and of target-group places.", panel=_FIT)
    ] = 4000
    reach_km: Annotated[
        float, Option("Background places lie within this distance of a record.", panel=_FIT, metavar="KM")
    ] = 1000.0
    thin: Annotated[
        float, Option("Keep one record per cell of this many degrees; 0 keeps all.", panel=_FIT, metavar="DEGREES")
    ] = 0.1
    prevalence: Annotated[
        float | None,
        Option("Share of the area that the species occupies, if known; values are then probabilities.", panel=_FIT),
    ] = None
    prior: Annotated[
        str,
        Option(
            "Prior of the fit: the species' own vector (known), the mean of all species (unknown), or auto: known "
            "where the model knows the species.",
            panel=_FIT,
        ),
    ] = "auto"
    gate: Annotated[
        bool,
        Option("Keep the zero-shot map of a known species where records do not improve it.", panel=_FIT),
    ] = True
    categorical: Annotated[
        tuple[str, ...], Option("Covariates whose values are classes. Repeatable.", panel=_FIT, metavar="NAME")
    ] = ()
    refits: Annotated[int, Option("Refits to resampled records, for uncertainty.", panel=_FIT)] = 10
    trust: Annotated[
        bool,
        Option(
            "Write how far to trust a map as further bands: uncertainty, and of a fit novelty.",
            panel="Output",
            flags=("--trust/--no-trust",),
        ),
    ] = True
    mess: Annotated[
        bool,
        Option("Write MESS (Elith et al. 2010) as a further band; in our tests it told nothing of error.", panel=_FIT),
    ] = False
    seed: Annotated[int, Option("Seed of all random draws.", panel=_FIT)] = 0

    def __post_init__(self) -> None:
        parse_word("background_kind", self.background_kind, BACKGROUNDS)
        parse_word("prior", self.prior, ("auto", "known", "unknown"))
        whole_number("background_places", self.background_places, 100, 100_000)
        whole_number("refits", self.refits, 0, 100)
        whole_number("seed", self.seed, 0, 2**31 - 1)
        for name, low, high in (("reach_km", 1.0, 20_000.0), ("thin", 0.0, 10.0)):
            self._set(**{name: _number(name, getattr(self, name), low, high)})
        if self.prevalence is not None:
            self._set(prevalence=_number("prevalence", self.prevalence, 0.0, 1.0))
            if not 0.0 < float(self.prevalence) < 1.0:
                raise RequestError(f"prevalence {self.prevalence:g} must lie between 0 and 1.")
        self._set(categorical=several(self.categorical))


def _number(name: str, value: object, low: float, high: float) -> float:
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        raise RequestError(f"{name} {str(value)[:40]!r} is not a number.") from None
    if not low <= number <= high:  # NaN too
        raise RequestError(f"{name} {number:g} is outside {low:g}..{high:g}.")
    return number
