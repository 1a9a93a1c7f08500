"""All-or-nothing outputs: a staging folder, one publication, and disk errors in plain words.

A map is several files and a Zarr folder. All of them are written into a hidden staging folder beside their
final place (same file system, so that a rename is enough), and moved only when every one is complete::

    with Staging(folder, ["bear.tif", "bear.zarr"], overwrite=False) as staging:
        write_cog(staging.path("bear.tif"), ...)
        ...
        staging.publish()

Leaving the block without `publish` - error, Ctrl-C, SIGTERM - removes the staging folder. After SIGKILL or a
power cut it stays, hidden, and the next run in that folder removes it: it holds a lock that dies with
its process. If files were changing place at that moment, that run finishes it first (see `sdm.files.publication`).
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
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self

from sdm.errors import OutputError
from sdm.files import publication
from sdm.files.locks import Lock, LockedError
from sdm.files.publication import companions
from sdm.files.signals import held_back

PREFIX = ".sdm-staging-"
"""Prefix of the names of staging folders."""

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NEARLY_FULL = 1 << 20  # bytes left on a disk that counts as full: GDAL does not pass on the reason
LINGER_S = 0.25
"""Seconds for which a folder is removed again should it come back: see `_remove`."""
_ABANDONED = 3600.0  # seconds after which a staging folder without a lock is a leftover


def check_targets(folder: Path, names: Iterable[str], *, overwrite: bool = False) -> None:
    """Raise OutputError unless the outputs `names` can be published in `folder`.

    What runs that were killed have left there is finished or removed first; nothing else is changed.
    Refused: a folder that cannot be made or written to, names with separators, outputs that exist already
    (unless `overwrite`), and - overwriting or not - symbolic links, a folder where a file should be or the
    reverse, and a folder named like a Zarr output that is not a Zarr store.
    """
    folder = Path(folder)
    check_folder(folder)
    clear(folder)
    _check_names(folder, names, overwrite)


def check_free(folder: Path, names: Iterable[str], *, overwrite: bool = False) -> None:
    """As `check_targets`, but look only: what killed runs have left stays."""
    check_folder(Path(folder))
    _check_names(Path(folder), names, overwrite)


def _check_names(folder: Path, names: Iterable[str], overwrite: bool) -> None:
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
        check_targets(self.folder, self.names, overwrite=self.overwrite)
        self._signals.enter_context(sigterm_exits())
        try:
            with disk_errors(self.folder), held_back():
                self._make()
        except BaseException:
            self._close()
            raise
        return self

    def _make(self) -> None:
        for last in (False, False, True):
            try:
                self._root = Path(tempfile.mkdtemp(prefix=PREFIX, dir=self.folder))
                self._lock = Lock(self._root / "lock")
                (self._root / "new").mkdir()
                return
            except (LockedError, FileNotFoundError):  # taken for a leftover by another run, before its lock was held
                if last:
                    raise OutputError(f"{self.folder} is being changed by other runs; try again.") from None

    def path(self, name: str) -> Path:
        """The path to write the output `name` to until it is published."""
        if self._root is None:
            raise RuntimeError("Staging.path is only for use inside its with block")
        if name not in self.names:
            raise ValueError(f"{name!r} is not among the outputs {self.names!r}")
        return self._root / "new" / name

    def publish(self) -> list[Path]:
        """Move every output to its final place and return the final paths, in the order of `names`.

        Either all are moved or, after an error, none is and earlier outputs are back. SIGINT and SIGTERM wait until
        the files are in place; after SIGKILL the next run in the folder puts all of them in place.
        Raises OutputError if an output was not made, or a target appeared meanwhile.
        """
        staged = [self.path(name) for name in self.names]
        for path in staged:
            if not path.exists():
                raise OutputError(f"Output {path.name} was not written; nothing is published.")
        assert self._root is not None
        with disk_errors(self.folder):
            _check_names(self.folder, self.names, self.overwrite)
            publication.publish(self._root, self.folder, self.names)
        self._published = True
        return [self.folder / name for name in self.names]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def _close(self) -> None:
        try:
            with held_back():
                root, self._root = self._root, None
                left = root is not None and publication.pending(root)  # for the next run to finish
                if root is not None and not left:
                    _remove(root, linger=0.0 if self._published else LINGER_S)
                if self._lock is not None:
                    self._lock.release()
                    self._lock = None
                if root is not None and not left:
                    shutil.rmtree(root, ignore_errors=True)  # Windows keeps the file of a lock that is held
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


def clear(folder: Path) -> None:
    """Finish or undo the publications of runs that were killed in a folder, and remove what else they left there.

    Raises OutputError where that fails.
    """
    for root in Path(folder).glob(PREFIX + "*"):
        if root.is_symlink() or not _is_ours(root):
            continue
        try:
            lock = Lock(root / "lock", wait_s=0.0)
        except (LockedError, OSError):  # its process is alive
            continue
        if not lock.held:  # no locks here, so nothing tells
            _remove_abandoned(root)
            continue
        try:
            with disk_errors(folder):
                publication.recover(root, folder)
                publication.forget(root)
            shutil.rmtree(root, ignore_errors=True)
        finally:
            lock.release()
        shutil.rmtree(root, ignore_errors=True)


def _is_ours(root: Path) -> bool:
    """Whether this user made a folder: what others leave in a shared one is not to be believed."""
    try:
        return os.name != "posix" or root.stat().st_uid == os.geteuid()
    except OSError:
        return False


def _remove_abandoned(root: Path) -> None:
    with contextlib.suppress(OSError):
        if not publication.pending(root) and time.time() - root.stat().st_mtime > _ABANDONED:
            shutil.rmtree(root, ignore_errors=True)


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
