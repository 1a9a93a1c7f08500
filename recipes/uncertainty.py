"""Measure what tells where a map of a named species is wrong, and fit the band `uncertainty` (`sdm.engine.doubt`).

    sdm train recipes/mammals-trees.toml --stage develop
    python recipes/uncertainty.py --model runs/mammals-trees/develop/model --phylacine data-raw/phylacine \\
        --write models/mammals-trees

On the land cells of the blocks that the develop run holds out, pairs of cell and species with a probability between
0.02 and 0.98 are *wrong* where presence is on the other side of one half. Printed for each candidate: AURC, the area
under the risk-coverage curve, of the chance to be wrong that a logistic regression on the logit and the candidate
gives (fitted on one half of the blocks, used on the other; |logit| alone is the baseline); and, what the probability
cannot tell by itself, the AUC of the candidate for being wrong within bins of the logit, averaged.
`--write` writes uncertainty.json for every set of two modalities or more.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.spatial import cKDTree
from scipy.stats import rankdata

from sdm.engine.doubt import FILE, Doubt
from sdm.engine.points import embed_places
from sdm.layers.landmask import LandMask
from sdm.models.bundled import BundledModel
from sdm.models.config import all_subsets, calibration_key
from sdm.names import Resolution
from sdm.training.data.ranges import RangeRaster
from sdm.training.data.splits import in_blocks
from sdm.training.measures.scores import auc, fit_calibration, sigmoid

PAIRS = 150_000
BINS = (-4.0, -3.0, -2.0, -1.0, -0.3, 0.3, 1.0, 2.0, 3.0, 4.0)
NEIGHBOURS, NEIGHBOUR_KM, EARTH_KM = 9, 200.0, 6371.0
TRAINING = 2500


@dataclass(frozen=True)
class HeldOut:
    """Held-out land cells: embeddings by modality (N, dim), presence (N, S), species (S, dim), places, halves."""

    embeddings: dict[str, np.ndarray]
    present: np.ndarray
    species: np.ndarray
    lonlat: np.ndarray
    half: np.ndarray
    training: dict[str, np.ndarray]
    training_lonlat: np.ndarray

    def logits(self, vectors: np.ndarray) -> np.ndarray:
        """Logits (N, S) of unit vectors of the cells, each half calibrated on the other."""
        cosines = vectors @ self.species.T
        out = np.empty_like(cosines)
        for half in (False, True):
            scale, bias = fit_calibration(cosines[self.half != half], self.present[self.half != half], (20.0, -6.0))
            out[self.half == half] = cosines[self.half == half] * scale + bias
        return out

    def pairs(self, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows and columns of a sample of the pairs between 0.02 and 0.98."""
        rows, cols = np.nonzero(np.abs(logits) < BINS[-1])
        chosen = np.sort(np.random.default_rng(1).permutation(rows.size)[:PAIRS])
        return rows[chosen], cols[chosen]


def read(model: BundledModel, folder: Path, block_degrees: float, share: float, seed: int) -> HeldOut:
    """The cells that a develop run with these settings held out."""
    taxa = {t.name: t for t in model.taxa}
    raster = RangeRaster.phylacine(folder, set(taxa))
    cells = np.flatnonzero(raster.presence.any(axis=1))
    middle = np.full(cells.size, 0.5)
    lon, lat = raster.positions(cells, middle, middle)
    kept = np.isfinite(lon) & (lat > model.domain[0])
    cells, lon, lat = cells[kept], lon[kept], lat[kept]
    places = np.stack([lon, lat], axis=1)
    held, land = in_blocks(places, block_degrees, share, seed), LandMask().keep("land", lon, lat)
    here = held & land
    other = np.random.default_rng(0).permutation(np.flatnonzero(~held & land))[:TRAINING]
    vectors = [model.species_embedding(Resolution(n, taxa[n], True, "")) for n in raster.species]
    return HeldOut(
        embed_places(model, lon[here], lat[here]),
        raster.labels(cells[here]).astype(bool),
        np.stack(vectors).astype(np.float32),
        places[here],
        in_blocks(places[here], block_degrees, 0.5, seed + 1),
        embed_places(model, lon[other], lat[other]),
        places[other],
    )


def unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors (N, dim) of length 1."""
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def sphere(lonlat: np.ndarray) -> np.ndarray:
    """Points (N, 3) on the unit sphere of degrees (N, 2)."""
    lon, lat = np.radians(lonlat).T
    return np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], axis=1)


def agreement(embeddings: dict[str, np.ndarray], modalities: tuple[str, ...]) -> np.ndarray:
    """Length of the mean of unit embeddings (N,)."""
    return np.linalg.norm(sum(embeddings[m] for m in modalities), axis=1) / len(modalities)


def candidates(data: HeldOut, logits: np.ndarray, rows: np.ndarray, cols: np.ndarray) -> dict[str, np.ndarray]:
    """{name: (P,)}, higher where an error is more likely."""
    e, t = data.embeddings, data.training
    rest = unit(e["location"] + e["satellite"])
    alone = np.stack([data.logits(e[m])[rows, cols] for m in e])
    total, trained = unit(sum(e.values())), unit(sum(t.values()))
    near = cKDTree(sphere(data.lonlat)).query(sphere(data.lonlat), NEIGHBOURS, distance_upper_bound=NEIGHBOUR_KM / 6371)
    steps = np.zeros(rows.size)
    for k in range(1, NEIGHBOURS):
        other = near[1][rows, k]
        there = other < len(data.lonlat)
        steps += np.where(there, np.abs(logits[np.where(there, other, 0), cols] - logits[rows, cols]), 0.0)
    number = np.maximum((near[1][:, 1:] < len(data.lonlat)).sum(axis=1), 1)
    return {
        "agreement: length of the sum of the modalities": -agreement(e, tuple(e))[rows],
        "cosine of environment with location + satellite": -(e["environment"] * rest).sum(axis=1)[rows],
        "standard deviation of the logits of the three modalities": alone.std(axis=0),
        "difference of the logits of location and environment": np.abs(alone[0] - alone[2]),
        "distance to 5 training places, environment embedding": novelty(e["environment"], t["environment"])[rows],
        "distance to 5 training places, summed embedding": novelty(total, trained)[rows],
        "km to the nearest training place": cKDTree(sphere(data.training_lonlat)).query(sphere(data.lonlat))[0][rows],
        "difference of the logit from neighbouring cells": steps / number[rows],
    }


def novelty(vectors: np.ndarray, training: np.ndarray) -> np.ndarray:
    """Mean cosine distance (N,) to the 5 nearest training places."""
    return 1.0 - np.partition(vectors @ training.T, -5, axis=1)[:, -5:].mean(axis=1)


def fit(logit: np.ndarray, value: np.ndarray, present: np.ndarray) -> np.ndarray:
    """Coefficients of presence on 1, logit, value and value x logit, by Newton's method."""
    x = design(logit, value)
    at = np.array([0.0, 1.0, 0.0, 0.0])
    for _ in range(20):
        q = sigmoid(x @ at)
        hessian = (x * (q * (1 - q))[:, None]).T @ x + 1e-9 * np.eye(4)
        at = at - np.linalg.solve(hessian, x.T @ (q - present))
    return at


