"""The JSON file beside a map: everything needed to read, assess and reproduce it."""

import dataclasses
import datetime
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sdm.files.atomic import disk_errors
from sdm.files.checksums import sealed


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write `content` as UTF-8 JSON, keys in the given order, with one trailing newline.

    Numpy scalars and arrays, paths, dates, dataclasses, sets and mappings become plain JSON; NaN and
    infinities become null, so that every JSON reader accepts the file. Raises OutputError if the file
    cannot be written, TypeError for a value of any other type.
    """
    # The whole text first: an unknown type must not leave an incomplete file.
    text = _text(content)
    with disk_errors(path):
        path.write_bytes(text + b"\n")


def write_sealed(path: Path, content: Mapping[str, Any], outputs: Mapping[str, Path]) -> dict[str, Any]:
    """As `write_json`, with the checksums of all outputs (see `sdm.files.checksums`); returns what was written.

    `outputs` are the others, by their final names, where they are now: complete.
    """
    with disk_errors(path):
        whole = sealed(json.loads(_text(content)), path.name, outputs)
    write_json(path, whole)
    return whole


def _text(content: Mapping[str, Any]) -> bytes:
    return json.dumps(_plain(content), ensure_ascii=False, indent=2, allow_nan=False).encode("utf-8", "replace")


def _plain(value: Any) -> Any:
    """A value as JSON types."""
    if value is None or isinstance(value, bool | str | int):
        return value
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    return _plain_container(value)


def _plain_container(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, set | frozenset):
        value = sorted(value, key=str)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {item.name: _plain(getattr(value, item.name)) for item in dataclasses.fields(value)}
    raise TypeError(f"{type(value).__name__} {value!r} cannot be written as JSON")
