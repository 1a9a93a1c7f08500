"""The published weights on this machine: for which modalities there are any, and their towers."""

from __future__ import annotations

import hashlib
import shlex
import threading
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from sdm.errors import ModelError
from sdm.models.taxabind.hashes import read_lock, sha256
from sdm.models.taxabind.layout import MODALITIES, Part, find_part, megabytes, read_config
from sdm.models.taxabind.locate import PartFiles, find_files, hub_cache, parts_below

if TYPE_CHECKING:
    from torch import nn

    from sdm.models.taxabind.weights import Blueprint, WeightFile

_cache: dict[tuple, nn.Module] = {}
_lock = threading.Lock()


@dataclass(frozen=True)
class Checkpoints:
    """Published weights below a folder. Cheap to open, to compare and to send: holds paths, no tensors."""

    root: Path
    parts: tuple[Part, ...]
    present: tuple[PartFiles, ...]
    """The files of the parts that have weights here."""
    problems: tuple[tuple[str, str], ...]
    """(key of the part, message) of parts whose weights are on disk but not usable."""
    by_hand: bool
    """Whether the user named the folder, rather than the Hugging Face cache being searched."""

    @classmethod
    def open(cls, folder: str | Path | None = None, cache_dir: str | Path | None = None) -> Checkpoints:
        """Find the published files below `folder`, or, without one, in the Hugging Face cache (`cache_dir`).

        A folder may hold `ecosat/`, `MVRL/ecosat/` or `models--MVRL--ecosat/snapshots/...`, and so on for
        the other parts; some parts are enough. Raises ModelError when there is none.
        """
        # Absolute: a worker that the model is sent to has its own working folder.
        root = (hub_cache(cache_dir) if folder is None else Path(folder).expanduser()).absolute()
        checkpoints = cls.below(root, parts_below(root), folder is not None)
        parts = checkpoints.parts
        if not checkpoints.present and not checkpoints.problems:
            total = sum(part.bytes for part in parts)
            raise ModelError(
                f"none of TaxaBind's files are in {str(root)!r} ({megabytes(total)} in {len(parts)} repositories). "
                f"Fetch them with `sdm models fetch taxabind{checkpoints._where()}`, or put them into a folder, "
                f"as {', '.join(f'{p.name}/{p.weights[0]}' for p in parts[:2])} ... each with its {parts[0].config} or "
                "config.json, and give that folder as --model."
            )
        return checkpoints

    @classmethod
    def below(cls, root: Path, parts: tuple[Part, ...], by_hand: bool) -> Checkpoints:
        """The files of some parts that are on disk, possibly none."""
        present, problems = [], []
        for part in parts:
            try:
                files = find_files(root, part)
            except ModelError as error:
                problems.append((part.key, str(error)))
                continue
            if files is not None:
                present.append(files)
        return cls(root, parts, tuple(present), tuple(problems), by_hand)

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modalities whose weights are on disk, in the order of `MODALITIES`."""
        present = {m for files in self.present for m in files.part.modalities}
        return tuple(m for m in MODALITIES if m in present)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over all weight and config files in use, first 16 hex digits.

        Raises ModelError when a file differs from its recorded or published hash.
        """
        total = hashlib.sha256()
        for files in dict.fromkeys(self.find(m) for m in sorted(self.modalities)):
            for path in files.paths:
                total.update(f"{files.part.key}/{path.suffix}/{self.checked_hash(files, path)}\n".encode())
        return total.hexdigest()[:16]

    def checked_hash(self, files: PartFiles, path: Path) -> str:
        """SHA-256 of a file. Raises ModelError when it is not the published or the recorded one."""
        digest = sha256(path)
        expected = self._known_hash(files, path)
        if expected is not None and expected != digest:
            raise ModelError(
                f"{str(path)!r} has changed: its SHA-256 is {digest[:16]}..., expected {expected[:16]}.... "
                "Fetch it again, or, if the change is intended, delete taxabind.lock.json beside the files."
            )
        return digest

    def _known_hash(self, files: PartFiles, path: Path) -> str | None:
        """The hash that a file should have: as published, as the hub names it, or as recorded here."""
        part = files.part
        if path == files.weights and part.sha256 is not None and path.name == part.weights[0]:
            return part.sha256
        # The hub's cache names the content of large files by their SHA-256.
        blob = path.resolve()
        if blob.parent.name == "blobs" and len(blob.name) == 64:
            return blob.name
        return read_lock(self.root).get(lock_key(files, path))

    def find(self, modality: str) -> PartFiles:
        """The files of a modality. Raises ModelError saying what is missing and how to get it."""
        part = find_part(modality, self.parts)
        for files in self.present:
            if files.part.key == part.key:
                return files
        raise ModelError(dict(self.problems).get(part.key) or self.missing(part, modality))

    def missing(self, part: Part, modality: str) -> str:
        """One sentence: what, how large, which command fetches it, where to put it by hand."""
        place = self.root / part.name if self.by_hand else Path("FOLDER") / part.name
        return (
            f"the {modality} encoder is missing: {part.weights[0]} ({megabytes(part.bytes)}) of {part.repository}. "
            f"Fetch it with `sdm models fetch taxabind --modality {modality}{self._where()}`, or download it and "
            f"{part.config} from https://huggingface.co/{part.repository} into {str(place)!r}"
            f"{'' if self.by_hand else ' and give --model FOLDER'}."
        )

    def _where(self) -> str:
        """The option that makes `sdm models fetch` fetch to where these were looked for."""
        return "" if self.root == hub_cache() else f" --cache-dir {shlex.quote(str(self.root))}"

    @cached_property
    def dim(self) -> int:
        """Length of the embeddings. Raises ModelError when two parts differ, so that they cannot be compared."""
        sizes: dict[int, str] = {}
        for files in self.present:
            for modality, tower in read_plan(files)[1].towers.items():
                sizes.setdefault(dimension(tower), modality)
        if len(sizes) > 1:
            listed = ", ".join(f"{size} ({modality})" for size, modality in sizes.items())
            raise ModelError(f"the encoders in {str(self.root)!r} give vectors of different lengths: {listed}.")
        return next(iter(sizes))

    def load(self, modality: str, device: str = "cpu") -> nn.Module:
        """The tower of a modality on a device, in evaluation mode, shared by all callers in this process.

        See `sdm.models.taxabind.encoders.PublishedEncoders` for what each takes. Raises ModelError.
        """
        files = self.find(modality)
        stamp = tuple((str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in files.paths)
        key = (modality, device, stamp)
        with _lock:
            if key not in _cache:
                file, plan = read_plan(files)
                _cache[key] = file.fill(plan, modality).to(device)
            return _cache[key]

    def logit_scale(self) -> float:
        """The learned scale of cosines between image and text, `exp` of what open_clip's file holds."""
        import math

        from sdm.models.taxabind.weights import WeightFile

        file = WeightFile(self.find("image").weights)
        if file.shapes.get("logit_scale") != ():
            raise ModelError(f"{str(file.path)!r} has no scalar logit_scale.")
        value = float(file.read(["logit_scale"])["logit_scale"])
        if abs(value) > 20:
            raise ModelError(f"{str(file.path)!r}: logit_scale is {value:g}; a trained one is below ln 100.")
        return math.exp(value)


def lock_key(files: PartFiles, path: Path) -> str:
    """Name of a file in the lock: "MVRL/ecosat/model.safetensors"."""
    return f"{files.part.repository}/{path.name}"


def dimension(tower: nn.Module) -> int:
    """Length of the vectors that a tower computes."""
    size = getattr(tower, "dim", None) or getattr(tower.config, "projection_dim", None)
    assert isinstance(size, int)
    return size


def read_plan(files: PartFiles) -> tuple[WeightFile, Blueprint]:
    """The weight file of a part, and what it must hold. Raises ModelError."""
    from sdm.models.taxabind.blueprints import blueprint
    from sdm.models.taxabind.weights import WeightFile

    file = WeightFile(files.weights)
    config = None if files.config is None else read_config(files.config)
    return file, blueprint(files.part.key, config, file, str(files.config or files.weights))
