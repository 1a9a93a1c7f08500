"""Towers that share a space, as something to train: opened from a folder, and written back as they were found.

Two kinds: this project's own architecture (a model folder, see `sdm.model`) and the published TaxaBind one (see
`sdm.models.taxabind`). Both embed raw values with gradients, and both end as what `open_model` opens.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from functools import singledispatch
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sdm._version import __version__
from sdm.errors import ModelError, RequestError
from sdm.files.atomic import Staging
from sdm.models.bundled import BundledModel
from sdm.models.encoders.bundled import build
from sdm.models.protocol import Model
from sdm.models.registry import open_model
from sdm.models.taxabind.checkpoints import Checkpoints
from sdm.models.taxabind.encoders import PublishedEncoders
from sdm.models.taxabind.model import PublishedModel
from sdm.models.taxabind.write import write_published
from sdm.training.patching import FROZEN, State, States

COMPANIONS = ("groups.csv", "genera.csv", "homonyms.csv", "NOTICE.md")
"""Of a model folder, copied along where they are."""


class Space(nn.Module):
    """Towers by modality."""

    def __init__(self, towers: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.towers = nn.ModuleDict(towers)

    @property
    def modalities(self) -> tuple[str, ...]:
        """What can be embedded."""
        return tuple(self.towers)

    @property
    def device(self) -> torch.device:
        """Where the towers are."""
        return next(self.parameters()).device

    def embed(self, modality: str, values: Any, keep: Tensor | None = None) -> Tensor:
        """Raw values of a modality -> (N, dim) float32, **not** of unit length, with gradients if they are on."""
        raise NotImplementedError

    def states(self) -> dict[str, dict[str, Tensor]]:
        """Copies of the weights and buffers of every tower, on the CPU."""
        return {m: {k: v.detach().cpu().clone() for k, v in t.state_dict().items()} for m, t in self.towers.items()}

    def load_states(self, states: States) -> None:
        """Take over the states of some towers. Raises ModelError for those that do not fit."""
        for modality, state in states.items():
            if modality not in self.towers:
                raise ModelError(f"there is no {modality} encoder to load; there are {', '.join(self.towers)}.")
            try:
                self.towers[modality].load_state_dict(state)
            except RuntimeError as error:
                reason = " ".join(str(error).split())[:200]
                raise ModelError(f"the {modality} encoder is of another architecture: {reason}") from error

    def write(self, out: Path, also: Callable[[Path], None] = lambda folder: None, **facts: Any) -> None:
        """Write all towers into a new folder of the same layout; `also` may add files. Raises OutputError."""
        with Staging(Path(out).parent, [Path(out).name]) as staging:
            folder = staging.path(Path(out).name)
            folder.mkdir()
            self._write(folder, **facts)
            also(folder)
            staging.publish()

    def _write(self, folder: Path, **facts: Any) -> None:
        raise NotImplementedError


class BundledSpace(Space):
    """This project's architecture: location, satellite, environment, text (`sdm.model.build`).

    config and vocabulary as in a model folder; `folder` holds taxa.csv and what else is to be copied along.
    Values: location (N, 2) degrees (lon, lat), satellite (N, size, size, 3) uint8, environment (N, inputs)
    standardised, text (N, ranks) rows of the vocabulary, with `keep` (N, ranks) the weights of the ranks.
    """

    def __init__(
        self, config: dict, vocabulary: list[str], folder: Path, dropout: float = 0.0, env_dropout: float = 0.0
    ) -> None:
        super().__init__(build(config, vocabulary, dropout, env_dropout))
        self.config, self.vocabulary, self.folder = config, vocabulary, Path(folder)

    @classmethod
    def open(cls, model: BundledModel) -> BundledSpace:
        """The space of a model folder, in float32. Raises ModelError."""
        vocabulary = (model.folder / "vocabulary.txt").read_text(encoding="utf-8").split("\n")
        space = cls(model.config, [t for t in vocabulary if t], model.folder)
        loaded = model.load("cpu")  # checks names, shapes and numbers
        space.load_states({m: getattr(loaded, m).state_dict() for m in space.modalities})
        return space

    def embed(self, modality: str, values: Any, keep: Tensor | None = None) -> Tensor:
        """See `Space`."""
        x = torch.from_numpy(np.ascontiguousarray(values))
        x = (x.float() if modality == "location" else x).to(self.device, non_blocking=True)
        tower = self.towers[modality]
        return (tower(x, keep) if modality == "text" else tower(x)).float()

    def _write(self, folder: Path, calibration: dict | None = None, **facts: Any) -> None:
        """`calibration`: {"location+satellite": (scale, bias)}; `facts` go into config.json."""
        from safetensors.torch import save_file

        state = {f"{m}.{k}": v for m, s in self.states().items() for k, v in s.items()}
        # Half precision but for what is no weight: frequencies, windows.
        state = {k: (v if k.endswith(FROZEN) else v.half()).contiguous() for k, v in state.items()}
        save_file(state, folder / "model.safetensors")
        (folder / "vocabulary.txt").write_text("\n".join(self.vocabulary) + "\n", encoding="utf-8")
        config = dict(self.config, made_with=f"taxabind-map {__version__}", **facts)
        if calibration is not None:
            config["calibration"] = {k: {"scale": s, "bias": b} for k, (s, b) in calibration.items()}
        (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
        for name in ("taxa.csv", *COMPANIONS):
            if (self.folder / name).is_file():
                shutil.copyfile(self.folder / name, folder / name)


class PublishedSpace(Space):
    """The published architecture, as many modalities as have weights; values as `PublishedEncoders.encode` takes them.

    Random weights to start from: `sdm.models.taxabind.write.create_published`.
    """

    def __init__(self, checkpoints: Checkpoints, modalities: Iterable[str] | None = None) -> None:
        from sdm.models.taxabind.checkpoints import read_plan

        towers = {}
        for modality in modalities or checkpoints.modalities:
            file, plan = read_plan(checkpoints.find(modality))
            towers[modality] = file.fill(plan, modality)  # its own copy: that of `load` is shared
        super().__init__(towers)
        self.checkpoints = checkpoints
        self._encoders: PublishedEncoders | None = None

    def embed(self, modality: str, values: Any, keep: Tensor | None = None) -> Tensor:
        """See `Space`."""
        if self._encoders is None or self._encoders.device != self.device:
            self._encoders = PublishedEncoders(self.checkpoints, str(self.device))
        tower = self.towers[modality]
        return self._encoders.forward(modality, tower, self._encoders.prepare(modality, values, tower)).float()

    def _write(self, folder: Path, logit_scale: float | None = None, **facts: Any) -> None:
        write_published(self.checkpoints, self.states(), folder, logit_scale)
        if facts:
            (folder / "training.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def open_space(name: str | Path, modalities: Iterable[str] | None = None) -> Space:
    """The towers of a model folder, a run folder (its develop stage), a bundled model or published checkpoints.

    Raises ModelError.
    """
    developed = Path(name) / "develop" / "model"
    model = open_model(developed if developed.is_dir() else name, offline=True)
    return _space(model, modalities)


@singledispatch
def _space(model: Model, modalities: Iterable[str] | None) -> Space:
    """The towers of an opened model, to be trained."""
    raise ModelError(f"model {model.name!r} has a layout that cannot be trained.")


@_space.register
def _(model: BundledModel, modalities: Iterable[str] | None) -> Space:
    return BundledSpace.open(model)


@_space.register
def _(model: PublishedModel, modalities: Iterable[str] | None) -> Space:
    return PublishedSpace(model.checkpoints, modalities)


def why_not_loaded(error: Exception) -> str:
    """Why `torch.load(weights_only=True)` refused a file, without torch's advice to load it all the same."""
    if isinstance(error, UnpicklingError):
        return "it is no checkpoint, or holds more than weights and numbers"
    return " ".join(str(error).split())[:120].rstrip(". ")


