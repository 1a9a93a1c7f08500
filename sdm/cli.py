"""The command line: parse, call `sdm.api`, print. No decision about maps is made here.

Only the standard library and typer are imported at the top, so that `--help` answers at once.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from sdm import __version__
from sdm.errors import RequestError, SdmError

EPILOG = (
    "Exit codes: 0 done, 1 unexpected failure, 2 bad request, 3 unknown species, 4 unusable layer, 5 unusable model, "
    "6 output cannot be written, 7 map too large, 130 interrupted, 143 terminated."
)
DEBUG = "TAXABIND_MAP_DEBUG"

_settings = {
    "no_args_is_help": True,
    "pretty_exceptions_enable": False,
    "add_completion": False,
    "context_settings": {"help_option_names": ["-h", "--help"], "max_content_width": 110},
}
map_app = typer.Typer(**_settings)
sdm_app = typer.Typer(help="Train and inspect species-distribution models, and map with them.", **_settings)


def main() -> None:
    """Entry point of `taxabind-map` and `python -m sdm`."""
    _run(map_app, "taxabind-map")


def main_sdm() -> None:
    """Entry point of `sdm`."""
    _run(sdm_app, "sdm")


def _run(app: typer.Typer, name: str) -> None:
    try:
        app(prog_name=name)
    except SdmError as error:
        _fail(str(error), error.exit_code)
    except (KeyboardInterrupt, SystemExit) as stop:
        code = 130 if isinstance(stop, KeyboardInterrupt) else stop.code
        if code not in (130, 143):
            raise
        print("error: interrupted; no output was written.", file=sys.stderr, flush=True)
        # The outputs are cleaned up by now. Threads of native libraries may still be busy, and tearing the
        # interpreter down under them can end in an abort: leave at once, with the right code.
        os._exit(code)
    except BrokenPipeError:
        # The reader of our output (head, less) has gone: not our error.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except Exception as error:
        if os.environ.get(DEBUG):
            raise
        text = " ".join(str(error).split())[:300]
        _fail(f"unexpected failure: {type(error).__name__}: {text} (set {DEBUG}=1 to see where).", 1)


def _fail(message: str, code: int) -> None:
    print(f"error: {_printable(message)}", file=sys.stderr)
    sys.exit(code)


def _printable(text: str) -> str:
    """Text safe for a terminal: hostile names must not carry escape sequences to it."""
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)


def _config(context: typer.Context, path: Path | None) -> Path | None:
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


def _list_models(asked: bool) -> None:
    if not asked:
        return
    from sdm.model import list_models

    for model in list_models():
        config = model.config
        groups: dict[str, int] = {}
        for taxon in model.taxa:
            groups[taxon.group] = groups.get(taxon.group, 0) + 1
        species = ", ".join(f"{n:,} {g}s" for g, n in sorted(groups.items(), key=lambda item: -item[1]))
        print(f"{model.name}  version {config.get('version', '?')}  {config.get('licence', '')}")
        print(f"  {config.get('title', '')}: {species}")
        print(f"  modalities {', '.join(config.get('modalities', []))}; hash {model.digest}; {model.folder}")
    raise typer.Exit()


def _search(text: str | None) -> None:
    if text is None:
        return
    from sdm.model import list_models

    found = False
    for model in list_models():
        for taxon in model.taxa.search(text):
            found = True
            print(_printable(f"{taxon.label}  [{model.name}]"))
    if not found:
        from sdm.errors import SpeciesNameError

        raise SpeciesNameError(f"no species of any bundled model matches {text[:80]!r}; try part of the name.")
    raise typer.Exit()


def _version(asked: bool) -> None:
    if asked:
        print(f"taxabind-map {__version__}")
        raise typer.Exit()


@map_app.command(epilog=EPILOG)
@sdm_app.command("map", epilog=EPILOG)
def map_command(
    species: Annotated[
        list[str] | None, typer.Argument(help="Scientific or common names, each in quotes.", show_default=False)
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
    crs: Annotated[str, typer.Option(help="CRS of the map.", rich_help_panel="Where")] = "EPSG:4326",
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
        str, typer.Option(help="Any of location, satellite, environment.", rich_help_panel="Model")
    ] = "location,satellite,environment",
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
    step: Annotated[
        int | None,
        typer.Option(
            help="Encode every n-th pixel in all modalities (1: every pixel). Default: each at the model's pitch.",
            rich_help_panel="Model", show_default=False,
        ),
    ] = None,
    out: Annotated[str, typer.Option(metavar="DIR", help="Output folder.", rich_help_panel="Output")] = "maps",
    format: Annotated[str, typer.Option(help="Any of cog, zarr, html.", rich_help_panel="Output")] = "cog,zarr,html",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace existing outputs.", rich_help_panel="Output")
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
    workers: Annotated[
        int | None,
        typer.Option(
            min=1, max=256, help="Tiles at once. Default: one per processor.", rich_help_panel="Running",
            show_default=False,
        ),
    ] = None,
    tile_size: Annotated[
        int, typer.Option(help="Side of a tile in pixels; also the Zarr chunk.", rich_help_panel="Running")
    ] = 256,
    max_pixels: Annotated[
        int, typer.Option(min=1, help="Refuse larger maps.", rich_help_panel="Running")
    ] = 100_000_000,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.toml", help="Options by their long names; the command line wins.", is_eager=True,
            callback=_config, rich_help_panel="Running", show_default=False,
        ),
    ] = None,
    list_models: Annotated[
        bool, typer.Option("--list-models", help="List the bundled models.", is_eager=True, callback=_list_models)
    ] = False,
    search: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Find species by part of a name.", is_eager=True, callback=_search, show_default=False
        ),
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", is_eager=True, callback=_version)
    ] = False,
) -> None:  # fmt: skip
    """Map where a species lives: a probability raster as Cloud-Optimized GeoTIFF, Zarr and offline web map.

    taxabind-map "Ursus arctos" --bbox -170 48 -100 72

    taxabind-map "brown bear" --region alaska.geojson --crs EPSG:3338 --resolution 5000
    """
    if not species:
        raise RequestError('no species given; name one, for example "Ursus arctos", or look one up with --search.')
    # After the cheap errors: this import brings numpy, GDAL and PROJ.
    from sdm import api

    job = api.plan(
        species, bbox, region, crs=crs, resolution=resolution, model=model, modalities=modalities, satellite=satellite,
        environment=environment or (), mask=mask, device=device, tile_size=tile_size, step=step, max_pixels=max_pixels,
    )  # fmt: skip
    formats = api.parse_formats(format)
    if not quiet:
        for resolution_, notes in zip(job.resolutions, job.notes, strict=True):
            if resolution_.taxon.name.casefold() != resolution_.query.strip().casefold():
                _say(f"{resolution_.query} -> {resolution_.taxon.label} ({resolution_.how})")
            for note in notes:
                _say(f"note: {note}")
    if dry_run:
        estimate = job.estimate(formats)
        if json_output:
            print(json.dumps(estimate, indent=2))
        else:
            _print_estimate(estimate)
        return
    command = shlex.join(["taxabind-map", *sys.argv[1:]])
    with _progress(enabled=not quiet) as tell:
        results = api.write_maps(
            job, out, formats=formats, overwrite=overwrite, workers=workers, command=command, progress=tell
        )
    if json_output:
        reports = [r.report for r in results]
        print(json.dumps(reports[0] if len(reports) == 1 else reports, indent=2, default=str))
    elif not quiet:
        for result in results:
            _print_result(result)


def _say(text: str) -> None:
    print(_printable(text), file=sys.stderr)


def _print_estimate(e: dict[str, Any]) -> None:
    print(f"{', '.join(e['species'])}: {e['columns']} x {e['rows']} = {e['pixels']:,} pixels in {e['tiles']} tiles")
    print(f"{e['crs']}, resolution {e['resolution']:g}; at most {e['bytes_at_most'] / 1e6:.0f} MB of outputs")
    print(f"model {e['model']} ({', '.join(e['modalities'])}) on {e['device']}")


def _print_result(result: Any) -> None:
    s = result.report["statistics"]
    print(_printable(result.species))
    if s["count"]:
        print(
            f"  probability {s['min']:.3f} .. {s['max']:.3f}, mean {s['mean']:.3f}; "
            f"expected area {s['expected_area_km2']:,.0f} of {s['modelled_area_km2']:,.0f} km2 modelled"
        )
    else:
        print("  no pixel is modelled here (all masked)")
    for path in result.files.values():
        print(f"  {path}")


@contextmanager
def _progress(enabled: bool) -> Iterator[Callable[[str, int, int], None]]:
    """A bar with time left on stderr; nothing when it is not a terminal."""
    if not enabled or not sys.stderr.isatty():
        yield lambda stage, done, total: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
               TextColumn("left"), TimeRemainingColumn())  # fmt: skip
    with Progress(*columns, console=Console(stderr=True)) as bar:
        tasks: dict[str, Any] = {}

        def tell(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task({"tiles": "encoding tiles", "writing": "writing maps"}[stage], total=total)
            bar.update(tasks[stage], completed=done, total=total)

        yield tell


@sdm_app.command("models")
def models_command() -> None:
    """List the bundled models."""
    _list_models(True)


@sdm_app.command("train", epilog=EPILOG)
def train_command(
    recipe: Annotated[Path, typer.Argument(help="Recipe, a TOML file; see recipes/.")],
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Model folder, holding taxa.csv. Default: models/NAME.", show_default=False),
    ] = None,
    run: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Log and metrics. Default: runs/NAME.", show_default=False)
    ] = None,
    stage: Annotated[
        str, typer.Option(help="develop (hold blocks out and score), ship (train on everything), or both.")
    ] = "develop,ship",
    threads: Annotated[int | None, typer.Option(min=1, help="Torch threads.", show_default=False)] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda[:N].")] = "cpu",
) -> None:
    """Train a model from a recipe: develop on held-out blocks, then train on everything and export."""
    from sdm.training.recipe import Recipe

    opened = Recipe.read(recipe)
    stages = tuple(s.strip() for s in stage.split(","))
    if not stages or not set(stages) <= {"develop", "ship"}:
        raise RequestError(f"stage {stage!r} is not known; choose develop, ship or develop,ship.")
    import torch

    from sdm.training.run import run as run_recipe

    if threads:
        torch.set_num_threads(threads)
    run_recipe(opened, out or Path("models") / opened.name, run or Path("runs") / opened.name, stages, device)
