"""Configurations of the published architectures, to create checkpoints with random weights."""

from __future__ import annotations

from typing import Any


def _configs(clip: dict[str, Any], satellite: dict, location: dict, environment: dict, audio: dict) -> dict[str, dict]:
    """By part; each argument holds the sizes of one, to which the fixed settings are added."""
    text = {"context_length": 77, "vocab_size": 49408, **clip["text_cfg"]}
    vision = {"image_size": 224, **clip["vision_cfg"]}
    return {
        "clip": {
            "model_cfg": {"embed_dim": clip["embed_dim"], "vision_cfg": vision, "text_cfg": text},
            "preprocess_cfg": {},
        },
        "sat_encoder": {
            "model_type": "clip_vision_model",
            **satellite,
            "image_size": 224,
            "hidden_act": "quick_gelu",
        },
        "location_encoder": {"input_size": 2, "sigma": [1, 16, 256], **location},
        "env_encoder": {"depth": 4, "num_classes": 0, "num_inputs": 20, **environment},
        "audio_encoder": {"model_type": "clap_audio_model", "enable_fusion": True, **audio},
    }


FULL = _configs(
    clip={
        "embed_dim": 512,
        "vision_cfg": {"layers": 12, "width": 768, "patch_size": 16},
        "text_cfg": {"width": 512, "heads": 8, "layers": 12},
    },
    satellite={
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "patch_size": 16,
        "projection_dim": 512,
    },
    location={"dim": 512, "encoded_size": 256, "hidden": 1024},
    environment={"num_filts": 512},
    audio={"projection_dim": 512},
)
"""Configurations of the published sizes, by part."""
SMALL = _configs(
    clip={
        "embed_dim": 64,
        "vision_cfg": {"layers": 2, "width": 128, "patch_size": 56},
        "text_cfg": {"width": 64, "heads": 4, "layers": 2},
    },
    satellite={
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "patch_size": 56,
        "projection_dim": 64,
    },
    location={"dim": 64, "encoded_size": 16, "hidden": 32},
    environment={"num_filts": 64},
    audio={
        "projection_dim": 64,
        "depths": [1, 1, 1, 1],
        "num_attention_heads": [1, 2, 4, 8],
        "patch_embeds_hidden_size": 16,
        "hidden_size": 128,
    },
)
"""The same architectures in miniature, to try a recipe on."""
