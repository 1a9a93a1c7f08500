"""The binding objective over the training set of a recipe, with the members by which a run develops and ships it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from sdm.errors import RequestError
from sdm.models.bundled import BundledModel
from sdm.models.score import normalise
from sdm.request.choices import MODALITIES
from sdm.training.binding import BindingObjective, Rates
from sdm.training.objective import architecture_config, start_from
from sdm.training.pairs import prepared_pairs
from sdm.training.prepare import Prepared
from sdm.training.recipe import Recipe
from sdm.training.towers import BundledSpace


class BoundObjective(BindingObjective):
    """What [binding] of a recipe says, in the place of the range objective; see `sdm.training.objective`."""

    def __init__(
        self, recipe: Recipe, data: Prepared, groups: np.ndarray, without: np.ndarray | None, initial: BundledModel | None
    ) -> None:
        """`groups`: those of the places that are trained on; `without` (S,) bool: species held out, which cannot be.

        `initial`: the model to start from; None: random weights, drawn from torch's generator, so seed it before.
        """
        o, rates, b = recipe.objective, recipe.optimiser, recipe.binding
        if without is not None and without.any():
            raise RequestError("split 'species' is for the range objective; [binding] draws pairs of all species.")
        config = architecture_config(recipe, data)
        space = BundledSpace(config, data.vocabulary, Path(), o.dropout, o.env_dropout)
        if o.locked and not b.train:
            bound = (b.binding, *(b.modalities or (m for m in space.modalities if m != b.binding)))
            b = replace(b, train=tuple(m for m in bound if m not in o.locked))
        if initial is not None:
            start_from(space.towers, initial, data.vocabulary)
        pairs = prepared_pairs(data, groups, b.balance, b.negatives, seed=rates.seed)
        super().__init__(space, pairs, b, Rates(
            rates.learning_rate, rates.text_learning_rate, rates.weight_decay, o.species_dropout, o.genus_dropout,
        ))  # fmt: skip
        self.data = data

    @property
    def encoders(self) -> nn.ModuleDict:
        """The towers by modality."""
        return self.space.towers

    @property
    def _calibrated(self) -> nn.Module:
        kinds = [m for m, loss in self.settings.losses.items() if loss in ("range", "sigmoid")]
        return self.temperatures[(kinds or list(self.temperatures))[0]]

    @property
    def log_scale(self) -> Tensor:
        """(1,) where the fit of the calibration starts."""
        return self._calibrated.log_scale.detach().view(1)

    @property
    def bias(self) -> Tensor:
        """(1,), likewise."""
        return self._calibrated.bias.detach().view(1)

    @torch.inference_mode()
    def embed_places(self, data: Prepared, batch: int = 4096) -> dict[str, Tensor]:
        """Unit embeddings of all places of a set per modality, (P, dim) float32."""
        self.eval()
        n = len(data.places.lonlat)
        parts = [np.arange(i, min(i + batch, n)) for i in range(0, n, batch)]
        return {
            m: torch.cat([normalise(self.space.embed(m, data.values(m, rows))) for rows in parts]) for m in MODALITIES
        }

    @torch.inference_mode()
    def embed_species(self, rank: str = "species") -> Tensor:
        """Unit embeddings of all species, (S, dim), by the vectors of their ranks down to `rank` only."""
        self.eval()
        rows = self.data.species_rows
        keep = torch.ones(rows.shape, device=self.space.device)
        keep[:, self.data.ranks.index(rank) + 1 :] = 0
        return normalise(self.space.embed("text", rows, keep))
