"""All species of a file of records, fitted and mapped in one pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from sdm.errors import RecordsError, RequestError
from sdm.maps.batch.plan import MAX_TILE, Batch, Row
from sdm.maps.fit_files import write_fit_files
from sdm.maps.fits import FittedSpecies, Kept, records_identity
from sdm.maps.plan import OpenedFits, fit_opened, in_climate, open_fits
from sdm.names.lists import Asked
from sdm.outputs import cube
from sdm.records.review import review_case
from sdm.request import ListOptions, MapRequest

Tell = Callable[[str, int, int], None]


def write_fits(
    batch: Batch, folder: Path, store: Path, variable: str, suffixes: tuple[str, ...]
) -> list[dict[str, Any]]:
    """Write what became of the records of each species, its fit and its review, into the folder of files per species.

    Returns the entry of each fit in the report of the batch.
    """
    if not batch.job.fits:
        return []
    folder.mkdir(exist_ok=True)
    entries = []
    for k, (stem, one) in enumerate(zip(batch.stems, batch.job.fits, strict=True)):
        files = {suffix: f"{stem}.{suffix}" for suffix in suffixes}
        layer = cube.Layer(store, variable, k)
        validated = write_fit_files(batch.job, k, lambda name: folder / name, layer, files, stem=stem)
        entries.append(one.report() | ({"cross_validation": validated} if validated else {}))
    return entries


def plan_records(request: MapRequest, listing: ListOptions, device: str = "auto") -> Batch:
    """Fit every species of a file of records, and decide everything about their maps.

    A species whose records are of no use is left out and reported, or with `strict` an error.

    Parameters
    ----------
    request : with records of several species, none of them named.
    listing : strict, and the threshold of the summary.
    device : auto, cpu, cuda or cuda:N.

    Raises
    ------
    RecordsError : no species can be fitted.
    """
    return fit_batch(open_fits(request, device), listing, device)


def fit_batch(
    opened: OpenedFits,
    listing: ListOptions,
    device: str = "auto",
    tell: Tell | None = None,
    kept: Kept | None = None,
) -> Batch:
    """As `plan_records`, of records that are read already.

    Parameters
    ----------
    opened, listing, device : as of `plan_records`.
    tell : called with (stage, done, total).
    kept : finished fits of the same run, see `sdm.maps.fits.fit_species`.
    """
    failures: dict[str, str] | None = None if listing.strict else {}
    if opened.request.query.compare_with and len(opened.opened.species) > 1:
        raise RequestError("--compare-with is of single species, but the records are of several; name one.")
    evaluated, total, done = opened.request.source.evaluate, len(opened.opened.species), 0

    def finish(one: FittedSpecies) -> FittedSpecies:
        # Reviewed at once: to keep the places of all fits would take 7 MB a species.
        nonlocal done
        done += 1
        if tell is not None:
            tell("fitting", done, total)
        if one.case is None:
            return one
        review = review_case(one.case).light() if evaluated else None
        return replace(one, case=one.case.light(), review=review)

    job = fit_opened(opened, device, failures, finish, kept)
    if len(job.fits) == 1:
        job = in_climate(job)
    if not job.fits:
        name, why = next(iter((failures or {"": "the records hold no species"}).items()))
        raise RecordsError(f"no species of the records can be fitted; the first, {name!r}: {why}")
    if job.grid.tile_size > MAX_TILE:
        raise RecordsError(f"tile size {job.grid.tile_size} is more than {MAX_TILE} pixels, the most for a batch.")
    rows = [
        Row(Asked(resolution.query, k), resolution, target=k - 1) for k, resolution in enumerate(job.resolutions, 1)
    ]
    rows += [Row(Asked(name, k), error=why) for k, (name, why) in enumerate((failures or {}).items(), len(rows) + 1)]
    return Batch(job, tuple(rows), listing.threshold, given=given(opened, listing))


def given(opened: OpenedFits, listing: ListOptions) -> dict[str, Any]:
    """What stands for the list of species in the configuration of a batch: known before anything is fitted."""
    return records_identity(opened.request, opened.opened) | {"strict": listing.strict}
