"""Exact ranks of the right answer in a gallery, without the whole matrix of similarities in memory."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sdm.errors import RequestError

TIE = 1e-6
"""Cosines closer than this count as equal: about the rounding error of a float32 product of 512 terms."""
BLOCK = 4096
"""Queries and gallery are compared in blocks of this size: 64 MiB of similarities at a time."""


@dataclass(frozen=True)
class Ranks:
    """Per query: how many items of the gallery score higher than the right answer, and how many the same."""

    above: np.ndarray
    """(N,) int64."""
    tied: np.ndarray
    """(N,) int64: others whose cosine is within `TIE`."""
    size: int
    """Number of items in the gallery."""

    def hits(self, k: int) -> np.ndarray:
        """(N,) float64: probability that the right answer is among the first k, ties broken at random.

        0 or 1 without ties. A space in which all vectors coincide gets k / size, not a perfect score.
        """
        return np.clip((k - self.above) / (self.tied + 1), 0.0, 1.0)

    def recall(self, k: int) -> float:
        """Mean of `hits(k)`: recall@k for one right answer per query; with k = 1, top-1 accuracy."""
        return float(self.hits(k).mean())

    def positions(self) -> np.ndarray:
        """(N,) float64 ranks from 1; the mean rank among ties."""
        return 1.0 + self.above + self.tied / 2.0

    def median(self) -> float:
        """Median rank."""
        return float(np.median(self.positions()))


def rank(queries: np.ndarray, gallery: np.ndarray, answers: np.ndarray, device: str = "cpu") -> Ranks:
    """Rank the right answer of each query in a gallery.

    queries (N, dim), gallery (M, dim): unit vectors, float32; answers (N,): the row of the gallery that is right.
    At most BLOCK x BLOCK similarities are in memory. Raises RequestError when shapes do not fit.
    """
    import torch

    _check(queries, gallery)
    answers = np.asarray(answers)
    if answers.shape != (len(queries),) or answers.min() < 0 or answers.max() >= len(gallery):
        raise RequestError(f"{len(queries)} queries need as many answers, each a row of the gallery.")
    above, tied = np.empty(len(queries), np.int64), np.empty(len(queries), np.int64)
    with torch.inference_mode():
        whole_gallery = torch.from_numpy(np.ascontiguousarray(gallery)).to(device)
        for start in range(0, len(queries), BLOCK):
            rows = slice(start, start + BLOCK)
            q = torch.from_numpy(np.ascontiguousarray(queries[rows])).to(device)
            right = torch.from_numpy(answers[rows].astype(np.int64)).to(device)
            score = (q * whole_gallery[right]).sum(1, keepdim=True)
            higher = torch.zeros(len(q), dtype=torch.int64, device=device)
            near = torch.zeros_like(higher)
            for first in range(0, len(gallery), BLOCK):
                cos = q @ whole_gallery[first : first + BLOCK].T
                higher += (cos > score + TIE).sum(1)
                near += (cos >= score - TIE).sum(1)
            above[rows] = higher.cpu().numpy()
            tied[rows] = (near - higher).clamp_min(1).cpu().numpy() - 1  # without the answer itself
    return Ranks(above, tied, len(gallery))


def nearest(queries: np.ndarray, gallery: np.ndarray, k: int, device: str = "cpu") -> tuple[np.ndarray, np.ndarray]:
    """The k nearest items of a gallery for each query: rows (N, k) int64 and cosines (N, k) float32, best first.

    queries (N, dim), gallery (M, dim): unit vectors. k is at most M. Equal cosines are in arbitrary order.
    Memory as in `rank`. Raises RequestError when shapes do not fit or k is below 1.
    """
    import torch

    _check(queries, gallery)
    if k < 1:
        raise RequestError(f"{k} neighbours were asked for; ask for at least 1.")
    k = min(k, len(gallery))
    rows_out = np.empty((len(queries), k), np.int64)
    cos_out = np.empty((len(queries), k), np.float32)
    with torch.inference_mode():
        whole_gallery = torch.from_numpy(np.ascontiguousarray(gallery)).to(device)
        for start in range(0, len(queries), BLOCK):
            part = slice(start, start + BLOCK)
            q = torch.from_numpy(np.ascontiguousarray(queries[part])).to(device)
            best, rows = q.new_empty(len(q), 0), torch.empty(len(q), 0, dtype=torch.int64, device=device)
            for first in range(0, len(gallery), BLOCK):
                cos = q @ whole_gallery[first : first + BLOCK].T
                cos, at = cos.topk(min(k, cos.shape[1]), dim=1)
                # The best so far and the best of this block contain the best of both.
                best, order = torch.cat([best, cos], 1).topk(min(k, best.shape[1] + cos.shape[1]), dim=1)
                rows = torch.cat([rows, at + first], 1).gather(1, order)
            rows_out[part], cos_out[part] = rows.cpu().numpy(), best.cpu().numpy()
    return rows_out, cos_out


def combine(embeddings: list[np.ndarray]) -> np.ndarray:
    """Element-wise sum of unit embeddings, normalised: each (N, dim) -> (N, dim) float32.

    How TaxaBind adds modalities (arXiv 2411.00683, section 3); see `sdm.models.score.combine`.
    """
    import torch

    from sdm.models.score import combine as combine_tensors

    with torch.inference_mode():
        return combine_tensors([torch.from_numpy(np.ascontiguousarray(e)) for e in embeddings]).numpy()


def _check(queries: np.ndarray, gallery: np.ndarray) -> None:
    if queries.ndim != 2 or gallery.ndim != 2 or not len(queries) or not len(gallery):
        raise RequestError("queries and gallery must each hold at least one embedding.")
    if queries.shape[1] != gallery.shape[1]:
        raise RequestError(
            f"queries have {queries.shape[1]} numbers each, the gallery {gallery.shape[1]}; use one model for both."
        )
