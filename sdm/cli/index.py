"""`sdm index build` and `sdm index info`: region indexes."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from sdm.cli.app import EPILOG, Month, SchedulerAddress, Threads, Workers, printable, progress, say_licence, sdm_app

index_app = typer.Typer(
    help="Region indexes: a region encoded once, to map any number of species with.", no_args_is_help=True
)
sdm_app.add_typer(index_app, name="index")


@index_app.command("build", epilog=EPILOG)
def build_command(
    out: Annotated[str, typer.Option(metavar="FOLDER", help="The index to make, for example west.zarr.")],
    bbox: Annotated[
        tuple[float, float, float, float] | None,
        typer.Option(
            metavar="WEST SOUTH EAST NORTH", help="Box in degrees; west > east crosses the antimeridian.",
            show_default=False,
        ),
    ] = None,
    region: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Vector file: only pixels inside are encoded.", show_default=False),
    ] = None,
    crs: Annotated[str, typer.Option(help="CRS of the index.")] = "EPSG:4326",
    resolution: Annotated[
        float | None,
        typer.Option(
            help="Pixel side in CRS units. Default: the finest round number near a megapixel.", show_default=False
        ),
    ] = None,
    mask: Annotated[
        str,
        typer.Option(
            help="Pixels to encode: land, sea, or none for both. Species that live elsewhere cannot be mapped with it."
        ),
    ] = "land",
    model: Annotated[
        str | None, typer.Option(metavar="NAME|FOLDER", help="Default: mammals-trees.", show_default=False)
    ] = None,
    modalities: Annotated[
        str, typer.Option(help="Any of location, satellite, environment.")
    ] = "location,satellite,environment",
    satellite: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="RGB raster in place of the bundled mosaic.", show_default=False),
    ] = None,
    environment: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE|FOLDER", help="Rasters in place of bundled variables. Repeatable.", show_default=False
        ),
    ] = None,
    month: Month = None,
    encoding: Annotated[
        str, typer.Option(help="int8, or float16: about three times as large, and nearly exact.")
    ] = "int8",
    each: Annotated[bool, typer.Option("--each", help="Store the embedding of each modality too.")] = False,
    reuse: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER|URL", show_default=False,
            help="Take over the pixels of another index (same CRS, resolution, model, layers): to make one larger.",
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an existing index, or one begun with other settings.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say tiles, pixels and bytes; write nothing.")] = False,
    json_output: Annotated[bool, typer.Option("--json", help="Print what `info` tells as JSON on stdout.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no summary.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.", rich_help_panel="Running")] = "auto",
    threads: Threads = None,
    workers: Workers = None,
    scheduler_address: SchedulerAddress = None,
    tile_size: Annotated[
        int, typer.Option(help="Side of a tile in pixels; also the Zarr chunk.", rich_help_panel="Running")
    ] = 256,
    max_pixels: Annotated[
        int, typer.Option(min=1, help="Refuse larger indexes.", rich_help_panel="Running")
    ] = 1_000_000_000,
) -> None:  # fmt: skip
    """Encode a region once. Interrupted, the same command goes on where it was.

    sdm index build --bbox -125 31 -102 49 --out west.zarr

    taxabind-map "Puma concolor" --index west.zarr
    """
    from sdm.index import build_index, plan_index

    job = plan_index(
        bbox, region, crs=crs, resolution=resolution, model=model, modalities=modalities, satellite=satellite,
        environment=environment or (), mask=mask, encoding=encoding, each=each, month=month, device=device,
        tile_size=tile_size, max_pixels=max_pixels,
    )  # fmt: skip
    if not quiet:
        say_licence(job.places.model)
    if dry_run:
        estimate = job.estimate()
        if json_output:
            print(json.dumps(estimate, indent=2))
        else:
            e = estimate
            print(f"{e['columns']} x {e['rows']} = {e['pixels']:,} pixels ({e['mask']}) in {e['tiles']:,} tiles")
            size = f"at most {e['bytes_at_most'] / 1e6:,.0f} MB"
            print(f"{e['crs']}, resolution {e['resolution']:g}, {e['encoding']}; {size}")
            print(f"model {e['model']} ({', '.join(e['modalities'])}){_season(e)} on {e['device']}")
        return
    try:
        with progress(enabled=not quiet) as tell:
            index = build_index(
                job, out, reuse=reuse, overwrite=overwrite, threads=threads, workers=workers,
                scheduler_address=scheduler_address, progress=tell,
            )  # fmt: skip
    except (KeyboardInterrupt, SystemExit) as stop:
        stop.add_note(f"finished tiles are kept in {out}.partial: the same command goes on from there.")
        raise
    _show(index.info(), json_output, quiet)


@index_app.command("info", epilog=EPILOG)
def info_command(
    index: Annotated[str, typer.Argument(metavar="FOLDER|URL", help="The index.")],
    json_output: Annotated[bool, typer.Option("--json", help="As JSON on stdout.")] = False,
) -> None:
    """Say what an index holds, what made it, and how exact it is."""
    from sdm.index import Index

    opened = Index.open(index)
    _show(opened.info(), json_output, False)


def _season(info: dict[str, Any]) -> str:
    from sdm.request.months import when

    return f" {when(info['month'])}" if info["month"] else ""


def _show(info: dict[str, Any], json_output: bool, quiet: bool) -> None:
    if json_output:
        print(json.dumps(info, indent=2))
        return
    if quiet:
        return
    west, south, east, north = info["bbox"]
    error = info["error_of_probability"]
    lines = [
        info["url"],
        f"  {info['columns']} x {info['rows']} pixels, {info['pixels_held']:,} held ({info['mask']}); {info['crs']}, "
        f"resolution {info['resolution']:g}; box {west:g} {south:g} {east:g} {north:g}",
        f"  model {info['model']['name']} ({info['model']['digest']}): {', '.join(info['modalities'])}{_season(info)}"
        + (", each stored too" if info["each"] else ""),
        f"  {info['encoding']}: probabilities differ by {error['mean']:.2g} on average, at most {error['largest']:.2g} "
        f"in {error['compared']:,} comparisons",
        f"  layers {', '.join(f'{name} {what}' for name, what in info['layers'].items())}",
        f"  digest {info['digest']}; {info['tiles']} tiles of {info['tile_size']} pixels",
    ]
    for line in lines:
        print(printable(line))
