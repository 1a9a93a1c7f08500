"""`taxabind-map --species FILE`: a list of species, through `sdm.maps.batch`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sdm.cli.app import printable, progress, say, say_licence

LISTED = 10
"""Names that are not mapped, and notes, to print; the summary has all."""


def run_batch(
    path: str,
    bbox: tuple[float, float, float, float] | None,
    region: str | None,
    out: str,
    formats: str | None,
    command: str,
    options: dict[str, Any],
    running: dict[str, Any],
    *,
    dry_run: bool,
    json_output: bool,
    quiet: bool,
) -> None:
    """Plan the batch and run it, or say what it would do; `options` as of `plan_batch`, `running` of `write_batch`."""
    from sdm.maps.batch import plan_batch, write_batch
    from sdm.request.choices import parse_formats

    wanted = parse_formats(formats or "zarr")
    batch = plan_batch(Path(path), bbox, region, **options)
    if not quiet:
        _say_names(batch)
        say_licence(batch.job.plan.model)
    if dry_run:
        estimate = batch.estimate(wanted)
        print(json.dumps(estimate, indent=2)) if json_output else _print_estimate(estimate)
        return
    try:
        with progress(enabled=not quiet) as tell:
            result = write_batch(batch, out, formats=wanted, command=command, progress=tell, **running)
    except (KeyboardInterrupt, SystemExit) as stop:
        stop.add_note(f"finished tiles are kept in {out}: the same command goes on from there.")
        raise
    if json_output:
        print(json.dumps(result.report, indent=2))
    elif not quiet:
        _print_result(result)


def _say_names(batch: Any) -> None:
    for note in batch.notes:
        say(f"note: {note}")
    for row in batch.failed[:LISTED]:
        say(f"not mapped, row {row.asked.row}: {row.error}")
    if len(batch.failed) > LISTED:
        say(f"not mapped: {len(batch.failed) - LISTED:,} more names; the summary lists them.")
    stand_ins = [row for row in batch.rows if row.resolution is not None and not row.resolution.known]
    for row in stand_ins[:LISTED]:
        say(f"row {row.asked.row}: {' '.join(row.resolution.notes)}")
    if len(stand_ins) > LISTED:
        say(f"{len(stand_ins) - LISTED:,} more names are mapped as their genus or family; the summary lists them.")


def _print_estimate(e: dict[str, Any]) -> None:
    print(f"{e['species']:,} species ({e['names']:,} names, {e['names_not_mapped']:,} of them not mapped)")
    print(f"{e['columns']} x {e['rows']} = {e['pixels']:,} pixels in {e['tiles']:,} tiles")
    print(
        f"{e['crs']}, resolution {e['resolution']:g}; about {e['files_about']:,} files, at most "
        f"{e['bytes_at_most'] / 1e6:,.0f} MB and most often far less"
    )
    from sdm.request.months import when

    season = f" {when(e['month'])}" if e["month"] else ""
    print(f"model {e['model']} ({', '.join(e['modalities'])}){season} on {e['device']}")


def _print_result(result: Any) -> None:
    names, grid = result.report["names"], result.report["grid"]
    if not result.computed:
        print("finished before: nothing was left to do")
    print(
        f"{names['mapped_taxa']:,} species mapped, {names['not_mapped']:,} names not; "
        f"{grid['columns']} x {grid['rows']} pixels"
    )
    highest = result.report["richness"]["max"]
    print(f"richness up to {highest:.1f} species" if highest is not None else "no pixel is modelled here (all masked)")
    for name in result.report["outputs"]:
        print(printable(f"  {result.folder / name}"))
