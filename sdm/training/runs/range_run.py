"""From a recipe to a model folder: train without what is held out, train on everything, calibrate, export."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sdm.errors import ModelError, RequestError
from sdm.files.atomic import check_folder
from sdm.files.paths import replace_file
from sdm.layers.environment import Input
from sdm.models.bundled import BundledModel
from sdm.request.choices import MODALITIES
from sdm.training import distributed
from sdm.training.data.held_out import split_training_set
from sdm.training.data.training_set import TrainingSet, prepare_training_set
from sdm.training.loop.trainer import Trainer
from sdm.training.objectives.contrastive_recipe import RecipeContrastiveObjective
from sdm.training.objectives.ranges import RangeObjective
from sdm.training.recipe.range_recipe import Recipe
from sdm.training.recipe.sections import TrainerSettings
from sdm.training.runs.assessment import RecipeObjective, assess, assess_species, check_calibration
from sdm.training.runs.corrected_vectors import fit_corrected_vectors
from sdm.training.runs.export import export_model
from sdm.training.runs.folder import (
    Log,
    Progress,
    describe_run,
    logger,
    read_metrics,
    refuse_other_run,
    write_json,
)
from sdm.training.runs.known_ranges import fit_known_ranges
from sdm.training.spaces import start_from

ON_A_MODEL = {"ranges": ("known_ranges", fit_known_ranges), "vectors": ("corrected_vectors", fit_corrected_vectors)}
"""Stages that change a trained model: the name of their measures, and what does it."""


@dataclass(frozen=True)
class StageOptions:
    """How a stage of a run is executed."""

    folder: Path
    """The run folder; the stage has a folder of its own in it."""
    device: str
    log: Log
    identity: dict[str, str]
    """Digests of recipe and data: a checkpoint of another identity is refused."""
    restart: bool = False
    progress: Progress | None = None


def run_recipe(
    recipe: Recipe,
    out: Path,
    run_folder: Path,
    stages: tuple[str, ...],
    device: str = "cpu",
    *,
    restart: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Run the stages of a recipe: "develop" (train without what is held out, score it), "ship", "ranges", "vectors".

    An interrupted stage continues from its checkpoint, a complete one is not run again, unless `restart`. Shipping
    uses the calibration that developing found, so it needs a run folder in which that stage is complete. The ranges are
    those of the table of known ranges, fitted to the model in `out`; shipping ends with it. The vectors are those of
    species whose ranges the recipe corrects, fitted to the encoders of the model in `out`.

    `out` is the model folder, which already holds `taxa.csv`; `run_folder` receives the recipe, the settings, log,
    metrics, and a folder per stage with checkpoint, curves and, for develop, the model. Returns the metrics. Raises
    RequestError for shipping without a calibration and for a run folder of another recipe or other data, ModelError
    for a model folder without names.
    """
    recipe.optimiser.check(device)
    metrics_file = run_folder / "metrics.json"
    metrics = read_metrics(metrics_file)
    _check_run(recipe, out, run_folder, stages, metrics)
    log = logger(run_folder / "log.txt", quiet=progress is not None)
    if len(stages) == 1 and stages[0] in ON_A_MODEL:
        name, fit = ON_A_MODEL[stages[0]]
        metrics[name] = fit(recipe, out, log)
        write_json(metrics, metrics_file)
        return metrics
    data = prepare_training_set(recipe, out, log, initial_inputs(recipe))
    identity = {"recipe": recipe_digest(recipe), "data": data.fingerprint}
    if restart:
        metrics = {}
    refuse_other_run(run_folder, metrics, identity)
    if distributed.rank() == 0:
        describe_run(recipe.path, _settings(recipe), run_folder, identity, device)
    metrics["run"] = identity
    options = StageOptions(run_folder, device, log, identity, restart, progress)
    if "develop" in stages:
        if "held_out" not in metrics:
            metrics |= develop(recipe, data, options)
            write_json(metrics, metrics_file)
        else:
            log(f"develop is complete in {run_folder}")
    if "ship" in stages:
        objective = make_objective(recipe, data, np.arange(len(data.places.start)))
        make_trainer(recipe, objective, "ship", options).fit(restart)
        if distributed.rank() == 0:
            calibrations = metrics["calibration"], metrics.get("group_calibration", {})
            metrics["ship_in_sample"] = check_calibration(recipe, objective, data, *calibrations, log)
            write_json(metrics, metrics_file)
            export_model(recipe, data, objective, *calibrations, out)
            log(f"wrote {out}")
            metrics["known_ranges"] = fit_known_ranges(recipe, out, log)
            write_json(metrics, metrics_file)
    distributed.wait()
    return metrics


