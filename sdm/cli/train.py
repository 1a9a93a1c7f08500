"""`sdm train`: a model from a recipe."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from sdm.cli.app import EPILOG, progress, sdm_app
from sdm.cli.options import takes_options
from sdm.errors import RequestError
from sdm.request.options import Option, Options


@dataclass(frozen=True, kw_only=True)
class TrainOptions(Options):
    """The options of `sdm train`."""

    recipe: Annotated[Path, Option("Recipe, a TOML file; see recipes/ and docs/training.md.", argument=True)]
    out: Annotated[
        Path | None,
        Option(
            "Model folder: must contain taxa.csv; config.json, model.safetensors and vocabulary.txt are written to it. "
            "Default: models/NAME.",
            metavar="DIR",
        ),
    ] = None
    run: Annotated[
        Path | None,
        Option("Run folder: recipe, settings, log, metrics, curves, checkpoints. Default: runs/NAME.", metavar="DIR"),
    ] = None
    stage: Annotated[
        str,
        Option(
            "develop (hold places or species out and score them), ship (train on everything, then ranges), both, "
            "ranges (only the table of known ranges of the model in --out), or vectors (only the species of that model "
            "whose ranges the recipe corrects)."
        ),
    ] = "develop,ship"
    restart: Annotated[
        bool, Option("Start from the beginning; by default a run resumes from the last checkpoint in its folder.")
    ] = False
    threads: Annotated[int | None, Option("Threads of torch in each process.", low=1)] = None
    device: Annotated[str, Option("auto, cpu or cuda[:N]; under torchrun each process has its own.")] = "cpu"

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages by name. Raises RequestError."""
        stages = tuple(s.strip() for s in self.stage.split(","))
        alone = stages in (("ranges",), ("vectors",))
        if not alone and (not stages or not set(stages) <= {"develop", "ship"}):
            raise RequestError(
                f"stage {self.stage!r} is not known; choose develop, ship, develop,ship, ranges or vectors."
            )
        return stages


@sdm_app.command("train", epilog=EPILOG)
@takes_options()
def train_command(options: TrainOptions) -> None:
    """Train a model from a recipe: develop on what is held out, then train on everything and export.

    Ctrl-C and SIGTERM write a checkpoint first; the same command resumes from it, with bit-identical results.
    On several GPUs or processes:
    torchrun --nproc-per-node N -- "$(command -v sdm)" train RECIPE --device cuda.
    """
    from sdm.training.recipe import DatasetRecipe, Recipe, SpeciesRecipe

    recipe = DatasetRecipe.read(options.recipe) or SpeciesRecipe.read(options.recipe) or Recipe.read(options.recipe)
    stages = options.stages
    import torch

    from sdm.models.device import local_device
    from sdm.request.choices import parse_device
    from sdm.training.distributed import joined, rank
    from sdm.training.runs.dataset_run import run_dataset_recipe
    from sdm.training.runs.range_run import run_recipe
    from sdm.training.species.run import run_species_recipe

    if options.threads:
        torch.set_num_threads(options.threads)
    out = options.out or Path("models") / recipe.name
    run = options.run or Path("runs") / recipe.name
    if isinstance(recipe, SpeciesRecipe):
        run_species_recipe(recipe, out, run, stages, restart=options.restart)
        return
    with joined(local_device(parse_device(options.device))) as own, progress(rank() == 0) as tell:
        bar = tell if sys.stderr.isatty() and rank() == 0 else None
        if isinstance(recipe, DatasetRecipe):
            run_dataset_recipe(recipe, out, run, own, restart=options.restart, progress=bar)
        else:
            run_recipe(recipe, out, run, stages, own, restart=options.restart, progress=bar)
