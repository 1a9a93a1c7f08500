"""What a batch tells in one table, one page and one report."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sdm.files import workspace as ledger
from sdm.maps.batch.plan import Batch
from sdm.maps.batch.texts import ENCODING, PAGE, PICTURES, RICHNESS, SPECIES, STORE, SUMMARY, confidence
from sdm.maps.batch.tiles import Work
from sdm.maps.report import provenance, season_of
from sdm.models.licence import credits_of
from sdm.outputs import cube, gallery
from sdm.outputs.metadata import one_line

COLUMNS = (
    "row", "query", "times", "species", "common_name", "resolved_by", "rank", "known", "confidence", "same_as_row",
    "mask", "pixels", "modelled_area_km2", "threshold", "area_above_threshold_km2", "expected_area_km2", "mean", "max",
    "min", "expected_precision", "expected_recall", "store_index", "picture", "files", "notes", "error",
)  # fmt: skip


FORMULA = tuple("=+-@\t\r")
"""How a text must not begin in a table that a spreadsheet may open."""


def summary(batch: Batch, found: Mapping[str, np.ndarray], suffixes: Sequence[str]) -> list[dict[str, Any]]:
    """The rows of `summary.csv`, in the order of the list; docs/batch.md says what the columns are."""
    rows = []
    for row in batch.rows:
        r, k = row.resolution, row.target
        line: dict[str, Any] = dict.fromkeys(COLUMNS, "")
        line |= {"row": row.asked.row, "query": row.asked.query, "times": row.asked.times, "error": row.error}
        if r is not None:
            first = batch.first_rows[k]
            modelled = found["count"][k] > 0
            line |= {
                "species": r.taxon.name, "common_name": r.taxon.common[0] if r.taxon.common else "",
                "resolved_by": r.how, "rank": r.taxon.rank, "known": "yes" if r.known else "no",
                "confidence": confidence(r), "mask": batch.job.plan.targets[k].mask,
                "same_as_row": "" if first is row else first.asked.row,
                "notes": " ".join(dict.fromkeys((*r.notes, *batch.job.notes[k]))),
                "picture": f"{PICTURES}/{batch.stems[k]}.png", "store_index": k,
                "files": ";".join(f"{SPECIES}/{batch.stems[k]}.{s}" for s in suffixes),
                "threshold": _number(batch.threshold), "pixels": int(found["count"][k]),
                "modelled_area_km2": _number(found["modelled"][k]),
            }  # fmt: skip
            if modelled:
                above, expected = found["above"][k], found["expected"][k]
                line |= {
                    "area_above_threshold_km2": _number(above), "expected_area_km2": _number(expected),
                    "mean": _number(found["sum"][k] / found["count"][k]),
                    "max": _number(found["max"][k]), "min": _number(found["min"][k]),
                }  # fmt: skip
                # What a calibrated probability promises; nothing is promised for a stand-in.
                if r.known and above > 0:
                    line["expected_precision"] = _number(found["hit"][k] / above, 4)
                if r.known and expected > 0:
                    line["expected_recall"] = _number(found["hit"][k] / expected, 4)
        rows.append(line)
    return rows


def _number(value: float, digits: int = 9) -> float:
    """A number as the summary states it."""
    return float(f"{float(value):.{digits}g}")


def write_summary(work: Work, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write `summary.csv`."""
    with (work.new / SUMMARY).open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({key: _cell(value) if isinstance(value, str) else value for key, value in row.items()})


def _cell(text: str) -> str:
    """A text as one line that no spreadsheet takes for a formula."""
    line = one_line(text)
    return f"'{line}" if text.startswith(FORMULA) or line.startswith(FORMULA) else line


def read_summary(path: Path) -> list[dict[str, Any]]:
    """The rows of a `summary.csv`, all values as text."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def write_page(work: Work, rows: Sequence[Mapping[str, Any]], suffixes: Sequence[str]) -> None:
    """Write `index.html`; `rows`: of the summary."""
    batch, grid = work.batch, work.plan.grid
    queries: dict[int, list[str]] = {}
    for row in batch.rows:
        if row.target is not None:
            queries.setdefault(row.target, []).append(row.asked.query)
    cards = []
    lines = {line["store_index"]: line for line in reversed(rows) if line["store_index"] != ""}
    for k, row in enumerate(batch.first_rows):
        line = lines[k]
        taxon, stem = row.resolution.taxon, batch.stems[k]
        numbers = {"area": "area_above_threshold_km2", "expected": "expected_area_km2", "max": "max"}
        cards.append(
            gallery.Card(
                name=taxon.name,
                picture=f"{PICTURES}/{stem}.png",
                common=line["common_name"],
                also=" ".join([*queries[k], taxon.at("family"), taxon.at("order")]),
                badge="" if row.resolution.known else f"not in the model: its {taxon.rank}",
                numbers={key: float(line[name]) if line[name] != "" else None for key, name in numbers.items()},
                links={{"tif": "GeoTIFF", "html": "map"}[s]: f"{SPECIES}/{stem}.{s}" for s in suffixes if s != "qml"},
            )
        )
    west, south, east, north = grid.bbox
    mapped, failed, step = len(cards), len(batch.failed), gallery.stride(grid.shape)
    sampled = f" Pictures show one pixel in {step} in each direction." if step > 1 else ""
    season = season_of(work.plan)
    paragraphs = (
        f"{mapped:,} maps by the model {work.plan.model.name} of {west:g} {south:g} {east:g} {north:g} (west, south, "
        f"east, north in degrees), {grid.shape[1]:,} x {grid.shape[0]:,} pixels in {grid.crs}. Each holds the "
        f"probability that a place lies in the range{season}; hatched is not modelled.{sampled}",
        f'All maps are in {STORE}: xarray.open_zarr("{STORE}").{work.metadata.variable}'
        f'.sel(species="{cards[0].name}").',
        *(f"{line}." for line in credits_of(work.plan.model)),
    )
    links = {
        "Richness map": f"{RICHNESS}.html", "Richness GeoTIFF": f"{RICHNESS}.tif", "Summary table": SUMMARY,
        "Report": ledger.REPORT,
    }  # fmt: skip
    shape = tuple(-(-length // step) for length in grid.shape)
    title = f"{mapped:,} species{season if work.plan.month else ''}" + (
        f", {failed:,} names not mapped" if failed else ""
    )
    gallery.write_index(
        work.new / PAGE, title, paragraphs, cards,
        [(row.asked.query, row.error) for row in batch.failed], links, shape, batch.threshold,
    )  # fmt: skip


def report_of(
    batch: Batch, asked: dict[str, Any], names: Sequence[str], richness: dict[str, Any], devices: Sequence[str],
    command: str,
) -> dict[str, Any]:  # fmt: skip
    """The content of `batch.json`, but for the run's times."""
    common = provenance(batch.job, ",".join(devices), command)
    common["request"] = {key: value for key, value in common["request"].items() if key != "species"}
    how = Counter(row.resolution.how for row in batch.rows if row.resolution is not None)
    return {
        "configuration": asked,
        "names": {
            "different": len(batch.rows), "mapped_taxa": len(batch.job.resolutions),
            "not_mapped": len(batch.failed), "resolved_by": dict(sorted(how.items())), "notes": list(batch.notes),
        },
        "quantity": "probability that a place lies in the range of a species",
        "precision": cube.STEP,
        "encoding": ENCODING,
        "threshold": batch.threshold,
        **common,
        "richness": richness,
        "outputs": list(names),
    }  # fmt: skip
