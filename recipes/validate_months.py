"""Whether birds are where and when they are well known to be: months of migrants and residents at places.

    python recipes/validate_months.py

`recipes/birds_months.csv` has a row for each bird and place with the months in which the bird is there, a half of
probability or more is expected, or is not, less is. Set by hand, from common knowledge of these birds, not from a
data set. The settings of `recipes/seasons.py` were chosen by the part `tuned`, every second bird; the other birds are
the part `kept`, which was looked at too. The part `stays` was written afterwards: residents, breeders in their season,
and populations that stay where others leave. Printed are the shares that are right without and with the limits of
seasons (`seasons.csv` of the model), of each part, and each that is wrong.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np

from sdm.engine.limits import Pixels, limits_of
from sdm.engine.points import score_places
from sdm.models.bundled import BundledModel
from sdm.request import Sampling

TABLE = Path(__file__).with_name("birds_months.csv")
PIXEL = 0.05


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="birds")
    parser.add_argument("--table", default=TABLE, type=Path)
    args = parser.parse_args()
    model = BundledModel.open(args.model)
    with args.table.open(encoding="utf-8", newline="") as file:
        rows = [(row, int(month)) for row in csv.DictReader(file) for month in row["months"].split()]
    values = np.array([value(model, row, month) for row, month in rows])
    present = np.array([row["present"] == "1" for row, _ in rows])
    right = (values >= 0.5) == present[:, None]
    part = np.array([row["part"] for row, _ in rows])
    for name in dict.fromkeys(part):
        print(f"{name}: {(part == name).sum()} of them; right without limits ", end="")
        print("{:.1%}, with limits {:.1%}".format(*right[part == name].mean(axis=0)))
    print(f"{len(rows)} places and months of {len({row['species'] for row, _ in rows})} birds")
    for k, what in enumerate(("without limits", "with limits")):
        there, away = right[present, k], right[~present, k]
        print(
            f"{what}: {right[:, k].mean():.1%} right; of {there.size} present {there.mean():.1%}, "
            f"of {away.size} absent {away.mean():.1%}"
        )
    for (row, month), (alone, limited) in ((rows[k], values[k]) for k in np.flatnonzero(~right[:, 1])):
        said = "present" if row["present"] == "1" else "absent"
        print(f"{row['species']}, {row['place']}, month {month}, {said}: {limited:.2f} ({alone:.2f} without limits)")


def value(model: BundledModel, row: dict[str, str], month: int) -> tuple[float, float]:
    """Probability of a bird at a place in a month, without and with the limits of maps."""
    name, lon, lat = row["species"], np.array([float(row["lon"])]), np.array([float(row["lat"])])
    alone = score_places(model, [name], lon, lat, Sampling(month=month))[:, 0].astype(np.float32)
    limited = alone.copy()
    Pixels(lon, lat, np.asarray(PIXEL)).apply(limits_of(model, model.resolve(name), month), limited)
    return float(alone[0]), float(limited[0])


if __name__ == "__main__":
    main()
