"""The range objective: the summed embedding of a place against every label known there."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sdm.models.encoders.bundled import build
from sdm.models.score import normalise
from sdm.request.choices import MODALITIES
from sdm.training import distributed
from sdm.training.data.sources import Ranges
from sdm.training.data.training_set import TrainingSet
from sdm.training.objectives.base import Objective
from sdm.training.objectives.range_loss import BatchLabels, RangeLoss
from sdm.training.recipe.range_recipe import Recipe
from sdm.training.spaces import architecture_config


@dataclass(frozen=True)
class RangeBatch:
    """What one step draws, the same on every process."""

    index: np.ndarray
    """(n,) places."""
    pooled: int
    """How many of the first places form groups of one cell."""
    subset: np.ndarray
    """(n,) row of the masks over modalities."""
    keep: np.ndarray
    """(S, ranks) float32: 0 where the vector of a rank is left out for a species."""


class RangeObjective(Objective):
    """All encoders, with the scale and bias that turn a cosine into a logit.

    Each step draws places (sources by their shares, then a group, then a place in it), scores most of them by the
    sum of all modalities and the rest by a random subset, so that every subset stays usable, and compares each with
    every species that has a known label there. The species vector is left out for a share of the species, the
    genus vector for a share of those; species that are held out have neither vector nor labels.
    """

    rows: Tensor
    masks: Tensor

    def __init__(
        self, recipe: Recipe, data: TrainingSet, groups: np.ndarray, held_out: np.ndarray | None = None
    ) -> None:
        """`groups`: the groups of places to train on; `held_out` (S,) bool: species held out.

        The weights are drawn from torch's generator: seed it before.
        """
        super().__init__()
        o = recipe.objective
        self.recipe, self.data = recipe, data
        self.encoders = build(architecture_config(recipe, data), data.vocabulary, o.dropout, o.env_dropout)
        self.log_scale = torch.nn.Parameter(torch.tensor([math.log(o.start_scale)]))
        self.bias = torch.nn.Parameter(torch.tensor([o.start_bias]))
        self.register_buffer("rows", torch.from_numpy(data.species_rows), persistent=False)
        for name in o.locked:
            self.encoders[name].requires_grad_(False)
        self.held_out = np.zeros(len(data.species), bool) if held_out is None else held_out
        self._columns = [_SpeciesColumns(c, self.held_out) for c in data.columns]
        pooled = next((k for k, s in enumerate(data.sources) if isinstance(s, Ranges)), None) if o.pool else None
        self._sampler = _PlaceSampler(recipe, data, groups, pooled, o.places_per_cell)
        self._pooled_source = pooled
        names = list(o.subset_shares)
        masks = [[float(m in n.split("+")) for m in MODALITIES] for n in names] + [[1.0] * len(MODALITIES)]
        self.register_buffer("masks", torch.tensor(masks), persistent=False)
        shares = [float(o.subset_shares[n]) for n in names]
        self._chance = np.cumsum([*shares, 1.0 - sum(shares)])

    def draw(self, n: int, rng: np.random.Generator) -> RangeBatch:
        """The global batch of `n` places."""
        o = self.recipe.objective
        index, pooled = self._sampler.draw(n, rng)
        subset = np.minimum(np.searchsorted(self._chance, rng.random(n), side="right"), len(self._chance) - 1)
        keep = np.ones(self.data.species_rows.shape, np.float32)
        species = (rng.random(len(keep)) < o.species_dropout) | self.held_out
        keep[species, -1] = 0.0
        keep[species & (rng.random(len(keep)) < o.genus_dropout), -2] = 0.0
        return RangeBatch(index, pooled, subset, keep)

    def forward(self, batch: RangeBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of this process's share of the batch."""
        o, device = self.recipe.objective, self.bias.device
        own, pooled = self._own_share(batch)
        index = batch.index[own]
        text = self.encoders["text"](self.rows, torch.from_numpy(batch.keep).to(device))
        embeddings = self.encode(self.data, index)
        weights = self.masks[torch.from_numpy(batch.subset[own]).to(device)]  # (B, 3) of 0 and 1
        place = normalise(sum(w.unsqueeze(1) * e for w, e in zip(weights.T, embeddings, strict=True)))
        loss = RangeLoss.apply(
            place,
            normalise(text.float()),
            self.log_scale,
            self.bias,
            self._labels(index, pooled, device),
            len(batch.index) / distributed.size(),
            o.pool,
        )
        return loss, {"scale": self.log_scale.detach().exp(), "bias": self.bias.detach()}

    def encode(self, data: TrainingSet, index: np.ndarray) -> list[Tensor]:
        """Unit embeddings of places, (N, dim) float32 for each modality in the order of MODALITIES."""
        device = self.bias.device
        values = [torch.from_numpy(data.values(m, index)).to(device, non_blocking=True) for m in MODALITIES]
        return [normalise(self.encoders[m](v).float()) for m, v in zip(MODALITIES, values, strict=True)]

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Weight decay on matrices of the place encoders; the text table has its own rate and decay."""
        o = self.recipe.optimiser
        trained = [(n, p) for n, p in self.named_parameters() if p.requires_grad]
        text = [p for n, p in trained if n.startswith("encoders.text")]
        rest = [p for n, p in trained if not n.startswith("encoders.text")]
        groups = [
            {"params": [p for p in rest if p.ndim > 1], "weight_decay": o.weight_decay, "lr": o.learning_rate},
            {"params": [p for p in rest if p.ndim <= 1], "weight_decay": 0.0, "lr": o.learning_rate},
            {"params": text, "weight_decay": o.text_weight_decay, "lr": o.text_learning_rate},
        ]
        return [g for g in groups if g["params"]]

    def clamp(self) -> None:
        """Keep the scale between 1 and the recipe's `max_scale`."""
        self.log_scale.clamp_(0.0, math.log(self.recipe.objective.max_scale))

    @torch.inference_mode()
    def embed_places(self, data: TrainingSet, batch: int = 4096) -> dict[str, Tensor]:
        """Unit embeddings of all places of a training set by modality, (P, dim) float32."""
        self.eval()
        n = len(data.places.lonlat)
        parts = [self.encode(data, np.arange(i, min(i + batch, n))) for i in range(0, n, batch)]
        return {m: torch.cat([p[k] for p in parts]) for k, m in enumerate(MODALITIES)}

    @torch.inference_mode()
    def embed_species(self, rank: str = "species") -> Tensor:
        """Unit embeddings of all species, (S, dim), by the vectors of their ranks from class down to `rank`."""
        self.eval()
        keep = torch.ones_like(self.rows, dtype=torch.float32)
        keep[:, self.data.ranks.index(rank) + 1 :] = 0
        return normalise(self.encoders["text"](self.rows, keep))

    def _own_share(self, batch: RangeBatch) -> tuple[np.ndarray, int]:
        """(this process's part of the batch, how many of its first places form groups); groups are not split."""
        size, rank, k = distributed.size(), distributed.rank(), self.recipe.objective.places_per_cell
        groups = np.array_split(np.arange(batch.pooled // k), size)[rank]
        pooled = (groups[:, None] * k + np.arange(k)).reshape(-1) if groups.size else np.zeros(0, np.int64)
        rest = np.array_split(np.arange(batch.pooled, len(batch.index)), size)[size - 1 - rank]
        return np.concatenate([pooled, rest]).astype(np.int64), len(pooled)

    def _labels(self, index: np.ndarray, pooled: int, device: torch.device) -> list[BatchLabels]:
        batch_labels = []
        for k, (block, columns) in enumerate(zip(self.data.blocks, self._columns, strict=True)):
            known = np.flatnonzero(block.rows[index] >= 0)
            if not known.size or not block.weight or not columns.size:
                continue
            labels = columns.select(block.labels(index[known]))
            batch_labels.append(
                BatchLabels(
                    torch.from_numpy(labels).to(device, non_blocking=True),
                    None if known.size == index.size else torch.from_numpy(known).to(device),
                    columns.to(device),
                    soft=block.soft,
                    partial=block.partial,
                    weight=block.weight,
                    pooled=pooled if k == self._pooled_source else 0,
                    group=self.recipe.objective.places_per_cell,
                )
            )
        return batch_labels


class _SpeciesColumns:
    """The species of the columns of a block, without those held out."""

    def __init__(self, columns: np.ndarray, held_out: np.ndarray) -> None:
        self._kept = None if not held_out[columns].any() else np.flatnonzero(~held_out[columns])
        self.columns = columns if self._kept is None else columns[self._kept]
        self.size = self.columns.size

    def select(self, labels: np.ndarray) -> np.ndarray:
        """Labels (n, columns) without the columns of held-out species."""
        return labels if self._kept is None else np.ascontiguousarray(labels[:, self._kept])

    def to(self, device: torch.device) -> slice | Tensor:
        """Indices into all species: a slice where they are consecutive."""
        first = int(self.columns[0])
        if (self.columns == np.arange(first, first + self.size)).all():
            return slice(first, first + self.size)
        return torch.from_numpy(self.columns).to(device)


class _PlaceSampler:
    """Draws places: a fixed number of each source, groups by their weight, then a place (or several) in the group."""

    def __init__(
        self, recipe: Recipe, data: TrainingSet, groups: np.ndarray, pooled: int | None, places_per_cell: int
    ) -> None:
        p = data.places
        self.start, self.count, self.pooled, self.k = p.start, p.count, pooled, places_per_cell
        source = p.group_source[groups]
        self.groups = {int(k): groups[source == k] for k in np.unique(source)}
        self.cumulative = {k: np.cumsum(p.weight[g]) / p.weight[g].sum() for k, g in self.groups.items()}
        shares = np.array([recipe.data.source[k].share for k in self.groups])
        self.shares = dict(zip(self.groups, shares / shares.sum(), strict=True))

    def draw(self, n: int, rng: np.random.Generator) -> tuple[np.ndarray, int]:
        """(n,) places, the pooled ones first, and how many those are."""
        pooled, parts, others = 0, [], dict(self.shares)
        if self.pooled is not None:
            pooled = round(n * self.shares.get(self.pooled, 0.0) / self.k) * self.k
            if pooled:
                parts.append(self._places(np.repeat(self._groups(self.pooled, pooled // self.k, rng), self.k), rng))
                del others[self.pooled]
        total = sum(others.values())
        edges = np.round(np.cumsum([0.0, *(s / total for s in others.values())]) * (n - pooled)).astype(int)
        for k, low, high in zip(others, edges[:-1], edges[1:], strict=True):
            parts.append(self._places(self._groups(k, high - low, rng), rng))
        return np.concatenate(parts), pooled

    def _groups(self, source: int, n: int, rng: np.random.Generator) -> np.ndarray:
        groups, cumulative = self.groups[source], self.cumulative[source]
        return groups[np.minimum(np.searchsorted(cumulative, rng.random(n), side="right"), groups.size - 1)]

    def _places(self, group: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return self.start[group] + (rng.random(group.size) * self.count[group]).astype(np.int64)
