"""Where in its areas a species lives, learned from species whose ranges are known.

A network turns the list of areas of a species, and those of its genus and family, into a vector and a bias; the
sigmoid of the product with the embedding of a place is the probability that the species lives there, given that the
place lies in one of its areas. It is trained on the lists of other species, made from their ranges: what is common to
the species of Chile and Argentina, or to the endemics of Madagascar, holds for those whose lists are all that is known.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch import nn

from sdm.training.species.fit import PRESENT

BATCH, DRAWN = 256, 48
RATE, DECAY, LENGTH = 2e-3, 0.02, 2e-5
"""Learning rate, decay of the weights, and weight of the squared length of the vectors."""
WIDTH, DROPOUT = 384, 0.1


@dataclass(frozen=True)
class Areas:
    """Places in areas."""

    embeddings: np.ndarray
    """(P, dim) float32."""
    km2: np.ndarray
    """(P,)."""
    area: np.ndarray
    """(P,) number of the area, -1 for none."""
    count: int
    """How many areas there are."""

    def sizes(self) -> np.ndarray:
        """(A,) km2 of the areas."""
        there = self.area >= 0
        return np.bincount(self.area[there], self.km2[there], self.count)

    def means(self) -> np.ndarray:
        """(A, dim) mean embedding of each area."""
        there = np.flatnonzero(self.area >= 0)
        shape = (self.count, len(self.area))
        matrix = csr_matrix((self.km2[there], (self.area[there], there)), shape=shape)
        return (matrix @ self.embeddings) / np.maximum(self.sizes(), 1e-6)[:, None]


@dataclass(frozen=True)
class Listed:
    """Species with their lists of areas."""

    listed: np.ndarray
    """(S, A) bool."""
    genus: Sequence[str]
    family: Sequence[str]


def features(species: Listed, areas: Areas) -> np.ndarray:
    """(S, F) float32: what the network is told of each species."""
    lists = species.listed.astype(np.float32)
    weighed = lists * areas.sizes().astype(np.float32)
    total = weighed.sum(axis=1, keepdims=True)
    parts = [lists, 0.1 * np.log1p(total), 8 * (weighed @ areas.means()) / np.maximum(total, 1e-6)]
    for group in (species.genus, species.family):
        mean, count = _relatives(lists, group)
        parts += [mean, np.log1p(count)]
    return np.concatenate(parts, axis=1).astype(np.float32)


def _relatives(lists: np.ndarray, group: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """(S, A) mean of the lists of the other members of the group of each species, (S, 1) how many they are."""
    _, number = np.unique(np.asarray(group), return_inverse=True)
    total = np.zeros((number.max() + 1, lists.shape[1]), np.float32)
    np.add.at(total, number, lists)
    others = np.bincount(number)[number][:, None] - 1
    return (total[number] - lists) / np.maximum(others, 1), others.astype(np.float32)


class Inside:
    """A trained network."""

    def __init__(self, areas: Areas, taught: Listed) -> None:
        torch.manual_seed(0)
        self.areas, self.taught = areas, taught
        self.described = features(taught, areas)
        self.network = nn.Sequential(
            nn.Linear(self.described.shape[1], WIDTH), nn.GELU(), nn.Dropout(DROPOUT),
            nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Dropout(DROPOUT),
            nn.Linear(WIDTH, areas.embeddings.shape[1] + 1),
        )  # fmt: skip

    @torch.inference_mode()
    def vectors(self, species: Listed) -> tuple[np.ndarray, np.ndarray]:
        """(S, dim) vectors, not normalised, and (S,) biases, of species that have lists."""
        self.network.eval()
        out = self.network(torch.from_numpy(features(species, self.areas))).numpy()
        return out[:, :-1], out[:, -1]

    def train(self, ranges: csr_matrix, used: np.ndarray, steps: int, log: Callable[[str], None]) -> None:
        """Train on the species `used`, (N,) indices, from the ranges (S, P) uint8 of all."""
        rng = np.random.default_rng(0)
        draw = _Draw(self.areas, self.taught.listed[used], ranges[used])
        places, inputs = torch.from_numpy(self.areas.embeddings), torch.from_numpy(self.described[used])
        optimiser = torch.optim.AdamW(self.network.parameters(), lr=RATE, weight_decay=DECAY)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=steps)
        self.network.train()
        mean = 0.0
        for step in range(steps):
            some = rng.choice(draw.usable, min(BATCH, draw.usable.size), replace=False)
            out = self.network(inputs[torch.from_numpy(some)])
            vector, bias = out[:, :-1], out[:, -1:]
            anywhere, there = draw.anywhere(some, rng), draw.present(some, rng)
            label = torch.from_numpy(draw.labels(some, anywhere))
            share = torch.from_numpy(draw.share[some])[:, None]
            wanted = share.clamp(min=PRESENT)
            prior = bias + torch.logit(wanted) - torch.logit(share)
            absent = nn.functional.softplus(_logit(places, anywhere, vector) + prior) * ~label
            present = nn.functional.softplus(-_logit(places, there, vector) - prior)
            loss = ((1 - wanted) / (1 - share) * absent).mean() + (wanted * present).mean()
            optimiser.zero_grad()
            (loss + LENGTH * (vector**2).sum(1).mean()).backward()
            optimiser.step()
            schedule.step()
            mean += loss.item()
            if (step + 1) % 100 == 0:
                log(f"where in an area: step {step + 1} of {steps}, loss {mean / 100:.4f}")
                mean = 0.0


def _logit(places: torch.Tensor, drawn: np.ndarray, vector: torch.Tensor) -> torch.Tensor:
    return torch.einsum("bkd,bd->bk", places[torch.from_numpy(drawn)], vector)


class _Draw:
    """Draws places of species."""

    def __init__(self, areas: Areas, listed: np.ndarray, ranges: csr_matrix) -> None:
        self.order = np.argsort(areas.area, kind="stable")
        self.order = self.order[areas.area[self.order] >= 0]
        self.reached = np.concatenate([[0.0], np.cumsum(areas.km2[self.order])])
        self.first = np.searchsorted(areas.area[self.order], np.arange(areas.count))
        sizes = areas.sizes()
        species, area = np.nonzero(listed & (sizes > 0))
        self.area = area
        self.begin = np.searchsorted(species, np.arange(len(listed) + 1))
        self.above = np.concatenate([[0.0], np.cumsum(sizes[area])])
        self.ranges = ranges
        inside = np.asarray((ranges > 0) @ areas.km2)
        whole = self.above[self.begin[1:]] - self.above[self.begin[:-1]]
        share = np.clip(inside / np.maximum(whole, 1e-6), 1e-5, 0.98)
        self.share = share.astype(np.float32)
        self.usable = np.flatnonzero((np.diff(self.begin) > 0) & (np.diff(ranges.indptr) > 0))
        self.lived = np.zeros(ranges.shape, dtype=bool)
        self.lived[np.repeat(np.arange(ranges.shape[0]), np.diff(ranges.indptr)), ranges.indices] = True

    def anywhere(self, species: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """(B, DRAWN) places in the areas of species (B,), uniform by area."""
        low, high = self.above[self.begin[species]], self.above[self.begin[species + 1]]
        drawn = low[:, None] + rng.random((species.size, DRAWN)) * (high - low)[:, None]
        entry = np.clip(np.searchsorted(self.above, drawn, side="right") - 1, 0, self.area.size - 1)
        within = self.reached[self.first[self.area[entry]]] + (drawn - self.above[entry])
        place = np.clip(np.searchsorted(self.reached, within, side="right") - 1, 0, self.order.size - 1)
        return self.order[place]

    def present(self, species: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """(B, DRAWN) places in the ranges of species (B,)."""
        start, count = self.ranges.indptr[species], np.diff(self.ranges.indptr)[species]
        return self.ranges.indices[start[:, None] + (rng.random((species.size, DRAWN)) * count[:, None]).astype(int)]

    def labels(self, species: np.ndarray, places: np.ndarray) -> np.ndarray:
        """(B, K) bool: whether species live at places (B, K)."""
        return self.lived[species[:, None], places]
