"""Vectors of species, fitted to embeddings of places that stay as they are.

The vector of a species is the sum of one row per rank of its lineage, as in the text tower of a model. All rows are
drawn to zero, those of species most: related species share what their ranges have in common, and one with few places
is like its genus (a hierarchical Gaussian prior). The loss is the cross-entropy of `sigmoid(scale * cosine + bias)`
over all places by their area, with the presences of each species weighed up to a share of at least `PRESENT`; the prior
odds that this adds are taken out of the logit again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import csr_matrix

from sdm.models.encoders.text import tokens
from sdm.training.recipe.species_recipe import FitSettings

PRESENT = 0.25
"""Share of the loss of a species that its presences have at least."""
DRAWN = 6
"""Presences of each species drawn in a step."""
AT_ONCE = 256
"""Places compared with all species at once: the matrix stays in memory that is used again."""
BETAS = (0.9, 0.98)


@dataclass(frozen=True)
class Lineages:
    """The rows of a text table that each species is the sum of."""

    vocabulary: list[str]
    rows: np.ndarray
    """(S, R) int64."""

    @classmethod
    def of(cls, lineages: Sequence[Sequence[str]]) -> Lineages:
        """Of species, kingdom first; the vocabulary is sorted by rank and name."""
        each = [tokens(lineage) for lineage in lineages]
        vocabulary = [t for rank in zip(*each, strict=True) for t in sorted(set(rank))]
        row = {token: k for k, token in enumerate(vocabulary)}
        return cls(vocabulary, np.array([[row[t] for t in of] for of in each]))

    def vectors(self, table: np.ndarray) -> np.ndarray:
        """(S, dim) unit vectors of a table (V, dim)."""
        total = table[self.rows].sum(axis=1)
        return total / np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-12)


@dataclass(frozen=True)
class Labels:
    """How likely each species lives at each place."""

    share: csr_matrix
    """(P, S) uint8: 255 times the probability; 0 where nothing is stored."""
    area: np.ndarray
    """(P,) what each place counts."""

    def take(self, places: np.ndarray) -> Labels:
        """Those of some places."""
        return Labels(self.share[places], self.area[places])


def fit_vectors(
    embeddings: np.ndarray,
    labels: Labels,
    lineages: Lineages,
    calibration: tuple[float, float],
    settings: FitSettings,
    log: Callable[[str], None],
) -> np.ndarray:
    """The table (V, dim) float32, from embeddings (P, dim) of the places of the labels."""
    fit = _Fit(embeddings, labels, lineages, calibration, settings)
    for step in range(settings.steps):
        loss = fit.step()
        if step % 50 == 0 or step == settings.steps - 1:
            log(f"step {step + 1} of {settings.steps}: loss of presences {loss:.4f}")
    return fit.table.detach().numpy()


class _Fit:
    """The state of a fit."""

    def __init__(
        self,
        embeddings: np.ndarray,
        labels: Labels,
        lineages: Lineages,
        calibration: tuple[float, float],
        settings: FitSettings,
    ) -> None:
        self.settings, (self.scale, self.bias) = settings, calibration
        self.places = torch.from_numpy(embeddings)
        self.share, columns = labels.share, labels.share.tocsc()
        self.where, self.start, self.end = columns.indices, columns.indptr[:-1], columns.indptr[1:]
        self.reached = np.concatenate([[0], np.cumsum(columns.data, dtype=np.int64)])
        self.cumulated = np.cumsum(labels.area) / labels.area.sum()
        self.rng = np.random.default_rng(settings.seed)
        generator = torch.Generator().manual_seed(settings.seed)
        shape = (len(lineages.vocabulary), embeddings.shape[1])
        self.table = (0.01 * torch.randn(shape, generator=generator)).requires_grad_()
        self.rows = torch.from_numpy(lineages.rows)
        decay = torch.full((shape[0], 1), settings.group_decay)
        decay[int(lineages.rows[:, -1].min()) :] = settings.species_decay
        self.decay = decay
        self.lived = np.flatnonzero(self.end > self.start)
        prevalence = np.asarray(labels.share.T @ (labels.area / 255 / labels.area.sum()))
        self.prevalence = torch.from_numpy(np.clip(prevalence, 1e-7, 1 - 1e-7)).float()
        self.present = self.prevalence.clamp(min=PRESENT)
        self.prior = torch.logit(self.present) - torch.logit(self.prevalence)
        self.offset = self.bias + self.prior
        self.optimiser = torch.optim.Adam([self.table], lr=settings.learning_rate, betas=BETAS)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimiser, settings.learning_rate, total_steps=settings.steps, pct_start=0.1
        )

    def step(self) -> float:
        """One step of Adam; returns the mean loss of the presences."""
        total = torch.nn.functional.embedding_bag(self.rows, self.table, mode="sum")
        vectors = torch.nn.functional.normalize(total, dim=1)
        slope = self._absences(vectors.detach())
        loss = self._presences(vectors)
        decay = (self.decay * self.table**2).sum()
        self.optimiser.zero_grad()
        ((vectors * slope).sum() + (self.present[self.lived] * loss).sum() + decay).backward()
        self.optimiser.step()
        self.schedule.step()
        return float(loss.detach().mean())

    def _absences(self, vectors: torch.Tensor) -> torch.Tensor:
        """(S, dim) gradient of the loss of absences by the vectors, at random places by area.

        Computed without the graph: the matrix of all places and species is most of the time of a step.
        """
        count = self.settings.batch
        some = np.searchsorted(self.cumulated, self.rng.random(count)).clip(max=len(self.places) - 1)
        turned = self.scale * vectors.T.bfloat16()
        total = torch.zeros_like(vectors)
        for start in range(0, count, AT_ONCE):
            part = some[start : start + AT_ONCE]
            places = self.places[torch.from_numpy(part)].bfloat16()
            slope = torch.sigmoid_((places @ turned).float().add_(self.offset))
            here = self.share[part].tocoo()
            row, column = torch.from_numpy(here.row).long(), torch.from_numpy(here.col).long()
            slope[row, column] *= 1 - torch.from_numpy(here.data).float() / 255
            total += slope.bfloat16().T @ places
        weight = (1 - self.present) / (1 - self.prevalence)
        return weight[:, None] * total * (self.scale / count)

    def _presences(self, vectors: torch.Tensor) -> torch.Tensor:
        """(lived,) loss of presences of each species, at a few drawn by their probability."""
        low, high = self.reached[self.start[self.lived]], self.reached[self.end[self.lived]]
        drawn = low[:, None] + self.rng.random((self.lived.size, DRAWN)) * (high - low)[:, None]
        entry = np.minimum(np.searchsorted(self.reached, drawn, side="right"), self.end[self.lived][:, None]) - 1
        places = self.places[torch.from_numpy(self.where[entry]).long()]
        lived = torch.from_numpy(self.lived)
        logit = self.scale * torch.einsum("skd,sd->sk", places, vectors[lived])
        return torch.nn.functional.softplus(-(logit + self.offset[lived, None])).mean(1)
