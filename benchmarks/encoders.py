"""Throughput of the published encoders, reading and preprocessing included, against the bare forward pass.

    python benchmarks/encoders.py                              # every tower, at its published size
    python benchmarks/encoders.py --device cuda --photos 4096 --batch 256
    python benchmarks/encoders.py --model FOLDER               # the published weights, where they are

Without `--model` the towers have random weights, which takes the same time. Prints a Markdown table: items a second
of the tower alone on data that lies on the device, of `PublishedEncoders.encode` on arrays in memory, and, for photos,
from JPEG files on disk; each also as a share of the tower alone. `--json FILE` keeps the figures.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from sdm.models.encoders.clip_text import TextTower
from sdm.models.encoders.geoclip import GeoCLIPLocation
from sdm.models.encoders.residual import ResidualNet
from sdm.models.encoders.vit import VisionTower
from sdm.models.taxabind import Checkpoints, PublishedEncoders
from sdm.models.taxabind.encoders import tokenizer
from sdm.models.taxabind.photo import read_photos

LINEAGE = "Animalia Chordata Aves Accipitriformes Accipitridae Haliaeetus"


class RandomTowers:
    """In the place of `Checkpoints`: towers of the published sizes, not trained."""

    modalities = ("image", "text", "satellite", "location", "environment")

    def __init__(self) -> None:
        torch.manual_seed(0)
        self._made = {}

    def load(self, modality: str, device: str) -> torch.nn.Module:
        """A tower in evaluation mode."""
        if modality not in self._made:
            tower = {
                "image": VisionTower,
                "text": TextTower,
                "satellite": lambda: VisionTower(quick_gelu=True),
                "location": lambda: GeoCLIPLocation(sigmas=(1.0, 16.0, 256.0)),
                "environment": ResidualNet,
            }[modality]()
            self._made[modality] = tower.eval().requires_grad_(False).to(device)
        return self._made[modality]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--model", help="folder with the published files")
    parser.add_argument("--modalities", default="image,satellite,text,location,environment,audio")
    parser.add_argument("--batch", type=int, help="items at once; 256 on a GPU, 16 on a CPU")
    parser.add_argument("--seconds", type=float, default=5.0, help="that each measurement takes, at least")
    parser.add_argument("--photos", type=int, help="JPEG files that are made and read; 2048 on a GPU, 64 on a CPU")
    parser.add_argument("--photo-size", type=int, nargs=2, default=(500, 375), help="pixels, as on iNaturalist")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="threads that read photos")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    gpu = args.device.startswith("cuda")
    args.batch = args.batch or (256 if gpu else 16)
    args.photos = args.photos or (2048 if gpu else 64)
    checkpoints = Checkpoints.open(args.model) if args.model else RandomTowers()
    encoders = PublishedEncoders(checkpoints, args.device)
    rows = []
    print(
        f"{device_name(args.device)}, batch {args.batch}, {args.workers} reading threads, torch {torch.__version__}\n"
    )
    print("| modality | tower alone, items/s | from memory | share | from files | share |")
    print("|---|---:|---:|---:|---:|---:|")
    for modality in [m for m in args.modalities.split(",") if m in checkpoints.modalities]:
        row = measure(encoders, modality, args)
        rows.append(row)
        cells = [f"{row['tower']:.4g}", f"{row['memory']:.4g}", f"{row['memory'] / row['tower']:.0%}", "", ""]
        if "files" in row:
            cells[3:] = f"{row['files']:.4g}", f"{row['files'] / row['tower']:.0%}"
        print("| " + " | ".join([modality, *cells]) + " |", flush=True)
    for row in rows:
        if "reading" in row:
            print(f"\nReading and preprocessing alone: {row['reading']:,.0f} photos/s.")
    if args.json:
        args.json.write_text(
            json.dumps({"device": device_name(args.device), "batch": args.batch, "rows": rows}, indent=1)
        )


def measure(encoders: PublishedEncoders, modality: str, args: argparse.Namespace) -> dict:
    """Items a second in the three ways."""
    values = make_values(modality, args.batch)
    tower = encoders.checkpoints.load(modality, args.device)
    resident = resident_input(encoders, modality, tower, values)

    def bare() -> None:
        with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16, enabled=args.device.startswith("cuda")):
            tower(*resident)

    def bare_sound() -> None:
        with torch.inference_mode():
            tower(resident[0], is_longer=resident[1])

    sound = modality == "audio"  # a clip at a time, in float32
    runs = {
        "tower": (bare_sound, 1) if sound else (bare, len(values)),
        "memory": (lambda: encoders.encode(modality, values), len(values)),
    }
    row = {"modality": modality} | rates(runs, args)
    if modality == "image":
        row |= files_rates(encoders, args)
    return row


def make_values(modality: str, batch: int):
    """Input of one batch, as `encode` takes it."""
    rng = np.random.default_rng(0)
    if modality in ("image", "satellite"):
        size = 224 if modality == "image" else 256
        return rng.integers(0, 256, (batch, size, size, 3), dtype=np.uint8)
    if modality == "location":
        return np.stack([rng.uniform(-180, 180, batch * 64), rng.uniform(-60, 80, batch * 64)], 1)
    if modality == "environment":
        return rng.standard_normal((batch * 64, 20)).astype(np.float32)
    if modality == "audio":
        return [rng.standard_normal(480_000).astype(np.float32) * 0.1 for _ in range(4)]
    return [f"{LINEAGE} species{k}" for k in range(batch)]


def resident_input(encoders: PublishedEncoders, modality: str, tower: torch.nn.Module, values) -> tuple:
    """The same, preprocessed and on the device."""
    device = encoders.device
    if modality == "audio":
        from sdm.models.encoders.clap import ClapFeatures

        return tuple(t.to(device) for t in ClapFeatures()(values[0]))
    if modality == "text":
        tokens = tokenizer()(values)
        return (torch.from_numpy(tokens[:, : int(tokens.any(axis=0).nonzero()[0].max()) + 1]).to(device),)
    if modality in ("image", "satellite"):
        return (torch.randn(len(values), 3, 224, 224, device=device).contiguous(memory_format=torch.channels_last),)
    return (torch.from_numpy(np.asarray(values, np.float32)).to(device),)


def rates(runs: dict[str, tuple], args: argparse.Namespace) -> dict[str, float]:
    """Items a second of each, run in turn, so that other work on the machine slows all of them alike."""
    seconds = dict.fromkeys(runs, 0.0)
    count = dict.fromkeys(runs, 0)
    for run, _ in runs.values():  # warm
        run()
    synchronise(args.device)
    while min(seconds.values()) < args.seconds:
        for name, (run, items) in runs.items():
            start = time.perf_counter()
            for _ in range(8 if args.device.startswith("cuda") else 1):
                run()
                count[name] += items
            synchronise(args.device)
            seconds[name] += time.perf_counter() - start
    return {name: count[name] / seconds[name] for name in runs}


def files_rates(encoders: PublishedEncoders, args: argparse.Namespace) -> dict[str, float]:
    """Photos a second from JPEG files: to unit vectors, and only read and preprocessed."""
    rates = {}
    with tempfile.TemporaryDirectory() as folder:
        paths = write_photos(Path(folder), args.photos, tuple(args.photo_size))
        for _ in encoders.encode_photos(paths[: args.batch], args.batch, args.workers):
            pass  # warm
        for name, batches in (
            ("files", encoders.encode_photos(paths, args.batch, args.workers)),
            ("reading", read_photos(paths, batch=args.batch, workers=args.workers)),
        ):
            synchronise(args.device)
            start = time.perf_counter()
            done = sum(len(batch) for batch in batches)
            synchronise(args.device)
            rates[name] = done / (time.perf_counter() - start)
            assert done == len(paths)
    return rates


def write_photos(folder: Path, count: int, size: tuple[int, int]) -> list[Path]:
    """JPEG files with detail at all scales, which is what makes decoding cost what photos cost."""
    rng = np.random.default_rng(0)
    image = np.zeros((size[1], size[0], 3))
    for cells in (4, 16, 64, 256):
        noise = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        image += np.asarray(noise.resize(size, Image.Resampling.BICUBIC), float) / 4
    Image.fromarray(image.astype(np.uint8)).save(folder / "0.jpg", quality=90)
    content = (folder / "0.jpg").read_bytes()
    for k in range(1, count):
        (folder / f"{k}.jpg").write_bytes(content)
    return [folder / f"{k}.jpg" for k in range(count)]


def synchronise(device: str) -> None:
    """Wait for a GPU."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def device_name(device: str) -> str:
    """For the table."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} threads"


if __name__ == "__main__":
    main()
