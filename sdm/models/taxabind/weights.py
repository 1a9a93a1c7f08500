"""Weight files, read strictly: every key, shape, type and number is checked.

safetensors, or PyTorch files of tensors only (`weights_only`): nothing in a file is executed. Shapes
are compared before anything is allocated.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from sdm.errors import ModelError

FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_POINTER = b"version https://git-lfs"


@dataclass(frozen=True)
class Source:
    """The tensors of a file for a weight of a module: several to join along the first axis, or one to transpose."""

    keys: tuple[str, ...]
    transposed: bool = False

    def shape(self, target: torch.Size) -> tuple[int, ...]:
        """Shape of each tensor in the file."""
        if self.transposed:
            return tuple(reversed(target))
        return (target[0] // len(self.keys), *target[1:]) if len(self.keys) > 1 else tuple(target)

    def join(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """The weight, from the tensors of the file."""
        if self.transposed:
            return tensors[self.keys[0]].T.contiguous()
        return torch.cat([tensors[k] for k in self.keys]) if len(self.keys) > 1 else tensors[self.keys[0]]

    def split(self, weight: Tensor) -> dict[str, Tensor]:
        """The tensors of the file, from the weight: undoes `join`."""
        parts = [weight.T] if self.transposed else weight.chunk(len(self.keys)) if len(self.keys) > 1 else [weight]
        return dict(zip(self.keys, parts, strict=True))


@dataclass(frozen=True)
class Blueprint:
    """The required content of a file: towers (modules without memory, on the meta device), and nothing else."""

    towers: Mapping[str, nn.Module]
    """By modality."""
    sources: Mapping[str, Mapping[str, Source]]
    """By modality and weight of the module."""
    extra: Mapping[str, tuple[int, ...]]
    """Shapes of tensors that must be there and belong to no tower."""
    tolerated: frozenset[str] = frozenset()
    """Tensors that may be there and are ignored."""

    def expected(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Shape and type of every tensor of the file; floats stand for floats of any width."""
        expected = {key: (shape, torch.float32) for key, shape in self.extra.items()}
        for modality, tower in self.towers.items():
            state = tower.state_dict()
            for target, source in self.sources[modality].items():
                expected.update({k: (source.shape(state[target].shape), state[target].dtype) for k in source.keys})
        return expected


