"""All-or-nothing outputs: a staging folder, one publication, and disk errors in plain words.

A map is several files and a Zarr folder. All of them are written into a hidden staging folder beside their
final place (same file system, so that a rename is enough), and moved only when every one is complete::

    with Staging(folder, ["bear.tif", "bear.zarr"], overwrite=False) as staging:
        write_cog(staging.path("bear.tif"), ...)
        ...
        staging.publish()

Leaving the block without `publish` - error, Ctrl-C, SIGTERM - removes the staging folder. After SIGKILL or a
power cut it stays, hidden, and the next `Staging` in that folder removes it: it holds a lock that dies with
its process. Older outputs are set aside during publication and return if publication fails.
"""

import contextlib
import errno
import os
import shutil
import signal
import stat
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self

from sdm.errors import OutputError
from sdm.files.locks import Lock, LockedError

PREFIX = ".sdm-staging-"
"""Prefix of the names of staging folders."""

_COMPANIONS = (".aux.xml", ".ovr", ".msk")
"""Extensions that GIS programs add to a .tif; left behind, such files would describe the map that was replaced."""

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NEARLY_FULL = 1 << 20  # bytes left on a disk that counts as full: GDAL does not pass on the reason
_ABANDONED = 3600.0  # seconds after which a staging folder without a lock is a leftover


def check_targets(folder: Path, names: Iterable[str], *, overwrite: bool = False) -> None:
    """Raise OutputError unless the outputs `names` can be published in `folder`. Changes nothing.

    Refused: a folder that cannot be made or written to, names with separators, outputs that exist already
    (unless `overwrite`), and - overwriting or not - symbolic links, a folder where a file should be or the
    reverse, and a folder named like a Zarr output that is not a Zarr store.
    """
    folder = Path(folder)
    check_folder(folder)
    seen: set[str] = set()
    for name in names:
        if name in ("", ".", "..") or Path(name).name != name or "\0" in name:
            raise OutputError(f"Output name {name!r} must be a plain file name.")
        if name.casefold() in seen:
            raise OutputError(f"Output name {name!r} is used twice.")
        seen.add(name.casefold())
        for path in (folder / name, *companions(folder / name)):
            _check_target(path, overwrite)


def check_folder(folder: Path) -> None:
    """Raise OutputError unless `folder` is a folder that can be written to, or could be made."""
    nearest = folder
    while not os.path.lexists(nearest) and nearest != nearest.parent:
        nearest = nearest.parent
    if not nearest.exists():
        raise OutputError(f"Output folder {folder}: {nearest} is a symbolic link that leads nowhere.")
    if not nearest.is_dir():
        raise OutputError(f"Output folder {folder}: {nearest} is a file, not a folder.")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise OutputError(f"Output folder {folder}: no permission to write in {nearest}.")


def _check_target(path: Path, overwrite: bool) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:  # a name too long for the file system, for example
        raise OutputError(f"{path} cannot be an output: {error.strerror}.") from error
    if stat.S_ISLNK(mode):
        raise OutputError(f"{path} is a symbolic link; remove it or choose another output name.")
    if not overwrite:
        raise OutputError(f"{path} exists already; give --overwrite to replace it, or another output name.")
    if path.suffix == ".zarr":
        if not stat.S_ISDIR(mode):
            raise OutputError(f"{path} is not a folder, so it cannot be replaced by a Zarr store; remove it.")
        markers = (".zgroup", ".zarray", ".zmetadata", "zarr.json")
        if not any((path / marker).is_file() for marker in markers) and any(path.iterdir()):
            raise OutputError(f"{path} is a folder but not a Zarr store; remove it yourself.")
    elif not stat.S_ISREG(mode):
        raise OutputError(f"{path} is not a regular file, so it cannot be replaced; remove it.")


def companions(path: Path) -> list[Path]:
    """The files that GIS programs may have put beside an output."""
    return [path.with_name(path.name + suffix) for suffix in _COMPANIONS] if path.suffix == ".tif" else []


