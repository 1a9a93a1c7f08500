"""The trainer: schedules, averages, exact resume, stopping, several processes, on a small regression."""

import csv
import json
import os
import shlex
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch

from sdm.errors import RequestError
from sdm.training import distributed
from sdm.training.loop.checkpoints import CHECKPOINT, read_checkpoint
from sdm.training.loop.curves import draw_curves, write_curves
from sdm.training.loop.trainer import Trainer
from sdm.training.objectives.base import Objective
from sdm.training.recipe.sections import TrainerSettings


class Line(Objective):
    """Fit a small network with dropout to a plane; rows of the batch are drawn from 200."""

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.net = torch.nn.Sequential(
            torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Dropout(0.2), torch.nn.Linear(8, 1)
        )
        self.bounded = torch.nn.Parameter(torch.zeros(1))
        rng = np.random.default_rng(1)
        self.x = torch.from_numpy(rng.normal(size=(200, 3)).astype(np.float32))
        self.y = self.x @ torch.tensor([1.0, -2.0, 0.5]) + 3.0
        self.interrupt_at, self.drawn = None, 0

    def draw(self, n, rng):
        self.drawn += 1
        if self.drawn == self.interrupt_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return rng.integers(0, 200, n)

    def forward(self, batch):
        mine = batch[distributed.share(len(batch))]
        loss = ((self.net(self.x[mine]).squeeze(1).float() + self.bounded - self.y[mine]) ** 2).mean()
        return loss, {"bounded": self.bounded.detach()}

    def parameter_groups(self):
        return [
            {"params": list(self.net.parameters()), "lr": 0.02, "weight_decay": 0.0},
            {"params": [self.bounded], "lr": 0.5, "weight_decay": 0.0},
        ]

    def clamp(self):
        self.bounded.clamp_(-0.25, 0.25)


def quiet(line):
    pass


def trained(folder, steps=40, objective=None, restart=False, **settings):
    objective = objective or Line()
    settings = {"batch": 16, "checkpoint_every": 10, **settings}
    trainer = Trainer(objective, TrainerSettings(steps=steps, **settings), folder, log=quiet, identity={"data": "a"})
    return trainer, trainer.fit(restart)


