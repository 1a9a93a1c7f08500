"""Down-sampled random forest: every tree sees as many background places as presences.

Chen et al. 2004; Valavi et al. 2021 (Ecography 44:1731). scikit-learn grows the trees; here they are plain arrays of
one fixed depth, node ``k`` having the children ``2k+1`` and ``2k+2``. There are no pointers to check in a file, and
65,536 places pass through 100 trees in a fraction of a second.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

TREES = 60
DEPTH = 8
MOST_PER_TREE = 400
"""Presences that one tree sees at most: above that trees differ less and take longer."""
ROWS_AT_ONCE = 128
"""Places that pass through all trees together: what they need then fits into the processor's cache."""


@dataclass(frozen=True)
class Forest:
    """T trees of one depth D: features and thresholds (T, 2^D - 1), presence shares of the leaves (T, 2^D)."""

    feature: np.ndarray
    threshold: np.ndarray
    leaf: np.ndarray

    @property
    def depth(self) -> int:
        """Comparisons from the root to a leaf."""
        return int(self.leaf.shape[1]).bit_length() - 1

    @cached_property
    def _levels(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Of each level of all trees, node after node, tree after tree: where the first place's value of its feature
        lies among `ROWS_AT_ONCE` values of each, and its threshold."""
        parts = [slice(2**level - 1, 2 ** (level + 1) - 1) for level in range(self.depth)]
        return [
            (self.feature[:, p].ravel().astype(np.intp) * ROWS_AT_ONCE, self.threshold[:, p].ravel()) for p in parts
        ]

    def share(self, features: np.ndarray) -> np.ndarray:
        """Mean presence share of the leaves that places (N, P) fall in: (N,) float32."""
        out = np.empty(len(features), dtype=np.float32)
        columns = np.zeros((features.shape[1], ROWS_AT_ONCE), dtype=np.float32)
        for first in range(0, len(features), ROWS_AT_ONCE):
            part = features[first : first + ROWS_AT_ONCE]
            columns[:, : len(part)] = part.T
            out[first : first + len(part)] = self._share(columns)[: len(part)]
        return out

    def _share(self, columns: np.ndarray) -> np.ndarray:
        """As `share`, of `ROWS_AT_ONCE` places (P, N)."""
        flat, place = columns.ravel(), np.arange(ROWS_AT_ONCE)
        shape = (len(self.feature), ROWS_AT_ONCE)
        value, threshold = np.empty((2, *shape), dtype=np.float32)
        index, right = np.empty(shape, dtype=np.intp), np.empty(shape, dtype=bool)
        # Numbered through all trees, the children of a node k of one level are 2k and 2k+1 of the next.
        node = np.repeat(np.arange(shape[0]), ROWS_AT_ONCE).reshape(shape)
        for starts, thresholds in self._levels:
            np.take(starts, node, out=index, mode="clip")
            index += place
            np.take(flat, index, out=value, mode="clip")
            np.take(thresholds, node, out=threshold, mode="clip")
            np.greater(value, threshold, out=right)
            node += node
            node += right
        np.take(self.leaf.ravel(), node, out=value, mode="clip")
        return value.sum(axis=0) / np.float32(shape[0])


def fit_forest(
    features: np.ndarray,
    presence: np.ndarray,
    background: np.ndarray,
    *,
    trees: int = TREES,
    depth: int = DEPTH,
    seed: int = 0,
) -> Forest:
    """Grow a forest.

    Parameters
    ----------
    features : (R, P) float32, finite.
    presence, background : (R,) weights by which each tree draws its presences and its background, with replacement.
    trees, depth : number and greatest depth of the trees.
    seed : of the draws.
    """
    import sklearn
    from sklearn.tree import DecisionTreeRegressor

    rng = np.random.default_rng(seed)
    seen = np.flatnonzero(presence > 0)
    other = np.flatnonzero((background > 0) & (presence <= 0))
    chance_seen, chance_other = presence[seen] / presence[seen].sum(), background[other] / background[other].sum()
    size = min(seen.size, MOST_PER_TREE)
    truth = np.repeat([1.0, 0.0], size)
    values = np.ascontiguousarray(features, dtype=np.float32)
    feature, threshold = np.empty((trees, 2**depth - 1), np.int32), np.empty((trees, 2**depth - 1), np.float32)
    leaf = np.empty((trees, 2**depth), np.float32)
    # For 0 and 1 the splits of least squares are those of least impurity; checks of the input take as long as a tree.
    with sklearn.config_context(skip_parameter_validation=True):
        for k in range(trees):
            draw = np.concatenate([rng.choice(seen, size, p=chance_seen), rng.choice(other, size, p=chance_other)])
            tree = DecisionTreeRegressor(max_features="sqrt", max_depth=depth, random_state=int(rng.integers(2**31)))
            tree.fit(values[draw], truth, check_input=False)
            feature[k], threshold[k], leaf[k] = _spread(tree.tree_, depth)
    return Forest(feature, threshold, leaf)


def _spread(tree, depth: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A grown tree as a complete one: below an early leaf every comparison leads to the left."""
    feature = np.zeros(2**depth - 1, np.int32)
    threshold = np.full(2**depth - 1, np.inf, np.float32)
    leaf = np.zeros(2**depth, np.float32)
    share = tree.value[:, 0, 0]
    pending = [(0, 0, 0)]  # (node of the grown tree, its place in the complete one, its level)
    while pending:
        node, place, level = pending.pop()
        left = tree.children_left[node]
        if left < 0:
            first = (place + 1) * 2 ** (depth - level) - 1 - (2**depth - 1)
            leaf[first] = share[node]
            continue
        feature[place], threshold[place] = tree.feature[node], tree.threshold[node]
        pending += [(left, 2 * place + 1, level + 1), (tree.children_right[node], 2 * place + 2, level + 1)]
    return feature, threshold, leaf
