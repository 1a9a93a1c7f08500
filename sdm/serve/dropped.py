"""Files dropped on the page: records or a saved fit become species of the explorer, in memory and for the session."""

from __future__ import annotations

import re
import threading
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from sdm.errors import RecordsError, SpeciesNameError
from sdm.maps.plan import Job, plan_fits
from sdm.request import MapRequest

if TYPE_CHECKING:
    from sdm.index import Index

MAX_SPECIES = 8
"""Species of one file that are fitted: each takes about a second."""
MAX_HELD = 32
"""Fitted species held; the oldest are dropped first."""
TABLES = (".csv", ".tsv", ".txt", ".zip", ".gz", ".parquet")
SUFFIXES = (*TABLES, ".gpkg", ".geojson", ".json", ".kml", ".safetensors")
"""Files that are read: records, and saved fits."""
MARK = "@"
"""Begins the key of a fitted species; no name does."""


def suffix_of(name: str) -> str:
    """The suffix of a dropped file, by which it is read. Raises RecordsError for one that is not read."""
    found = re.search(r"(\.[A-Za-z0-9]{1,12})\Z", name)
    suffix = found[1].lower() if found else ""
    if suffix not in SUFFIXES:
        raise RecordsError(
            f"file {name[:80]!r} is neither records ({', '.join(SUFFIXES[:-1])}) nor a saved fit (.fit.safetensors)."
        )
    return suffix


class Dropped:
    """The species of dropped files, by key. Threads may share it."""

    def __init__(self, index: Index) -> None:
        self._index, self._lock, self._count = index, threading.Lock(), 0
        self._jobs: dict[str, Job] = {}

    def add(self, path: Path) -> list[str]:
        """Fit the species of a file of records, or open a saved fit; returns their keys.

        Raises RecordsError and other SdmErrors for a file that is of no use.
        """
        source = {"fitted" if path.suffix == ".safetensors" else "records": str(path)}
        # The index says what is mapped: an unknown species has no habitat that could.
        mask = "auto" if self._index.mask == "none" else self._index.mask
        request = MapRequest.of(
            **source, index=self._index, mask=mask, evaluate=False, max_pixels=self._index.grid.pixels
        )
        if "records" in source:
            _refuse_many(path)
        failures: dict[str, str] = {}
        job = plan_fits(request, "cpu", failures)
        if not job.fits:
            raise RecordsError(next(iter(failures.values()), "the file holds no species that can be fitted."))
        told = tuple(f"Left out: {name}: {why}" for name, why in failures.items())
        with self._lock:
            keys = []
            for k in range(len(job.fits)):
                self._count += 1
                key = f"{MARK}{self._count}"
                self._jobs[key] = _one(job, k, key, told)
                keys.append(key)
            for old in list(self._jobs)[:-MAX_HELD]:
                del self._jobs[old]
        return keys

    def job(self, key: str) -> Job:
        """The species of a key. Raises SpeciesNameError where it is no longer held."""
        with self._lock:
            if key in self._jobs:
                return self._jobs[key]
        raise SpeciesNameError("this fitted species is no longer held; drop its file again.")


def _one(job: Job, k: int, key: str, told: tuple[str, ...]) -> Job:
    """One species of a job, without its records, with its key as the name it is asked for by."""
    return replace(
        job,
        plan=replace(job.plan, targets=(job.plan.targets[k],)),
        resolutions=(replace(job.resolutions[k], query=key),),
        notes=((*job.notes[k], *told),),
        fits=(replace(job.fits[k], case=None),),
    )


def _refuse_many(path: Path) -> None:
    from sdm.records.read import read_raw
    from sdm.request import ReadOptions

    names = [name for name in read_raw(path, ReadOptions(), lists=False).names if name]
    if len(names) > MAX_SPECIES:
        raise RecordsError(
            f"the file holds {len(names):,} species, but at most {MAX_SPECIES} are fitted here; map it with "
            "taxabind-map --records."
        )
