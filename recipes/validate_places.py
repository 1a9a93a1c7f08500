"""Well-known places of well-known species: is the species there on the map?

    python recipes/validate_places.py [--places FILE] [--origin native|all]

`FILE`, by default `recipes/places.csv`, has the columns place, lon, lat (degrees), species, native and all: 1 where the
species lives, 0 where it does not, by its native range and with introduced populations. The list was written from
general knowledge of national parks and the like, before the maps were looked at, but for two rows that lay in a fjord
and on dry land; no model was trained on it. Printed are the places on the wrong side of one half, the share on the
right side, and the AUC over all rows.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd

from sdm.analysis.living import living_at
from sdm.models.registry import list_models
from sdm.training.measures.scores import auc

PLACES = Path(__file__).with_name("places.csv")


def main() -> None:
    """Print the places that are wrong, and the share that is right."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--places", type=Path, default=PLACES)
    parser.add_argument("--origin", choices=["native", "all"], default="native")
    args = parser.parse_args()
    table = pd.read_csv(args.places)
    found = []
    for (lon, lat), rows in table.groupby(["lon", "lat"]):
        there = {one.taxon.name: one.probability for one in living_at(lon, lat, 0.0, origin=args.origin).species}
        found.append(rows.species.map(there))
    table["probability"] = pd.concat(found)
    unknown = set(table.species) - {taxon.name for model in list_models() for taxon in model.taxa}
    if unknown:
        print("no model knows: " + ", ".join(sorted(unknown)))
        table = table[~table.species.isin(unknown)]
    table = table.fillna({"probability": 0.0})
    wrong = table[(table.probability >= 0.5) != (table[args.origin] == 1)]
    print(wrong[["place", "species", args.origin, "probability"]].round(3).to_string(index=False))
    share = 1 - len(wrong) / len(table)
    area = auc(table.probability.to_numpy(), table[args.origin].to_numpy() == 1)
    print(f"{len(table)} places, {share:.1%} right; AUC {area:.4f}")


if __name__ == "__main__":
    main()
