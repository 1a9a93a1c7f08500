"""Speed and memory of a whole map, against the bare encoders and against elapid's Maxent.

    python benchmarks/whole_job.py                              # 0.25, 1 and 4 megapixels
    python benchmarks/whole_job.py --elapid-python ENV/bin/python

Prints a Markdown table; `--json FILE` keeps the figures. What each column means: benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

BOXES = {
    0.0625: (70.0, 45.0, 82.5, 57.5),
    0.25: (60.0, 35.0, 85.0, 60.0),
    1.0: (40.0, 35.0, 120.0, 66.25),
    4.0: (0.0, 12.0, 160.0, 74.5),
}
"""Megapixels at 0.05 degree -> west, south, east, north: the interior of Asia, so almost all land."""

RESOLUTION = 0.05
SPECIES = "Ursus arctos"
MEASURED_PLACES = 100_000
"""The bare pass is timed on this many places and scaled: at every pixel it would take minutes."""


def main() -> None:
    """Run what was asked for and print the table."""
    args = parse_arguments()
    if args.child:
        print("RESULT " + json.dumps(CHILDREN[args.child](args)), flush=True)
        return
    threads = args.threads or len(os.sched_getaffinity(0))
    rows = []
    with tempfile.TemporaryDirectory(prefix="sdm-benchmark-") as scratch:
        run_child("job", args, min(BOXES), scratch)  # unmeasured: files and byte code come from memory after it
        for size in args.megapixels:
            row = {"megapixels": size}
            jobs = [run_child("job", args, size, scratch) for _ in range(args.repeat)]
            row["job"] = min(jobs, key=lambda r: r["wall_s"])
            if not args.no_bare:
                row["bare"] = run_child("bare", args, size, scratch)
            if args.elapid_python:
                run_child("layers", args, size, scratch)
                row["elapid"] = run_child("elapid", args, size, scratch, python=args.elapid_python)
            rows.append(row)
            print(f"{size:g} megapixels done", file=sys.stderr, flush=True)
    if not args.elapid_python:
        message = "elapid is left out: give --elapid-python, a Python that has it (pip install elapid)."
        print(message, file=sys.stderr)
    report = {
        "threads": threads,
        "resolution": args.resolution,
        "mask": args.mask,
        "load": os.getloadavg(),
        "rows": rows,
    }
    print(table(report))
    if args.json:
        Path(args.json).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def parse_arguments() -> argparse.Namespace:
    """Options of the command and of the processes it starts."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--megapixels", type=float, nargs="+", default=[0.25, 1.0, 4.0], choices=sorted(BOXES))
    parser.add_argument("--resolution", type=float, default=RESOLUTION, help="degrees; the box keeps its pixels")
    parser.add_argument("--mask", default="none", help="none: every pixel is encoded and the sea is not skipped")
    parser.add_argument("--model", default=None)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--repeat", type=int, default=1, help="jobs per size; the fastest counts")
    parser.add_argument("--no-bare", action="store_true")
    parser.add_argument("--elapid-python", default=None, metavar="PATH")
    parser.add_argument("--json", default=None, metavar="FILE")
    parser.add_argument("--child", default=None, help=argparse.SUPPRESS)
    parser.add_argument("--scratch", default=None, help=argparse.SUPPRESS)
    return parser.parse_args()


