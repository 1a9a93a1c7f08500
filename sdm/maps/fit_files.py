"""The files that a fit to records leaves beside its map: the records with what became of them, and the fit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from sdm.maps.plan import Job

RECORDS = "-records.csv"
"""Every record with its result."""
FIT = ".fit.safetensors"
"""The fit, to map with elsewhere without the records."""


def fit_suffixes(job: Job, k: int) -> tuple[str, ...]:
    """What is written beside the k-th map: suffixes of file names."""
    if not job.fits or job.fits[k].records is None:
        return ()
    return RECORDS, FIT


def write_fit_files(job: Job, k: int, path: Callable[[str], Path]) -> None:
    """Write them; `path` says where a file of a name goes. Raises OutputError."""
    one = job.fits[k] if job.fits else None
    if one is None or one.records is None:
        return
    one.records.audit.write_csv(path(f"{job.slugs[k]}{RECORDS}"))
    one.fitted.save(path(f"{job.slugs[k]}{FIT}"))
