"""Binding modalities to one: locked tuning and full fine-tuning, as an objective for the trainer.

One modality is the binding one. Every other is aligned to it by a contrastive loss of its own, so modalities
that were never paired end up comparable (arXiv 2411.00683). With the binding tower locked this is *locked
tuning*; with all towers learning it is *full fine-tuning*, after which `sdm.training.patching` looks for a place
between the two.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sdm.errors import RequestError
from sdm.models.score import normalise
from sdm.training import contrastive, distributed
from sdm.training.loss import BlockLabels, RangeLoss
from sdm.training.pairs import BALANCES, Pairs
from sdm.training.towers import Space
from sdm.training.trainer import Objective

LOSSES = ("infonce", "supcon", "location", "sigmoid", "range")
USUAL = {"location": "location", "environment": "location", "satellite": "supcon", "audio": "infonce"}
"""TaxaBind's loss by modality; "supcon" for others, since a species may well occur twice in a batch."""
DISTILLATIONS = ("cosine", "l2")
NEGATIVES = ("area", "degrees")
CACHE_BYTES, CACHE_BLOCK = 2 << 30, 64
"""Of what locked towers give: most memory per tower, and rows that are computed at once."""
RANGE_START = (0.05, -6.0)
"""Temperature and bias at which the range loss starts: most species are absent from most places."""


@dataclass(frozen=True)
class Binding:
    """What is bound to what, and how."""

    binding: str = "text"
    modalities: tuple[str, ...] = ()
    """Aligned to the binding one; () is all others of the space."""
    train: tuple[str, ...] = ()
    """Towers that learn; () is `modalities` (locked tuning). With the binding one too: full fine-tuning."""
    losses: dict = field(default_factory=dict)
    """By modality: infonce, supcon, location, sigmoid, or range (the whole of the ranges rather than pairs; one side
    must be text). See USUAL for the default."""
    balance: str = "place"
    """Of what is drawn: place (a place, then a species there) or species (a species, then a place)."""
    negatives: str = "area"
    """Random places of the location loss: uniform by area, or by degrees as the authors have them."""
    temperature: float = 0.07
    learn_temperature: bool = True
    location_weights: tuple[float, float] = (0.4, 0.6)
    """Of CE(anchor -> location) and CE(location -> anchor)."""
    sum_weight: float = 0.0
    """Weight of one more loss, that of the normalised sum of all modalities against the binding one."""
    modality_dropout: float = 0.0
    """Chance of each modality to be left out of that sum, per observation; at least one stays."""
    distil: float = 0.0
    """Weight of the distance to the embeddings before training, of the towers that learn."""
    distil_by: str = "cosine"
    """"cosine": 1 - cosine; "l2": squared distance before normalisation, over the mean squared length."""

    def check(self) -> None:
        """Raise RequestError for a value that can be in no space."""
        for key, known in (("balance", BALANCES), ("negatives", NEGATIVES), ("distil_by", DISTILLATIONS)):
            if getattr(self, key) not in known:
                raise RequestError(f"{key} {getattr(self, key)!r} is not known; choose {' or '.join(known)}.")
        for m, loss in self.losses.items():
            if loss not in LOSSES:
                raise RequestError(f"loss {loss!r} of {m} is not known; choose {', '.join(LOSSES)}.")
        if not any(self.location_weights):
            raise RequestError("location_weights are both 0, so the location loss would teach nothing.")

    def resolved(self, space: Space, pairs: Pairs) -> Binding:
        """With defaults filled in. Raises RequestError naming what cannot be."""
        self.check()
        there = tuple(m for m in space.modalities if m in pairs.modalities)
        if self.binding not in there:
            raise RequestError(f"binding modality {self.binding!r} is not there; choose any of {', '.join(there)}.")
        modalities = self.modalities or tuple(m for m in there if m != self.binding)
        train = self.train or modalities
        for m in (*modalities, *train):
            if m not in there:
                raise RequestError(f"modality {m!r} is not there; choose any of {', '.join(there)}.")
        if self.binding in modalities:
            raise RequestError(f"modality {self.binding!r} cannot be bound to itself; it is the binding one.")
        if idle := [m for m in train if m not in (*modalities, self.binding)]:
            raise RequestError(f"modality {idle[0]!r} is to be trained but not bound: add it to modalities.")
        losses = {m: self.losses.get(m, USUAL.get(m, "supcon")) for m in modalities}
        if unknown := [m for m in self.losses if m not in modalities]:
            raise RequestError(f"losses name {unknown[0]!r}, which is not bound; bound are {', '.join(modalities)}.")
        for m, loss in losses.items():
            if loss == "range" and "text" not in (m, self.binding):
                raise RequestError(f"loss 'range' of {m} needs text: it compares places with all species.")
            if loss == "range" and not hasattr(pairs, "presence"):
                raise RequestError(f"loss 'range' of {m} needs range data; observations tell nothing of absence.")
        return Binding(**{**vars(self), "modalities": modalities, "train": train, "losses": losses})


