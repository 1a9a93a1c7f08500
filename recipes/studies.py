"""Studies of the method, each a table (CSV, Markdown) and a plot (PNG):

    python recipes/studies.py ablation      # each modality alone and every sum
    python recipes/studies.py patching      # patching compared with other uses of the same weights
    python recipes/studies.py temperature   # fixed temperatures against a learned one
    python recipes/studies.py binding       # which modality to bind the others to
    python recipes/studies.py species       # species never trained on, by their genus, family, order
    python recipes/studies.py continents    # continents never trained on
    python recipes/studies.py climate       # climates never trained on

All train the small model of recipes/study.toml on PHYLACINE, in minutes each on one core; the recipe's [evaluation]
decides what is held out of training, unless that is the subject of the study.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from sdm.models.config import all_subsets
from sdm.request.choices import MODALITIES
from sdm.training.checkpoint_patching.blending import average
from sdm.training.checkpoint_patching.report import write_report
from sdm.training.checkpoint_patching.search import AlphaSearch
from sdm.training.data.held_out import scored_places, split_training_set
from sdm.training.data.pairs import presence, range_pairs
from sdm.training.data.splits import in_blocks
from sdm.training.data.training_set import TrainingSet, prepare_training_set
from sdm.training.loop.trainer import Trainer
from sdm.training.measures.validation import RangeValidation, cross_modal_retrieval, range_validation
from sdm.training.objectives.contrastive import ContrastiveObjective, Rates
from sdm.training.recipe import Recipe
from sdm.training.recipe.sections import BindingSettings, TrainerSettings
from sdm.training.runs.assessment import assess_species
from sdm.training.runs.range_run import make_objective
from sdm.training.spaces import BundledSpace, architecture_config, complete_states, read_states

GRID = np.linspace(0, 1, 11).round(2).tolist()
ALL = ("location", "satellite", "environment", "text")
SEEN = 20
"""Places of training at which a species must be present to be scored where a continent or climate is held out."""


class Bench:
    """The training set, the splits, and short runs on it."""

    def __init__(self, recipe: Recipe, taxa: Path, runs: Path) -> None:
        self.recipe, self.runs, self.taxa = recipe, runs, taxa
        self.data = prepare_training_set(recipe, taxa, say)
        self.test, _ = split_training_set(recipe, self.data)
        e = recipe.evaluation
        self.validate = in_blocks(self.data.places.centre, e.block_degrees, 0.2, e.seed + 100) & ~self.test
        self.train = np.flatnonzero(~self.test & ~self.validate)
        self._pairs: dict = {}

    def space(self, seed: int = 0) -> BundledSpace:
        """Random towers."""
        torch.manual_seed(seed)
        return BundledSpace(architecture_config(self.recipe, self.data), self.data.vocabulary, self.taxa)

    def held_out(self, groups: np.ndarray, among: np.ndarray | None = None) -> RangeValidation:
        """Validation at the places of some groups."""
        places = scored_places(self.recipe, self.data, np.flatnonzero(groups))
        return range_validation(self.space(), places, among=among)

    def fit(self, objective: torch.nn.Module, name: str, what: object, **changes: object) -> None:
        """Train in a folder of its own, from which an interrupted study continues; `what` identifies the run."""
        s = {**vars(self.recipe.optimiser), **changes}
        settings = TrainerSettings(**{k: v for k, v in s.items() if k in TrainerSettings.__dataclass_fields__})
        identity = {"run": f"{what} on {self.data.fingerprint}"}
        log = lambda line: say(f"{name}: {line}")  # noqa: E731
        Trainer(objective, settings, self.runs / name, identity=identity, log=log).fit()

    def bind(
        self, space: BundledSpace, name: str, binding: BindingSettings, slower: float = 1.0, **changes: object
    ) -> None:
        """Train towers of a space in place; `slower` divides the learning rates."""
        o = self.recipe.optimiser
        rates = Rates(o.learning_rate / slower, o.text_learning_rate / slower, o.weight_decay)
        key = binding.balance, binding.negatives
        if key not in self._pairs:
            self._pairs[key] = range_pairs(self.data, self.train, *key)
        self.fit(ContrastiveObjective(space, self._pairs[key], binding, rates), name, (binding, rates), **changes)


def say(line: str) -> None:
    """A line with the time."""
    print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)


def ablation(bench: Bench, out: Path) -> None:
    """One model trained on every subset, and each modality trained alone with the same number of steps."""
    held = bench.held_out(bench.test)
    recipe = bench.recipe
    shared = make_objective(recipe, bench.data, np.flatnonzero(~bench.test))
    bench.fit(shared, "ablation-shared", recipe.objective)
    embeddings = {**_states(held, shared.encoders)}
    alone = {}
    for m in MODALITIES:
        only = replace(recipe, objective=replace(recipe.objective, subset_shares={m: 1.0}))
        objective = make_objective(only, bench.data, np.flatnonzero(~bench.test))
        bench.fit(objective, f"ablation-{m}", only.objective)
        alone[m] = _states(held, objective.encoders)
    rows = []
    for subset in all_subsets():
        row = {
            "modalities": " + ".join(subset),
            "AP": held.average_precision(embeddings, subset),
            "AUC": held.auc(embeddings, subset),
        }
        if len(subset) == 1:
            row |= {"AP trained alone": held.average_precision(alone[subset[0]], subset)}
        rows.append(row)
    write(out, "ablation", rows, _size_text(held, "held-out places"))
    bars(out / "ablation.png", rows, "modalities", ["AP", "AP trained alone"], "mean AP, held-out blocks")


def _states(held: RangeValidation, encoders: torch.nn.ModuleDict) -> dict:
    return {m: held.embed(m, encoders[m].state_dict()) for m in ALL}


def by_ranges(*train: str, **more: object) -> BindingSettings:
    """Settings that align towers to species by the range loss; with "text" among them, species learn too."""
    bound = tuple(m for m in train if m != "text")
    return BindingSettings("text", bound, train, losses=dict.fromkeys(bound, "range"), **more)


def patching(bench: Bench, out: Path) -> None:
    """Locked tuning, then fine-tuning: alphas by validation blocks, the table by test blocks."""
    steps = bench.recipe.optimiser.steps
    few = steps // 30 * 10
    space = bench.space()
    bench.bind(space, "patching-binding", by_ranges("text", "location"))
    bench.bind(space, "patching-locked", by_ranges("satellite", "environment"))
    locked = space.states()
    choose, test = bench.held_out(bench.validate), bench.held_out(bench.test)
    rows, each = [], []

    def report(method: str, states: dict, alphas: str = "", evaluations: int = 0) -> float:
        states = complete_states({**locked, **states}, locked)
        first = {m: choose.embed(m, s) for m, s in states.items()}
        last = {m: test.embed(m, s) for m, s in states.items()}
        row = {
            "method": method,
            "alphas": alphas,
            "evaluations": evaluations or "",
            "validation AP": choose.score(first),
            "test AP": test.score(last),
        }
        each.append(test.average_precisions(last, MODALITIES))
        gain = each[-1] - each[0]
        row |= {"gain": float(gain.mean()), "±": float(gain.std() / len(gain) ** 0.5)}
        row |= {f"{m} alone": test.average_precision(last, (m,)) for m in MODALITIES}
        row |= {
            "satellite > environment R@10": cross_modal_retrieval(last, "satellite", "environment").recall[10],
            "environment > satellite R@10": cross_modal_retrieval(last, "environment", "satellite").recall[10],
        }
        rows.append(row)
        say(str(row))
        write(out, "patching", rows, _patching_note(choose, test, steps, few))
        return row["validation AP"]

    def tune(name: str, train: Sequence[str], binding: BindingSettings | None = None, **changes: object) -> dict:
        space.load_states(locked)
        binding = binding or by_ranges(*train)
        changes = {"steps": few, "batch": bench.recipe.optimiser.batch // 2, "ema": 0.0, **changes}
        bench.bind(space, f"patching-{name}", binding, slower=3.0, **changes)
        return {m: s for m, s in space.states().items() if m in train}

    report("locked tuning only", {})
    # The last one is closest to the paper: species and one new modality, by a loss on pairs, the others left alone.
    new = ("environment", "text")
    for what, train, binding in (
        ("all", ALL, None),
        ("without location", ("satellite", "environment", "text"), None),
        ("environment by pairs", new, BindingSettings("text", ("environment",), new)),
    ):
        states = tune(f"fine-{what.replace(' ', '-')}", train, binding)
        report(f"fine-tuned, {what}", states, "1")
        search = AlphaSearch(locked, [states], choose, train, log=say)
        for mode in ("one", "sequential", "together", "joint"):
            before = search.evaluations
            point = getattr(search, mode)(GRID)
            told = ", ".join(f"{n} {a:g}" for n, a in zip(search.names, point, strict=True) if a)
            report(f"patched {mode}, {what}", search.states(point), told, search.evaluations - before)
        write_report(search, point, out)
        (out / "patching.png").replace(out / f"patching-{what.replace(' ', '-')}.png")
        (out / "patching.csv").rename(out / f"patching-{what.replace(' ', '-')}-alphas.csv")
        write(out, "patching", rows, _patching_note(choose, test, steps, few))
    states = tune("constant", ALL, schedule="constant", snapshot_every=few // 10)
    report("fine-tuned, constant rate", states, "1")
    folder = bench.runs / "patching-constant" / "snapshots"
    taken = [read_states(folder / f"step-{k}.pt", ALL) for k in range(few // 2, few + 1, few // 10)]
    report(f"weight average of {len(taken)} snapshots", {m: average([t[m] for t in taken]) for m in ALL})
    report("moving average of the weights", tune("ema", ALL, schedule="constant", ema=0.98))
    for by in ("cosine", "l2"):
        for weight in (0.3, 3.0):
            binding = by_ranges(*ALL, distil=weight, distil_by=by)
            report(f"distillation, {by} x {weight:g}", tune(f"{by}-{weight:g}", ALL, binding))
    bars(out / "patching-methods.png", rows, "method", ["test AP"], "mean AP, test blocks", span=True)


def _patching_note(choose: RangeValidation, test: RangeValidation, steps: int, few: int) -> str:
    return (
        f"Binding and locked tuning {steps} steps each, every fine-tuning {few} more with half the batch. Validation: "
        f"{_size_text(choose)}; test: {_size_text(test)}. AP is that of the sum of location, satellite and "
        "environment; gain: of test AP "
        "over locked tuning, with the standard error of its mean over species."
    )


def _size_text(held: RangeValidation, places: str = "places") -> str:
    return f"{len(held.ranked_species):,} species at {len(held.present):,} {places}"


def temperature(bench: Bench, out: Path) -> None:
    """Locked tuning to species with contrastive losses, at fixed temperatures and a learned one."""
    space = bench.space()
    bench.bind(space, "temperature-binding", by_ranges("text", "location"))
    start = {**bench.space().states(), "text": space.states()["text"]}
    held, rows = bench.held_out(bench.test), []
    for value in (0.01, 0.02, 0.05, 0.07, 0.1, 0.2, 0.5, None):
        space.load_states(start)
        binding = BindingSettings("text", MODALITIES, temperature=value or 0.07, learn_temperature=value is None)
        name = "learned" if value is None else f"{value:g}"
        bench.bind(space, f"temperature-{name}", binding, steps=bench.recipe.optimiser.steps // 2)
        rows.append({"temperature": name, **_scores(held, held.embed_all(space))})
        write(
            out,
            "temperature",
            rows,
            f"{_size_text(held, 'held-out places')}; {bench.recipe.optimiser.steps // 2} steps each",
        )
    bars(out / "temperature.png", rows, "temperature", ["AP", *(f"AP {m}" for m in MODALITIES)], "mean AP")


def _scores(held: RangeValidation, embeddings: dict) -> dict:
    row = {"AP": held.score(embeddings), **{f"AP {m}": held.average_precision(embeddings, (m,)) for m in MODALITIES}}
    for a, b in (("satellite", "environment"), ("satellite", "location"), ("environment", "location")):
        row[f"{a} > {b} R@10"] = cross_modal_retrieval(embeddings, a, b).recall[10]
    return row


def binding(bench: Bench, out: Path) -> None:
    """All towers from random weights, every other modality aligned to the binding one by contrastive losses."""
    held, rows = bench.held_out(bench.test), []
    for name in ("text", *MODALITIES):
        space = bench.space()
        others = tuple(m for m in ALL if m != name)
        bench.bind(space, f"binding-{name}", BindingSettings(name, others, (name, *others)))
        rows.append({"binding": "species" if name == "text" else name, **_scores(held, held.embed_all(space))})
        write(
            out,
            "binding",
            rows,
            f"{_size_text(held, 'held-out places')}; {bench.recipe.optimiser.steps} steps each",
        )
    bars(out / "binding.png", rows, "binding", [k for k in rows[0] if k != "binding"], "mean AP; recall@10")


def species(bench: Bench, out: Path) -> None:
    """A fifth of the species without labels and without a vector of their own."""
    recipe = replace(bench.recipe, evaluation=replace(bench.recipe.evaluation, split="species"))
    _, without = split_training_set(recipe, bench.data)
    objective = make_objective(recipe, bench.data, np.arange(len(bench.data.places.start)), without)
    bench.fit(objective, "species", recipe.evaluation)
    found = assess_species(recipe, bench.data, objective, without, say)
    rows = []
    for rank, subsets in next(iter(found.values())).items():
        for key, r in subsets.items():
            if "+" not in key or key.count("+") == 2:
                scores = {"species": r["species"], "AP": r["ap"], "AUC": r["auc"]}
                rows.append({"known by": rank, "modalities": "all" if "+" in key else key, **scores})
    write(out, "species", rows, f"{int(without.sum()):,} of {without.size:,} species held out")
    full = [r | {"": f"{r['known by']}, {r['modalities']}"} for r in rows]
    bars(out / "species.png", full, "", ["AP", "AUC"], "species never trained on")


def _elsewhere(bench: Bench, out: Path, name: str, cases: Sequence[tuple[str, dict]]) -> None:
    """Each case held out in turn, against the random blocks of the same model's recipe."""
    rows = []
    for case, changes in cases:
        recipe = replace(bench.recipe, evaluation=replace(bench.recipe.evaluation, **changes))
        test, _ = split_training_set(recipe, bench.data)
        train = np.flatnonzero(~test)
        objective = make_objective(recipe, bench.data, train)
        bench.fit(objective, f"{name}-{case}", recipe.evaluation)
        seen = _count(bench.data, train) >= SEEN
        held = bench.held_out(test, seen)
        embeddings = _states(held, objective.encoders)
        row = {"held out": case, "share of places": float(test.mean()), "species": len(held.ranked_species)}
        for subset in (*[(m,) for m in MODALITIES], ("satellite", "environment"), MODALITIES):
            row["AP " + ("all" if len(subset) == 3 else " + ".join(subset))] = held.average_precision(
                embeddings, subset
            )
        row |= {"AUC all": held.auc(embeddings, MODALITIES), "AUC environment": held.auc(embeddings, ("environment",))}
        row["AP by chance"] = float(held.present[:, held.ranked_species].mean())
        rows.append(row)
        write(
            out,
            name,
            rows,
            f"species with at least {SEEN} places of training and {bench.recipe.evaluation.min_cells} held-out ones",
        )
    bars(out / f"{name}.png", rows, "held out", [k for k in rows[0] if k.startswith("AP")], "mean AP where held out")


