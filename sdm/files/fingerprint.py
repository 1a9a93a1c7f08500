"""Fingerprints of files: 16 hex digits that tell whether two runs read the same data."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from sdm.errors import LayerError

WHOLE = 256 << 20
"""Files up to this size, in bytes, are read whole; of larger ones `PIECES` pieces of `PIECE` bytes."""
PIECES, PIECE = 64, 1 << 20


def of_files(paths: Iterable[str | Path]) -> str:
    """Fingerprint of the content of files, in their order; a folder stands for the files in it, by name.

    Neither where the files lie nor when they were written counts. Raises LayerError for what cannot be read.
    """
    total = hashlib.sha256()
    for path in map(Path, paths):
        try:
            files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
            for file in files:
                state = file.stat()
                total.update(_content(str(file), state.st_size, state.st_mtime_ns))
        except OSError as error:
            raise LayerError(f"layer {str(path)!r} cannot be read: {error.strerror}.") from error
    return total.hexdigest()[:16]


def of_file(path: str | Path) -> str:
    """Fingerprint of the content of one file or folder."""
    return of_files([path])


def of_parts(parts: Iterable[object]) -> str:
    """Fingerprint of the texts of some values, in their order."""
    digest = hashlib.sha256()
    for part in parts:
        text = str(part).encode()
        digest.update(f"{len(text)}:".encode() + text)
    return digest.hexdigest()[:16]


@lru_cache(maxsize=1024)
def _content(path: str, size: int, changed: int) -> bytes:
    """sha256 of a file; size and time of change are keys of the cache, so that a changed file is read again."""
    digest = hashlib.sha256(str(size).encode())
    with Path(path).open("rb") as file:
        if size <= WHOLE:
            while part := file.read(PIECE):
                digest.update(part)
        else:
            for k in range(PIECES):
                file.seek(k * (size - PIECE) // (PIECES - 1))
                digest.update(file.read(PIECE))
    return digest.digest()
