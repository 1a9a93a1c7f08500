"""What `sdm patch` does: read two or more states of a model, choose alphas by validation, write the blend."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sdm.errors import OutputError, RequestError
from sdm.files.atomic import check_folder
from sdm.training.pairs import DatasetPairs, halves
from sdm.training.patching import MODES, Search, States, average, write_report
from sdm.training.towers import BundledSpace, Space, complete, open_space, read_states
from sdm.training.validation import RangeValidation, ZeroShot, held_out

DATASETS = ("taxabench", "isatnat", "isoundnat")
Log = Callable[[str], None]


@dataclass(frozen=True)
class Judges:
    """What alphas are chosen by, and what the result is reported on; never the same observations."""

    choose: RangeValidation | ZeroShot
    test: RangeValidation | ZeroShot | None


def patch(
    locked: str | Path,
    tuned: Sequence[str | Path],
    out: Path,
    judge: Callable[[Space], Judges] | None,
    mode: str = "sequential",
    modalities: Sequence[str] = (),
    alphas: int = 11,
    device: str = "cpu",
    log: Log = print,
) -> dict[str, Any]:
    """Blend a locked model with fine-tuned ones into the new folder `out`, of the layout of the locked one.

    `locked`: what `open_space` opens; `tuned`: what `read_states` reads; `modalities`: those to patch, in order, by
    default all that both have. `judge` is not needed for the mode "average". Returns the alphas and the scores, which
    the folder's config.json (training.json of a published one) holds too. Raises ModelError when architectures
    differ, RequestError, and OutputError when `out` exists.
    """
    if mode not in MODES:
        raise RequestError(f"mode {mode!r} is not known; choose {', '.join(MODES)}.")
    if alphas < 2:
        raise RequestError(f"{alphas} alphas make no choice; give 2 or more.")
    if judge is None and mode != "average":
        raise RequestError(f"mode {mode!r} chooses by validation: give a recipe or a dataset, or the mode average.")
    out = Path(out)
    if os.path.lexists(out):
        raise OutputError(f"{out} exists already; give another --out.")
    check_folder(out)  # now, not after the search
    space = open_space(locked).to(device)
    base = space.states()
    others = [complete(read_states(t, space.modalities), base) for t in tuned]
    there = [m for m in base if any(m in t for t in others)]
    if missing := [m for m in modalities if m not in there]:
        raise RequestError(f"modality {missing[0]!r} is not in both models; patch any of {', '.join(there)}.")
    if len(set(modalities)) < len(modalities):
        raise RequestError(f"modalities {', '.join(modalities)} name one twice.")
    judges = judge(space) if judge else None
    facts: dict[str, Any] = {"mode": mode, "locked": str(locked), "tuned": [str(t) for t in tuned]}
    search = None
    if mode == "average":
        chosen = list(modalities or there)
        states: States = {m: average([base[m], *(t[m] for t in others if m in t)], f"the {m} encoder") for m in chosen}
        facts["modalities"] = chosen
    else:
        assert judges is not None
        search = Search(base, others, judges.choose, modalities or None, log)
        point = getattr(search, mode)(np.linspace(0, 1, alphas).tolist())
        states = search.states(point)
        facts["alpha"] = dict(zip(search.names, point, strict=True))
        facts["evaluations"] = len({t.alphas for t in search.trials})
    if judges is not None:
        for name, judged in (("validation", judges.choose), ("test", judges.test)):
            if judged is not None:
                ends = {"locked": base, **{f"tuned {k + 1}": {**base, **t} for k, t in enumerate(others)}}
                facts[name] = {"metric": judged.metric} | {
                    what: judged.score({m: judged.embed(m, s) for m, s in {**base, **end}.items()})
                    for what, end in {**ends, "patched": states}.items()
                }
    more: dict[str, Any] = {"patching": facts}
    space.load_states(states)
    if isinstance(space, BundledSpace):
        more["name"] = out.name
        if judges is not None:
            more["calibration"] = judges.choose.calibration(judges.choose.all(space))
    space.write(out, lambda folder: write_report(search, point, folder) if search else None, **more)
    return facts


def judge_by_recipe(path: str | Path, query: Sequence[str], log: Log) -> Callable[[Space], Judges]:
    """By mean AP in what a recipe holds out: half of the blocks to choose by, the other half to report on."""
    from sdm.layers.environment import Input
    from sdm.request.choices import MODALITIES, parse_modalities
    from sdm.training.prepare import prepare
    from sdm.training.recipe import Recipe
    from sdm.training.run import split, test_places
    from sdm.training.splits import in_blocks

    recipe = Recipe.read(path)
    query = parse_modalities(query) if query else MODALITIES

    def judge(space: Space) -> Judges:
        if not isinstance(space, BundledSpace):
            raise RequestError("a recipe's ranges judge this project's architecture only; give a dataset instead.")
        inputs = [Input(**i) for i in space.config["environment"]["inputs"]]
        data = prepare(recipe, space.folder, log, inputs)
        groups, species = split(recipe, data)
        if species.any():
            raise RequestError("split 'species' holds no places out; give a recipe that does.")
        e = recipe.evaluation
        second = in_blocks(data.places.centre, e.block_degrees, 0.5, e.seed + 1)
        first, last = (
            held_out(space, test_places(recipe, data, np.flatnonzero(groups & half)), query, e.min_cells)
            for half in (~second, second)
        )
        return Judges(first, last)

    return judge


def judge_by_dataset(
    kind: str, folder: str | Path, split: str, query: Sequence[str], limit: int, seed: int = 0
) -> Callable[[Space], Judges]:
    """By zero-shot accuracy on a published dataset: on its split "val" or "train"; or, of its split "test", on one
    half of the observations, the other half to report on. At most `limit` observations each."""
    from sdm.evaluation import datasets
    from sdm.evaluation.species import Taxonomy
    from sdm.models.registry import list_models

    if kind not in DATASETS:
        raise RequestError(f"dataset {kind!r} is not known; choose {', '.join(DATASETS)}.")

    def judge(space: Space) -> Judges:
        if missing := [m for m in query if m not in space.modalities or m == "text"]:
            known = ", ".join(m for m in space.modalities if m != "text")
            raise RequestError(f"modality {missing[0]!r} cannot be asked with; choose any of {known}.")
        wanted = [m for m in (query or ("image", "location")) if m in space.modalities]
        taxonomy = Taxonomy(tables=[m.taxa for m in list_models()])
        if kind == "taxabench":
            found = datasets.taxabench(folder, wanted, taxonomy)
        elif kind == "isoundnat":
            found = datasets.isoundnat(folder, split, wanted, taxonomy)
        else:
            found = datasets.isatnat(folder, split, wanted)
        pairs = DatasetPairs(found)
        rng = np.random.default_rng(seed)
        whole = split in ("val", "train") and kind != "taxabench"
        parts = (np.arange(len(found)), None) if whole else halves(found, seed)
        parts = [p if p is None or len(p) <= limit else np.sort(rng.choice(p, limit, replace=False)) for p in parts]
        first, last = (None if p is None else ZeroShot(space, pairs, wanted, p) for p in parts)
        assert first is not None
        return Judges(first, last)

    return judge
