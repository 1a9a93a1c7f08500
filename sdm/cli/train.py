"""`sdm train`: a model from a recipe."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from sdm.cli.app import EPILOG, progress, sdm_app
from sdm.errors import RequestError


@sdm_app.command("train", epilog=EPILOG)
def train_command(
    recipe: Annotated[Path, typer.Argument(help="Recipe, a TOML file; see recipes/ and docs/training.md.")],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            show_default=False,
            help="Model folder: holds taxa.csv, receives config.json, model.safetensors and vocabulary.txt. "
            "Default: models/NAME.",
        ),
    ] = None,
    run: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            show_default=False,
            help="Run folder: recipe, settings, log, metrics, curves, checkpoints. Default: runs/NAME.",
        ),
    ] = None,
    stage: Annotated[
        str,
        typer.Option(help="develop (hold places or species out and score them), ship (train on everything), or both."),
    ] = "develop,ship",
    restart: Annotated[
        bool,
        typer.Option("--restart", help="Begin anew; by default a run goes on from the last checkpoint in its folder."),
    ] = False,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of torch in each process.", show_default=False)
    ] = None,
    device: Annotated[
        str, typer.Option(help="auto, cpu or cuda[:N]; under torchrun each process has its own.")
    ] = "cpu",
) -> None:
    """Train a model from a recipe: develop on what is held out, then train on everything and export.

    Ctrl-C and SIGTERM write a checkpoint first; the same command goes on from it, bit by bit as if it had never
    stopped. On several GPUs or processes:
    torchrun --nproc-per-node N -- "$(command -v sdm)" train RECIPE --device cuda.
    """  # fmt: skip
    from sdm.training.observed import ObservedRecipe, train_observed
    from sdm.training.recipe import Recipe

    observed = ObservedRecipe.read(recipe)
    opened = observed or Recipe.read(recipe)
    stages = tuple(s.strip() for s in stage.split(","))
    if not stages or not set(stages) <= {"develop", "ship"}:
        raise RequestError(f"stage {stage!r} is not known; choose develop, ship or develop,ship.")
    import torch

    from sdm.models.device import local_device
    from sdm.request.choices import parse_device
    from sdm.training.distributed import joined, rank
    from sdm.training.run import run as run_recipe

    if threads:
        torch.set_num_threads(threads)
    out, run = out or Path("models") / opened.name, run or Path("runs") / opened.name
    with joined(local_device(parse_device(device))) as own, progress(rank() == 0) as tell:
        bar = tell if sys.stderr.isatty() and rank() == 0 else None
        if observed:
            train_observed(observed, out, run, own, restart=restart, progress=bar)
            return
        run_recipe(opened, out, run, stages, own, restart=restart, progress=bar)
