"""Domestic forms are refused as such, and their wild relatives are not. Against the shipped tables."""

import pytest

from sdm.names import DomesticNameError, TaxonTable, resolve_among
from sdm.names.domestic import FORMS
from tests.names.tables import BEAR, HEADER, MODEL, write_folder


@pytest.fixture(scope="module")
def tables(table):
    return {"mammals-trees": table, "birds": TaxonTable.load(MODEL.parent / "birds")}


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_every_name_of_a_domestic_form_is_refused(tables, form):
    for name in (*form.scientific, *form.common):
        for spelling in (name, name.upper(), f"the {name}" if name in form.common else f"{name} Linnaeus, 1758"):
            with pytest.raises(DomesticNameError, match=r"domestic form.*--records FILE") as caught:
                resolve_among(tables, spelling)
            assert form.name in str(caught.value) and form.wild in str(caught.value)


@pytest.mark.parametrize("form", [form for form in FORMS if form.wild], ids=lambda form: form.name)
def test_the_wild_ancestor_that_is_named_can_be_mapped(tables, form):
    (resolution,) = resolve_among(tables, form.wild).values()
    assert (resolution.taxon.name, resolution.known) == (form.wild, True)


def test_wild_mammals_are_those_whose_names_the_commission_conserved():
    """ICZN Opinion 2027: 15 mammals, of which the aurochs is extinct."""
    conserved = {
        *("Bos gaurus", "Bos mutus", "Bubalus arnee", "Camelus ferus", "Canis lupus", "Capra aegagrus", "Cavia aperea"),
        *("Equus africanus", "Equus ferus", "Felis silvestris", "Lama guanicoe", "Mustela putorius"),
        *("Ovis orientalis", "Vicugna vicugna"),
    }
    wild = {form.wild: form for form in FORMS}
    assert conserved <= set(wild)
    for name in conserved:  # the domestic form has a name of its own beside the trinomial of the wild one
        assert any(not other.startswith(f"{name} ") for other in wild[name].scientific)
    (cattle,) = (form for form in FORMS if form.name == "cattle")
    assert cattle.wild == "" and "Bos primigenius taurus" in cattle.scientific


@pytest.mark.parametrize(
    ("query", "name"),
    [
        ("domestic dog (Canis familiaris)", "dog"),
        ("Canis lupus subsp. familiaris Linnaeus, 1758", "dog"),
        ("Animalia Chordata Mammalia Carnivora Canidae Canis Canis familiaris", "dog"),
        ("Domestic_Cattle", "cattle"),
        ("cows", "cattle"),
        ("Sus scrofa domesticus L.", "pig"),
    ],
)
def test_spellings(tables, query, name):
    with pytest.raises(DomesticNameError, match=rf"domestic form \({name}\)"):
        resolve_among(tables, query)


@pytest.mark.parametrize(
    ("query", "name"),
    [
        ("Equus caballus przewalskii", "Equus ferus"),
        ("Bubalus bubalis arnee", "Bubalus arnee"),
        ("black-footed ferret", "Mustela nigripes"),
        ("feral pig", "Sus scrofa"),
        ("mule deer", "Odocoileus hemionus"),
        ("sea cow", "Sirenia"),
        ("cattle egret", "Bubulcus ibis"),
        ("turkey", "Meleagris gallopavo"),
        ("Gallus gallus", "Gallus gallus"),
        ("Canis lupus arctos", "Canis lupus"),
    ],
)
def test_what_is_wild_is_mapped(tables, query, name):
    (resolution,) = resolve_among(tables, query).values()
    assert (resolution.taxon.name, resolution.known) == (name, True)


def test_a_model_that_lists_a_domestic_form_maps_it(tmp_path):
    dog = BEAR.replace("Ursus arctos", "Canis familiaris").replace("Ursidae,Ursus", "Canidae,Canis")
    table = TaxonTable.load(write_folder(tmp_path, HEADER + dog.replace("brown bear", "dog")))
    for name in ("Canis familiaris", "Canis lupus familiaris", "dog"):
        try:
            assert table.resolve(name).taxon.rank in ("species", "genus")
        except DomesticNameError:
            pytest.fail(name)
