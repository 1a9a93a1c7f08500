"""What the limits of species cost: records of animals at places whose probability the limits lower.

    python recipes/validate_limits.py --inat FOLDER

`FOLDER` as for `recipes/validate_records.py`. Printed are, for each kind of limit, the records of limited species,
how many of them lie at 0.5 or more without and with the limit, and the same of random land within 500 km of the
records. The records do not tell the season: for birds that leave for the winter it is random land in July, for every
second of them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from validate_records import RADIUS_KM, near

from sdm.engine.limits import AwayToBreed, Limit, Pixels, limits_of
from sdm.engine.points import score_places
from sdm.layers.landmask import land_sample
from sdm.models.bundled import BundledModel
from sdm.models.registry import list_models
from sdm.request import Sampling

PLACES, PIXEL = 20_000, 0.05
SUMMER = 7


def shares(p: np.ndarray, limit: Limit, lon: np.ndarray, lat: np.ndarray) -> tuple[int, int, int]:
    """Places, those at one half or more, and those of them that remain so with a limit."""
    values = p.copy()
    Pixels(lon, lat, np.asarray(PIXEL)).apply([limit], values)
    return p.size, int((p >= 0.5).sum()), int((values >= 0.5).sum())


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--inat", required=True, type=Path)
    args = parser.parse_args()
    with np.load(args.inat / "occurrences.npz") as data:
        names = dict(zip(data["taxon_ids"].tolist(), data["taxon_names"].tolist(), strict=True))
        name = np.array([names[number] for number in data["taxon_id"].tolist()])
        lat, lon = data["lat_lon"].T.astype(np.float64)
    x, y = land_sample(PLACES)
    for model in list_models():
        found: dict[tuple[type, str], np.ndarray] = {}
        for species in np.unique(name):
            if species not in {t.name for t in model.taxa}:
                continue
            limits = limits_of(model, model.resolve(str(species)), 0)
            if not limits:
                continue
            here = name == species
            around = near(x, y, lon[here], lat[here], RADIUS_KM)
            for what, a, b in (("records", lon[here], lat[here]), ("land around them", x[around], y[around])):
                p = score_places(model, [str(species)], a, b)[:, 0]
                for limit in limits:
                    key = type(limit), what
                    found[key] = found.get(key, np.zeros(4, int)) + np.array(
                        [what == "records", *shares(p, limit, a, b)]
                    )
        for (kind, what), (_, count, before, after) in found.items():
            print(f"{model.name}, {kind.__name__}, {what}: {count} places; at 0.5 or more {before}, limited {after}")
        if model.seasonal:
            seasons(model, x[::4], y[::4])


def seasons(model: BundledModel, x: np.ndarray, y: np.ndarray) -> None:
    """Print how much of the land far beyond the breeding latitudes is mapped in summer."""
    taxa = [t.name for t in model.taxa]
    asked = {n: limits_of(model, model.resolve(n), SUMMER) for n in taxa}
    limits = {n: [one for one in found if isinstance(one, AwayToBreed)] for n, found in asked.items()}
    chosen = [n for n in taxa if limits[n]][::2]
    p = score_places(model, chosen, x, y, Sampling(month=SUMMER))
    total = np.zeros(3, int)
    birds = 0
    for k, n in enumerate(chosen):
        counts = np.array(shares(p[:, k], limits[n][0], x, y))
        birds += bool(counts[1] > counts[2])
        total += counts
    print(
        f"{model.name}, AwayToBreed, July: {len(chosen)} birds; places at 0.5 or more {total[1]}, limited {total[2]}; "
        f"{birds} birds change"
    )


if __name__ == "__main__":
    main()
