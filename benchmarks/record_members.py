"""Members and weights of the ensemble on a user's own covariates, against elapid's Maxent at its defaults.

    python benchmarks/record_members.py DATASETS [--species 6] [--seed 0]

Three test beds: surveyed plots of European trees and American ranges with a planted bias, as in `records.py` beside it,
and vertebrates of iNaturalist in held-out spatial blocks. Every line is a mean gain in AUC by test bed, of which the
plots are what the targets are of. `now` is what `sdm.records.fit` does.
"""

from __future__ import annotations

import argparse
import warnings
from collections import defaultdict
from collections.abc import Callable

import numpy as np
import records as bench
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.tree import DecisionTreeRegressor, ExtraTreeRegressor

from sdm.engine.encode import one_thread
from sdm.records.measures import auc
from sdm.records.training import Training, grow_maxent, grow_trees, ridge_design

warnings.filterwarnings("ignore")
SIZES = {"10": (10, 10), "30": (30, 30), "all": (400, 60)}
"""Records used, and records that a species needs."""
Scorer = Callable[[np.ndarray], np.ndarray]
ENSEMBLES = {
    "now: Maxent (group), forest, ridge": {"maxent, group": 1.0, "forest": 1.0, "ridge 0.3": 1.0},
    "Maxent, forest, ridge": {"maxent": 1.0, "forest": 1.0, "ridge 0.3": 1.0},
    "Maxent alone": {"maxent": 1.0},
    "forest alone": {"forest": 1.0},
    "forest with leaves of n / 10": {"forest, leaves": 1.0},
    "extremely random trees alone": {"random trees": 1.0},
    "ridge 0.3 alone": {"ridge 0.3": 1.0},
    "ridge 3 alone": {"ridge 3": 1.0},
    "ridge on normal scores": {"ridge, normal": 1.0},
    "Mahalanobis": {"mahalanobis": 1.0},
    "boosted trees": {"boosting": 1.0},
    "random trees 2, ridge": {"random trees": 2.0, "ridge 0.3": 1.0},
    "Maxent, random trees 3, ridge": {"maxent": 1.0, "random trees": 3.0, "ridge 0.3": 1.0},
    "Maxent, forest, random trees, ridge": {"maxent": 1.0, "forest": 1.0, "random trees": 1.0, "ridge 0.3": 1.0},
}


def grown(kind: type, training: Training, leaf: int, features: str | None, trees: int = 100) -> Scorer:
    """A down-sampled ensemble of scikit-learn's trees of depth 10."""
    rng = np.random.default_rng(0)
    x, seen = training.features.environment, np.flatnonzero(training.presence)
    weight = np.where(training.presence, 0.0, training.weights())
    size, truth, grown = min(seen.size, 400), [], []
    truth = np.repeat([1.0, 0.0], size)
    for _ in range(trees):
        rows = np.concatenate([rng.choice(seen, size), rng.choice(weight.size, size, p=weight / weight.sum())])
        tree = kind(max_features=features, min_samples_leaf=leaf, max_depth=10, random_state=int(rng.integers(2**31)))
        grown.append(tree.fit(x[rows], truth))
    return lambda values: np.mean([tree.predict(values) for tree in grown], axis=0)


def normal_scores(x: np.ndarray) -> Scorer:
    """Each column as the normal score of its rank among the rows of x."""
    from scipy.stats import norm

    tables = []
    for column in x.T:
        values, first = np.unique(np.sort(column), return_index=True)
        tables.append((values, norm.ppf(np.clip((first + 0.5) / column.size, 0.002, 0.998))))
    return lambda v: np.stack([np.interp(v[:, k], *table) for k, table in enumerate(tables)], 1).astype(np.float32)


def mahalanobis(training: Training, normal: Scorer) -> Scorer:
    """Nearness to the presences less that to the background, in normal scores without correlation."""
    background, seen = (normal(training.features.environment[m]) for m in (~training.presence, training.presence))
    values, directions = np.linalg.eigh(np.cov(background.T))
    kept = values > 0.02 * values.max()
    white = directions[:, kept] / np.sqrt(values[kept])
    at, n, width = seen @ white, len(seen), int(kept.sum())
    center = at.mean(axis=0) * n / (n + 2)
    inverse = np.linalg.inv((np.cov(at.T) * (n - 1) + 8 * np.eye(width)) / (n + 7))

    def score(v: np.ndarray) -> np.ndarray:
        z = normal(v) @ white
        away = z - center
        return np.square(z).sum(axis=1) - np.einsum("ij,jk,ik->i", away, inverse, away)

    return score