def run_child(kind: str, args: argparse.Namespace, size: float, scratch: str, python: str = sys.executable) -> dict:
    """One measurement in a fresh process: its own figures, and wall, CPU and peak memory of the process."""
    command = [python, __file__, "--child", kind, "--megapixels", str(size), "--scratch", scratch]
    command += ["--resolution", str(args.resolution), "--mask", args.mask]
    command += ["--model", args.model] if args.model else []
    command += ["--threads", str(args.threads)] if args.threads else []
    started = time.time()
    environment = {**os.environ, "SDM_BENCHMARK_STARTED": str(started)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.time() - started
    if status != 0:
        sys.exit(f"{' '.join(command)} failed:\n{output}")
    result = json.loads(next(line for line in output.splitlines() if line.startswith("RESULT "))[7:])
    return {
        "wall_s": round(wall, 2),
        "cpu_s": round(usage.ru_utime + usage.ru_stime, 2),
        "peak_mb": round(usage.ru_maxrss / 1024),
        **result,
    }


def box(args: argparse.Namespace) -> tuple[float, float, float, float]:
    """The box of a size; at another resolution a smaller or larger one around the same centre."""
    west, south, east, north = BOXES[args.megapixels[0]]
    factor = args.resolution / RESOLUTION / 2
    x, y, w, h = (west + east) / 2, (south + north) / 2, (east - west) * factor, (north - south) * factor
    return (x - w, y - h, x + w, y + h)


def open_job(args: argparse.Namespace):
    """The planned job of a size."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from sdm.maps.plan import plan

    return plan(SPECIES, box(args), resolution=args.resolution, mask=args.mask, model=args.model, max_pixels=10**8)


def child_job(args: argparse.Namespace) -> dict:
    """The whole map: plan, tiles, COG with overviews, Zarr, HTML, JSON."""
    job = open_job(args)
    from sdm.maps.write import write_maps

    first: list[float] = []

    def progress(stage: str, done: int, total: int) -> None:
        if stage == "tiles" and done == 1 and not first:
            first.append(time.time() - float(os.environ["SDM_BENCHMARK_STARTED"]))

    encoded = count_places(job.plan)
    out = Path(args.scratch) / "maps"
    started = time.time()
    result = write_maps(job, out, threads=args.threads, progress=progress)[0]
    size = sum(f.stat().st_size for f in out.rglob("*") if f.is_file())
    shutil.rmtree(out)
    return {
        "pixels": job.grid.pixels,
        "first_tile_s": round(first[0], 2),
        "write_maps_s": round(time.time() - started, 2),
        "timings": result.report["timings"],
        "bytes": size,
        "strides": job.plan.strides,
        "encoded": encoded,
    }


def count_places(plan) -> dict[str, int]:
    """A dictionary that fills, while the job runs, with the places encoded per modality, padding included."""
    encoders, counts = plan.model.load("cpu"), dict.fromkeys(plan.modalities, 0)
    encode, lock = encoders.encode, threading.Lock()

    def counting(modality: str, values):
        with lock:
            counts[modality] += len(values)
        return encode(modality, values)

    encoders.encode = counting
    return counts


def child_bare(args: argparse.Namespace) -> dict:
    """Only the encoders, on all processors, at the best batch size, inputs already in memory."""
    job = open_job(args)
    import numpy as np
    import torch

    plan, count = job.plan, min(job.grid.pixels, MEASURED_PLACES)
    cols = job.grid.shape[1]
    lon, lat = (a.ravel()[:count] for a in job.grid.lonlat(np.arange(-(-count // cols)), np.arange(cols)))
    encoders, layers = plan.model.load("cpu"), plan.inputs.read
    seconds, cpu, batches = {}, {}, {}
    torch.set_num_threads(args.threads or len(os.sched_getaffinity(0)))
    for modality in plan.modalities:
        inputs = layers[modality](lon, lat)[0]
        best = min((timed(encoders, modality, inputs[:16384], b)[0], b) for b in (256, 512, 1024, 2048, 4096, 8192))
        batches[modality] = best[1]
        wall, used = timed(encoders, modality, inputs, best[1])
        seconds[modality], cpu[modality] = wall / count, used / count
    return {
        "batch": batches,
        "every_pixel_s": round(sum(seconds.values()) * job.grid.pixels, 2),
        "cpu_s_per_place": cpu,
    }


def timed(encoders, modality: str, inputs, batch: int) -> tuple[float, float]:
    """Wall and CPU seconds to encode all inputs; the result is dropped."""
    encoders.encode(modality, inputs[:batch])
    wall, cpu = time.perf_counter(), time.process_time()
    for start in range(0, len(inputs), batch):
        encoders.encode(modality, inputs[start : start + batch])
    return time.perf_counter() - wall, time.process_time() - cpu


def child_layers(args: argparse.Namespace) -> dict:
    """The 17 bioclimatic layers on the job's grid, and where to fit: what elapid reads."""
    job = open_job(args)
    import numpy as np
    import rasterio
    from rasterio.warp import Resampling, reproject

    from sdm.files.paths import folder

    rows, cols = job.grid.shape
    scratch = Path(args.scratch)
    profile = {
        "driver": "GTiff",
        "width": cols,
        "height": rows,
        "count": 1,
        "dtype": "float32",
        "crs": job.grid.crs,
        "transform": job.grid.geobox.affine,
        "nodata": -9999.0,
        "tiled": True,
        "blockxsize": 256,
        "blockysize": 256,
    }
    with rasterio.open(folder("data") / "bioclim.tif") as source:
        for band in range(1, source.count + 1):
            values = np.empty((rows, cols), dtype=np.float32)
            reproject(
                rasterio.band(source, band),
                values,
                dst_transform=profile["transform"],
                dst_crs=job.grid.crs,
                resampling=Resampling.bilinear,
                dst_nodata=-9999.0,
            )
            with rasterio.open(scratch / f"bio{band:02d}.tif", "w", **profile) as target:
                target.write(values, 1)
    # Somewhere to fit: presences in the north-west of the box, background everywhere.
    rng = np.random.default_rng(0)
    west, south, east, north = box(args)
    background = rng.uniform((west, south), (east, north), (10000, 2))
    presence = rng.uniform((west, (south + north) / 2), ((west + east) / 2, north), (1000, 2))
    np.savez(scratch / "points.npz", presence=presence, background=background)
    return {}


def child_elapid(args: argparse.Namespace) -> dict:
    """elapid: Maxent with its defaults, fitted (not counted) and applied to the 17 layers."""
    import resource
    import warnings

    warnings.simplefilter("ignore")
    import elapid
    import numpy as np
    import rasterio

    scratch = Path(args.scratch)
    paths = sorted(str(p) for p in scratch.glob("bio*.tif"))
    points = np.load(scratch / "points.npz")
    columns = {"presence": [], "background": []}
    for path in paths:
        with rasterio.open(path) as source:
            for name, values in columns.items():
                values.append([v[0] for v in source.sample(points[name])])
    x = np.concatenate([np.array(v).T for v in columns.values()])
    y = np.repeat([1, 0], [len(points["presence"]), len(points["background"])])
    model = elapid.MaxentModel()
    started = time.time()
    model.fit(x, y)
    fit = time.time() - started
    before = time.time(), sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    elapid.apply_model_to_rasters(model, paths, str(scratch / "maxent.tif"), quiet=True)
    after = time.time(), sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    return {
        "apply_s": round(after[0] - before[0], 2),
        "apply_cpu_s": round(after[1] - before[1], 2),
        "fit_s": round(fit, 2),
        "version": elapid.__version__,
    }


CHILDREN = {"job": child_job, "bare": child_bare, "layers": child_layers, "elapid": child_elapid}


def table(report: dict) -> str:
    """The figures as Markdown."""
    head = (
        "Megapixels",
        "Job s",
        "CPU s",
        "Pixels/s",
        "Peak MB",
        "First tile s",
        "(a) encoders s",
        "Job / (a)",
        "(a') encoders CPU s",
        "Job CPU / (a')",
        "(b) elapid s",
        "CPU s",
        "Peak MB",
        "Job / (b)",
        "Started job s",
        "Started job / (b)",
    )
    lines = ["| " + " | ".join(head) + " |", "|" + "---:|" * len(head)]
    for row in report["rows"]:
        job, bare, rival = row["job"], row.get("bare"), row.get("elapid")
        cells = [f"{row['megapixels']:g}", job["wall_s"], job["cpu_s"], f"{job['pixels'] / job['wall_s']:,.0f}"]
        cells += [job["peak_mb"], job["first_tile_s"]]
        if bare:
            needed = sum(n * bare["cpu_s_per_place"][m] for m, n in job["encoded"].items())
            cells += [bare["every_pixel_s"], f"{job['wall_s'] / bare['every_pixel_s']:.2f}"]
            cells += [f"{needed:.2f}", f"{job['cpu_s'] / needed:.2f}"]
        else:
            cells += ["-"] * 4
        if rival:
            cells += [rival["apply_s"], rival["apply_cpu_s"], rival["peak_mb"]]
            cells += [f"{job['wall_s'] / rival['apply_s']:.2f}", job["write_maps_s"]]
            cells += [f"{job['write_maps_s'] / rival['apply_s']:.2f}"]
        else:
            cells += ["-"] * 6
        lines.append("| " + " | ".join(str(c) for c in cells) + " |")
    lines.append("")
    load = report["load"][0]
    lines.append(
        f"{report['threads']} processors, {report['resolution']:g} degree, mask {report['mask']}; "
        f"load of the machine at the end: {load:.1f}."
    )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
