"""Whether maps, batches, indexes, fits and models are still what was written: all of their bytes are read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sdm.errors import ModelError, RecordsError, RegionIndexError, RequestError
from sdm.files import checksums
from sdm.files.workspace import REPORT
from sdm.index import Index
from sdm.index.store import ATTRIBUTE
from sdm.index.verify import damaged
from sdm.models.registry import open_model
from sdm.records.fitfile import SUFFIX, has_digest, read_parts


@dataclass(frozen=True)
class Verdict:
    """What was found of one thing."""

    kind: str
    """map, batch, index, fit or model."""
    path: str
    problems: tuple[str, ...]
    """What is wrong, as clauses; empty if all is as it was written."""
    note: str = ""
    """What could not be compared, as a clause."""

    @property
    def good(self) -> bool:
        """Nothing is wrong."""
        return not self.problems


def verify(path: str | Path) -> list[Verdict]:
    """Read and compare everything at a path.

    Parameters
    ----------
    path : a file of a map or its JSON; a fit; a folder of maps, of a batch, an index or a model; the URL of an index.

    Raises
    ------
    RequestError : there is nothing that can be verified.
    """
    if "://" in str(path):
        return [_index(str(path))]
    path = Path(path)
    try:
        there, folder = path.exists(), path.is_dir()
    except (OSError, ValueError):  # a name too long, or with a null byte
        there = folder = False
    if not there:
        raise RequestError(f"{str(path)[:200]!r} does not exist; give a file or folder that a command has written.")
    if not folder:
        return [_file(path)]
    if (path / REPORT).exists():
        return [_reported("batch", path / REPORT)]
    if (path / "config.json").exists():
        return [_model(path)]
    if _is_index(path):
        return [_index(str(path))]
    if path.suffix == ".zarr":
        return [_file(path)]
    found = list(_inside(path))
    if not found:
        raise RequestError(f"folder {str(path)[:200]!r} holds no map, batch, index, fit or model that can be verified.")
    return found


def _inside(folder: Path) -> Iterator[Verdict]:
    """All in a folder that has checksums of its own, except what the JSON file of another lists."""
    reports = [path for path in sorted(folder.glob("*.json")) if _has_checksums(path)]
    listed: set[str] = set()
    for report in reports:
        yield _reported("map", report)
        try:
            listed |= set(checksums.recorded(report) or ())
        except (OSError, ValueError):
            continue
    for path in sorted(folder.iterdir()):
        if path.name in listed:
            continue
        if path.name.endswith(SUFFIX):
            yield _fit(path)
        elif path.is_dir() and _is_index(path):
            yield _index(str(path))


def _file(path: Path) -> Verdict:
    """A file of a map, or a fit."""
    if path.suffix == ".json" and _has_checksums(path):
        return _reported("batch" if path.name == REPORT else "map", path)
    for report in sorted(path.parent.glob("*.json")):
        try:
            if path.name in (checksums.recorded(report) or ()):
                return _reported("map", report)
        except (OSError, ValueError):
            if report.stem == path.stem:
                return _reported("map", report)
    if path.name.endswith(SUFFIX):
        return _fit(path)
    raise RequestError(
        f"{str(path)[:200]!r} cannot be verified: no JSON file beside it has its checksum, as with maps of earlier "
        "versions."
    )


def _has_checksums(report: Path) -> bool:
    """Whether a JSON file has checksums, or is too damaged to tell."""
    try:
        return checksums.recorded(report) is not None
    except (OSError, ValueError):
        return True


def _reported(kind: str, report: Path) -> Verdict:
    return Verdict(kind, str(report), tuple(checksums.damage(report)))


def _is_index(path: Path) -> bool:
    for name in (".zmetadata", ".zattrs"):
        try:
            with (path / name).open("rb") as file:
                if json.dumps(ATTRIBUTE).encode() in file.read(checksums.MAX_REPORT):
                    return True
        except OSError:
            continue
    return False


def _index(url: str) -> Verdict:
    try:
        return Verdict("index", url, tuple(damaged(Index.open(url))))
    except RegionIndexError as error:
        return Verdict("index", url, (str(error).rstrip("."),))


def _fit(path: Path) -> Verdict:
    try:
        read_parts(path)
        note = "" if has_digest(path) else "it has no hash to compare with"
        return Verdict("fit", str(path), (), note)
    except RecordsError as error:
        return Verdict("fit", str(path), (str(error).rstrip("."),))


def _model(path: Path) -> Verdict:
    try:
        checks = open_model(path).verify()
    except ModelError as error:
        return Verdict("model", str(path), (str(error).rstrip("."),))
    problems = tuple(check.status.rstrip(".") for check in checks if not check.good)
    return Verdict("model", str(path), problems, "" if _hashed(path) else "it has no hashes to compare with")


def _hashed(path: Path) -> bool:
    from sdm.files.release import SUMS

    return (path / SUMS).is_file() or (path.parent / SUMS).is_file()
