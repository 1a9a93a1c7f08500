"""Embeddings of many places compared with many species, in blocks that fit a processor's cache."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

import numpy as np

from sdm.engine.encode import one_torch_thread
from sdm.engine.places import Target

TARGETS_AT_ONCE, PLACES_AT_ONCE = 256, 1024
"""Species and places compared in one matrix product: enough for full speed, few enough for a processor's cache."""


def score_embeddings(
    embeddings: np.ndarray, targets: Sequence[Target], device: str = "cpu", negligible: float = 0.0,
    scales: np.ndarray | None = None,
) -> Iterator[tuple[int, np.ndarray | None]]:  # fmt: skip
    """Yields (k, values (N,) float32) of each target in turn, for unit embeddings (N, dim) of places.

    With `scales` (N,) float32 the embeddings are codes of any number type, to be multiplied by them.
    Values below `negligible` may be any below it; None stands for a target that has no others. The values are
    the caller's to change until the next are asked for. Targets are taken `TARGETS_AT_ONCE` at a time, so
    memory does not grow with their number. `device`: a torch device of this process.
    """
    import torch

    count, dim = embeddings.shape
    with torch.inference_mode(), one_torch_thread(device):
        # In memory of torch's own alignment and of one shape: the same bits in every run.
        places = torch.empty((PLACES_AT_ONCE, dim), device=device)
        vectors = torch.empty((TARGETS_AT_ONCE, dim), device=device)
        cosines = torch.empty((PLACES_AT_ONCE, TARGETS_AT_ONCE), device=device)
        rows = _rows(count)
        strips = range(0, count, PLACES_AT_ONCE)
        for first in range(0, len(targets), TARGETS_AT_ONCE):
            part = targets[first : first + TARGETS_AT_ONCE]
            vectors[: len(part)] = torch.from_numpy(np.stack([t.vector for t in part]))
            floors = [t.score.negligible(negligible) if negligible > 0.0 else -np.inf for t in part]
            floor = torch.tensor(floors, dtype=torch.float32, device=device)
            written = np.zeros((len(part), len(strips)), dtype=bool)
            for number, start in enumerate(strips):
                stop = min(start + PLACES_AT_ONCE, count)
                places[: stop - start] = torch.from_numpy(embeddings[start:stop])
                # A strip of places and a block of targets, their product too, stay in the processor's cache.
                # Most species are absent from most strips: their cosines are looked at there and dropped.
                block = torch.mm(places, vectors.T, out=cosines)[: stop - start, : len(part)]
                if scales is not None:
                    block *= torch.from_numpy(scales[start:stop, None]).to(device)
                present = torch.nonzero(torch.amax(block, dim=0) >= floor).flatten().cpu().numpy()
                rows[present, start:stop] = block.cpu().numpy()[:, present].T
                written[present, number] = True
            for k, target in enumerate(part):
                row = rows[k]
                if not written[k].any():
                    yield first + k, None
                    continue
                for number in np.flatnonzero(~written[k]):
                    row[strips[number] : strips[number] + PLACES_AT_ONCE] = -1.0
                yield first + k, target.score.values(row, out=row)


def _rows(count: int) -> np.ndarray:
    """(TARGETS_AT_ONCE, count) float32 in memory that the thread keeps: fresh pages cost more than their use."""
    size = TARGETS_AT_ONCE * count
    if getattr(_kept, "rows", np.empty(0)).size < size:
        _kept.rows = np.empty(size, dtype=np.float32)
    return _kept.rows[:size].reshape(TARGETS_AT_ONCE, count)


_kept = threading.local()
