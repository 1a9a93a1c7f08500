"""Domestic forms: they live where people keep or released them, so that no map of the wild species is theirs.

Scientific names of mammals, and the wild species each form comes from: Gentry, Clutton-Brock & Groves 2004, "The naming
of wild animal species and their domestic derivatives", Journal of Archaeological Science 31, 645-651. ICZN Opinion 2027
(2003, Bulletin of Zoological Nomenclature 60, 81-84) conserved the names of fifteen of these wild mammals (gaur, yak,
aurochs, water buffalo, Bactrian camel, wolf, bezoar goat, cavy, ass, horse, wildcat, guanaco, vicugna, polecat and
mouflon), so that wild and domestic form may have different names. It says nothing of boar, rabbit and dromedary. Birds,
mules, Bali cattle and later combinations: names in common use. Dingoes are listed with the dogs they descend from.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass
from itertools import product

from sdm.errors import SpeciesNameError, quoted
from sdm.names.text import common_key, common_keys, fold


@dataclass(frozen=True)
class DomesticForm:
    """A domestic animal; `wild`: the species it comes from, "" where that is extinct in the wild."""

    name: str
    wild: str
    scientific: tuple[str, ...]
    common: tuple[str, ...] = ()


class DomesticNameError(SpeciesNameError):
    """The name is that of a domestic form."""


def _form(name: str, wild: str, scientific: str, common: str = "") -> DomesticForm:
    """`scientific` and `common`: names joined by '|'."""
    return DomesticForm(name, wild, tuple(scientific.split("|")), tuple(common.split("|")) if common else ())


FORMS = (
    _form(
        "dog",
        "Canis lupus",
        "Canis familiaris|Canis lupus familiaris|Canis dingo|Canis lupus dingo|Canis familiaris dingo",
        "dog|domestic dog|feral dog|stray dog|dingo",
    ),
    _form(
        "cat",
        "Felis silvestris",
        "Felis catus|Felis silvestris catus|Felis lybica catus|Felis silvestris domesticus",
        "cat|domestic cat|house cat|feral cat|stray cat",
    ),
    _form(
        "cattle",
        "",
        "Bos taurus|Bos indicus|Bos primigenius taurus|Bos primigenius indicus",
        "cattle|domestic cattle|feral cattle|cow|domestic cow|bull|ox|zebu",
    ),
    _form("yak", "Bos mutus", "Bos grunniens|Bos mutus grunniens|Poephagus grunniens", "domestic yak"),
    _form("Bali cattle", "Bos javanicus", "Bos javanicus domesticus|Bos domesticus", "bali cattle"),
    _form("gayal", "Bos gaurus", "Bos frontalis|Bos gaurus frontalis", "gayal|mithun|mithan"),
    _form(
        "water buffalo",
        "Bubalus arnee",
        "Bubalus bubalis|Bubalus arnee bubalis",
        "domestic buffalo|domestic water buffalo|feral buffalo|feral water buffalo",
    ),
    _form("goat", "Capra aegagrus", "Capra hircus|Capra aegagrus hircus", "goat|domestic goat|feral goat"),
    _form(
        "sheep",
        "Ovis orientalis",
        "Ovis aries|Ovis orientalis aries|Ovis gmelini aries",
        "sheep|domestic sheep|feral sheep",
    ),
    _form(
        "pig",
        "Sus scrofa",
        "Sus domesticus|Sus scrofa domesticus|Sus domestica|Sus scrofa domestica",
        "pig|domestic pig|hog|domestic hog|swine",
    ),
    _form(
        "horse",
        "Equus ferus",
        "Equus caballus|Equus ferus caballus",
        "horse|domestic horse|feral horse|pony",
    ),
    _form(
        "donkey",
        "Equus africanus",
        "Equus asinus|Equus africanus asinus",
        "donkey|domestic donkey|feral donkey|burro|domestic ass",
    ),
    _form("mule", "", "Equus mulus", "mule|hinny"),
    _form(
        "dromedary",
        "",
        "Camelus dromedarius",
        "dromedary|dromedary camel|camel|domestic camel|feral camel|arabian camel|one-humped camel",
    ),
    _form("Bactrian camel", "Camelus ferus", "Camelus bactrianus", "domestic bactrian camel"),
    _form("llama", "Lama guanicoe", "Lama glama|Lama guanicoe glama", "llama|domestic llama"),
    _form("alpaca", "Vicugna vicugna", "Vicugna pacos|Lama pacos|Vicugna vicugna pacos", "alpaca"),
    _form(
        "ferret",
        "Mustela putorius",
        "Mustela furo|Mustela putorius furo",
        "ferret|domestic ferret|feral ferret",
    ),
    _form(
        "guinea pig",
        "Cavia aperea",
        "Cavia porcellus|Cavia aperea porcellus",
        "guinea pig|domestic guinea pig",
    ),
    _form("rabbit", "Oryctolagus cuniculus", "Oryctolagus cuniculus domesticus", "domestic rabbit"),
    _form(
        "chicken",
        "Gallus gallus",
        "Gallus domesticus|Gallus gallus domesticus",
        "chicken|domestic chicken|domestic fowl|hen|rooster",
    ),
    _form("goose", "Anser anser", "Anser domesticus|Anser anser domesticus|Anser anser domestica", "domestic goose"),
    _form("swan goose", "Anser cygnoides", "Anser cygnoides domesticus|Anser cygnoides domestica"),
    _form(
        "duck",
        "Anas platyrhynchos",
        "Anas domesticus|Anas platyrhynchos domesticus|Anas platyrhynchos domestica",
        "domestic duck",
    ),
    _form("muscovy duck", "Cairina moschata", "Cairina moschata domestica", "domestic muscovy duck"),
    _form(
        "turkey",
        "Meleagris gallopavo",
        "Meleagris gallopavo domesticus|Meleagris gallopavo domestica",
        "domestic turkey",
    ),
    _form("pigeon", "Columba livia", "Columba livia domestica|Columba domestica", "domestic pigeon"),
    _form(
        "quail",
        "Coturnix japonica",
        "Coturnix japonica domestica|Coturnix domestica",
        "domestic quail",
    ),
    _form("canary", "Serinus canaria", "Serinus canaria domestica|Serinus domesticus", "domestic canary"),
    _form(
        "Barbary dove",
        "Streptopelia roseogrisea",
        "Streptopelia risoria|Streptopelia roseogrisea risoria|Streptopelia roseogrisea domestica",
        "barbary dove|ringed turtle dove",
    ),
    _form("guineafowl", "Numida meleagris", "Numida meleagris domesticus", "domestic guineafowl|domestic guinea fowl"),
)

WILD_EPITHETS = frozenset(
    [
        *(form.wild.rpartition(" ")[2] for form in FORMS if form.wild),
        *("przewalskii", "somaliensis", "somalicus", "lybica", "gmelini", "musimon", "vignei", "primigenius"),
    ]
)
"""After the name of a domestic form, one of these names a wild subspecies: 'Equus caballus przewalskii'."""

_BY_SCIENTIFIC = {fold(name): form for form in FORMS for name in form.scientific}
_BY_COMMON = {common_key(name): form for form in FORMS for name in form.common}


def reject_domestic(text: str, words: Sequence[str], species: Container[str]) -> None:
    """Raise DomesticNameError where a name is that of a domestic form, unless the model lists it as a species.

    Parameters
    ----------
    text : the cleaned name.
    words : its words, without ranks above the genus, authors' brackets and marks such as 'subsp.'.
    species : lower-case names of the species in the model.
    """
    form = _form_named(text, [fold(word) for word in words])
    if form is None or any(fold(name) in species for name in form.scientific):
        return
    wild = f"ask for its wild ancestor {form.wild}, or " if form.wild else ""
    raise DomesticNameError(
        f"{quoted(text)} is a domestic form ({form.name}), which lives where people keep or released it and is not "
        f"mapped by name; {wild}give records of it with --records FILE."
    )


def _form_named(text: str, words: Sequence[str]) -> DomesticForm | None:
    """The domestic form that a name stands for; None for any other name."""
    # Some lists repeat the genus: 'Canis Canis familiaris'.
    starts = (0, 1) if len(words) > 2 and words[0] == words[1] else (0,)
    for start, length in product(starts, (3, 2)):
        end = start + length
        form = _BY_SCIENTIFIC.get(" ".join(words[start:end]))
        if form is not None:
            return None if WILD_EPITHETS & set(words[end:]) else form
    keys = (*common_keys(text), *common_keys(" ".join(words)))
    return next((_BY_COMMON[key] for key in keys if key in _BY_COMMON), None)
