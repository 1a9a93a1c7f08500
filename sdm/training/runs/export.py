"""Writing a trained objective as a model folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors.torch import save

from sdm._version import __version__
from sdm.models.config import FORMAT
from sdm.models.folder import write_folder
from sdm.request.choices import MODALITIES
from sdm.training.data.training_set import TrainingSet
from sdm.training.recipe.range_recipe import Recipe
from sdm.training.runs.assessment import Calibration, GroupCalibration, RecipeObjective
from sdm.training.spaces import architecture_config


def export_model(
    recipe: Recipe,
    data: TrainingSet,
    objective: RecipeObjective,
    calibration: Calibration,
    groups_own: GroupCalibration,
    out: Path,
) -> None:
    """Write `config.json`, `model.safetensors` and `vocabulary.txt` into the model folder, each in one step."""
    state = {k: v.detach().cpu().contiguous() for k, v in objective.encoders.state_dict().items()}
    # Half precision, except for tensors that are not weights: the Fourier frequencies, whose error grows with
    # the angle, and the windows over imagery, whose sums must be 1.
    state = {k: v if "frequencies" in k or "windows" in k else v.half() for k, v in state.items()}
    coverage = next((s.coverage for s in data.sources if s.coverage is not None), None)
    config = {
        "format": FORMAT,
        "name": recipe.name,
        "title": recipe.title,
        "version": recipe.version,
        "licence": recipe.licence,
        "made_with": f"taxabind-map {__version__}",
        "domain": [round(float(np.nanmin(data.places.lonlat[:, 1])), 1), 90.0],
        "groups": {g: {"extent": e} | _calibration(groups_own.get(g)) for g, e in data.groups.items()},
        **_calibration(calibration),
        "modalities": list(MODALITIES),
        **({"ranges": recipe.ranges} if recipe.ranges else {}),
        **({"coverage": coverage.encode()} if coverage is not None else {}),
        **architecture_config(recipe, data),
    }
    write_folder(out, config, save(state), data.vocabulary)


def _calibration(calibration: Calibration | None) -> dict[str, dict[str, dict[str, float]]]:
    """The entry of a calibration in `config.json`; empty without one."""
    if calibration is None:
        return {}
    return {"calibration": {k: {"scale": s, "bias": b} for k, (s, b) in calibration.items()}}