def read_states(path: str | Path, modalities: Iterable[str]) -> dict[str, State]:
    """States by modality from any of: what `open_space` opens, a run folder, its checkpoint.pt, one of its snapshots.

    Of a run the averaged weights are taken. Raises ModelError, RequestError when nothing of the modalities is there.
    """
    path = Path(path)
    there = [f for f in (path / "checkpoint.pt", path / "develop" / "checkpoint.pt") if f.is_file()]
    file = there[0] if there else path
    if file.suffix != ".pt":
        return {m: s for m, s in open_space(path).states().items() if m in tuple(modalities)}
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
        if "objective" in state:
            state = {**state["objective"], **state["average"]}
        if odd := [k for k, v in state.items() if not isinstance(k, str) or not isinstance(v, Tensor)]:
            raise ValueError(f"{odd[0]!r} is no tensor")
    except Exception as error:  # a damaged file can fail in any way
        raise ModelError(f"{str(file)!r} cannot be read: {why_not_loaded(error)}.") from error
    found: dict[str, dict[str, Tensor]] = {}
    for key, value in state.items():
        parts = key.split(".")
        if parts[0] == "before":  # what a distillation holds on to
            continue
        # "space.towers.satellite.net.0.weight": what follows the name of a modality under the towers.
        for k, part in enumerate(parts[:-1]):
            if part in ("towers", "encoders") and parts[k + 1] in tuple(modalities):
                found.setdefault(parts[k + 1], {})[".".join(parts[k + 2 :])] = value
                break
    if not found:
        raise RequestError(f"{str(file)!r} holds no weights of {', '.join(modalities)}.")
    return found


def complete(states: States, base: States) -> dict[str, State]:
    """States with what they lack (snapshots hold no buffers) from another of the same architecture."""
    return {m: {**base[m], **s} for m, s in states.items() if m in base}
