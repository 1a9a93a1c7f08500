"""The contrastive objective of a recipe with [binding], with what a run needs to assess and export it."""

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
from sdm.training.data.pairs import range_pairs
from sdm.training.data.training_set import TrainingSet
from sdm.training.objectives.contrastive import ContrastiveObjective, Rates
from sdm.training.objectives.contrastive_losses import Temperature
from sdm.training.recipe.range_recipe import Recipe
from sdm.training.recipe.sections import BindingSettings
from sdm.training.spaces import BundledSpace, architecture_config, start_from


class RecipeContrastiveObjective(ContrastiveObjective):
    """The contrastive objective over the training set of a recipe; it takes the place of the range objective."""

    def __init__(
        self,
        recipe: Recipe,
        binding: BindingSettings,
        data: TrainingSet,
        groups: np.ndarray,
        *,
        held_out: np.ndarray | None = None,
        initial: BundledModel | None = None,
    ) -> None:
        """Open a space and draw pairs.

        Parameters
        ----------
        recipe, binding : the recipe and its [binding]
        data : the training set
        groups : the groups of places to train on
        held_out : (S,) bool, species held out, of which there must be none
        initial : the model to start from; None: random weights, drawn from torch's generator, so seed it before
        """
        o, rates = recipe.objective, recipe.optimiser
        if held_out is not None and held_out.any():
            raise RequestError("split 'species' is for the range objective; [binding] draws pairs of all species.")
        config = architecture_config(recipe, data)
        space = BundledSpace(config, data.vocabulary, Path(), o.dropout, o.env_dropout)
        if o.locked and not binding.train:
            others = binding.modalities or tuple(m for m in space.modalities if m != binding.binding)
            learning = tuple(m for m in (binding.binding, *others) if m not in o.locked)
            binding = replace(binding, train=learning)
        if initial is not None:
            start_from(space.towers, initial, data.vocabulary)
        pairs = range_pairs(data, groups, binding.balance, binding.negatives, seed=rates.seed)
        super().__init__(
            space,
            pairs,
            binding,
            Rates(
                rates.learning_rate,
                rates.text_learning_rate,
                rates.weight_decay,
                o.species_dropout,
                o.genus_dropout,
            ),
        )
        self.data = data

    @property
    def encoders(self) -> nn.ModuleDict:
        """The towers by modality."""
        return self.space.towers

    @property
    def _calibrated(self) -> Temperature:
        """The temperature that says most about probabilities."""
        kinds = [m for m, loss in self.settings.losses.items() if loss in ("range", "sigmoid")]
        return self.temperature((kinds or list(self.temperatures))[0])

    @property
    def log_scale(self) -> Tensor:
        """(1,) log of the scale at which the fit of the calibration starts."""
        return self._calibrated.log_scale.detach().view(1)

    @property
    def bias(self) -> Tensor:
        """(1,) bias, likewise."""
        return self._calibrated.bias.detach().view(1)

    @torch.inference_mode()
    def embed_places(self, data: TrainingSet, batch: int = 4096) -> dict[str, Tensor]:
        """Unit embeddings of all places of a training set by modality, (P, dim) float32."""
        self.eval()
        n = len(data.places.lonlat)
        parts = [np.arange(i, min(i + batch, n)) for i in range(0, n, batch)]
        return {
            m: torch.cat([normalise(self.space.embed(m, data.values(m, rows))) for rows in parts]) for m in MODALITIES
        }

    @torch.inference_mode()
    def embed_species(self, rank: str = "species") -> Tensor:
        """Unit embeddings of all species, (S, dim), by the vectors of their ranks from class down to `rank`."""
        self.eval()
        rows = self.data.species_rows
        keep = torch.ones(rows.shape, device=self.space.device)
        keep[:, self.data.ranks.index(rank) + 1 :] = 0
        return normalise(self.space.embed("text", rows, keep))
