"""Region index: time and memory to build one of a megapixel, and to ask it. See benchmarks/README.md."""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SIDES = {0.25: 512, 1.0: 1024, 4.0: 2048}
"""Pixels along one side, by megapixels. Interior of Asia, almost all land; nothing is masked."""
WEST, NORTH, RESOLUTION = 45.0, 72.0, 0.025


def build(path: str, side: int, encoding: str) -> dict:
    from sdm.index import build_index, plan_index

    extent = side * RESOLUTION
    job = plan_index(
        (WEST, NORTH - extent, WEST + extent, NORTH), resolution=RESOLUTION, mask="none", encoding=encoding
    )
    assert job.grid.shape == (side, side)
    started, cpu = time.perf_counter(), time.process_time()
    index = build_index(job, path)
    return {
        "build_s": time.perf_counter() - started,
        "build_cpu_s": time.process_time() - cpu,
        "held": index.notes["pixels_held"],
        "bytes": sum(p.stat().st_size for p in Path(path).rglob("*") if p.is_file()),
    }


def ask(path: str, species: int) -> dict:
    """From a started Python: import, open the model, first species, then further ones."""
    begun = time.perf_counter()
    from sdm.index import Index

    index = Index.open(path)
    model = index.model
    names = [taxon.name for taxon in model.taxa]
    names = names[:: max(1, len(names) // (species + 1))][: species + 1]
    model.species_embedding(model.taxa.resolve(names[0]))
    ready, cpu = time.perf_counter(), time.process_time()
    index.query(names[0], mask=index.mask)
    first, first_cpu = time.perf_counter() - ready, time.process_time() - cpu
    further, cpu = [], time.process_time()
    for name in names[1:]:
        started = time.perf_counter()
        index.query(name, mask=index.mask)
        further.append(time.perf_counter() - started)
    return {
        "ready_s": ready - begun,
        "first_s": first,
        "first_cpu_s": first_cpu,
        "further_min_s": min(further),
        "further_median_s": statistics.median(further),
        "further_cpu_s": (time.process_time() - cpu) / len(further),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megapixels", nargs="*", type=float, choices=SIDES, default=[0.25, 1.0, 4.0])
    parser.add_argument("--encodings", nargs="*", default=["int8", "float16"])
    parser.add_argument("--repeat", type=int, default=3, help="processes that ask; the fastest counts")
    parser.add_argument("--species", type=int, default=30)
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        task, path, *rest = arguments.child
        found = build(path, int(rest[0]), rest[1]) if task == "build" else ask(path, int(rest[0]))
        found["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps(found))
        return
    print(f"{os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}")
    print(
        "   MP encoding | build s (CPU)  px/s  peak MB  bytes/px | ready s | first s (CPU) | "
        "further ms: min, median (CPU)  peak MB"
    )
    for megapixels in arguments.megapixels:
        for encoding in arguments.encodings:
            with tempfile.TemporaryDirectory() as folder:
                path = str(Path(folder) / "index.zarr")
                b = child("build", path, str(SIDES[megapixels]), encoding)
                asked = [child("ask", path, str(arguments.species)) for _ in range(arguments.repeat)]
            q = {key: min(a[key] for a in asked) for key in asked[0]}
            built = f"{b['build_s']:7.1f} ({b['build_cpu_s']:5.1f}) {b['held'] / b['build_s']:6.0f}"
            size = f"{b['peak_mb']:7.0f} {b['bytes'] / b['held']:9.1f}"
            first = f"{q['ready_s']:7.2f} | {q['first_s']:5.2f} ({q['first_cpu_s']:4.2f})"
            ms = [q[f"further_{key}_s"] * 1e3 for key in ("min", "median", "cpu")]
            further = f"{ms[0]:6.0f} {ms[1]:6.0f} ({ms[2]:4.0f})"
            line = f"{megapixels:5} {encoding:8} | {built} {size} | {first} | {further} {q['peak_mb']:20.0f}"
            print(line, flush=True)


def child(*arguments: str) -> dict:
    command = [sys.executable, __file__, "--child", *arguments]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


if __name__ == "__main__":
    main()
