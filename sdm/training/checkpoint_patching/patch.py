"""`sdm patch`: read two or more states of a model, choose alphas by validation, write the blend."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sdm.errors import OutputError, RequestError
from sdm.evaluation import datasets
from sdm.evaluation.species import Taxonomy
from sdm.files.atomic import check_folder
from sdm.layers.environment import Input
from sdm.models.registry import list_models
from sdm.request.choices import MODALITIES, parse_modalities
from sdm.training.checkpoint_patching.blending import average
from sdm.training.checkpoint_patching.report import write_report
from sdm.training.checkpoint_patching.search import SEARCHES, AlphaSearch
from sdm.training.data.held_out import scored_places, split_training_set
from sdm.training.data.pairs import DatasetPairs, halves
from sdm.training.data.splits import in_blocks
from sdm.training.data.training_set import prepare_training_set
from sdm.training.measures.validation import RangeValidation, Validation, ZeroShotValidation, range_validation
from sdm.training.recipe.dataset_recipe import DATASETS
from sdm.training.recipe.range_recipe import Recipe
from sdm.training.spaces import BundledSpace, Space, State, complete_states, open_space, read_states

MODES = (*SEARCHES, "average")
Log = Callable[[str], None]


@dataclass(frozen=True)
class BlendSettings:
    """How states are blended."""

    mode: str = "sequential"
    """A search of `AlphaSearch`, or average: the plain mean, without validation."""
    modalities: Sequence[str] = ()
    """Those to patch, in order; () is all that both models have."""
    alphas: int = 11
    """Number of equally spaced alphas from 0 to 1."""
    device: str = "cpu"

    def check(self) -> None:
        """Raise RequestError for a value that is not possible."""
        if self.mode not in MODES:
            raise RequestError(f"mode {self.mode!r} is not known; choose {', '.join(MODES)}.")
        if self.alphas < 2:
            raise RequestError(f"{self.alphas} alphas leave no choice; give 2 or more.")


@dataclass(frozen=True)
class PatchValidation:
    """What alphas are chosen by, and what the result is reported on; never the same observations."""

    choose: Validation
    test: Validation | None


def patch(
    locked: str | Path,
    tuned: Sequence[str | Path],
    out: Path,
    make_validation: Callable[[Space], PatchValidation] | None,
    options: BlendSettings = BlendSettings(),
    log: Log = print,
) -> dict[str, Any]:
    """Blend a locked model with fine-tuned ones into the new folder `out`, of the layout of the locked one.

    `locked` is anything that `open_space` opens, `tuned` anything that `read_states` reads. `make_validation` is
    called with the space; the mode "average" does not need it. Returns the alphas and the scores, which config.json
    (training.json of a published model) holds too. Raises ModelError when architectures differ, RequestError for
    options that do not fit, OutputError when `out` exists.
    """
    options.check()
    if make_validation is None and options.mode != "average":
        raise RequestError(
            f"mode {options.mode!r} chooses by validation: give a recipe or a dataset, or the mode average."
        )
    out = Path(out)
    if os.path.lexists(out):
        raise OutputError(f"{out} exists already; give another --out.")
    check_folder(out)  # now, not after the search
    space = open_space(locked).to(options.device)
    base = space.states()
    others = [complete_states(read_states(t, space.modalities), base) for t in tuned]
    modalities = _patched_modalities(options.modalities, base, others)
    validation = make_validation(space) if make_validation else None
    facts: dict[str, Any] = {"mode": options.mode, "locked": str(locked), "tuned": [str(t) for t in tuned]}
    search, point = None, ()
    states: Mapping[str, State]
    if options.mode == "average":
        states = {m: average([base[m], *(t[m] for t in others if m in t)], f"the {m} encoder") for m in modalities}
        facts["modalities"] = modalities
    else:
        assert validation is not None  # checked above
        search = AlphaSearch(base, others, validation.choose, options.modalities or None, log)
        point = getattr(search, options.mode)(np.linspace(0, 1, options.alphas).tolist())
        states = search.states(point)
        facts["alpha"] = dict(zip(search.names, point, strict=True))
        facts["evaluations"] = len({t.alphas for t in search.trials})
    if validation is not None:
        facts |= _scores(validation, base, others, states)
    space.load_states(states)
    description: dict[str, Any] = {"patching": facts}
    if isinstance(space, BundledSpace):
        description["name"] = out.name
        if validation is not None and isinstance(validation.choose, RangeValidation):
            description["calibration"] = validation.choose.calibration(validation.choose.embed_all(space))
    space.write(out, lambda folder: write_report(search, point, folder) if search else None, **description)
    return facts


def _patched_modalities(
    chosen: Sequence[str], base: Mapping[str, State], others: Sequence[Mapping[str, State]]
) -> list[str]:
    """The modalities to patch: the chosen ones, or all that both have. Raises RequestError."""
    there = [m for m in base if any(m in t for t in others)]
    if missing := [m for m in chosen if m not in there]:
        raise RequestError(f"modality {missing[0]!r} is not in both models; patch any of {', '.join(there)}.")
    if len(set(chosen)) < len(chosen):
        raise RequestError(f"modalities {', '.join(chosen)} name one twice.")
    return list(chosen or there)


def _scores(
    validation: PatchValidation,
    base: Mapping[str, State],
    others: Sequence[Mapping[str, State]],
    patched: Mapping[str, State],
) -> dict[str, Any]:
    """{"validation": scores, "test": scores} of the locked, the fine-tuned and the patched states."""
    ends = {"locked": base, **{f"tuned {k + 1}": t for k, t in enumerate(others)}, "patched": patched}
    facts: dict[str, Any] = {}
    for name, metric in (("validation", validation.choose), ("test", validation.test)):
        if metric is not None:
            facts[name] = {"metric": metric.metric} | {
                what: metric.score({m: metric.embed(m, s) for m, s in {**base, **end}.items()})
                for what, end in ends.items()
            }
    return facts


def validation_by_recipe(path: str | Path, query: Sequence[str], log: Log) -> Callable[[Space], PatchValidation]:
    """Mean AP in what a recipe holds out: half of the blocks to choose by, the other half to report on."""
    recipe = Recipe.read(path)
    modalities = parse_modalities(query) if query else MODALITIES

    def make(space: Space) -> PatchValidation:
        if not isinstance(space, BundledSpace):
            raise RequestError("a recipe's ranges can score this project's architecture only; give a dataset instead.")
        inputs = [Input(**i) for i in space.config["environment"]["inputs"]]
        data = prepare_training_set(recipe, space.folder, log, inputs)
        groups, species = split_training_set(recipe, data)
        if species.any():
            raise RequestError("split 'species' holds no places out; give a recipe that does.")
        e = recipe.evaluation
        second_half = in_blocks(data.places.centre, e.block_degrees, 0.5, e.seed + 1)
        choose, test = (
            range_validation(space, scored_places(recipe, data, np.flatnonzero(groups & half)), modalities, e.min_cells)
            for half in (~second_half, second_half)
        )
        return PatchValidation(choose, test)

    return make


def validation_by_dataset(
    kind: str, folder: str | Path, split: str, query: Sequence[str], limit: int, seed: int = 0
) -> Callable[[Space], PatchValidation]:
    """Zero-shot accuracy on a published dataset.

    Alphas are chosen on its split "val" or "train"; or, for its split "test", on one half of the observations, and the
    other half is reported. At most `limit` observations are used of each.
    """
    if kind not in DATASETS:
        raise RequestError(f"dataset {kind!r} is not known; choose {', '.join(DATASETS)}.")

    def make(space: Space) -> PatchValidation:
        if missing := [m for m in query if m not in space.modalities or m == "text"]:
            known = ", ".join(m for m in space.modalities if m != "text")
            raise RequestError(f"modality {missing[0]!r} cannot be queried; choose any of {known}.")
        wanted = [m for m in (query or ("image", "location")) if m in space.modalities]
        dataset = _open_dataset(kind, folder, split, wanted)
        pairs = DatasetPairs(dataset)
        rng = np.random.default_rng(seed)

        def limited(rows: np.ndarray) -> np.ndarray:
            return rows if len(rows) <= limit else np.sort(rng.choice(rows, limit, replace=False))

        if split in ("val", "train") and kind != "taxabench":
            return PatchValidation(ZeroShotValidation(space, pairs, wanted, limited(np.arange(len(dataset)))), None)
        first, second = (limited(rows) for rows in halves(dataset, seed))
        return PatchValidation(
            ZeroShotValidation(space, pairs, wanted, first), ZeroShotValidation(space, pairs, wanted, second)
        )

    return make


def _open_dataset(kind: str, folder: str | Path, split: str, modalities: Sequence[str]) -> datasets.Dataset:
    taxonomy = Taxonomy(tables=[m.taxa for m in list_models()])
    if kind == "taxabench":
        return datasets.taxabench(folder, modalities, taxonomy)
    if kind == "isoundnat":
        return datasets.isoundnat(folder, split, modalities, taxonomy)
    return datasets.isatnat(folder, split, modalities)
