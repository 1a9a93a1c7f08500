"""Places encoded per second in random and in sorted order, and processor seconds until the first tile of a map.

    python benchmarks/places.py                     # 10,000 and 100,000 places, the start, a map of the world

Prints Markdown. Every figure comes from a fresh process.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SPECIES = "Ursus arctos"
MAPS = {"2 x 2 degrees": ((8.0, 46.0, 10.0, 48.0), 0.05), "the world at 2 degrees": ((-180.0, -60.0, 180.0, 84.0), 2.0)}


def main() -> None:
    """Measure what was asked for and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--places", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--repeat", type=int, default=3, help="processes per figure; the fastest counts")
    parser.add_argument("--child", nargs=2, default=None, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
        print("RESULT " + json.dumps(CHILDREN[args.child[0]](args.child[1])))
        return
    print("| Places | order | CPU s | places per CPU s |\n|---:|---|---:|---:|")
    for count in args.places:
        for order in ("random", "sorted"):
            seconds = best(args, "places", f"{count} {order}")["cpu_s"]
            print(f"| {count:,} | {order} | {seconds:.2f} | {count / seconds:,.0f} |", flush=True)
    print("\n| Map | CPU s to the first tile | CPU s in all | wall s | peak MB |\n|---|---:|---:|---:|---:|")
    for name in MAPS:
        row = best(args, "map", name)
        cells = (row["first_tile_cpu_s"], row["process_cpu_s"], row["process_wall_s"])
        print(f"| {name} | " + " | ".join(f"{c:.2f}" for c in cells) + f" | {row['peak_mb']} |", flush=True)


def best(args: argparse.Namespace, kind: str, what: str) -> dict:
    """The figures of the fastest of some fresh processes, with those of the whole process."""
    rows = []
    for _ in range(args.repeat):
        started = time.time()
        command = [sys.executable, __file__, "--child", kind, what]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        output = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            sys.exit(f"{' '.join(command)} failed")
        row = json.loads(next(line for line in output.splitlines() if line.startswith("RESULT "))[7:])
        row |= {"process_cpu_s": usage.ru_utime + usage.ru_stime, "process_wall_s": time.time() - started}
        rows.append(row | {"peak_mb": round(usage.ru_maxrss / 1024)})
    return min(rows, key=lambda row: row.get("cpu_s", row["process_cpu_s"]))


def places(what: str) -> dict:
    """Places on land, all modalities of the bundled model, layers read and encoders run; imports are not counted."""
    count, order = what.split()
    import numpy as np

    from sdm.engine.encode import embed_positions
    from sdm.layers.landmask import land_sample
    from sdm.models.registry import open_model
    from sdm.request import Sampling

    lon, lat = land_sample(int(count))
    if order == "sorted":
        rows = np.lexsort([lon, np.floor(lat)])
        lon, lat = lon[rows], lat[rows]
    model = open_model("mammals-trees")
    embed_positions(model, Sampling(), lon[:1], lat[:1])  # weights and layers are open
    started = time.process_time()
    embed_positions(model, Sampling(), lon, lat)
    return {"cpu_s": time.process_time() - started}


def whole_map(name: str) -> dict:
    """A map with all its files."""
    box, resolution = MAPS[name]
    from sdm.maps.plan import plan
    from sdm.maps.write import write_maps

    first: list[float] = []

    def progress(stage: str, done: int, total: int) -> None:
        if stage == "tiles" and done == 1:
            first.append(time.process_time())

    with tempfile.TemporaryDirectory() as out:
        write_maps(plan(SPECIES, box, resolution=resolution), out, progress=progress)
    return {"first_tile_cpu_s": first[0]}


CHILDREN = {"places": places, "map": whole_map}

if __name__ == "__main__":
    main()