def weights(objective):
    return {k: v.clone() for k, v in objective.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize(
    "schedule", [{}, {"schedule": "cosine-restarts", "restart_every": 7}, {"schedule": "constant"}]
)
def test_resume_is_exact(tmp_path, schedule):
    """Stopped by SIGTERM between two checkpoints and resumed: the same bits as without a stop, dropout included."""
    whole, rows = trained(tmp_path / "a", **schedule)
    stopped = Line()
    stopped.interrupt_at = 23
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as stop:
        trained(tmp_path / "b", objective=stopped, **schedule)
    assert stop.value.code == 143
    assert "23 of 40 steps are kept" in stop.value.__notes__[0]
    assert signal.getsignal(signal.SIGTERM) is before
    assert read_checkpoint(tmp_path / "b" / CHECKPOINT)["step"] == 23
    resumed, again = trained(tmp_path / "b", objective=Line(seed=5), **schedule)
    assert resumed.objective.drawn == 17
    assert same(weights(whole.objective), weights(resumed.objective))
    assert same(whole.average, resumed.average)
    drop = {"seconds"}
    assert [{k: v for k, v in r.items() if k not in drop} for r in rows] == [
        {k: v for k, v in r.items() if k not in drop} for r in again
    ]
    # A finished run is not run again.
    third, _ = trained(tmp_path / "b", objective=Line(seed=6), **schedule)
    assert third.objective.drawn == 0
    assert same(weights(third.objective), weights(whole.objective))


def test_ctrl_c_between_two_steps(tmp_path):
    objective = Line()
    draw = objective.draw

    def interrupting(n, rng):
        if objective.drawn == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return draw(n, rng)

    objective.draw = interrupting
    with pytest.raises(KeyboardInterrupt) as stop:
        trained(tmp_path, objective=objective)
    assert "5 of 40" in stop.value.__notes__[0]
    assert sorted(p.name for p in tmp_path.iterdir()) == [CHECKPOINT, "curves.csv"]


def test_another_run_is_refused(tmp_path):
    trained(tmp_path, steps=10)
    with pytest.raises(RequestError, match=r"another steps and batch; give --restart"):
        trained(tmp_path, steps=20, batch=8)
    trainer = Trainer(Line(), TrainerSettings(steps=10, batch=16), tmp_path, log=quiet, identity={"data": "b"})
    with pytest.raises(RequestError, match="holds 10 steps of a run with another data"):
        trainer.fit()
    again, _ = trained(tmp_path, steps=20, batch=8, restart=True)
    assert again.objective.drawn == 20
    (tmp_path / CHECKPOINT).write_bytes(b"\x80\x04cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(RequestError, match="cannot be read"):
        trained(tmp_path)


def test_a_checkpoint_that_lies_is_refused(tmp_path):
    """Whole and of the right format, but not with what a run needs: one sentence, with what to do."""
    trained(tmp_path, steps=12)
    good = read_checkpoint(tmp_path / CHECKPOINT)
    stranger = {"nothing": torch.zeros(1)}
    for bad in (
        {"objective": {}},
        {"rows": None, "sums": 3},
        {"numpy": "[]"},
        {"average": stranger},
        {"settings": "{"},
    ):
        torch.save({**good, **bad}, tmp_path / CHECKPOINT)
        with pytest.raises(RequestError, match=r"checkpoint .* does not fit this run .*--restart"):
            trained(tmp_path, steps=12)
    (tmp_path / CHECKPOINT).write_bytes((tmp_path / CHECKPOINT).read_bytes()[:500])
    with pytest.raises(RequestError, match=r"cannot be read .*--restart"):
        trained(tmp_path, steps=12)


def test_average_of_the_weights(tmp_path):
    """By hand: w_k = d w_{k-1} + (1 - d) x_k with d = min(ema, k / (k + 10)), from what each step left."""
    seen = []

    class Watched(Line):
        def clamp(self):
            super().clamp()
            seen.append(self.net[0].weight.detach().clone())

    objective = Watched()
    expected = objective.net[0].weight.detach().clone()
    trained(tmp_path, steps=30, objective=objective, ema=0.6)
    for k, x in enumerate(seen, 1):
        decay = min(0.6, k / (k + 10))
        expected = decay * expected + (1 - decay) * x
    assert torch.allclose(objective.net[0].weight, expected, atol=1e-6)
    assert not objective.training
    last, _ = trained(tmp_path / "none", steps=30, objective=Watched(), ema=0.0)
    assert torch.equal(last.objective.net[0].weight, seen[-1])


def test_learning_rates(tmp_path):
    def rates(**settings):
        objective, seen = Line(), []
        trainer = Trainer(
            objective, TrainerSettings(steps=40, batch=4, **settings), tmp_path / str(settings), log=quiet
        )
        draw = objective.draw
        objective.draw = lambda n, rng: (seen.append(trainer.optimiser.param_groups[0]["lr"]), draw(n, rng))[1]
        trainer.fit()
        return np.array(seen)

    assert (rates(schedule="constant") == 0.02).all()
    one = rates(schedule="one-cycle", warm_up=0.25)
    assert one.max() == pytest.approx(0.02) and one.argmax() == 9 and one[-1] < 1e-5
    cosine = rates(schedule="cosine-restarts", restart_every=10)
    assert cosine[[0, 10, 20, 30]] == pytest.approx([0.02] * 4)
    assert cosine[5] == pytest.approx(0.01)
    assert cosine[9] == pytest.approx(0.01 * (1 + np.cos(np.pi * 0.9)))


def test_clamp_clip_and_what_cannot_be(tmp_path):
    objective = Line()
    trained(tmp_path, objective=objective)
    assert objective.bounded.abs().item() == pytest.approx(0.25)
    for wrong, said in [
        ({"schedule": "zigzag"}, "schedule 'zigzag' is not known; choose one-cycle"),
        ({"precision": "fp16"}, "fp16' needs a GPU"),
        ({"schedule": "cosine-restarts"}, "needs restart_every"),
        ({"steps": 0}, "steps is 0"),
        ({"ema": 1.0}, "ema is 1.0"),
    ]:
        with pytest.raises(RequestError, match=said):
            Trainer(Line(), TrainerSettings(**{"steps": 5, **wrong}), tmp_path / "w")

    class Wild(Line):
        def parameter_groups(self):
            return [{"params": list(self.parameters()), "lr": float("inf"), "weight_decay": 0.0}]

    with pytest.raises(RequestError, match="training has diverged; lower learning_rate"):
        trained(tmp_path / "wild", objective=Wild(), steps=5)
    assert not (tmp_path / "wild").exists()

    class Forgetful(Line):
        def parameter_groups(self):
            return super().parameter_groups()[:1]

    with pytest.raises(ValueError, match="in no group of the objective: bounded"):
        trained(tmp_path / "f", objective=Forgetful())


def test_curves_and_validation(tmp_path):
    calls = []

    def validate(objective):
        assert not objective.training
        calls.append(objective.net[0].weight.clone())
        return {"held out": float(len(calls))}

    objective = Line()
    settings = TrainerSettings(steps=250, batch=8, validate_every=100, snapshot_every=125)
    trainer = Trainer(objective, settings, tmp_path, log=quiet, validate=validate)
    rows = trainer.fit()
    assert [r["step"] for r in rows] == [100, 100, 200, 200, 250]
    assert rows[0]["loss"] > rows[-1]["loss"]
    with (tmp_path / "curves.csv").open() as file:
        table = list(csv.DictReader(file))
    assert len(table) == 5 and float(table[0]["loss"]) == pytest.approx(rows[0]["loss"], rel=1e-5)
    assert {r["held out"] for r in table} == {"", "1", "2"}
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    first = torch.load(tmp_path / "snapshots" / "step-125.pt", weights_only=True)
    assert first.keys() == dict(objective.named_parameters()).keys()
    last = torch.load(tmp_path / "snapshots" / "step-250.pt", weights_only=True)
    assert torch.equal(last["net.0.weight"], objective.net[0].weight)
    assert not torch.equal(first["net.0.weight"], last["net.0.weight"])


def test_curves_without_matplotlib(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    said = []
    draw_curves([{"step": 1.0, "loss": 2.0}], tmp_path / "c.png", said.append)
    assert "matplotlib is not installed" in said[0] and not (tmp_path / "c.png").exists()
    write_curves([{"step": 1.0, "loss": 2.0}, {"step": 2.0, "ap": 0.5}], tmp_path / "c.csv")
    assert (tmp_path / "c.csv").read_text() == "step,loss,ap\n1,2,\n2,,0.5\n"


WORKER = """
    import json, sys
    import torch
    sys.path[:0] = {paths!r}
    from test_trainer import Line, quiet
    from sdm.training import distributed
    from sdm.training.loop.trainer import Trainer
    from sdm.training.recipe.sections import TrainerSettings
    with distributed.joined("cpu") as device:
        objective = Line()
        objective.net[2].p = 0.0  # dropout draws differ between processes
        settings = TrainerSettings(steps=12, batch=16, precision="float32", checkpoint_every=5)
        rows = Trainer(objective, settings, {folder!r}, device=device, log=quiet).fit()
        x = torch.arange(3.0).reshape(1, 3) + distributed.rank()
        x.requires_grad_()
        everything = distributed.gather(x)
        ((distributed.rank() + 1) * everything.sum()).backward()
        if distributed.rank() == distributed.size() - 1:
            json.dump({{
                "weight": objective.net[0].weight.tolist(), "loss": rows[-1]["loss"],
                "gathered": everything.tolist(), "gradient": x.grad.tolist(),
            }}, open({out!r}, "w"))
"""


def test_two_processes_agree_with_one(tmp_path):
    """gloo, two processes by torchrun: weights and loss as of one process, to rounding."""
    results = []
    for n in (1, 2):
        out, script = tmp_path / f"{n}.json", tmp_path / f"worker{n}.py"
        paths = [os.path.dirname(__file__), *sys.path]  # noqa: PTH120
        script.write_text(textwrap.dedent(WORKER.format(paths=paths, folder=str(tmp_path / str(n)), out=str(out))))
        command = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            str(n),
            str(script),
        ]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        assert done.returncode == 0, done.stderr[:3000]
        results.append(json.loads(out.read_text()))
    one, two = results
    assert two["weight"] == pytest.approx(np.array(one["weight"]), abs=2e-6)
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-5)
    assert two["gathered"] == [[0, 1, 2], [1, 2, 3]]
    assert two["gradient"] == [[3, 3, 3]]  # 1 of the first process's loss, 2 of the second's
    assert read_checkpoint(tmp_path / "2" / CHECKPOINT)["step"] == 12


def test_a_batch_that_cannot_be_shared(monkeypatch):
    monkeypatch.setattr(distributed, "size", lambda: 3)
    with pytest.raises(RequestError, match="a batch of 16 cannot be shared equally by 3"):
        distributed.share(16)


def test_torchrun_takes_the_command_of_the_guide():
    """Without "--", torchrun takes --run for an abbreviation of its own --run-path, and refuses it."""
    from torch.distributed.run import parse_args

    from sdm.files.paths import folder

    guide = (folder("recipes").parent / "docs" / "training.md").read_text(encoding="utf-8")
    (line,) = [line for line in guide.splitlines() if line.startswith("torchrun ")]
    words = shlex.split(line.replace('"$(command -v sdm)"', "sdm"))[1:]
    args = parse_args([*words, "--run", "runs/mine"])
    assert [args.training_script, *args.training_script_args][-2:] == ["--run", "runs/mine"]
    assert args.nproc_per_node == "4"
