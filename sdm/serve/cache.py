"""Results kept in memory, shared by threads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Generic, TypeVar

V = TypeVar("V")


class Cache(Generic[V]):
    """Results by key, bounded in bytes; the least recently used are removed first.

    Threads that ask for a result under computation wait for it. An error is raised in all waiting threads,
    and not kept.
    """

    def __init__(self, max_bytes: int, size: Callable[[V], int]) -> None:
        self._max, self._size, self._held = max_bytes, size, 0
        self._lock = threading.Lock()
        self._entries: dict[Hashable, tuple[Future[V], int]] = {}

    def get(self, key: Hashable, make: Callable[[], V]) -> V:
        """The result for a key, computed by `make()` where it is not kept. Raises what `make` raises."""
        with self._lock:
            entry = self._entries.pop(key, None)
            future, size = entry or (Future(), 0)
            self._entries[key] = (future, size)  # the last entry is the most recently used
        if entry is not None:
            return future.result()
        try:
            result = make()
        except BaseException as error:
            with self._lock:
                self._entries.pop(key, None)
            future.set_exception(error)
            raise
        with self._lock:
            size = self._size(result)
            self._held += size
            self._entries[key] = (future, size)
            # Results under computation have no size and stay: other threads wait for them.
            for old in [k for k, (f, _) in self._entries.items() if f.done()]:
                if self._held <= self._max:
                    break
                self._held -= self._entries.pop(old)[1]
        future.set_result(result)
        return result
