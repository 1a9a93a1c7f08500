"""What encoding less than every pixel costs in probability.

    python benchmarks/interpolation_error.py                                  # the model's own pitches
    python benchmarks/interpolation_error.py --pitches 0.25,0.25,0.05 0.5,0.25,0.1

Each region is mapped twice for many species: once with every modality encoded at every pixel
(`step=1`), once at the pitches (location, satellite, environment, in degrees). Only species whose
probability reaches 0.5 somewhere in the region count: elsewhere both maps are near 0 and agree.
Prints a Markdown table of |difference in probability|; see benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

REGIONS = {
    "Alps": ((5.0, 44.0, 13.0, 48.0), 0.05),
    "Himalaya": ((80.0, 26.0, 90.0, 32.0), 0.05),
    "Andes": ((-73.0, -16.0, -66.0, -9.0), 0.05),
    "Rift Valley": ((28.0, -6.0, 36.0, 2.0), 0.05),
    "Rocky Mountains": ((-113.0, 41.0, -104.0, 47.0), 0.05),
    "Borneo": ((109.0, -2.0, 118.0, 5.0), 0.05),
    "Siberia": ((90.0, 55.0, 102.0, 61.0), 0.05),
    "Alps, fine": ((9.0, 45.5, 13.0, 47.5), 0.02),
    "Cascades, fine": ((-123.0, 46.0, -119.0, 48.0), 0.02),
    "Patagonia": ((-74.0, -50.0, -66.0, -44.0), 0.05),
    "New Zealand": ((166.0, -47.0, 174.0, -41.0), 0.05),
    "Caucasus": ((40.0, 41.0, 48.0, 44.5), 0.05),
    "Congo": ((15.0, -4.0, 25.0, 4.0), 0.05),
    "Kazakhstan": ((60.0, 44.0, 72.0, 52.0), 0.1),
    "Ethiopia, fine": ((37.0, 7.0, 40.0, 9.0), 0.01),
}
"""Mountains and coasts, where the environment changes fastest, and a few plains. Box, resolution."""

SPECIES = 60


def main() -> None:
    """Map every region at every set of pitches and print the table."""
    from sdm.models.bundled import BundledModel
    from sdm.request.choices import MODALITIES

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="mammals-trees")
    parser.add_argument("--pitches", nargs="+", default=None, metavar="L,S,E", help="degrees; default: the model's")
    parser.add_argument("--regions", nargs="+", default=list(REGIONS), choices=list(REGIONS), metavar="NAME")
    args = parser.parse_args()
    model = BundledModel.open(args.model)
    own = ",".join(f"{model.pitch(m):g}" for m in MODALITIES)
    print(
        "| Region | Pixel | Species | Pitches | Strides | Mean | 99 % | 99.9 % | Max | Worst species, 99.9 % | Time |"
    )
    print("|---|---:|---:|---|---|---:|---:|---:|---:|---:|---:|")
    for region in args.regions:
        report(model, region, args.pitches or [own])


def report(model, region: str, pitches: list[str]) -> None:
    """Print the rows of one region."""
    bbox, resolution = REGIONS[region]
    plan = plan_region(model, bbox, resolution)
    every_pixel = dataclasses.replace(plan, sampling=dataclasses.replace(plan.sampling, step=1))
    exact = whole(every_pixel)
    started = time.process_time()
    whole(dataclasses.replace(every_pixel, targets=plan.targets[:1]))
    exact_s = time.process_time() - started
    present = np.nanmax(exact, axis=(1, 2)) > 0.5
    for text in pitches:
        coarse = with_pitches(plan, [float(p) for p in text.split(",")])
        started = time.process_time()
        error = np.abs(single_maps(coarse, present) - exact[present])
        seconds = (time.process_time() - started) / len(error)
        per_species = np.nanquantile(error, 0.999, axis=(1, 2))
        cells = [
            region,
            f"{resolution:g}",
            int(present.sum()),
            text,
            "/".join(map(str, coarse.strides.values())),
            f"{np.nanmean(error):.5f}",
            *(f"{np.nanquantile(error, q):.4f}" for q in (0.99, 0.999)),
            f"{np.nanmax(error):.4f}",
            f"{per_species.max():.4f}",
            f"{seconds / exact_s:.2f}",
        ]
        print("| " + " | ".join(str(c) for c in cells) + " |", flush=True)


def plan_region(model, bbox: tuple[float, float, float, float], resolution: float):
    """A plan for the species of the model that score highest in a box, one tile, no mask."""
    from sdm.grid import make_grid

    grid = make_grid(bbox, None, resolution=resolution, tile_size=4096)
    vectors = np.stack(list(species_vectors(model).values())).astype(np.float32)
    sample = make_grid(bbox, None, resolution=max((bbox[2] - bbox[0]) / 12, resolution), tile_size=4096)
    everyone = plan_of(model, sample, vectors, step=1)
    reach = np.nanmax(whole(everyone), axis=(1, 2))
    # Half of them surely present, half near the edge of their range: that is where errors show.
    order = np.argsort(-reach)
    edge = np.argsort(np.abs(reach - 0.6))
    chosen = list(dict.fromkeys([*edge[: SPECIES // 2], *order[: SPECIES // 2]]))
    return plan_of(model, grid, vectors[chosen])


def plan_of(model, grid, vectors, step: int | None = None):
    from sdm.engine.places import Plan, Target
    from sdm.engine.suitability import Probability
    from sdm.request import Sampling

    modalities = model_modalities()
    score = Probability(*model.calibration(modalities))
    targets = tuple(Target(v, score) for v in vectors)
    return Plan(model=model, grid=grid, sampling=Sampling(modalities=modalities, step=step), targets=targets)


def species_vectors(model) -> dict[str, np.ndarray]:
    """Unit vectors of all the species that the model was trained on."""
    import torch

    from sdm.models.score import normalise

    vectors = {}
    with torch.inference_mode():
        tower = model.load("cpu").text
        for taxon in model.taxa:
            vectors[taxon.name] = normalise(tower.embed(taxon.lineage)).numpy()
    return vectors


def model_modalities() -> tuple[str, ...]:
    """All of them."""
    from sdm.request.choices import MODALITIES

    return MODALITIES


def with_pitches(plan, pitches: list[float]):
    """The plan with other pitches for location, satellite and environment (degrees)."""
    from sdm.request.choices import MODALITIES

    config = copy.deepcopy(plan.model.config)
    for modality, pitch in zip(MODALITIES, pitches, strict=True):
        config[modality]["pitch"] = pitch
    return dataclasses.replace(plan, model=dataclasses.replace(plan.model, config=config))


def single_maps(plan, chosen: np.ndarray) -> np.ndarray:
    """The maps of the chosen targets (S,) of a plan, each made by itself: (chosen, rows, columns)."""
    targets = (plan.targets[k] for k in np.flatnonzero(chosen))
    return np.concatenate([whole(dataclasses.replace(plan, targets=(target,))) for target in targets])


def whole(plan) -> np.ndarray:
    """The map of a plan of one tile: (S, rows, columns)."""
    from sdm.engine.tile import score_tile

    return score_tile(plan, next(iter(plan.grid.tiles())))


if __name__ == "__main__":
    main()