def members(training: Training) -> dict[str, Scorer]:
    """Everything that is tried, fitted: by name, from covariates (N, D) to scores (N,)."""
    x, presence = training.features.environment, training.presence
    n, columns = int(presence.sum()), np.arange(x.shape[1], dtype=np.int32)
    nothing, plain = np.empty(0, np.float32), np.zeros(x.shape[1], bool)
    fitted = {
        "maxent": grow_maxent(training, columns, plain),
        "maxent, group": grow_maxent(training, columns, plain, "group" if training.group.any() else "all"),
        "forest": grow_trees(training, columns, None),
        "ridge 0.3": ridge_design(training, 0.3, nothing, None).fit()[0],
        "ridge 3": ridge_design(training, 3.0, nothing, None).fit()[0],
    }
    out: dict[str, Scorer] = {
        name: lambda v, member=member: member.score(np.empty((len(v), 0), np.float32), v)
        for name, member in fitted.items()
    }
    out["forest, leaves"] = grown(DecisionTreeRegressor, training, max(1, min(5, n // 10)), "sqrt")
    out["random trees"] = grown(ExtraTreeRegressor, training, 1, None if n < 20 else "sqrt")
    normal = normal_scores(x[~presence])
    features = training.features
    changed = type(features)(features.embedding, normal(x), features.known)
    scored = type(training)(changed, presence, training.random, training.group, training.lon, training.lat)
    ridge = ridge_design(scored, 1.0, nothing, None).fit()[0]
    out["ridge, normal"] = lambda v: ridge.score(np.empty((len(v), 0), np.float32), normal(v))
    out["mahalanobis"] = mahalanobis(training, normal)
    weight = np.where(presence, training.weights()[~presence].sum() / n, training.weights())
    boosted = HistGradientBoostingClassifier(
        max_iter=100, learning_rate=0.05, max_leaf_nodes=5, min_samples_leaf=max(5, n // 20), random_state=0
    ).fit(x, presence, sample_weight=weight * 10 * n / weight.sum())
    out["boosting"] = boosted.decision_function
    return out


def gains(bed: bench.Bench, task: bench.Task, size: int, kind: str) -> dict[tuple[str, str], float]:
    """Gain in AUC over elapid's Maxent by (ensemble, test)."""
    training = bench.training_of(task, size, kind, bench.OWN)
    base = bench.elapid_tested(bed, task, size)
    weight = training.weights()
    background = weight > 0
    with one_thread():
        fitted, found = members(training), {}
        order = {name: score(training.features.environment[background]) for name, score in fitted.items()}
        for test, pair in task.tests.items():
            ranks = {
                name: [rank(order[name], weight[background], score(p.features.environment[:, bench.OWN])) for p in pair]
                for name, score in fitted.items()
            }
            for label, weights in ENSEMBLES.items():
                mixed = [sum(w * ranks[name][side] for name, w in weights.items()) for side in (0, 1)]
                found[label, test] = auc(*mixed) - base[test]
    return found


def rank(background: np.ndarray, weight: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Share of the background that scores lower."""
    order = np.argsort(background)
    return np.interp(scores, background[order], np.cumsum(weight[order]) / weight.sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("datasets")
    parser.add_argument("--species", type=int, default=6, help="of each kind")
    parser.add_argument("--seed", type=int, default=0, help="which species")
    parser.add_argument("--cache", default=".cache-bench-records")
    parser.set_defaults(repeat=1, exclude=None)
    bed = bench.Bench(parser.parse_args())
    tasks = bench.survey_tasks(bed)
    tasks += [("iNaturalist", task) for task in bench.vertebrates(bed, ("mammal", "other"))]
    for label, (size, least) in SIZES.items():
        for kind in ("random", "mixed"):
            found = defaultdict(lambda: defaultdict(list))
            for name, task in tasks:
                if len(task.train) >= least:
                    for (ensemble, test), gain in gains(bed, task, size, kind).items():
                        found[ensemble][name if test == "plots" else f"{name}, {test}"].append(gain)
            print(f"{label} records, {kind} background: gain in AUC over elapid's Maxent")
            for ensemble, beds in found.items():
                each = "; ".join(f"{name} {np.mean(v):+.3f} (n={len(v)})" for name, v in beds.items())
                print(f"  {ensemble:38s} {each}", flush=True)


if __name__ == "__main__":
    main()
