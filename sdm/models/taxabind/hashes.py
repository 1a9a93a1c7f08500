"""SHA-256 of weight files, and the lock file that records them beside the weights.

Hashing a gigabyte takes a second or more, so hashes are cached, per user, for as long as a file keeps its path,
size and modification time.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from sdm.errors import ModelError
from sdm.files.paths import cache_folder, replace_file
from sdm.models.taxabind.layout import read_config

LOCK = "taxabind.lock.json"
_FORMAT = "taxabind-map-lock/1"


def sha256(path: Path) -> str:
    """Hex digest of a file, from the cache where the file has not changed. Raises ModelError."""
    try:
        path = path.resolve()
        stat = path.stat()
        key, stamp = str(path), [stat.st_size, stat.st_mtime_ns]
        cached = _read_cache().get(key)
        if isinstance(cached, list) and len(cached) == 3 and cached[:2] == stamp:
            return cached[2]
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelError(f"{str(path)!r} cannot be read: {error}") from error
    _write_cache(key, [*stamp, digest])
    return digest


def _cache_file() -> Path:
    return cache_folder() / "sha256.json"


def _read_cache() -> dict:
    try:
        cache = json.loads(_cache_file().read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return cache if isinstance(cache, dict) else {}


def _write_cache(key: str, entry: list) -> None:
    try:
        cache = {k: v for k, v in _read_cache().items() if Path(k).exists()}
        _cache_file().parent.mkdir(parents=True, exist_ok=True)
        replace_file(_cache_file(), _json(cache | {key: entry}))
    except OSError:  # a cache that cannot be written to costs time, no more
        pass


def read_lock(root: Path) -> dict[str, str]:
    """SHA-256 by "repository/file" recorded in a folder; empty when nothing was. Raises ModelError if damaged."""
    path = root / LOCK
    if not path.exists():
        return {}
    lock = read_config(path)
    files = lock.get("files")
    if (
        lock.get("format") != _FORMAT
        or not isinstance(files, dict)
        or not all(isinstance(v, str) for v in files.values())
    ):
        raise ModelError(f"{str(path)!r} is no lock file of this program; delete it to record the files again.")
    return files


def write_lock(root: Path, files: dict[str, str]) -> None:
    """Record hashes. Raises ModelError when the folder cannot be written to."""
    try:
        replace_file(root / LOCK, _json({"format": _FORMAT, "files": dict(sorted(files.items()))}))
    except OSError as error:
        raise ModelError(f"the hashes cannot be recorded in {str(root / LOCK)!r}: {error}") from error


def _json(content: dict) -> bytes:
    return json.dumps(content, indent=1).encode()
