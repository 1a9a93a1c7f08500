"""Land or sea: which mask suits a taxon when the user leaves the choice to us.

The share of range cells at sea does not tell: on 96 km cells a fox of a small island looks marine
and a coastal porpoise half terrestrial. Families do.
"""

from __future__ import annotations

from dataclasses import dataclass

from sdm.names import Taxon

SEA_FAMILIES = frozenset(
    [
        "Balaenidae",
        "Balaenopteridae",
        "Neobalaenidae",
        "Cetotheriidae",
        "Eschrichtiidae",
        "Delphinidae",
        "Monodontidae",
        "Phocoenidae",
        "Physeteridae",
        "Kogiidae",
        "Ziphiidae",
        "Dugongidae",
    ]
)
"""Never on land."""

BOTH_FAMILIES = frozenset(
    ["Phocidae", "Otariidae", "Odobenidae", "Trichechidae", "Iniidae", "Lipotidae", "Platanistidae", "Pontoporiidae"]
)
"""Seals haul out; manatees and river dolphins live in rivers, which a land mask counts as land."""

SEABIRD_FAMILIES = frozenset(
    [
        "Alcidae",
        "Diomedeidae",
        "Fregatidae",
        "Gaviidae",
        "Hydrobatidae",
        "Laridae",
        "Oceanitidae",
        "Pelecanidae",
        "Phaethontidae",
        "Phalacrocoracidae",
        "Procellariidae",
        "Spheniscidae",
        "Stercorariidae",
        "Sulidae",
    ]
)
"""They nest on land and feed at sea, or on lakes."""

SEABIRD_GENERA = frozenset(
    ["Clangula", "Histrionicus", "Melanitta", "Mergus", "Phalaropus", "Polysticta", "Somateria", "Tachyeres"]
)
"""Sea ducks and phalaropes, whose families are of land and fresh water."""

BOTH_SPECIES = frozenset(
    (
        "Ursus maritimus",
        "Enhydra lutris",
        "Lontra felina",
        "Sotalia fluviatilis",
        "Orcaella brevirostris",
        "Neophocaena phocaenoides",
        "Neophocaena asiaeorientalis",
        "Sousa teuszii",
    )
)
"""Species whose habitat differs from their family's."""

BOTH_GROUPS = frozenset(
    # Mammals, then birds.
    [
        "Mammalia",
        "Carnivora",
        "Cetartiodactyla",
        "Sirenia",
        "Enhydra",
        "Orcaella",
        "Sotalia",
        "Neophocaena",
        "Aves",
        "Anseriformes",
        "Anatidae",
        "Charadriiformes",
        "Scolopacidae",
        "Gaviiformes",
        "Pelecaniformes",
        "Phaethontiformes",
        "Procellariiformes",
        "Sphenisciformes",
        "Suliformes",
    ]
)
"""Groups above the species with members on either side of the shore: seals, whales, manatees, sea otter, seabirds."""


def seabird(family: str, genus: str) -> bool:
    """Whether birds of this family and genus live at sea too."""
    return family in SEABIRD_FAMILIES or genus in SEABIRD_GENERA


def mask_for(taxon: Taxon) -> str:
    """ "land", "sea" or "none" (no mask) for a taxon of any rank."""
    if taxon.name in BOTH_SPECIES or taxon.name in BOTH_GROUPS or taxon.family in BOTH_FAMILIES:
        return "none"
    if seabird(taxon.family, taxon.genus):
        return "none"
    if taxon.family in SEA_FAMILIES:
        return "sea"
    return "land"


@dataclass(frozen=True)
class Shore:
    """How far from some waters animals are found on land."""

    waters: tuple[str, ...]
    """Any of "sea", "large lakes", "fresh water": the nearest counts."""
    near: float
    """Kilometres up to which nothing is changed."""
    far: float
    """Kilometres from which on there are none."""


_BEACH = Shore(("sea",), 10.0, 40.0)
_SEAL = Shore(("sea", "large lakes"), 10.0, 40.0)
_RIVER = Shore(("sea", "fresh water"), 10.0, 30.0)
_ISLAND_BIRD = Shore(("sea",), 25.0, 75.0)
_INLAND_NEST = Shore(("sea",), 75.0, 150.0)

SHORES = {
    # Rookeries and haul-outs; seals live in the Caspian, Baikal, Ladoga and Saimaa too.
    "Otariidae": _BEACH,
    "Odobenidae": _BEACH,
    "Phocidae": _SEAL,
    "Spheniscidae": _BEACH,
    # Rivers, their flooded banks and lagoons.
    "Trichechidae": _RIVER,
    "Iniidae": _RIVER,
    "Lipotidae": _RIVER,
    "Platanistidae": _RIVER,
    "Pontoporiidae": _RIVER,
    # Colonies, most of them in sight of the sea.
    "Diomedeidae": _BEACH,
    "Fregatidae": _ISLAND_BIRD,
    "Phaethontidae": _ISLAND_BIRD,
    "Sulidae": _ISLAND_BIRD,
    # Murrelets nest in forests, storm petrels in deserts, petrels on mountains: up to a hundred kilometres inland.
    "Alcidae": _INLAND_NEST,
    "Hydrobatidae": _INLAND_NEST,
    "Oceanitidae": _INLAND_NEST,
    "Procellariidae": _INLAND_NEST,
}
"""By family. Gulls, terns, skuas, divers, cormorants and pelicans live inland too, and are not limited."""

SHORES_OF_SPECIES = {
    "Ursus maritimus": Shore(("sea",), 50.0, 150.0),  # dens on the Hudson Bay lie up to a hundred kilometres inland
    "Enhydra lutris": _BEACH,
    "Lontra felina": _BEACH,
    "Sotalia fluviatilis": _RIVER,
    "Orcaella brevirostris": _RIVER,
    "Neophocaena phocaenoides": _RIVER,
    "Neophocaena asiaeorientalis": _RIVER,
    "Sousa teuszii": _RIVER,
}
"""Species whose habitat differs from their family's."""


def shore_for(taxon: Taxon) -> Shore | None:
    """How far from water a taxon lives, where that is known of its family or of itself."""
    return SHORES_OF_SPECIES.get(taxon.name) or SHORES.get(taxon.family)
