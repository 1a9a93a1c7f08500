"""Score a model on true presences and absences: a table of surveyed places with a 0/1 column per species.

    python recipes/validate_surveys.py TABLE.csv --x X_WGS84 --y Y_WGS84 --model mammals-trees

Columns named like a species ("Gulo gulo", "Gulo_gulo" or "GuloGulo") are scored; others are not. For
each set of modalities, the mean over species of: AUC; TSS, the best sum of sensitivity and specificity
less one; log-loss and Brier score of the probabilities, which calibration decides. Places that the model
does not cover (outside its layers) are left out, the same for all sets.
"""

from __future__ import annotations

import argparse
import csv
import re
from pathlib import Path

import numpy as np

from sdm.engine.points import combine_scores, embed_places
from sdm.errors import SpeciesNameError
from sdm.models.bundled import BundledModel
from sdm.models.config import all_subsets, calibration_key
from sdm.training.measures.scores import auc


def tss(p: np.ndarray, present: np.ndarray) -> float:
    """The largest sensitivity + specificity - 1 over all thresholds; matching (N,) arrays."""
    order = np.argsort(-p, kind="stable")
    last = np.append(np.flatnonzero(np.diff(p[order])), p.size - 1)  # a threshold never parts equal values
    hits, alarms = np.cumsum(present[order])[last], np.cumsum(~present[order])[last]
    return float((hits / present.sum() - alarms / (~present).sum()).max())


def measures(p: np.ndarray, present: np.ndarray) -> list[float]:
    """[AUC, TSS, log-loss, Brier score] of probabilities (N,) against presence (N,) bool."""
    bounded = np.clip(p, 1e-7, 1 - 1e-7)
    loss = -np.where(present, np.log(bounded), np.log(1 - bounded)).mean()
    return [auc(p, present), tss(p, present), float(loss), float(((p - present) ** 2).mean())]


def main() -> None:
    """Read, score, print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("table", type=Path)
    parser.add_argument("--x", default="longitude", help="column of longitudes, degrees")
    parser.add_argument("--y", default="latitude", help="column of latitudes, degrees")
    parser.add_argument("--model", default="mammals-trees")
    args = parser.parse_args()
    model = BundledModel.open(args.model)
    with args.table.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    lon, lat = (np.array([float(r[c]) for r in rows]) for c in (args.x, args.y))
    species = {}
    for column in rows[0]:
        name = re.sub(r"(?<=[a-z])(?=[A-Z])|_", " ", column).capitalize()
        try:
            resolution = model.resolve(name)
        except SpeciesNameError:
            continue
        values = {r[column] for r in rows}
        if resolution.known and resolution.taxon.rank == "species" and values == {"0", "1"}:
            species[column] = resolution
    if not species:
        raise SystemExit(f"no column of {str(args.table)!r} is a species of {model.name} with values 0 and 1.")
    vectors = np.stack([model.species_embedding(r) for r in species.values()])
    present = np.array([[r[c] == "1" for c in species] for r in rows])
    embedded = embed_places(model, lon, lat)
    covered = np.isfinite(combine_scores(model, embedded, vectors, model.modalities)).all(axis=1)
    print(f"{len(species)} species, {covered.sum()} of {lon.size} places, {present[covered].sum()} presences")
    print("| modalities | AUC | TSS | log-loss | Brier score |\n|---|---|---|---|---|")
    for subset in all_subsets():
        p = combine_scores(model, embedded, vectors, subset)[covered]
        found = [measures(p[:, j], present[covered, j]) for j in range(len(species))]
        print(f"| {calibration_key(subset)} | " + " | ".join(f"{v:.4f}" for v in np.mean(found, axis=0)) + " |")
        if subset == model.modalities:
            each = zip(species.values(), found, strict=True)
            listed = ", ".join(f"{r.taxon.name} {m[0]:.3f}" for r, m in sorted(each, key=lambda e: e[1][0]))
    print("AUC of all modalities:", listed)


if __name__ == "__main__":
    main()
