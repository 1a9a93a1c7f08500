"""Folders of models: those that are bundled, and what such a folder must hold.

A model folder holds `config.json` (architecture, inputs, calibration, domain), `model.safetensors` (weights),
`vocabulary.txt` (tokens of the text tower, one a line), `taxa.csv` (names) and a card, `README.md`. It may hold
`known_ranges.safetensors` (see `sdm.models.known_ranges`) and `notes.csv` (columns species and note: what its maps of a
species lack). Weights are safetensors only, and every key and shape must match: nothing in the folder is executed.
A model may share the encoders of places of another one (`sdm.models.shared`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sdm.errors import ModelError
from sdm.files import release
from sdm.files.paths import folder as resource_folder
from sdm.files.paths import replace_file
from sdm.models.config import FORMAT, KNOWN_RANGES, check_config
from sdm.models.protocol import Check
from sdm.models.shared import DESCRIBED, EARLIER, encoders_digest, named_encoders

DEFAULT = "mammals-trees"
"""The bundled model for requests without a species, such as an index."""
FILES = ("config.json", "model.safetensors", "vocabulary.txt", "taxa.csv")
"""Files that a model folder must contain."""
_DIGESTED = ("config.json", "model.safetensors", "vocabulary.txt", KNOWN_RANGES)
"""Files that a value depends on."""


def bundled_folders() -> dict[str, Path]:
    """Folders of the bundled models by name: the default one first, the others sorted."""
    folders = sorted(resource_folder("models").iterdir(), key=lambda p: (p.name != DEFAULT, p.name))
    return {p.name: p for p in folders if (p / "config.json").is_file()}


def write_folder(path: Path, config: Mapping[str, Any], weights: bytes, vocabulary: Sequence[str]) -> None:
    """Write `model.safetensors`, `vocabulary.txt` and, last, `config.json` into a model folder, each in one step."""
    replace_file(path / "model.safetensors", weights)
    replace_file(path / "vocabulary.txt", ("\n".join(vocabulary) + "\n").encode())
    replace_file(path / "config.json", (json.dumps(config, indent=1) + "\n").encode())


def find_folder(name: str | Path) -> Path:
    """The folder of a model, from its path or the name of a bundled one. Raises ModelError."""
    path = Path(name)
    try:
        if path.is_dir() and (path / "config.json").exists():
            return path.resolve()
    except (OSError, ValueError):  # a name too long, or with a null byte
        pass
    bundled = bundled_folders()
    if str(name) in bundled:
        return bundled[str(name)]
    raise ModelError(
        f"model {str(name)[:120]!r} is neither a bundled model ({', '.join(bundled) or 'none'}) nor a folder "
        "with a config.json; see --list-models."
    )


def read_folder(path: Path, *, made_here: bool = False) -> tuple[dict, str]:
    """The checked `config.json` of a complete model folder, and its digest. Raises ModelError.

    That of a model which shares the encoders of another is completed with their description.
    `made_here`: it has just been written, so hashes of the release do not apply.
    """
    for name in FILES:
        if not (path / name).is_file():
            raise ModelError(
                f"model folder {str(path)!r} has no {name}; a model needs config.json, "
                "model.safetensors, vocabulary.txt and taxa.csv."
            )
    if not made_here:
        check_hashes(path)
    config = _read_config(path)
    if "encoders" in config:
        described, _ = read_folder(encoders_folder(path, config))
        config = {key: described[key] for key in (*DESCRIBED, "domain")} | config
    check_config(path, config)
    digest = hashlib.sha256()
    for name in _DIGESTED:
        if (path / name).is_file():  # not every model has known ranges
            digest.update((path / name).read_bytes())
    return config, digest.hexdigest()[:16]


def _read_config(path: Path) -> dict:
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"model {str(path)!r}: config.json cannot be read: {error}") from error
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise ModelError(f"model {str(path)!r}: config.json is not of the format {FORMAT!r}.")
    return config


def encoders_folder(path: Path, config: dict) -> Path:
    """The folder of the model whose encoders a model shares, by its `config.json`: beside it, or bundled.

    Raises ModelError where there is none with those encoders.
    """
    name, digest = named_encoders(path, config)
    found = ""
    for folder in (path.parent / name, bundled_folders().get(name)):
        if folder is None or not all((folder / file).is_file() for file in FILES):
            continue
        other = _read_config(folder)
        if "encoders" in other:
            raise ModelError(f"model {str(path)!r} shares the encoders of {name!r}, which has none of its own.")
        found = encoders_digest(folder, other)
        if EARLIER.get(found, found) == digest:
            return folder
    if found:
        raise ModelError(
            f"model {str(path)!r} was made for the encoders {digest} of model {name!r}, but those here are {found}; "
            f"install the versions of both that belong together."
        )
    raise ModelError(
        f"model {str(path)!r} shares the encoders of model {name!r}, which is neither bundled nor in a folder beside "
        "it; put it there."
    )


def check_hashes(path: Path) -> None:
    """Raise ModelError unless the files of a bundled model are those of the release, and those of another one with a
    list of hashes are as listed there.
    """
    bundled = resource_folder("models")
    if (path / release.SUMS).is_file():
        root, prefix = path, ""
    elif path.parent.resolve() == bundled.resolve():
        root, prefix = bundled, f"{path.name}/"
    else:
        return
    tables = (file.name for file in (*path.glob("*.csv"), *path.glob(KNOWN_RANGES)))
    for name in sorted({*FILES, *tables}):
        if problem := release.differs(root, f"{prefix}{name}"):
            raise ModelError(f"model {str(path)!r}: {name} {problem}")


def layer_checks() -> list[Check]:
    """The state of each file of the bundled layers."""
    data = resource_folder("data")
    wrong = release.problems(data)
    checks = []
    for name in sorted({*release.listed(data), *wrong}):
        path = data / name
        status = f"bundled layer {name} {wrong[name]}" if name in wrong else "ok"
        size = path.stat().st_size if path.exists() else None
        checks.append(Check((), path, size, release.listed(data).get(name, ""), status))
    return checks


def is_model_folder(path: Path) -> bool:
    """Whether a folder is meant to hold a model of this format, complete or not."""
    if any((path / f).exists() for f in ("vocabulary.txt", "taxa.csv")):
        return True
    try:
        return FORMAT in (path / "config.json").read_text(encoding="utf-8")
    except (OSError, ValueError):
        return False
