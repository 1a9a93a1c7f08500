"""Binding modalities to one by contrastive losses, as an objective for the trainer.

One modality is the binding one. Every other is aligned to it by a contrastive loss of its own, so modalities
that were never paired end up comparable (arXiv 2411.00683). With the binding tower locked this is *locked
tuning*; with all towers learning it is *full fine-tuning*, after which `sdm.training.checkpoint_patching` looks for
weights between the two.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from sdm.errors import RequestError
from sdm.models.score import normalise
from sdm.training import distributed
from sdm.training.data.pairs import Pairs, PairsWithAbsence
from sdm.training.objectives import contrastive_losses
from sdm.training.objectives.base import Objective
from sdm.training.objectives.contrastive_losses import Temperature
from sdm.training.objectives.range_loss import BatchLabels, RangeLoss
from sdm.training.recipe.sections import DEFAULT_LOSSES, BindingSettings
from sdm.training.spaces import Space

CACHE_BYTES = 2 << 30
"""Most memory for the embeddings of one locked tower."""
CACHE_BLOCK = 64
"""Rows of it that are computed at once."""
RANGE_START = (0.05, -6.0)
"""Temperature and bias at which the range loss starts: most species are absent from most places."""


@dataclass(frozen=True)
class Rates:
    """Learning rates of the towers, and the dropouts of a text tower that has one vector per rank (see the recipe)."""

    learning_rate: float = 1e-4
    text_learning_rate: float = 0.0
    """0: as for the others."""
    weight_decay: float = 0.01
    species_dropout: float = 0.0
    genus_dropout: float = 0.0


@dataclass(frozen=True)
class ContrastiveBatch:
    """Everything that is random about a step, for the whole batch."""

    place: np.ndarray
    """(n,) rows of places."""
    species: np.ndarray
    """(n,) rows of species."""
    anywhere: np.ndarray | None
    """(n, ...) random places of the globe; None if no loss needs them."""
    summed: np.ndarray
    """(n, modalities) 0/1: which are in the sum."""
    ranks: np.ndarray | None
    """(n or species, ranks) 0/1: which vectors of the text tower are used."""


@dataclass(frozen=True)
class _Embedded:
    """The embeddings of a step."""

    batch: ContrastiveBatch
    rows: slice
    """This process's share of the batch."""
    raw: dict[str, Tensor]
    """Of this process by modality, not of unit length."""
    unit: dict[str, Tensor]
    """The same, of unit length."""
    everyone: dict[str, Tensor]
    """Of all processes, of unit length."""
    texts: Tensor | None
    """(S, dim) of all species, where a loss needs them; not of unit length."""
    species: Tensor
    """(n,) species of the whole batch."""


def complete_binding(settings: BindingSettings, space: Space, pairs: Pairs) -> BindingSettings:
    """The settings with defaults filled in for a space and its pairs. Raises RequestError naming what does not fit."""
    settings.check()
    binding = settings.binding
    there = tuple(m for m in space.modalities if m in pairs.modalities)
    if binding not in there:
        raise RequestError(f"binding modality {binding!r} is not there; choose any of {', '.join(there)}.")
    modalities = settings.modalities or tuple(m for m in there if m != binding)
    train = settings.train or modalities
    for m in (*modalities, *train):
        if m not in there:
            raise RequestError(f"modality {m!r} is not there; choose any of {', '.join(there)}.")
    if binding in modalities:
        raise RequestError(f"modality {binding!r} cannot be bound to itself; it is the binding one.")
    if idle := [m for m in train if m not in (*modalities, binding)]:
        raise RequestError(f"modality {idle[0]!r} is to be trained but not bound: add it to modalities.")
    if unknown := [m for m in settings.losses if m not in modalities]:
        raise RequestError(f"losses name {unknown[0]!r}, which is not bound; bound are {', '.join(modalities)}.")
    losses = {m: settings.losses.get(m, DEFAULT_LOSSES.get(m, "supcon")) for m in modalities}
    for m, loss in losses.items():
        if loss == "range" and "text" not in (m, binding):
            raise RequestError(f"loss 'range' of {m} needs text: it compares places with all species.")
        if loss == "range" and not isinstance(pairs, PairsWithAbsence):
            raise RequestError(f"loss 'range' of {m} needs range data; observations say nothing about absence.")
    return replace(settings, modalities=modalities, train=train, losses=losses)


