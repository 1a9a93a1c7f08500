"""Towers written as files of the published layout: after training, or with random weights to start from."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sdm.errors import ModelError
from sdm.models.taxabind.blueprints import blueprint
from sdm.models.taxabind.checkpoints import Checkpoints, read_plan
from sdm.models.taxabind.configs import FULL
from sdm.models.taxabind.layout import Part, find_part
from sdm.models.taxabind.weights import Source

State = Mapping[str, Tensor]


def write_published(
    checkpoints: Checkpoints, states: Mapping[str, State], out: Path, logit_scale: float | None = None
) -> None:
    """Write all parts of some checkpoints, with new weights for some towers.

    Names, shapes and number types stay; the files are safetensors, in the folders in which `Checkpoints.open` looks.

    Parameters
    ----------
    checkpoints : what is written, where `states` holds nothing newer.
    states : new weights by modality.
    out : folder to write below.
    logit_scale : natural logarithm of the scale of cosines, for open_clip's file.

    Raises
    ------
    ModelError : for a modality that is not there, and for a weight of another shape.
    """
    for modality in states:
        checkpoints.find(modality)
    for files in checkpoints.present:
        file, plan = read_plan(files)
        file.check(plan)
        tensors = file.read(file.shapes.keys() - plan.tolerated)
        for modality in files.part.modalities:
            if modality in states:
                _replace(tensors, modality, states[modality], plan.sources[modality])
        if logit_scale is not None and "logit_scale" in tensors:
            tensors["logit_scale"] = torch.tensor(logit_scale)
        folder = out / files.part.name
        _save({k: v.to(file.types[k] or v.dtype) for k, v in tensors.items()}, folder / files.part.weights[0])
        if files.config is not None:
            shutil.copyfile(files.config, folder / files.part.config)


def _replace(tensors: dict[str, Tensor], modality: str, state: State, sources: Mapping[str, Source]) -> None:
    """Put the weights of a tower into the tensors of its file. Raises ModelError for one of another shape."""
    for target, source in sources.items():
        for key, value in source.split(state[target]).items():
            if value.shape != tensors[key].shape:
                raise ModelError(
                    f"{modality} weight {target} gives {key} of the shape {tuple(value.shape)}, the checkpoint "
                    f"has {tuple(tensors[key].shape)}; write into a checkpoint of the same architecture."
                )
            tensors[key] = value


@dataclass(frozen=True)
class _Planned:
    """The shapes of a weight file that does not exist yet."""

    path: Path
    shapes: Mapping[str, tuple[int, ...]]


def create_published(
    out: Path, modalities: Sequence[str], seed: int = 0, configs: Mapping[str, Mapping[str, Any]] = FULL
) -> Checkpoints:
    """Write random weights in the published layout below `out`, from which training may start.

    `configs`: by part, see `FULL`. Image and text share a file, so either brings both. Raises ModelError.
    """
    torch.manual_seed(seed)
    for part in dict.fromkeys(find_part(m) for m in modalities):
        config = dict(configs[part.key])
        hidden = config.pop("hidden", None)
        planned = _Planned(out / part.name, _shapes(part, config, hidden))
        plan = blueprint(part.key, config, planned, f"configuration of {part.name}", device="cpu")
        tensors: dict[str, Tensor] = {}
        if part.key == "clip":
            tensors["logit_scale"] = torch.tensor(-math.log(0.07))
        for modality, tower in plan.towers.items():
            state = dict(tower.state_dict())
            if part.key == "location_encoder":
                for k, sigma in enumerate(config["sigma"]):
                    state[f"LocEnc{k}.capsule.0.b"] = sigma * torch.randn(state[f"LocEnc{k}.capsule.0.b"].shape)
            for target, source in plan.sources[modality].items():
                tensors.update(source.split(state[target]))
        folder = out / part.name
        _save(tensors, folder / part.weights[0])
        (folder / part.config).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    return Checkpoints.open(out)


def _shapes(part: Part, config: dict, hidden: int | None) -> dict[str, tuple[int, ...]]:
    """The shapes that the blueprint would take from the weights."""
    shapes: dict[str, tuple[int, ...]] = {}
    if part.key == "location_encoder":
        features = config["encoded_size"]
        shapes = {f"LocEnc{k}.capsule.0.b": (features, 2) for k in range(len(config["sigma"]))}
        shapes["LocEnc0.capsule.1.weight"] = (hidden or 0, 2 * features)
        shapes["LocEnc0.head.0.weight"] = (config["dim"], hidden or 0)
    if part.key == "env_encoder":
        shapes = {f"feats.{2 + k}.w1.weight": () for k in range(config["depth"])}
        shapes["feats.0.weight"] = (config["num_filts"], config["num_inputs"])
    return shapes


def _save(tensors: Mapping[str, Tensor], path: Path) -> None:
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    # transformers asks for this mark.
    save_file({k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}, path, {"format": "pt"})
