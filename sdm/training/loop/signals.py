"""SIGINT and SIGTERM stop a run between two steps."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn


@contextmanager
def stop_signals() -> Iterator[Callable[[], int]]:
    """Within this context the first SIGINT or SIGTERM is only recorded, and a second one acts at once.

    Yields a function that returns the recorded signal, or 0. Outside the main thread nothing is recorded.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: 0
        return
    received: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def record(number: int, frame: Any) -> None:
        received.append(number)
        for each, handler in before.items():
            signal.signal(each, handler)

    for number in before:
        signal.signal(number, record)
    try:
        yield lambda: received[0] if received else 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def leave(number: int, step: int, steps: int, folder: Path) -> NoReturn:
    """Raise what a signal stands for, with a note on how to continue."""
    error: BaseException = SystemExit(143) if number == signal.SIGTERM else KeyboardInterrupt()
    error.add_note(f"{step} of {steps} steps are kept in {folder}; the same command continues from there.")
    raise error
