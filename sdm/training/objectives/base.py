"""The base of all objectives: what a trainer optimises."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor, nn


class Objective(nn.Module):
    """What is learned: parameters and buffers, a way to draw batches, and the loss.

    Everything random about a step is drawn by `draw`, from the generator it is given, for the *whole* batch, so
    every process of a distributed run draws the same and a resumed run continues exactly. (Dropout layers draw from
    torch's generator, whose state is kept as well, but differ between processes.)
    """

    every_parameter_used = True
    """False when a step may leave parameters without a gradient: DDP has to look for them."""

    def draw(self, n: int, rng: np.random.Generator) -> Any:
        """The global batch of `n`: indices and everything else that is random about it."""
        raise NotImplementedError

    def forward(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean loss over this rank's share (`distributed.share`) of a batch, and numbers for the curves.

        It runs under the trainer's autocast: convert with `.float()` what needs full precision.
        """
        raise NotImplementedError

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Groups of trainable parameters for AdamW, each {"params", "lr", "weight_decay"}."""
        raise NotImplementedError

    def clamp(self) -> None:
        """Clamp parameters to their limits after a step, e.g. the temperature."""
