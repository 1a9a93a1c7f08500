"""Ask what the encoders of a model tell of the sea: how well ocean layers follow from embeddings of places.

    python recipes/validate_sea.py --ocean data-raw/ocean_layers/ocean_1deg.npz

Printed for each layer of one degree: R2, on held-out blocks of ten degrees, of a ridge regression on the embeddings of
places at sea, of each modality and of all three. To compare with, the same on land for the annual mean temperature of
the air, which the encoders are given.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import rasterio

from sdm.engine.encode import embed_positions
from sdm.files.paths import folder
from sdm.layers.landmask import LandMask
from sdm.models.bundled import BundledModel
from sdm.request import Sampling
from sdm.request.choices import MODALITIES
from sdm.training.data.splits import in_blocks

PLACES, BLOCK, SHARE, SEED = 3000, 10.0, 0.2, 7
RIDGES = 10.0 ** np.arange(-4, 3)


def r2(x: np.ndarray, y: np.ndarray, held: np.ndarray, inner: np.ndarray) -> float:
    """R2 of a ridge regression at the places that are `held`, its penalty chosen on others, `inner`."""

    def predicted(fitted: np.ndarray, asked: np.ndarray, ridge: float) -> np.ndarray:
        mean, middle = x[fitted].mean(axis=0), y[fitted].mean()
        a = x[fitted] - mean
        weights = np.linalg.solve(a.T @ a + ridge * np.eye(x.shape[1]), a.T @ (y[fitted] - middle))
        return (x[asked] - mean) @ weights + middle

    losses = [((predicted(~held & ~inner, ~held & inner, r) - y[~held & inner]) ** 2).mean() for r in RIDGES]
    error = (predicted(~held, held, RIDGES[int(np.argmin(losses))]) - y[held]) ** 2
    return 1.0 - float(error.mean() / y[held].var())


def main() -> None:
    """Parse the command line and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ocean", type=Path, required=True, help="layers of 180 x 360 cells, row 0 in the north")
    parser.add_argument("--model", default="mammals-trees")
    args = parser.parse_args()
    model, rng = BundledModel.open(args.model), np.random.default_rng(SEED)
    with np.load(args.ocean, allow_pickle=False) as file:
        layers = {name: file[name].astype(float) for name in file.files if file[name].shape == (180, 360)}
    with rasterio.open(folder("data") / "bioclim.tif") as src:
        air = src.read(1, masked=True, out_shape=(180, 360)).astype(float).filled(np.nan)
    lon = rng.uniform(-180, 180, 8 * PLACES)
    lat = np.degrees(np.arcsin(rng.uniform(np.sin(np.radians(-60)), np.sin(np.radians(75)), 8 * PLACES)))
    for side, found in (("sea", layers), ("land", {"annual mean air temperature": air})):
        some = np.flatnonzero(LandMask().keep(side, lon, lat))[:PLACES]
        at = np.minimum((90 - lat[some]).astype(int), 179), (lon[some] + 180).astype(int) % 360
        parts = {m: embed_positions(model, Sampling(modalities=(m,)), lon[some], lat[some])[0] for m in MODALITIES}
        total = sum(parts.values())
        parts["all"] = total / np.linalg.norm(total, axis=1, keepdims=True)
        places = np.stack([lon[some], lat[some]], axis=1)
        held, inner = (in_blocks(places, BLOCK, SHARE, seed) for seed in (SEED, SEED + 1))
        for name, layer in found.items():
            y = layer[at]
            known = np.isfinite(y) & np.isfinite(parts["all"]).all(axis=1)
            scores = {m: r2(x[known].astype(float), y[known], held[known], inner[known]) for m, x in parts.items()}
            text = ", ".join(f"{m} {score:.3f}" for m, score in scores.items())
            print(f"{side:4s} {name:30s} {int(known.sum()):5d} places: {text}")


if __name__ == "__main__":
    main()
