"""`sdm models`: list, show, fetch, verify; and the options of `taxabind-map` that list models and search names."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer

from sdm.cli.app import EPILOG, printable, program, say, sdm_app
from sdm.errors import ModelError, SpeciesNameError

models_app = program("List, show, fetch and verify models.", no_args_is_help=False)
sdm_app.add_typer(models_app, name="models")

CACHE = Annotated[
    str | None,
    typer.Option(metavar="DIR", help="Where weights are kept. Default: the Hugging Face cache.", show_default=False),
]
MODEL = Annotated[str, typer.Argument(metavar="NAME|FOLDER|hf://ORG/REPO[@REVISION]", help="Model.")]


def print_models(asked: bool) -> None:
    """Print the bundled models, and whether the published one is on disk, and stop, if asked."""
    if not asked:
        return
    from sdm.models.licence import licence_text
    from sdm.models.registry import list_models
    from sdm.models.taxabind import Checkpoints
    from sdm.models.taxabind.layout import PARTS, megabytes

    for model in list_models():
        groups: dict[str, int] = {}
        for taxon in model.taxa:
            groups[taxon.group] = groups.get(taxon.group, 0) + 1
        species = ", ".join(f"{n:,} {g}s" for g, n in sorted(groups.items(), key=lambda item: -item[1]))
        print(f"{model.name}  version {model.version or '?'}  {licence_text(model)}")
        print(f"  {model.title}: {species}")
        options = "; --month" if model.seasonal else ""
        if model.introduced:
            options += f"; --origin all ({len(model.introduced)} species with introduced ranges)"
        if model.space[0] != model.name:
            options += f"; shares the encoders of {model.space[0]}: one list, one index"
        print(f"  modalities {', '.join(model.modalities)}{options}; hash {model.digest}; {model.folder}")
    total = megabytes(sum(p.bytes for p in PARTS))
    try:
        there = Checkpoints.open()
        state = f"modalities {', '.join(there.modalities)}; {there.root}"
    except ModelError:
        state = f"not fetched: sdm models fetch taxabind ({total})"
    print("taxabind  the published checkpoints; image and text MIT, the others without a stated licence")
    print(f"  any species by name, photo, sound or text; relative suitability, not probability\n  {state}")
    raise typer.Exit()


def search_names(text: str | None) -> None:
    """Print the species that match and stop; raises SpeciesNameError when none does."""
    if text is None:
        return
    from sdm.models.registry import list_models

    matches = [
        f"{taxon.label}  [{model.name}]" + "  native and introduced (--origin all)" * (taxon.name in model.introduced)
        for model in list_models()
        for taxon in model.taxa.search(text)
    ]
    for match in matches:
        print(printable(match))
    if not matches:
        raise SpeciesNameError(f"no species of any bundled model matches {text[:80]!r}; try part of the name.")
    raise typer.Exit()


@models_app.callback(invoke_without_command=True)
def models_command(context: typer.Context) -> None:
    """List, show, fetch and verify models; without a command, list."""
    if context.invoked_subcommand is None:
        print_models(True)


@models_app.command("list", epilog=EPILOG)
def list_command() -> None:
    """List the bundled models, and whether the published one is on disk."""
    print_models(True)


@models_app.command("show", epilog=EPILOG)
def show_command(
    model: MODEL,
    cache_dir: CACHE = None,
    json_output: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Print what a model contains: modalities, files, sizes, hashes, licence."""
    from sdm.models.registry import open_model

    opened = open_model(model, cache_dir=cache_dir, offline=True)
    facts: dict[str, Any] = {
        "name": opened.name,
        "title": opened.title,
        "version": opened.version,
        "licence": opened.licence,
        "hash": opened.digest,
        "dimensions": opened.dim,
        "modalities": list(opened.modalities),
        "calibrated": opened.calibrated,
        "seasonal": opened.seasonal,
        "encoders": " ".join(opened.space),
        "folder": str(opened.folder),
        "files": opened.files(),
    }
    if json_output:
        print(json.dumps(facts, indent=2))
        return
    for key, value in facts.items():
        if key != "files":
            print(printable(f"{key:12} {', '.join(value) if isinstance(value, list) else value}"))
    for file in facts["files"]:
        print(printable(f"  {file['bytes']:>13,}  {file['path']}"))


@models_app.command("fetch", epilog=EPILOG)
def fetch_command(
    model: Annotated[str, typer.Argument(metavar="taxabind|hf://ORG/REPO[@REVISION]", help="Model.")] = "taxabind",
    modality: Annotated[
        list[str] | None,
        typer.Option(help="Only what this modality needs. Repeatable. Default: all.", show_default=False),
    ] = None,
    cache_dir: CACHE = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Fetch a model's weights from the Hugging Face hub, and verify them. An interrupted fetch resumes."""
    from sdm.models.taxabind.fetch import fetch
    from sdm.models.taxabind.layout import parse_uri
    from sdm.models.taxabind.verify import verify

    if model == "taxabind":
        repository = revision = None
    elif model.startswith("hf://"):
        repository, revision = parse_uri(model)
    else:
        raise ModelError(f"model {model[:120]!r} is not on the hub; fetch taxabind or hf://organisation/repository.")
    with _bytes(not quiet) as progress:
        checkpoints = fetch(
            modality or None, repository=repository, revision=revision, cache_dir=cache_dir, progress=progress
        )
    _report(verify(checkpoints), quiet)


@models_app.command("verify", epilog=EPILOG)
def verify_command(
    model: MODEL = "taxabind",
    cache_dir: CACHE = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only the exit code.")] = False,
) -> None:
    """Check every weight of a model, and the bundled layers.

    Layout, shapes, numbers, and SHA-256 against that of the release, the published or the first seen one.
    """
    from sdm.models.folder import layer_checks
    from sdm.models.registry import open_model

    _report([*open_model(model, cache_dir=cache_dir, offline=True).verify(), *layer_checks()], quiet)


def open_telling(model: str, cache_dir: str | None, offline: bool, quiet: bool) -> Any:
    """Open a model by name, folder or address, with progress on stderr while it is fetched."""
    from sdm.models.registry import open_model

    with _bytes(not quiet) as progress:
        return open_model(model, cache_dir=cache_dir, offline=offline, progress=progress)


def _report(checks: list, quiet: bool) -> None:
    """Print the checks. Raises ModelError when a file is bad."""
    for check in checks:
        if not quiet:
            status = check.status if check.good else "BAD"
            size = "" if check.bytes is None else f"{check.bytes:>12,}  "
            print(printable(f"{status:9} {check.digest[:16]}  {size}{check.path}"))
    for check in checks:
        if not check.good:
            raise ModelError(check.status)
    if not quiet and any(c.status == "recorded" for c in checks):
        say("recorded: first seen now; later checks compare with taxabind.lock.json")


def _bytes(enabled: bool):
    """Progress of downloads on stderr; nothing when it is not a terminal."""
    from contextlib import contextmanager

    @contextmanager
    def bar():
        if not enabled or not sys.stderr.isatty():
            yield lambda name, done, total: None
            return
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        with Progress(*columns, console=Console(stderr=True)) as display:
            tasks: dict[str, Any] = {}

            def tell(name: str, done: int, total: int | None) -> None:
                if name not in tasks:
                    tasks[name] = display.add_task(name, total=total)
                display.update(tasks[name], completed=done, total=total)

            yield tell

    return bar()
