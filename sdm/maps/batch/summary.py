"""The summary table, web page and report of a batch."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sdm.files import workspace
from sdm.maps import ranges
from sdm.maps.batch.plan import Batch, Row
from sdm.maps.batch.texts import (
    ENCODING,
    PAGE,
    PICTURES,
    RICHNESS,
    SPECIES,
    STORE,
    SUMMARY,
    are_probabilities,
    confidence,
)
from sdm.maps.batch.tiles import Work
from sdm.maps.fit_files import REVIEW, fit_suffixes
from sdm.maps.report import provenance, season_phrase
from sdm.models.licence import credit_lines
from sdm.names import Resolution
from sdm.outputs import cube, gallery
from sdm.outputs.escape import table_text

COLUMNS = (
    "row",
    "query",
    "times",
    "species",
    "common_name",
    "resolved_by",
    "rank",
    "known",
    "origin",
    "confidence",
    "same_as_row",
    "mask",
    "pixels",
    "modelled_area_km2",
    "threshold",
    "area_above_threshold_km2",
    "expected_area_km2",
    "mean",
    "max",
    "min",
    "expected_precision",
    "expected_recall",
    "range_threshold",
    "range_area_km2",
    "store_index",
    "picture",
    "files",
    "notes",
    "error",
)


def summary(
    batch: Batch,
    totals: Mapping[str, np.ndarray],
    suffixes: Sequence[str],
    found: Mapping[int, Mapping[str, float]] | None = None,
) -> list[dict[str, Any]]:
    """The rows of `summary.csv`, in the order of the list; docs/batch.md says what the columns are.

    `totals`: by name an array with an entry per taxon, or a single number, over all tiles.
    `suffixes`: of the files per species. `found`: the ranges that were written, by the number of the taxon.
    """
    rows = []
    per_taxon = {name: values for name, values in totals.items() if values.ndim}
    for row in batch.rows:
        line: dict[str, Any] = dict.fromkeys(COLUMNS, "")
        line |= {"row": row.asked.row, "query": row.asked.query, "times": row.asked.times, "error": row.error}
        if row.resolution is not None and row.target is not None:
            line |= _names(batch, row, row.resolution, row.target, suffixes)
            measured = {name: values[row.target] for name, values in per_taxon.items()}
            is_probability = batch.job.plan.targets[row.target].score.name == "probability"
            line |= _measures(measured, row.resolution.known and is_probability, is_probability)
            line["threshold"] = _number(batch.threshold)
            if found and row.target in found:
                one = found[row.target]
                line |= {"range_threshold": one["threshold"], "range_area_km2": _number(one["area_km2"])}
                files = [f"{SPECIES}/{batch.stems[row.target]}{suffix}" for suffix in ranges.SUFFIXES]
                line["files"] = ";".join(filter(None, [line["files"], *files]))
        rows.append(line)
    return rows


def _names(batch: Batch, row: Row, resolution: Resolution, k: int, suffixes: Sequence[str]) -> dict[str, Any]:
    """The entries of a mapped row: its taxon and files."""
    taxon, first = resolution.taxon, batch.first_rows[k]
    return {
        "species": taxon.name,
        "common_name": taxon.common[0] if taxon.common else "",
        "resolved_by": resolution.how,
        "rank": taxon.rank,
        "known": "yes" if resolution.known else "no",
        "origin": batch.job.resolutions[k].origin,
        "confidence": confidence(resolution),
        "mask": batch.job.plan.targets[k].mask,
        "same_as_row": "" if first is row else first.asked.row,
        "notes": " ".join(dict.fromkeys((*resolution.notes, *batch.job.notes[k]))),
        "picture": f"{PICTURES}/{batch.stems[k]}.png",
        "store_index": k,
        "files": ";".join(
            f"{SPECIES}/{batch.stems[k]}{s}" for s in (*(f".{s}" for s in suffixes), *fit_suffixes(batch.job, k))
        ),
    }


def _measures(total: Mapping[str, float], calibrated: bool, is_probability: bool) -> dict[str, Any]:
    """The numbers of a map; areas in km2. `calibrated`: of the species itself."""
    line: dict[str, Any] = {"pixels": int(total["count"]), "modelled_area_km2": _number(total["modelled"])}
    if total["count"] > 0:
        above, expected = total["above"], total["expected"]
        line |= {
            "area_above_threshold_km2": _number(above),
            # Relative suitability adds up to no area.
            "expected_area_km2": _number(expected) if is_probability else "",
            "mean": _number(total["sum"] / total["count"]),
            "max": _number(total["max"]),
            "min": _number(total["min"]),
        }
        # What a calibrated probability promises; nothing is promised for a stand-in.
        if calibrated and above > 0:
            line["expected_precision"] = _number(total["hit"] / above, 4)
        if calibrated and expected > 0:
            line["expected_recall"] = _number(total["hit"] / expected, 4)
    return line


def _number(value: float, digits: int = 9) -> float:
    """A number as the summary states it."""
    return float(f"{float(value):.{digits}g}")


def write_summary(work: Work, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write `summary.csv`."""
    with (work.new / SUMMARY).open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({key: table_text(value) if isinstance(value, str) else value for key, value in row.items()})


