"""Names of camera-trap lists and the bundled models: the species itself, or a reason; never another in its place."""

import pytest

from sdm.errors import SpeciesNameError
from sdm.models.choice import choose, choose_for_most
from sdm.names import Resolution

SPECIES = {
    "Panthera pardus fusca": "Panthera pardus",
    "Ursus americanus kermodei": "Ursus americanus",
    "Equus quagga burchellii": "Equus quagga",
    "Equus burchellii": "Equus quagga",
    "Sus scrofa vittatus": "Sus scrofa",
    "Tayassu tajacu": "Pecari tajacu",
    "Agouti paca": "Cuniculus paca",
    "Gazella granti": "Nanger granti",
    "Equus przewalskii": "Equus ferus",
    "Naemorhedus crispus": "Capricornis crispus",
    "Leopardus colocola": "Leopardus colocolo",
    "Dasyprocta punctatus": "Dasyprocta punctata",
    "Neogale vison": "Neovison vison",
    "Odocoileus hemionus columbianus": "Odocoileus hemionus",
    "white-tailed deer": "Odocoileus virginianus",
    "Macropus_rufogriseus": "Macropus rufogriseus",
    "VULPES VULPES": "Vulpes vulpes",
    "Felis silvestris lybica": "Felis silvestris",
}
GROUPS = {"Lepus sp.": "Lepus", "Rattus spp": "Rattus", "Cricetidae indet.": "Cricetidae", "Rodentia": "Rodentia"}
DOMESTIC = (
    *(
        "Canis lupus familiaris",
        "Canis familiaris",
        "dog",
        "Bos taurus",
        "Bos taurus indicus",
        "cattle",
        "Equus asinus",
    ),
    *("Equus ferus caballus", "Capra hircus", "Ovis aries", "Sus scrofa domesticus", "Felis catus", "Bos frontalis"),
    *("Bos javanicus domesticus", "Gallus gallus domesticus", "Camelus dromedarius", "Lama glama", "Mustela furo"),
)
LABELS = ("Homo sapiens", "Human", "blank", "vehicle", "unknown bird", "Unidentified mammal", "No CV Result", "none")
UNSURE = {
    "Canis cf. lupus": "genus Canis",
    "cf. Mustela nivalis": "genus Mustela",
    "Panthera ?pardus": "genus Panthera",
}
ELSEWHERE = (
    "Dromaius novaehollandiae",
    "Gyps coprotheres",
    "Quercus robur",
    "Struthio camelus",
    "Sagittarius serpentarius",
)
"""Birds and a tree that the bundled models know as genus or family only, or not at all."""
INSECTS = (
    "Aeshna cyanea",
    "Vanessa atalanta",
    "Lucanus cervus",
    "Bombus terrestris",
    "Apis mellifera",
    "Carabus auratus",
)
NAMES = (*SPECIES, *GROUPS, *DOMESTIC, *LABELS, *UNSURE, *ELSEWHERE, *INSECTS)


@pytest.fixture(scope="module")
def outcomes():
    model, found = choose_for_most(NAMES)
    assert model.space[0] == "mammals-trees"
    return dict(zip(NAMES, found, strict=True))


def reason(outcome):
    assert isinstance(outcome, SpeciesNameError)
    return str(outcome)


def test_species_and_groups_are_found(outcomes):
    for names, rank in ((SPECIES, "species"), (GROUPS, None)):
        for name, expected in names.items():
            found = outcomes[name]
            assert isinstance(found, Resolution) and found.known, name
            assert found.taxon.name == expected, name
            assert rank in (None, found.taxon.rank)


def test_domestic_forms_are_refused_as_such(outcomes):
    for name in DOMESTIC:
        assert "is a domestic form (" in reason(outcomes[name]), name


def test_labels_are_no_species(outcomes):
    for name in LABELS:
        assert "leave it out" in reason(outcomes[name]), name


def test_a_doubtful_species_is_its_genus_only_if_asked_for(outcomes):
    for name, group in UNSURE.items():
        assert f"the map of its {group} instead may be wrong" in reason(outcomes[name])
        assert "Without " in reason(outcomes[name]), name
        _, (resolution,) = choose([name], as_group=True)
        assert f"{resolution.taxon.rank} {resolution.taxon.name}" == group and not resolution.known


def test_what_no_model_knows_is_never_another_species(outcomes):
    for name in ELSEWHERE:
        found = outcomes[name]
        assert isinstance(found, SpeciesNameError) or found.taxon.name == name
        if "--as-group" in str(found):
            with pytest.raises(SpeciesNameError, match="--as-group"):
                choose([name])


def test_the_nearest_name_of_an_insect_is_no_bird(outcomes):
    for name in INSECTS:
        assert "none is spelled like it" in reason(outcomes[name]), name
