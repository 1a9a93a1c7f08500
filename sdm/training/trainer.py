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
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sdm.errors import RequestError
from sdm.files.paths import replace_file
from sdm.training import distributed
from sdm.training.curves import draw_curves, write_curves

SCHEDULES = ("one-cycle", "cosine-restarts", "constant")
PRECISIONS = ("bf16", "fp16", "float32")
CHECKPOINT = "checkpoint.pt"
FORMAT = "taxabind-map/checkpoint-1"
LOG_EVERY = 100
STOP_EVERY = 8
"""Steps after which the processes of a run ask each other whether one was told to stop."""


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

    def check(self, device: str | None = None) -> None:
        """Raise RequestError, naming the key, for a value that cannot be; on `device`, if it is known already."""
        if self.schedule not in SCHEDULES:
            raise RequestError(f"schedule {self.schedule!r} is not known; choose {', '.join(SCHEDULES)}.")
        if self.precision not in PRECISIONS:
            raise RequestError(f"precision {self.precision!r} is not known; choose {', '.join(PRECISIONS)}.")
        if self.precision == "fp16" and device is not None and not device.startswith("cuda"):
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

        Afterwards the objective holds the averaged weights and is in eval mode. `restart` begins anew, whatever
        checkpoint is there. On SIGINT or SIGTERM a checkpoint is written and KeyboardInterrupt or SystemExit(143)
        raised, with a note of where to go on. Raises RequestError for a checkpoint of another run.
        """
        self._begin()
        if not restart and (self.folder / CHECKPOINT).is_file():
            self._resume()
        distributed.wait()  # every rank has read before the first one writes
        s = self.settings
        # Before DDP copies what it finds on the first rank, which is the same on all: seeds and checkpoint are.
        step_module: nn.Module = self.objective
        if distributed.size() > 1:
            step_module = nn.parallel.DistributedDataParallel(
                self.objective, find_unused_parameters=not self.objective.every_parameter_used
            )
        with _stop_signals() as stop:
            while self.step < s.steps:
                self._step(step_module)
                stopped = stop()
                if distributed.size() > 1 and (self.step % STOP_EVERY == 0 or self.step == s.steps):
                    # Signals reach the processes at different steps; they stop at the same one.
                    agreed = distributed.any_rank(bool(stopped), self.device)
                    stopped = (stopped or signal.SIGTERM) if agreed else 0
                elif distributed.size() > 1:
                    stopped = 0
                if stopped and self.step < s.steps:
                    self.save()
                    _leave(stopped, self.step, s.steps, self.folder)
                if self.step % s.checkpoint_every == 0 or self.step == s.steps:
                    self.save()
        self._end()
        return self.rows

    def _begin(self) -> None:
        """Everything at step 0."""
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
        self._sums: dict[str, Tensor] = {}
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
            # When the scaler leaves out a step whose gradient overflowed, torch warns of the schedule going on.
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
            _save(weights, folder / f"step-{self.step}.pt")

    def autocast(self) -> torch.autocast:
        """The context of the run's precision on its device."""
        kind = torch.device(self.device).type
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.settings.precision, torch.float32)
        return torch.autocast(kind, dtype=dtype, enabled=self.settings.precision != "float32")

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within: the objective holds the averaged weights and is in eval mode."""
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

    def _record(self, loss: Tensor, norm: Tensor, rate: float, numbers: dict[str, float]) -> None:
        """Add a step to the means of the current row; close the row every LOG_EVERY steps."""
        values: dict[str, Any] = {"loss": loss, "gradient": norm, **numbers}
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
                f"the loss is {means['loss']} at step {self.step}: training has come apart; lower learning_rate "
                "(and text_learning_rate), or set clip."
            )
        self.rows.append({"step": float(self.step), **means, "rate": rate, "seconds": self.seconds})
        if distributed.rank() == 0:
            left = self.seconds / self.step * (self.settings.steps - self.step)
            shown = " ".join(f"{k} {v:.4g}" for k, v in means.items())
            self.log(f"step {self.step}/{self.settings.steps} {shown}, {self.seconds:.0f} s, left {left:.0f} s")
            if self.progress is not None:
                self.progress("training", self.step, self.settings.steps)

    def save(self) -> None:
        """Write the checkpoint and the curves (first rank only), each file in one step."""
        if distributed.rank() == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_curves(self.rows, self.folder / "curves.csv")
            _save(self._state(), self.folder / CHECKPOINT)
        distributed.wait()

    def _end(self) -> None:
        if distributed.rank() == 0:
            draw_curves(self.rows, self.folder / "curves.png", self.log)
        self._load(self.average)
        self.objective.eval()

    def _state(self) -> dict[str, Any]:
        """All that the next step depends on, in types that `torch.load(weights_only=True)` takes."""
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
            "numpy": json.dumps(self.rng.bit_generator.state),  # whole numbers of 128 bits
            "python": json.dumps([version, internal, gauss]),
            "torch": torch.get_rng_state(),
            "cuda": cuda,
        }

    def _resume(self) -> None:
        path = self.folder / CHECKPOINT
        state = read_checkpoint(path)
        try:
            self._take(state)
        except RequestError:
            raise
        except Exception as error:  # of the right format by its own word only: what it holds can fail in any way
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:120]
            raise RequestError(
                f"checkpoint {str(path)!r} does not fit this run ({reason}); give --restart to begin anew."
            ) from error
        if distributed.rank() == 0:
            self.log(f"going on from step {self.step} of {self.settings.steps} in {self.folder}")

    def _take(self, state: dict[str, Any]) -> None:
        """Go back to the state that a checkpoint holds. Raises RequestError for one of another run."""
        identity, settings = state["identity"], json.loads(state["settings"])
        now = json.loads(json.dumps(asdict(self.settings)))
        # How often to write is no part of what is learned.
        free = ("checkpoint_every",)
        other = [k for k in sorted({*identity, *self.identity}) if identity.get(k) != self.identity.get(k)]
        other += [k for k in now if k not in free and settings.get(k) != now[k]]
        if other:
            raise RequestError(
                f"run folder {str(self.folder)!r} holds {state['step']} steps of a run with another "
                f"{' and '.join(other)}; give --restart to begin anew, or another --run."
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


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint, without running anything that it holds. Raises RequestError for a file that is none."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(state, dict) or state.get("format") != FORMAT:
            raise ValueError(f"not of the format {FORMAT!r}")
    except Exception as error:  # a damaged file can fail in any way
        reason = "it is none" if isinstance(error, UnpicklingError) else " ".join(str(error).split())[:120]
        raise RequestError(
            f"checkpoint {str(path)!r} cannot be read ({reason}); give --restart to begin anew."
        ) from error
    return state


def _save(state: dict[str, Any], path: Path) -> None:
    content = BytesIO()
    torch.save(state, content)
    replace_file(path, content.getvalue())


def _schedule(optimiser: torch.optim.Optimizer, s: Settings) -> torch.optim.lr_scheduler.LRScheduler:
    rates = torch.optim.lr_scheduler
    if s.schedule == "one-cycle":
        top = [g["lr"] for g in optimiser.param_groups]
        # A rise of less than a step would divide by nothing.
        rise = max(s.warm_up, 2.0 / s.steps) if s.steps > 2 else 0.5
        return rates.OneCycleLR(optimiser, top, total_steps=s.steps, pct_start=min(rise, 0.9))
    if s.schedule == "cosine-restarts":
        return rates.CosineAnnealingWarmRestarts(optimiser, s.restart_every)
    return rates.ConstantLR(optimiser, factor=1.0)


@contextmanager
def _stop_signals() -> Iterator[Callable[[], int]]:
    """Within: the first SIGINT or SIGTERM is only noted, to stop between two steps; a second one acts at once."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda: 0
        return
    seen: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, frame: Any) -> None:
        seen.append(number)
        for each, handler in before.items():
            signal.signal(each, handler)

    for number in before:
        signal.signal(number, note)
    try:
        yield lambda: seen[0] if seen else 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _leave(number: int, step: int, steps: int, folder: Path) -> None:
    error: BaseException = SystemExit(143) if number == signal.SIGTERM else KeyboardInterrupt()
    error.add_note(f"{step} of {steps} steps are kept in {folder}; the same command goes on from there.")
    raise error
