"""A run that may be cut off at any moment and goes on: what was asked, which tiles are done, what is made.

While it lasts, everything lies in one visible folder beside the final outputs::

    OUT/batch.partial/
        run.json        what was asked, written first; the next run must ask the same
        tiles/I.J.npz   the record of a finished tile: its files with sizes and CRCs, its statistics
        new/            the outputs, not complete yet
        tmp/            files being written
        publish.json    written last: all outputs are complete and durable, moving them has begun
        old/            outputs of an earlier run that are being replaced

A tile's record is written after its files, and appears whole or not at all. Nothing is flushed to the disk
for each tile: the kernel keeps what a killed process wrote, and after a power cut the next run finds, by the
CRCs, which tiles did not reach the disk, and does those again.

One run at a time: a lock on OUT/.taxabind-map.lock is held by the process and dies with it.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import shutil
import socket
import threading
import uuid
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from sdm.errors import OutputError
from sdm.files.atomic import check_folder, companions, disk_errors, flush, flush_folder

try:
    import fcntl
except ImportError:  # Windows: two runs on one output are then not kept apart.
    fcntl = None  # type: ignore[assignment]

PARTIAL = "batch.partial"
REPORT = "batch.json"
"""The last output of a finished run; it holds the configuration, and the names of all outputs."""
_LOCK = ".taxabind-map.lock"
_DISCARDED = ".batch.discarded-"
# NumPy parses headers with `ast`, and some releases of Python fail now and then where threads do so at once
# (https://github.com/python/cpython/issues/106905: "AST constructor recursion depth mismatch").
_ONE_AT_A_TIME = threading.Lock()
_CHECKED_AT_ONCE = 8
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}

Record = dict[str, npt.NDArray]


class Workspace:
    """The folder of outputs of a run that can be resumed; a context manager that holds its lock.

    Raises OutputError on entering where another run holds the lock, or the folder cannot be used.
    """

    def __init__(self, folder: Path, names: Sequence[str], *, overwrite: bool = False) -> None:
        self.folder, self.names, self.overwrite = Path(folder), tuple(names), overwrite
        self.partial = self.folder / PARTIAL
        self.new, self.tmp, self.tiles = (self.partial / name for name in ("new", "tmp", "tiles"))
        self._lock: int | None = None

    def __enter__(self) -> Self:
        check_folder(self.folder)
        with disk_errors(self.folder / _LOCK):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = take_lock(self.folder / _LOCK, self.folder)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lock is not None:
            # Removed while it is held: who waits for it finds that the name has gone, and looks again.
            with contextlib.suppress(OSError):
                (self.folder / _LOCK).unlink()
            os.close(self._lock)
            self._lock = None

    def begin(self, configuration: Mapping[str, Any], notes: Mapping[str, Any]) -> dict[str, Any] | None:
        """Start or take up the run of a configuration; None when the folder holds its finished outputs.

        Returns the notes of the first start: the command, for one, stays what it was. `configuration`: all
        that the outputs depend on, as JSON values. Raises OutputError when the folder holds another run,
        finished or not, unless `overwrite`; and, always, for what was not made by a run.
        """
        with disk_errors(self.partial):
            for left in self.folder.glob(_DISCARDED + "*"):
                shutil.rmtree(left, ignore_errors=True)
            if (self.partial / "publish.json").exists():  # cut off while it was publishing
                self._move()
            asked = json.loads(json.dumps(configuration))
            begun = self._begun()
            if begun is not None:
                differing = differences(begun["configuration"], asked)
                if differing and not self.overwrite:
                    raise OutputError(
                        f"{self.partial} holds an unfinished run with {differing}; ask for the same to go on, "
                        "choose another --out, or give --overwrite to start anew."
                    )
                if differing:
                    self._discard()
                    begun = None
            finished = read_report(self.folder)
            if begun is None and finished is not None and not self.overwrite:
                differing = differences(finished["configuration"], asked)
                if not differing:
                    return None
                raise OutputError(
                    f"{self.folder} holds a finished run with {differing}; choose another --out, or give "
                    "--overwrite to replace it."
                )
            self._check_targets([] if finished is None else finished["outputs"])
            if begun is None:
                begun = {"configuration": asked, "notes": json.loads(json.dumps(notes))}
                self.partial.mkdir(exist_ok=True)
                write_whole(self.partial / "run.json", json.dumps(begun, indent=1).encode())
            shutil.rmtree(self.tmp, ignore_errors=True)
            for folder in (self.new, self.tmp, self.tiles):
                folder.mkdir(exist_ok=True)
            return begun["notes"]

    def record(self, tile: tuple[int, int]) -> Path:
        """Where the record of a tile is kept."""
        return self.tiles / f"{tile[0]}.{tile[1]}.npz"

    def finished(self, tiles: Iterable[tuple[int, int]], store: Path, tell=lambda done: None) -> set[tuple[int, int]]:
        """Which of the tiles are done, with every file as it was written; the records of others are removed."""

        def sound(tile: tuple[int, int]) -> bool:
            path = self.record(tile)
            if not path.exists():
                return False
            with contextlib.suppress(OutputError):
                if files_are_whole(read_record(path), store):
                    return True
            path.unlink()
            return False

        tiles = list(tiles)
        good = set()
        with ThreadPoolExecutor(_CHECKED_AT_ONCE) as pool, disk_errors(self.tiles):
            for done, (tile, ok) in enumerate(zip(tiles, pool.map(sound, tiles), strict=True), 1):
                if ok:
                    good.add(tile)
                tell(done)
        return good

    def publish(self) -> None:
        """Move every output to its final place; a cut in the middle is made good by the next run's `begin`."""
        with disk_errors(self.folder):
            missing = [name for name in self.names if not os.path.lexists(self.new / name)]
            if missing:
                raise OutputError(f"Output {missing[0]} was not written; nothing is published.")
            finished = read_report(self.folder)
            stale = [] if finished is None else finished["outputs"]
            self._check_targets(stale)
            for name in self.names:
                flush(self.new / name)
            write_whole(self.partial / "publish.json", json.dumps({"names": self.names, "stale": stale}).encode())
            self._move()

    def _move(self) -> None:
        old = self.partial / "old"
        old.mkdir(exist_ok=True)
        listed = json.loads((self.partial / "publish.json").read_bytes())
        # The report goes first and comes last: without it nobody takes what lies there for a finished run.
        if (self.new / REPORT).exists():
            _set_aside([self.folder / REPORT], old)
        _set_aside([self.folder / name for name in listed["stale"] if name not in listed["names"]], old)
        for name in sorted(listed["names"], key=lambda n: n == REPORT):
            if os.path.lexists(self.new / name):
                final = self.folder / name
                _set_aside([final, *companions(final)], old)
                (self.new / name).rename(final)
        flush_folder(self.folder)
        self._discard()

    def _discard(self) -> None:
        # Renamed first: half a folder must not be taken for an unfinished run.
        aside = self.folder / f"{_DISCARDED}{uuid.uuid4().hex[:8]}"
        self.partial.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)

    def _begun(self) -> dict[str, Any] | None:
        if not os.path.lexists(self.partial):
            return None
        if self.partial.is_symlink() or not self.partial.is_dir():
            raise OutputError(f"{self.partial} is not a folder; remove it or choose another --out.")
        try:
            begun = json.loads((self.partial / "run.json").read_bytes())
            if not isinstance(begun["configuration"], dict) or not isinstance(begun["notes"], dict):
                raise ValueError("not an object")
            return begun
        except FileNotFoundError:
            # The first thing written is missing: nothing was.
            if {path.name for path in self.partial.iterdir()} <= {"run.json.part"}:
                return None
            raise OutputError(f"{self.partial} was not made by this program; remove it yourself.") from None
        except (ValueError, KeyError, TypeError) as error:
            raise OutputError(f"{self.partial / 'run.json'} cannot be read ({error}); remove {self.partial}.") from None

    def _check_targets(self, ours: Sequence[str]) -> None:
        for name in self.names:
            path = self.folder / name
            if not os.path.lexists(path):
                continue
            if not self.overwrite:
                raise OutputError(f"{path} exists already; give --overwrite to replace it, or another --out.")
            if path.is_symlink() or (path.is_dir() and name not in ours):
                raise OutputError(f"{path} was not made by a batch run; remove it yourself or choose another --out.")


