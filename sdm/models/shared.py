"""Encoders of places that several models share: what stands for them, and how a model names them.

`config.json` of a model that shares the encoders of another has in place of `dim`, `location`, `satellite` and
`environment` the entry `"encoders": {"model": name, "digest": digits}`. Its weights are those of its species alone.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from sdm.errors import ModelError

DESCRIBED = ("dim", "location", "satellite", "environment")
"""Entries of `config.json` that describe the encoders."""
EARLIER = dict.fromkeys(
    ("8c71826faddec1f2", "9bc26097f54f820a", "598a888d2720d993", "6dffb57f7e02d494"), "71e606b195f50c65"
) | {"424bc6791e83c209": "f600e0eaf2b36ea7"}
"""The present encoders of mammals-trees and of birds, by what stood for them in earlier versions.

Their weights are the same, but places were encoded at other distances and interpolated between. The versions 3 and 4 of
mammals-trees were named by the whole model."""
_MAX_HEADER = 1 << 20
_OF_SPECIES = "text."
"""Begins the names of the weights that belong to the species."""


def encoders_digest(folder: Path, config: Mapping[str, Any]) -> str:
    """16 hexadecimal digits that change with anything that changes the embedding of a place.

    Parameters
    ----------
    folder : of a model with encoders of its own.
    config : its `config.json`.

    Raises
    ------
    ModelError : the weights cannot be read.
    """
    path = folder / "model.safetensors"
    described = json.dumps({key: config[key] for key in DESCRIBED}, sort_keys=True)
    try:
        state = path.stat()
        return _digest(str(path), state.st_size, state.st_mtime_ns, described)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(f"the weights {str(path)!r} cannot be read: {error}; install the model again.") from error


@lru_cache(maxsize=16)
def _digest(path: str, size: int, changed: int, described: str) -> str:
    # The bytes of the file, not tensors: neither numpy nor torch is needed to tell two models apart.
    content = Path(path).read_bytes()
    length = int.from_bytes(content[:8], "little")
    if not 0 < length <= _MAX_HEADER:
        raise ValueError("it is no safetensors file")
    header = json.loads(content[8 : 8 + length])
    data = memoryview(content)[8 + length :]
    digest = hashlib.sha256()
    for name, entry in sorted(header.items()):
        if name.startswith((_OF_SPECIES, "__")):
            continue
        start, stop = entry["data_offsets"]
        digest.update(f"{name} {entry['dtype']} {entry['shape']}".encode())
        digest.update(data[start:stop])
    digest.update(described.encode())
    return digest.hexdigest()[:16]


def named_encoders(path: Path, config: Mapping[str, Any]) -> tuple[str, str]:
    """The (model, present digest) whose encoders a config shares. Raises ModelError for an entry that is none."""
    entry = config["encoders"]
    model, digest = (entry.get(key) for key in ("model", "digest")) if isinstance(entry, dict) else (None, None)
    if (
        not isinstance(model, str)
        or not isinstance(digest, str)
        or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", model)
        or not re.fullmatch(r"[0-9a-f]{16}", digest)
    ):
        raise ModelError(
            f"model {str(path)!r}: config.json has an entry 'encoders' without the name of a model and 16 hexadecimal "
            "digits."
        )
    if own := [key for key in DESCRIBED if key in config]:
        raise ModelError(
            f"model {str(path)!r}: config.json shares the encoders of {model!r}, so it must not have {own[0]!r}."
        )
    return model, EARLIER.get(digest, digest)
