"""Checking the published files as thoroughly as can be: layout, numbers, hashes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sdm.errors import ModelError
from sdm.models.taxabind.checkpoints import Checkpoints, lock_key, plan_of
from sdm.models.taxabind.hashes import read_lock, write_lock


@dataclass(frozen=True)
class Check:
    """What was found about one file."""

    modalities: tuple[str, ...]
    path: Path
    bytes: int
    sha256: str
    status: str
    """ "ok", "recorded" (trusted now, checked from now on), or what is wrong, as one sentence."""

    @property
    def good(self) -> bool:
        """Nothing is wrong with the file."""
        return self.status in ("ok", "recorded")


def verify(checkpoints: Checkpoints) -> list[Check]:
    """Check every file in use: names, shapes, types and finiteness of all weights, and the SHA-256.

    A hash seen for the first time is recorded in `taxabind.lock.json` beside the files (trust on first
    use), unless something is wrong with the part. Nothing is raised for a bad file: read `good`.
    """
    checks, record = [], dict(read_lock(checkpoints.root))
    known = dict(record)
    for found in checkpoints.found:
        problem = _structure(found)
        for path in found.files:
            digest, status = "", problem
            try:
                digest = checkpoints.checked_hash(found, path)
            except ModelError as error:
                status = status or str(error)
            if not status:
                key = lock_key(found, path)
                status = "ok" if key in record else "recorded"
                record.setdefault(key, digest)
            checks.append(Check(found.part.modalities, path, path.stat().st_size, digest, status))
    if record != known:
        write_lock(checkpoints.root, record)
    return checks


def _structure(found) -> str:
    """What is wrong with the weights of a part, or nothing."""
    try:
        file, plan = plan_of(found)
        file.check(plan)
        for key in file.shapes:  # one at a time: the largest tensor is all the memory it takes
            file.read([key])
    except ModelError as error:
        return str(error)
    return ""
