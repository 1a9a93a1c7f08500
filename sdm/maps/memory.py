"""Memory that one stage of a run has done with."""

from __future__ import annotations

import contextlib
import sys


def give_memory_back() -> None:
    """Return freed memory to the system: what one stage has let go of must not add to the peak of the next.

    glibc keeps the freed blocks of each thread for itself, more of them the longer the threads have run.
    """
    import ctypes
    import gc

    gc.collect(1)  # the oldest objects are those of imports: to look through them takes 0.3 s and frees nothing
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # a libc without malloc_trim
            ctypes.CDLL(None).malloc_trim(0)
