"""What patching is judged by: average precision on held-out places, or zero-shot accuracy on held-out observations."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from sdm.errors import RequestError
from sdm.evaluation.classification import accuracy
from sdm.evaluation.retrieval import Retrieval, retrieve
from sdm.models.config import all_subsets, calibration_key
from sdm.models.score import combine, normalise
from sdm.request.choices import MODALITIES
from sdm.training.evaluate import auc, fit_calibration
from sdm.training.pairs import DatasetPairs, presence
from sdm.training.patching import State, average_precisions
from sdm.training.towers import Space

if TYPE_CHECKING:
    from sdm.training.prepare import Prepared

BATCH = 1024


class _Embedding:
    """Embeds the same values by towers of changing states; the space it is given stays as it is."""

    def __init__(self, space: Space) -> None:
        self.space = copy.deepcopy(space).eval().requires_grad_(False)

    def values(self, modality: str) -> Any:
        raise NotImplementedError

    @torch.inference_mode()
    def embed(self, modality: str, state: State) -> Tensor:
        """See `patching.Validation`."""
        self.space.load_states({modality: state})
        values = self.values(modality)
        parts = [self.space.embed(modality, values[k : k + BATCH]) for k in range(0, len(values), BATCH)]
        return normalise(torch.cat(parts))

    def all(self, space: Space) -> dict[str, Tensor]:
        """Of all modalities, by the towers of a space as they are."""
        return {m: self.embed(m, s) for m, s in space.states().items()}


class RangeValidation(_Embedding):
    """Mean AP over species of the sum of some modalities, at places that training has not seen.

    values: as of `pairs.RangePairs`, one row per place and, for "text", per species; present (places, species) bool.
    Species with fewer than `min_cells` places, or with all, are left out, and those not `among` (S,) bool. `query`:
    what is summed.
    """

    metric = "mean AP"

    def __init__(
        self, space: Space, values: Mapping[str, np.ndarray], present: np.ndarray,
        query: Sequence[str] = MODALITIES, min_cells: int = 5, among: np.ndarray | None = None,
    ) -> None:  # fmt: skip
        super().__init__(space)
        cells = present.sum(0)
        ranked = (cells >= min_cells) & (cells < len(present))
        self.which = np.flatnonzero(ranked if among is None else ranked & among)
        if not self.which.size:
            raise RequestError(f"no species is present at {min_cells} of the {len(present)} validation places or more.")
        self._values, self.query, self.present = values, tuple(query), present.astype(bool)
        self._present = torch.from_numpy(self.present[:, self.which]).to(space.device)

    def values(self, modality: str) -> np.ndarray:
        """Of all places, or all species."""
        return self._values[modality]

    def score(self, embeddings: Mapping[str, Tensor]) -> float:
        """Of the sum of `query`."""
        return self.average_precision(embeddings, self.query)

    def average_precision(self, embeddings: Mapping[str, Tensor], query: Sequence[str]) -> float:
        """Mean AP of the sum of any modalities."""
        return float(self.average_precisions(embeddings, query).mean())

    def average_precisions(self, embeddings: Mapping[str, Tensor], query: Sequence[str]) -> Tensor:
        """AP of each species that is ranked, by the sum of any modalities."""
        place = combine([embeddings[m] for m in query])
        return average_precisions(place @ embeddings["text"][self.which].T, self._present)

    def auc(self, embeddings: Mapping[str, Tensor], query: Sequence[str]) -> float:
        """Mean AUC of the sum of any modalities."""
        cosine = (combine([embeddings[m] for m in query]) @ embeddings["text"][self.which].T).cpu().numpy()
        present = self.present[:, self.which]
        return float(np.mean([auc(cosine[:, j], present[:, j]) for j in range(len(self.which))]))

    def calibration(self, embeddings: Mapping[str, Tensor]) -> dict[str, tuple[float, float]]:
        """(scale, bias) of the probability by set of modalities, for a model's config."""
        found = {}
        for subset in all_subsets():
            cosine = combine([embeddings[m] for m in subset]) @ embeddings["text"].T
            found[calibration_key(subset)] = fit_calibration(cosine.cpu().numpy(), self.present, (20.0, -6.0))
        return found


class ZeroShot(_Embedding):
    """Top-1 accuracy of the sum of some modalities against the texts of all species of a dataset.

    rows: the observations to use. What their files hold is read once and kept, so choose a few thousand.
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
        """See `patching.Validation`; nothing for a modality that is not asked for."""
        return super().embed(modality, state) if modality in (*self.query, "text") else torch.empty(0)

    def score(self, embeddings: Mapping[str, Tensor]) -> float:
        """Top-1 accuracy."""
        found = {m: embeddings[m].cpu().numpy() for m in self.query}
        texts = embeddings["text"].cpu().numpy()
        return accuracy(found, texts, self.pairs.dataset.labels[self.rows], ks=(1,)).top[1]


def text_rows(space: Space, there: Prepared) -> np.ndarray:
    """(S, ranks) rows of the space's own vocabulary for the species of a training set. Raises RequestError."""
    own = space.towers["text"].index
    if missing := [t for t in there.vocabulary if t not in own]:
        raise RequestError(f"the model has no vector for {missing[0]!r}, which the recipe's species need.")
    return np.array([own[t] for t in there.vocabulary])[there.species_rows]


def held_out(
    space: Space,
    there: Prepared,
    query: Sequence[str] = MODALITIES,
    min_cells: int = 5,
    among: np.ndarray | None = None,
) -> RangeValidation:
    """`RangeValidation` on all places of a training set, such as `run.test_places` gives."""
    rows = np.arange(len(there.places.lonlat))
    values = {m: there.values(m, rows) for m in MODALITIES} | {"text": text_rows(space, there)}
    return RangeValidation(space, values, presence(there, rows) >= 0.5, query, min_cells, among)


def between(embeddings: Mapping[str, Tensor], query: str, target: str, k: int = 10) -> Retrieval:
    """How well one modality finds the same places in another: recall@k, median rank."""
    found = {query: embeddings[query].cpu().numpy()}
    return retrieve(found, target, embeddings[target].cpu().numpy(), ks=(1, k))
