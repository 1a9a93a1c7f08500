"""Towers that share a space, as something to train: opened from a folder, and written back in the same layout.

Two kinds: this project's own architecture (a model folder, see `sdm.models.bundled`) and the published TaxaBind one
(see `sdm.models.taxabind`). Both embed raw values with gradients, and `open_model` opens what either writes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from sdm._version import __version__
from sdm.errors import ModelError, RequestError
from sdm.files.atomic import Staging
from sdm.models.bundled import BundledModel
from sdm.models.encoders.bundled import build
from sdm.models.encoders.location import LocationEncoder
from sdm.models.encoders.text import TaxonTower
from sdm.models.registry import open_model
from sdm.models.taxabind.checkpoints import Checkpoints, read_plan
from sdm.models.taxabind.encoders import PublishedEncoders
from sdm.models.taxabind.model import PublishedModel
from sdm.models.taxabind.write import write_published
from sdm.request.choices import MODALITIES
from sdm.training.data.training_set import TrainingSet
from sdm.training.recipe.range_recipe import Recipe

State = Mapping[str, Tensor]
"""Weights and buffers of one encoder, by name."""

States = Mapping[str, State]
"""By modality."""

FROZEN_SUFFIXES = ("frequencies", "windows", "capsule.0.b")
"""Ends of the names of random features that are drawn once and never trained, so that no mean of two draws is valid."""


COMPANIONS = ("groups.csv", "genera.csv", "homonyms.csv", "notes.csv", "NOTICE.md")
"""Files of a model folder that are copied along if they exist."""


class Space(nn.Module):
    """Towers by modality."""

    def __init__(self, towers: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.towers = nn.ModuleDict(towers)

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modalities that can be embedded."""
        return tuple(self.towers)

    @property
    def device(self) -> torch.device:
        """The device of the towers."""
        return next(self.parameters()).device

    def embed(self, modality: str, values: Any, keep: Tensor | None = None) -> Tensor:
        """Raw values of a modality -> (N, dim) float32, **not** of unit length, with gradients if enabled.

        `keep`, for text only: (N, ranks) 0/1 weights of the ranks.
        """
        raise NotImplementedError

    def states(self) -> dict[str, dict[str, Tensor]]:
        """Copies of the weights and buffers of every tower, on the CPU."""
        return {m: {k: v.detach().cpu().clone() for k, v in t.state_dict().items()} for m, t in self.towers.items()}

    def load_states(self, states: States) -> None:
        """Load the states of some towers. Raises ModelError for those that do not fit."""
        for modality, state in states.items():
            if modality not in self.towers:
                raise ModelError(f"there is no {modality} encoder to load; there are {', '.join(self.towers)}.")
            try:
                self.towers[modality].load_state_dict(state)
            except RuntimeError as error:
                reason = " ".join(str(error).split())[:200]
                raise ModelError(f"the {modality} encoder is of another architecture: {reason}") from error

    def write(self, out: Path, add_files: Callable[[Path], None] = lambda folder: None, **facts: Any) -> None:
        """Write all towers into a new folder of the same layout.

        `add_files` is called with the folder before it is published; `facts` go into its description. Raises
        OutputError when `out` exists or cannot be written.
        """
        with Staging(Path(out).parent, [Path(out).name]) as staging:
            folder = staging.path(Path(out).name)
            folder.mkdir()
            self._write_towers(folder, **facts)
            add_files(folder)
            staging.publish()

    def _write_towers(self, folder: Path, **facts: Any) -> None:
        raise NotImplementedError


