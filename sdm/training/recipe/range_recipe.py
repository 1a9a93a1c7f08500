"""A recipe that learns from ranges, records and other models."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from sdm.errors import RequestError
from sdm.request.choices import MODALITIES, ORIGINS
from sdm.training.recipe.reading import RecipeFile
from sdm.training.recipe.sections import (
    ENCODER_SIZES,
    Architecture,
    BindingSettings,
    EvaluationSettings,
    ObjectiveSettings,
    OptimiserSettings,
    check_split,
)
from sdm.training.recipe.sources import (
    BACKGROUNDS,
    SOURCE_KINDS,
    Data,
    OccurrencesSettings,
    RangesSettings,
    SourceSettings,
)

TEXT_KEYS = ("name", "title", "version", "licence")
"""Required at the top of a recipe."""


@dataclass(frozen=True)
class Recipe:
    """One recipe file, checked."""

    name: str
    title: str
    version: str
    licence: str
    data: Data
    architecture: Architecture
    objective: ObjectiveSettings
    optimiser: OptimiserSettings
    evaluation: EvaluationSettings
    path: Path
    binding: BindingSettings | None = None
    """[binding]: pairs of modalities instead of the range objective."""
    ranges: str = ""
    """What the range of a species means in this model, a clause for its users; empty: maps of 96 km cells."""

    @classmethod
    def read(cls, path: str | Path) -> Recipe:
        """Read and check a recipe. Raises RequestError naming the key that is wrong, and those known."""
        file = RecipeFile(path)
        raw = file.load()
        sections: dict[str, type] = {
            "architecture": Architecture,
            "objective": ObjectiveSettings,
            "optimiser": OptimiserSettings,
            "evaluation": EvaluationSettings,
        }
        if "binding" in raw:
            sections["binding"] = BindingSettings
        file.refuse_unknown("", raw, {*TEXT_KEYS, "ranges", "data", "binding", *sections})
        values: dict[str, Any] = {"path": file.path, **_texts(file, raw)}
        values["ranges"] = file.typed("the top ranges", raw.get("ranges", ""), str)
        values["data"] = Data(_sources(file, file.table("data", raw.get("data", {}))))
        for key, kind in sections.items():
            values[key] = file.section(f"[{key}]", file.table(key, raw.get(key, {})), kind)
        sizes = {part: _encoder_sizes(file, part, getattr(values["architecture"], part)) for part in ENCODER_SIZES}
        values["architecture"] = replace(values["architecture"], **sizes)
        recipe = cls(**values)
        _check_objective(file, recipe.objective)
        file.check_sections(recipe.optimiser, recipe.binding)
        with file.in_section("evaluation"):
            check_split(recipe.evaluation.split, recipe.evaluation.continents, recipe.evaluation.climate)
        _check_sources(file, recipe)
        return recipe


def _texts(file: RecipeFile, raw: dict[str, Any]) -> dict[str, str]:
    values = {}
    for key in TEXT_KEYS:
        if not isinstance(raw.get(key), str):
            raise RequestError(f"recipe {str(file.path)!r} needs the text {key!r} at its top.")
        values[key] = raw[key]
    file.check_name(values["name"])
    if not "".join(values.values()).isprintable():
        raise file.error("title, version and licence must each be one line.")
    return values


def _encoder_sizes(file: RecipeFile, part: str, raw: dict[str, Any]) -> dict[str, Any]:
    """A table of [architecture], checked and completed; keys that not every model has are only there if given."""
    sizes = asdict(file.section(f"[architecture] {part}", raw, ENCODER_SIZES[part]))
    lists = {k: list(v) if isinstance(v, tuple) else v for k, v in sizes.items()}
    return {k: v for k, v in lists.items() if k in raw or k not in ("season", "around_km")}


def _sources(file: RecipeFile, raw: dict[str, Any]) -> tuple[SourceSettings, ...]:
    file.refuse_unknown("[data]", raw, {"source"})
    entries = raw.get("source", [])
    if not isinstance(entries, list) or not entries or not all(isinstance(e, dict) for e in entries):
        raise RequestError(f"recipe {str(file.path)!r} needs at least one [[data.source]] with a kind and a path.")
    sources: list[SourceSettings] = []
    for number, entry in enumerate(entries, 1):
        place = f"[[data.source]] number {number}"
        kind = SOURCE_KINDS.get(str(entry.get("kind")))
        if kind is None:
            raise file.error(f"{place} has the kind {entry.get('kind')!r}; known: {', '.join(SOURCE_KINDS)}.")
        values = {"name": kind.kind, **{k: v for k, v in entry.items() if k != "kind"}}
        source = file.section(f"{place} ({kind.kind})", values, kind)
        if not source.name.strip() or not source.name.isprintable():
            raise file.error(f"{place} has the name {source.name!r}; give it one of letters.")
        if source.name in [s.name for s in sources]:
            raise file.error(f"two sources are called {source.name!r}; give each of them its own name.")
        sources.append(source)
    return tuple(sources)


def _check_objective(file: RecipeFile, o: ObjectiveSettings) -> None:
    """Raise RequestError for values of [objective] that have the right type but are impossible."""
    for name in (*o.subset_shares, *o.locked):
        known = (*MODALITIES, "text") if name in o.locked else MODALITIES
        parts = name.split("+")
        if set(parts) - set(known) or len(set(parts)) < len(parts):
            raise file.error(f"[objective] names {name!r}; known: {', '.join(known)}, each once.")
    shares = list(o.subset_shares.values())
    if any(not isinstance(v, int | float) or not 0 <= v <= 1 for v in shares) or sum(shares) > 1 + 1e-9:
        raise file.error("[objective] subset_shares must be 0 or more and sum to at most 1.")
    if o.locked and not o.initial:
        raise file.error("[objective] locked encoders need the model to start from, initial = a folder.")
    if set(o.locked) >= {*MODALITIES, "text"}:
        raise file.error("[objective] locks every encoder, so nothing would be trained.")
    if not 0 <= o.pool <= 1 or o.places_per_cell < 1 or (o.pool > 0 and o.places_per_cell < 2):
        raise file.error("[objective] pool must lie in 0..1, and above 0 needs places_per_cell of 2 or more.")
    if o.max_scale < o.start_scale:
        raise file.error(f"[objective] max_scale {o.max_scale:g} is below start_scale.")


def _check_sources(file: RecipeFile, recipe: Recipe) -> None:
    """Raise RequestError for sources that contradict themselves, and for a calibration on none of them."""
    sources = recipe.data.source
    for source in sources:
        if isinstance(source, OccurrencesSettings):
            if source.background not in BACKGROUNDS:
                raise file.error(
                    f"source {source.name!r} has the background {source.background!r}; known: {', '.join(BACKGROUNDS)}."
                )
            if source.background == "file" and not source.presence:
                raise file.error(
                    f"source {source.name!r} with background = 'file' needs presence, the column of 1 and 0."
                )
        if isinstance(source, RangesSettings):
            _check_ranges(file, source)
    if not any(source.weight for source in sources) and not recipe.binding:
        raise file.error("every source has weight 0, so nothing would be learned.")
    names = [s.name for s in sources]
    for name in recipe.evaluation.calibrate:
        if name not in names:
            raise file.error(f"[evaluation] calibrate names {name!r}; the sources are {', '.join(names)}.")


def _check_ranges(file: RecipeFile, source: RangesSettings) -> None:
    if source.origin not in ORIGINS:
        raise file.error(f"source {source.name!r} has the origin {source.origin!r}; known: {', '.join(ORIGINS)}.")
    if source.origin == "all" and not source.corrections:
        raise file.error(f"source {source.name!r} with origin = 'all' needs corrections, which say what is introduced.")
    if source.share and not source.points_per_cell:
        raise file.error(
            f"source {source.name!r} draws no place on land; give points_per_cell 1 or more, "
            "or share = 0 to label the places of others only."
        )