class Shapes(Protocol):
    """Names, shapes and types of the tensors in a weight file."""

    @property
    def path(self) -> Path:
        """For messages."""
        ...

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of each tensor by name."""
        ...


class WeightFile:
    """A file of named tensors. Opening reads its table of contents; raises ModelError."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.types: dict[str, torch.dtype | None] = {}
        self._tensors: dict[str, Tensor] | None = None
        """Of a file that was read whole."""
        try:
            with path.open("rb") as file:
                head = file.read(200)
        except OSError as error:
            raise ModelError(f"{str(path)!r} cannot be read: {error}") from error
        if head.startswith(_POINTER):
            raise ModelError(
                f"{str(path)!r} is a git-lfs pointer, not the weights themselves: run `git lfs pull` where it came "
                "from, or download the file."
            )
        if not head:
            raise ModelError(f"{str(path)!r} is empty; download it again.")
        if path.suffix == ".safetensors":
            self._open_safetensors()
        else:
            self._open_pickle()

    def _open_safetensors(self) -> None:
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.path, framework="pt") as file:
                slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118
                self.shapes = {k: tuple(s.get_shape()) for k, s in slices.items()}
                self.types = {k: FLOATS.get(t := s.get_dtype(), _INTEGERS.get(t)) for k, s in slices.items()}
        except (SafetensorError, OSError) as error:
            raise ModelError(
                f"{str(self.path)!r} is no complete safetensors file ({error}); it may be cut off: download it again."
            ) from error

    def _open_pickle(self) -> None:
        self._refuse_compressed()
        try:
            state = torch.load(self.path, map_location="cpu", weights_only=True, mmap=self._is_zip or None)
        except pickle.UnpicklingError as error:
            raise ModelError(
                f"{str(self.path)!r} holds more than tensors, or is damaged, and was not loaded: such a file could run "
                "code. Use the safetensors file."
            ) from error
        except Exception as error:  # a damaged file fails in many ways
            raise ModelError(
                f"{str(self.path)!r} is no complete PyTorch file ({str(error)[:150]}); it may be cut off: download it "
                "again."
            ) from error
        # Training code wraps: {"state_dict": ...}, and "module." before each key.
        if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
            state = state["state_dict"]
        if not isinstance(state, Mapping) or not all(
            isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()
        ):
            raise ModelError(f"{str(self.path)!r} is no table of named tensors.")
        if state and all(k.startswith("module.") for k in state):
            state = {k.removeprefix("module."): v for k, v in state.items()}
        self._tensors = dict(state)
        self.shapes = {k: tuple(v.shape) for k, v in state.items()}
        self.types = {k: v.dtype for k, v in state.items()}

    def _refuse_compressed(self) -> None:
        """PyTorch stores without compression; a compressed file may unpack to more than the memory of the machine."""
        self._is_zip = zipfile.is_zipfile(self.path)
        if self._is_zip:
            with zipfile.ZipFile(self.path) as archive:
                unpacked = sum(info.file_size for info in archive.infolist())
            if unpacked > self.path.stat().st_size:
                raise ModelError(f"{str(self.path)!r} is compressed, which PyTorch files are not; it was not loaded.")

    def check(self, blueprint: Blueprint) -> None:
        """Raise ModelError unless the tensors of the file match the blueprint in name, shape and type."""
        expected = blueprint.expected()
        missing = sorted(expected.keys() - self.shapes.keys())
        unknown = sorted(self.shapes.keys() - expected.keys() - blueprint.tolerated)
        if missing or unknown:
            raise ModelError(
                f"{str(self.path)!r} does not have the published layout: "
                f"{_some(missing, 'missing')}{'; ' if missing and unknown else ''}{_some(unknown, 'unknown')}."
            )
        for key, (shape, dtype) in expected.items():
            if self.shapes[key] != shape:
                raise ModelError(f"{str(self.path)!r}: {key} has the shape {self.shapes[key]}, expected {shape}.")
            stored = self.types[key]
            if stored is None or (stored not in FLOATS.values() if dtype.is_floating_point else stored != dtype):
                raise ModelError(
                    f"{str(self.path)!r}: {key} has the type {str(stored).removeprefix('torch.')}, expected "
                    f"{'a float of 16, 32 or 64 bits' if dtype.is_floating_point else dtype}."
                )

    def read(self, keys: Iterable[str]) -> dict[str, Tensor]:
        """Tensors by key, floats as float32. Raises ModelError for numbers that are not finite."""
        tensors = {}
        if self._tensors is not None:
            tensors = {key: self._tensors[key] for key in keys}
        else:
            from safetensors import SafetensorError, safe_open

            try:
                with safe_open(self.path, framework="pt") as file:
                    tensors = {key: file.get_tensor(key) for key in keys}
            except (SafetensorError, OSError) as error:
                raise ModelError(f"{str(self.path)!r} cannot be read: {error}") from error
        for key, tensor in tensors.items():
            tensors[key] = tensor = tensor.float() if tensor.is_floating_point() else tensor
            if not torch.isfinite(tensor).all():
                raise ModelError(f"{str(self.path)!r}: {key} holds numbers that are not finite.")
        return tensors

    def fill(self, blueprint: Blueprint, modality: str) -> nn.Module:
        """The tower of a modality with the weights of this file: evaluation mode, no gradients, on the CPU."""
        self.check(blueprint)
        tower, sources = blueprint.towers[modality], blueprint.sources[modality]
        tensors = self.read({key for source in sources.values() for key in source.keys})
        state = {target: source.join(tensors) for target, source in sources.items()}
        tower.load_state_dict(state, assign=True)
        # No dropout, no batch statistics: the published environment network has the one, CLAP the other.
        return tower.eval().requires_grad_(False)


_INTEGERS = {"I64": torch.int64, "I32": torch.int32, "U8": torch.uint8, "BOOL": torch.bool}


def _some(keys: list[str], what: str) -> str:
    if not keys:
        return ""
    more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
    return f"{what} {', '.join(k[:80] for k in keys[:3])}{more}"
