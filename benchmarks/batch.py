"""Speed and memory of a batch over a region index, against the bare matrix product.

    python benchmarks/batch.py                          # 1,000 species, 1 megapixel; the index is built first
    python benchmarks/batch.py --index west.zarr        # an index there is

Prints a Markdown table. Each measurement is a process of its own; `bare` and `batch` take turns, and of each
the fastest counts. What the lines mean: docs/batch.md.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MEGAPIXELS = {0.25: (80, 35, 92.5, 47.5), 1.0: (60, 30, 110, 50)}
"""Boxes in the interior of Asia: west, south, east, north in degrees; the resolution follows from the pixels."""
STRIP = 8192
"""Places in one bare product."""


def main() -> None:
    args = parse_arguments()
    if args.child:
        print("RESULT " + json.dumps(CHILDREN[args.child](args)), flush=True)
        return
    with tempfile.TemporaryDirectory(prefix="sdm-benchmark-", dir=args.scratch) as scratch:
        index = args.index or build(args, 1.0, scratch)
        runs = {"bare": [], "batch": []}
        for _ in range(args.repeat):
            runs["batch"].append(child("batch", args, index, scratch))
            runs["bare"].append(child("bare", args, index, scratch, bytes=runs["batch"][-1]["bytes"]))
        best = {
            kind: {
                key: min(r[key] for r in found) for key, value in found[0].items() if isinstance(value, (int, float))
            }
            for kind, found in runs.items()
        }
        few = child("batch", args, index, scratch, species=max(1, args.species // 10))
        small = None if args.index else child("batch", args, build(args, 0.25, scratch), scratch)
    report(args, best, few, small)


def report(args: argparse.Namespace, best: dict, few: dict, small: dict | None) -> None:
    """Print the table."""
    bare, batch = best["bare"], best["batch"]
    wall, cpu = bare["product_s"] + bare["writing_s"], bare["product_cpu_s"] + bare["writing_cpu_s"]
    print(f"{args.species:,} species, {batch['pixels']:,} pixels, {batch['present']:,} species present somewhere\n")
    print("| | wall s | CPU s | wall, of bare | CPU, of bare |\n|---|---:|---:|---:|---:|")
    print(f"| float32 matrix product, all processors | {bare['product_s']:.2f} | {bare['product_cpu_s']:.2f} | | |")
    size = f"{batch['bytes'] / 1e6:,.0f} MB"
    print(f"| writing the same {size} | {bare['writing_s']:.2f} | {bare['writing_cpu_s']:.2f} | | |")
    print(f"| **bare**: both | {wall:.2f} | {cpu:.2f} | 1 | 1 |")
    for name, key in (("its tiles", "tiles"), ("**batch**, planned to published", "batch"), ("whole process", "whole")):
        w, c = batch[f"{key}_s"], batch[f"{key}_cpu_s"]
        print(f"| {name} | {w:.2f} | {c:.2f} | {w / wall:.2f} | {c / cpu:.2f} |")
    print(
        f"\npeak memory: {batch['peak_mb']:,.0f} MB; with {few['species']:,} species {few['peak_mb']:,.0f} MB", end=""
    )
    print(f"; over a quarter of the pixels {small['peak_mb']:,.0f} MB" if small else "")
    print(f"files: {batch['files']:,.0f}; load of the machine at the end {os.getloadavg()[0]:.1f}")


def build(args: argparse.Namespace, megapixels: float, scratch: str) -> str:
    """A region index of so many megapixels."""
    out = str(Path(scratch) / f"{megapixels:g}.zarr")
    west, south, east, north = MEGAPIXELS[megapixels]
    step = ((east - west) * (north - south) / (megapixels * 1e6)) ** 0.5
    command = [
        sys.executable,
        "-c",
        "import sdm.cli; sdm.cli.main_sdm()",
        "index",
        "build",
        "--out",
        out,
        "--mask",
        args.mask,
    ]
    command += ["--quiet", "--resolution", f"{step:.4f}", "--bbox", *map(str, (west, south, east, north))]
    subprocess.run(command, check=True, cwd=ROOT)
    return out


def child(kind: str, args: argparse.Namespace, index: str, scratch: str, species: int = 0, bytes: int = 0) -> dict:
    """One measurement in a fresh process."""
    command = [sys.executable, __file__, "--child", kind, "--index", index, "--scratch", scratch]
    command += ["--species", str(species or args.species), "--bytes", str(bytes)]
    command += ["--present"] if args.present else []
    started = time.time()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    wall = time.time() - started
    found = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("RESULT "))[7:])
    return found | {"whole_s": wall}


def batch_of(args: argparse.Namespace):
    """The planned batch: species of the model at random, or those that fit the region best."""
    sys.path.insert(0, str(ROOT))
    import numpy as np

    import sdm
    from sdm.index import Index
    from sdm.maps.batch import plan_batch

    names = [taxon.name for taxon in sdm.list_models()[0].taxa]
    random.Random(0).shuffle(names)
    if args.present:
        everything = plan_batch(names, index=args.index, mask="none")
        index = Index.open(args.index)
        tile = next(iter(index.grid.tiles()))
        places = index.embeddings(tile.rows, tile.cols)[0][::50]
        order = np.argsort(-(places @ everything.job.plan.species.T).max(axis=0))
        names = [everything.job.resolutions[k].taxon.name for k in order]
    return plan_batch(names[: args.species], index=args.index)


def child_batch(args: argparse.Namespace) -> dict:
    """A batch, from its plan to its published files."""
    started = time.process_time()
    batch = batch_of(args)
    from sdm.maps.batch import write_batch

    marks: dict[str, tuple[float, float]] = {}

    def tell(stage: str, done: int, total: int) -> None:
        marks.setdefault(stage, (time.perf_counter(), time.process_time()))

    out = Path(args.scratch) / "out"
    wall, cpu = time.perf_counter(), time.process_time()
    result = write_batch(batch, out, progress=tell)
    end = time.perf_counter(), time.process_time()
    files = [f for f in out.rglob("*") if f.is_file()]
    size = sum(f.stat().st_size for f in files)
    shutil.rmtree(out)
    return {
        "species": args.species,
        "pixels": batch.job.grid.pixels,
        "bytes": size,
        "files": len(files),
        "present": sum(1 for row in result.summary if row["max"] not in ("", 0.0)),
        "tiles_s": marks["pictures"][0] - marks["tiles"][0],
        "tiles_cpu_s": marks["pictures"][1] - marks["tiles"][1],
        "batch_s": end[0] - wall,
        "batch_cpu_s": end[1] - cpu,
        "whole_cpu_s": time.process_time() - started,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def child_bare(args: argparse.Namespace) -> dict:
    """Only the product of all embeddings with all species, and a file of as many bytes, both made in memory."""
    batch = batch_of(args)
    import numpy as np
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    source = batch.job.plan.source
    places = torch.from_numpy(np.concatenate([source.embeddings(tile)[0] for tile in batch.job.grid.tiles()]))
    species = torch.from_numpy(batch.job.plan.species)
    out = torch.empty((STRIP, len(species)))
    products, writings = [], []
    for _ in range(3):
        wall, cpu = time.perf_counter(), time.process_time()
        for start in range(0, len(places), STRIP):
            part = places[start : start + STRIP]
            torch.mm(part, species.T, out=out[: len(part)])
        products.append((time.perf_counter() - wall, time.process_time() - cpu))
    content = np.random.default_rng(0).bytes(args.bytes)
    path = Path(args.scratch) / "bytes"
    for _ in range(3):
        wall, cpu = time.perf_counter(), time.process_time()
        with path.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        writings.append((time.perf_counter() - wall, time.process_time() - cpu))
        path.unlink()
    return {
        "product_s": min(p[0] for p in products),
        "product_cpu_s": min(p[1] for p in products),
        "writing_s": min(w[0] for w in writings),
        "writing_cpu_s": min(w[1] for w in writings),
    }


CHILDREN = {"batch": child_batch, "bare": child_bare}


def parse_arguments() -> argparse.Namespace:
    """Options of the command and of the processes it starts."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--index", default=None, help="a region index; by default one of a megapixel is built")
    parser.add_argument("--species", type=int, default=1000)
    parser.add_argument("--present", action="store_true", help="the species that fit the region best: the hardest case")
    parser.add_argument("--mask", default="land", help="of the index that is built")
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--scratch", default=None)
    parser.add_argument("--child", default=None, help=argparse.SUPPRESS)
    parser.add_argument("--bytes", type=int, default=0, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
