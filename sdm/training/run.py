"""From a recipe to a model folder: develop on what is held out, train on everything, calibrate, export."""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np
import torch

from sdm._version import __version__
from sdm.errors import ModelError, OutputError, RequestError
from sdm.files.atomic import check_folder
from sdm.files.paths import replace_file
from sdm.layers.environment import Input
from sdm.layers.landmask import LandMask
from sdm.models.bundled import BundledModel
from sdm.models.config import FORMAT, all_subsets, calibration_key
from sdm.models.score import combine, cosine
from sdm.request.choices import MODALITIES
from sdm.training import distributed
from sdm.training.bound import BoundObjective
from sdm.training.edges import edge_auc, near_range_edges
from sdm.training.evaluate import calibration_error, fit_pairs, pairs_by_cosine, score, sigmoid
from sdm.training.labels import Places
from sdm.training.objective import RangeObjective, architecture_config, start_from
from sdm.training.prepare import Prepared, prepare
from sdm.training.recipe import Recipe
from sdm.training.sources import Ranges
from sdm.training.splits import held_out_places, held_out_species, in_blocks
from sdm.training.trainer import Settings, Trainer

STAGES = ("develop", "ship")
SAMPLE = 3000
"""Places of training at which the shipped calibration is looked at."""
FALLBACKS = ("genus", "family", "order")
Log = Callable[[str], None]