def _count(data: TrainingSet, groups: np.ndarray) -> np.ndarray:
    """(S,) presences at one place of each group."""
    rows = data.places.start[groups]
    return sum((presence(data, rows[k : k + 1024]) >= 0.5).sum(0) for k in range(0, len(rows), 1024))


def continents(bench: Bench, out: Path) -> None:
    """Each continent held out in turn."""
    names = ("africa", "asia", "australia", "europe", "north-america", "south-america")
    cases = [("random blocks", {}), *((n, {"split": "continents", "continents": (n,)}) for n in names)]
    _elsewhere(bench, out, "continents", cases)


def climate(bench: Bench, out: Path) -> None:
    """The hottest, coldest, wettest and driest fifth of the land held out in turn."""
    cases = [
        ("random blocks", {}),
        *((n, {"split": "climate", "climate": (n,)}) for n in ("hot", "cold", "wet", "dry")),
    ]
    _elsewhere(bench, out, "climate", cases)


def write(out: Path, name: str, rows: Sequence[dict], note: str) -> None:
    """NAME.csv and NAME.md, and the table to the terminal."""
    names = list(dict.fromkeys(k for r in rows for k in r))
    shown = [[f"{r[n]:.4f}" if isinstance(r.get(n), float) else str(r.get(n, "")) for n in names] for r in rows]
    with (out / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([names, *shown])
    lines = ["| " + " | ".join(line) + " |" for line in (names, ["---"] * len(names), *shown)]
    (out / f"{name}.md").write_text("\n".join([*lines, "", note, ""]), encoding="utf-8")
    print("\n".join([*lines, note]), flush=True)


def bars(path: Path, rows: Sequence[dict], label: str, names: Sequence[str], title: str, span: bool = False) -> None:
    """Horizontal bars, one group a row; `span`: from just below the smallest rather than from 0."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 0.9 + 0.16 * len(rows) * (len(names) + 0.8)), layout="constrained")
    axes = figure.add_subplot()
    for k, name in enumerate(names):
        at = [i + 0.8 * (k + 0.5) / len(names) for i, r in enumerate(rows) if name in r]
        axes.barh(at, [r[name] for r in rows if name in r], height=0.8 / len(names), label=name)
    axes.set_yticks([i + 0.4 for i in range(len(rows))], [r[label] for r in rows], fontsize=8)
    axes.invert_yaxis()
    if span:
        values = [r[n] for r in rows for n in names if n in r]
        margin = 0.15 * (max(values) - min(values)) + 1e-3
        axes.set_xlim(min(values) - margin, max(values) + margin)
    axes.set_title(title, fontsize=9)
    axes.grid(axis="x", alpha=0.3)
    if len(names) > 1:
        axes.legend(fontsize=7)
    FigureCanvasAgg(figure).print_png(str(path))


STUDIES: dict[str, Callable[[Bench, Path], None]] = {
    f.__name__: f for f in (ablation, patching, temperature, binding, species, continents, climate)
}


def main() -> None:
    """Run the studies that are named, one after another."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", nargs="+", choices=list(STUDIES))
    parser.add_argument("--recipe", type=Path, default=Path("recipes/study.toml"))
    parser.add_argument("--taxa", type=Path, default=Path("models/mammals-trees"), help="folder with taxa.csv")
    parser.add_argument("--out", type=Path, default=Path("docs/method"), help="tables and plots")
    parser.add_argument("--runs", type=Path, default=Path("runs/studies"), help="checkpoints and curves")
    parser.add_argument("--steps", type=int, help="instead of the recipe's")
    given = parser.parse_args()
    recipe = Recipe.read(given.recipe)
    if given.steps:
        recipe = replace(recipe, optimiser=replace(recipe.optimiser, steps=given.steps))
    given.out.mkdir(parents=True, exist_ok=True)
    bench = Bench(recipe, given.taxa, given.runs)
    for name in given.study:
        started = time.time()
        STUDIES[name](bench, given.out)
        say(f"{name}: {time.time() - started:.0f} s with {torch.get_num_threads()} threads")


if __name__ == "__main__":
    main()
