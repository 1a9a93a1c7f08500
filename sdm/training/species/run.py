"""From a species recipe to a model folder: develop, fit everything, fit the known ranges, export.

Each group of species is fitted by itself; what was fitted stays in the run folder and is not fitted again.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix

from sdm.errors import ModelError, RequestError
from sdm.files.atomic import check_folder
from sdm.files.paths import replace_file
from sdm.models.bundled import BundledModel
from sdm.models.config import KNOWN_RANGES, all_subsets, calibration_key
from sdm.models.known_ranges import pack_known_ranges
from sdm.names import TaxonTable
from sdm.request.choices import MODALITIES
from sdm.training.data.splits import in_blocks
from sdm.training.measures.range_area import RangeScore, by_size
from sdm.training.recipe.species_recipe import SpeciesRecipe
from sdm.training.runs.folder import Log, describe_run, logger, make_folder, read_metrics, write_json
from sdm.training.species.export import read_table, write_model
from sdm.training.species.fit import Labels, Lineages, fit_vectors
from sdm.training.species.groups import AreaGroup, GridGroup, open_groups
from sdm.training.species.held_areas import held_out_areas, taught_by_lists
from sdm.training.species.held_out import HeldOut
from sdm.training.species.ranges import fit_known_range
from sdm.training.species.world import World, make_world

STAGES = ("develop", "ship", "ranges")
AT_ONCE = 64
"""Species compared with all places at once."""
Calibrations = dict[str, tuple[float, float]]
Group = GridGroup | AreaGroup


@dataclass(frozen=True)
class _Task:
    """What all stages need."""

    recipe: SpeciesRecipe
    model: BundledModel
    groups: list[Group]
    world: World
    folder: Path
    """The run folder."""
    log: Log

    def lineages(self, group: Group) -> Lineages:
        """The rows of a group."""
        return Lineages.of([taxon.lineage for taxon in group.taxa])

    def fit(self, group: Group, places: np.ndarray, share: csr_matrix) -> np.ndarray:
        """The table (V, dim) of a group, fitted at some places (N,) of the world."""
        lineages, settings = self.lineages(group), self.recipe.fit
        if isinstance(group, AreaGroup):
            settings = replace(settings, steps=group.settings.fit_steps)
        labels = Labels(share, self.world.area).take(places)
        what = (self.model.digest, asdict(settings), lineages.vocabulary, labels.share, self.world.lonlat[places])

        def fit() -> np.ndarray:
            self.log(f"fit of {group.name}: {len(lineages.rows)} species, {len(places)} places")
            start = self.model.calibration(MODALITIES)
            return fit_vectors(self.world.combined()[places], labels, lineages, start, settings, self.log)

        return self.kept(f"fit-{group.name}", what, lambda: {"table": fit()})["table"]

    def share(self, group: Group, without: np.ndarray | None = None) -> csr_matrix:
        """The labels (P, S) of a group, lists of areas less those `without`, (A,) bool."""
        if isinstance(group, GridGroup):
            return group.share(self.world)

        def found() -> dict[str, np.ndarray]:
            share = group.share(self.world, without)
            return {"indptr": share.indptr, "indices": share.indices, "data": share.data}

        gone = [] if without is None else without.tolist()
        what = (self.model.digest, group.lists.listed, self.world.lonlat, gone, asdict(group.settings))
        arrays = self.kept(f"share-{group.name}", what, found)
        shape = (len(self.world.cell), len(group.species))
        return csr_matrix((arrays["data"], arrays["indices"], arrays["indptr"]), shape=shape)

    def kept(
        self, name: str, what: tuple[Any, ...], make: Callable[[], dict[str, np.ndarray]]
    ) -> dict[str, np.ndarray]:
        """Arrays that depend on `what` and nothing else: from the run folder, or made and kept there."""
        path = self.folder / f"{name}-{_digest_of(*what)}.npz"
        if not path.is_file():
            buffer = io.BytesIO()
            arrays: dict[str, Any] = make()
            np.savez(buffer, **arrays)
            replace_file(path, buffer.getvalue())
        with np.load(path, allow_pickle=False) as file:
            return {key: file[key] for key in file.files}


def run_species_recipe(
    recipe: SpeciesRecipe, out: Path, run_folder: Path, stages: tuple[str, ...], *, restart: bool = False
) -> dict[str, Any]:
    """Run stages of a recipe: "develop", "ship" (which ends with the known ranges), "ranges" (only these, again).

    `out` is the model folder, which holds `taxa.csv`; `run_folder` gets the recipe, log, metrics, the embeddings of
    the places and what was fitted, which `restart` does away with. Returns the metrics. Raises RequestError for an
    unknown stage and for shipping without a calibration, ModelError for a folder without names.
    """
    if not stages or set(stages) - set(STAGES):
        raise RequestError(f"stage {','.join(stages)!r} is not known for such a recipe; choose of {', '.join(STAGES)}.")
    if not (out / "taxa.csv").is_file():
        raise ModelError(f"model folder {str(out)!r} has no taxa.csv, the names of the species.")
    for folder in (run_folder, out):
        check_folder(folder)
    metrics_file = run_folder / "metrics.json"
    metrics = {} if restart else read_metrics(metrics_file)
    if "develop" not in stages and "calibration" not in metrics:
        raise RequestError(f"run folder {str(run_folder)!r} has no calibration; run the stage develop first.")
    log = logger(run_folder / "log.txt", quiet=False)
    for path in [*run_folder.glob("fit-*.npz"), *run_folder.glob("share-*.npz")] if restart else []:
        path.unlink()
    task = _prepare(recipe, out, run_folder, log)
    identity = {"recipe": _digest(recipe), "data": _digest_of(task.model.digest, task.world.lonlat)}
    describe_run(recipe.path, asdict(recipe), run_folder, identity, "cpu")
    metrics["run"] = identity
    if "develop" in stages:
        _develop(task, metrics)
        write_json(metrics, metrics_file)
    if "ship" in stages:
        places = np.arange(len(task.world.cell))
        tables = [(task.lineages(g), task.fit(g, places, task.share(g))) for g in task.groups if g.shipped]
        vocabulary = [token for lineages, _ in tables for token in lineages.vocabulary]
        if len(set(vocabulary)) < len(vocabulary):
            raise ModelError("two groups share a genus or a higher rank; give them one source.")
        write_model(recipe, task.model, out, np.concatenate([t for _, t in tables]), vocabulary, metrics["calibration"])
        metrics["rounding"] = {
            g.name: _rounding(task, g, lineages, t, out, metrics["calibration"])
            for g, (lineages, t) in zip((g for g in task.groups if g.shipped), tables, strict=True)
        }
    if "ship" in stages or "ranges" in stages:
        metrics["known_ranges"] = _fit_ranges(task, out, metrics["calibration"])
        write_json(metrics, metrics_file)
    return metrics


def _prepare(recipe: SpeciesRecipe, out: Path, run_folder: Path, log: Log) -> _Task:
    model = BundledModel.open(recipe.encoders)
    families = {taxon.genus: taxon.family for taxon in model.taxa.by_name.values()}
    groups = open_groups(recipe.sources, TaxonTable.load(out), families, log)
    make_folder(run_folder)
    needed = np.unique(np.concatenate([group.needed for group in groups]))
    more = np.concatenate([group.points for group in groups])
    world = make_world(model, groups[0].grid, recipe.fit.points, needed, more, run_folder)
    log(f"{len(world.cell)} places in {len(np.unique(world.cell))} cells")
    return _Task(recipe, model, groups, world, run_folder, log)


def _develop(task: _Task, metrics: dict[str, Any]) -> None:
    """Fit each group without what is held out, and score it: fills "held_out", and "calibration" from the first grid.

    A group that was scored with these data and settings is not scored again.
    """
    recipe, scored = task.recipe, metrics.setdefault("held_out", {})
    calibration: Calibrations = dict(metrics.get("calibration", {}))
    for group in task.groups:
        settings = (asdict(recipe.fit), asdict(recipe.evaluation), asdict(group.settings))
        identity = _digest_of(task.model.digest, *settings, list(group.species), task.world.lonlat)
        if scored.get(group.name, {}).get("identity") == identity:
            task.log(f"{group.name}: scored before")
            continue
        found: dict[str, Any] = {"identity": identity}
        if isinstance(group, AreaGroup):
            found |= _develop_areas(task, group)
        else:
            calibration = {} if group is task.groups[0] else calibration
            for split in (s for s in recipe.evaluation.splits if s != "areas"):
                found[split] = _develop_grid(task, group, split, calibration)
        scored[group.name], metrics["calibration"] = found, calibration


def _develop_grid(task: _Task, group: GridGroup, split: str, calibration: Calibrations) -> dict[str, Any]:
    """Scores of a grid in held-out blocks or cells; fills the calibration where it is empty."""
    e, world = task.recipe.evaluation, task.world
    held, firsts = _held_out(task, split), world.firsts()
    table = task.fit(group, np.flatnonzero(~held), task.share(group))
    vectors = task.lineages(group).vectors(table)
    scored = firsts[held[firsts]]
    cells = world.cell[scored]
    fold = in_blocks(world.grid.centres(cells), e.block_degrees, 0.5, e.seed + 1)
    tested = HeldOut(group, cells, world.cell[firsts])
    found: dict[str, Any] = {}
    for subset in all_subsets() if not calibration else [MODALITIES]:
        key, places = calibration_key(subset), world.combined(subset)[scored]
        fitted, halves = tested.calibrate(places, vectors, fold, task.model.calibration(subset))
        calibration.setdefault(key, fitted)
        found[key] = tested.scores(places, vectors, fold, halves, e.min_cells)
        task.log(f"held-out {split}, {group.name}, {key}: {_text(found[key])}")
    scale = calibration[calibration_key(MODALITIES)][0]
    found["by_size"] = tested.by_size(world.combined()[scored], vectors, scale)
    for size, of in found["by_size"].items():
        task.log(f"held-out {split}, {group.name}, {size} cells: {_text(of)}")
    return found


def _develop_areas(task: _Task, group: AreaGroup) -> dict[str, Any]:
    """Scores of lists of areas: areas held out, and species of known ranges as if only their lists were known."""
    e, world = task.recipe.evaluation, task.world
    found = {"as_lists": taught_by_lists(group, world, e.seed)}
    if "areas" in e.splits:
        without = np.random.default_rng(e.seed).random(len(group.lists.areas)) < e.held_out
        area = group.area_of(world)
        held = (area >= 0) & without[area]
        table = task.fit(group, np.flatnonzero(~held), task.share(group, without))
        vectors = task.lineages(group).vectors(table)
        found["areas"] = held_out_areas(group.lists.listed, without, area, world.combined(), vectors)
    for how, scores in found.items():
        task.log(f"held-out {group.name}, {how}: {_text(scores)}")
    return found


def _held_out(task: _Task, split: str) -> np.ndarray:
    """(P,) bool: the places of the cells that are held out."""
    e = task.recipe.evaluation
    if split == "blocks":
        return in_blocks(task.world.grid.centres(task.world.cell), e.block_degrees, e.held_out, e.seed)
    chosen = np.random.default_rng(e.seed).random(int(task.world.cell.max()) + 1) < e.held_out
    return chosen[task.world.cell]


def _rounding(
    task: _Task, group: Group, lineages: Lineages, table: np.ndarray, out: Path, calibration: Calibrations
) -> dict[str, float]:
    """What the bytes of the model in a folder cost: mean and most of the change of a logit, at one place per cell."""
    written, vocabulary = read_table(out)
    row = {token: k for k, token in enumerate(vocabulary)}
    rounded = lineages.vectors(written[[row[token] for token in lineages.vocabulary]])
    change = calibration[calibration_key(MODALITIES)][0] * (rounded - lineages.vectors(table))
    places = task.world.combined()[task.world.firsts()]
    total = most = 0.0
    for k in range(0, len(change), AT_ONCE):
        part = np.abs(change[k : k + AT_ONCE] @ places.T)
        total, most = total + float(part.sum()), max(most, float(part.max()))
    found = {"mean": total / (len(change) * len(places)), "most": most}
    task.log(f"rounding of logits to bytes, {group.name}: {_text(found)}")
    return found


def _fit_ranges(task: _Task, out: Path, calibration: Calibrations) -> dict[str, Any]:
    """Fit and write the table of known ranges of the model in a folder; returns its measures by size of range."""
    table, vocabulary = read_table(out)
    row = {token: k for k, token in enumerate(vocabulary)}
    scale, bias = calibration[calibration_key(MODALITIES)]
    places, world = task.world.combined(), task.world
    known, metrics = {}, {}
    for group in (g for g in task.groups if g.shipped):
        lineages = task.lineages(group)
        vectors = lineages.vectors(table[[row[token] for token in lineages.vocabulary]])
        columns = task.share(group).tocsc()
        alone: dict[str, RangeScore] = {}
        after: dict[str, RangeScore] = {}
        for k, name in enumerate(group.species):
            if k % AT_ONCE == 0:
                logits = (scale * vectors[k : k + AT_ONCE]) @ places.T
                logits += bias
            share = np.zeros(len(places), np.float32)
            some = slice(*columns.indptr[k : k + 2])
            share[columns.indices[some]] = columns.data[some] / 255
            known[name], alone[name], after[name] = fit_known_range(
                group.part(k), logits[k % AT_ONCE], share, world.lonlat, world.area
            )
        sizes = dict(zip(group.species, group.sizes().astype(float).tolist(), strict=True))
        metrics[group.name] = {"model": by_size(alone, sizes), "with_known_ranges": by_size(after, sizes)}
        for how, classes in metrics[group.name].items():
            for label, measures in classes.items():
                task.log(f"ranges {group.name}, {how}, {label}: {_text(measures)}")
    replace_file(out / KNOWN_RANGES, pack_known_ranges(known, vocabulary))
    return metrics


def _text(found: dict[str, Any]) -> str:
    """Numbers in one line."""
    return ", ".join(
        f"{key} {value:.4f}" if isinstance(value, float) else f"{key} {value}"
        for key, value in found.items()
        if isinstance(value, int | float)
    )


def _digest(recipe: SpeciesRecipe) -> str:
    """Digest of the settings that affect the result."""
    described = ("path", "title", "licence", "version", "ranges")
    return _digest_of({k: v for k, v in asdict(recipe).items() if k not in described})


def _digest_of(*values: Any) -> str:
    """First 16 hex digits of the sha256 of arrays, sparse matrices and what JSON can say."""
    digest = hashlib.sha256()
    for value in values:
        if isinstance(value, csr_matrix):
            value.sort_indices()
            parts = [value.indptr, value.indices, value.data]
        else:
            parts = [value] if isinstance(value, np.ndarray) else []
        for part in parts:
            digest.update(np.ascontiguousarray(part).tobytes())
        if not parts:
            digest.update(json.dumps(value, sort_keys=True).encode())
    return digest.hexdigest()[:16]
