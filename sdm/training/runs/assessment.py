"""How good a trained model is at places that were held out, and how well calibrated at places it was trained on."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from sdm.errors import RequestError
from sdm.layers.landmask import LandMask
from sdm.models.config import all_subsets, calibration_key
from sdm.models.score import combine, cosine
from sdm.training.data.held_out import scored_places
from sdm.training.data.sources import Ranges
from sdm.training.data.splits import in_blocks
from sdm.training.data.training_set import TrainingSet
from sdm.training.measures.edges import edge_auc, near_range_edges
from sdm.training.measures.scores import (
    calibration_error,
    cosine_histogram,
    fit_histogram,
    score_predictions,
    sigmoid,
)
from sdm.training.objectives.contrastive_recipe import RecipeContrastiveObjective
from sdm.training.objectives.ranges import RangeObjective
from sdm.training.recipe.range_recipe import Recipe
from sdm.training.runs.folder import Log

RecipeObjective = RangeObjective | RecipeContrastiveObjective
Calibration = dict[str, tuple[float, float]]
"""{set of modalities: (scale, bias)}."""
SAMPLE = 3000
"""Places of training at which the shipped calibration is checked."""
FALLBACK_RANKS = ("genus", "family", "order")
"""By which species are represented that have no vector of their own."""


def assess(
    recipe: Recipe, data: TrainingSet, objective: RecipeObjective, groups: np.ndarray, log: Log
) -> tuple[dict[str, Any], Calibration]:
    """Score every subset of modalities in held-out groups of places, and calibrate it there.

    A source that has places is scored at those, one that has none at all places that it labels. Scale and bias are
    fitted on held-out places, where a model is less confident than on those it was trained on; the probabilities of
    each half of the blocks come from the fit on the other half. Returns ({source: {subset: scores}}, the calibration
    fitted on all held-out places), the latter on the sources that [evaluation] calibrate names, by default the first.
    """
    e = recipe.evaluation
    scored = scored_places(recipe, data, groups)
    embeddings, species = objective.embed_places(scored), objective.embed_species()
    fold = in_blocks(scored.places.lonlat, e.block_degrees, 0.5, e.seed + 1)
    start = _current_calibration(objective)
    rows_by_block = _scored_rows(scored)
    names = {k: scored.blocks[k].name for k in rows_by_block}
    calibrated = set(e.calibrate or (data.sources[0].name,))
    if not calibrated & set(names.values()):
        raise RequestError(
            f"no held-out place has labels of {' or '.join(sorted(calibrated))}, on which calibration is fitted; "
            "change [evaluation] calibrate or the split."
        )
    edges = {k: near for k, rows in rows_by_block.items() if (near := _near_edges(scored, k, rows)) is not None}
    result: dict[str, Any] = {name: {} for name in names.values()}
    calibration = {}
    for subset in all_subsets():
        key = calibration_key(subset)
        place = combine([embeddings[m] for m in subset])
        cosines = {k: _cosine(place, species, rows, scored.columns[k]) for k, rows in rows_by_block.items()}
        halves = np.zeros((2, *cosine_histogram(np.zeros(0), np.zeros(0)).shape))
        for k, rows in rows_by_block.items():
            if names[k] in calibrated:
                label, known = _labels(scored, k, rows)
                for half in (0, 1):
                    part = fold[rows] == bool(half)
                    halves[half] += cosine_histogram(
                        cosines[k][part], label[part], None if known is None else known[part]
                    )
        calibration[key] = fit_histogram(halves.sum(axis=0), start)
        fitted = [fit_histogram(h, start) if h[0].sum() else calibration[key] for h in halves]
        for k, rows in rows_by_block.items():
            label, known = _labels(scored, k, rows)
            probability = _cross_fitted(cosines[k], fold[rows], fitted)
            result[names[k]][key] = scores = score_predictions(cosines[k], probability, label, known, e.min_cells)
            if k in edges:
                scores["edge_auc"], scores["edge_species"] = edge_auc(cosines[k], label.astype(bool), edges[k])
            log(f"held out {names[k]} {key}: {_scores_text(scores)}")
    return result, calibration


def _cross_fitted(cosines: np.ndarray, fold: np.ndarray, fitted: list[tuple[float, float]]) -> np.ndarray:
    """Probabilities of rows in two folds (N,) bool, each by the calibration of the other."""
    probability = np.empty_like(cosines)
    for half in (0, 1):
        part = fold == bool(half)
        scale, bias = fitted[1 - half]
        probability[part] = sigmoid(cosines[part] * scale + bias)
    return probability


def assess_species(
    recipe: Recipe, data: TrainingSet, objective: RecipeObjective, held_out: np.ndarray, log: Log
) -> dict[str, Any]:
    """{source: {rank: {subset: scores}}} of held-out species (S,) bool, each represented by its ranks down to `rank`.

    For a rank only those species count that have a trained relative of it: for the genus, one of the same genus.
    """
    e = recipe.evaluation
    scored = scored_places(recipe, data, np.arange(len(data.places.start)))
    embeddings = objective.embed_places(scored)
    trained = scored.species_rows[~held_out]
    scale, bias = _current_calibration(objective)
    result: dict[str, Any] = {}
    for rank in FALLBACK_RANKS:
        column = scored.ranks.index(rank)
        has_relative = np.isin(scored.species_rows[:, column], trained[:, column])
        species = objective.embed_species(rank)
        for k, rows in _scored_rows(scored).items():
            chosen = np.flatnonzero(held_out[scored.columns[k]] & has_relative[scored.columns[k]])
            if not chosen.size:
                continue
            label, known = _labels(scored, k, rows)
            label, known = label[:, chosen], None if known is None else known[:, chosen]
            name = scored.blocks[k].name
            for subset in all_subsets():
                place = combine([embeddings[m] for m in subset])
                cosines = _cosine(place, species, rows, scored.columns[k][chosen])
                scores = score_predictions(cosines, sigmoid(cosines * scale + bias), label, known, e.min_cells)
                result.setdefault(name, {}).setdefault(rank, {})[calibration_key(subset)] = scores
                log(f"held-out species {name} by {rank}, {calibration_key(subset)}: {_scores_text(scores)}")
    return result


def check_calibration(
    recipe: Recipe, objective: RecipeObjective, data: TrainingSet, calibration: Calibration, log: Log
) -> dict[str, Any]:
    """{source: {subset: calibration error}} at random places that the model was trained on."""
    rng = np.random.default_rng(recipe.optimiser.seed + 1)
    p = data.places
    groups = rng.choice(len(p.start), min(SAMPLE, len(p.start)), replace=False)
    index = np.sort(p.start[groups] + (rng.random(groups.size) * p.count[groups]).astype(np.int64))
    sample = data.at(p.take(index))
    embeddings, species = objective.embed_places(sample), objective.embed_species()
    errors: dict[str, Any] = {}
    for subset in all_subsets():
        key = calibration_key(subset)
        place = combine([embeddings[m] for m in subset])
        scale, bias = calibration[key]
        for k, rows in _scored_rows(sample).items():
            label, known = _labels(sample, k, rows)
            probability = sigmoid(_cosine(place, species, rows, sample.columns[k]) * scale + bias)
            pairs = (probability, label) if known is None else (probability[known], label[known])
            ece, above, _ = calibration_error(*pairs)
            name = sample.blocks[k].name
            errors.setdefault(name, {})[key] = {"ece": ece, "ece_above": above}
            log(f"trained places {name} {key}: ECE {ece:.5f} (above lowest bin {above:.4f})")
    return errors


def _current_calibration(objective: RecipeObjective) -> tuple[float, float]:
    """(scale, bias) of an objective as it is."""
    return float(objective.log_scale.detach().exp()), float(objective.bias.detach())


def _scored_rows(data: TrainingSet) -> dict[int, np.ndarray]:
    """{block: places at which it is scored}: its own, or, if it has none, all that it labels."""
    rows_by_block = {}
    for k, block in enumerate(data.blocks):
        own = np.flatnonzero(data.places.source == k)
        rows = own if own.size else np.flatnonzero(block.rows >= 0)
        if rows.size:
            rows_by_block[k] = rows
    return rows_by_block


def _near_edges(data: TrainingSet, k: int, rows: np.ndarray) -> np.ndarray | None:
    """(N, S) bool: which places of a raster source, one per cell, are near the edge of each range, on land.

    None for other sources.
    """
    source = data.sources[k]
    if not isinstance(source, Ranges):
        return None
    raster = source.raster
    cells = np.arange(raster.shape[0] * raster.shape[1])
    middle = np.full(cells.size, 0.5)
    lon, lat = raster.positions(cells, middle, middle)
    land = np.isfinite(lon)
    land[land] = LandMask().keep("land", lon[land], lat[land])
    return near_range_edges(raster, land, raster.cells(*data.places.lonlat[rows].T))


def _labels(data: TrainingSet, block: int, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    label, known = data.blocks[block].probability(rows)
    return label, known if data.blocks[block].partial else None


def _cosine(place: torch.Tensor, species: torch.Tensor, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """(rows, columns) cosines of some places and some species."""
    row_index, column_index = (torch.from_numpy(np.asarray(v, np.int64)).to(place.device) for v in (rows, columns))
    return cosine(place[row_index], species[column_index]).cpu().numpy()


def _scores_text(scores: dict[str, Any]) -> str:
    ranked = "nothing ranked" if scores["ap"] is None else f"AP {scores['ap']:.4f} AUC {scores['auc']:.4f}"
    if scores.get("edge_species"):
        ranked += f" (near range edges {scores['edge_auc']:.4f})"
    return (
        f"{ranked} ECE {scores['ece']:.5f} (above lowest bin {scores['ece_above']:.4f}), "
        f"{scores['species']} species, {scores['places']} places"
    )
