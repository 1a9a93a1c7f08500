"""From a recipe to a model folder: develop on held-out blocks, train on everything, calibrate, export."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from sdm import __version__
from sdm.layers.environment import Environment
from sdm.layers.satellite import Satellite
from sdm.model import FORMAT, MODALITIES, all_subsets, calibration_key
from sdm.score import combine, cosine, probability
from sdm.training.evaluate import calibration_error, fit_calibration, held_out, score_ranges, sigmoid
from sdm.training.loop import Trainee, architecture_config, embed_places, embed_species, train
from sdm.training.prepare import Prepared, prepare
from sdm.training.recipe import Recipe

CALIBRATION_PLACES = 6000
"""Places for the calibration fit: with thousands of species each, tens of millions of pairs."""


def run(recipe: Recipe, out: Path, run_folder: Path, stages: tuple[str, ...], device: str = "cpu") -> dict:
    """Run the stages of a recipe: "develop" (train without the held-out blocks, score them) and "ship".

    `out` is the model folder, which holds `taxa.csv` already; `run_folder` receives the log, the
    metrics and the development weights. Returns the metrics.
    """
    run_folder.mkdir(parents=True, exist_ok=True)
    log = _logger(run_folder / "log.txt")
    data = prepare(recipe, out, log)
    cells = np.flatnonzero(data.places.count > 0)
    metrics_file = run_folder / "metrics.json"
    metrics: dict = json.loads(metrics_file.read_text()) if metrics_file.exists() else {}
    if "develop" in stages:
        metrics["held_out_blocks"] = develop(recipe, data, cells, run_folder, device, log)
        metrics_file.write_text(json.dumps(metrics, indent=1))
    if "ship" in stages:
        model = train(recipe, data, cells, device, log)
        calibration, fit = calibrate(model, data, cells, recipe.optimiser.seed, log)
        metrics["ship_calibration"] = fit
        metrics_file.write_text(json.dumps(metrics, indent=1))
        export(recipe, data, model, calibration, out)
        log(f"wrote {out}")
    return metrics


def develop(recipe: Recipe, data: Prepared, cells: np.ndarray, run_folder: Path, device: str, log) -> dict:
    """Train without the held-out blocks and score every subset of modalities at the held-out cell centres.

    A cell is scored at its centre against its own presence. The calibration of each subset is
    fitted on training places only.
    """
    e = recipe.evaluation
    half = np.full(cells.size, 0.5)
    centre = np.stack(data.raster.positions(cells, half, half), axis=1)
    test = held_out(centre, e.block_degrees, e.held_out, e.seed)
    model = train(recipe, data, cells[~test], device, log)
    calibration, _ = calibrate(model, data, cells[~test], recipe.optimiser.seed, log)
    torch.save(model.state_dict(), run_folder / "develop.pt")
    places = at_positions(data, cells[test], centre[test], recipe.architecture.satellite["pixel"])
    embeddings = embed_places(model, places, np.arange(int(test.sum())))
    species = embed_species(model, data)
    mammals = len(data.raster.species)
    present = data.raster.labels(cells[test])
    result = {}
    for subset in all_subsets():
        key = calibration_key(subset)
        place = combine([embeddings[m] for m in subset])
        p = probability(cosine(place, species[:mammals]), *calibration[key]).cpu().numpy()
        result[key] = score_ranges(p, present, e.min_cells)
        r = result[key]
        log(f"held out {key}: AP {r['ap']:.4f} AUC {r['auc']:.4f} ECE {r['ece']:.5f} "
            f"(above lowest bin {r['ece_above']:.4f}), {r['species']} species, {r['places']} cells")  # fmt: skip
    return result


def at_positions(data: Prepared, cells: np.ndarray, lonlat: np.ndarray, pixel: float) -> Prepared:
    """The same training set with other places: one per cell, at (N, 2) (lon, lat); `pixel`: degrees of imagery."""
    lon, lat = lonlat.T
    places = replace(data.places, lonlat=lonlat, cell=cells)
    return replace(
        data,
        places=places,
        environment=Environment(data.inputs).sample(lon, lat),
        crops=Satellite(data.crops.shape[1], pixel).crops(lon, lat),
        polygon_rows=np.full(lon.size, -1),
    )


def calibrate(model: Trainee, data: Prepared, cells: np.ndarray, seed: int, log) -> tuple[dict, dict]:
    """Scale and bias of every subset of modalities, fitted on random land and sea places of `cells`.

    Returns ({subset: (scale, bias)}, {subset: calibration error}), on different places for fit and check.
    """
    rng = np.random.default_rng(seed + 1)
    p = data.places
    cells = cells[p.count[cells] > 0]
    index = p.start[cells] + (rng.random(cells.size) * p.count[cells]).astype(np.int64)
    index = np.sort(rng.choice(index, min(CALIBRATION_PLACES, index.size), replace=False))
    embeddings = embed_places(model, data, index)
    species = embed_species(model, data)[: len(data.raster.species)]
    present = data.raster.labels(p.cell[index])
    fit, check = np.arange(0, index.size, 2), np.arange(1, index.size, 2)
    start = (float(model.log_scale.exp()), float(model.bias))
    calibration, errors = {}, {}
    for subset in all_subsets():
        key = calibration_key(subset)
        cos = cosine(combine([embeddings[m] for m in subset]), species).cpu().numpy()
        scale, bias = fit_calibration(cos[fit], present[fit], start)
        calibration[key] = (scale, bias)
        q = sigmoid(cos[check] * scale + bias)
        ece, above, _ = calibration_error(q, present[check])
        errors[key] = {"scale": scale, "bias": bias, "ece": ece, "ece_above": above}
        log(f"calibrated {key}: scale {scale:.2f} bias {bias:.2f} ECE {ece:.5f} (above lowest bin {above:.4f})")
    return calibration, errors


def export(recipe: Recipe, data: Prepared, model: Trainee, calibration: dict, out: Path) -> None:
    """Write `config.json`, `model.safetensors` and `vocabulary.txt` into the model folder."""
    from safetensors.torch import save_file

    state = {k: v.detach().cpu().contiguous() for k, v in model.encoders.state_dict().items()}
    # Half precision everywhere but in the Fourier frequencies, whose error grows with the angle.
    state = {k: v if "frequencies" in k else v.half() for k, v in state.items()}
    save_file(state, out / "model.safetensors")
    (out / "vocabulary.txt").write_text("\n".join(data.vocabulary) + "\n", encoding="utf-8")
    config = {
        "format": FORMAT,
        "name": recipe.name,
        "title": recipe.title,
        "version": recipe.version,
        "licence": recipe.licence,
        "made_with": f"taxabind-map {__version__}",
        "domain": [round(float(np.nanmin(data.places.lonlat[:, 1])), 1), 90.0],
        "groups": {"tree": {"extent": data.polygon_extent}} if data.polygon_extent else {},
        "calibration": {k: {"scale": s, "bias": b} for k, (s, b) in calibration.items()},
        "modalities": list(MODALITIES),
        **architecture_config(recipe, data),
    }
    (out / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


def _logger(path: Path) -> Callable[[str], None]:
    def log(line: str) -> None:
        stamped = f"{time.strftime('%H:%M:%S')} {line}"
        print(stamped, flush=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(stamped + "\n")

    return log
