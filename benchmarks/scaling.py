"""Strong scaling: the same map on 1, 2, ... worker processes of this machine.

    python benchmarks/scaling.py                        # 4 megapixels, 1 and 2 workers, medians of 3
    python benchmarks/scaling.py --workers 1 2 4 8 --repeat 5

Prints a Markdown table; `--json FILE` keeps every single time. What each column means: benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

BOXES = {
    0.25: (60.0, 35.0, 85.0, 60.0),
    1.0: (40.0, 35.0, 120.0, 66.25),
    4.0: (0.0, 12.0, 160.0, 74.5),
    16.0: (-180.0, -40.0, 180.0, 71.1),
}
"""Megapixels at 0.05 degree -> west, south, east, north: the interior of Asia, almost all land; then land and sea."""


def main() -> None:
    """Time every number of workers in turn, round after round, so that a busy spell hits all alike."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megapixels", type=float, default=4.0, choices=BOXES)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--species", default="Ursus arctos")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()

    from sdm.maps.plan import plan

    job = plan(args.species, BOXES[args.megapixels], resolution=0.05, mask="none", device="cpu", max_pixels=20_000_000)
    print(f"{job.grid.pixels / 1e6:.2f} megapixels, {job.grid.tile_count} tiles; {len(os.sched_getaffinity(0))} cores")
    runs: list[dict] = []
    for round_ in range(args.repeat):
        for workers in args.workers:
            run = {"round": round_, "workers": workers, "load_before": round(os.getloadavg()[0], 2)}
            run |= tiles(job, workers) | whole(job, workers)
            runs.append(run)
            print(json.dumps(run), flush=True)
    if len({run["bytes"] for run in runs}) != 1:
        raise SystemExit("the maps differ: the number of workers must not change a byte")
    if args.json:
        args.json.write_text(json.dumps(runs, indent=1))
    table(runs, args.workers)


def tiles(job, workers: int) -> dict:
    """Seconds of the tiles alone, on workers that have loaded everything, and the CPU seconds these took."""
    from sdm.engine.cluster import local_cluster
    from sdm.maps.report import describe
    from sdm.maps.write import run_tiles
    from sdm.outputs import zarr_store

    with tempfile.TemporaryDirectory() as folder, local_cluster(workers) as client:
        store, side = Path(folder) / "map.zarr", job.grid.tile_size
        metadata = dataclasses.replace(describe(job, 0), bands=job.plan.targets[0].bands)
        zarr_store.create(store, job.grid.geobox, (side, side), metadata)
        client.run(warm_up, job.plan)
        before, start = sum(client.run(time.process_time).values()), time.perf_counter()
        run_tiles(job.plan, [store], [metadata.variable], client=client)
        seconds = time.perf_counter() - start
        cpu = sum(client.run(time.process_time).values()) - before
        digest = hashlib.sha256()
        for path in sorted(p for p in store.rglob("*") if p.is_file()):
            digest.update(path.name.encode() + path.read_bytes())
    return {"tiles_s": round(seconds, 2), "tiles_cpu_s": round(cpu, 2), "bytes": digest.hexdigest()[:16]}


def warm_up(plan) -> None:
    """Run on a worker: import the libraries, load the model, open the layers."""
    from sdm.engine.tile import score_tile

    score_tile(plan, next(iter(plan.grid.tiles())))


def whole(job, workers: int) -> dict:
    """Seconds of `write_maps`: workers started and ended, imports, tiles, COG, Zarr, web map."""
    from sdm.maps.write import write_maps

    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        (result,) = write_maps(job, folder, workers=workers)
        seconds = time.perf_counter() - start
    return {"whole_s": round(seconds, 2), "writing_s": result.report["timings"]["written_s"]}


def table(runs: list[dict], counts: list[int]) -> None:
    """Medians, and the speed-up over the smallest number of workers."""
    first = min(counts)

    def median(workers: int, column: str) -> float:
        return statistics.median(run[column] for run in runs if run["workers"] == workers)

    print("\n| Workers | Tiles s | Speed-up | Tiles CPU s | Whole job s | Speed-up | of it writing s |")
    print("|---:|---:|---:|---:|---:|---:|---:|")
    for n in counts:
        t, cpu, w, out = (median(n, c) for c in ("tiles_s", "tiles_cpu_s", "whole_s", "writing_s"))
        gain = median(first, "tiles_s") / t, median(first, "whole_s") / w
        print(f"| {n} | {t:.1f} | {gain[0]:.2f} x | {cpu:.1f} | {w:.1f} | {gain[1]:.2f} x | {out:.1f} |")


if __name__ == "__main__":
    main()
