"""Checks of the published files: layout, numbers, hashes."""

from __future__ import annotations

from sdm.errors import ModelError
from sdm.models.protocol import Check
from sdm.models.taxabind.checkpoints import Checkpoints, lock_key, read_plan
from sdm.models.taxabind.hashes import read_lock, write_lock
from sdm.models.taxabind.locate import PartFiles


def verify(checkpoints: Checkpoints) -> list[Check]:
    """Check every file in use: names, shapes, types and finiteness of all weights, and the SHA-256.

    A hash seen for the first time is recorded in `taxabind.lock.json` beside the files (trust on first
    use), unless something is wrong with the part. Nothing is raised for a bad file: read `good`.
    """
    checks: list[Check] = []
    record = dict(read_lock(checkpoints.root))
    known = dict(record)
    for files in checkpoints.present:
        problem = _structure(files)
        for path in files.paths:
            digest, status = "", problem
            try:
                digest = checkpoints.checked_hash(files, path)
            except ModelError as error:
                status = status or str(error)
            if not status:
                key = lock_key(files, path)
                status = "ok" if key in record else "recorded"
                record.setdefault(key, digest)
            checks.append(Check(files.part.modalities, path, path.stat().st_size, digest, status))
    if record != known:
        write_lock(checkpoints.root, record)
    return checks


def _structure(files: PartFiles) -> str:
    """The error in the weights of a part, as a sentence; "" if there is none."""
    try:
        file, plan = read_plan(files)
        file.check(plan)
        for key in file.shapes:  # one at a time: the largest tensor is all the memory it takes
            file.read([key])
    except ModelError as error:
        return str(error)
    return ""