class BundledSpace(Space):
    """This project's architecture: location, satellite, environment, text (`sdm.models.bundled.build`).

    config and vocabulary as in a model folder; `folder` holds taxa.csv and the other files that are copied along.
    Values: location (N, 2) degrees (lon, lat), satellite (N, size, size, 3) uint8, environment (N, inputs)
    standardised, text (N, ranks) rows of the vocabulary, `keep` (N, ranks) the weights of the ranks.
    """

    def __init__(
        self, config: dict, vocabulary: list[str], folder: Path, dropout: float = 0.0, env_dropout: float = 0.0
    ) -> None:
        super().__init__(dict(build(config, vocabulary, dropout, env_dropout).items()))
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

    def _write_towers(self, folder: Path, calibration: dict | None = None, **facts: Any) -> None:
        """`calibration`: {"location+satellite": (scale, bias)}; `facts` go into config.json."""
        from safetensors.torch import save_file

        state = {f"{m}.{k}": v for m, s in self.states().items() for k, v in s.items()}
        # Half precision, except for tensors that are not weights: frequencies, windows.
        state = {k: (v if k.endswith(FROZEN_SUFFIXES) else v.half()).contiguous() for k, v in state.items()}
        save_file(state, folder / "model.safetensors")
        (folder / "vocabulary.txt").write_text("\n".join(self.vocabulary) + "\n", encoding="utf-8")
        config = dict(self.config, made_with=f"taxabind-map {__version__}", **facts)
        config.pop("encoders", None)  # all towers are written, also those that the model shared
        if calibration is not None:
            config["calibration"] = {k: {"scale": s, "bias": b} for k, (s, b) in calibration.items()}
        (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
        for name in ("taxa.csv", *COMPANIONS):
            if (self.folder / name).is_file():
                shutil.copyfile(self.folder / name, folder / name)


class PublishedSpace(Space):
    """The published architecture, for the modalities that have weights; values as for `PublishedEncoders.encode`.

    Random weights to start from: `sdm.models.taxabind.write.create_published`.
    """

    def __init__(self, checkpoints: Checkpoints, modalities: Iterable[str] | None = None) -> None:
        towers = {}
        for modality in modalities or checkpoints.modalities:
            file, plan = read_plan(checkpoints.find(modality))
            towers[modality] = file.fill(plan, modality)  # a copy, since that of `load` is shared
        super().__init__(towers)
        self.checkpoints = checkpoints
        self._encoders: PublishedEncoders | None = None

    def embed(self, modality: str, values: Any, keep: Tensor | None = None) -> Tensor:
        """See `Space`."""
        if self._encoders is None or self._encoders.device != self.device:
            self._encoders = PublishedEncoders(self.checkpoints, str(self.device))
        tower = self.towers[modality]
        return self._encoders.forward(modality, tower, self._encoders.prepare(modality, values, tower)).float()

    def _write_towers(self, folder: Path, logit_scale: float | None = None, **facts: Any) -> None:
        write_published(self.checkpoints, self.states(), folder, logit_scale)
        if facts:
            (folder / "training.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def open_space(name: str | Path, modalities: Iterable[str] | None = None) -> Space:
    """The towers of a model folder, a run folder (its develop stage), a bundled model or published checkpoints.

    Raises ModelError.
    """
    developed = Path(name) / "develop" / "model"
    model = open_model(developed if developed.is_dir() else name, offline=True)
    if isinstance(model, BundledModel):
        return BundledSpace.open(model)
    if isinstance(model, PublishedModel):
        return PublishedSpace(model.checkpoints, modalities)
    raise ModelError(f"model {model.name!r} has a layout that cannot be trained.")


def why_not_loaded(error: Exception) -> str:
    """Why `torch.load(weights_only=True)` refused a file, without torch's advice to load it anyway."""
    if isinstance(error, UnpicklingError):
        return "it is not a checkpoint, or holds more than weights and numbers"
    return " ".join(str(error).split())[:120].rstrip(". ")


def read_states(path: str | Path, modalities: Iterable[str]) -> dict[str, State]:
    """States by modality from anything that `open_space` opens, a run folder, its checkpoint.pt, or a snapshot.

    From a run the averaged weights are taken. Raises ModelError for a file that cannot be read, RequestError when it
    has none of the modalities.
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
            raise ValueError(f"{odd[0]!r} is not a tensor")
    except Exception as error:  # a damaged file can fail in any way
        raise ModelError(f"{str(file)!r} cannot be read: {why_not_loaded(error)}.") from error
    states: dict[str, dict[str, Tensor]] = {}
    for key, value in state.items():
        parts = key.split(".")
        if parts[0] == "before":  # the space that a distillation compares with
            continue
        # "space.towers.satellite.net.0.weight": what follows the name of a modality under the towers.
        for k, part in enumerate(parts[:-1]):
            if part in ("towers", "encoders") and parts[k + 1] in tuple(modalities):
                states.setdefault(parts[k + 1], {})[".".join(parts[k + 2 :])] = value
                break
    if not states:
        raise RequestError(f"{str(file)!r} holds no weights of {', '.join(modalities)}.")
    return {**states}


def complete_states(states: States, base: States) -> dict[str, State]:
    """States with the tensors that they lack (snapshots hold no buffers) from another of the same architecture."""
    return {m: {**base[m], **s} for m, s in states.items() if m in base}


def architecture_config(recipe: Recipe, data: TrainingSet) -> dict[str, Any]:
    """The part of `config.json` that `sdm.models.bundled.build` reads."""
    a = recipe.architecture
    environment = {k: v for k, v in a.environment.items() if k != "around_km"}
    environment["inputs"] = [vars(i).copy() for i in data.inputs]
    return {"dim": a.dim, "location": a.location, "satellite": a.satellite, "environment": environment}


def text_tower(towers: nn.ModuleDict) -> TaxonTower:
    """The text tower of this project's architecture."""
    return cast(TaxonTower, towers["text"])


def _is_seasonal(encoder: nn.Module) -> bool:
    return cast(LocationEncoder, encoder).season


def start_from(encoders: nn.ModuleDict, model: BundledModel, vocabulary: Sequence[str]) -> int:
    """Load the weights of a model into encoders; returns how many tokens of the vocabulary it had.

    A text vector is found by its token; the other encoders must have the same sizes, but a seasonal location encoder
    may start from one that is not seasonal. Raises ModelError naming what does not fit.
    """
    given = model.load("cpu")
    own = Path(model.folder, "vocabulary.txt").read_text(encoding="utf-8").split("\n")
    row = {token: k for k, token in enumerate(t for t in own if t)}
    shared = [(k, row[t]) for k, t in enumerate(vocabulary) if t in row]
    with torch.no_grad():
        table = text_tower(encoders).embedding.weight
        theirs = cast(TaxonTower, given.text).embedding.weight.float()
        if table.shape[1] != theirs.shape[1]:
            raise ModelError(
                f"model {model.name!r} has vectors of {theirs.shape[1]}, the recipe says {table.shape[1]}."
            )
        if shared:
            ours, given_rows = (torch.tensor(v) for v in zip(*shared, strict=True))
            table[ours] = theirs[given_rows]
        for name in MODALITIES:
            state = {k: v.float() for k, v in getattr(given, name).state_dict().items()}
            expected = encoders[name].state_dict()
            if name == "location" and _is_seasonal(encoders[name]) and not _is_seasonal(given.location):
                weight = state["net.0.weight"]
                state["net.0.weight"] = torch.cat([weight, torch.zeros(len(weight), 3)], dim=1)
            wrong = [k for k, v in expected.items() if k not in state or state[k].shape != v.shape]
            if wrong or state.keys() - expected.keys():
                raise ModelError(
                    f"model {model.name!r} cannot start this recipe: its {name} encoder has other sizes "
                    f"({(wrong or ['depth'])[0]}); make [architecture] as in its config.json."
                )
            encoders[name].load_state_dict(state)
    return len(shared)
