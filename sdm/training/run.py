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
from sdm.errors import RequestError
from sdm.layers.environment import Environment
from sdm.layers.satellite import Satellite
from sdm.model import FORMAT, MODALITIES, all_subsets, calibration_key
from sdm.score import combine, cosine
from sdm.training.evaluate import calibration_error, fit_calibration, held_out, score_ranges, sigmoid
from sdm.training.loop import Trainee, architecture_config, embed_places, embed_species, train
from sdm.training.prepare import Prepared, prepare
from sdm.training.recipe import Recipe

CALIBRATION_PLACES = 3000
"""Places for the calibration fit: with thousands of species each, tens of millions of pairs."""


def run(recipe: Recipe, out: Path, run_folder: Path, stages: tuple[str, ...], device: str = "cpu") -> dict:
    """Run the stages of a recipe: "develop" (train without the held-out blocks, score them) and "ship".

    `out` is the model folder, which holds `taxa.csv` already; `run_folder` receives the log, the
    metrics and the development weights. Shipping takes the calibration that developing found, so it needs a
    run folder that has been developed in: RequestError otherwise. Returns the metrics.
    """
    metrics_file = run_folder / "metrics.json"
    metrics: dict = json.loads(metrics_file.read_text()) if metrics_file.exists() else {}
    if "ship" in stages and "develop" not in stages and "calibration" not in metrics:
        raise RequestError(
            f"run folder {str(run_folder)!r} has no calibration, which is fitted where a model was not trained; "
            "run the stage develop into this folder first, or both."
        )
    run_folder.mkdir(parents=True, exist_ok=True)
    log = _logger(run_folder / "log.txt")
    data = prepare(recipe, out, log)
    cells = np.flatnonzero(data.places.count > 0)
    if "develop" in stages:
        metrics["held_out_blocks"], metrics["calibration"] = develop(recipe, data, cells, run_folder, device, log)
        metrics_file.write_text(json.dumps(metrics, indent=1))
    if "ship" in stages:
        model = train(recipe, data, cells, device, log)
        calibration = metrics["calibration"]
        metrics["ship_in_sample"] = check_calibration(model, data, cells, calibration, recipe.optimiser.seed, log)
        metrics_file.write_text(json.dumps(metrics, indent=1))
        export(recipe, data, model, calibration, out)
        log(f"wrote {out}")
    return metrics


def develop(recipe: Recipe, data: Prepared, cells: np.ndarray, run_folder: Path, device: str, log) -> tuple[dict, dict]:
    """Train without the held-out blocks, then `assess` there: (scores, calibration)."""
    e = recipe.evaluation
    half = np.full(cells.size, 0.5)
    centre = np.stack(data.raster.positions(cells, half, half), axis=1)
    test = held_out(centre, e.block_degrees, e.held_out, e.seed)
    model = train(recipe, data, cells[~test], device, log)
    torch.save(model.state_dict(), run_folder / "develop.pt")
    return assess(recipe, data, model, cells[test], centre[test], log)


def assess(
    recipe: Recipe, data: Prepared, model: Trainee, cells: np.ndarray, centre: np.ndarray, log: Callable[[str], None]
) -> tuple[dict, dict]:
    """Score every subset of modalities in held-out cells, and calibrate it there.

    A cell is scored at its `centre` (N, 2) (lon, lat) against its own presence. Scale and bias are
    fitted on held-out blocks, where a model is less sure than on the places it was trained on; half of
    the blocks get probabilities by what was fitted on the other half. Returns
    ({subset: scores}, {subset: (scale, bias) fitted on all of them}).
    """
    e = recipe.evaluation
    places = at_positions(data, cells, centre, recipe.architecture.satellite["pixel"])
    embeddings = embed_places(model, places, np.arange(cells.size))
    species = embed_species(model, data)[: len(data.raster.species)]
    present = data.raster.labels(cells)
    fold = held_out(centre, e.block_degrees, 0.5, e.seed + 1)
    rng = np.random.default_rng(recipe.optimiser.seed + 1)
    start = (float(model.log_scale.exp()), float(model.bias))

    def fit(cos: np.ndarray, where: np.ndarray) -> tuple[float, float]:
        chosen = rng.choice(np.flatnonzero(where), min(CALIBRATION_PLACES, int(where.sum())), replace=False)
        return fit_calibration(cos[chosen], present[chosen], start)

    result, calibration = {}, {}
    for subset in all_subsets():
        key = calibration_key(subset)
        cos = cosine(combine([embeddings[m] for m in subset]), species).cpu().numpy()
        p = np.empty_like(cos)
        for part in (fold, ~fold):
            scale, bias = fit(cos, ~part)
            p[part] = sigmoid(cos[part] * scale + bias)
        result[key] = score_ranges(cos, p, present, e.min_cells)
        calibration[key] = fit(cos, np.ones_like(fold))
        r = result[key]
        log(f"held out {key}: AP {r['ap']:.4f} AUC {r['auc']:.4f} ECE {r['ece']:.5f} "
            f"(above lowest bin {r['ece_above']:.4f}), scale {calibration[key][0]:.1f} bias {calibration[key][1]:.2f}, "
            f"{r['species']} species, {r['places']} cells")  # fmt: skip
    return result, calibration


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


def check_calibration(
    model: Trainee, data: Prepared, cells: np.ndarray, calibration: dict, seed: int, log: Callable[[str], None]
) -> dict:
    """{subset: calibration error} of a calibration at random places of the cells that the model was trained on."""
    rng = np.random.default_rng(seed + 1)
    p = data.places
    cells = rng.choice(cells[p.count[cells] > 0], min(CALIBRATION_PLACES, cells.size), replace=False)
    index = np.sort(p.start[cells] + (rng.random(cells.size) * p.count[cells]).astype(np.int64))
    embeddings = embed_places(model, data, index)
    species = embed_species(model, data)[: len(data.raster.species)]
    present = data.raster.labels(p.cell[index])
    errors = {}
    for subset in all_subsets():
        key = calibration_key(subset)
        cos = cosine(combine([embeddings[m] for m in subset]), species).cpu().numpy()
        scale, bias = calibration[key]
        ece, above, _ = calibration_error(sigmoid(cos * scale + bias), present)
        errors[key] = {"ece": ece, "ece_above": above}
        log(f"trained places {key}: ECE {ece:.5f} (above lowest bin {above:.4f})")
    return errors


def export(recipe: Recipe, data: Prepared, model: Trainee, calibration: dict, out: Path) -> None:
    """Write `config.json`, `model.safetensors` and `vocabulary.txt` into the model folder."""
    from safetensors.torch import save_file

    state = {k: v.detach().cpu().contiguous() for k, v in model.encoders.state_dict().items()}
    # Half precision everywhere but in what is no weight: the Fourier frequencies, whose error grows with
    # the angle, and the windows over imagery, whose sums must be 1.
    state = {k: v if "frequencies" in k or "windows" in k else v.half() for k, v in state.items()}
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
