"""The audit of a file of records: rows kept, repaired or dropped, and why."""

from __future__ import annotations

import csv
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sdm.errors import OutputError
from sdm.outputs.escape import table_text
from sdm.outputs.metadata import one_line

if TYPE_CHECKING:
    import pyarrow

KEPT = ""
REASONS = (
    KEPT,
    "unreadable row",
    "presence not stated",
    "no coordinates",
    "not a number",
    "zero coordinates",
    "equal longitude and latitude",
    "out of range",
    "not in its country",
    "fossil",
    "captive or cultivated",
    "before the first year",
    "uncertain location",
    "country centroid",
    "capital",
    "at sea",
    "on land",
    "duplicate",
)
"""Why a row was dropped, in the order of the checks: a row has the first reason that applies."""

REPAIRS = (
    "",
    "longitude and latitude exchanged",
    "sign of longitude changed",
    "sign of latitude changed",
    "360 subtracted from longitude",
)
"""Repairs of coordinates, made only where they move a record into its country."""

_COLUMNS = (
    "row",
    "species",
    "occurrence",
    "longitude",
    "latitude",
    "result",
    "reason",
    "used_longitude",
    "used_latitude",
)
_AT_ONCE = 65536


@dataclass(frozen=True)
class Citations:
    """Whom to cite for some records, and under which terms they are given."""

    texts: tuple[str, ...] = ()
    """Citations as the source words them."""
    doi: tuple[str, ...] = ()
    licences: dict[str, int] = field(default_factory=dict)
    """Kept records under each licence."""
    datasets: dict[str, int] = field(default_factory=dict)
    """Kept records of each dataset, by its GBIF key."""
    taxon_keys: dict[str, int] = field(default_factory=dict)
    """Kept records of each taxon, by the key that GBIF gave it in the file; {} where it has none."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "citations": list(self.texts),
            "doi": list(self.doi),
            "licences": dict(self.licences),
            "datasets": dict(self.datasets),
            "gbif_taxon_keys": dict(self.taxon_keys),
        }


@dataclass(frozen=True, eq=False)
class Audit:
    """The rows of one species in a file of records, and what became of each of them; N rows."""

    source: str
    """File name, or the query."""
    species: str
    row: np.ndarray
    """(N,) int64 number of the row in the file, 1 for the first after the header."""
    given: pyarrow.Table
    """N rows of text as the file has it: species, lon, lat."""
    present: np.ndarray
    """(N,) bool; False: an absence."""
    reason: np.ndarray
    """(N,) int8 index into REASONS; 0: kept."""
    repair: np.ndarray
    """(N,) int8 index into REPAIRS; 0: as given."""
    lon: np.ndarray
    """(N,) float64 degrees as used; NaN where dropped."""
    lat: np.ndarray
    """(N,) float64 degrees as used; NaN where dropped."""
    unknown_uncertainty: int = 0
    """Kept records without a coordinate uncertainty."""
    other_species: int = 0
    """Rows of the file that belong to other species, or to none; they are not among the N."""
    columns: dict[str, str] = field(default_factory=dict)
    """The column of the file for each role, e.g. {"lon": "decimalLongitude"}."""
    notes: tuple[str, ...] = ()
    """One sentence for each assumption made while reading."""
    citations: Citations = field(default_factory=Citations)

    @property
    def kept(self) -> np.ndarray:
        """(N,) bool: rows that are used."""
        return self.reason == 0

    def counts(self) -> dict[str, Any]:
        """Numbers of rows for a report, as JSON values; reasons and repairs that never applied are left out."""
        dropped = np.bincount(self.reason, minlength=len(REASONS))
        repaired = np.bincount(self.repair[self.kept], minlength=len(REPAIRS))
        return {
            "rows": len(self.row),
            "kept": int(dropped[0]),
            "presences": int((self.kept & self.present).sum()),
            "absences": int((self.kept & ~self.present).sum()),
            "dropped": {name: int(n) for name, n in zip(REASONS[1:], dropped[1:], strict=True) if n},
            "repaired": {name: int(n) for name, n in zip(REPAIRS[1:], repaired[1:], strict=True) if n},
            "unknown_uncertainty": self.unknown_uncertainty,
            "other_species": self.other_species,
        }

    def sentences(self) -> list[str]:
        """Sentences for the user."""
        counts = self.counts()
        kinds = f"{counts['presences']:,} presences"
        if counts["absences"]:
            kinds += f" and {counts['absences']:,} absences"
        lines = [f"{one_line(self.source)}: {counts['rows']:,} rows, {counts['kept']:,} kept ({kinds})."]
        if counts["dropped"]:
            lines.append(f"Dropped: {_listed(counts['dropped'])}.")
        if counts["repaired"]:
            lines.append(f"Repaired: {_listed(counts['repaired'])}.")
        if counts["unknown_uncertainty"]:
            lines.append(f"{counts['unknown_uncertainty']:,} kept records do not state a coordinate uncertainty.")
        if counts["other_species"]:
            lines.append(f"Rows that name another species or none, and were not read: {counts['other_species']:,}.")
        return [*lines, *self.notes]

    def write_csv(self, path: str | Path) -> None:
        """Write one line per row: number, species, coordinates as given, result, reason, coordinates as used.

        Text that a spreadsheet would take for a formula gets a leading quote. Raises OutputError.
        """
        try:
            with Path(path).open("w", encoding="utf-8", newline="") as file:
                writer = csv.writer(file, lineterminator="\n")
                writer.writerow(_COLUMNS)
                for start in range(0, len(self.row), _AT_ONCE):
                    writer.writerows(self._lines(slice(start, start + _AT_ONCE)))
        except OSError as error:
            raise OutputError(f"{str(path)!r} cannot be written ({error.strerror}); choose another folder.") from error

    def _lines(self, part: slice) -> list[tuple[object, ...]]:
        rows = self.given.slice(part.start, part.stop - part.start)
        species, lon, lat = (
            [table_text(text or otherwise) for text in rows.column(name).to_pylist()]
            for name, otherwise in (("species", self.species), ("lon", ""), ("lat", ""))
        )
        reason, repair = self.reason[part].tolist(), self.repair[part].tolist()
        used = zip(self.lon[part].tolist(), self.lat[part].tolist(), strict=True)
        return [
            (
                number,
                name,
                "presence" if present else "absence",
                x,
                y,
                "dropped" if why else "repaired" if how else "kept",
                REASONS[why] or REPAIRS[how],
                *(("", "") if why else place),
            )
            for number, name, present, x, y, why, how, place in zip(
                self.row[part].tolist(),
                species,
                self.present[part].tolist(),
                lon,
                lat,
                reason,
                repair,
                used,
                strict=True,
            )
        ]


def _listed(numbers: dict[str, int]) -> str:
    return ", ".join(f"{n:,} {name}" for name, n in sorted(numbers.items(), key=lambda item: -item[1]))
