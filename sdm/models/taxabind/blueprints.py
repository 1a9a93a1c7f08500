"""The towers that a published config and the shapes in its weight file describe."""

from __future__ import annotations

from typing import Any

import torch

from sdm.errors import ModelError
from sdm.models.encoders.clip_text import TextTower
from sdm.models.encoders.geoclip import GeoCLIPLocation
from sdm.models.encoders.residual import ResidualNet
from sdm.models.encoders.vit import VisionTower
from sdm.models.taxabind.weights import Blueprint, Shapes, Source

MAX_SIZE, MAX_LAYERS = 65_536, 64


def blueprint(key: str, config: dict | None, file: Shapes, source: str, device: str = "meta") -> Blueprint:
    """The blueprint of a part.

    Parameters
    ----------
    key : its key in the configuration, such as "sat_encoder".
    config : its own `config.json`; None: it has none.
    file : the shapes in its weight file.
    source : path of the config, for messages.
    device : "meta": modules without memory, until a file has been seen to fit; "cpu": with random weights.

    Raises
    ------
    ModelError : for a setting of another architecture.
    """
    make = {
        "clip": _clip,
        "sat_encoder": _satellite,
        "location_encoder": _location,
        "env_encoder": _environment,
        "audio_encoder": _audio,
    }[key]
    with torch.device(device):
        return make(Settings(config or {}, source), file)


class Settings:
    """A config with checks."""

    def __init__(self, values: dict, source: str) -> None:
        self.values, self.source = values, source

    def section(self, key: str) -> Settings:
        """A nested object, which must be there."""
        value = self.values.get(key)
        if not isinstance(value, dict):
            raise ModelError(f"{self.source}: {key} is missing.")
        return Settings(value, self.source)

    def size(self, key: str, default: int | None = None, most: int = MAX_SIZE) -> int:
        """A whole number from 1 to `most`."""
        value = self.values.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= most:
            raise ModelError(f"{self.source}: {key} is {str(value)[:60]}, not a whole number from 1 to {most}.")
        return value

    def require(self, key: str, *allowed: Any) -> Any:
        """One of the allowed values; the first of them stands for a missing entry."""
        value = self.values.get(key, allowed[0])
        if value not in allowed:
            raise ModelError(f"{self.source}: {key} is {str(value)[:60]!r}; only {allowed[0]!r} is supported.")
        return value

    def only(self, *known: str) -> None:
        """Raise ModelError for a key that would change the architecture in an unknown way."""
        # A feature that is switched off changes nothing.
        if unknown := sorted(k for k, v in self.values.items() if k not in known and v not in (None, False)):
            raise ModelError(f"{self.source}: {str(unknown[0])[:60]!r} is not a setting of the published architecture.")

    def heads(self, width: int, heads: int) -> int:
        """Number of attention heads, which must divide the width."""
        if width % heads:
            raise ModelError(f"{self.source}: a width of {width} cannot be divided among {heads} heads.")
        return heads


