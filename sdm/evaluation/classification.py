"""Zero-shot classification: the class whose text is nearest to the summed embeddings.

    f = normalise(image + location + ...);  class = argmax f . text        (arXiv 2411.00683, section 4)

each term a unit embedding, the texts taxonomic strings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from sdm.evaluation.ranking import combine, nearest, rank


@dataclass(frozen=True)
class Accuracy:
    """Accuracy of one set of modalities, as fractions in 0..1."""

    modalities: tuple[str, ...]
    top: dict[int, float]
    """Top-k accuracy by k."""
    mean_class: float
    """Top-1 accuracy averaged over classes: each class has the same weight, however many samples it has."""
    samples: int
    classes: int
    """Candidate classes, including those without samples."""


def classify(
    embeddings: Mapping[str, np.ndarray], texts: np.ndarray, k: int = 5, device: str = "cpu"
) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest classes of each sample: rows of `texts` (N, k) and cosines (N, k), best first.

    embeddings: unit vectors (N, dim) by modality, which are summed; texts: unit vectors (C, dim).
    """
    return nearest(combine(list(embeddings.values())), texts, k, device)


def accuracy(
    embeddings: Mapping[str, np.ndarray],
    texts: np.ndarray,
    labels: np.ndarray,
    ks: Sequence[int] = (1, 5),
    device: str = "cpu",
) -> Accuracy:
    """How often the sum of all given modalities finds the right class.

    Parameters
    ----------
    embeddings : unit vectors (N, dim) by modality
    texts : unit vectors (C, dim) of the classes; classes with the same text count as a guess among them
    labels : (N,) rows of `texts`
    ks : the k of top-k accuracy
    device : of the computation
    """
    ranks = rank(combine(list(embeddings.values())), texts, labels, device)
    hits = ranks.hits(1)
    counts = np.bincount(labels, minlength=len(texts))
    per_class = np.bincount(labels, weights=hits, minlength=len(texts))[counts > 0] / counts[counts > 0]
    return Accuracy(
        tuple(embeddings), {k: ranks.recall(k) for k in ks}, float(per_class.mean()), len(labels), len(texts)
    )


def subsets(modalities: Sequence[str]) -> list[tuple[str, ...]]:
    """Every non-empty subset, single modalities first, in the order given."""
    return [c for n in range(1, len(modalities) + 1) for c in combinations(modalities, n)]


def accuracies(
    embeddings: Mapping[str, np.ndarray],
    texts: np.ndarray,
    labels: np.ndarray,
    ks: Sequence[int] = (1, 5),
    device: str = "cpu",
) -> list[Accuracy]:
    """`accuracy` of every non-empty subset of the modalities."""
    return [accuracy({m: embeddings[m] for m in s}, texts, labels, ks, device) for s in subsets(list(embeddings))]
