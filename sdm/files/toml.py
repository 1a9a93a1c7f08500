"""TOML files from anywhere, bounded before they are parsed."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

from sdm.errors import RequestError

MAX_BYTES = 256 << 10
"""Bytes of a file."""
MAX_KEY_PARTS = 16
"""Parts of a dotted key: the time and memory that tomllib takes grow with their square."""

_LONG_KEY = re.compile(
    rf"""(?<![\w-])(?:(?:[\w-]++|"[^"\n]*+"|'[^'\n]*+')[ \t]*+\.[ \t]*+){{{MAX_KEY_PARTS}}}""",
)


def read_toml(path: Path, what: str) -> dict[str, Any]:
    """The document of a TOML file; `what` names it in messages: "config", "recipe". Raises RequestError."""
    name = f"{what} {str(path)!r}"
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        raise RequestError(f"{name} cannot be read: {getattr(error, 'strerror', None) or error}.") from error
    if len(content) > MAX_BYTES:
        raise RequestError(f"{name} is larger than {MAX_BYTES >> 10} KiB; give a TOML file of options.")
    try:
        text = content.decode("utf-8").replace("\r\n", "\n")
        if _LONG_KEY.search(text):
            raise RequestError(f"{name} has a key of more than {MAX_KEY_PARTS} parts; no option has such a key.")
        document = tomllib.loads(text)
    except RecursionError:
        raise RequestError(f"{name} nests its values too deeply; no option needs that.") from None
    except ValueError as error:  # also of numbers too long for an int
        raise RequestError(f"{name} is not valid TOML: {error}.") from error
    if place := _null(document):
        raise RequestError(f"{name} holds a null character in {place!r}; remove it.")
    return document


def _null(document: dict[str, Any]) -> str:
    """The top-level key of which the name or the value holds a null character; "" is none."""
    for key, value in document.items():
        pending = [key, value]
        while pending:
            item = pending.pop()
            if isinstance(item, str) and "\0" in item:
                return key
            if isinstance(item, dict):
                pending += [*item, *item.values()]
            elif isinstance(item, list):
                pending += item
    return ""
