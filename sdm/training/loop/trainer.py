"""The trainer: everything about a run that does not depend on what is learned.

What is learned is an `Objective`: parameters, a way to draw a batch, and a loss. The `Trainer` steps it
with AdamW under a schedule, keeps the moving average of the weights, writes checkpoints from which a run
continues bit by bit as if it had never stopped, and records its curves.
"""

from __future__ import annotations

import json
import random
import signal
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sdm.errors import RequestError
from sdm.training import distributed
from sdm.training.loop.checkpoints import CHECKPOINT, FORMAT, read_checkpoint, save
from sdm.training.loop.curves import draw_curves, write_curves
from sdm.training.loop.signals import leave, stop_signals
from sdm.training.objectives.base import Objective
from sdm.training.recipe.sections import TrainerSettings

LOG_EVERY = 100
"""Steps over which the numbers of a row of the curves are averaged."""

STOP_EVERY = 8
"""Steps between checks whether any process of a run received a signal."""


class Trainer:
    """Optimises an objective, in this process or in several started by torchrun.

    Parameters
    ----------
    objective : what is learned
    settings : how it is optimised
    folder : receives checkpoint.pt, curves.csv and curves.png
    device : cpu, cuda or cuda:N
    identity : texts that tell this run from others, for example {"recipe": sha256, "data": sha256}; a checkpoint of
        another identity is refused
    log : called with a line per row of the curves
    progress : called with ("training", step, steps)
    validate : returns numbers for the curves; called with the averaged weights in the objective, in eval mode
    """

    def __init__(
        self,
        objective: Objective,
        settings: TrainerSettings,
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

        Afterwards the objective holds the averaged weights and is in eval mode. `restart` ignores the checkpoint. On
        SIGINT or SIGTERM a checkpoint is written and KeyboardInterrupt or SystemExit(143) raised, with a note on how
        to continue. Raises RequestError for a checkpoint of another run.
        """
        self._begin()
        if not restart and (self.folder / CHECKPOINT).is_file():
            self._resume()
        distributed.wait()  # every rank has read before the first one writes
        s = self.settings
        # DDP copies the weights of the first rank; they are the same on all, as seeds and checkpoint are.
        step_module: nn.Module = self.objective
        if distributed.size() > 1:
            step_module = nn.parallel.DistributedDataParallel(
                self.objective, find_unused_parameters=not self.objective.every_parameter_used
            )
        with stop_signals() as received_signal:
            while self.step < s.steps:
                self._step(step_module)
                number = self._agreed_signal(received_signal())
                if number and self.step < s.steps:
                    self.save()
                    leave(number, self.step, s.steps, self.folder)
                if self.step % s.checkpoint_every == 0 or self.step == s.steps:
                    self.save()
        self._end()
        return self.rows

    def _agreed_signal(self, number: int) -> int:
        """The signal at which all processes stop at this step, or 0: signals reach them at different steps."""
        if distributed.size() == 1:
            return number
        if self.step % STOP_EVERY and self.step != self.settings.steps:
            return 0
        return (number or signal.SIGTERM) if distributed.any_rank(bool(number), self.device) else 0

    def _begin(self) -> None:
        """Set everything to its state at step 0."""
        s = self.settings
        random.seed(s.seed)
        torch.manual_seed(s.seed)  # of all devices
        self.rng = np.random.default_rng(s.seed)
        self.trained = {n: p for n, p in self.objective.named_parameters() if p.requires_grad}
        self.average = {n: p.detach().clone() for n, p in self.trained.items()} if s.ema else {}
        groups = self.objective.parameter_groups()
        listed = {id(p) for g in groups for p in g["params"]}
        if missing := [n for n, p in self.trained.items() if id(p) not in listed]:
            raise ValueError(f"parameters in no group of the objective: {', '.join(missing)}")
        self.optimiser = torch.optim.AdamW(groups, betas=s.betas, eps=s.eps)
        self.schedule = _schedule(self.optimiser, s)
        self.scaler = torch.amp.GradScaler(enabled=s.precision == "fp16")
        self.step, self.seconds = 0, 0.0
        self.rows: list[dict[str, float]] = []
        self._sums: dict[str, Tensor | float] = {}
        self._counted = 0

    def _step(self, step_module: nn.Module) -> None:
        started, s = time.perf_counter(), self.settings
        self.objective.train()
        batch = self.objective.draw(s.batch, self.rng)
        with self.autocast():
            loss, numbers = step_module(batch)
        self.optimiser.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimiser)
        norm = nn.utils.clip_grad_norm_(self.trained.values(), s.clip or float("inf"))
        self.scaler.step(self.optimiser)
        self.scaler.update()
        rate = self.optimiser.param_groups[0]["lr"]
        with warnings.catch_warnings():
            # When the scaler skips a step whose gradient overflowed, torch warns that the schedule advances anyway.
            warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step", category=UserWarning)
            self.schedule.step()
        with torch.no_grad():
            self.objective.clamp()
            self.step += 1
            if self.average:
                # A short memory at first, so that the average forgets the random start.
                decay = min(s.ema, self.step / (self.step + 10))
                torch._foreach_lerp_(list(self.average.values()), list(self.trained.values()), 1 - decay)
        self._record(loss.detach(), norm.detach(), rate, numbers)
        self.seconds += time.perf_counter() - started
        if s.validate_every and self.step % s.validate_every == 0 and self.validate is not None:
            with self.averaged(), torch.no_grad():
                self.rows.append({"step": float(self.step), **self.validate(self.objective)})
        if s.snapshot_every and self.step % s.snapshot_every == 0 and distributed.rank() == 0:
            folder = self.folder / "snapshots"
            folder.mkdir(parents=True, exist_ok=True)
            weights = {n: v.detach().cpu() for n, v in (self.average or self.trained).items()}
            save(weights, folder / f"step-{self.step}.pt")

    def autocast(self) -> torch.autocast:
        """The autocast context for the run's precision and device."""
        kind = torch.device(self.device).type
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.settings.precision, torch.float32)
        return torch.autocast(kind, dtype=dtype, enabled=self.settings.precision != "float32")

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within this context the objective holds the averaged weights and is in eval mode."""
        kept = {n: p.detach().clone() for n, p in self.trained.items()} if self.average else {}
        self._load(self.average)
        self.objective.eval()
        try:
            yield
        finally:
            self._load(kept)
            self.objective.train()

    @torch.no_grad()
    def _load(self, weights: dict[str, Tensor]) -> None:
        for name, value in weights.items():
            self.trained[name].copy_(value)

    def _record(self, loss: Tensor, norm: Tensor, rate: float, numbers: dict[str, Tensor]) -> None:
        """Add a step to the means of the current row; close the row every LOG_EVERY steps."""
        values = {"loss": loss, "gradient": norm, **numbers}
        for name, value in values.items():  # tensors stay on the device: reading one would wait for the GPU
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._counted += 1
        if self.step % LOG_EVERY and self.step != self.settings.steps:
            if self.progress is not None and distributed.rank() == 0:
                self.progress("training", self.step, self.settings.steps)
            return
        means = distributed.mean({k: float(v) / self._counted for k, v in self._sums.items()}, self.device)
        self._sums, self._counted = {}, 0
        if not np.isfinite(means["loss"]):
            raise RequestError(
                f"the loss is {means['loss']} at step {self.step}: training has diverged; lower learning_rate "
                "(and text_learning_rate), or set clip."
            )
        self.rows.append({"step": float(self.step), **means, "rate": rate, "seconds": self.seconds})
        if distributed.rank() == 0:
            left = self.seconds / self.step * (self.settings.steps - self.step)
            numbers_text = " ".join(f"{k} {v:.4g}" for k, v in means.items())
            self.log(f"step {self.step}/{self.settings.steps} {numbers_text}, {self.seconds:.0f} s, left {left:.0f} s")
            if self.progress is not None:
                self.progress("training", self.step, self.settings.steps)

    def save(self) -> None:
        """Write the checkpoint and the curves (first rank only), each file in one step."""
        if distributed.rank() == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_curves(self.rows, self.folder / "curves.csv")
            save(self._state(), self.folder / CHECKPOINT)
        distributed.wait()

    def _end(self) -> None:
        if distributed.rank() == 0:
            draw_curves(self.rows, self.folder / "curves.png", self.log)
        self._load(self.average)
        self.objective.eval()

    def _state(self) -> dict[str, Any]:
        """Everything that the next step depends on, in types that `torch.load(weights_only=True)` accepts."""
        cuda = torch.cuda.get_rng_state(self.device) if self.device.startswith("cuda") else None
        version, internal, gauss = random.getstate()
        return {
            "format": FORMAT,
            "identity": self.identity,
            "settings": json.dumps(asdict(self.settings), sort_keys=True),
            "step": self.step,
            "seconds": self.seconds,
            "rows": self.rows,
            "sums": {k: float(v) for k, v in self._sums.items()},
            "counted": self._counted,
            "objective": self.objective.state_dict(),
            "average": self.average,
            "optimiser": self.optimiser.state_dict(),
            "schedule": {k: v for k, v in self.schedule.state_dict().items() if k != "lr_lambdas"},
            "scaler": self.scaler.state_dict(),
            "numpy": json.dumps(self.rng.bit_generator.state),  # integers of 128 bits
            "python": json.dumps([version, internal, gauss]),
            "torch": torch.get_rng_state(),
            "cuda": cuda,
        }

    def _resume(self) -> None:
        path = self.folder / CHECKPOINT
        state = read_checkpoint(path)
        try:
            self._restore(state)
        except RequestError:
            raise
        except Exception as error:  # it claims the right format, but its content can fail in any way
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:120]
            raise RequestError(
                f"checkpoint {str(path)!r} does not fit this run ({reason}); give --restart to start over."
            ) from error
        if distributed.rank() == 0:
            self.log(f"continuing from step {self.step} of {self.settings.steps} in {self.folder}")

    def _restore(self, state: dict[str, Any]) -> None:
        """Restore the state of a checkpoint. Raises RequestError for one of another run."""
        identity, settings = state["identity"], json.loads(state["settings"])
        now = json.loads(json.dumps(asdict(self.settings)))
        may_differ = ("checkpoint_every",)  # it does not affect what is learned
        other = [k for k in sorted({*identity, *self.identity}) if identity.get(k) != self.identity.get(k)]
        other += [k for k in now if k not in may_differ and settings.get(k) != now[k]]
        if other:
            raise RequestError(
                f"run folder {str(self.folder)!r} holds {state['step']} steps of a run with another "
                f"{' and '.join(other)}; give --restart to start over, or another --run."
            )
        self.objective.load_state_dict(state["objective"])
        for name, value in state["average"].items():
            self.average[name].copy_(value)
        self.optimiser.load_state_dict(state["optimiser"])
        self.schedule.load_state_dict(state["schedule"])
        self.scaler.load_state_dict(state["scaler"])
        self.step, self.seconds, self.rows = state["step"], state["seconds"], state["rows"]
        self._sums, self._counted = dict(state["sums"]), state["counted"]
        self.rng.bit_generator.state = json.loads(state["numpy"])
        version, internal, gauss = json.loads(state["python"])
        random.setstate((version, tuple(internal), gauss))
        torch.set_rng_state(state["torch"])
        if state["cuda"] is not None and self.device.startswith("cuda"):
            torch.cuda.set_rng_state(state["cuda"], self.device)


def _schedule(optimiser: torch.optim.Optimizer, s: TrainerSettings) -> torch.optim.lr_scheduler.LRScheduler:
    """The learning-rate schedule of the settings."""
    schedulers = torch.optim.lr_scheduler
    if s.schedule == "one-cycle":
        top = [g["lr"] for g in optimiser.param_groups]
        # A rise of less than a step would divide by zero.
        rise = max(s.warm_up, 2.0 / s.steps) if s.steps > 2 else 0.5
        return schedulers.OneCycleLR(optimiser, top, total_steps=s.steps, pct_start=min(rise, 0.9))
    if s.schedule == "cosine-restarts":
        return schedulers.CosineAnnealingWarmRestarts(optimiser, s.restart_every)
    return schedulers.ConstantLR(optimiser, factor=1.0)
