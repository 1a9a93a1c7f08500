"""What a fit consists of, apart from what is done with it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from sdm._version import __version__
from sdm.records.calibration import Calibration
from sdm.records.features import Covariates
from sdm.records.members import Ensemble
from sdm.records.trust import Reference


@dataclass(frozen=True)
class FitInfo:
    """Where a fit comes from, for reports and for whoever opens its file."""

    species: str
    """Name of the species, "" if the records have none."""
    features: str
    """"model", or "covariates" for the user's own rasters alone."""
    model: str = ""
    model_digest: str = ""
    modalities: tuple[str, ...] = ()
    month: int | None = None
    layers: dict[str, str] = field(default_factory=dict)
    """Fingerprints of the layers that were read."""
    mask: str = "none"
    """Where random background places lie: "land", "sea" or "none"."""
    method: str = ""
    """The members, as one sentence."""
    background: str = ""
    """"random", "group", "mixed" or "absences"."""
    background_rule: str = ""
    """Why, as a clause."""
    counts: dict[str, int] = field(default_factory=dict)
    """presences_given, presences, absences, random, group, not_covered."""
    taxon: str = ""
    """Whose vector the prior was made of; "" without one."""
    known: bool = False
    """Whether the model knows the species."""
    zero_shot: bool = False
    """Whether the gate kept the zero-shot map."""
    gate: str = ""
    """The evidence at left-out records, as a sentence; "" where none was needed."""
    extent: tuple[float, float, float, float] = (-180.0, -90.0, 180.0, 90.0)
    """(west, south, east, north) of the records, degrees; west is larger than east across 180 degrees."""
    notes: tuple[str, ...] = ()
    """What a user should know, as sentences."""
    citations: tuple[str, ...] = ()
    """Of the records."""
    licences: dict[str, int] = field(default_factory=dict)
    """Of the records, and how many are under each."""
    thresholds: dict[str, float] = field(default_factory=dict)
    """Values by the rules of `sdm.request.ranges.FROM_RECORDS`, from the places of the fit."""
    seed: int = 0
    software: str = f"taxabind-map {__version__}"

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class FitParts:
    """A fit as it is stored."""

    info: FitInfo
    covariates: Covariates
    """The columns of `environment`."""
    ensemble: Ensemble
    calibration: Calibration
    reference: Reference
    typical: dict[str, float]
    """Mean over the fit's background of what each group of covariates adds to the first member's score."""
