"""The options of a fit to occurrence records."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from sdm.errors import RequestError
from sdm.request.choices import parse_word
from sdm.request.options import Option, Options, several, whole_number

BACKGROUNDS = ("auto", "random", "group", "mixed")

_FIT = "Fit to records"


@dataclass(frozen=True, kw_only=True)
class FitOptions(Options):
    """How a species is fitted to its records."""

    background_kind: Annotated[
        str,
        Option(
            "What presences are compared with: random land, the places of other species' records (group), or half and "
            "half (mixed). Default: absences if there are any, mixed if there are other species, else random.",
            panel=_FIT,
        ),
    ] = "auto"
    background_places: Annotated[int, Option("Most random, and most target-group, places.", panel=_FIT)] = 4000
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
            "What is assumed before any record: auto, the species' own vector where the model knows it (known), or "
            "the mean of all species (unknown).",
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
    seed: Annotated[int, Option("Of all random draws.", panel=_FIT)] = 0

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
    except (TypeError, ValueError):
        raise RequestError(f"{name} {str(value)[:40]!r} is not a number.") from None
    if not low <= number <= high:  # NaN too
        raise RequestError(f"{name} {number:g} is outside {low:g}..{high:g}.")
    return number