@dataclass(frozen=True)
class Rates:
    """How fast the towers learn, and what a text tower of one vector per rank goes without (see the recipe)."""

    learning_rate: float = 1e-4
    text_learning_rate: float = 0.0
    """0: as the others."""
    weight_decay: float = 0.01
    species_dropout: float = 0.0
    genus_dropout: float = 0.0


@dataclass(frozen=True)
class Batch:
    """All that is random about a step, of the whole batch."""

    place: np.ndarray
    species: np.ndarray
    anywhere: np.ndarray | None
    summed: np.ndarray
    """(n, modalities) 0/1: which are in the sum."""
    ranks: np.ndarray | None
    """(n or species, ranks) 0/1: which vectors of the text tower are used."""


class BindingObjective(Objective):
    """A space, what to draw from, and how to bind: the sum of the losses of all modalities, divided by their number.

    Locked towers stay in evaluation mode; what they give is kept, since it never changes.
    """

    def __init__(self, space: Space, pairs: Pairs, settings: Binding, rates: Rates = Rates()) -> None:
        super().__init__()
        self.rates = rates
        self.settings = s = settings.resolved(space, pairs)
        self.space, self.pairs = space, pairs
        # Short clips leave a part of the audio encoder alone.
        self.every_parameter_used = "audio" not in s.train
        self.locked = tuple(m for m in (s.binding, *s.modalities) if m not in s.train)
        space.requires_grad_(False)
        for m in s.train:
            for name, parameter in space.towers[m].named_parameters():
                # The frequencies of the published location encoder are stored as a parameter.
                parameter.requires_grad_(not name.endswith("capsule.0.b"))
        kinds = dict(s.losses) | ({"sum": "supcon"} if s.sum_weight else {})
        self.temperatures = nn.ModuleDict({m: self._temperature(loss) for m, loss in kinds.items()})
        self._cache: dict[str, tuple[Tensor, np.ndarray]] = {}
        # A part of the checkpoint: what training started from, whatever it has become by then.
        self.before = copy.deepcopy(space).eval().requires_grad_(False) if s.distil else None
        self.train()

    def _temperature(self, loss: str) -> contrastive.Temperature:
        s = self.settings
        t = contrastive.Temperature(RANGE_START[0] if loss == "range" else s.temperature, s.learn_temperature)
        with torch.no_grad():
            t.bias.fill_(RANGE_START[1] if loss == "range" else -10.0)
        t.bias.requires_grad_(loss in ("range", "sigmoid") and s.learn_temperature)
        return t

    def train(self, mode: bool = True) -> BindingObjective:
        """Training mode for the towers that learn only."""
        super().train(mode)
        for modality, tower in self.space.towers.items():
            tower.train(mode and modality in self.settings.train)
        if self.before is not None:
            self.before.eval()
        return self

    def draw(self, n: int, rng: np.random.Generator) -> Batch:
        """See `Objective`."""
        s = self.settings
        place, species = self.pairs.draw(n, rng)
        anywhere = self.pairs.anywhere(n, rng) if "location" in s.losses.values() else None
        summed = (rng.random((n, len(s.modalities))) >= s.modality_dropout).astype(np.float32)
        summed[summed.sum(1) == 0, :] = 1.0
        return Batch(place, species, anywhere, summed, self._ranks(n, rng))

    def _ranks(self, n: int, rng: np.random.Generator) -> np.ndarray | None:
        r = self.rates
        if "text" not in self.settings.train or not r.species_dropout:
            return None
        n = self.pairs.species if self._all_species else n
        ranks = len(self.pairs.values("text", np.zeros(1, np.int64))[0])
        keep = np.ones((n, ranks), np.float32)
        without = rng.random(n) < r.species_dropout
        keep[without, -1] = 0
        keep[without & (rng.random(n) < r.genus_dropout), -2] = 0
        return keep

    @property
    def _all_species(self) -> bool:
        """Whether a step needs the text of every species, not only of those drawn."""
        return "range" in self.settings.losses.values()

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Any]]:
        """See `Objective`."""
        s, rows = self.settings, distributed.share(len(batch.place))
        device = self.space.device
        species = torch.from_numpy(batch.species).to(device)
        raw = {m: self._raw(m, batch, rows) for m in (s.binding, *s.modalities) if m != "text"}
        texts = None
        if self._all_species:
            texts = self._text(np.arange(self.pairs.species), batch.ranks)
            raw["text"] = texts[species[rows]]
        elif "text" in (s.binding, *s.modalities):
            raw["text"] = self._raw("text", batch, rows)
        unit = {m: normalise(z) for m, z in raw.items()}
        everyone = {m: distributed.gather(z) for m, z in unit.items()}
        anchor = everyone[s.binding]
        losses: dict[str, Tensor] = {}
        for m in s.modalities:
            losses[m] = self._loss(m, unit, anchor, everyone[m], texts, species, batch, rows)
        total = torch.stack(list(losses.values())).mean()
        if s.sum_weight:
            weight = torch.from_numpy(batch.summed[rows]).to(device)
            place = normalise(sum(w[:, None] * unit[m] for w, m in zip(weight.T, s.modalities, strict=True)))
            losses["sum"] = contrastive.supcon(
                anchor, distributed.gather(place), species, self.temperatures["sum"](), rows
            )
            total = total + s.sum_weight * losses["sum"]
        if s.distil:
            losses["distil"] = self._distil(raw, texts, batch, rows)
            total = total + s.distil * losses["distil"]
        numbers: dict[str, Any] = {f"loss {m}": v.detach() for m, v in losses.items()}
        if s.learn_temperature:
            numbers |= {f"scale {m}": t().detach() for m, t in self.temperatures.items()}
        return total, numbers

    def _loss(
        self, m: str, unit: dict, anchor: Tensor, other: Tensor, texts: Tensor | None, species: Tensor, batch: Batch,
        rows: slice,
    ) -> Tensor:  # fmt: skip
        s, temperature = self.settings, self.temperatures[m]
        match s.losses[m]:
            case "infonce":
                return contrastive.info_nce(anchor, other, temperature(), rows)
            case "supcon":
                return contrastive.supcon(anchor, other, species, temperature(), rows)
            case "sigmoid":
                return contrastive.sigmoid_pairs(anchor, other, species, temperature(), temperature.bias, rows)
            case "location":
                negatives = distributed.gather(normalise(self._elsewhere(m, batch, rows)))
                return contrastive.location_loss(
                    anchor, other, negatives, species, temperature(), s.location_weights, rows
                )
        place = unit[s.binding if m == "text" else m]
        present = torch.from_numpy(self.pairs.presence(batch.place[rows])).to(place.device)
        block = BlockLabels(present, None, slice(0, present.shape[1]))
        return RangeLoss.apply(
            place, normalise(texts), temperature.log_scale.view(1), temperature.bias.view(1), [block], len(place)
        )

    def _elsewhere(self, modality: str, batch: Batch, rows: slice) -> Tensor:
        values = self.pairs.values_anywhere(modality, batch.anywhere[rows])
        with torch.set_grad_enabled(torch.is_grad_enabled() and modality in self.settings.train):
            return self.space.embed(modality, values)

    def _raw(self, modality: str, batch: Batch, rows: slice) -> Tensor:
        """Embeddings of this rank's rows, not of unit length."""
        index = (batch.species if modality == "text" else batch.place)[rows]
        if modality in self.locked:
            return self._kept(modality, index)
        if modality == "text":
            return self._text(index, None if batch.ranks is None else batch.ranks[rows])
        return self.space.embed(modality, self.pairs.values(modality, index))

    def _text(self, index: np.ndarray, ranks: np.ndarray | None) -> Tensor:
        if "text" in self.locked:
            return self._kept("text", index)
        keep = None if ranks is None else torch.from_numpy(ranks).to(self.space.device)
        return self.space.embed("text", self.pairs.values("text", index), keep)

    def _kept(self, modality: str, index: np.ndarray) -> Tensor:
        """What a locked tower gives for rows: computed once, in blocks, so that it is the same after a resume."""
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

    def _distil(self, raw: dict[str, Tensor], texts: Tensor | None, batch: Batch, rows: slice) -> Tensor:
        """Mean distance of what learns to what it was before training."""
        parts = []
        for m in self.settings.train:
            index = (batch.species if m == "text" else batch.place)[rows]
            now = raw[m]
            if m == "text" and texts is not None:
                now, index = texts, np.arange(self.pairs.species)
            was = self._encode(self.before, m, index)
            if self.settings.distil_by == "cosine":
                parts.append((1.0 - (normalise(now) * normalise(was)).sum(1)).mean())
            else:
                parts.append(((now - was) ** 2).sum(1).mean() / (was**2).sum(1).mean())
        return torch.stack(parts).mean()

    def parameter_groups(self) -> list[dict]:
        """Weight decay on matrices; the text tower may learn at a rate of its own, a table of vectors hardly decays."""
        s, groups = self.rates, []
        for m in self.settings.train:
            own = [p for p in self.space.towers[m].parameters() if p.requires_grad]
            rate = s.text_learning_rate or s.learning_rate if m == "text" else s.learning_rate
            if isinstance(getattr(self.space.towers[m], "embedding", None), nn.Embedding):
                groups.append({"params": own, "lr": rate, "weight_decay": min(1e-4, s.weight_decay)})
                continue
            groups.append({"params": [p for p in own if p.ndim > 1], "lr": rate, "weight_decay": s.weight_decay})
            groups.append({"params": [p for p in own if p.ndim <= 1], "lr": rate, "weight_decay": 0.0})
        scales = [p for p in self.temperatures.parameters() if p.requires_grad]
        return [g for g in (*groups, {"params": scales, "lr": s.learning_rate, "weight_decay": 0.0}) if g["params"]]

    def clamp(self) -> None:
        """The temperatures, back into their bounds."""
        for temperature in self.temperatures.values():
            temperature.clamp()
