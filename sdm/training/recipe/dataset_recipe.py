"""A recipe that trains the published architecture on a published dataset: `[dataset]` instead of `[data]`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sdm.errors import RequestError
from sdm.training.recipe.reading import RecipeFile
from sdm.training.recipe.sections import BindingSettings, TrainerSettings

DATASETS = ("taxabench", "isatnat", "isoundnat")


@dataclass(frozen=True)
class DatasetSettings:
    """[dataset]: the observations, and the initial weights."""

    kind: str
    """taxabench, isatnat or isoundnat, laid out as published; see `sdm.evaluation.datasets`."""
    path: str
    initial: str
    """Folder of checkpoints; random, or random-small for a miniature to try a recipe on."""
    split: str = "train"
    modalities: tuple[str, ...] = ()
    """Besides text; () is all that the dataset has."""
    skip_missing: bool = False
    """Leave out observations whose files are missing."""


@dataclass(frozen=True)
class DatasetOptimiserSettings(TrainerSettings):
    """The trainer's settings and the rates; the defaults are those of TaxaBind's own configurations."""

    schedule: str = "cosine-restarts"
    restart_every: int = 2000
    """Steps; TaxaBind restarts every 20 epochs."""
    batch: int = 512
    eps: float = 1e-6
    ema: float = 0.0
    learning_rate: float = 1e-4
    weight_decay: float = 0.01


@dataclass(frozen=True)
class DatasetRecipe:
    """A recipe with [dataset], checked."""

    name: str
    dataset: DatasetSettings
    path: Path
    binding: BindingSettings = field(default_factory=lambda: BindingSettings("image"))
    optimiser: DatasetOptimiserSettings = DatasetOptimiserSettings()

    @classmethod
    def read(cls, path: str | Path) -> DatasetRecipe | None:
        """The recipe, or None for a file without [dataset], which is for `Recipe.read`. Raises RequestError."""
        file = RecipeFile(path)
        try:
            raw = file.load()
        except RequestError:
            return None  # `Recipe.read` says what is wrong
        if "dataset" not in raw:
            return None
        kinds: dict[str, type] = {
            "dataset": DatasetSettings,
            "binding": BindingSettings,
            "optimiser": DatasetOptimiserSettings,
        }
        file.refuse_unknown("", raw, {"name", "title", "version", "licence", *kinds})
        if not isinstance(raw.get("name"), str) or not all(isinstance(raw.get(k, {}), dict) for k in kinds):
            raise RequestError(f"recipe {str(path)!r} needs the text 'name', and tables {', '.join(kinds)}.")
        sections: dict[str, Any] = {k: file.section(f"[{k}]", raw[k], kind) for k, kind in kinds.items() if k in raw}
        recipe = cls(raw["name"], path=file.path, **sections)
        file.check_name(recipe.name)
        file.check_sections(recipe.optimiser, recipe.binding)
        if recipe.dataset.kind not in DATASETS:
            raise file.error(f"dataset {recipe.dataset.kind!r} is none of {', '.join(DATASETS)}.")
        return recipe
