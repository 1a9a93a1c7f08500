"""Embeddings held in memory, and their products with species: those that wait are computed in one pass."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from sdm.engine.cluster import processors
from sdm.index.encoding import cosines

PART = 1 << 16
"""Embeddings that a thread takes at a time."""

BATCH = 16
"""Species in one pass at most. Unpacking costs about as much as the products of eight."""


class Packed:
    """Embeddings (N, dim) in memory, encoded as in an index (`sdm.index.encoding`)."""

    def __init__(self, codes: np.ndarray, scales: np.ndarray) -> None:
        self._codes, self._scales = codes, scales
        self._change, self._busy = threading.Condition(), False
        self._waiting: list[tuple[np.ndarray, Future]] = []
        self._pool = ThreadPoolExecutor(processors(), "product")

    def __len__(self) -> int:
        return len(self._scales)

    def cosines(self, vector: np.ndarray) -> np.ndarray:
        """Cosines (N,) float32 with one unit vector (dim,).

        Calls from several threads at once share one pass over the embeddings.
        """
        mine: Future = Future()
        with self._change:
            self._waiting.append((vector, mine))
        while True:
            with self._change:
                # One pass at a time; whoever waits when it ends takes the next, for all who came meanwhile.
                while self._busy and not mine.done():
                    self._change.wait()
                if mine.done():
                    return mine.result()
                self._busy = True
                batch, self._waiting = self._waiting[:BATCH], self._waiting[BATCH:]
            try:
                results = self._product(np.stack([v for v, _ in batch]))
                for (_, future), result in zip(batch, results, strict=True):
                    future.set_result(result)
            except Exception as error:
                for _, future in batch:
                    future.set_exception(error)
            finally:
                with self._change:
                    self._busy = False
                    self._change.notify_all()

    def _product(self, vectors: np.ndarray) -> np.ndarray:
        """Cosines (S, N) with vectors (S, dim), on all processors."""
        out = np.empty((len(vectors), len(self)), dtype=np.float32)

        def part(start: int) -> None:
            some = slice(start, start + PART)
            out[:, some] = cosines(self._codes[some], self._scales[some], vectors)

        list(self._pool.map(part, range(0, len(self), PART)))
        return out

    def close(self) -> None:
        """Stop the threads."""
        self._pool.shutdown(wait=False, cancel_futures=True)


class Cache:
    """Results by key, bounded in bytes: the least recently used go first.

    A result under way is waited for, not computed twice; an error is passed on to all who wait, and forgotten.
    """

    def __init__(self, max_bytes: int, size: Callable[[object], int]) -> None:
        self._max, self._size, self._held = max_bytes, size, 0
        self._lock = threading.Lock()
        self._entries: dict[object, tuple[Future, int]] = {}

    def get(self, key: object, make: Callable[[], object]):
        """The result for a key, made by `make()` where it is not held. Raises what `make` raises."""
        with self._lock:
            entry = self._entries.pop(key, None)
            mine = entry is None
            future, size = entry or (Future(), 0)
            self._entries[key] = (future, size)  # the last is the most recent
        if not mine:
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
            # What is still being made has no size and stays: others wait for it.
            for old in [k for k, (f, _) in self._entries.items() if f.done()]:
                if self._held <= self._max:
                    break
                self._held -= self._entries.pop(old)[1]
        future.set_result(result)
        return result
