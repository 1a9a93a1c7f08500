"""A short hash that says whether two runs read the same files, without reading large files whole."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from sdm.errors import LayerError

SAMPLES, SAMPLE_BYTES = 64, 4096
WHOLE_BYTES = SAMPLES * SAMPLE_BYTES


def of_file(path: str | Path) -> str:
    """Hash of a file's size and content; of a file past 256 kB, of 64 pieces spread over it.

    The name and the time of change do not count, so a copy has the same hash. Raises LayerError.
    """
    digest = hashlib.sha256()
    try:
        with Path(path).open("rb") as file:
            size = file.seek(0, 2)
            digest.update(str(size).encode())
            starts = (
                [0] if size <= WHOLE_BYTES else [k * (size - SAMPLE_BYTES) // (SAMPLES - 1) for k in range(SAMPLES)]
            )
            for start in starts:
                file.seek(start)
                digest.update(file.read(WHOLE_BYTES if size <= WHOLE_BYTES else SAMPLE_BYTES))
    except OSError as error:
        raise LayerError(f"file {str(path)!r} cannot be read: {error.strerror}.") from error
    return digest.hexdigest()


def of_parts(parts: Iterable[object]) -> str:
    """Sixteen hex digits that depend on each part's text and on their order."""
    digest = hashlib.sha256()
    for part in parts:
        text = str(part).encode()
        digest.update(f"{len(text)}:".encode() + text)
    return digest.hexdigest()[:16]
