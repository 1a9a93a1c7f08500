"""What patching is judged by: average precision at held-out places, or zero-shot accuracy on held-out observations."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sdm.errors import RequestError
from sdm.evaluation.classification import accuracy
from sdm.evaluation.retrieval import Retrieval, retrieve
from sdm.models.config import all_subsets, calibration_key
from sdm.models.score import combine, normalise
from sdm.request.choices import MODALITIES
from sdm.training.data.pairs import DatasetPairs, presence
from sdm.training.data.training_set import TrainingSet
from sdm.training.measures.scores import auc, fit_calibration
from sdm.training.spaces import Space, State, text_tower

BATCH = 1024
CALIBRATION_START = (20.0, -6.0)
"""Scale and bias at which the fit of a calibration starts."""


def average_precisions(score: Tensor, present: Tensor) -> Tensor:
    """(S,) average precision of each species (column) over places (rows); as `scores.average_precision`.

    score (N, S), present (N, S) bool, every column with at least one presence.
    """
    order = score.T.contiguous().argsort(dim=1, descending=True, stable=True)
    hits = present.T.gather(1, order).float()
    precision = hits.cumsum(1) / torch.arange(1, hits.shape[1] + 1, device=hits.device)
    return (precision * hits).sum(1) / hits.sum(1)


class Validation:
    """A metric on a fixed set of values, embedded by towers of changing states; the given space is not changed."""

    metric: str
    """Name of the metric, for tables."""

    def __init__(self, space: Space) -> None:
        self.space = copy.deepcopy(space).eval().requires_grad_(False)

    def values(self, modality: str) -> Any:
        """The raw values of a modality."""
        raise NotImplementedError

    def score(self, embeddings: Mapping[str, Tensor]) -> float:
        """The metric of embeddings by modality; higher is better."""
        raise NotImplementedError

    @torch.inference_mode()
    def embed(self, modality: str, state: State) -> Tensor:
        """Unit embeddings (N, dim) of the values by an encoder with this state."""
        self.space.load_states({modality: state})
        values = self.values(modality)
        parts = [self.space.embed(modality, values[k : k + BATCH]) for k in range(0, len(values), BATCH)]
        return normalise(torch.cat(parts))

    def embed_all(self, space: Space) -> dict[str, Tensor]:
        """Embeddings of all modalities, by the towers of a space as they are."""
        return {m: self.embed(m, s) for m, s in space.states().items()}


class RangeValidation(Validation):
    """Mean AP over species of the sum of some modalities, at places that training has not seen.

    Parameters
    ----------
    space : the towers
    values : as for `RangePairs`, one row per place and, for "text", per species
    present : (places, species) bool
    query : the modalities that are summed
    min_cells : species present at fewer places, or at all of them, are left out
    among : (S,) bool, the species that may be scored; None: all
    """

    metric = "mean AP"

    def __init__(
        self,
        space: Space,
        values: Mapping[str, np.ndarray],
        present: np.ndarray,
        query: Sequence[str] = MODALITIES,
        min_cells: int = 5,
        among: np.ndarray | None = None,
    ) -> None:
        super().__init__(space)
        cells = present.sum(0)
        ranked = (cells >= min_cells) & (cells < len(present))
        self.ranked_species = np.flatnonzero(ranked if among is None else ranked & among)
        if not self.ranked_species.size:
            raise RequestError(f"no species is present at {min_cells} of the {len(present)} validation places or more.")
        self._values, self.query, self.present = values, tuple(query), present.astype(bool)
        self._present = torch.from_numpy(self.present[:, self.ranked_species]).to(space.device)

    def values(self, modality: str) -> np.ndarray:
        """Of all places, or all species."""
        return self._values[modality]

    def score(self, embeddings: Mapping[str, Tensor]) -> float:
        """Mean AP of the sum of `query`."""
        return self.average_precision(embeddings, self.query)

    def average_precision(self, embeddings: Mapping[str, Tensor], query: Sequence[str]) -> float:
        """Mean AP of the sum of any modalities."""
        return float(self.average_precisions(embeddings, query).mean())

    def average_precisions(self, embeddings: Mapping[str, Tensor], query: Sequence[str]) -> Tensor:
        """AP of each ranked species, by the sum of any modalities."""
        place = combine([embeddings[m] for m in query])
        return average_precisions(place @ embeddings["text"][self.ranked_species].T, self._present)

    def auc(self, embeddings: Mapping[str, Tensor], query: Sequence[str]) -> float:
        """Mean AUC of the sum of any modalities."""
        place = combine([embeddings[m] for m in query])
        cosine = (place @ embeddings["text"][self.ranked_species].T).cpu().numpy()
        present = self.present[:, self.ranked_species]
        return float(np.mean([auc(cosine[:, j], present[:, j]) for j in range(len(self.ranked_species))]))

    def calibration(self, embeddings: Mapping[str, Tensor]) -> dict[str, tuple[float, float]]:
        """{set of modalities: (scale, bias)} of the probability, for a model's config."""
        calibration = {}
        for subset in all_subsets():
            cosine = combine([embeddings[m] for m in subset]) @ embeddings["text"].T
            fitted = fit_calibration(cosine.cpu().numpy(), self.present, CALIBRATION_START)
            calibration[calibration_key(subset)] = fitted
        return calibration


