"""`taxabind-map --species FILE`: a list of species, through `sdm.maps.batch`."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdm.cli.app import Reporting, command_line, extent_line, model_line, printable, progress, say, say_licence
from sdm.request import Delivery, Execution, ListOptions, MapRequest

if TYPE_CHECKING:
    from sdm.maps.batch import Batch, BatchResult
    from sdm.maps.plan import OpenedFits

LISTED = 10
"""Names that are not mapped, and notes, to print; the summary has all."""


def map_list(
    path: str,
    request: MapRequest,
    listing: ListOptions,
    delivery: Delivery,
    execution: Execution,
    reporting: Reporting,
) -> None:
    """Map all species of a file, or print the estimate of a dry run."""
    from sdm.maps.batch.plan import plan_list

    map_batch(plan_list(Path(path), request, listing, execution.device), delivery, execution, reporting)


def map_fits(
    opened: OpenedFits, listing: ListOptions, delivery: Delivery, execution: Execution, reporting: Reporting
) -> None:
    """Map all species of a file of records, or say that they have been mapped before."""
    from sdm.maps.batch.records import fit_batch
    from sdm.maps.batch.run import finished_fits, keeping_fits

    finished = None if reporting.dry_run else finished_fits(opened, listing, delivery, execution)
    if finished is not None:
        _tell(finished, reporting)
        return
    with ExitStack() as stack:
        tell = stack.enter_context(progress(not reporting.quiet, reporting.progress))
        kept = None
        if not reporting.dry_run:
            kept = stack.enter_context(keeping_fits(opened, listing, delivery, execution, command_line()))
        batch = fit_batch(opened, listing, execution.device, tell, kept)
    map_batch(batch, delivery, execution, reporting)


def map_batch(batch: Batch, delivery: Delivery, execution: Execution, reporting: Reporting) -> None:
    """Map a planned batch, or print the estimate of a dry run."""
    from sdm.maps.batch.run import refuse_list, write_list

    if not reporting.quiet:
        _say_names(batch)
        say_licence(batch.job.plan.model)
    if reporting.dry_run:
        refuse_list(batch, delivery, execution)
        estimate = batch.estimate(delivery.formats_or(()))
        print(json.dumps(estimate, indent=2)) if reporting.json_output else _print_estimate(estimate)
        return
    with progress(not reporting.quiet, reporting.progress) as tell:
        result = write_list(batch, delivery, execution, command=command_line(), progress=tell)
    _tell(result, reporting)


def _tell(result: BatchResult, reporting: Reporting) -> None:
    if reporting.json_output:
        print(json.dumps(result.report, indent=2))
    elif not reporting.quiet:
        _print_result(result)


def _say_names(batch: Batch) -> None:
    for note in batch.notes:
        say(f"note: {note}")
    for row in batch.failed[:LISTED]:
        say(f"not mapped, row {row.asked.row}: {row.error}")
    if len(batch.failed) > LISTED:
        say(f"not mapped: {len(batch.failed) - LISTED:,} more names; the summary lists them.")
    resolved = [(row.asked.row, row.resolution) for row in batch.rows if row.resolution is not None]
    stand_ins = [(number, resolution) for number, resolution in resolved if not resolution.known]
    for number, resolution in stand_ins[:LISTED]:
        say(f"row {number}: {' '.join(resolution.notes)}")
    if len(stand_ins) > LISTED:
        say(f"{len(stand_ins) - LISTED:,} more names are mapped as their genus or family; the summary lists them.")


def _print_estimate(e: dict[str, Any]) -> None:
    print(f"{e['species']:,} species ({e['names']:,} names, {e['names_not_mapped']:,} of them not mapped)")
    print(f"{e['columns']} x {e['rows']} = {e['pixels']:,} pixels in {e['tiles']:,} tiles")
    print(extent_line(e))
    print(
        f"{e['crs']}, resolution {e['resolution']:g}; about {e['files_about']:,} files, at most "
        f"{e['bytes_at_most'] / 1e6:,.0f} MB, usually far less"
    )
    print(model_line(e))


def _print_result(result: BatchResult) -> None:
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
