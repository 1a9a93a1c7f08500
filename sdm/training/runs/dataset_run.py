"""Training the published architecture on a published dataset: from observations to a folder of checkpoints.

The result has the published layout: `sdm models verify` checks it and every command takes it as --model.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import torch

from sdm.errors import OutputError
from sdm.evaluation import datasets
from sdm.evaluation.species import Taxonomy
from sdm.files.atomic import check_folder
from sdm.files.fingerprint import of_files
from sdm.models.registry import list_models
from sdm.models.taxabind.checkpoints import Checkpoints
from sdm.models.taxabind.configs import FULL, SMALL
from sdm.models.taxabind.write import create_published
from sdm.training import distributed
from sdm.training.data.pairs import DatasetPairs
from sdm.training.loop.checkpoints import CHECKPOINT
from sdm.training.loop.trainer import Trainer
from sdm.training.objectives.contrastive import ContrastiveObjective, Rates
from sdm.training.recipe.dataset_recipe import DatasetRecipe, DatasetSettings
from sdm.training.recipe.sections import TrainerSettings
from sdm.training.runs.folder import Progress, describe_run, logger
from sdm.training.spaces import PublishedSpace

RANDOM_WEIGHTS = {"random": FULL, "random-small": SMALL}


def run_dataset_recipe(
    recipe: DatasetRecipe,
    out: Path,
    run_folder: Path,
    device: str = "cpu",
    *,
    restart: bool = False,
    log: Callable[[str], None] | None = None,
    progress: Progress | None = None,
) -> None:
    """Train and write the new folder `out`; recipe, settings, log, checkpoint and curves go into `run_folder`.

    An interrupted run continues from its checkpoint, unless `restart`. Raises RequestError for a dataset or settings
    that do not fit, ModelError for weights that do not fit, OutputError when `out` exists.
    """
    if out.exists():
        raise OutputError(f"{out} exists already; give another --out.")
    for folder in (run_folder, out):
        check_folder(folder)  # now, not after hours
    recipe.optimiser.check(device)
    first = distributed.rank() == 0
    log = log or logger(run_folder / "log.txt", quiet=progress is not None)
    dataset = _open_dataset(recipe.dataset)
    for note in dataset.notes:
        log(note)
    binding = recipe.binding
    pairs = DatasetPairs(dataset, binding.balance, binding.negatives)
    if not binding.modalities:  # text only where the recipe names it: photos of these datasets are bound to it already
        others = tuple(m for m in dataset.modalities if m != binding.binding)
        binding = replace(binding, modalities=others)
    modalities = (binding.binding, *binding.modalities)
    start = _initial_checkpoints(recipe, run_folder / "start", modalities)
    space = PublishedSpace(start, modalities)
    optimiser = recipe.optimiser
    torch.manual_seed(optimiser.seed)
    rates = Rates(optimiser.learning_rate, 0.0, optimiser.weight_decay)
    objective = ContrastiveObjective(space, pairs, binding, rates)
    settings = {k: v for k, v in asdict(recipe).items() if k != "path"}
    identity = _identity(settings, dataset, start)
    if first and (restart or not (run_folder / CHECKPOINT).is_file()):  # else the description is there already
        describe_run(recipe.path, asdict(recipe), run_folder, identity, device)
    log(
        f"{len(dataset):,} observations of {len(dataset.classes):,} species; "
        f"{binding.binding} binds {', '.join(binding.modalities)}"
    )
    trainer_settings = TrainerSettings(**{f.name: getattr(optimiser, f.name) for f in fields(TrainerSettings)})
    trainer = Trainer(
        objective, trainer_settings, run_folder, device=device, identity=identity, log=log, progress=progress
    )
    trainer.fit(restart)
    if first:
        _write(objective, space, out, recipe.name, settings)
        log(f"wrote {out}")
    distributed.wait()


def _open_dataset(d: DatasetSettings) -> datasets.Dataset:
    taxonomy = Taxonomy(tables=[m.taxa for m in list_models()])
    options: dict[str, Any] = {"modalities": d.modalities} if d.modalities else {}
    if d.kind == "taxabench":
        return datasets.taxabench(d.path, taxonomy=taxonomy, skip_missing=d.skip_missing, **options)
    if d.kind == "isoundnat":
        return datasets.isoundnat(d.path, d.split, taxonomy=taxonomy, skip_missing=d.skip_missing, **options)
    return datasets.isatnat(d.path, d.split, skip_missing=d.skip_missing, **options)


def _initial_checkpoints(recipe: DatasetRecipe, folder: Path, modalities: tuple[str, ...]) -> Checkpoints:
    """The weights to start from; random ones are written to a folder, to be the same after an interruption."""
    initial = recipe.dataset.initial
    if initial not in RANDOM_WEIGHTS:
        return Checkpoints.open(initial)
    if distributed.rank() == 0 and not folder.exists():
        create_published(folder, modalities, recipe.optimiser.seed, RANDOM_WEIGHTS[initial])
    distributed.wait()
    return Checkpoints.open(folder)


def _identity(settings: dict[str, Any], dataset: datasets.Dataset, start: Checkpoints) -> dict[str, str]:
    """Digests of the recipe, the observations and the initial weights."""
    text = json.dumps(settings, sort_keys=True, default=str)
    return {
        "recipe": hashlib.sha256(text.encode()).hexdigest(),
        "data": hashlib.sha256(repr((dataset.ids, dataset.lonlat.tobytes())).encode()).hexdigest(),
        "weights": of_files([f.weights for f in start.present]),
    }


def _write(
    objective: ContrastiveObjective, space: PublishedSpace, out: Path, name: str, settings: dict[str, Any]
) -> None:
    space.cpu()
    bound = objective.settings
    # The published logit scale is that of photos and text.
    has_both = {"image", "text"} <= {bound.binding, *bound.modalities}
    scale = objective.temperature(next(iter(objective.temperatures))).log_scale.item()
    space.write(
        out,
        logit_scale=scale if has_both else None,
        name=name,
        settings=json.loads(json.dumps(settings, sort_keys=True, default=str)),
        scales=objective.scales(),
    )
