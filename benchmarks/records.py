"""Fits to records against elapid's Maxent at its defaults, on the same places: the targets of the records feature.

    python benchmarks/records.py DATASETS [--species 12] [--only known unknown own worse prior calibration speed ...]

DATASETS is a folder with inat_validation/, eu_forest/ and little_trees/. Needs `pip install -e .[bench]`. Every line
is a mean over species, with the mean paired difference to elapid and its standard error. Features of places are kept
in --cache, and so are elapid's scores, which take most of the time.

Contrasts: presences in held-out spatial blocks against random land within 1,000 km of the records ("land") or records
of the same biological group ("group"); for own covariates, surveyed plots with and without the species, after
presence-only records were drawn from half of the plots with a planted sampling bias.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import os
import pickle
import subprocess
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import shapely

from sdm.layers.landmask import land_sample
from sdm.models.registry import open_model
from sdm.records import prior
from sdm.records.background import Positions, cell_numbers, near
from sdm.records.features import Covariates, Features, ModelFeatures
from sdm.records.fit import fit_training
from sdm.records.fitparts import FitInfo
from sdm.records.measures import auc, calibration
from sdm.records.prior import species_prior
from sdm.records.training import Training
from sdm.request.records import FitOptions

warnings.filterwarnings("ignore")
SIZES = {"3": 3, "10": 10, "30": 30, "all": 1000}
BACKGROUND = 4000
DEER = "Odocoileus hemionus"
"""A known species with some thousand records, for whole commands."""


@dataclass(frozen=True)
class Places:
    """Positions with their features."""

    at: Positions
    features: Features

    def __len__(self) -> int:
        return len(self.at)

    def select(self, rows: np.ndarray) -> Places:
        return Places(self.at.select(rows), self.features.select(rows))


@dataclass(frozen=True)
class Task:
    """One species: places to learn from, and contrasts to be tested in (presences, others)."""

    name: str
    model: str
    train: Places
    random: Places
    group: Places
    tests: dict[str, tuple[Places, Places]]
    prevalence: float | None = None


class Bench:
    def __init__(self, arguments: argparse.Namespace) -> None:
        self.data, self.cache = Path(arguments.datasets), Path(arguments.cache)
        self.cache.mkdir(parents=True, exist_ok=True)
        self.count, self.seed, self.repeat = arguments.species, arguments.seed, arguments.repeat
        self.excluded = set(Path(arguments.exclude).read_text().split("\n")) if arguments.exclude else set()
        self.sources = {name: ModelFeatures(open_model(name)) for name in ("mammals-trees", "birds")}
        self.elapid_file = self.cache / "elapid.pickle"
        self.elapid_scores = pickle.loads(self.elapid_file.read_bytes()) if self.elapid_file.exists() else {}

    def places(self, model: str, lon: np.ndarray, lat: np.ndarray) -> Places:
        at = Positions(np.asarray(lon, float), np.asarray(lat, float))
        key = hashlib.sha256(at.lon.tobytes() + at.lat.tobytes() + self.sources[model].model.digest.encode())
        path = self.cache / f"{key.hexdigest()[:16]}.npz"
        if not path.exists():
            f = self.sources[model].read(at.lon, at.lat)
            np.savez(path, e=f.embedding.astype(np.float16), v=f.environment, k=f.known)
        with np.load(path) as f:
            return Places(at, Features(f["e"].astype(np.float32), f["v"], f["k"]))

    def choose(self, names: list[str], count: int) -> list[str]:
        order = sorted(set(names) - self.excluded, key=lambda n: hashlib.sha256(f"{self.seed} {n}".encode()).digest())
        return order[:count]

    def elapid(self, key: tuple, train: np.ndarray, background: np.ndarray, tests: list[np.ndarray]):
        if key not in self.elapid_scores:
            import elapid

            x = np.concatenate([train, background]).astype(float)
            varied = x.std(axis=0) > 1e-9
            model = elapid.MaxentModel()
            model.fit(x[:, varied], np.repeat([1, 0], [len(train), len(background)]))
            scores = [np.asarray(model.predict(t[:, varied].astype(float)), np.float32).ravel() for t in tests]
            self.elapid_scores[key] = scores
            self.elapid_file.write_bytes(pickle.dumps(self.elapid_scores))
        return self.elapid_scores[key]


# Test beds


def vertebrates(bench: Bench, kinds: tuple[str, ...]) -> list[Task]:
    """iNaturalist points in spatial blocks; `kinds`: of mammal, bird (known to a model) and other."""
    frame = inaturalist(bench)
    lon, lat = (frame[name].to_numpy() for name in ("decimalLongitude", "decimalLatitude"))
    species = frame["species"].to_numpy(str)
    names = frame["species"].cat.categories.tolist()
    known = {m: {t.name for t in s.model.taxa} for m, s in bench.sources.items()}
    kind = {n: "mammal" if n in known["mammals-trees"] else "bird" if n in known["birds"] else "other" for n in names}
    rng = np.random.default_rng(1)
    rows = []
    for name in names:
        own = np.flatnonzero(species == name)
        cells = cell_numbers(Positions(lon[own], lat[own]), 0.1)
        rows.append(rng.permutation(own[np.unique(cells, return_index=True)[1]])[:900])
    rows = np.concatenate(rows)
    lon, lat, species = lon[rows], lat[rows], species[rows]
    group = np.array([kind[n] for n in species])
    land = land_sample(80_000, seed=5)
    tasks = []
    for k in kinds:
        model = "birds" if k == "bird" else "mammals-trees"
        same = group == k
        pool, all_records = bench.places(model, *land), bench.places(model, lon[same], lat[same])
        for name in bench.choose(sorted({n for n, x in kind.items() if x == k}), bench.count):
            task = blocks_task(name, model, pool, all_records, species[same] == name)
            tasks += [task] if task else []
    return tasks


def blocks_task(name: str, model: str, pool: Places, records: Places, own: np.ndarray) -> Task | None:
    """Hold out 40 % of the blocks that a species occupies, in the largest size of which it occupies 15."""
    rng = np.random.default_rng(int(hashlib.sha256(name.encode()).hexdigest()[:8], 16))
    mine = records.select(own)
    for size in (5.0, 2.5, 1.0, 0.5, 0.25):
        block = cell_numbers(mine.at, size)
        if np.unique(block).size >= 15:
            break
    held = rng.permutation(np.unique(block))[: max(1, round(0.4 * np.unique(block).size))]
    test = np.isin(block, held)
    around = rng.permutation(np.flatnonzero(near(pool.at, mine.at, 1000.0)))
    half = around.size // 2
    others = records.select(~own)
    others = others.select(near(others.at, mine.at, 1000.0))
    cells = cell_numbers(others.at, 0.1)
    others = others.select(np.unique(cells, return_index=True)[1])
    others = others.select(~np.isin(cell_numbers(others.at, 0.1), cell_numbers(mine.at, 0.1)))
    out = np.isin(cell_numbers(others.at, size), held)
    if (~test).sum() < 30 or test.sum() < 5 or half < 200 or out.sum() < 30 or (~out).sum() < 50:
        return None
    train = mine.select(rng.permutation(np.flatnonzero(~test)))
    random, test_land = pool.select(around[:half][:BACKGROUND]), pool.select(around[half:][:BACKGROUND])
    group = others.select(rng.permutation(np.flatnonzero(~out))[:BACKGROUND])
    test_group = others.select(rng.permutation(np.flatnonzero(out))[:BACKGROUND])
    presences = mine.select(test)
    return Task(name, model, train, random, group, {"land": (presences, test_land), "group": (presences, test_group)})


@dataclass(frozen=True)
class Survey:
    """Places that were surveyed, land to compare with, and which species (N, S) are where."""

    name: str
    places: Places
    land: Places
    present: np.ndarray
    species: list[str]


def european_trees(bench: Bench) -> Survey:
    """Plots on a grid of 0.1 degree: a species that was not seen in a cell with other trees is absent."""
    frame = pd.read_parquet(bench.data / "eu_forest" / "eu_forest_26countries.parquet")
    at = Positions(frame["lon"].to_numpy(float), frame["lat"].to_numpy(float))
    _, first, inverse = np.unique(cell_numbers(at, 0.1), return_index=True, return_inverse=True)
    counts = frame["species"].value_counts()
    species = sorted(counts[counts >= 300].index)
    present = np.zeros((first.size, len(species)), bool)
    for k, name in enumerate(species):
        present[inverse[(frame["species"] == name).to_numpy()], k] = True
    surveyed = bench.places("mammals-trees", at.lon[first], at.lat[first])
    land = Positions(*land_sample(400_000, seed=9))
    land = land.select(near(land, surveyed.at, 30.0))
    return Survey("European trees", surveyed, bench.places("mammals-trees", land.lon, land.lat), present, species)


def american_trees(bench: Bench) -> Survey:
    """Random places inside and outside of range polygons."""
    import geopandas

    ranges = geopandas.read_parquet(bench.data / "little_trees" / "little_us_trees.parquet")
    lon, lat = land_sample(400_000, seed=11)
    inside = (lon > -130) & (lon < -60) & (lat > 25) & (lat < 60)
    places = bench.places("mammals-trees", lon[inside][:16_000], lat[inside][:16_000])
    rows = np.arange(len(places))
    surveyed, land = places.select(rows < 10_000), places.select(rows >= 10_000)
    points = shapely.points(surveyed.at.lon, surveyed.at.lat)
    present, species = [], []
    for name in bench.choose(sorted(set(ranges["species"])), 4 * bench.count):
        shape = shapely.make_valid(shapely.union_all(ranges.geometry[ranges["species"] == name].to_numpy()))
        shapely.prepare(shape)
        if (here := shapely.contains(shape, points)).sum() >= 300:
            present.append(here)
            species.append(name)
    return Survey("American tree ranges", surveyed, land, np.array(present).T, species)


def survey_tasks(bench: Bench) -> list[tuple[str, Task]]:
    """Presence-only records from half of the plots, thinned out by a bias that differs between 3-degree blocks."""
    tasks = []
    for survey in (european_trees(bench), american_trees(bench)):
        surveyed, land, present = survey.places, survey.land, survey.present
        for name in bench.choose(survey.species, bench.count):
            column = survey.species.index(name)
            rng = np.random.default_rng(int(hashlib.sha256(name.encode()).hexdigest()[:8], 16))
            learning = rng.random(len(surveyed)) < 0.5
            _, block = np.unique(cell_numbers(surveyed.at, 3.0), return_inverse=True)
            effort = np.exp(rng.normal(0.0, 1.5, block.max() + 1))[block]
            visited = learning & (rng.random(len(surveyed)) < np.minimum(1.0, 3.0 * effort / effort.max()))
            seen = rng.permutation(np.flatnonzero(visited & present[:, column]))[:400]
            others = rng.permutation(np.flatnonzero(visited & present.any(axis=1) & ~present[:, column]))
            if seen.size < 12 or others.size < 50:
                continue
            tested = surveyed.select(present[:, column] & ~learning), surveyed.select(~present[:, column] & ~learning)
            random = land.select(rng.permutation(len(land))[:BACKGROUND])
            group = surveyed.select(others[:BACKGROUND])
            tasks.append(
                (survey.name, Task(name, "mammals-trees", surveyed.select(seen), random, group, {"plots": tested}))
            )
    return tasks


# Methods


def training_of(task: Task, size: int, kind: str, columns: slice | None = None) -> Training:
    parts = [task.train.select(np.arange(min(size, len(task.train))))]
    parts += [task.random] if kind in ("random", "mixed") else []
    parts += [task.group] if kind in ("group", "mixed") else []
    origin = np.concatenate([np.full(len(p), k) for k, p in enumerate(parts)])
    embedding = np.concatenate([p.features.embedding for p in parts])
    environment = np.concatenate([p.features.environment for p in parts])
    if columns is not None:
        embedding, environment = embedding[:, :0], environment[:, columns]
    group = origin == (2 if kind == "mixed" else 1 if kind == "group" else 9)
    return Training(
        Features(embedding, environment, np.ones(len(origin), bool)),
        origin == 0,
        (origin == 1) & (kind != "group"),
        group,
        np.concatenate([p.at.lon for p in parts]),
        np.concatenate([p.at.lat for p in parts]),
    )


OWN = slice(0, 21)
"""Bioclim, elevation and relief among the inputs of a model's environment: elapid's covariates everywhere."""


def fit_task(bench: Bench, task: Task, size: int, kind: str, *, own: bool = False, unknown: bool = False, **options):
    source = bench.sources[task.model]
    training = training_of(task, size, kind, OWN if own else None)
    settings = FitOptions(**options)
    info = FitInfo(species=task.name, features="covariates" if own else "model")
    if own:
        names = tuple(f"covariate {k}" for k in range(21))
        return fit_training(training, Covariates(names, names, (False,) * 21), None, settings, info=info)
    resolution = None if unknown else source.model.resolve(task.name)
    prior = species_prior(source.model, source.modalities, resolution)
    # Novelty plays no part here: the environment embedding is left out.
    space = np.ones((len(training.presence), 1), np.float32)
    return fit_training(training, source.covariates, prior, settings, info=info, space=space)


def tested(fitted, task: Task, own: bool = False) -> dict[str, float]:
    out = {}
    for name, pair in task.tests.items():
        scores = []
        for places in pair:
            e, v = places.features.embedding, places.features.environment
            scores.append(fitted.logit(e[:, :0] if own else e, v[:, OWN] if own else v))
        out[name] = auc(*scores)
    return out


def elapid_tested(bench: Bench, task: Task, size: int) -> dict[str, float]:
    tests = [p.features.environment[:, OWN] for pair in task.tests.values() for p in pair]
    train = task.train.select(np.arange(min(size, len(task.train)))).features.environment[:, OWN]
    scores = bench.elapid(
        (task.name, size, "random", len(task.random)), train, task.random.features.environment[:, OWN], tests
    )
    return {name: auc(scores[2 * k], scores[2 * k + 1]) for k, name in enumerate(task.tests)}


def zero_shot_tested(bench: Bench, task: Task) -> dict[str, float]:
    model = bench.sources[task.model].model
    vector = model.species_embedding(model.resolve(task.name))
    return {n: auc(*(p.features.embedding @ vector for p in pair)) for n, pair in task.tests.items()}


def line(label: str, values: list[float], base: list[float], target: float | None = None) -> None:
    gain = np.array(values) - np.array(base)
    error = gain.std(ddof=1) / np.sqrt(gain.size) if gain.size > 1 else float("nan")
    goal = "" if target is None else f"   target {target:+.3f}"
    print(f"  {label:52s} {np.mean(values):.3f}  {gain.mean():+.3f} ± {error:.3f}  n={gain.size}{goal}", flush=True)


def run_blocks(bench: Bench, kinds: tuple[str, ...], title: str, targets: dict[str, float], unknown: bool) -> None:
    print(f"{title}, spatial blocks: AUC, gain over elapid")
    tasks = vertebrates(bench, kinds)
    for label, size in SIZES.items():
        usable = [t for t in tasks if label != "all" or len(t.train) >= 60]
        base = [elapid_tested(bench, t, size) for t in usable]
        for kind in ("random", "mixed"):
            ours = [tested(fit_task(bench, t, size, kind, unknown=unknown, refits=0), t) for t in usable]
            for contrast in ("land", "group"):
                goal = targets[label] if (kind, contrast) == ("random", "land") else None
                name = f"{label} records, {kind} background, against {contrast}"
                line(name, [o[contrast] for o in ours], [b[contrast] for b in base], goal)


def run_worse(bench: Bench) -> None:
    print("Known vertebrates: share made worse than zero-shot by more than 0.01 AUC (target 0.05)")
    tasks = vertebrates(bench, ("mammal", "bird"))
    zero = [zero_shot_tested(bench, t) for t in tasks]
    for size, kind, gate in itertools.product((10, 30), ("random", "mixed"), (True, False)):
        fits = [fit_task(bench, t, size, kind, refits=0, gate=gate) for t in tasks]
        ours = [tested(f, t) for f, t in zip(fits, tasks, strict=True)]
        worse = {c: np.array([o[c] < z[c] - 0.01 for o, z in zip(ours, zero, strict=True)]) for c in ("land", "group")}
        gain = {c: np.mean([o[c] - z[c] for o, z in zip(ours, zero, strict=True)]) for c in worse}
        kept = np.mean([f.info.zero_shot for f in fits])
        print(
            f"  {size} records, {kind} background, gate {'on ' if gate else 'off'}: land {worse['land'].mean():.3f}, "
            f"group {worse['group'].mean():.3f}, either {(worse['land'] | worse['group']).mean():.3f}; mean gain "
            f"{gain['land']:+.3f}, {gain['group']:+.3f}; zero-shot kept {kept:.2f}; n={len(tasks)}",
            flush=True,
        )


def run_prior(bench: Bench) -> None:
    print("Known vertebrates: AUC by the share of the species' own vector in the mean of the prior; far: against land")
    print("1,000 to 5,000 km from the records")
    pool = {name: bench.places(name, *land_sample(80_000, seed=5)) for name in bench.sources}
    tasks = []
    for task in vertebrates(bench, ("mammal", "bird")):
        around = pool[task.model]
        far = np.flatnonzero(near(around.at, task.train.at, 5000.0) & ~near(around.at, task.train.at, 1000.0))
        if far.size >= 300:
            chosen = np.random.default_rng(0).permutation(far)[:BACKGROUND]
            tasks.append(replace(task, tests=task.tests | {"far": (task.tests["land"][0], around.select(chosen))}))
    usual = prior.OWN
    for label, kind in itertools.product(SIZES, ("random", "mixed")):
        for share in (0.0, 0.5, 0.75, 1.0):
            prior.OWN = share
            found = [tested(fit_task(bench, t, SIZES[label], kind, refits=0, gate=False), t) for t in tasks]
            means = "  ".join(f"{c} {np.mean([one[c] for one in found]):.3f}" for c in ("land", "group", "far"))
            print(f"  {label} records, {kind} background, share {share:.2f}: {means}  n={len(found)}", flush=True)
    prior.OWN = usual


def run_own(bench: Bench) -> None:
    print("Own covariates, presence-only, tested on surveyed plots: AUC, gain over elapid (random background)")
    tasks = survey_tasks(bench)
    targets = {"random": {"10": 0.05, "30": 0.015, "all": 0.03}, "mixed": {"10": 0.06, "30": 0.03, "all": 0.06}}
    for label in ("10", "30", "all"):
        size = SIZES[label]
        usable = [(b, t) for b, t in tasks if len(t.train) >= {"10": 10, "30": 30, "all": 100}[label]]
        base = [elapid_tested(bench, t, size)["plots"] for _, t in usable]
        for kind in ("random", "mixed", "group"):
            ours = [tested(fit_task(bench, t, size, kind, own=True, refits=0), t, own=True)["plots"] for _, t in usable]
            line(f"{label} records, {kind} background", ours, base, targets.get(kind, {}).get(label))
            for bed in dict.fromkeys(b for b, _ in usable):
                of = [k for k, (b, _) in enumerate(usable) if b == bed]
                line(f"    {bed}", [ours[k] for k in of], [base[k] for k in of])


def run_calibration(bench: Bench) -> None:
    print("Calibration, European trees as unknown, 100 records, held-out blocks with true absences: ECE (target 0.03)")
    survey = european_trees(bench)
    surveyed, land, present, species = survey.places, survey.land, survey.present, survey.species
    errors: dict[str, list[float]] = {"known prevalence": [], "without": [], "constant": []}
    for name in bench.choose(species, 2 * bench.count):
        column = species.index(name)
        rng = np.random.default_rng(int(hashlib.sha256(name.encode()).hexdigest()[:8], 16))
        block = cell_numbers(surveyed.at, 2.5)
        held = np.isin(block, rng.permutation(np.unique(block))[: int(0.4 * np.unique(block).size)])
        seen = rng.permutation(np.flatnonzero(~held & present[:, column]))[:100]
        test = surveyed.select(held)
        truth = present[held, column]
        if seen.size < 30 or truth.sum() < 10:
            continue
        random = land.select(rng.permutation(len(land))[:BACKGROUND])
        task = Task(name, "mammals-trees", surveyed.select(seen), random, random.select(np.arange(0)), {})
        fitted = fit_task(bench, task, 100, "random", unknown=True, refits=0)
        places = test.features.embedding, test.features.environment
        errors["without"].append(calibration(fitted.values(*places), truth).error)
        prevalence = float(truth.mean())
        known = fitted.with_prevalence(prevalence, *places, "given")
        errors["known prevalence"].append(calibration(known.values(*places), truth).error)
        errors["constant"].append(calibration(np.full(truth.size, prevalence), truth).error)
    for name, values in errors.items():
        print(
            f"  {name:20s} {np.mean(values):.3f} ± {np.std(values, ddof=1) / len(values) ** 0.5:.3f}  n={len(values)}"
        )


def run_speed(bench: Bench) -> None:
    print("CPU seconds of a fit with everything but the features: 1,000 records, 10,000 random places (target 1.0)")
    rng = np.random.default_rng(0)
    lon, lat = land_sample(200_000, seed=3)
    inside = (lon > -125) & (lon < -75) & (lat > 28) & (lat < 55)
    pool = bench.places("mammals-trees", lon[inside][:11_000], lat[inside][:11_000])
    order = np.argsort(pool.features.environment[:, 0] + rng.normal(0, 0.3, len(pool)))
    train = pool.select(rng.permutation(order[4000:8000])[:1000])
    random = pool.select(np.setdiff1d(np.arange(len(pool)), order[4000:5000]))
    task = Task("Vulpes vulpes", "mammals-trees", train, random, random.select(np.arange(0)), {})
    cases = {"known": {}, "unknown": {"unknown": True}, "own covariates": {"own": True}}
    for name, case in cases.items():
        times = []
        for _ in range(3):
            start = time.process_time()
            fit_task(bench, task, 1000, "random", **case)
            times.append(time.process_time() - start)
        print(f"  {name:20s} {np.median(times):.2f} s")


def run_command(bench: Bench) -> None:
    print("The whole command, one megapixel: seconds of processor time (of the clock), the fastest of --repeat rounds")
    frame = inaturalist(bench)
    with tempfile.TemporaryDirectory() as scratch:
        deer = Path(scratch) / "deer.csv"
        frame[frame["species"] == DEER].to_csv(deer, index=False)
        cases = {
            "a name": (),
            "records, --no-evaluate": ("--records", str(deer), "--no-evaluate"),
            "records with review (target: a name + 2)": ("--records", str(deer)),
        }
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in cases}
        for _ in range(bench.repeat):
            for name, options in cases.items():
                box = ("--bbox", "-125", "31", "-102", "49")
                out = ("--out", str(Path(scratch) / "maps"), "--overwrite", "--quiet")
                times[name].append(timed([sys.executable, "-m", "sdm", DEER, *options, *box, *out]))
    for name, found in times.items():
        processor, clock = min(found)
        print(f"  {name:45s} {processor:6.1f} ({clock:.1f})", flush=True)


def timed(command: list[str]) -> tuple[float, float]:
    """Processor time and clock time, in seconds, of a command and the processes that it starts."""
    before, start = os.times(), time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    clock, after = time.perf_counter() - start, os.times()
    return sum(after[2:4]) - sum(before[2:4]), clock


def inaturalist(bench: Bench) -> pd.DataFrame:
    """The records of all vertebrates, in columns of Darwin Core."""
    with np.load(bench.data / "inat_validation" / "occurrences.npz") as f:
        lat, lon = f["lat_lon"].astype(float).T
        names = dict(zip(f["taxon_ids"].tolist(), f["taxon_names"].tolist(), strict=True))
        species = pd.Categorical([names[t] for t in f["taxon_id"].tolist()], f["taxon_names"].tolist())
    return pd.DataFrame({"species": species, "decimalLatitude": lat, "decimalLongitude": lon})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("datasets")
    parser.add_argument("--species", type=int, default=12, help="of each kind")
    parser.add_argument("--seed", type=int, default=0, help="which species")
    parser.add_argument("--exclude", help="a file with species to leave out, one a line")
    parser.add_argument("--repeat", type=int, default=2, help="of whole commands")
    parser.add_argument("--cache", default=".cache-bench-records")
    jobs = ["own", "known", "unknown", "worse", "prior", "calibration", "speed", "command"]
    parser.add_argument("--only", nargs="+", choices=jobs, default=jobs)
    bench = Bench(arguments := parser.parse_args())
    known = {"all": 0.05, "30": 0.05, "10": 0.065, "3": 0.075}
    unknown = {"all": 0.03, "30": 0.03, "10": 0.065, "3": 0.08}
    runs = {
        "own": lambda: run_own(bench),
        "known": lambda: run_blocks(bench, ("mammal", "bird"), "Known vertebrates", known, False),
        "unknown": lambda: run_blocks(bench, ("other",), "Unknown vertebrates", unknown, True),
        "worse": lambda: run_worse(bench),
        "prior": lambda: run_prior(bench),
        "calibration": lambda: run_calibration(bench),
        "speed": lambda: run_speed(bench),
        "command": lambda: run_command(bench),
    }
    for job in arguments.only:
        runs[job]()


if __name__ == "__main__":
    main()
