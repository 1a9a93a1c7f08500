"""Cross-modal retrieval: from any sum of modalities to any other modality of the same observation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sdm.evaluation.classification import subsets
from sdm.evaluation.ranking import combine, rank


@dataclass(frozen=True)
class Retrieval:
    """Result for one sum of query modalities and one target modality."""

    query: tuple[str, ...]
    target: str
    recall: dict[int, float]
    """recall@k in 0..1, by k."""
    median_rank: float
    """1 is best."""
    queries: int
    gallery: int


def retrieve(
    queries: Mapping[str, np.ndarray],
    target: str,
    gallery: np.ndarray,
    answers: np.ndarray | None = None,
    ks: Sequence[int] = (1, 5, 10),
    device: str = "cpu",
) -> Retrieval:
    """Rank the gallery by the sum of all query modalities.

    Parameters
    ----------
    queries : unit vectors (N, dim) by modality
    target : modality of the gallery
    gallery : unit vectors (M, dim)
    answers : (N,) the right row of the gallery for each query; None: the same row
    ks : the k of recall@k
    device : of the computation
    """
    features = combine(list(queries.values()))
    ranks = rank(features, gallery, np.arange(len(features)) if answers is None else answers, device)
    recall = {k: ranks.recall(k) for k in ks}
    return Retrieval(tuple(queries), target, recall, ranks.median(), len(features), len(gallery))


def retrievals(
    embeddings: Mapping[str, np.ndarray],
    galleries: Mapping[str, tuple[np.ndarray, np.ndarray]] | None = None,
    ks: Sequence[int] = (1, 5, 10),
    device: str = "cpu",
) -> Iterator[Retrieval]:
    """Every non-empty sum of modalities against every modality that is not part of it.

    Parameters
    ----------
    embeddings : unit vectors (N, dim) by modality, row i of each belonging to the same observation
    galleries : targets that observations share, such as the texts of species, by modality: (M, dim), and the right
        row (N,) of each observation; they are queries only if `embeddings` has the modality too
    ks : the k of recall@k
    device : of the computation
    """
    targets = {m: (e, np.arange(len(e))) for m, e in embeddings.items()} | dict(galleries or {})
    for target, (gallery, answers) in targets.items():
        for subset in subsets([m for m in embeddings if m != target]):
            yield retrieve({m: embeddings[m] for m in subset}, target, gallery, answers, ks, device)
