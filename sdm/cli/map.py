"""`taxabind-map` and `sdm map`: parse, call `sdm.api`, print. No decision about maps is made here."""

from __future__ import annotations

import json
import shlex
import sys
import tomllib
from pathlib import Path
from typing import Annotated, Any

import typer

from sdm._version import __version__
from sdm.cli.app import (
    EPILOG,
    Month,
    SchedulerAddress,
    Threads,
    Workers,
    map_app,
    printable,
    progress,
    say,
    say_licence,
    sdm_app,
)
from sdm.cli.models import print_models, search_names
from sdm.errors import RequestError

EVIDENCE = "What else to ask with (needs --model taxabind)"


def config_file(context: typer.Context, path: Path | None) -> Path | None:
    """Take defaults from a TOML file; options on the command line win."""
    if path is None:
        return None
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RequestError(f"config {str(path)!r} cannot be read: {error.strerror}.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RequestError(f"config {str(path)!r} is not valid TOML: {error}.") from None
    # Keys are the long names of the options, as on the command line; species is the one argument.
    known = {opt.removeprefix("--"): p.name for p in context.command.params for opt in p.opts if opt.startswith("--")}
    known = {k: n for k, n in known.items() if n not in ("config", "list_models", "search", "version", "help")}
    known["species"] = "species"
    defaults: dict[str, Any] = {}
    for key, value in values.items():
        name = known.get(key.replace("_", "-"))
        if name is None:
            raise RequestError(f"config {str(path)!r} has the unknown key {key!r}; known: {', '.join(sorted(known))}.")
        if isinstance(value, list) and name in ("modalities", "format"):
            value = ",".join(map(str, value))
        if name == "species" and isinstance(value, str):
            value = [value]
        if name == "environment" and isinstance(value, str):
            value = [value]
        defaults[name] = value
    context.default_map = {**(context.default_map or {}), **defaults}
    return path


def show_version(asked: bool) -> None:
    """Print the version and stop, if asked."""
    if asked:
        print(f"taxabind-map {__version__}")
        raise typer.Exit()


@map_app.command(epilog=EPILOG)
@sdm_app.command("map", epilog=EPILOG)
def map_command(
    species: Annotated[
        list[str] | None, typer.Argument(help="Scientific or common names, each in quotes.", show_default=False)
    ] = None,
    species_file: Annotated[
        str | None,
        typer.Option(
            "--species", "--species-list", metavar="FILE", rich_help_panel="A list of species", show_default=False,
            help="Map all names of a .csv, .tsv, .txt or .parquet file in one pass, into one Zarr with a summary, a "
            "richness map and a page; goes on where it was interrupted.",
        ),
    ] = None,
    species_column: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Its column with the names. Default: found by the usual names.",
            rich_help_panel="A list of species", show_default=False,
        ),
    ] = None,
    strict: Annotated[
        bool,
        typer.Option(
            "--strict", help="A name that cannot be mapped is an error, not skipped.",
            rich_help_panel="A list of species",
        ),
    ] = False,
    threshold: Annotated[
        float,
        typer.Option(help="Areas in its summary are those above this value.", rich_help_panel="A list of species"),
    ] = 0.5,
    photo: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE", help="A photo of it; several are averaged. Added to the name, if one is given.",
            rich_help_panel=EVIDENCE, show_default=False,
        ),
    ] = None,
    audio: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE", help="A recording of it. Repeatable.", rich_help_panel=EVIDENCE, show_default=False
        ),
    ] = None,
    text: Annotated[
        list[str] | None,
        typer.Option(
            help='Free text, such as "alpine meadow with grazing ungulates". Repeatable.', rich_help_panel=EVIDENCE,
            show_default=False,
        ),
    ] = None,
    embedding: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="Vectors of the model: .npy, .npz, .pt, .safetensors, .parquet; FILE#key.",
            rich_help_panel=EVIDENCE, show_default=False,
        ),
    ] = None,
    bbox: Annotated[
        tuple[float, float, float, float] | None,
        typer.Option(
            metavar="WEST SOUTH EAST NORTH", help="Box in degrees; west > east crosses the antimeridian.",
            rich_help_panel="Where", show_default=False,
        ),
    ] = None,
    region: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="Vector file: its extent is mapped, its outside masked.", rich_help_panel="Where",
            show_default=False,
        ),
    ] = None,
    index: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER|URL", rich_help_panel="Where", show_default=False,
            help="Region index made by `sdm index build`: nothing is encoded. Without a box or region, all of it.",
        ),
    ] = None,
    crs: Annotated[
        str | None,
        typer.Option(help="CRS of the map. Default: EPSG:4326.", rich_help_panel="Where", show_default=False),
    ] = None,
    resolution: Annotated[
        float | None,
        typer.Option(
            help="Pixel side in CRS units. Default: the finest round number near a megapixel.", rich_help_panel="Where",
            show_default=False,
        ),
    ] = None,
    mask: Annotated[
        str, typer.Option(help="land, sea, none, or auto (by the species' habitat).", rich_help_panel="Where")
    ] = "auto",
    model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FOLDER", help="Default: the bundled model that knows the species.", rich_help_panel="Model",
            show_default=False,
        ),
    ] = None,
    modalities: Annotated[
        str | None,
        typer.Option(
            help="Any of location, satellite, environment. Default: all.", rich_help_panel="Model", show_default=False
        ),
    ] = None,
    month: Month = None,
    satellite: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="RGB raster in place of the bundled mosaic.", rich_help_panel="Model",
            show_default=False,
        ),
    ] = None,
    environment: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE|FOLDER", help="Rasters in place of bundled variables (bio1, elevation, ...). Repeatable.",
            rich_help_panel="Model", show_default=False,
        ),
    ] = None,
    satellite_step: Annotated[
        int | None,
        typer.Option(
            help="Encode imagery at every n-th pixel, and interpolate between.", rich_help_panel="Model",
            show_default=False,
        ),
    ] = None,
    score: Annotated[
        str,
        typer.Option(
            help="probability, relative (share of the world's land that scores lower), cosine, or auto: the first the "
            "model allows.", rich_help_panel="Model",
        ),
    ] = "auto",
    cache_dir: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="Where fetched models are kept.", rich_help_panel="Model", show_default=False),
    ] = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="Fetch no model; use what is there.", rich_help_panel="Model")
    ] = False,
    step: Annotated[
        int | None,
        typer.Option(
            help="Encode every n-th pixel in all modalities (1: every pixel). Default: each at the model's pitch.",
            rich_help_panel="Model", show_default=False,
        ),
    ] = None,
    out: Annotated[str, typer.Option(metavar="DIR", help="Output folder.", rich_help_panel="Output")] = "maps",
    format: Annotated[
        str | None,
        typer.Option(
            help="Any of cog, zarr, html; default all three. With --species: zarr always, and by default alone.",
            rich_help_panel="Output", show_default=False,
        ),
    ] = None,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite", help="Replace existing outputs, and unfinished ones of another request.",
            rich_help_panel="Output",
        ),
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Say tiles, pixels, bytes and device; write nothing.", rich_help_panel="Output"),
    ] = False,
    json_output: Annotated[
        bool, typer.Option("--json", help="Print the report as JSON on stdout.", rich_help_panel="Output")
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="No progress, no summary.", rich_help_panel="Output")
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.", rich_help_panel="Running")] = "auto",
    threads: Threads = None,
    workers: Workers = None,
    scheduler_address: SchedulerAddress = None,
    tile_size: Annotated[
        int,
        typer.Option(
            help="Side of a tile in pixels; also the Zarr chunk. With --index it is the index's.",
            rich_help_panel="Running",
        ),
    ] = 256,
    max_pixels: Annotated[
        int, typer.Option(min=1, help="Refuse larger maps.", rich_help_panel="Running")
    ] = 100_000_000,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.toml", help="Options by their long names; the command line wins.", is_eager=True,
            callback=config_file, rich_help_panel="Running", show_default=False,
        ),
    ] = None,
    list_models: Annotated[
        bool, typer.Option("--list-models", help="List the bundled models.", is_eager=True, callback=print_models)
    ] = False,
    search: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Find species by part of a name.", is_eager=True, callback=search_names,
            show_default=False,
        ),
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", is_eager=True, callback=show_version)
    ] = False,
) -> None:  # fmt: skip
    """Map where a species lives: a probability raster as Cloud-Optimized GeoTIFF, Zarr and offline web map.

    taxabind-map "Ursus arctos" --bbox -170 48 -100 72

    taxabind-map "brown bear" --region alaska.geojson --crs EPSG:3338 --resolution 5000

    taxabind-map --species list.csv --bbox -125 31 -102 49 --out west
    """
    if species and species_file:
        raise RequestError("species are given by name and as the file --species; give one of the two.")
    query = {"photo": photo, "audio": audio, "text": text, "embedding": embedding}
    if species_file and any(query.values()):
        raise RequestError("photos, sounds, text and embeddings are asked for one by one, not with --species FILE.")
    if not species and not species_file and not any(query.values()):
        raise RequestError('no species given; name one, for example "Ursus arctos", or look one up with --search.')
    options = {
        "crs": crs, "resolution": resolution, "model": model, "modalities": modalities, "satellite": satellite,
        "environment": environment or (), "mask": mask, "device": device, "tile_size": tile_size, "step": step,
        "satellite_step": satellite_step, "score": score, "max_pixels": max_pixels, "index": index,
        "month": month,
    }  # fmt: skip
    if model is not None and (model.startswith("hf://") or cache_dir or offline):
        from sdm.cli.models import open_telling

        options["model"] = open_telling(model, cache_dir, offline, quiet)
    running = {"overwrite": overwrite, "threads": threads, "workers": workers, "scheduler_address": scheduler_address}
    command = shlex.join(["taxabind-map", *sys.argv[1:]])
    if species_file:
        from sdm.cli.batch import run_batch

        listed = {"column": species_column, "strict": strict, "threshold": threshold}
        show = {"dry_run": dry_run, "json_output": json_output, "quiet": quiet}
        run_batch(species_file, bbox, region, out, format, command, {**options, **listed}, running, **show)
        return
    # After the cheap errors: this import brings numpy, GDAL and PROJ.
    from sdm.maps.plan import plan
    from sdm.maps.write import write_maps
    from sdm.request.choices import FORMATS, parse_formats

    job = plan(species or (), bbox, region, **options, **query)
    formats = parse_formats(format or FORMATS)
    if not quiet:
        for resolution_, notes in zip(job.resolutions, job.notes, strict=True):
            if resolution_.taxon.name.casefold() != resolution_.query.strip().casefold():
                say(f"{resolution_.query} -> {resolution_.taxon.label} ({resolution_.how})")
            for note in notes:
                say(f"note: {note}")
        say_licence(job.plan.model)
    if dry_run:
        estimate = job.estimate(formats)
        if json_output:
            print(json.dumps(estimate, indent=2))
        else:
            _print_estimate(estimate)
        return
    with progress(enabled=not quiet) as tell:
        results = write_maps(job, out, formats=formats, command=command, progress=tell, **running)
    if json_output:
        reports = [r.report for r in results]
        print(json.dumps(reports[0] if len(reports) == 1 else reports, indent=2, default=str))
    elif not quiet:
        for result in results:
            _print_result(result)


def _print_estimate(e: dict[str, Any]) -> None:
    print(f"{', '.join(e['species'])}: {e['columns']} x {e['rows']} = {e['pixels']:,} pixels in {e['tiles']} tiles")
    print(f"{e['crs']}, resolution {e['resolution']:g}; at most {e['bytes_at_most'] / 1e6:.0f} MB of outputs")
    from sdm.request.months import when

    season = f" {when(e['month'])}" if e["month"] else ""
    print(f"model {e['model']} ({', '.join(e['modalities'])}){season} on {e['device']}")


def _print_result(result: Any) -> None:
    s = result.report["statistics"]
    print(printable(result.species))
    if s["count"]:
        score = result.report["score"]["score"]
        area = f"{s['modelled_area_km2']:,.0f} km2 modelled"
        if score == "probability":
            area = f"expected area {s['expected_area_km2']:,.0f} of {area}"
        print(f"  {score.replace('_', ' ')} {s['min']:.3f} .. {s['max']:.3f}, mean {s['mean']:.3f}; {area}")
    else:
        print("  no pixel is modelled here (all masked)")
    for path in result.files.values():
        print(f"  {path}")
