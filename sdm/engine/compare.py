"""Embeddings of many places compared with many species, in blocks that fit a processor's cache."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

import numpy as np

from sdm.engine.encode import one_thread
from sdm.engine.places import Target
from sdm.engine.trust import in_batches
from sdm.models.known_ranges import Extent

TARGETS_AT_ONCE, PLACES_AT_ONCE = 128, 1024
"""Species and places compared in one matrix product: enough for full speed, few enough for a processor's cache."""


def score_embeddings(
    embeddings: np.ndarray,
    targets: Sequence[Target],
    device: str = "cpu",
    negligible: float = 0.0,
    scales: np.ndarray | None = None,
    lonlat: tuple[np.ndarray, np.ndarray] | None = None,
) -> Iterator[tuple[int, np.ndarray | None]]:
    """Compare places with many species, in turn.

    Targets are taken `TARGETS_AT_ONCE` at a time, so memory does not grow with their number.

    Parameters
    ----------
    embeddings : (N, dim) unit vectors of places; with `scales`, codes of any number type, to be multiplied by them.
    targets : the species.
    device : a torch device of this process.
    negligible : values below it may be any below it.
    scales : (N,) float32, or None.
    lonlat : (N,), (N,) degrees, of the places; needed where something is known of a target's range.

    Yields
    ------
    (k, values (N,) float32) of each target; None stands for a target that has none above `negligible`. The values are
    the caller's to change until the next are asked for.
    """
    import torch

    if lonlat is None and any(t.known is not None for t in targets):
        raise ValueError("positions are needed: something is known of the range of a target")
    with torch.inference_mode(), one_thread(device):
        blocks = _Blocks(embeddings, scales, device)
        extent = None if lonlat is None else Extent.of(*lonlat)
        for first in range(0, len(targets), TARGETS_AT_ONCE):
            part = targets[first : first + TARGETS_AT_ONCE]
            floors = [_floor(t, negligible, extent) if negligible > 0.0 else -np.inf for t in part]
            written = blocks.cosines(np.stack([t.vector for t in part]), floors)
            for k, target in enumerate(part):
                row = blocks.row(k, written[k])
                if row is not None and lonlat is not None:
                    target.add_known(row, *lonlat)
                yield first + k, None if row is None else target.values(row, out=row)


def score_fits(
    embeddings: np.ndarray, environment: np.ndarray, targets: Sequence[Target], scales: np.ndarray | None = None
) -> Iterator[tuple[int, np.ndarray]]:
    """As `score_embeddings`, for species that are fitted to records; `environment`: (N, D) what the model reads."""
    units = embeddings if scales is None else embeddings * scales[:, None]
    for k, target in enumerate(targets):
        if target.fit is None:
            raise ValueError("a batch holds fits or species of the model, not both")
        yield k, target.values(in_batches(target.fit.logit, units, environment))


def _floor(target: Target, negligible: float, extent: Extent | None) -> float:
    """A cosine below which every value of a target in an extent lies between 0 and `negligible`."""
    floor = target.score.negligible(negligible)
    return floor if target.known is None else floor - target.known.most(extent)


class _Blocks:
    """Products of places and vectors in blocks of one shape, so that every run has the same bits."""

    def __init__(self, embeddings: np.ndarray, scales: np.ndarray | None, device: str) -> None:
        import torch

        self.embeddings, self.scales, self.device = embeddings, scales, device
        count, dim = embeddings.shape
        # In memory of torch's own alignment.
        self.places = torch.empty((PLACES_AT_ONCE, dim), device=device)
        self.vectors = torch.empty((TARGETS_AT_ONCE, dim), device=device)
        self.products = torch.empty((PLACES_AT_ONCE, TARGETS_AT_ONCE), device=device)
        self.rows = _rows(count)
        self.strips = range(0, count, PLACES_AT_ONCE)

    def cosines(self, vectors: np.ndarray, floors: Sequence[float]) -> np.ndarray:
        """Put the cosines with vectors (S, dim) into `rows`, strip by strip of places; True where (S, strips).

        A strip in which a vector never reaches its floor is left out.
        """
        import torch

        from sdm.models.encoders.packed import available, packed, product

        count, size = len(self.embeddings), len(vectors)
        self.vectors[:size] = torch.from_numpy(vectors)
        laid_out = packed(self.vectors, PLACES_AT_ONCE) if self.products.device.type == "cpu" and available() else None
        floor = torch.tensor(floors, dtype=torch.float32, device=self.device)
        written = np.zeros((size, len(self.strips)), dtype=bool)
        for number, start in enumerate(self.strips):
            stop = min(start + PLACES_AT_ONCE, count)
            self.places[: stop - start] = torch.from_numpy(self.embeddings[start:stop])
            # A strip of places and a block of targets, their product too, stay in the processor's cache.
            # Most species are absent from most strips: their cosines are looked at there and dropped.
            if laid_out is None:
                block = torch.mm(self.places, self.vectors.T, out=self.products)[: stop - start, :size]
            else:
                block = product(self.places, laid_out, None)[: stop - start, :size]
            if self.scales is not None:
                block *= torch.from_numpy(self.scales[start:stop, None]).to(self.device)
            present = torch.nonzero(torch.amax(block, dim=0) >= floor).flatten().cpu().numpy()
            self.rows[present, start:stop] = block.cpu().numpy()[:, present].T
            written[present, number] = True
        return written

    def row(self, k: int, written: np.ndarray) -> np.ndarray | None:
        """The cosines (N,) of the k-th vector, -1 in strips that were left out; None: they all were."""
        if not written.any():
            return None
        row = self.rows[k]
        for number in np.flatnonzero(~written):
            start = self.strips[int(number)]
            row[start : start + PLACES_AT_ONCE] = -1.0
        return row


def _rows(count: int) -> np.ndarray:
    """(TARGETS_AT_ONCE, count) float32 in memory that the thread keeps: fresh pages cost more than their use."""
    size = TARGETS_AT_ONCE * count
    if getattr(_kept, "rows", np.empty(0)).size < size:
        _kept.rows = np.empty(size, dtype=np.float32)
    return _kept.rows[:size].reshape(TARGETS_AT_ONCE, count)


_kept = threading.local()
