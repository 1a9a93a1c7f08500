"""The published TaxaBind model: repositories, files, sizes, modalities.

They belong to the Hugging Face organisation MVRL. A configuration repository names the others; its keys are those of
the `rshf` package (which reads `sinr` where the published file says `env_encoder`).
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path

from sdm.errors import ModelError

ORGANISATION = "MVRL"
CONFIG_REPOSITORY = "MVRL/taxabind-config"
CONFIG = "config.json"
MAX_CONFIG_BYTES = 2**20
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_REVISION = re.compile(r"[A-Za-z0-9][\w./-]{0,99}", re.ASCII)


@dataclass(frozen=True)
class Part:
    """One repository of the model."""

    key: str
    """In the configuration file: "sat_encoder"."""
    repository: str
    modalities: tuple[str, ...]
    config: str
    config_required: bool
    """Whether weights without the config would leave the architecture open (activation, heads)."""
    weights: tuple[str, ...]
    """File names; the first that exists is read: safetensors before pickles."""
    bytes: int
    """Approximate size of the published weights."""
    revision: str = "main"
    """Branch, tag or commit. No commit is pinned: the authors of this program had no access to the repository."""
    sha256: str | None = None
    """SHA-256 of the published weights, where known; otherwise recorded on first use (`sdm.models.taxabind.hashes`)."""

    @property
    def name(self) -> str:
        """Repository without its organisation: the folder that holds it."""
        return self.repository.rpartition("/")[2]


_HF = ("model.safetensors", "pytorch_model.bin")
PARTS = (
    Part(
        "clip",
        "MVRL/taxabind-vit-b-16",
        ("image", "text"),
        "open_clip_config.json",
        True,
        ("open_clip_model.safetensors", "open_clip_pytorch_model.bin"),
        599_000_000,
    ),
    Part("sat_encoder", "MVRL/ecosat", ("satellite",), CONFIG, True, _HF, 345_000_000),
    # GeoCLIP's own file has the same keys, and can be used in its place.
    Part(
        "location_encoder",
        "MVRL/ecogeo",
        ("location",),
        CONFIG,
        False,
        (*_HF, "location_encoder_weights.pth"),
        37_800_000,
    ),
    Part("env_encoder", "MVRL/ecoclim", ("environment",), CONFIG, False, _HF, 8_450_000),
    Part("audio_encoder", "MVRL/ecosound", ("audio",), CONFIG, True, _HF, 113_000_000),
)
MODALITIES = tuple(m for part in PARTS for m in part.modalities)

PREPROCESSING = {
    "image_resize": 256,
    "image_crop": 224,
    "sat_resize": 256,
    "sat_crop": 224,
    "normalize_mean": [0.485, 0.456, 0.406],
    "normalize_std": [0.229, 0.224, 0.225],
    "audio_sample_rate": 48_000,
    "audio_max_length_s": 10,
    "audio_padding": "repeatpad",
    "audio_truncation": "fusion",
}
"""Values of the published configuration; a model with other values is refused."""


def find_part(modality: str, parts: tuple[Part, ...] = PARTS) -> Part:
    """The part that holds a modality. Raises ModelError for an unknown one."""
    for part in parts:
        if modality in part.modalities:
            return part
    raise ModelError(f"modality {modality!r} is not one of TaxaBind's: {', '.join(MODALITIES)}.")


def parts_from_config(config: dict, source: str) -> tuple[Part, ...]:
    """The parts that a TaxaBind configuration names; `source` is for messages. Raises ModelError.

    A repository other than the published one has neither its revision nor its hash.
    """
    for key, value in PREPROCESSING.items():
        if config.get(key, value) != value:
            raise ModelError(f"{source}: {key} is {config[key]!r}; this program preprocesses with {value!r} only.")
    parts = []
    for part in PARTS:
        given = config.get(part.key, config.get("sinr") if part.key == "env_encoder" else None)
        if given is None:
            continue
        repository = given.removeprefix("hf-hub:") if isinstance(given, str) else ""
        check_repository(repository, f"{source}: {part.key}")
        known = repository == part.repository
        parts.append(part if known else replace(part, repository=repository, revision="main", sha256=None))
    if not parts:
        raise ModelError(f"{source} names no encoder ({', '.join(p.key for p in PARTS)}): no TaxaBind configuration.")
    return tuple(parts)


def check_repository(repository: str, source: str) -> None:
    """Raise ModelError unless a text is `organisation/name`, which is also safe as a folder name."""
    if not _REPOSITORY.fullmatch(repository) or ".." in repository:
        raise ModelError(f"{source} is {repository[:120]!r}, which is not of the form organisation/name.")


def check_revision(revision: str) -> None:
    """Raise ModelError unless a text can be a branch, a tag or a commit."""
    if not _REVISION.fullmatch(revision) or ".." in revision:
        raise ModelError(f"revision {revision[:120]!r} is neither a branch, a tag nor a commit.")


def parse_uri(uri: str) -> tuple[str, str | None]:
    """ "hf://org/repo@revision" -> ("org/repo", "revision" or None). Raises ModelError."""
    repository, at, revision = uri.removeprefix("hf://").partition("@")
    if not uri.startswith("hf://"):
        raise ModelError(f"{uri[:120]!r} is not of the form hf://organisation/repository[@revision].")
    check_repository(repository, "the repository of --model hf://...")
    if at:
        check_revision(revision)
    return repository, revision or None


def read_config(path: Path) -> dict:
    """A JSON object from a file of at most 1 MiB. Raises ModelError."""
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise ModelError(f"{str(path)!r} is too large for a configuration file.")
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{str(path)!r} cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise ModelError(f"{str(path)!r} is not a JSON object.")
    return config


def megabytes(size: int) -> str:
    """Bytes for people: "345 MB", "8.5 MB"."""
    return f"{size / 1e6:.0f} MB" if size >= 1e7 else f"{size / 1e6:.1f} MB"
