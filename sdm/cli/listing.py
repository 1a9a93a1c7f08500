"""`sdm list`: what lives at a place or in a region."""

from __future__ import annotations

import csv
import io
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from sdm.cli.app import EPILOG, printable, say, sdm_app
from sdm.cli.options import takes_options
from sdm.errors import RequestError
from sdm.request import Area
from sdm.request.choices import parse_word
from sdm.request.months import parse_month
from sdm.request.options import Option, Options, several
from sdm.request.parts import MONTH

FORMATS = ("table", "csv", "json")


@dataclass(frozen=True, kw_only=True)
class ListingOptions(Options):
    """The options of `sdm list`."""

    at: Annotated[
        tuple[float, float] | None, Option("A place in degrees, longitude first.", metavar="LON LAT", panel="Where")
    ] = None
    min: Annotated[float, Option("Least probability; in a region, that a species reaches somewhere.")] = 0.5
    month: Annotated[str | None, MONTH] = None
    origin: Annotated[str, Option("native, or all: with introduced populations, where a model knows them.")] = "native"
    model: Annotated[
        tuple[str, ...], Option("Only this model. Repeatable. Default: all bundled ones.", metavar="NAME|FOLDER")
    ] = ()
    index: Annotated[
        str | None,
        Option("Region index in place of encoding: species of its encoders.", metavar="FOLDER|URL"),
    ] = None
    top: Annotated[int | None, Option("So many species at most.", low=1)] = None
    format: Annotated[str, Option("table, csv or json.")] = "table"
    out: Annotated[Path | None, Option("Write to a file, not to the terminal.", metavar="FILE")] = None
    overwrite: Annotated[bool, Option("Replace an existing file.")] = False

    def __post_init__(self) -> None:
        if not 0.0 <= self.min <= 1.0:
            raise RequestError(f"min {self.min:g} is not a probability, 0 to 1.")
        parse_word("origin", self.origin, ("native", "all"))
        parse_word("format", self.format, FORMATS)
        self._set(model=several(self.model))


@sdm_app.command("list", epilog=EPILOG)
@takes_options(leave_out=["tile_size", "max_pixels", "crs"], panels=["Where"])
def list_command(area: Area, options: ListingOptions) -> None:
    """List the species that live at a place or in a region, by all bundled models, the likeliest first.

    sdm list --at 7.4 46.9

    sdm list --region park.gpkg --min 0.5 --format csv --out park.csv
    """
    given = [options.at, area.bbox, area.region]
    if sum(value is not None for value in given) != 1:
        raise RequestError("give one of --at LON LAT, --bbox and --region.")
    if options.at is not None:
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # one place is too little for more threads
    from sdm.analysis.living import living_at, living_in

    chosen: dict[str, Any] = {"models": options.model, "month": parse_month(options.month), "origin": options.origin}
    if options.index is not None:
        from sdm.index import Index

        chosen["index"] = Index.open(options.index, cache_bytes=256 << 20)
    found = (
        living_in(area, options.min, **chosen) if options.at is None else living_at(*options.at, options.min, **chosen)
    )
    for note in found.notes:
        say(f"note: {note}")
    rows = [one.row(of_point=options.at is not None) for one in found.species[: options.top]]
    text = {"table": _table, "csv": _csv, "json": _json}[options.format](rows)
    if options.out is None:
        print(printable(text), end="")
        return
    from sdm.files.atomic import Staging, check_targets, disk_errors

    check_targets(options.out.parent, [options.out.name], overwrite=options.overwrite)
    with Staging(options.out.parent, [options.out.name], overwrite=options.overwrite) as staging:
        with disk_errors(options.out):
            staging.path(options.out.name).write_text(text, encoding="utf-8")
        staging.publish()
    say(f"{len(rows):,} species: {options.out}")


def _table(rows: list[dict[str, Any]]) -> str:
    if not rows:
        return "no species reaches this probability here\n"
    lines = []
    for row in rows:
        name = f"{row['species']} ({row['common_name']})" if row["common_name"] else row["species"]
        mean = f"  mean {row['mean']:.2f}" if "mean" in row else ""
        lines.append(f"{row['probability']:.2f}{mean}  {name}  [{row['model']}]\n")
    return "".join(lines)


def _csv(rows: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    columns = list(rows[0]) if rows else ["species", "common_name", "group", "model", "probability"]
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _json(rows: list[dict[str, Any]]) -> str:
    return json.dumps(rows, indent=2, ensure_ascii=False) + "\n"