def _clip(settings: Settings, file: Shapes) -> Blueprint:
    """open_clip: the vision tower under `visual.`, the text tower at the top level."""
    # open_clip_config.json has the model under "model_cfg", beside "preprocess_cfg".
    model = settings.section("model_cfg")
    model.only("embed_dim", "vision_cfg", "text_cfg", "quick_gelu")
    vision, text = model.section("vision_cfg"), model.section("text_cfg")
    vision.only("image_size", "layers", "width", "patch_size", "head_width", "mlp_ratio")
    text.only("context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio")
    vision.require("mlp_ratio", 4.0)
    text.require("mlp_ratio", 4.0)
    text.require("context_length", 77)
    text.require("vocab_size", 49408)
    dim, quick = model.size("embed_dim"), model.require("quick_gelu", False, True)
    # Absent settings have the defaults of open_clip.
    width, width_text = vision.size("width", 768), text.size("width", 512)
    image, patch = _image(vision)
    towers = {
        "image": VisionTower(
            dim=dim,
            image=image,
            patch=patch,
            width=width,
            layers=vision.size("layers", 12, MAX_LAYERS),
            heads=vision.heads(width, max(1, width // vision.size("head_width", 64))),
            hidden=4 * width,
            quick_gelu=quick,
        ),
        "text": TextTower(
            dim=dim,
            width=width_text,
            layers=text.size("layers", 12, MAX_LAYERS),
            heads=text.heads(width_text, text.size("heads", 8)),
            hidden=4 * width_text,
            quick_gelu=quick,
        ),
    }
    prefix = {"image": "visual.", "text": ""}
    sources = {m: {k: Source((prefix[m] + k,)) for k in tower.state_dict()} for m, tower in towers.items()}
    return Blueprint(towers, sources, {"logit_scale": ()})


def _image(settings: Settings) -> tuple[int, int]:
    """Image and patch size in pixels."""
    image, patch = settings.size("image_size", 224, 4096), settings.size("patch_size", 16, 4096)
    if image % patch:
        raise ModelError(f"{settings.source}: {image} pixels cannot be divided into patches of {patch}.")
    return image, patch


def _satellite(settings: Settings, file: Shapes) -> Blueprint:
    """transformers' CLIPVisionModelWithProjection; absent settings have that library's defaults."""
    settings.require("model_type", "clip_vision_model")
    settings.require("num_channels", 3)
    settings.require("layer_norm_eps", 1e-5)  # the default of torch, which the towers use
    activation = settings.require("hidden_act", "quick_gelu", "gelu")
    width, layers = settings.size("hidden_size", 768), settings.size("num_hidden_layers", 12, MAX_LAYERS)
    # The library's default patch is 32; a published config says 16.
    image, patch = _image(Settings({"patch_size": 32, **settings.values}, settings.source))
    tower = VisionTower(
        dim=settings.size("projection_dim", 512),
        image=image,
        patch=patch,
        width=width,
        layers=layers,
        heads=settings.heads(width, settings.size("num_attention_heads", 12)),
        hidden=settings.size("intermediate_size", 3072),
        quick_gelu=activation == "quick_gelu",
    )
    sources = {
        "class_embedding": Source(("vision_model.embeddings.class_embedding",)),
        "positional_embedding": Source(("vision_model.embeddings.position_embedding.weight",)),
        "conv1.weight": Source(("vision_model.embeddings.patch_embedding.weight",)),
        "proj": Source(("visual_projection.weight",), transposed=True),
    }
    for kind in ("weight", "bias"):
        sources[f"ln_pre.{kind}"] = Source((f"vision_model.pre_layrnorm.{kind}",))  # misspelt there
        sources[f"ln_post.{kind}"] = Source((f"vision_model.post_layernorm.{kind}",))
        for n in range(layers):
            ours, theirs = f"transformer.resblocks.{n}", f"vision_model.encoder.layers.{n}"
            sources[f"{ours}.attn.in_proj_{kind}"] = Source(
                tuple(f"{theirs}.self_attn.{part}_proj.{kind}" for part in "qkv")
            )
            for a, b in (
                ("attn.out_proj", "self_attn.out_proj"),
                ("ln_1", "layer_norm1"),
                ("ln_2", "layer_norm2"),
                ("mlp.c_fc", "mlp.fc1"),
                ("mlp.c_proj", "mlp.fc2"),
            ):
                sources[f"{ours}.{a}.{kind}"] = Source((f"{theirs}.{b}.{kind}",))
    # A counter 0, 1, 2 ... that older releases of the library wrote along.
    return Blueprint({"satellite": tower}, {"satellite": sources}, {}, frozenset({_POSITION_IDS}))


_POSITION_IDS = "vision_model.embeddings.position_ids"


def _same_names(modality: str, tower: torch.nn.Module) -> Blueprint:
    return Blueprint({modality: tower}, {modality: {k: Source((k,)) for k in tower.state_dict()}}, {})


def _dimension(file: Shapes, key: str, axis: int) -> int:
    """A size that is only known from the weights."""
    shape = file.shapes.get(key, ())
    if len(shape) <= axis or not 0 < shape[axis] <= MAX_SIZE:
        raise ModelError(
            f"{str(file.path)!r} does not have the published layout: {key} is missing or of the shape {shape}."
        )
    return shape[axis]


def _location(settings: Settings, file: Shapes) -> Blueprint:
    """GeoCLIP: its sizes are in the weights, the config repeats some of them."""
    settings.require("input_size", 2)
    features = _dimension(file, "LocEnc0.capsule.0.b", 0)
    dim = _dimension(file, "LocEnc0.head.0.weight", 0)
    count = sum(1 for key in file.shapes if key.endswith(".capsule.0.b"))
    sigmas = settings.values.get("sigma", [1.0] * count)
    if not isinstance(sigmas, list) or len(sigmas) != count or not 0 < count <= MAX_LAYERS:
        raise ModelError(f"{settings.source}: {count} capsules are in the weights, sigma is {str(sigmas)[:60]}.")
    settings.require("encoded_size", features)
    settings.require("dim", dim)
    hidden = _dimension(file, "LocEnc0.capsule.1.weight", 0)
    # The frequencies are stored, so the sigmas they were drawn with no longer matter.
    return _same_names("location", GeoCLIPLocation(dim, features, hidden, [1.0] * count))


def _environment(settings: Settings, file: Shapes) -> Blueprint:
    """SINR's network: its sizes are in the weights, the config repeats them."""
    settings.require("num_classes", 0)
    width, inputs = (_dimension(file, "feats.0.weight", axis) for axis in (0, 1))
    depth = sum(1 for key in file.shapes if key.startswith("feats.") and key.endswith(".w1.weight"))
    if not depth <= MAX_LAYERS:
        raise ModelError(f"{str(file.path)!r} has {depth} layers; at most {MAX_LAYERS} are read.")
    settings.require("num_filts", width)
    settings.require("num_inputs", inputs)
    settings.require("depth", depth)
    return _same_names("environment", ResidualNet(inputs, width, depth))


_CLAP_SIZES = {
    "window_size": 8,
    "num_mel_bins": 64,
    "spec_size": 256,
    "hidden_size": 768,
    "projection_dim": 512,
    "patch_embeds_hidden_size": 96,
    "num_hidden_layers": 4,
    "aff_block_r": 4,
    "patch_size": 4,
    "patch_embed_input_channels": 1,
    "num_classes": 527,
}
_CLAP_FIXED = {
    "model_type": "clap_audio_model",
    "hidden_act": "gelu",
    "enable_fusion": True,
    "fusion_type": None,
    "flatten_patch_embeds": True,
    "enable_patch_layer_norm": True,
    "qkv_bias": True,
    "mlp_ratio": 4.0,
    "projection_hidden_act": "relu",
    "layer_norm_eps": 1e-5,
}


def _audio(settings: Settings, file: Shapes) -> Blueprint:
    """transformers' ClapAudioModelWithProjection with fusion; its names as they are."""
    from sdm.models.encoders import clap

    if "enable_fusion" not in settings.values:
        raise ModelError(f"{settings.source}: enable_fusion is missing; the published encoder has it on.")
    given: dict[str, Any] = {key: settings.size(key, default, 4096) for key, default in _CLAP_SIZES.items()}
    given |= {key: settings.require(key, value) for key, value in _CLAP_FIXED.items()}
    given.pop("model_type")
    for key, default in (("depths", [2, 2, 6, 2]), ("num_attention_heads", [4, 8, 16, 32]), ("patch_stride", [4, 4])):
        value = settings.values.get(key, default)
        if not isinstance(value, list) or not 0 < len(value) <= 8:
            raise ModelError(f"{settings.source}: {key} is {str(value)[:60]}, not a short list of whole numbers.")
        given[key] = [Settings({key: v}, settings.source).size(key, most=MAX_LAYERS) for v in value]
    return _same_names("audio", clap.build(given))