class Staging:
    """A hidden folder in `folder` where the outputs `names` are made, then published together.

    Raises OutputError where `check_targets` does, on entering and again on publishing. While it is open in
    the main thread, SIGTERM ends the program through SystemExit(143), so that cleaning up happens.
    """

    def __init__(self, folder: Path, names: Iterable[str], *, overwrite: bool = False) -> None:
        self.folder = Path(folder)
        self.names = tuple(names)
        self.overwrite = overwrite
        self._root: Path | None = None
        self._lock: Lock | None = None
        self._published = False
        self._signals = contextlib.ExitStack()

    def __enter__(self) -> Self:
        check_folder(self.folder)
        with disk_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            _remove_stale(self.folder)
        check_targets(self.folder, self.names, overwrite=self.overwrite)
        self._signals.enter_context(sigterm_exits())
        try:
            with disk_errors(self.folder):
                self._root = Path(tempfile.mkdtemp(prefix=PREFIX, dir=self.folder))
                self._lock = Lock(self._root / "lock")
                # After the lock: a folder that has it, and whose lock is free, is stale beyond doubt.
                (self._root / "new").mkdir()
        except BaseException:
            self._close()
            raise
        return self

    def path(self, name: str) -> Path:
        """The path to write the output `name` to until it is published."""
        if self._root is None:
            raise RuntimeError("Staging.path is only for use inside its with block")
        if name not in self.names:
            raise ValueError(f"{name!r} is not among the outputs {self.names!r}")
        return self._root / "new" / name

    def publish(self) -> list[Path]:
        """Move every output to its final place and return the final paths, in the order of `names`.

        Either all are moved or, after any error or interruption, none is and earlier outputs are back.
        (A SIGKILL in these few renames can leave new outputs beside old ones; none is lost or partial.)
        Raises OutputError if an output was not made, or a target appeared meanwhile.
        """
        staged = [self.path(name) for name in self.names]
        for path in staged:
            if not path.exists():
                raise OutputError(f"Output {path.name} was not written; nothing is published.")
        assert self._root is not None
        with disk_errors(self.folder):
            for path in staged:
                flush(path)
            check_targets(self.folder, self.names, overwrite=self.overwrite)
            aside = self._root / "old"
            aside.mkdir()
            try:
                for path in staged:
                    final = self.folder / path.name
                    for old in (final, *companions(final)):
                        if old.exists():
                            old.rename(aside / old.name)
                    path.rename(final)
            except BaseException:
                # What was moved is read off the disk, not remembered: a signal may strike between two lines.
                for path in staged:
                    if not path.exists():
                        (self.folder / path.name).rename(path)
                _put_back(aside, self.folder)
                raise
            flush_folder(self.folder)
        self._published = True
        return [self.folder / name for name in self.names]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def _close(self) -> None:
        try:
            if self._root is not None:
                _remove(self._root, linger=0.0 if self._published else 0.25)
            if self._lock is not None:
                self._lock.release()
                self._lock = None
            if self._root is not None:
                shutil.rmtree(self._root, ignore_errors=True)  # Windows keeps the file of a lock that is held
                self._root = None
        finally:
            self._signals.close()


def _remove(root: Path, linger: float) -> None:
    """Remove a folder; for `linger` seconds, remove it again should it come back.

    Zarr writes from threads of its own: they do not stop where an interrupt stops their caller.
    """
    end = time.monotonic() + linger
    shutil.rmtree(root, ignore_errors=True)
    while time.monotonic() < end:
        time.sleep(0.05)
        shutil.rmtree(root, ignore_errors=True)


@contextlib.contextmanager
def sigterm_exits() -> Iterator[None]:
    """SIGTERM ends the program through SystemExit(143) meanwhile, so that cleaning up happens."""
    # Someone else's handler (the command line's, a job scheduler's) is theirs to decide about.
    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _terminate(number: int, frame: FrameType | None) -> None:
    raise SystemExit(143)


def _remove_stale(folder: Path) -> None:
    """Remove staging folders of processes that are gone, first putting back outputs they had set aside."""
    for root in folder.glob(PREFIX + "*"):
        if not any((root / name).is_dir() for name in ("new", "old")):  # being made: its lock may not be held yet
            _remove_abandoned(root)
            continue
        try:
            lock = Lock(root / "lock")
        except (LockedError, OSError):  # its process is alive, or it is another user's
            continue
        if not lock.held:  # no locks here, so nothing tells
            _remove_abandoned(root)
            continue
        try:
            _put_back(root / "old", folder)
        finally:
            lock.release()
        shutil.rmtree(root, ignore_errors=True)


def _remove_abandoned(root: Path) -> None:
    with contextlib.suppress(OSError):
        if time.time() - root.stat().st_mtime > _ABANDONED:
            shutil.rmtree(root, ignore_errors=True)


def _put_back(aside: Path, folder: Path) -> None:
    if aside.is_dir():
        for old in aside.iterdir():
            if not os.path.lexists(folder / old.name):
                old.rename(folder / old.name)


def flush(path: Path) -> None:
    """Make the content durable before the rename is: else a power cut leaves a final name on no content."""
    files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
    # Side by side: file systems write many waiting files in one go.
    with ThreadPoolExecutor(min(16, max(1, len(files)))) as pool:
        list(pool.map(_flush_one, files))


def _flush_one(file: Path) -> None:
    descriptor = os.open(file, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            # Some network file systems refuse; the files are in place all the same.
            with contextlib.suppress(OSError):
                os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn what the disk, GDAL or rasterio raises while `path` is written into OutputError."""
    try:
        yield
    except OutputError:
        raise
    except Exception as error:
        # GDAL's own errors derive from nothing but Exception, so they are known by where they are defined.
        from_gdal = any(base.__module__.startswith("rasterio.") for base in type(error).__mro__)
        if not (isinstance(error, OSError) or from_gdal):
            raise
        name = path.name or str(path)
        if _is_full(error, path):
            raise OutputError(
                f"No space left on the disk (or quota) that holds {path.parent} while writing {name}."
            ) from error
        raise OutputError(f"{name} could not be written: {error}") from error


def _is_full(error: BaseException, path: Path) -> bool:
    chain: BaseException | None = error
    while chain is not None:
        if getattr(chain, "errno", None) in _FULL or "no space left" in str(chain).lower():
            return True
        chain = chain.__cause__ or chain.__context__
    with contextlib.suppress(OSError):
        return shutil.disk_usage(path.parent).free < _NEARLY_FULL
    return False
