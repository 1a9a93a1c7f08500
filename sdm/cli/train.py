"""`sdm train`: a model from a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sdm.cli.app import EPILOG, sdm_app
from sdm.errors import RequestError


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
