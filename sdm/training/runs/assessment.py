"""How good a trained model is at places that were held out, and how well calibrated at places it was trained on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from sdm.errors import RequestError
from sdm.layers.landmask import LandMask
from sdm.models.config import all_subsets, calibration_key
from sdm.models.score import combine, cosine
from sdm.request.choices import MODALITIES
from sdm.training.data.held_out import scored_places
from sdm.training.data.ranges import RangeRaster
from sdm.training.data.sources import Polygons, Ranges
from sdm.training.data.splits import in_blocks
from sdm.training.data.training_set import TrainingSet
from sdm.training.measures.edges import (
    edge_auc,
    edge_calibration,
    near_range_edges,
    place_shares,
    touched_shares,
)
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
from sdm.training.runs.known_ranges import held_out_by_size

RecipeObjective = RangeObjective | RecipeContrastiveObjective
Calibration = dict[str, tuple[float, float]]
"""{set of modalities: (scale, bias)}."""
GroupCalibration = dict[str, Calibration]
"""{group of species: its calibration}, of groups that have one of their own."""
SAMPLE = 3000
"""Places of training at which the shipped calibration is checked."""
FALLBACK_RANKS = ("genus", "family", "order")
"""By which species are represented that have no vector of their own."""


def assess(
    recipe: Recipe, data: TrainingSet, objective: RecipeObjective, groups: np.ndarray, log: Log
) -> tuple[dict[str, Any], Calibration, GroupCalibration]:
    """Score every subset of modalities in held-out groups of places, and calibrate it there.

    A source that has places is scored at those, one that has none at all places that it labels. Scale and bias are
    fitted on held-out places, where a model is less confident than on those it was trained on; the probabilities of
    each half of the blocks come from the fit on the other half. A cell of a raster counts as its share of the range
    where polygons tell it (`touched_shares`), and places near edges count more (`edge_weight`).

    Returns ({source: {subset: scores}}, the calibration fitted on all held-out places, those of groups), the first
    calibration on the sources that [evaluation] calibrate names, by default the first. The species of a source with a
    group have a calibration of their own, unless their source is one of those.
    """
    e = recipe.evaluation
    scored = scored_places(recipe, data, groups)
    embeddings, species = objective.embed_places(scored), objective.embed_species()
    fold = in_blocks(scored.places.lonlat, e.block_degrees, 0.5, e.seed + 1)
    start = _current_calibration(objective)
    held = [_HeldOut.of(scored, k, rows, log) for k, rows in _scored_rows(scored).items()]
    calibrated = set(e.calibrate or (data.sources[0].name,))
    if not calibrated & {h.name for h in held}:
        raise RequestError(
            f"no held-out place has labels of {' or '.join(sorted(calibrated))}, on which calibration is fitted; "
            "change [evaluation] calibrate or the split."
        )
    result: dict[str, Any] = {h.name: {} for h in held}
    calibration: Calibration = {}
    groups_own: GroupCalibration = {h.group: {} for h in held if h.group and h.name not in calibrated}
    for subset in all_subsets():
        key = calibration_key(subset)
        place = combine([embeddings[m] for m in subset])
        cosines = [_cosine(place, species, h.rows, scored.columns[h.block]) for h in held]
        halves = [h.halves(cosine_, fold, e.edge_weight) for h, cosine_ in zip(held, cosines, strict=True)]
        shared = np.sum([of for h, of in zip(held, halves, strict=True) if h.name in calibrated], axis=0)
        calibration[key], fitted = _fitted_halves(shared, start)
        for h, cosine_, of in zip(held, cosines, halves, strict=True):
            if h.group in groups_own:
                groups_own[h.group][key], own = _fitted_halves(of, start)
            probability = _cross_fitted(cosine_, fold[h.rows], own if h.group in groups_own else fitted)
            result[h.name][key] = scores = h.scores(cosine_, probability, e.min_cells)
            log(f"held out {h.name} {key}: {_scores_text(scores)}")
            if subset == MODALITIES:
                source, lonlat = data.sources[h.block], scored.places.lonlat[h.rows]
                scores["by_size"] = held_out_by_size(source, cosine_, calibration[key][0], h.label, lonlat)
                for size, found in scores["by_size"].items():
                    log(f"held out {h.name}, ranges of {size} cells: {_sizes_text(found)}")
    return result, calibration, groups_own


def _fitted_halves(
    halves: np.ndarray, start: tuple[float, float]
) -> tuple[tuple[float, float], list[tuple[float, float]]]:
    """The calibration of two histograms (2, ...) together, and that of each; of an empty one, that of both."""
    both = fit_histogram(halves.sum(axis=0), start)
    return both, [fit_histogram(h, start) if h[0].sum() else both for h in halves]


def _sizes_text(found: dict[str, float]) -> str:
    return f"{found['species']} species, AP {found['ap']:.4f}, with known ranges {found['ap_with_known_range']:.4f}"


@dataclass(frozen=True)
class _HeldOut:
    """The labels of a source at its held-out places."""

    name: str
    group: str
    """Of its species; "" for none."""
    block: int
    rows: np.ndarray
    """(N,) places."""
    label: np.ndarray
    """(N, S) 0 and 1, or probabilities."""
    known: np.ndarray | None
    """(N, S) bool; None: all."""
    near: np.ndarray | None
    """(N, S) bool: near the edge of the range; None for sources other than rasters."""
    share: np.ndarray
    """(N, S): what the probability of a place is calibrated to: the label, or the share of the range in a cell."""

    @classmethod
    def of(cls, data: TrainingSet, block: int, rows: np.ndarray, log: Log) -> _HeldOut:
        """Of a block of a training set, at some of its places."""
        label, known = _labels(data, block, rows)
        near, share, source = None, label, data.sources[block]
        if isinstance(source, Ranges):
            land = _land_cells(source.raster)
            cells = source.raster.cells(*data.places.lonlat[rows].T)
            near = near_range_edges(source.raster, land, cells)
            finer = [s.polygons for s in data.sources if isinstance(s, Polygons)]
            if finer:
                shares = touched_shares(source.raster, land, finer[0])
                log(f"share of a cell by absent neighbours, 0 to 8: {' '.join(f'{s:.2f}' for s in shares)}")
                share = place_shares(source.raster, land, cells, shares)
        return cls(data.blocks[block].name, source.settings.group, block, rows, label, known, near, share)

    def halves(self, cosines: np.ndarray, fold: np.ndarray, edge_weight: float) -> np.ndarray:
        """(2, ...): the histograms of the places in each half of the blocks; `fold` (places of all sources,) bool."""
        return np.stack([self._histogram(cosines, fold[self.rows] == bool(half), edge_weight) for half in (0, 1)])

    def _histogram(self, cosines: np.ndarray, part: np.ndarray, edge_weight: float) -> np.ndarray:
        """What a calibration is fitted on: a part (N,) bool of the places, those near edges counted more often."""
        known = None if self.known is None else self.known[part]
        total = cosine_histogram(cosines[part], self.share[part], known)
        if self.near is not None:
            total += edge_weight * cosine_histogram(cosines[part], self.share[part], self.near[part])
        return total

    def scores(self, cosines: np.ndarray, probability: np.ndarray, min_cells: int) -> dict[str, Any]:
        """Ranking and calibration."""
        scores = score_predictions(cosines, probability, self.label, self.known, min_cells)
        if self.near is not None:
            scores["edge_auc"], scores["edge_species"] = edge_auc(cosines, self.label.astype(bool), self.near)
            scores["edge_ece"], scores["edge_reliability"] = edge_calibration(probability, self.share, self.near)
            scores["place_ece"], scores["place_ece_above"], _ = calibration_error(probability, self.share)
        return scores


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
    recipe: Recipe,
    objective: RecipeObjective,
    data: TrainingSet,
    calibration: Calibration,
    groups_own: GroupCalibration,
    log: Log,
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
        for k, rows in _scored_rows(sample).items():
            scale, bias = groups_own.get(data.sources[k].settings.group, calibration)[key]
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


def _land_cells(raster: RangeRaster) -> np.ndarray:
    """(cells,) bool: the cells of a raster whose centre is land."""
    cells = np.arange(raster.shape[0] * raster.shape[1])
    middle = np.full(cells.size, 0.5)
    lon, lat = raster.positions(cells, middle, middle)
    land = np.isfinite(lon)
    land[land] = LandMask().keep("land", lon[land], lat[land])
    return land


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
        ranked += f" (near range edges {scores['edge_auc']:.4f}, ECE there {scores['edge_ece']:.4f})"
    return (
        f"{ranked} ECE {scores['ece']:.5f} (above lowest bin {scores['ece_above']:.4f}), "
        f"{scores['species']} species, {scores['places']} places"
    )
