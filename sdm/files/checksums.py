"""The hashes of outputs, kept in the JSON file beside them: whether they are still what was written.

The entry `checksums` of such a file has a sha256 of each output by its name, and of the file itself::

    "bear.tif"     of the file
    "bear.zarr"    of a folder: of the lines "HASH  PATH" of its files, sorted by path
    "bear.json"    of the content as JSON with sorted keys, without this line
"""

from __future__ import annotations

import hashlib
import json
import stat
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ENTRY = "checksums"
MAX_REPORT = 256 << 20
"""Bytes of a JSON file that are read at most."""
_AT_ONCE = 8


def of_output(path: Path) -> str:
    """sha256 of a file or folder, in hexadecimal digits. Raises OSError, ValueError for what is neither."""
    if not path.is_dir():
        return _of_file(path)
    files = sorted((file.relative_to(path).as_posix(), file) for file in path.rglob("*") if not file.is_dir())
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        digests = pool.map(_of_file, [file for _, file in files])
        lines = [f"{digest}  {name}\n" for (name, _), digest in zip(files, digests, strict=True)]
    return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def sealed(content: Mapping[str, Any], name: str, outputs: Mapping[str, Path]) -> dict[str, Any]:
    """A report with its checksums.

    Parameters
    ----------
    content : JSON values.
    name : of the file it will be.
    outputs : the other outputs by their final names, where they are now.
    """
    found = {other: of_output(path) for other, path in outputs.items() if other != name}
    content = {**content, ENTRY: found}
    return {**content, ENTRY: {**found, name: _of_report(content, name)}}


def recorded(report: Path) -> dict[str, str] | None:
    """The checksums in a JSON file by name; None where it has none. Raises ValueError, OSError for a damaged one."""
    return _entry(_read(report))


def damage(report: Path) -> list[str]:
    """What is wrong with the outputs beside a JSON file, and with itself; [] if nothing. Reads all of them."""
    try:
        content = _read(report)
        expected = _entry(content)
    except (OSError, ValueError) as error:
        return [f"{report.name} cannot be read ({error})"]
    if expected is None:
        return [f"{report.name} has no checksums"]
    if report.name not in expected:
        return [f"{report.name} is not the file that was written"]
    problems = []
    for name, digest in expected.items():
        try:
            found = _of_report(content, name) if name == report.name else of_output(report.parent / name)
            if found != digest:
                problems.append(f"{name} is not as it was written")
        except FileNotFoundError:
            problems.append(f"{name} is missing")
        except (OSError, ValueError) as error:
            problems.append(f"{name} cannot be read ({error})")
    return problems


def _read(report: Path) -> dict[str, Any]:
    state = report.stat()
    if not stat.S_ISREG(state.st_mode) or state.st_size > MAX_REPORT:
        raise ValueError("no regular file, or too large")
    try:
        content = json.loads(report.read_bytes())
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(content, dict):
        raise ValueError("not an object")
    return content


def _entry(content: Mapping[str, Any]) -> dict[str, str] | None:
    entry = content.get(ENTRY)
    if entry is None:
        return None
    if not isinstance(entry, dict) or not all(isinstance(digest, str) for digest in entry.values()):
        raise ValueError(f"its {ENTRY} are no object of texts")
    for name in entry:
        if Path(name).name != name or name in ("", "..") or "\0" in name:
            raise ValueError(f"{name[:80]!r} is no plain file name")
    return entry


def _of_report(content: Mapping[str, Any], name: str) -> str:
    others = {other: digest for other, digest in content[ENTRY].items() if other != name}
    text = json.dumps({**content, ENTRY: others}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _of_file(path: Path) -> str:
    if not stat.S_ISREG(path.stat().st_mode):  # a pipe might never end
        raise ValueError(f"{path.name} is no regular file")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
