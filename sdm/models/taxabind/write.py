"""Towers back into files of the published layout: after training, and random ones to start from."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor

from sdm.errors import ModelError
from sdm.models.taxabind.blueprints import blueprint
from sdm.models.taxabind.checkpoints import Checkpoints, plan_of
from sdm.models.taxabind.layout import Part, part_of

State = Mapping[str, Tensor]


def write_published(
    checkpoints: Checkpoints, states: Mapping[str, State], out: Path, logit_scale: float | None = None
) -> None:
    """Write all parts of `checkpoints` below `out`, with other weights for the towers in `states` (by modality).

    The same names, shapes and number types, as safetensors, in the folders that `Checkpoints.open` looks in, so
    that `verify` accepts them. `logit_scale`: natural logarithm of the scale of cosines, for open_clip's file.
    Raises ModelError for a modality that is not there and a weight of another shape.
    """
    for modality in states:
        checkpoints.file_of(modality)
    for found in checkpoints.found:
        file, plan = plan_of(found)
        file.check(plan)
        tensors = file.read(file.shapes.keys() - plan.tolerated)
        for modality in found.part.modalities:
            for target, source in plan.sources[modality].items() if modality in states else ():
                for key, value in source.split(states[modality][target]).items():
                    if value.shape != tensors[key].shape:
                        raise ModelError(
                            f"{modality} weight {target} gives {key} of the shape {tuple(value.shape)}, the checkpoint "
                            f"has {tuple(tensors[key].shape)}; write into a checkpoint of the same architecture."
                        )
                    tensors[key] = value
        if logit_scale is not None and "logit_scale" in tensors:
            tensors["logit_scale"] = torch.tensor(logit_scale)
        folder = out / found.part.name
        _save({k: v.to(file.types[k]) for k, v in tensors.items()}, folder / found.part.weights[0])
        if found.config is not None:
            shutil.copyfile(found.config, folder / found.part.config)


FULL = {
    "clip": {
        "model_cfg": {
            "embed_dim": 512,
            "vision_cfg": {"image_size": 224, "layers": 12, "width": 768, "patch_size": 16},
            "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12},
        },
        "preprocess_cfg": {},
    },
    "sat_encoder": {
        "model_type": "clip_vision_model", "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
        "num_attention_heads": 12, "image_size": 224, "patch_size": 16, "projection_dim": 512,
        "hidden_act": "quick_gelu",
    },
    "location_encoder": {"dim": 512, "encoded_size": 256, "input_size": 2, "sigma": [1, 16, 256], "hidden": 1024},
    "env_encoder": {"depth": 4, "num_classes": 0, "num_filts": 512, "num_inputs": 20},
    "audio_encoder": {"model_type": "clap_audio_model", "enable_fusion": True, "projection_dim": 512},
}  # fmt: skip
"""Configurations of the published sizes, by part."""
SMALL = {
    "clip": {
        "model_cfg": {
            "embed_dim": 64,
            "vision_cfg": {"image_size": 224, "layers": 2, "width": 128, "patch_size": 56},
            "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 4, "layers": 2},
        },
        "preprocess_cfg": {},
    },
    "sat_encoder": FULL["sat_encoder"] | {
        "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
        "image_size": 224, "patch_size": 56, "projection_dim": 64,
    },
    "location_encoder": {"dim": 64, "encoded_size": 16, "input_size": 2, "sigma": [1, 16, 256], "hidden": 32},
    "env_encoder": {"depth": 4, "num_classes": 0, "num_filts": 64, "num_inputs": 20},
    "audio_encoder": FULL["audio_encoder"] | {
        "projection_dim": 64, "depths": [1, 1, 1, 1], "num_attention_heads": [1, 2, 4, 8],
        "patch_embeds_hidden_size": 16, "hidden_size": 128,
    },
}  # fmt: skip
"""The same architectures in miniature, to try a recipe on."""


def create_published(
    out: Path, modalities: Sequence[str], seed: int = 0, configs: Mapping[str, dict] = FULL
) -> Checkpoints:
    """Random weights in the published layout below `out`: where training from nothing starts.

    `configs` by part, see `FULL`. Image and text share a file, so either brings both. Raises ModelError.
    """
    torch.manual_seed(seed)
    for part in dict.fromkeys(part_of(m) for m in modalities):
        config = dict(configs[part.key])
        hidden = config.pop("hidden", None)
        sizes = SimpleNamespace(shapes=_sizes(part, config, hidden), path=out / part.name)
        plan = blueprint(part.key, config, sizes, f"configuration of {part.name}", device="cpu")
        tensors = {}
        if part.key == "clip":
            tensors["logit_scale"] = torch.tensor(-math.log(0.07))
        for modality, tower in plan.towers.items():
            state = dict(tower.state_dict())
            for k, sigma in enumerate(config.get("sigma", ()) if part.key == "location_encoder" else ()):
                state[f"LocEnc{k}.capsule.0.b"] = sigma * torch.randn(state[f"LocEnc{k}.capsule.0.b"].shape)
            for target, source in plan.sources[modality].items():
                tensors.update(source.split(state[target]))
        folder = out / part.name
        _save(tensors, folder / part.weights[0])
        (folder / part.config).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    return Checkpoints.open(out)


def _sizes(part: Part, config: dict, hidden: int | None) -> dict[str, tuple[int, ...]]:
    """Shapes that the blueprint takes from the weights, where these do not exist yet."""
    if part.key == "location_encoder":
        capsules = {f"LocEnc{k}.capsule.0.b": (config["encoded_size"], 2) for k in range(len(config["sigma"]))}
        first = {"LocEnc0.capsule.1.weight": (hidden, 2 * config["encoded_size"])}
        return capsules | first | {"LocEnc0.head.0.weight": (config["dim"], hidden)}
    if part.key == "env_encoder":
        blocks = {f"feats.{2 + k}.w1.weight": () for k in range(config["depth"])}
        return blocks | {"feats.0.weight": (config["num_filts"], config["num_inputs"])}
    return {}


def _save(tensors: Mapping[str, Tensor], path: Path) -> None:
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    # transformers asks for this mark.
    save_file({k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}, path, {"format": "pt"})
