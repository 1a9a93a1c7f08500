"""All species of a file of records, fitted and mapped in one pass."""

from __future__ import annotations

from pathlib import Path

from sdm.errors import RecordsError, RequestError
from sdm.maps.batch.plan import MAX_TILE, Batch, Row
from sdm.maps.fit_files import FIT, RECORDS
from sdm.maps.plan import in_climate, plan_fits
from sdm.names.lists import Asked
from sdm.request import ListOptions, MapRequest


def write_fits(batch: Batch, folder: Path) -> None:
    """Write what became of the records of each species, and its fit, into the folder of files per species."""
    folder.mkdir(exist_ok=True)
    for stem, one in zip(batch.stems, batch.job.fits, strict=True):
        if one.case is not None:
            one.case.records.audit.write_csv(folder / f"{stem}{RECORDS}")
            one.fitted.save(folder / f"{stem}{FIT}")


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
    failures: dict[str, str] | None = None if listing.strict else {}
    job = plan_fits(request, device, failures)
    if len(job.fits) == 1:
        job = in_climate(job)
    elif request.query.compare_with:
        raise RequestError("--compare-with is of single species, but the records are of several; name one.")
    if not job.fits:
        name, why = next(iter((failures or {"": "the records hold no species"}).items()))
        raise RecordsError(f"no species of the records can be fitted; the first, {name!r}: {why}")
    if job.grid.tile_size > MAX_TILE:
        raise RecordsError(f"tile size {job.grid.tile_size} is more than {MAX_TILE} pixels, the most for a batch.")
    rows = [
        Row(Asked(resolution.query, k), resolution, target=k - 1) for k, resolution in enumerate(job.resolutions, 1)
    ]
    rows += [Row(Asked(name, k), error=why) for k, (name, why) in enumerate((failures or {}).items(), len(rows) + 1)]
    return Batch(job, tuple(rows), listing.threshold)
