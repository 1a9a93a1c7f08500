"""The files that a fit to records leaves beside its map: what became of the records, the fit, and its review."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdm.maps.plan import Job

if TYPE_CHECKING:
    from sdm.maps.fits import FittedSpecies
    from sdm.outputs.blocks import Source
    from sdm.records.evaluate import CrossValidation
    from sdm.records.review import Review
    from sdm.records.thresholds import RangeArea

RECORDS = "-records.csv"
"""Every record with its result."""
FIT = ".fit.safetensors"
"""The fit, to map with elsewhere without the records."""
REVIEW = ("-report.html", "-report.json", "-odmap.csv")
"""Cross-validation, curves and limits; and the ODMAP protocol."""
LINKS = {"html": "web map", "tif": "GeoTIFF", "zarr": "Zarr", "json": "what was asked and computed"}
"""Labels of the files that the report links to."""


def fit_suffixes(job: Job, k: int) -> tuple[str, ...]:
    """What is written beside the k-th map: suffixes of file names."""
    if _fitted(job, k) is None:
        return ()
    return (RECORDS, FIT, *(REVIEW if job.asked.source.evaluate else ()))


@contextmanager
def reviews_beside(job: Job) -> Iterator[list[Future[Review] | None]]:
    """Review the fits of a job one after the other on a thread of their own, while its maps are computed.

    Yields a future for each map, None where there is nothing to review. Those not begun are left out on leaving.
    """
    cases = [None if (one := _fitted(job, k)) is None else one.case for k in range(len(job.resolutions))]
    if not job.asked.source.evaluate or not any(cases):
        yield [None] * len(cases)
        return
    from sdm.records.review import review_case

    with ThreadPoolExecutor(1) as thread:
        try:
            yield [None if case is None else thread.submit(review_case, case) for case in cases]
        finally:
            thread.shutdown(wait=True, cancel_futures=True)


def write_fit_files(
    job: Job,
    k: int,
    path: Callable[[str], Path],
    source: Source,
    files: dict[str, str],
    found: dict[str, Any] | None = None,
    stem: str | None = None,
    review: Future[Review] | None = None,
) -> list[dict[str, Any]]:
    """Write what a fit leaves beside the k-th map.

    Parameters
    ----------
    job, k : the map.
    path : where a file of a name goes.
    source : the values of the map, shape (y, x).
    files : names of its other files by their kind.
    found : the range on it, as reports have it.
    stem : of the names of the files; by default that of the job.
    review : of `reviews_beside`; by default it is made here.

    Returns
    -------
    What cross-validation in spatial blocks says of it, for each kind of comparison places; empty without a review.

    Raises
    ------
    OutputError : a file cannot be written.
    """
    one = _fitted(job, k)
    if one is None or one.case is None:
        return []
    stem = stem or job.slugs[k]
    one.case.records.audit.write_csv(path(f"{stem}{RECORDS}"))
    one.fitted.save(path(f"{stem}{FIT}"))
    if not job.asked.source.evaluate:
        return []
    if review is not None:
        found_of_it = review.result()
    else:
        from sdm.records.review import review_case

        found_of_it = one.review or review_case(one.case)
    return _write_review(found_of_it, job, k, [path(f"{stem}{suffix}") for suffix in REVIEW], source, files, found)


def _write_review(
    review: Review,
    job: Job,
    k: int,
    paths: list[Path],
    source: Source,
    files: dict[str, str],
    found: dict[str, Any] | None,
) -> list[dict[str, Any]]:
    """Write the report as a page and as JSON, and the ODMAP protocol; returns the AUCs."""
    from sdm.records.odmap import write_odmap
    from sdm.records.report import MapPicture, write_json, write_report

    geobox, quantity = job.grid.geobox, job.plan.targets[k].score.phrase.format(job.resolutions[k].taxon.name)
    links = {LINKS[kind]: name for kind, name in files.items() if kind in LINKS}
    report = review.report(MapPicture(source, geobox, quantity), area=_range_area(found), links=links)
    write_report(paths[0], report)
    write_json(paths[1], report)
    region = job.asked.area.region
    boundary = "rectangle" if region is None else Path(str(region)).name if isinstance(region, str | Path) else "region"
    write_odmap(paths[2], review.protocol(geobox, boundary=boundary, rule=found["rule"] if found else ""))
    return _headline(review.validation)


def _range_area(found: dict[str, Any] | None) -> RangeArea | None:
    """The range as the report of a fit shows it."""
    if found is None:
        return None
    from sdm.records.thresholds import RangeArea

    low, high = (found[side]["area_km2"] if side in found else None for side in ("low", "high"))
    return RangeArea(found["area_km2"], low, high, found["rule"], found["low_and_high"])


def _headline(validation: CrossValidation | None) -> list[dict[str, Any]]:
    """AUC in the first division into folds, for each kind of comparison places."""
    if validation is None:
        return []
    from sdm.records.evaluate import CONTRASTS

    method, scheme = validation.methods[0], next(iter(validation.folds))
    left_out = {"blocks": "spatial blocks", "locations": "locations"}.get(validation.folds[scheme].kind, "random folds")
    return [
        {
            "against": CONTRASTS[one.contrast],
            "auc": one.mean("auc"),
            "standard_error": one.standard_error("auc"),
            "left_out": left_out,
        }
        for one in validation.results
        if (one.method, one.scheme) == (method, scheme) and one.mean("auc") is not None
    ]


def _fitted(job: Job, k: int) -> FittedSpecies | None:
    """The fit of the k-th map, where its records were read in this run."""
    return job.fits[k] if job.fits and job.fits[k].case is not None else None