class ContrastiveObjective(Objective):
    """The mean of the contrastive losses between each modality and the binding one.

    Locked towers stay in evaluation mode; their embeddings are kept, since they never change.
    """

    def __init__(self, space: Space, pairs: Pairs, settings: BindingSettings, rates: Rates = Rates()) -> None:
        super().__init__()
        self.rates = rates
        self.settings = s = complete_binding(settings, space, pairs)
        self.space, self.pairs = space, pairs
        # Short clips do not use a part of the audio encoder.
        self.every_parameter_used = "audio" not in s.train
        self.locked = tuple(m for m in (s.binding, *s.modalities) if m not in s.train)
        space.requires_grad_(False)
        for m in s.train:
            for name, parameter in space.towers[m].named_parameters():
                # The frequencies of the published location encoder are stored as a parameter.
                parameter.requires_grad_(not name.endswith("capsule.0.b"))
        kinds = dict(s.losses) | ({"sum": "supcon"} if s.sum_weight else {})
        self.temperatures = nn.ModuleDict({m: self._new_temperature(loss) for m, loss in kinds.items()})
        self._cache: dict[str, tuple[Tensor, np.ndarray]] = {}
        # Part of the checkpoint: the space as it was when training started.
        self.before = copy.deepcopy(space).eval().requires_grad_(False) if s.distil else None
        self.train()

    def _new_temperature(self, loss: str) -> Temperature:
        s = self.settings
        t = Temperature(RANGE_START[0] if loss == "range" else s.temperature, s.learn_temperature)
        with torch.no_grad():
            t.bias.fill_(RANGE_START[1] if loss == "range" else -10.0)
        t.bias.requires_grad_(loss in ("range", "sigmoid") and s.learn_temperature)
        return t

    def temperature(self, modality: str) -> Temperature:
        """The temperature of the loss of a modality, or of "sum"."""
        return cast(Temperature, self.temperatures[modality])

    def scales(self) -> dict[str, float]:
        """The current factor of cosines, by modality."""
        return {m: math.exp(self.temperature(m).log_scale.item()) for m in self.temperatures}

    def train(self, mode: bool = True) -> ContrastiveObjective:
        """Set training mode, only for the towers that learn."""
        super().train(mode)
        for modality, tower in self.space.towers.items():
            tower.train(mode and modality in self.settings.train)
        if self.before is not None:
            self.before.eval()
        return self

    def draw(self, n: int, rng: np.random.Generator) -> ContrastiveBatch:
        """See `Objective`."""
        s = self.settings
        place, species = self.pairs.draw(n, rng)
        anywhere = self.pairs.draw_anywhere(n, rng) if "location" in s.losses.values() else None
        summed = (rng.random((n, len(s.modalities))) >= s.modality_dropout).astype(np.float32)
        summed[summed.sum(1) == 0, :] = 1.0
        return ContrastiveBatch(place, species, anywhere, summed, self._draw_ranks(n, rng))

    def _draw_ranks(self, n: int, rng: np.random.Generator) -> np.ndarray | None:
        r = self.rates
        if "text" not in self.settings.train or not r.species_dropout:
            return None
        n = self.pairs.species if self._needs_all_species else n
        ranks = len(self.pairs.values("text", np.zeros(1, np.int64))[0])
        keep = np.ones((n, ranks), np.float32)
        dropped = rng.random(n) < r.species_dropout
        keep[dropped, -1] = 0
        keep[dropped & (rng.random(n) < r.genus_dropout), -2] = 0
        return keep

    @property
    def _needs_all_species(self) -> bool:
        """Whether a step needs the text of every species, not only of those drawn."""
        return "range" in self.settings.losses.values()

    def forward(self, batch: ContrastiveBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Objective`."""
        s, e = self.settings, self._embed(batch)
        losses = {m: self._loss(m, e) for m in s.modalities}
        total = torch.stack(list(losses.values())).mean()
        if s.sum_weight:
            losses["sum"] = self._sum_loss(e)
            total = total + s.sum_weight * losses["sum"]
        if s.distil:
            losses["distil"] = self._distillation(e)
            total = total + s.distil * losses["distil"]
        numbers = {f"loss {m}": v.detach() for m, v in losses.items()}
        if s.learn_temperature:
            numbers |= {f"scale {m}": self.temperature(m)().detach() for m in self.temperatures}
        return total, numbers

    def _embed(self, batch: ContrastiveBatch) -> _Embedded:
        s, rows = self.settings, distributed.share(len(batch.place))
        species = torch.from_numpy(batch.species).to(self.space.device)
        raw = {m: self._raw(m, batch, rows) for m in (s.binding, *s.modalities) if m != "text"}
        texts = None
        if self._needs_all_species:
            texts = self._text(np.arange(self.pairs.species), batch.ranks)
            raw["text"] = texts[species[rows]]
        elif "text" in (s.binding, *s.modalities):
            raw["text"] = self._raw("text", batch, rows)
        unit = {m: normalise(z) for m, z in raw.items()}
        everyone = {m: distributed.gather(z) for m, z in unit.items()}
        return _Embedded(batch, rows, raw, unit, everyone, texts, species)

    def _loss(self, m: str, e: _Embedded) -> Tensor:
        s, temperature = self.settings, self.temperature(m)
        anchor, other = e.everyone[s.binding], e.everyone[m]
        match s.losses[m]:
            case "infonce":
                return contrastive_losses.info_nce(anchor, other, temperature(), e.rows)
            case "supcon":
                return contrastive_losses.supcon(anchor, other, e.species, temperature(), e.rows)
            case "sigmoid":
                return contrastive_losses.sigmoid_pairs(
                    anchor, other, e.species, temperature(), temperature.bias, e.rows
                )
            case "location":
                negatives = distributed.gather(normalise(self._embed_anywhere(m, e.batch, e.rows)))
                return contrastive_losses.location_loss(
                    anchor, other, negatives, e.species, temperature(), s.location_weights, e.rows
                )
        return self._range_loss(m, e)

    def _range_loss(self, m: str, e: _Embedded) -> Tensor:
        """Places against all species, by presence and absence."""
        assert e.texts is not None and isinstance(self.pairs, PairsWithAbsence)  # by `complete_binding`
        place = e.unit[self.settings.binding if m == "text" else m]
        present = torch.from_numpy(self.pairs.presence(e.batch.place[e.rows])).to(place.device)
        block = BatchLabels(present, None, slice(0, present.shape[1]))
        t = self.temperature(m)
        return RangeLoss.apply(place, normalise(e.texts), t.log_scale.view(1), t.bias.view(1), [block], len(place))

    def _sum_loss(self, e: _Embedded) -> Tensor:
        """The loss of the sum of all modalities, some left out, against the binding one."""
        s = self.settings
        weight = torch.from_numpy(e.batch.summed[e.rows]).to(self.space.device)
        place = normalise(sum(w[:, None] * e.unit[m] for w, m in zip(weight.T, s.modalities, strict=True)))
        anchor = e.everyone[s.binding]
        return contrastive_losses.supcon(
            anchor, distributed.gather(place), e.species, self.temperature("sum")(), e.rows
        )

    def _embed_anywhere(self, modality: str, batch: ContrastiveBatch, rows: slice) -> Tensor:
        assert batch.anywhere is not None  # by `draw`
        values = self.pairs.values_anywhere(modality, batch.anywhere[rows])
        with torch.set_grad_enabled(torch.is_grad_enabled() and modality in self.settings.train):
            return self.space.embed(modality, values)

    def _raw(self, modality: str, batch: ContrastiveBatch, rows: slice) -> Tensor:
        """Embeddings of this process's rows, not of unit length."""
        index = (batch.species if modality == "text" else batch.place)[rows]
        if modality in self.locked:
            return self._locked_embeddings(modality, index)
        if modality == "text":
            return self._text(index, None if batch.ranks is None else batch.ranks[rows])
        return self.space.embed(modality, self.pairs.values(modality, index))

    def _text(self, index: np.ndarray, ranks: np.ndarray | None) -> Tensor:
        if "text" in self.locked:
            return self._locked_embeddings("text", index)
        keep = None if ranks is None else torch.from_numpy(ranks).to(self.space.device)
        return self.space.embed("text", self.pairs.values("text", index), keep)

    def _locked_embeddings(self, modality: str, index: np.ndarray) -> Tensor:
        """Embeddings of a locked tower: computed once, in blocks, so that they are the same after a resume."""
        if modality not in self._cache:
            rows = self.pairs.species if modality == "text" else self.pairs.places
            first = self._encode(self.space, modality, index[:1])
            fits = rows * first.shape[1] * 4 <= CACHE_BYTES
            table = first.new_empty(rows if fits else 0, first.shape[1])
            self._cache[modality] = table, np.zeros(-(-len(table) // CACHE_BLOCK), bool)
        table, full = self._cache[modality]
        if not len(table):
            return self._encode(self.space, modality, index)
        for k in np.unique(index // CACHE_BLOCK):
            if not full[k]:
                part = np.arange(k * CACHE_BLOCK, min((k + 1) * CACHE_BLOCK, len(table)))
                table[part[0] : part[-1] + 1] = self._encode(self.space, modality, part)
                full[k] = True
        return table[torch.from_numpy(index).to(table.device)]

    @torch.no_grad()
    def _encode(self, space: Space, modality: str, index: np.ndarray) -> Tensor:
        with torch.autocast(self.space.device.type, enabled=False):
            return space.embed(modality, self.pairs.values(modality, index))

    def _distillation(self, e: _Embedded) -> Tensor:
        """Mean distance of the towers that learn to their embeddings before training."""
        assert self.before is not None
        parts = []
        for m in self.settings.train:
            index = (e.batch.species if m == "text" else e.batch.place)[e.rows]
            now = e.raw[m]
            if m == "text" and e.texts is not None:
                now, index = e.texts, np.arange(self.pairs.species)
            before = self._encode(self.before, m, index)
            if self.settings.distil_by == "cosine":
                parts.append((1.0 - (normalise(now) * normalise(before)).sum(1)).mean())
            else:
                parts.append(((now - before) ** 2).sum(1).mean() / (before**2).sum(1).mean())
        return torch.stack(parts).mean()

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Weight decay on matrices; the text tower may have its own rate, a table of vectors hardly decays."""
        s = self.rates
        groups: list[dict[str, Any]] = []
        for m in self.settings.train:
            own = [p for p in self.space.towers[m].parameters() if p.requires_grad]
            rate = s.text_learning_rate or s.learning_rate if m == "text" else s.learning_rate
            if isinstance(getattr(self.space.towers[m], "embedding", None), nn.Embedding):
                groups.append({"params": own, "lr": rate, "weight_decay": min(1e-4, s.weight_decay)})
                continue
            groups.append({"params": [p for p in own if p.ndim > 1], "lr": rate, "weight_decay": s.weight_decay})
            groups.append({"params": [p for p in own if p.ndim <= 1], "lr": rate, "weight_decay": 0.0})
        scales = [p for p in self.temperatures.parameters() if p.requires_grad]
        groups.append({"params": scales, "lr": s.learning_rate, "weight_decay": 0.0})
        return [g for g in groups if g["params"]]

    def clamp(self) -> None:
        """Clamp the temperatures to their limits."""
        for m in self.temperatures:
            self.temperature(m).clamp()
