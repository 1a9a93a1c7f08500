"""A recipe that fits species to the encoders of another model: `encoders = "mammals-trees"` at its top."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from sdm.errors import RequestError
from sdm.training.recipe.reading import RecipeFile

TEXT_KEYS = ("name", "title", "version", "licence", "encoders")
"""Required at the top of a recipe."""
SPLITS = ("blocks", "cells", "areas")


@dataclass(frozen=True)
class GroupSettings:
    """The keys that every `[[source]]` has."""

    kind: ClassVar[str] = ""
    path: str
    """File, relative to the working directory."""
    name: str
    """Its name in tables and logs."""
    group: str
    """Its species: those of this group in taxa.csv."""


@dataclass(frozen=True)
class GridSettings(GroupSettings):
    """Presence in the cells of a grid of longitude and latitude."""

    kind: ClassVar[str] = "grid"
    names_of: str = ""
    """Model whose names its species have: they only teach, and calibrate. Empty: they are species of this model."""


@dataclass(frozen=True)
class AreasSettings(GroupSettings):
    """Lists of areas: countries by ISO 3166-1 alpha-2 code, or what `outlines` has. Grids teach where inside."""

    kind: ClassVar[str] = "areas"
    species: str = "species"
    """Column of the names."""
    area: str = "iso2"
    """Column of the codes."""
    outlines: str = ""
    """GeoParquet of the areas, with their codes in a column of the same name; empty: countries."""
    without: str = ""
    """CSV of species and area: listed areas where a species is not native."""
    atlas: str = ""
    """Folder of PHYLACINE, whose mammals teach, too; empty: none."""
    steps: int = 400
    """Of the network that learns where inside."""
    fit_steps: int = 120
    """Of the fit of the vectors: the probabilities that it learns from are smooth."""


@dataclass(frozen=True)
class FitSettings:
    """[fit]: how vectors are fitted."""

    points: int = 4
    """Places on land in each cell of the grid."""
    steps: int = 300
    batch: int = 1024
    """Places compared with all species in a step."""
    learning_rate: float = 0.02
    species_decay: float = 1e-2
    """Weight of the squared length of a species' row, beside the mean loss of a species."""
    group_decay: float = 1e-3
    """Of a row of a genus or a higher rank."""
    seed: int = 0


@dataclass(frozen=True)
class HeldOutSettings:
    """[evaluation]: what is held out while developing."""

    splits: tuple[str, ...] = ("blocks", "areas")
    """blocks, cells (of grids), areas (of lists): each a fit of its own; probabilities are calibrated on the first."""
    block_degrees: float = 10.0
    held_out: float = 0.2
    """Share of the blocks, or of the cells."""
    seed: int = 7
    min_cells: int = 5
    """Held-out cells where a species must be present to be scored."""


SOURCE_KINDS: dict[str, type[GroupSettings]] = {kind.kind: kind for kind in (GridSettings, AreasSettings)}


@dataclass(frozen=True)
class SpeciesRecipe:
    """One recipe file, checked."""

    name: str
    title: str
    version: str
    licence: str
    encoders: str
    """The model whose encoders of places are used, by name or folder."""
    sources: tuple[GroupSettings, ...]
    fit: FitSettings
    evaluation: HeldOutSettings
    path: Path
    ranges: str = ""
    """What the range of a species means in this model, a clause for its users."""

    @classmethod
    def read(cls, path: str | Path) -> SpeciesRecipe | None:
        """The recipe, or None for a file without `encoders`, which is of another kind. Raises RequestError."""
        file = RecipeFile(path)
        try:
            raw = file.load()
        except RequestError:
            return None  # the reader of the other kinds says what is wrong
        if "encoders" not in raw:
            return None
        file.refuse_unknown("", raw, {*TEXT_KEYS, "ranges", "source", "fit", "evaluation"})
        for key in TEXT_KEYS:
            if not isinstance(raw.get(key), str) or not raw[key].isprintable():
                raise RequestError(f"recipe {str(path)!r} needs the text {key!r} at its top, one line.")
        file.check_name(raw["name"])
        recipe = cls(
            **{key: raw[key] for key in TEXT_KEYS},
            sources=_sources(file, raw.get("source", [])),
            fit=file.section("[fit]", file.table("fit", raw.get("fit", {})), FitSettings),
            evaluation=file.section(
                "[evaluation]", file.table("evaluation", raw.get("evaluation", {})), HeldOutSettings
            ),
            path=file.path,
            ranges=file.typed("the top ranges", raw.get("ranges", ""), str),
        )
        unknown = set(recipe.evaluation.splits) - set(SPLITS)
        if unknown or not recipe.evaluation.splits:
            raise file.error(f"[evaluation] splits must name some of {', '.join(SPLITS)}.")
        return recipe


def _sources(file: RecipeFile, entries: Any) -> tuple[GroupSettings, ...]:
    if not isinstance(entries, list) or not entries or not all(isinstance(e, dict) for e in entries):
        raise file.error("it needs at least one [[source]] with a kind, a path, a name and a group.")
    sources: list[GroupSettings] = []
    for number, entry in enumerate(entries, 1):
        kind = SOURCE_KINDS.get(str(entry.get("kind")))
        if kind is None:
            raise file.error(
                f"[[source]] number {number} has the kind {entry.get('kind')!r}; known: {', '.join(SOURCE_KINDS)}."
            )
        values = {k: v for k, v in entry.items() if k != "kind"}
        sources.append(file.section(f"[[source]] number {number} ({kind.kind})", values, kind))
    if not any(isinstance(source, GridSettings) for source in sources):
        raise file.error(
            "it needs a [[source]] of kind grid, which makes the places and teaches where in areas species live."
        )
    if all(getattr(source, "names_of", "") for source in sources):
        raise file.error("every [[source]] has names_of and only teaches; give one whose species the model has.")
    for key in ("name", "group"):
        each = [getattr(source, key) for source in sources]
        if len(set(each)) < len(each):
            raise file.error(f"two sources have the same {key}; give each of them its own.")
    return tuple(sources)
