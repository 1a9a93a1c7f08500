"""The JSON file beside a map: everything needed to read, judge and repeat it."""

import dataclasses
import datetime
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sdm.files.atomic import disk_errors


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write `content` as UTF-8 JSON, keys in the order given, one trailing newline.

    Numpy scalars and arrays, paths, dates, dataclasses, sets and mappings become plain JSON; NaN and
    infinities become null, so that every JSON reader accepts the file. Raises OutputError if the disk
    refuses, TypeError for a value of any other type.
    """
    # The whole text first: an unknown type must not leave half a file.
    text = json.dumps(_plain(content), ensure_ascii=False, indent=2, allow_nan=False)
    with disk_errors(path):
        path.write_bytes(text.encode("utf-8", "replace") + b"\n")


def _plain(value: Any) -> Any:
    match value:
        case None | bool() | str():
            return value
        case np.generic():
            return _plain(value.item())
        case int():
            return value
        case float():
            return value if math.isfinite(value) else None
        case Mapping():
            return {str(key): _plain(item) for key, item in value.items()}
        case list() | tuple():
            return [_plain(item) for item in value]
        case set() | frozenset():
            return [_plain(item) for item in sorted(value, key=str)]
        case np.ndarray():
            return _plain(value.tolist())
        case Path():
            return str(value)
        case datetime.date() | datetime.time():
            return value.isoformat()
        case _ if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return {item.name: _plain(getattr(value, item.name)) for item in dataclasses.fields(value)}
    raise TypeError(f"{type(value).__name__} {value!r} cannot be written as JSON")
