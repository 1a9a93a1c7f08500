"""What each modality is worth near the edges of ranges, on the blocks that a development run held out.

    python recipes/range_edges.py runs/mammals-trees --out docs/range-edges.png

`runs/mammals-trees` is the run folder of `sdm train`. For each set of modalities, the mean over species
of the AUC among held-out cells of land within two cells (193 km) of the edge of the species' range, and
of the AUC and AP over all held-out cells. Inside a range and far from it any model is right; near its
edge is where a map is decided.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from sdm.layers.landmask import LandMask
from sdm.model import Model, all_subsets, calibration_key
from sdm.points import combine_scores, embed_places
from sdm.training.edges import REACH, edge_auc, near_edges
from sdm.training.evaluate import auc, average_precision
from sdm.training.ranges import RangeRaster
from sdm.training.recipe import Recipe
from sdm.training.splits import held_out_places

AT_ONCE = 500
"""Species: the whole raster of that many, as bytes, is about 25 MB."""


def near_held_out(raster: RangeRaster, land: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """(cells, S) bool: which of `cells` (numbers on the raster) lie near the edge of each range, on `land`."""
    everywhere = np.arange(raster.shape[0] * raster.shape[1])
    present = np.packbits(raster.labels(everywhere).T, axis=1)  # by species, so that a few can be unpacked
    parts = []
    for start in range(0, len(raster.species), AT_ONCE):
        some = np.unpackbits(present[start : start + AT_ONCE], axis=1)[:, : everywhere.size].T.astype(bool)
        parts.append(near_edges(some, land, raster.shape)[cells])
    return np.concatenate(parts, axis=1)


def main() -> None:
    """Read, score, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path, help="run folder of sdm train, with a developed model")
    parser.add_argument("--out", type=Path, help="plot, PNG")
    args = parser.parse_args()
    recipe = Recipe.read(args.run / "recipe.toml")
    model = Model.open(args.run / "develop" / "model")
    source = next(s for s in recipe.data.source if s.kind == "ranges")
    raster = RangeRaster.phylacine(source.path, {t.name for t in model.taxa})
    cells = np.arange(raster.shape[0] * raster.shape[1])
    lon, lat = raster.positions(cells, np.full(cells.size, 0.5), np.full(cells.size, 0.5))
    on_globe = np.isfinite(lon)
    land = np.zeros(cells.size, bool)
    land[on_globe] = LandMask().keep("land", lon[on_globe], lat[on_globe])
    e = recipe.evaluation
    held = np.zeros(cells.size, bool)
    centre = np.stack([lon[on_globe], lat[on_globe]], axis=1)
    held[on_globe] = held_out_places(e.split, centre, fraction=e.held_out, seed=e.seed, block_degrees=e.block_degrees)
    cells = np.flatnonzero(held)
    near = near_held_out(raster, land, cells)
    present = raster.labels(cells).astype(bool)
    chosen = np.flatnonzero((present.sum(0) >= e.min_cells) & ~present.all(0))
    near, present = near[:, chosen], present[:, chosen]
    vectors = np.stack([model.species_embedding(model.resolve(raster.species[j])) for j in chosen])
    places = embed_places(model, lon[cells], lat[cells])
    rows = []
    for subset in all_subsets():
        p = combine_scores(model, places, vectors, subset)
        edge, counted = edge_auc(p, present, near)
        everywhere = np.mean([auc(p[:, j], present[:, j]) for j in range(chosen.size)])
        precision = np.mean([average_precision(p[:, j], present[:, j]) for j in range(chosen.size)])
        rows.append((calibration_key(subset), edge, everywhere, precision))
    print(f"{counted} species with an edge in {cells.size} held-out cells; near: within {REACH} cells")
    print("| modalities | AUC near range edges | AUC, all cells | AP, all cells |\n|---|---|---|---|")
    for key, *values in rows:
        print(f"| {key.replace('+', ' + ')} | " + " | ".join(f"{v:.4f}" for v in values) + " |")
    if args.out:
        draw(rows, args.out)


def draw(rows: list[tuple[str, float, float, float]], out: Path) -> None:
    """Bars of the AUC near edges, best on top."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = sorted(rows, key=lambda r: r[1])
    figure, axes = plt.subplots(figsize=(7, 2.8), layout="constrained")
    bars = axes.barh([r[0].replace("+", " + ") for r in rows], [r[1] for r in rows], color="#2c7fb8")
    axes.bar_label(bars, fmt="%.3f", padding=3)
    axes.set_xlim(0.5, max(r[1] for r in rows) + 0.05)
    axes.set_xlabel("mean AUC within 193 km of range edges, held-out blocks")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(out, dpi=110)


if __name__ == "__main__":
    main()
