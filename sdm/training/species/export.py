"""Writing fitted species as a model folder that shares the encoders of another model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from sdm._version import __version__
from sdm.models.bundled import BundledModel
from sdm.models.config import FORMAT
from sdm.models.folder import write_folder
from sdm.models.shared import encoders_digest
from sdm.training.recipe.species_recipe import SpeciesRecipe

LEVELS = 127
WEIGHT, SCALE = "text.embedding.weight", "text.embedding.scale"


def quantised(table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(V, dim) int8 and (V,) float32 of a table (V, dim): a row is its whole numbers times its scale."""
    scale = np.maximum(np.abs(table).max(axis=1), 1e-12) / LEVELS
    return np.round(table / scale[:, None]).astype(np.int8), scale.astype(np.float32)


def write_model(
    recipe: SpeciesRecipe,
    model: BundledModel,
    out: Path,
    table: np.ndarray,
    vocabulary: list[str],
    calibration: Mapping[str, tuple[float, float]],
) -> None:
    """Write `config.json`, `model.safetensors` and `vocabulary.txt`, each in one step."""
    from safetensors.numpy import save

    weight, scale = quantised(table)
    config = {
        "format": FORMAT,
        "name": recipe.name,
        "title": recipe.title,
        "version": recipe.version,
        "licence": recipe.licence,
        "made_with": f"taxabind-map {__version__}",
        "encoders": {"model": model.name, "digest": encoders_digest(model.folder, model.config)},
        "groups": {},
        "calibration": {key: {"scale": s, "bias": b} for key, (s, b) in calibration.items()},
        **({"ranges": recipe.ranges} if recipe.ranges else {}),
    }
    write_folder(out, config, save({WEIGHT: weight, SCALE: scale}), vocabulary)


def read_table(folder: Path) -> tuple[np.ndarray, list[str]]:
    """The table (V, dim) float32 of a model folder written here, as it is after rounding, and its vocabulary."""
    from safetensors.numpy import load_file

    tensors = load_file(folder / "model.safetensors")
    vocabulary = [t for t in (folder / "vocabulary.txt").read_text(encoding="utf-8").split("\n") if t]
    return tensors[WEIGHT].astype(np.float32) * tensors[SCALE][:, None], vocabulary
