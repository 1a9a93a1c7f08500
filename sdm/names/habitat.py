"""Land or sea: which mask suits a taxon when the user leaves the choice to us.

The share of range cells at sea does not tell: on 96 km cells a fox of a small island looks marine
and a coastal porpoise half terrestrial. Families do.
"""

from __future__ import annotations

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