def read_report(folder: Path) -> dict[str, Any] | None:
    """The report of the finished run in a folder; None when there is none, or it is not a run's."""
    try:
        report = json.loads((Path(folder) / REPORT).read_bytes())
        names = report["outputs"]
        # What may be removed on its word must be plain names in this folder.
        plain = all(isinstance(n, str) and Path(n).name == n and n not in ("", "..") for n in names)
        return report if plain and isinstance(report["configuration"], dict) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What two configurations differ in, as a phrase with both values: "resolution 0.1, not 0.05"; or ""."""
    keys = [key for key in dict.fromkeys([*before, *now]) if before.get(key) != now.get(key)]
    phrases = [f"{key} {_short(before.get(key))}, not {_short(now.get(key))}" for key in keys]
    return "; ".join(phrases[:3]) + (f"; and {len(phrases) - 3} other differences" if len(phrases) > 3 else "")


def record_of(folder: Path, index: tuple[int, int]) -> Path:
    """Where the record of a tile lies, by the tile's (row, column)."""
    return folder / f"{index[0]}.{index[1]}.npz"


def write_record(path: Path, scratch: Path, files: Sequence[tuple[str, int, int]], values: Record) -> None:
    """Write the record of a tile: its files (name, bytes, CRC-32) and arrays of one number per species."""
    names, sizes, checks = zip(*files, strict=True) if files else ((), (), ())
    listed = {
        "files": np.array(names, dtype=str),
        "sizes": np.array(sizes, dtype=np.int64),
        "checks": np.array(checks, dtype=np.uint32),
    }
    buffer = io.BytesIO()
    np.savez(buffer, **listed, **{f"value_{name}": array for name, array in values.items()})
    part = scratch / uuid.uuid4().hex
    with disk_errors(path):
        part.write_bytes(buffer.getvalue())
        part.replace(path)


