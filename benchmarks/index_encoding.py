"""Region index: bytes per pixel and error of the probability, for each encoding. See benchmarks/README.md."""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

from sdm.engine.targets import probability
from sdm.engine.tile import embed_tile
from sdm.index import build_index, plan_index
from sdm.index.encoding import DTYPES, cosines
from sdm.names import Resolution

REGIONS = {
    # Name: bbox, resolution. Mountains, a coast, a plain, and detail much finer than the layers.
    "Alps": ((5.0, 42.0, 17.8, 54.8), 0.05),
    "Andes": ((-78.0, -20.0, -65.2, -7.2), 0.05),
    "Borneo": ((108.0, -4.5, 120.8, 8.3), 0.05),
    "Kazakhstan": ((60.0, 42.0, 72.8, 54.8), 0.05),
    "Cascades, 1 km": ((-123.0, 45.5, -120.44, 48.06), 0.01),
}
BORDER = (0.05, 0.95)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--regions", nargs="*", choices=REGIONS, default=list(REGIONS))
    parser.add_argument("--every", type=int, default=5, help="compare every n-th pixel")
    arguments = parser.parse_args()
    print(
        f"{'region':16} {'encoding':8} {'bytes/px':>8} {'of them':>20} {'mean':>8} {'99.9 %':>8} {'max':>8}   "
        f"{'mean':>8} {'99.9 %':>8}   {'build s':>7}"
    )
    print(f"{'':16} {'':8} {'':8} {'codes, scale':>20} {'all pairs':^26}   where p is {BORDER[0]} to {BORDER[1]}")
    for name in arguments.regions:
        bbox, resolution = REGIONS[name]
        for encoding in DTYPES:
            with tempfile.TemporaryDirectory() as folder:
                report(name, bbox, resolution, encoding, Path(folder) / "index.zarr", arguments.every)


def report(name: str, bbox, resolution: float, encoding: str, path: Path, every: int) -> None:
    job = plan_index(bbox, resolution=resolution, encoding=encoding)
    started = time.perf_counter()
    index = build_index(job, path)
    took = time.perf_counter() - started
    model, tile = index.model, next(index.grid.tiles())
    exact, pixels = embed_tile(job.places, tile, job.mask)
    codes, scales, held = index.encoded(tile.rows, tile.cols)
    assert np.array_equal(pixels, held)
    species = np.stack([model.species_embedding(Resolution(t.name, t, True, "")) for t in model.taxa])
    score = probability(model, index.modalities)
    exact, codes, scales = exact[::every], codes[::every], scales[::every]
    true = score.values(cosines(exact, np.ones(len(exact), dtype=np.float32), species))
    error = np.abs(score.values(cosines(codes, scales, species)) - true)
    border = error[(true > BORDER[0]) & (true < BORDER[1])]
    size = {part: folder_size(path / part) / index.notes["pixels_held"] for part in ("embedding", "scale")}
    whole = folder_size(path) / index.notes["pixels_held"]
    print(
        f"{name:16} {encoding:8} {whole:8.1f} {size['embedding']:12.1f}, {size['scale']:6.1f} {error.mean():8.1e} "
        f"{np.quantile(error, 0.999):8.5f} {error.max():8.4f}   {border.mean():8.5f} "
        f"{np.quantile(border, 0.999):8.4f}   {took:7.1f}",
        flush=True,
    )


def folder_size(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


if __name__ == "__main__":
    main()