def read_summary(path: Path) -> list[dict[str, Any]]:
    """The rows of a `summary.csv`, all values as text."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def write_page(work: Work, rows: Sequence[Mapping[str, Any]], suffixes: Sequence[str]) -> None:
    """Write `index.html`; `rows`: of the summary."""
    batch, grid = work.batch, work.plan.grid
    cards = _cards(batch, rows, suffixes)
    step = gallery.stride(grid.shape)
    links = {
        "Richness map": f"{RICHNESS}.html",
        "Richness GeoTIFF": f"{RICHNESS}.tif",
        "Summary table": SUMMARY,
        "Report": workspace.REPORT,
    }
    title = f"{len(cards):,} species{season_phrase(work.plan) if work.plan.month else ''}"
    if batch.failed:
        title += f", {len(batch.failed):,} names not mapped"
    gallery.write_index(
        work.new / PAGE,
        title=title,
        paragraphs=_paragraphs(work, len(cards), step),
        cards=cards,
        failures=[(row.asked.query, row.error) for row in batch.failed],
        links=links,
        shape=(-(-grid.shape[0] // step), -(-grid.shape[1] // step)),
        threshold=batch.threshold,
    )


def _cards(batch: Batch, rows: Sequence[Mapping[str, Any]], suffixes: Sequence[str]) -> list[gallery.Card]:
    """The cards of the page, one per taxon."""
    queries: dict[int, list[str]] = {}
    for row in batch.rows:
        if row.target is not None:
            queries.setdefault(row.target, []).append(row.asked.query)
    lines = {line["store_index"]: line for line in reversed(rows) if line["store_index"] != ""}
    numbers = {"area": "area_above_threshold_km2", "expected": "expected_area_km2", "max": "max"}
    labels = {"tif": "GeoTIFF", "html": "map"}
    cards = []
    for k, resolution in enumerate(batch.job.resolutions):
        line, taxon, stem = lines[k], resolution.taxon, batch.stems[k]
        reviews = [file for file in line["files"].split(";") if file.endswith(REVIEW[0])]
        cards.append(
            gallery.Card(
                name=taxon.name,
                picture=f"{PICTURES}/{stem}.png",
                common=line["common_name"],
                also=" ".join([*queries[k], taxon.at("family"), taxon.at("order")]),
                badge="" if resolution.known else f"not in the model: its {taxon.rank}",
                numbers={key: float(line[name]) if line[name] != "" else None for key, name in numbers.items()},
                links={labels[s]: f"{SPECIES}/{stem}.{s}" for s in suffixes if s in labels}
                | ({"range": f"{SPECIES}/{stem}{ranges.SUFFIXES[-1]}"} if line["range_area_km2"] != "" else {})
                | ({"fit": reviews[0]} if reviews else {}),
            )
        )
    return cards


def _paragraphs(work: Work, mapped: int, step: int) -> tuple[str, ...]:
    """The introduction of the page; `step`: pixels between those in its pictures."""
    grid, model = work.plan.grid, work.plan.model
    west, south, east, north = grid.bbox
    sampled = f" Pictures show one pixel in {step} in each direction." if step > 1 else ""
    return (
        f"{mapped:,} maps by the model {model.name} of {west:g} {south:g} {east:g} {north:g} (west, south, "
        f"east, north in degrees), {grid.shape[1]:,} x {grid.shape[0]:,} pixels in {grid.crs}. Each holds the "
        f"{_values_phrase(work.batch)}{season_phrase(work.plan)}; hatched is not modelled.{sampled}",
        f'All maps are in {STORE}: xarray.open_zarr("{STORE}").{work.metadata.variable}'
        f'.sel(species="{work.batch.job.resolutions[0].taxon.name}").',
        *(f"{line}." for line in credit_lines(model)),
    )


def _values_phrase(batch: Batch) -> str:
    """What the values of the maps are."""
    if not batch.job.fits:
        return "probability that a place lies in the range"
    return "probability of presence" if are_probabilities(batch) else "relative suitability, fitted to records"


def batch_report(batch: Batch, configuration: dict[str, Any], devices: Sequence[str], command: str) -> dict[str, Any]:
    """The content of `batch.json`, but for the outputs, the map of the sum and the run's times."""
    common = provenance(batch.job, ",".join(devices), command)
    common["request"] = {key: value for key, value in common["request"].items() if key != "species"}
    how = Counter(row.resolution.how for row in batch.rows if row.resolution is not None)
    return {
        "configuration": configuration,
        "names": {
            "different": len(batch.rows),
            "mapped_taxa": len(batch.job.resolutions),
            "not_mapped": len(batch.failed),
            "resolved_by": dict(sorted(how.items())),
            "notes": list(batch.notes),
        },
        "quantity": f"{_values_phrase(batch)} of a species",
        "precision": cube.STEP,
        "encoding": ENCODING,
        "threshold": batch.threshold,
        **common,
    }
