"""Text tower: a taxonomic string, as a vector."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import numpy as np
import torch
from torch import Tensor, nn

from sdm.models.encoders.blocks import normal_
from sdm.names import RANKS

FIRST_RANK = RANKS.index("class")
"""The tower reads from here down: kingdom and phylum add nothing within a model."""


def tokens(lineage: Sequence[str]) -> list[str]:
    """Vocabulary entries of a lineage (kingdom first): ["class:Mammalia", ..., "species:Ursus arctos"]."""
    return [f"{rank}:{name}" for rank, name in zip(RANKS, lineage, strict=False)][FIRST_RANK:]


class TaxonTower(nn.Module):
    """The sum of one learned vector per rank of the taxonomic string.

    Related species share the vectors of their common ranks, so that a species with few range cells borrows from its
    genus, and a name without a species vector still has those of its genus and family.
    During training the species vector (sometimes the genus too) is left out at random, which
    makes the vector of a genus the expectation over its species.
    """

    def __init__(self, vocabulary: Sequence[str], dim: int) -> None:
        super().__init__()
        self.index = {token: i for i, token in enumerate(vocabulary)}
        table = normal_(torch.empty(len(vocabulary), dim), 0.05)
        self.embedding = nn.Embedding.from_pretrained(table, freeze=False)

    def lookup(self, lineage: Sequence[str]) -> list[int]:
        """Rows of the ranks of a lineage that the vocabulary knows."""
        return [self.index[t] for t in tokens(lineage) if t in self.index]

    def forward(self, rows: Tensor, keep: Tensor | None = None) -> Tensor:
        """(S, R) rows of the vocabulary [and (S, R) 0/1 weights] -> (S, dim), not normalised."""
        # One fused sum: as products of (S, R, dim) it would be a third of a training step.
        return nn.functional.embedding_bag(rows, self.embedding.weight, mode="sum", per_sample_weights=keep)

    @torch.inference_mode()
    def embed_all(self, lineages: Sequence[Sequence[str]]) -> Tensor:
        """S lineages -> (S, dim), not normalised; raises KeyError when no rank of one is known."""
        rows = [self.lookup(lineage) for lineage in lineages]
        if not all(rows):
            raise KeyError(f"no rank of {' '.join(lineages[rows.index([])])} is in the vocabulary")
        starts = np.cumsum([0, *map(len, rows)])[:-1]
        flat, offsets = (torch.tensor(x, device=self.embedding.weight.device) for x in ([*chain(*rows)], starts))
        return nn.functional.embedding_bag(flat, self.embedding.weight, offsets, mode="sum")

    @torch.inference_mode()
    def embed(self, lineage: Sequence[str]) -> Tensor:
        """One lineage -> (dim,), not normalised; raises KeyError when no rank is known."""
        rows = self.lookup(lineage)
        if not rows:
            raise KeyError(f"no rank of {' '.join(lineage)} is in the vocabulary")
        return self.forward(torch.tensor([rows], device=self.embedding.weight.device))[0]
