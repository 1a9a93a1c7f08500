"""The range objective: the summed embedding of a place against every label known there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sdm.errors import ModelError
from sdm.models.bundled import BundledModel
from sdm.models.encoders.bundled import build
from sdm.models.score import normalise
from sdm.request.choices import MODALITIES
from sdm.training import distributed
from sdm.training.loss import BlockLabels, RangeLoss
from sdm.training.prepare import Prepared
from sdm.training.recipe import Recipe
from sdm.training.sources import Ranges
from sdm.training.trainer import Objective


@dataclass(frozen=True)
class Batch:
    """What one step draws, the same on every process.

    `index` (n,) places, of which the first `pooled` come in groups of one cell; `subset` (n,) row of the masks over
    modalities; `keep` (S, ranks) float32: 0 where a species goes without its vector of a rank.
    """

    index: np.ndarray
    pooled: int
    subset: np.ndarray
    keep: np.ndarray


def architecture_config(recipe: Recipe, data: Prepared) -> dict:
    """The part of `config.json` that `sdm.model.build` reads."""
    a = recipe.architecture
    environment = {k: v for k, v in a.environment.items() if k != "around_km"}
    environment["inputs"] = [vars(i).copy() for i in data.inputs]
    return {"dim": a.dim, "location": a.location, "satellite": a.satellite, "environment": environment}


class RangeObjective(Objective):
    """All encoders, with the scale and bias that turn a cosine into a logit.

    Each step draws places (sources by their shares, then a group, then a place in it), scores most of them by the
    sum of all modalities and the rest by a random subset, so that every subset stays usable, and compares each with
    every species of which something is known there. The species vector is left out for a share of the species, the
    genus vector for a share of those; species that are held out have neither vector nor labels.
    """

    def __init__(self, recipe: Recipe, data: Prepared, groups: np.ndarray, without: np.ndarray | None = None) -> None:
        """`groups`: those of the places that are trained on; `without` (S,) bool: species held out.

        Draw from torch's generator: seed it before.
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
        self.held_out = np.zeros(len(data.species), bool) if without is None else without
        self._columns = [_Columns(c, self.held_out) for c in data.columns]
        pooled = next((k for k, s in enumerate(data.sources) if isinstance(s, Ranges)), None) if o.pool else None
        self._sampler = _Sampler(recipe, data, groups, pooled, o.places_per_cell)
        self._pooled_source = pooled
        names = list(o.subset_shares)
        masks = [[float(m in n.split("+")) for m in MODALITIES] for n in names] + [[1.0] * len(MODALITIES)]
        self.register_buffer("masks", torch.tensor(masks), persistent=False)
        shares = [float(o.subset_shares[n]) for n in names]
        self._chance = np.cumsum([*shares, 1.0 - sum(shares)])

    def draw(self, n: int, rng: np.random.Generator) -> Batch:
        """The global batch of `n` places."""
        o = self.recipe.objective
        index, pooled = self._sampler.draw(n, rng)
        subset = np.minimum(np.searchsorted(self._chance, rng.random(n), side="right"), len(self._chance) - 1)
        keep = np.ones(self.data.species_rows.shape, np.float32)
        species = (rng.random(len(keep)) < o.species_dropout) | self.held_out
        keep[species, -1] = 0.0
        keep[species & (rng.random(len(keep)) < o.genus_dropout), -2] = 0.0
        return Batch(index, pooled, subset, keep)

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """Loss of this process's share of the batch."""
        o, device = self.recipe.objective, self.bias.device
        mine, pooled = self._mine(batch)
        index = batch.index[mine]
        text = self.encoders["text"](self.rows, torch.from_numpy(batch.keep).to(device))
        embeddings = self.encode(self.data, index)
        weights = self.masks[torch.from_numpy(batch.subset[mine]).to(device)]  # (B, 3) of 0 and 1
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

    def encode(self, data: Prepared, index: np.ndarray) -> list[Tensor]:
        """Unit embeddings of places in the order of MODALITIES, each (N, dim) float32."""
        device = self.bias.device
        values = [torch.from_numpy(data.values(m, index)).to(device, non_blocking=True) for m in MODALITIES]
        return [normalise(self.encoders[m](v).float()) for m, v in zip(MODALITIES, values, strict=True)]

    def parameter_groups(self) -> list[dict]:
        """Weight decay on matrices of the place encoders; the text table learns faster and hardly decays."""
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
    def embed_places(self, data: Prepared, batch: int = 4096) -> dict[str, Tensor]:
        """Unit embeddings of all places of a set per modality, (P, dim) float32."""
        self.eval()
        n = len(data.places.lonlat)
        parts = [self.encode(data, np.arange(i, min(i + batch, n))) for i in range(0, n, batch)]
        return {m: torch.cat([p[k] for p in parts]) for k, m in enumerate(MODALITIES)}

    @torch.inference_mode()
    def embed_species(self, rank: str = "species") -> Tensor:
        """Unit embeddings of all species, (S, dim), by the vectors of their ranks down to `rank` only."""
        self.eval()
        keep = torch.ones_like(self.rows, dtype=torch.float32)
        keep[:, self.data.ranks.index(rank) + 1 :] = 0
        return normalise(self.encoders["text"](self.rows, keep))

    def _mine(self, batch: Batch) -> tuple[np.ndarray, int]:
        """(this process's places of the batch, how many of the first come in groups); groups stay together."""
        size, rank, k = distributed.size(), distributed.rank(), self.recipe.objective.places_per_cell
        groups = np.array_split(np.arange(batch.pooled // k), size)[rank]
        pooled = (groups[:, None] * k + np.arange(k)).reshape(-1) if groups.size else np.zeros(0, np.int64)
        rest = np.array_split(np.arange(batch.pooled, len(batch.index)), size)[size - 1 - rank]
        return np.concatenate([pooled, rest]).astype(np.int64), len(pooled)

    def _labels(self, index: np.ndarray, pooled: int, device: torch.device) -> list[BlockLabels]:
        out = []
        for k, (block, columns) in enumerate(zip(self.data.blocks, self._columns, strict=True)):
            known = np.flatnonzero(block.rows[index] >= 0)
            if not known.size or not block.weight or not columns.size:
                continue
            labels = columns.select(block.labels(index[known]))
            out.append(
                BlockLabels(
                    torch.from_numpy(labels).to(device, non_blocking=True),
                    None if known.size == index.size else torch.from_numpy(known).to(device),
                    columns.on(device),
                    soft=block.soft,
                    partial=block.partial,
                    weight=block.weight,
                    pooled=pooled if k == self._pooled_source else 0,
                    group=self.recipe.objective.places_per_cell,
                )
            )
        return out


class _Columns:
    """Which species the columns of a block are; those held out are left out."""

    def __init__(self, columns: np.ndarray, held_out: np.ndarray) -> None:
        self._kept = None if not held_out[columns].any() else np.flatnonzero(~held_out[columns])
        self.columns = columns if self._kept is None else columns[self._kept]
        self.size = self.columns.size

    def select(self, labels: np.ndarray) -> np.ndarray:
        return labels if self._kept is None else np.ascontiguousarray(labels[:, self._kept])

    def on(self, device: torch.device) -> slice | Tensor:
        first = int(self.columns[0])
        if (self.columns == np.arange(first, first + self.size)).all():
            return slice(first, first + self.size)
        return torch.from_numpy(self.columns).to(device)


class _Sampler:
    """Draws places: so many of each source, groups by their weight, then a place (or several) in the group."""

    def __init__(
        self, recipe: Recipe, data: Prepared, groups: np.ndarray, pooled: int | None, places_per_cell: int
    ) -> None:
        p = data.places
        self.start, self.count, self.pooled, self.k = p.start, p.count, pooled, places_per_cell
        of = p.group_source[groups]
        self.groups = {int(k): groups[of == k] for k in np.unique(of)}
        self.cumulative = {k: np.cumsum(p.weight[g]) / p.weight[g].sum() for k, g in self.groups.items()}
        shares = np.array([recipe.data.source[k].share for k in self.groups])
        self.shares = dict(zip(self.groups, shares / shares.sum(), strict=True))

    def draw(self, n: int, rng: np.random.Generator) -> tuple[np.ndarray, int]:
        """(n,) places, the pooled ones first, and how many those are."""
        together = round(n * self.shares.get(self.pooled, 0.0) / self.k) * self.k if self.pooled is not None else 0
        parts = []
        if together:
            parts.append(self._places(np.repeat(self._groups(self.pooled, together // self.k, rng), self.k), rng))
        others = {k: s for k, s in self.shares.items() if not (together and k == self.pooled)}
        total, left = sum(others.values()), n - together
        edges = np.round(np.cumsum([0.0, *(s / total for s in others.values())]) * left).astype(int) if others else []
        for (k, _), low, high in zip(others.items(), edges[:-1], edges[1:], strict=True):
            parts.append(self._places(self._groups(k, high - low, rng), rng))
        index = np.concatenate(parts)
        return index, together

    def _groups(self, source: int | None, n: int, rng: np.random.Generator) -> np.ndarray:
        groups, cumulative = self.groups[source], self.cumulative[source]
        return groups[np.minimum(np.searchsorted(cumulative, rng.random(n), side="right"), groups.size - 1)]

    def _places(self, group: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return self.start[group] + (rng.random(group.size) * self.count[group]).astype(np.int64)


def start_from(encoders: torch.nn.ModuleDict, model: BundledModel, vocabulary: Sequence[str]) -> int:
    """Load the weights of a model into encoders; returns how many of the vocabulary's vectors it had.

    A text vector is found by its token; the other encoders must have the same sizes, but one that knows no season
    may start one that does. Raises ModelError naming what does not fit.
    """
    given = model.load("cpu")
    own = Path(model.folder, "vocabulary.txt").read_text(encoding="utf-8").split("\n")
    row = {token: k for k, token in enumerate(t for t in own if t)}
    shared = [(k, row[t]) for k, t in enumerate(vocabulary) if t in row]
    with torch.no_grad():
        table, theirs = encoders["text"].embedding.weight, given.text.embedding.weight.float()
        if table.shape[1] != theirs.shape[1]:
            raise ModelError(
                f"model {model.name!r} has vectors of {theirs.shape[1]}, the recipe says {table.shape[1]}."
            )
        if shared:
            to, of = (torch.tensor(v) for v in zip(*shared, strict=True))
            table[to] = theirs[of]
        for name in MODALITIES:
            state = {k: v.float() for k, v in getattr(given, name).state_dict().items()}
            expected = encoders[name].state_dict()
            if name == "location" and encoders[name].season and not given.location.season:
                weight = state["net.0.weight"]
                state["net.0.weight"] = torch.cat([weight, torch.zeros(len(weight), 3)], dim=1)
            wrong = [k for k, v in expected.items() if k not in state or state[k].shape != v.shape]
            if wrong or state.keys() - expected.keys():
                raise ModelError(
                    f"model {model.name!r} cannot start this recipe: its {name} encoder has other sizes "
                    f"({(wrong or ['depth'])[0]}); make [architecture] as in its config.json."
                )
            encoders[name].load_state_dict(state)
    return len(shared)
