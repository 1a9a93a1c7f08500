"""Ctrl-C and SIGTERM, from the first line of a program to its last: never lost, never a traceback.

Python raises what a handler raises wherever the main thread happens to be. In the midst of an import that may be code
which swallows it (a callback of the import system, an `except:` of a library); so there it waits until the import is
done. What is swallowed elsewhere (a destructor, a callback from C) Python reports as unraisable; it is raised again.
"""

from __future__ import annotations

import atexit
import gc
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

AGAIN_S = 0.05
"""Seconds until a signal that waits is looked at again."""
LATEST_S = 10.0
"""Seconds after which it does not wait for imports any longer."""
_IMPORTING = "<frozen importlib._bootstrap>"


class _Signals:
    """The signal that came, and since when it waits."""

    number = 0
    since = 0.0

    def strike(self, number: int, frame: FrameType | None) -> None:
        """Handler of SIGINT and SIGTERM."""
        if not self.number:
            self.since = time.monotonic()
        self.number = number
        self._raise_or_wait(frame)

    def again(self, number: int, frame: FrameType | None) -> None:
        """Handler of SIGALRM."""
        if self.number:
            self._raise_or_wait(frame)

    def end(self) -> KeyboardInterrupt | SystemExit | None:
        """Wait no longer; the exception of a signal that still does."""
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, 0.0)
        if not self.number:
            return None
        return SystemExit(143) if self.number == signal.SIGTERM else KeyboardInterrupt()

    def unraisable(self, found: Any) -> None:
        """Hook for exceptions that Python could not raise."""
        ours = found.exc_type is KeyboardInterrupt or (found.exc_type is SystemExit and self.number)
        if ours and hasattr(signal, "setitimer"):
            self.number = self.number or signal.SIGINT
            signal.setitimer(signal.ITIMER_REAL, AGAIN_S)
        else:
            sys.__unraisablehook__(found)

    def _raise_or_wait(self, frame: FrameType | None) -> None:
        if hasattr(signal, "setitimer") and _is_importing(frame) and time.monotonic() - self.since < LATEST_S:
            signal.setitimer(signal.ITIMER_REAL, AGAIN_S)  # no thread: a lock of `threading` may be held right here
            return
        raise SystemExit(143) if self.number == signal.SIGTERM else KeyboardInterrupt


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename == _IMPORTING:
            return True
        frame = frame.f_back
    return False


@contextmanager
def interruptible(mask: set[int | signal.Signals] | None = None) -> Iterator[None]:
    """SIGINT and SIGTERM end the program with 130 and 143 and one sentence, once everything is cleaned up.

    A signal that is ignored, as SIGINT is in the background of a script, stays ignored. `mask`: the blocked signals to
    return to once the handlers are there; None leaves them as they are.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    state = _Signals()
    handlers = {signal.SIGINT: state.strike, signal.SIGTERM: state.strike}
    if hasattr(signal, "SIGALRM"):
        handlers[signal.SIGALRM] = state.again
    before = {number: signal.getsignal(number) for number in handlers}
    hook = sys.unraisablehook
    try:
        for number, handler in handlers.items():
            if before[number] is not signal.SIG_IGN:
                signal.signal(number, handler)
        sys.unraisablehook = state.unraisable
        atexit.register(_ignore)  # what comes while Python ends changes nothing any more
        if mask is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        yield
    except (KeyboardInterrupt, SystemExit) as stop:
        code = 130 if isinstance(stop, KeyboardInterrupt) else stop.code
        if code not in (130, 143):
            raise
        _leave(stop, code)
    finally:
        late = state.end()
        sys.unraisablehook = hook
        for number, former in before.items():
            signal.signal(number, former)
        if late:  # it waited for an import, and the program came to its end first
            _leave(late, 143 if isinstance(late, SystemExit) else 130)


def _ignore() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _leave(stop: BaseException, code: int) -> None:
    _ignore()
    print(f"error: interrupted; {_note(stop)}", file=sys.stderr, flush=True)
    # Memory shared with worker processes is released when it is collected, not by os._exit.
    stop.__traceback__ = stop.__context__ = None
    gc.collect()
    # The outputs are cleaned up by now. Threads of native libraries may still be busy, and tearing the
    # interpreter down under them can end in an abort: leave at once, with the right code.
    os._exit(code)


def _note(stop: BaseException) -> str:
    """The state of the outputs, or what a command noted on its interruption."""
    publication = sys.modules.get("sdm.files.publication")
    if publication is not None and publication.published:
        return f"the outputs had been written to {publication.published[-1].parent}, and are complete."
    # Typer may have put another exception around it.
    error: BaseException | None = stop
    while error is not None:
        if notes := getattr(error, "__notes__", None):
            return notes[-1]
        error = error.__cause__ or error.__context__
    return "no output was written."
