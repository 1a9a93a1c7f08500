"""The training loop: the summed embedding against every range at once."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from sdm.model import MODALITIES, build
from sdm.score import normalise
from sdm.training.loss import RangeLoss
from sdm.training.prepare import Prepared
from sdm.training.recipe import Recipe


def architecture_config(recipe: Recipe, data: Prepared) -> dict:
    """The part of `config.json` that `sdm.model.build` reads."""
    a = recipe.architecture
    environment = dict(a.environment, inputs=[vars(i).copy() for i in data.inputs])
    return {"dim": a.dim, "location": a.location, "satellite": a.satellite, "environment": environment}


class Trainee(nn.Module):
    """All encoders with the scale and bias that turn a cosine into a logit."""

    def __init__(self, recipe: Recipe, data: Prepared) -> None:
        super().__init__()
        o = recipe.optimiser
        self.encoders = build(architecture_config(recipe, data), data.vocabulary, o.dropout, o.env_dropout)
        self.log_scale = nn.Parameter(torch.tensor([math.log(20.0)]))
        self.bias = nn.Parameter(torch.tensor([-6.0]))

    def modality(self, data: Prepared, index: np.ndarray) -> list[Tensor]:
        """Unit embeddings of places in the order of MODALITIES, each (N, dim)."""
        device = self.bias.device
        inputs = {
            "location": torch.from_numpy(data.places.lonlat[index].astype(np.float32)),
            "satellite": torch.from_numpy(data.crops[index]),
            "environment": torch.from_numpy(data.environment[index]),
        }
        with torch.autocast(device.type, dtype=torch.bfloat16):
            raw = [self.encoders[m](inputs[m].to(device)) for m in MODALITIES]
        return [normalise(r.float()) for r in raw]


def train(
    recipe: Recipe, data: Prepared, cells: np.ndarray, device: str = "cpu", log: Callable[[str], None] = print
) -> Trainee:
    """Train on the given raster cells; returns the moving average of the weights along the run.

    Each step draws places (cells by the recipe's shares, then a place in the cell), scores most of
    them by the sum of all modalities and the rest by a random subset, so that every subset stays
    usable, and compares each with all ranges. The species vector is left out for a share of the
    species, the genus vector for a share of those.
    """
    o = recipe.optimiser
    torch.manual_seed(o.seed)
    rng = np.random.default_rng(o.seed)
    model = Trainee(recipe, data).to(device)
    average = copy.deepcopy(model).eval().requires_grad_(False)
    optimiser = torch.optim.AdamW(_groups(model, o), lr=o.learning_rate, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, [g["lr"] for g in optimiser.param_groups], total_steps=o.steps, pct_start=0.1
    )
    rows = torch.from_numpy(data.species_rows).to(device)
    draw = _Sampler(data, cells, recipe, rng)
    subsets = _Subsets(o.subset_shares, device)
    started, total = time.time(), 0.0
    for step in range(1, o.steps + 1):
        model.train()
        index = draw(o.batch)
        presence = torch.from_numpy(data.labels(index)).to(device)
        species = normalise(model.encoders["text"](rows, _rank_dropout(rows, o, device)))
        embeddings = model.modality(data, index)
        weights = subsets.draw(o.batch)  # (B, 3) of 0 and 1
        place = normalise(sum(w.unsqueeze(1) * e for w, e in zip(weights.T, embeddings, strict=True)))
        unknown = torch.from_numpy(data.polygon_rows[index] < 0).to(device)
        loss = RangeLoss.apply(place, species, model.log_scale, model.bias, presence, unknown, len(data.raster.species))
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        with torch.no_grad():
            # A short memory at first, so that the average forgets the random start.
            decay = min(o.ema, step / (step + 10))
            for kept, new in zip(average.parameters(), model.parameters(), strict=True):
                kept.lerp_(new, 1 - decay)
        total += loss.item()
        if step % 100 == 0 or step == o.steps:
            elapsed = time.time() - started
            mean, left = total / (step % 100 or 100), elapsed / step * (o.steps - step)
            scale, bias = model.log_scale.exp().item(), model.bias.item()
            log(
                f"step {step}/{o.steps} loss {mean:.4f} scale {scale:.1f} bias {bias:.2f} "
                f"elapsed {elapsed:.0f} s, left {left:.0f} s"
            )
            total = 0.0
    return average


@torch.inference_mode()
def embed_places(model: Trainee, data: Prepared, index: np.ndarray, batch: int = 4096) -> dict[str, Tensor]:
    """Unit embeddings of places per modality, (N, dim) float32."""
    model.eval()
    parts = [model.modality(data, index[i : i + batch]) for i in range(0, len(index), batch)]
    return {m: torch.cat([p[k] for p in parts]) for k, m in enumerate(MODALITIES)}


@torch.inference_mode()
def embed_species(model: Trainee, data: Prepared) -> Tensor:
    """Unit embeddings of all species, (S, dim)."""
    model.eval()
    return normalise(model.encoders["text"](torch.from_numpy(data.species_rows).to(model.bias.device)))


class _Sampler:
    """Draws places: land and sea cells by their shares, cells with polygons more often, then a place in the cell."""

    def __init__(self, data: Prepared, cells: np.ndarray, recipe: Recipe, rng: np.random.Generator) -> None:
        o, p = recipe.optimiser, data.places
        cells = cells[p.count[cells] > 0]
        weight = np.ones(cells.size)
        if data.polygon_species:
            weight[data.polygon_rows[p.start[cells]] >= 0] = o.tree_weight
        land = p.land[cells]
        weight[land] *= o.land_share / weight[land].sum()
        weight[~land] *= (1 - o.land_share) / weight[~land].sum()
        self.cells, self.cumulative = cells, np.cumsum(weight) / weight.sum()
        self.start, self.count, self.rng = p.start, p.count, rng

    def __call__(self, n: int) -> np.ndarray:
        drawn = np.searchsorted(self.cumulative, self.rng.random(n), side="right")
        cell = self.cells[np.minimum(drawn, self.cells.size - 1)]
        return self.start[cell] + (self.rng.random(n) * self.count[cell]).astype(np.int64)


class _Subsets:
    """Draws, per place, which modalities are summed."""

    def __init__(self, shares: dict[str, float], device: str) -> None:
        names = list(shares)
        masks = [[float(m in name.split("+")) for m in MODALITIES] for name in names] + [[1.0] * len(MODALITIES)]
        chance = [shares[n] for n in names]
        self.masks = torch.tensor(masks, device=device)
        self.chance = torch.tensor([*chance, 1.0 - sum(chance)], device=device)

    def draw(self, n: int) -> Tensor:
        return self.masks[torch.multinomial(self.chance, n, replacement=True)]


def _rank_dropout(rows: Tensor, o, device: str) -> Tensor:
    keep = torch.ones(rows.shape, device=device)
    drop_species = torch.rand(len(rows), device=device) < o.species_dropout
    drop_genus = drop_species & (torch.rand(len(rows), device=device) < o.genus_dropout)
    keep[:, -1][drop_species] = 0.0
    keep[:, -2][drop_genus] = 0.0
    return keep


def _groups(model: Trainee, o) -> list[dict]:
    """Weight decay on matrices of the place encoders; the text table learns faster and hardly decays."""
    text = list(model.encoders["text"].parameters())
    rest = [p for n, p in model.named_parameters() if not n.startswith("encoders.text")]
    return [
        {"params": [p for p in rest if p.ndim > 1], "weight_decay": o.weight_decay, "lr": o.learning_rate},
        {"params": [p for p in rest if p.ndim <= 1], "weight_decay": 0.0, "lr": o.learning_rate},
        {"params": text, "weight_decay": 1e-4, "lr": o.text_learning_rate},
    ]
