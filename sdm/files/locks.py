"""Locks on files: held by a process, and gone when it ends, however it ends."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from pathlib import Path

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

WAIT_S = 0.2
"""Seconds to try: whoever has just finished needs a moment to release the lock and remove its file."""
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}


class LockedError(Exception):
    """Another process holds the lock; the text says which one."""


class Lock:
    """A lock on a file, which is made for it and removed with it.

    `wait_s`: seconds to wait for it. On a file system without locks it does nothing. Raises LockedError when another
    process, or this one through another object, holds it, OSError when the file cannot be made.
    """

    def __init__(self, path: Path, wait_s: float = WAIT_S) -> None:
        self.path = path
        self._lock: BaseFileLock = FileLock(path, thread_local=False)
        try:
            self._lock.acquire(timeout=wait_s, poll_interval=0.02)
        except Timeout:
            raise LockedError(_holder(path)) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            return
        # A lock without the system's help keeps notes of its own in the file.
        if not isinstance(self._lock, SoftFileLock):
            with contextlib.suppress(OSError):  # Windows lets nobody write while it is locked
                path.write_text(f"process {os.getpid()} on {socket.gethostname()}\n", encoding="utf-8")

    @property
    def held(self) -> bool:
        """Whether this process holds it; False on a file system without locks, and after `release`."""
        return self._lock.is_locked

    def release(self) -> None:
        """Let others have it."""
        if self.held:
            # Removed while it is held: whoever waits for it finds that the name is gone, and looks again.
            with contextlib.suppress(OSError):
                self.path.unlink()
            self._lock.release()


def _holder(path: Path) -> str:
    try:
        return path.read_bytes()[:200].decode("utf-8", "replace").strip() or "just started"
    except OSError:
        return "just started"