def run(
    recipe: Recipe,
    out: Path,
    run_folder: Path,
    stages: tuple[str, ...],
    device: str = "cpu",
    *,
    restart: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict:
    """Run the stages of a recipe: "develop" (train without what is held out, score it) and "ship".

    `out` is the model folder, which holds `taxa.csv` already; `run_folder` receives everything else: the recipe, what
    was resolved from it, log, metrics, and a folder per stage with checkpoint, curves and, for develop, the model. A
    stage that was interrupted goes on from its checkpoint, one that is complete is not run again, unless `restart`.
    Shipping takes the calibration that developing found, so it needs a run folder that has been developed in:
    RequestError otherwise, and for a run folder of another recipe or other data. Returns the metrics.
    """
    first = distributed.rank() == 0
    recipe.optimiser.check(device)
    metrics_file = run_folder / "metrics.json"
    metrics = _read_metrics(metrics_file)
    if "ship" in stages and "develop" not in stages and "calibration" not in metrics:
        raise RequestError(
            f"run folder {str(run_folder)!r} has no calibration, which is fitted where a model was not trained; "
            "run the stage develop into this folder first, or both."
        )
    if "ship" in stages and recipe.evaluation.split == "species":
        raise RequestError(
            "split 'species' holds no places out, on which a shipped calibration is fitted; choose --stage develop."
        )
    if not (out / "taxa.csv").is_file():
        raise ModelError(
            f"model folder {str(out)!r} has no taxa.csv, the names of the species; make it with recipes/taxa.py."
        )
    for folder in (run_folder, out):
        check_folder(folder)  # now, not after hours
    log = logger(run_folder / "log.txt", quiet=progress is not None)
    data = prepare(recipe, out, log, initial_inputs(recipe))
    identity = {"recipe": _digest(recipe), "data": data.fingerprint}
    _refuse_other(run_folder, metrics, identity, restart)
    if restart:
        metrics = {}
    if first:
        settings = asdict(recipe)
        for entry, source in zip(settings["data"]["source"], recipe.data.source, strict=True):
            entry["kind"] = source.kind
        describe(recipe.path, settings, run_folder, identity, device)
    metrics["run"] = identity
    if "develop" in stages:
        if "held_out" not in metrics:
            metrics |= develop(recipe, data, run_folder, device, log, identity, restart, progress)
            _write_json(metrics, metrics_file)
        else:
            log(f"develop is complete in {run_folder}")
    if "ship" in stages:
        objective = make_objective(recipe, data, np.arange(len(data.places.start)))
        trainer(recipe, objective, run_folder / "ship", device, identity, log, progress).fit(restart)
        if first:
            metrics["ship_in_sample"] = check_calibration(recipe, objective, data, metrics["calibration"], log)
            _write_json(metrics, metrics_file)
            export(recipe, data, objective, metrics["calibration"], out)
            log(f"wrote {out}")
    distributed.wait()
    return metrics


def make_objective(
    recipe: Recipe, data: Prepared, groups: np.ndarray, without: np.ndarray | None = None
) -> RangeObjective | BoundObjective:
    """The objective of a recipe over groups of places, from random weights by its seed or from its `initial`."""
    torch.manual_seed(recipe.optimiser.seed)
    initial = _initial(recipe)
    if recipe.binding:
        return BoundObjective(recipe, data, groups, without, initial)
    objective = RangeObjective(recipe, data, groups, without)
    if initial:
        start_from(objective.encoders, initial, data.vocabulary)
        scale, bias = initial.calibration(MODALITIES)
        with torch.no_grad():
            objective.log_scale.fill_(float(np.log(scale)))
            objective.bias.fill_(bias)
    return objective


def split(recipe: Recipe, data: Prepared) -> tuple[np.ndarray, np.ndarray]:
    """((G,) bool: groups held out, (S,) bool: species held out) by the recipe's [evaluation].

    Raises RequestError when nothing, or everything, is held out.
    """
    e = recipe.evaluation
    test = held_out_places(
        e.split, data.places.centre, fraction=e.held_out, seed=e.seed, block_degrees=e.block_degrees,
        continents=e.continents, climate=e.climate,
    )  # fmt: skip
    species = np.zeros(len(data.species), bool)
    if e.split == "species":
        species = held_out_species(data.species, e.held_out, e.seed)
    held = species if e.split == "species" else test
    if not held.any() or held.all():
        raise RequestError(
            f"split {e.split!r} holds out {'all' if held.any() else 'none'} of {held.size} "
            f"{'species' if e.split == 'species' else 'groups of places'}; change [evaluation] of the recipe."
        )
    return test, species


def develop(
    recipe: Recipe,
    data: Prepared,
    run_folder: Path,
    device: str,
    log: Log,
    identity: dict[str, str] | None = None,
    restart: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict:
    """Train without what is held out, then `assess` it: {"held_out": scores, "calibration": ...}."""
    test, species = split(recipe, data)
    objective = make_objective(recipe, data, np.flatnonzero(~test), species)
    trainer(recipe, objective, run_folder / "develop", device, identity or {}, log, progress).fit(restart)
    if distributed.rank() != 0:
        return {"held_out": {}, "calibration": {}}
    if recipe.evaluation.split == "species":
        return {"held_out": assess_species(recipe, data, objective, species, log)}
    result, calibration = assess(recipe, data, objective, np.flatnonzero(test), log)
    folder = run_folder / "develop" / "model"
    folder.mkdir(parents=True, exist_ok=True)
    export(recipe, data, objective, calibration, folder)
    replace_file(folder / "taxa.csv", data.taxa.read_bytes())  # so that it is a whole model, to map with or start from
    return {"held_out": result, "calibration": calibration}


def test_places(recipe: Recipe, data: Prepared, groups: np.ndarray) -> Prepared:
    """One place per group, at most `max_places` of a source: the centre of a raster cell, or a place drawn."""
    e, p = recipe.evaluation, data.places
    rng = np.random.default_rng(e.seed)
    parts = []
    for k, source in enumerate(data.sources):
        mine = groups[p.group_source[groups] == k]
        if not mine.size:
            continue
        if mine.size > e.max_places:
            mine = np.sort(rng.choice(mine, e.max_places, replace=False))
        if isinstance(source, Ranges):
            n = np.zeros(mine.size, np.int8)
            parts.append((k, Places.single(p.centre[mine], n, n, p.origin[p.start[mine]])))
        else:
            parts.append((k, p.take(p.start[mine] + (rng.random(mine.size) * p.count[mine]).astype(np.int64))))
    return data.at(Places.join(parts))


def assess(
    recipe: Recipe, data: Prepared, objective: RangeObjective, groups: np.ndarray, log: Log
) -> tuple[dict, dict]:
    """Score every subset of modalities in held-out groups of places, and calibrate it there.

    A source that has places is scored at those, one that only labels where it labels others'. Scale and bias are
    fitted on held-out places, where a model is less sure than on those it was trained on; half of the blocks get
    probabilities by what was fitted on the other half. Returns ({source: {subset: scores}}, {subset: (scale, bias)
    fitted on all of them}), both of the sources that [evaluation] calibrate names, by default the first.
    """
    e = recipe.evaluation
    there = test_places(recipe, data, groups)
    embeddings, species = objective.embed_places(there), objective.embed_species()
    fold = in_blocks(there.places.lonlat, e.block_degrees, 0.5, e.seed + 1)
    start = (float(objective.log_scale.detach().exp()), float(objective.bias.detach()))
    wanted = set(e.calibrate or (data.sources[0].name,))
    scored = _scored(there)
    if not wanted & {there.blocks[k].name for k in scored}:
        raise RequestError(
            f"no held-out place has labels of {' or '.join(sorted(wanted))}, on which calibration is fitted; "
            "change [evaluation] calibrate or the split."
        )
    edges = {k: _near_edges(there, k, rows) for k, rows in scored.items() if isinstance(there.sources[k], Ranges)}
    result: dict = {there.blocks[k].name: {} for k in scored}
    calibration = {}
    for subset in all_subsets():
        key = calibration_key(subset)
        place = combine([embeddings[m] for m in subset])
        cos = {k: _cosine(place, species, rows, there.columns[k]) for k, rows in scored.items()}
        halves = np.zeros((2, 3, pairs_by_cosine(np.zeros(0), np.zeros(0)).shape[1]))
        for k, rows in scored.items():
            if there.blocks[k].name in wanted:
                label, known = _labels(there, k, rows)
                for half in (0, 1):
                    part = fold[rows] == bool(half)
                    halves[half] += pairs_by_cosine(cos[k][part], label[part], None if known is None else known[part])
        calibration[key] = fit_pairs(halves.sum(axis=0), start)
        fitted = [fit_pairs(h, start) if h[0].sum() else calibration[key] for h in halves]
        for k, rows in scored.items():
            label, known = _labels(there, k, rows)
            p = np.empty_like(cos[k])
            for half in (0, 1):
                part = fold[rows] == bool(half)
                scale, bias = fitted[1 - half]
                p[part] = sigmoid(cos[k][part] * scale + bias)
            name = there.blocks[k].name
            result[name][key] = r = score(cos[k], p, label, known, e.min_cells)
            if k in edges:
                r["edge_auc"], r["edge_species"] = edge_auc(cos[k], label.astype(bool), edges[k])
            log(f"held out {name} {key}: {_shown(r)}")
    return result, calibration


def assess_species(recipe: Recipe, data: Prepared, objective: RangeObjective, without: np.ndarray, log: Log) -> dict:
    """{source: {rank: {subset: scores}}} of the species held out, each known only by its ranks down to `rank`.

    For the genus only species count of whose genus another one was trained on; likewise for family and order.
    """
    e = recipe.evaluation
    there = test_places(recipe, data, np.arange(len(data.places.start)))
    embeddings = objective.embed_places(there)
    trained = there.species_rows[~without]
    result: dict = {}
    for rank in FALLBACKS:
        column = there.ranks.index(rank)
        relatives = np.isin(there.species_rows[:, column], trained[:, column])
        species = objective.embed_species(rank)
        for k, rows in _scored(there).items():
            chosen = np.flatnonzero(without[there.columns[k]] & relatives[there.columns[k]])
            if not chosen.size:
                continue
            label, known = _labels(there, k, rows)
            label, known = label[:, chosen], None if known is None else known[:, chosen]
            name = there.blocks[k].name
            for subset in all_subsets():
                cos = _cosine(combine([embeddings[m] for m in subset]), species, rows, there.columns[k][chosen])
                start = (float(objective.log_scale.detach().exp()), float(objective.bias.detach()))
                p = sigmoid(cos * start[0] + start[1])
                r = score(cos, p, label, known, e.min_cells)
                result.setdefault(name, {}).setdefault(rank, {})[calibration_key(subset)] = r
                log(f"held-out species {name} by {rank}, {calibration_key(subset)}: {_shown(r)}")
    return result


def _scored(there: Prepared) -> dict[int, np.ndarray]:
    """{block: places at which it is scored}: its own, or, if it has none, all that it labels."""
    out = {}
    for k, block in enumerate(there.blocks):
        own = np.flatnonzero(there.places.source == k)
        rows = own if own.size else np.flatnonzero(block.rows >= 0)
        if rows.size:
            out[k] = rows
    return out


def _near_edges(there: Prepared, source: int, rows: np.ndarray) -> np.ndarray:
    """(N, S) bool: which of the places `rows`, one a cell, lie near the edge of each range of a raster, on land."""
    raster = there.sources[source].raster
    cells = np.arange(raster.shape[0] * raster.shape[1])
    middle = np.full(cells.size, 0.5)
    lon, lat = raster.positions(cells, middle, middle)
    land = np.isfinite(lon)
    land[land] = LandMask().keep("land", lon[land], lat[land])
    return near_range_edges(raster, land, raster.cells(*there.places.lonlat[rows].T))


def _labels(there: Prepared, block: int, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    label, known = there.blocks[block].probability(rows)
    return label, known if there.blocks[block].partial else None


def _cosine(place: torch.Tensor, species: torch.Tensor, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    device = place.device
    at, of = (torch.from_numpy(np.asarray(v, np.int64)).to(device) for v in (rows, columns))
    return cosine(place[at], species[of]).cpu().numpy()


def _shown(r: dict) -> str:
    ranked = "nothing ranked" if r["ap"] is None else f"AP {r['ap']:.4f} AUC {r['auc']:.4f}"
    if r.get("edge_species"):
        ranked += f" (near range edges {r['edge_auc']:.4f})"
    return (
        f"{ranked} ECE {r['ece']:.5f} (above lowest bin {r['ece_above']:.4f}), "
        f"{r['species']} species, {r['places']} places"
    )


def check_calibration(recipe: Recipe, objective: RangeObjective, data: Prepared, calibration: dict, log: Log) -> dict:
    """{source: {subset: calibration error}} at random places that the model was trained on."""
    rng = np.random.default_rng(recipe.optimiser.seed + 1)
    p = data.places
    groups = rng.choice(len(p.start), min(SAMPLE, len(p.start)), replace=False)
    index = np.sort(p.start[groups] + (rng.random(groups.size) * p.count[groups]).astype(np.int64))
    there = data.at(p.take(index))
    embeddings, species = objective.embed_places(there), objective.embed_species()
    errors: dict = {}
    for subset in all_subsets():
        key = calibration_key(subset)
        place = combine([embeddings[m] for m in subset])
        scale, bias = calibration[key]
        for k, rows in _scored(there).items():
            label, known = _labels(there, k, rows)
            probability = sigmoid(_cosine(place, species, rows, there.columns[k]) * scale + bias)
            pairs = (probability, label) if known is None else (probability[known], label[known])
            ece, above, _ = calibration_error(*pairs)
            name = there.blocks[k].name
            errors.setdefault(name, {})[key] = {"ece": ece, "ece_above": above}
            log(f"trained places {name} {key}: ECE {ece:.5f} (above lowest bin {above:.4f})")
    return errors


def export(recipe: Recipe, data: Prepared, objective: RangeObjective, calibration: dict, out: Path) -> None:
    """Write `config.json`, `model.safetensors` and `vocabulary.txt` into the model folder, each in one step."""
    from safetensors.torch import save

    state = {k: v.detach().cpu().contiguous() for k, v in objective.encoders.state_dict().items()}
    # Half precision everywhere but in what is no weight: the Fourier frequencies, whose error grows with
    # the angle, and the windows over imagery, whose sums must be 1.
    coverage = next((s.coverage for s in data.sources if s.coverage is not None), None)
    state = {k: v if "frequencies" in k or "windows" in k else v.half() for k, v in state.items()}
    config = {
        "format": FORMAT,
        "name": recipe.name,
        "title": recipe.title,
        "version": recipe.version,
        "licence": recipe.licence,
        "made_with": f"taxabind-map {__version__}",
        "domain": [round(float(np.nanmin(data.places.lonlat[:, 1])), 1), 90.0],
        "groups": {g: {"extent": e} for g, e in data.groups.items()},
        "calibration": {k: {"scale": s, "bias": b} for k, (s, b) in calibration.items()},
        "modalities": list(MODALITIES),
        **({"ranges": recipe.ranges} if recipe.ranges else {}),
        **({"coverage": coverage.encode()} if coverage is not None else {}),
        **architecture_config(recipe, data),
    }
    replace_file(out / "model.safetensors", save(state))
    replace_file(out / "vocabulary.txt", ("\n".join(data.vocabulary) + "\n").encode())
    replace_file(out / "config.json", (json.dumps(config, indent=1) + "\n").encode())


def trainer(
    recipe: Recipe,
    objective: RangeObjective | BoundObjective,
    folder: Path,
    device: str,
    identity: dict[str, str],
    log: Log,
    progress: Callable[[str, int, int], None] | None = None,
) -> Trainer:
    """The trainer of a recipe's [optimiser]."""
    o = recipe.optimiser
    settings = Settings(**{f.name: getattr(o, f.name) for f in fields(Settings)})
    return Trainer(objective, settings, folder, device=device, identity=identity, log=log, progress=progress)


def _initial(recipe: Recipe) -> BundledModel | None:
    """The model to start from: a model folder or name, or the developed model of a run folder."""
    given = recipe.objective.initial
    if not given:
        return None
    developed = Path(given) / "develop" / "model"
    return BundledModel.open(developed if (developed / "config.json").is_file() else given)


def initial_inputs(recipe: Recipe) -> list[Input] | None:
    """The environment as the model to start from reads it; None without one."""
    initial = _initial(recipe)
    return [Input(**i) for i in initial.config["environment"]["inputs"]] if initial else None


def _digest(recipe: Recipe) -> str:
    """sha256 of what a recipe says, whatever its comments and order; how often to write a checkpoint is left out."""
    said = {k: v for k, v in asdict(recipe).items() if k not in ("path", "title", "licence", "version", "ranges")}
    said["optimiser"].pop("checkpoint_every")
    for entry, source in zip(said["data"]["source"], recipe.data.source, strict=True):
        entry["kind"] = source.kind
    if recipe.objective.initial:
        initial = _initial(recipe)
        said["initial"] = initial.digest if initial else ""
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def _refuse_other(run_folder: Path, metrics: dict, identity: dict[str, str], restart: bool) -> None:
    """Raise RequestError when the run folder holds finished stages of another recipe or other data."""
    had = metrics.get("run")
    if restart or not metrics:
        return
    other = [k for k in identity if (had or {}).get(k) != identity[k]]
    if other:
        raise RequestError(
            f"run folder {str(run_folder)!r} holds a run of another {' and other '.join(other)}; "
            "give --restart to begin anew, or another --run."
        )


def make_folder(folder: Path) -> None:
    """Make a folder, if it is not there. Raises OutputError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder} cannot be made: {error.strerror}; give another --run.") from None


def _read_metrics(path: Path) -> dict:
    """What a run folder holds of earlier runs; {} for a new one."""
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError) as error:
        raise RequestError(f"{str(path)!r} cannot be read ({error}); give another --run, or delete it.") from None
    if not isinstance(metrics, dict):
        raise RequestError(f"{str(path)!r} is not of a run; give another --run.")
    return metrics


def describe(recipe: Path, settings: dict, run_folder: Path, identity: dict[str, str], device: str) -> None:
    """What was asked and with what, into a run folder: the recipe as it was, and what was resolved from it."""
    make_folder(run_folder)
    replace_file(run_folder / "recipe.toml", recipe.read_bytes())
    settings = {**settings, "path": str(recipe)}
    gpu = torch.cuda.get_device_name(device) if device.startswith("cuda") else None
    description = {
        "identity": identity,
        "settings": settings,
        "device": device,
        "gpu": gpu,
        "processes": distributed.size(),
        "threads": torch.get_num_threads(),
        "versions": {
            "taxabind-map": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
        },
        "machine": f"{platform.system()} {platform.machine()}",
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    _write_json(description, run_folder / "run.json")


def _write_json(value: dict, path: Path) -> None:
    if distributed.rank() == 0:
        replace_file(path, (json.dumps(value, indent=1) + "\n").encode())


def logger(path: Path, quiet: bool) -> Log:
    """A function that prints a line with the time, and keeps it in a file; on the first process only."""

    def log(line: str) -> None:
        if distributed.rank() != 0:
            return
        stamped = f"{time.strftime('%H:%M:%S')} {line}"
        if not quiet or not line.startswith("step "):  # a terminal shows a bar instead
            print(stamped, flush=True)
        make_folder(path.parent)  # not before there is something to say: a bad recipe leaves nothing behind
        with path.open("a", encoding="utf-8") as file:
            file.write(stamped + "\n")

    return log