def _check_run(recipe: Recipe, out: Path, run_folder: Path, stages: tuple[str, ...], metrics: dict[str, Any]) -> None:
    """Raise for what would only fail after hours."""
    if "ship" in stages and "develop" not in stages and "calibration" not in metrics:
        raise RequestError(
            f"run folder {str(run_folder)!r} has no calibration, which is fitted where a model was not trained; "
            "run the stage develop into this folder first, or both."
        )
    if "ship" in stages and recipe.evaluation.split == "species":
        raise RequestError(
            "split 'species' holds no places out, on which a shipped calibration is fitted; choose --stage develop."
        )
    if not (out / "taxa.csv").is_file():
        raise ModelError(
            f"model folder {str(out)!r} has no taxa.csv, the names of the species; make it with recipes/taxa.py."
        )
    for folder in (run_folder, out):
        check_folder(folder)


def make_objective(
    recipe: Recipe, data: TrainingSet, groups: np.ndarray, held_out: np.ndarray | None = None
) -> RecipeObjective:
    """The objective of a recipe over groups of places, from random weights by its seed or from its `initial`.

    held_out: (S,) bool, species held out.
    """
    torch.manual_seed(recipe.optimiser.seed)
    initial = _initial_model(recipe)
    if recipe.binding:
        return RecipeContrastiveObjective(recipe, recipe.binding, data, groups, held_out=held_out, initial=initial)
    objective = RangeObjective(recipe, data, groups, held_out)
    if initial:
        start_from(objective.encoders, initial, data.vocabulary)
        scale, bias = initial.calibration(MODALITIES)
        with torch.no_grad():
            objective.log_scale.fill_(float(np.log(scale)))
            objective.bias.fill_(bias)
    return objective


def develop(recipe: Recipe, data: TrainingSet, options: StageOptions) -> dict[str, Any]:
    """Train without what is held out, then score it: {"held_out": scores, "calibration": ..., and that of groups}."""
    groups, species = split_training_set(recipe, data)
    objective = make_objective(recipe, data, np.flatnonzero(~groups), species)
    make_trainer(recipe, objective, "develop", options).fit(options.restart)
    if distributed.rank() != 0:
        return {"held_out": {}, "calibration": {}, "group_calibration": {}}
    if recipe.evaluation.split == "species":
        return {"held_out": assess_species(recipe, data, objective, species, options.log)}
    scores, calibration, groups_own = assess(recipe, data, objective, np.flatnonzero(groups), options.log)
    folder = options.folder / "develop" / "model"
    folder.mkdir(parents=True, exist_ok=True)
    export_model(recipe, data, objective, calibration, groups_own, folder)
    replace_file(folder / "taxa.csv", data.taxa.read_bytes())  # a complete model, to map with or to start from
    return {"held_out": scores, "calibration": calibration, "group_calibration": groups_own}


def make_trainer(recipe: Recipe, objective: RecipeObjective, stage: str, options: StageOptions) -> Trainer:
    """The trainer of a recipe's [optimiser], in the folder of a stage."""
    settings = TrainerSettings(**{f.name: getattr(recipe.optimiser, f.name) for f in fields(TrainerSettings)})
    return Trainer(
        objective,
        settings,
        options.folder / stage,
        device=options.device,
        identity=options.identity,
        log=options.log,
        progress=options.progress,
    )


def _initial_model(recipe: Recipe) -> BundledModel | None:
    """The model to start from: a model folder or name, or the developed model of a run folder."""
    initial = recipe.objective.initial
    if not initial:
        return None
    developed = Path(initial) / "develop" / "model"
    return BundledModel.open(developed if (developed / "config.json").is_file() else initial)


def initial_inputs(recipe: Recipe) -> list[Input] | None:
    """The environment inputs of the model to start from; None without one."""
    initial = _initial_model(recipe)
    return [Input(**i) for i in initial.config["environment"]["inputs"]] if initial else None


def _settings(recipe: Recipe) -> dict[str, Any]:
    """All settings of a recipe, with the kind of each source, which is not a field."""
    settings = asdict(recipe)
    for entry, source in zip(settings["data"]["source"], recipe.data.source, strict=True):
        entry["kind"] = source.kind
    return settings


def recipe_digest(recipe: Recipe) -> str:
    """sha256 of the settings that affect the result; comments, order and `checkpoint_every` do not."""
    settings = {
        k: v for k, v in _settings(recipe).items() if k not in ("path", "title", "licence", "version", "ranges")
    }
    settings["optimiser"].pop("checkpoint_every")
    if recipe.objective.initial:
        initial = _initial_model(recipe)
        settings["initial"] = initial.digest if initial else ""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