class ZeroShotValidation(Validation):
    """Top-1 accuracy of the sum of some modalities against the texts of all species of a dataset.

    rows: the observations to use. The content of their files is read once and kept, so choose a few thousand.
    """

    metric = "zero-shot accuracy"

    def __init__(self, space: Space, pairs: DatasetPairs, query: Sequence[str], rows: np.ndarray | None = None) -> None:
        super().__init__(space)
        there = [m for m in pairs.modalities if m in space.modalities and m != "text"]
        if missing := [m for m in query if m not in there]:
            raise RequestError(f"modality {missing[0]!r} cannot be classified by; choose any of {', '.join(there)}.")
        self.pairs, self.query = pairs, tuple(query)
        self.rows = np.arange(pairs.places) if rows is None else rows
        self._values: dict[str, Any] = {}

    def values(self, modality: str) -> Any:
        """Of all observations, or the texts of all species."""
        if modality not in self._values:
            rows = np.arange(self.pairs.species) if modality == "text" else self.rows
            self._values[modality] = self.pairs.values(modality, rows)
        return self._values[modality]

    def embed(self, modality: str, state: State) -> Tensor:
        """See `Validation`; empty for a modality that the query does not use."""
        return super().embed(modality, state) if modality in (*self.query, "text") else torch.empty(0)

    def score(self, embeddings: Mapping[str, Tensor]) -> float:
        """Top-1 accuracy."""
        queries = {m: embeddings[m].cpu().numpy() for m in self.query}
        texts = embeddings["text"].cpu().numpy()
        return accuracy(queries, texts, self.pairs.dataset.labels[self.rows], ks=(1,)).top[1]


def text_rows(space: Space, data: TrainingSet) -> np.ndarray:
    """(S, ranks) rows of the space's own vocabulary for the species of a training set. Raises RequestError."""
    row = text_tower(space.towers).index
    if missing := [t for t in data.vocabulary if t not in row]:
        raise RequestError(f"the model has no vector for {missing[0]!r}, which the recipe's species need.")
    return np.array([row[t] for t in data.vocabulary])[data.species_rows]


def range_validation(
    space: Space,
    data: TrainingSet,
    query: Sequence[str] = MODALITIES,
    min_cells: int = 5,
    among: np.ndarray | None = None,
) -> RangeValidation:
    """`RangeValidation` at all places of a training set, such as those of `held_out.scored_places`."""
    rows = np.arange(len(data.places.lonlat))
    values = {m: data.values(m, rows) for m in MODALITIES} | {"text": text_rows(space, data)}
    return RangeValidation(space, values, presence(data, rows) >= 0.5, query, min_cells, among)


def cross_modal_retrieval(embeddings: Mapping[str, Tensor], query: str, target: str, k: int = 10) -> Retrieval:
    """How well the embedding of a place in one modality finds the same place in another: recall@k, median rank."""
    queries = {query: embeddings[query].cpu().numpy()}
    return retrieve(queries, target, embeddings[target].cpu().numpy(), ks=(1, k))
