"""`sdm index build` and `sdm index info`: region indexes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from sdm.cli.app import EPILOG, Reporting, model_line, printable, program, progress, say_licence, sdm_app
from sdm.cli.options import Change, takes_options
from sdm.request import Area, Execution, IndexRequest, ModelRef, Sampling, Storage
from sdm.request.choices import MODALITIES
from sdm.request.months import when
from sdm.request.options import Option

index_app = program("Region indexes: a region encoded once, to map any number of species with.")
sdm_app.add_typer(index_app, name="index")


@dataclass(frozen=True, kw_only=True)
class BuildOptions(Reporting):
    """Options of this command that are not part of a request."""

    out: Annotated[str, Option("Index to create, for example west.zarr.", metavar="FOLDER")]
    reuse: Annotated[
        str | None,
        Option(
            "Copy pixels from another index (same CRS, resolution, model, layers) to extend it.",
            metavar="FOLDER|URL",
        ),
    ] = None
    overwrite: Annotated[bool, Option("Replace an existing index or an unfinished one with other settings.")] = False


CHANGES = {
    "region": Change("Vector file: only pixels inside are encoded."),
    "crs": Change("CRS of the index.", default="EPSG:4326"),
    "tile_size": Change("Tile side in pixels, also the Zarr chunk size."),
    "max_pixels": Change("Refuse larger indexes.", default=IndexRequest().area.max_pixels),
    "modalities": Change("Any of location, satellite, environment.", default=",".join(MODALITIES)),
    "environment": Change("Rasters in place of bundled variables. Repeatable."),
    "model": Change("Default: mammals-trees."),
    "dry_run": Change("Report tiles, pixels and bytes without computing."),
    "json_output": Change("Print the output of `sdm index info` as JSON."),
}
"""Help texts and defaults that differ from those of `taxabind-map`."""


@index_app.command("build", epilog=EPILOG)
@takes_options(
    leave_out=["step", "satellite_step", "cache_dir", "offline"],
    panels=["Running"],
    changes=CHANGES,
)
def build_command(
    options: BuildOptions,
    area: Area,
    sampling: Sampling,
    model: ModelRef,
    storage: Storage,
    execution: Execution,
) -> None:
    """Encode a region once. An interrupted build resumes with the same command.

    sdm index build --bbox -125 31 -102 49 --out west.zarr

    taxabind-map "Puma concolor" --index west.zarr
    """
    from sdm.index.build import build
    from sdm.index.plan import plan_build

    request = IndexRequest(area=area, sampling=sampling, model=model, storage=storage)
    job = plan_build(request, execution.device)
    if not options.quiet:
        say_licence(job.places.model)
    if options.dry_run:
        estimate = job.estimate()
        print(json.dumps(estimate, indent=2)) if options.json_output else _print_estimate(estimate)
        return
    with progress(not options.quiet, options.progress) as tell:
        index = build(job, options.out, execution, reuse=options.reuse, overwrite=options.overwrite, progress=tell)
    _print_info(index.info(), options.json_output, options.quiet)


@index_app.command("info", epilog=EPILOG)
def info_command(
    index: Annotated[str, typer.Argument(metavar="FOLDER|URL", help="The index.")],
    json_output: Annotated[bool, typer.Option("--json", help="As JSON on stdout.")] = False,
) -> None:
    """Print what an index contains, how it was made, and how exact it is."""
    from sdm.index import Index

    _print_info(Index.open(index).info(), json_output, quiet=False)


def _print_estimate(e: dict[str, Any]) -> None:
    print(f"{e['columns']} x {e['rows']} = {e['pixels']:,} pixels ({e['mask']}) in {e['tiles']:,} tiles")
    size = f"at most {e['bytes_at_most'] / 1e6:,.0f} MB"
    print(f"{e['crs']}, resolution {e['resolution']:g}, {e['encoding']}; {size}")
    print(model_line(e))


def _print_info(info: dict[str, Any], json_output: bool, quiet: bool) -> None:
    if json_output:
        print(json.dumps(info, indent=2))
        return
    if quiet:
        return
    west, south, east, north = info["bbox"]
    season = f" {when(info['month'])}" if info["month"] else ""
    error = info["error_of_probability"]
    lines = [
        info["url"],
        f"  {info['columns']} x {info['rows']} pixels, {info['pixels_held']:,} held ({info['mask']}); {info['crs']}, "
        f"resolution {info['resolution']:g}; box {west:g} {south:g} {east:g} {north:g}",
        f"  encoders of model {info['model']['name']} ({info['model']['encoders']}): "
        f"{', '.join(info['modalities'])}{season}" + (", each also stored separately" if info["each"] else ""),
        f"  {info['encoding']}: probabilities differ by {error['mean']:.2g} on average, at most {error['largest']:.2g} "
        f"in {error['compared']:,} comparisons",
        f"  layers {', '.join(f'{name} {what}' for name, what in info['layers'].items())}",
        f"  digest {info['digest']}; {info['tiles']} tiles of {info['tile_size']} pixels",
    ]
    for line in lines:
        print(printable(line))