def design(logit: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Columns 1, logit, value, value x logit."""
    return np.stack([np.ones_like(logit), logit, value, value * logit], axis=1).astype(np.float64)


def refined(logit: np.ndarray, value: np.ndarray, present: np.ndarray, half: np.ndarray) -> np.ndarray:
    """Logits by a fit on the other half."""
    out = np.empty(logit.size)
    for part in (False, True):
        out[half == part] = design(logit, value)[half == part] @ fit(
            logit[half != part], value[half != part], present[half != part]
        )
    return out


def risk(doubt: np.ndarray, wrong: np.ndarray) -> np.ndarray:
    """Share of wrong pairs (P,) among the 1, 2 ... P pairs of least doubt."""
    return np.cumsum(wrong[np.argsort(doubt, kind="stable")]) / np.arange(1, wrong.size + 1)


def within_bins(value: np.ndarray, wrong: np.ndarray, logit: np.ndarray) -> float:
    """AUC of a value for being wrong, mean over bins of the logit."""
    bins = np.digitize(logit, BINS)
    return float(np.mean([auc(value[bins == b], wrong[bins == b]) for b in range(1, len(BINS))]))


def chance_of_error(logit: np.ndarray, better: np.ndarray) -> np.ndarray:
    """Of the other side of one half than `logit`, where presence has the logit `better`."""
    return sigmoid(np.where(logit > 0, -better, better))


def report(data: HeldOut) -> None:
    """Print the tables of the candidates, of coverage and of the band's own reliability."""
    logits = data.logits(unit(sum(data.embeddings.values())))
    rows, cols = data.pairs(logits)
    logit, present, half = logits[rows, cols], data.present[rows, cols], data.half[rows]
    wrong = (logit > 0) != present
    base = risk(-np.abs(logit), wrong)
    best = risk(wrong.astype(float), wrong).mean()
    print(f"{rows.size:,} pairs, {len(data.lonlat):,} cells; wrong {wrong.mean():.4f}; perfect order {best:.4f}")
    print("| predictor | AURC | change | AUC at the same probability |\n|---|---|---|---|")
    print(f"| probability alone, abs(logit) | {base.mean():.4f} | | 0.500 |")
    curves = {"probability alone": base}
    for name, raw in candidates(data, logits, rows, cols).items():
        value = rankdata(raw) / raw.size
        better = refined(logit, value, present, half)
        curve = risk(chance_of_error(logit, better), wrong)
        curves.setdefault("with agreement", curve)
        change = curve.mean() - base.mean()
        print(f"| {name} | {curve.mean():.4f} | {change:+.4f} | {within_bins(raw, wrong, logit):.3f} |")
    at = [int(c * rows.size) - 1 for c in (0.25, 0.5, 0.75, 1.0)]
    for name, curve in curves.items():
        print(f"wrong among the surest 25, 50, 75, 100 %, {name}: " + ", ".join(f"{curve[k]:.4f}" for k in at))
    value = agreement(data.embeddings, tuple(data.embeddings))[rows]
    band = np.minimum(2 * chance_of_error(logit, refined(logit, value, present, half)), 1.0)
    print("| uncertainty | pairs | wrong / 2 x share |\n|---|---|---|")
    for low in np.arange(0.0, 1.0, 0.2):
        inside = (band >= low) & (band < low + 0.2 + (low > 0.7))
        print(f"| {low:.1f} .. {low + 0.2:.1f} | {inside.sum():,} | {2 * wrong[inside].mean():.3f} |")


def coefficients(data: HeldOut) -> dict[str, dict[str, float]]:
    """{set of modalities: fields of `Doubt`}, fitted on all held-out cells."""
    out = {}
    for subset in (s for s in all_subsets() if len(s) > 1):
        logits = data.logits(unit(sum(data.embeddings[m] for m in subset)))
        rows, cols = data.pairs(logits)
        value = agreement(data.embeddings, subset)[rows]
        found = fit(logits[rows, cols], value, data.present[rows, cols])
        bounds = np.quantile(value, (0.01, 0.99))
        out[calibration_key(subset)] = Doubt(*(round(float(v), 4) for v in (*found, *bounds))).to_dict()
    return out


def main() -> None:
    """Read, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True, type=Path, help="model folder of the develop run")
    parser.add_argument("--phylacine", required=True, type=Path)
    parser.add_argument("--block-degrees", type=float, default=10.0)
    parser.add_argument("--held-out", type=float, default=0.2)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--write", type=Path, help="model folder that uncertainty.json is written to")
    args = parser.parse_args()
    data = read(BundledModel.open(args.model), args.phylacine, args.block_degrees, args.held_out, args.seed)
    report(data)
    if args.write:
        (args.write / FILE).write_text(json.dumps(coefficients(data), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