def read_record(path: Path, names: Iterable[str] | None = None) -> Record:
    """The arrays of a record, or those of some names that it has. Raises OutputError when it is not whole."""
    try:
        # A zip file: each array carries its CRC.
        with _ONE_AT_A_TIME, np.load(path, allow_pickle=False) as record:
            return {name: record[name] for name in record.files if names is None or name in names}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise OutputError(f"{path} cannot be read: {error}") from error


def files_are_whole(record: Record, store: Path) -> bool:
    """True when every file of a record lies in a store as it was written."""
    for name, size, check in zip(record["files"], record["sizes"], record["checks"], strict=True):
        try:
            content = (store / str(name)).read_bytes()
        except OSError:
            return False
        if len(content) != size or zlib.crc32(content) != check:
            return False
    return True


def _set_aside(paths: Iterable[Path], old: Path) -> None:
    for path in paths:
        if os.path.lexists(path):
            path.rename(old / f"{uuid.uuid4().hex[:8]}-{path.name}")


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that appears complete and durable, or not at all."""
    part = path.with_name(path.name + ".part")
    part.write_bytes(content)
    flush(part)
    part.replace(path)
    flush_folder(path.parent)


def take_lock(path: Path, output: Path) -> int | None:
    """Lock a file for the life of this process; None where locks are not to be had.

    Raises OutputError when another process, which is writing `output`, holds it.
    """
    if fcntl is None:
        return None
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Another run may have finished, and removed the file, between the two lines above.
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                os.ftruncate(descriptor, 0)
                os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
                return descriptor
        except BlockingIOError:
            holder = os.read(descriptor, 200).decode("utf-8", "replace").strip()
            os.close(descriptor)
            raise OutputError(
                f"another run is writing to {output} ({holder or 'just begun'}); wait for it to end, or choose "
                "another --out."
            ) from None
        except FileNotFoundError:
            pass
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                os.close(descriptor)
                raise
            return descriptor  # a file system without locks: two runs are then not kept apart
        os.close(descriptor)


def _short(value: Any) -> str:
    text = "nothing" if value is None else value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."
