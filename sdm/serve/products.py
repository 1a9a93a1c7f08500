"""Cosines of many embeddings with species, several species per pass over the embeddings."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from sdm.engine.cluster import processors
from sdm.index.encoding import cosines, decode

PART = 1 << 16
"""Embeddings per task of a thread."""

BATCH = 16
"""Largest number of species in one pass. Decoding costs about as much as the products with eight."""


class Packed:
    """Embeddings (N, dim) in memory, encoded as in an index (`sdm.index.encoding`)."""

    def __init__(self, codes: np.ndarray, scales: np.ndarray) -> None:
        self._codes, self._scales = codes, scales
        self._change, self._busy = threading.Condition(), False
        self._waiting: list[tuple[np.ndarray, Future[np.ndarray]]] = []
        self._pool = ThreadPoolExecutor(processors(), "product")

    def __len__(self) -> int:
        return len(self._scales)

    def cosines(self, vector: np.ndarray) -> np.ndarray:
        """Cosines (N,) float32 with one unit vector (dim,).

        Calls from several threads at once share one pass over the embeddings.
        """
        mine: Future[np.ndarray] = Future()
        with self._change:
            self._waiting.append((vector, mine))
        while True:
            with self._change:
                # One pass at a time; one of the threads that wait for its end then computes for all of them.
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

    def decoded(self, part: slice) -> np.ndarray:
        """Some of the embeddings (n, dim) float32."""
        return decode(self._codes[part], self._scales[part])

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
