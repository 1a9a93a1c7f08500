"""Training the published architecture on the published datasets: from observations to a folder of checkpoints.

The recipe has [dataset] instead of [data]: what is observed, and which weights to start from. What comes out has the
published layout: `sdm models verify` checks it and every command takes it as --model.
"""

from __future__ import annotations

import hashlib
import json
import math
import tomllib
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

import torch

from sdm.errors import OutputError, RequestError
from sdm.evaluation import datasets
from sdm.evaluation.species import Taxonomy
from sdm.files.atomic import check_folder
from sdm.files.fingerprint import of_files
from sdm.models.registry import list_models
from sdm.models.taxabind.checkpoints import Checkpoints
from sdm.models.taxabind.configs import FULL, SMALL
from sdm.models.taxabind.write import create_published
from sdm.training import distributed
from sdm.training.binding import Binding, BindingObjective, Rates
from sdm.training.pairs import DatasetPairs
from sdm.training.recipe import _refuse_unknown, _section, check_name, check_sections
from sdm.training.run import describe, logger
from sdm.training.towers import PublishedSpace
from sdm.training.trainer import CHECKPOINT, Settings, Trainer

RANDOM = {"random": FULL, "random-small": SMALL}


@dataclass(frozen=True)
class DatasetData:
    """[dataset]: what is observed, and where the weights start."""

    kind: str
    """taxabench, isatnat or isoundnat, laid out as published; see `sdm.evaluation.datasets`."""
    path: str
    initial: str
    """Folder of checkpoints; random, or random-small for a miniature to try a recipe on."""
    split: str = "train"
    modalities: tuple[str, ...] = ()
    """Beside text; () is all that the dataset has."""
    skip_missing: bool = False
    """Leave out observations whose files are missing."""


@dataclass(frozen=True)
class ObservedOptimiser(Settings):
    """The trainer's settings and the rates, with the values of TaxaBind's own configurations as defaults."""

    schedule: str = "cosine-restarts"
    restart_every: int = 2000
    """Steps; TaxaBind restarts every 20 epochs."""
    batch: int = 512
    eps: float = 1e-6
    ema: float = 0.0
    learning_rate: float = 1e-4
    weight_decay: float = 0.01


@dataclass(frozen=True)
class ObservedRecipe:
    """A recipe with [dataset], checked."""

    name: str
    dataset: DatasetData
    path: Path
    binding: Binding = field(default_factory=lambda: Binding("image"))
    optimiser: ObservedOptimiser = ObservedOptimiser()

    @classmethod
    def read(cls, path: str | Path) -> ObservedRecipe | None:
        """The recipe, or None when it has no [dataset] and is one of ranges. Raises RequestError."""
        path = Path(path)
        try:
            raw = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None  # the other reader says what is wrong
        if "dataset" not in raw:
            return None
        kinds = {"dataset": DatasetData, "binding": Binding, "optimiser": ObservedOptimiser}
        _refuse_unknown(path, "", raw, {"name", "title", "version", "licence", *kinds})
        if not isinstance(raw.get("name"), str) or not all(isinstance(raw.get(k, {}), dict) for k in kinds):
            raise RequestError(f"recipe {str(path)!r} needs the text 'name', and tables {', '.join(kinds)}.")
        given = {k: _section(path, f"[{k}]", raw[k], kind) for k, kind in kinds.items() if k in raw}
        recipe = cls(raw["name"], path=path, **given)
        check_name(path, recipe.name)
        check_sections(path, recipe.optimiser, recipe.binding)
        if recipe.dataset.kind not in ("taxabench", "isatnat", "isoundnat"):
            raise RequestError(
                f"recipe {str(path)!r}: dataset {recipe.dataset.kind!r} is none of taxabench, isatnat, isoundnat."
            )
        return recipe


def train_observed(
    recipe: ObservedRecipe,
    out: Path,
    run_folder: Path,
    device: str = "cpu",
    *,
    restart: bool = False,
    log: Callable[[str], None] | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> None:
    """Train and write the new folder `out`; recipe, settings, log, checkpoint and curves go into `run_folder`.

    Raises RequestError, ModelError for weights that do not fit, OutputError when `out` exists.
    """
    if out.exists():
        raise OutputError(f"{out} exists already; give another --out.")
    for folder in (run_folder, out):
        check_folder(folder)  # now, not after hours
    recipe.optimiser.check(device)
    first = distributed.rank() == 0
    log = log or logger(run_folder / "log.txt", quiet=progress is not None)
    d, o = recipe.dataset, recipe.optimiser
    taxonomy = Taxonomy(tables=[m.taxa for m in list_models()])
    options = {"modalities": d.modalities} if d.modalities else {}
    if d.kind == "taxabench":
        dataset = datasets.taxabench(d.path, taxonomy=taxonomy, skip_missing=d.skip_missing, **options)
    elif d.kind == "isoundnat":
        dataset = datasets.isoundnat(d.path, d.split, taxonomy=taxonomy, skip_missing=d.skip_missing, **options)
    else:
        dataset = datasets.isatnat(d.path, d.split, skip_missing=d.skip_missing, **options)
    for note in dataset.notes:
        log(note)
    pairs = DatasetPairs(dataset, recipe.binding.balance, recipe.binding.negatives)
    b = recipe.binding
    if not b.modalities:  # text only where it is asked for: beside photos it is bound to them already
        b = replace(b, modalities=tuple(m for m in dataset.modalities if m != b.binding))
    wanted = (b.binding, *b.modalities)
    start = Checkpoints.open(d.initial) if d.initial not in RANDOM else _random(run_folder / "start", wanted, recipe)
    space = PublishedSpace(start, wanted)
    torch.manual_seed(o.seed)
    objective = BindingObjective(space, pairs, b, Rates(o.learning_rate, 0.0, o.weight_decay))
    said = json.dumps({k: v for k, v in asdict(recipe).items() if k != "path"}, sort_keys=True, default=str)
    identity = {
        "recipe": hashlib.sha256(said.encode()).hexdigest(),
        "data": hashlib.sha256(repr((dataset.ids, dataset.lonlat.tobytes())).encode()).hexdigest(),
        "weights": of_files([f.weights for f in start.found]),
    }
    settings = Settings(**{f.name: getattr(o, f.name) for f in fields(Settings)})
    if first and (restart or not (run_folder / CHECKPOINT).is_file()):  # else it is told already, or of another run
        describe(recipe.path, asdict(recipe), run_folder, identity, device)
    log(f"{len(dataset):,} observations of {len(dataset.classes):,} species; {b.binding} binds {', '.join(wanted[1:])}")
    Trainer(objective, settings, run_folder, device=device, identity=identity, log=log, progress=progress).fit(restart)
    if first:
        space.cpu()
        scale = next(iter(objective.temperatures.values())).log_scale.item()
        at_hand = {"image", "text"} <= {b.binding, *objective.settings.modalities}
        space.write(out, logit_scale=scale if at_hand else None, name=recipe.name, settings=json.loads(said),
                    scales={m: math.exp(t.log_scale.item()) for m, t in objective.temperatures.items()})  # fmt: skip
        log(f"wrote {out}")
    distributed.wait()


def _random(folder: Path, modalities: tuple[str, ...], recipe: ObservedRecipe) -> Checkpoints:
    """Random weights, the same after an interruption and on every rank."""
    if distributed.rank() == 0 and not folder.exists():
        create_published(folder, modalities, recipe.optimiser.seed, RANDOM[recipe.dataset.initial])
    distributed.wait()
    return Checkpoints.open(folder)
