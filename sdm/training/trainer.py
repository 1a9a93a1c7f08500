"""The trainer: everything about a run that is the same whatever is being learned.

What is learned is an `Objective`: parameters, a way to draw a batch, and a loss. The `Trainer` steps it
with AdamW under a schedule, keeps the moving average of the weights, writes checkpoints from which a run
goes on bit by bit as if it had never stopped, and records its curves.
"""

from __future__ import annotations

import json
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sdm.errors import RequestError
from sdm.resources import replace_file
from sdm.training import distributed
from sdm.training.curves import draw_curves, write_curves

SCHEDULES = ("one-cycle", "cosine-restarts", "constant")
PRECISIONS = ("bf16", "fp16", "float32")
CHECKPOINT = "checkpoint.pt"


class Objective(nn.Module):
    """What is learned: parameters and buffers, a way to draw batches, and the loss.

    Everything random about a step is drawn by `draw`, from the generator it is given, for the *whole* batch; so
    every process of a distributed run draws the same and a resumed run goes on exactly. (Dropout layers draw from
    torch's generator, whose state is kept as well, but differ between processes.)
    """

    every_parameter_used = True
    """False when a step may leave parameters without a gradient: DDP has to look for them."""

    def draw(self, n: int, rng: np.random.Generator) -> Any:
        """The global batch of `n`: indices and whatever else is random about it."""
        raise NotImplementedError

    def forward(self, batch: Any) -> tuple[Tensor, dict[str, float]]:
        """Mean loss over this rank's share (`distributed.share`) of a batch, and numbers for the curves.

        It runs under the trainer's autocast: take `.float()` before what needs every digit.
        """
        raise NotImplementedError

    def parameter_groups(self) -> list[dict]:
        """Groups of trainable parameters for AdamW, each {"params", "lr", "weight_decay"}."""
        raise NotImplementedError

    def clamp(self) -> None:
        """Put parameters back into their bounds after a step, e.g. the temperature."""


@dataclass(frozen=True)
class Settings:
    """How an objective is optimised."""

    steps: int = 2400
    batch: int = 1024
    """Over all processes together."""
    schedule: str = "one-cycle"
    """one-cycle (up over `warm_up`, then down to nothing), cosine-restarts (a cosine from the top rate to nothing
    every `restart_every` steps), or constant. The top rates are those of the objective's parameter groups."""
    warm_up: float = 0.1
    restart_every: int = 0
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-8
    clip: float = 1.0
    """Largest norm of the gradient; 0: any."""
    ema: float = 0.995
    """Memory of the moving average of the weights, which is what a run ends with; 0: the last weights."""
    precision: str = "bf16"
    """bf16 and fp16 run matrix products under autocast, fp16 with a scaled gradient and on GPUs only."""
    seed: int = 0
    checkpoint_every: int = 500
    validate_every: int = 0
    """Steps between calls of the trainer's `validate`; 0: never."""
    snapshot_every: int = 0
    """Steps between copies of the averaged weights that are kept, as snapshots/step-N.pt; 0: none."""

    def check(self, device: str) -> None:
        """Raise RequestError, naming the key, for a value that cannot be."""
        if self.schedule not in SCHEDULES:
            raise RequestError(f"schedule {self.schedule!r} is not known; choose {', '.join(SCHEDULES)}.")
        if self.precision not in PRECISIONS:
            raise RequestError(f"precision {self.precision!r} is not known; choose {', '.join(PRECISIONS)}.")
        if self.precision == "fp16" and not device.startswith("cuda"):
            raise RequestError(f"precision 'fp16' needs a GPU, not device {device!r}; choose bf16 or float32.")
        if self.schedule == "cosine-restarts" and self.restart_every < 1:
            raise RequestError("schedule 'cosine-restarts' needs restart_every, the steps of one period, 1 or more.")
        for key in ("steps", "batch", "checkpoint_every"):
            if getattr(self, key) < 1:
                raise RequestError(f"{key} is {getattr(self, key)}; it must be 1 or more.")
        if not 0.0 <= self.ema < 1.0:
            raise RequestError(f"ema is {self.ema}; it must be at least 0 and below 1.")
        if not 0.0 < self.warm_up < 1.0:
            raise RequestError(f"warm_up is {self.warm_up}, a share of the steps; it must lie between 0 and 1.")


class Trainer:
    """Steps an objective, in this process or in several started by torchrun.

    `folder` receives checkpoint.pt, curves.csv and curves.png. `identity` says by text values what the run is (for
    example {"recipe": sha256, "data": sha256}): a checkpoint of another identity is refused. `validate`, called with
    the averaged weights in the objective and in eval mode, returns numbers for the curves.
    """

    def __init__(
        self,
        objective: Objective,
        settings: Settings,
        folder: Path,
        *,
        device: str = "cpu",
        identity: Mapping[str, str] | None = None,
        log: Callable[[str], None] = print,
        progress: Callable[[str, int, int], None] | None = None,
        validate: Callable[[Objective], dict[str, float]] | None = None,
    ) -> None:
        settings.check(device)
        self.objective, self.settings, self.folder = objective.to(device), settings, Path(folder)
        self.device, self.identity = device, dict(identity or {})
        self.log, self.progress, self.validate = log, progress, validate

    def fit(self, restart: bool = False) -> list[dict[str, float]]:
        """Run to the last step, from the last checkpoint if there is one; returns the curves.

        Afterwards the objective holds the averaged weights and is in eval mode. `restart` leaves an old checkpoint
        aside. On SIGINT or SIGTERM a checkpoint is written and KeyboardInterrupt or SystemExit(143) raised, with a
        note of where to go on. Raises RequestError for a checkpoint of another run.
        """
        raise NotImplementedError
