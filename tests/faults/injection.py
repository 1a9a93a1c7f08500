"""Faults at the n-th call that changes names or makes them durable, in a forked process."""

import errno
import os
import signal
import time

CALLS = ("rename", "replace", "link", "unlink", "remove", "mkdir", "rmdir", "fsync")
"""Functions of `os` through which pathlib, shutil and filelock too change a folder."""

PUBLISHED = 50  # added to an exit code


class Faults:
    """Counts the calls of `CALLS` and disturbs them from the `n`-th on (0: the first).

    kill-before, kill-after: SIGKILL around the call. error: it fails with EIO. full: it and all later ones fail with
    ENOSPC. interrupt: SIGINT after it. storm: SIGINT and SIGTERM in turn after it and all later ones.
    """

    def __init__(self, kind=None, n=0):
        self.kind, self.n, self.count = kind, n, 0

    def install(self):
        for name in CALLS:
            setattr(os, name, self._disturbed(getattr(os, name)))

    def _disturbed(self, call):
        def disturbed(*args, **options):
            here, self.count = self.count, self.count + 1
            struck = here == self.n
            if struck and self.kind == "kill-before":
                os.kill(os.getpid(), signal.SIGKILL)
            if struck and self.kind == "error":
                raise OSError(errno.EIO, "broken")
            if here >= self.n and self.kind == "full":
                raise OSError(errno.ENOSPC, "full")
            result = call(*args, **options)
            if struck and self.kind == "kill-after":
                os.kill(os.getpid(), signal.SIGKILL)
            if struck and self.kind == "interrupt":
                os.kill(os.getpid(), signal.SIGINT)
            if here >= self.n and self.kind == "storm":
                os.kill(os.getpid(), signal.SIGTERM if (here - self.n) % 2 else signal.SIGINT)
            return result

        return disturbed


def in_child(work, faults=None):
    """Run `work()` in a forked process under faults.

    Returns the exit code: 0 done, 6 OutputError, 130, 143, -9 killed; and whether it says that it has published.
    """
    from sdm.errors import OutputError
    from sdm.files import atomic, publication

    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGTERM, atomic._terminate)
            atomic.LINGER_S = 0.0
            publication.published.clear()
            try:
                if faults:
                    faults.install()
                work()
                code = 0
            except OutputError:
                code = 6
            except KeyboardInterrupt:
                code = 130
            except SystemExit as stop:
                code = stop.code
        except KeyboardInterrupt:
            code = 130
        finally:
            os._exit(code + PUBLISHED * bool(publication.published))
    end = time.monotonic() + 20
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            published = code in (PUBLISHED, PUBLISHED + 6, PUBLISHED + 130, PUBLISHED + 143)
            return code - PUBLISHED * published, published
        time.sleep(0.001)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise AssertionError("the process did not end")


def count_calls(work):
    """The number of such calls that `work()` makes."""
    read, write = os.pipe()
    faults = Faults()
    real_write = os.write

    def counted():
        work()
        real_write(write, str(faults.count).encode())

    code, _ = in_child(counted, faults)
    os.close(write)
    with os.fdopen(read) as file:
        text = file.read()
    assert code == 0 and int(text) > 10
    return int(text)
