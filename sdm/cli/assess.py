"""`sdm assess`: the numbers of Red List criterion B from records."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from sdm.cli.app import EPILOG, command_line, printable, say, sdm_app
from sdm.cli.options import Change, takes_options
from sdm.errors import RequestError
from sdm.request.options import Option, Options, several
from sdm.request.records import CleanOptions, ReadOptions

if TYPE_CHECKING:
    from sdm.analysis.assess import Assessment

LISTED = 30
"""Species to print; the table has all."""


@dataclass(frozen=True, kw_only=True)
class AssessRecords(Options):
    """The options of `sdm assess`."""

    records: Annotated[
        str | None,
        Option(
            "Occurrence records of one or many species: Darwin Core archive, GBIF, iNaturalist or eBird download, CSV, "
            "GeoPackage, GeoJSON, shapefile, KML, Parquet.",
            metavar="FILE",
        ),
    ] = None
    species: Annotated[
        str | None, Option("Only this species of the file, or the name of a file without names.", metavar="NAME")
    ] = None
    map: Annotated[
        tuple[str, ...],
        Option(
            "Map of one of the species, whose range has an extent of occurrence too: that of NAME-range.gpkg beside "
            "it, else the range that is as large as the expected area. Repeatable.",
            metavar="MAP",
        ),
    ] = ()
    out: Annotated[
        Path | None,
        Option("Write NAME-assessment.csv, .json and .gpkg here.", metavar="FOLDER", flags=("--out", "-o")),
    ] = None
    overwrite: Annotated[bool, Option("Replace existing outputs.")] = False
    json_output: Annotated[bool, Option("Print JSON on stdout.", flags=("--json",))] = False

    def __post_init__(self) -> None:
        self._set(map=several(self.map))
        if self.records is None and self.map:
            from sdm.analysis.assess import NO_AOO

            raise RequestError(f"{NO_AOO.rstrip('.')}: name a file with --records.")
        if self.records is None:
            raise RequestError("no records are given; name a file with --records.")


@sdm_app.command("assess", epilog=EPILOG)
@takes_options(
    changes={
        "habitat": Change("land: drop records at sea; sea: drop records on land; none: no check.", "none"),
        "max_uncertainty_m": Change(
            "Drop records with a larger coordinate uncertainty, in metres; unknown uncertainty is kept. "
            "Default: no check."
        ),
    }
)
def assess_command(options: AssessRecords, read: ReadOptions, clean: CleanOptions) -> None:
    """Extent of occurrence and area of occupancy for Red List criterion B, with its thresholds of area; no category.

    sdm assess --records adders.csv --out assessed

    sdm assess --records pumas.csv --map maps/puma-concolor.tif
    """
    from sdm.analysis.assess import NO_CATEGORY, SUFFIXES, assess, report, write_assessments
    from sdm.files.atomic import check_targets

    assert options.records is not None
    stem = Path(options.records).name.split(".")[0] or "records"
    if options.out:  # before the work, not after it
        check_targets(options.out, [f"{stem}{suffix}" for suffix in SUFFIXES], overwrite=options.overwrite)
    done = assess(options.records, options.map, options.species, options=read, clean=clean)
    files: list[Path] = []
    if options.out:
        files = write_assessments(done, options.out, stem, overwrite=options.overwrite, command=command_line())
    if options.json_output:
        print(json.dumps(report(done, command_line()), indent=2))
        return
    if len(done) == 1:
        for line in done[0].records.audit.sentences():
            say(line)
    for note in dict.fromkeys(note for one in done for note in one.notes):
        say(f"note: {note}")
    say(f"note: {NO_CATEGORY}")
    print(printable(_table(done)))
    for path in files:
        print(printable(f"  {path}"))


def _table(done: list[Assessment]) -> str:
    """The numbers as text, some lines for each species."""
    lines: list[str] = []
    for one in done[:LISTED]:
        lines.append(one.species or "species without a name")
        if one.extent is None:
            lines.append(f"  {one.error}")
            continue
        row = one.row()
        lines.append(
            f"  EOO {row['eoo_km2']:,.0f} km2 (of the points {row['eoo_of_points_km2']:,.0f}), "
            f"AOO {row['aoo_km2']:,.0f} km2 ({row['aoo_cells']:,} cells), from {row['presences']:,} presences"
        )
        lines.append(f"  B1 {_met(row, 'b1')}; B2 {_met(row, 'b2')}")
        if one.map is not None:
            for side, area in one.map.eoo_km2.items():
                named = "range" if side == "range" else f"range, {side}"
                lines.append(f"  EOO of the map's {named} {area:,.0f} km2: B1 {_met(row, f'b1_map_{side}')}")
    if len(done) > LISTED:
        lines.append(f"{len(done) - LISTED:,} more species; the table has all (--out).")
    return "\n".join(lines)


def _met(row: dict[str, str], criterion: str) -> str:
    return ", ".join(f"{name.upper()} {row[f'{criterion}_{name}']}" for name in ("cr", "en", "vu"))
