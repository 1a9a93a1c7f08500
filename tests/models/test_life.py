"""The bundled model of reptiles: found by every kind of name, mapped where they live, together with mammals."""

import numpy as np
import pytest

import sdm
from sdm.analysis.living import living_at
from sdm.errors import SpeciesNameError
from sdm.maps.batch import plan_batch
from sdm.models.choice import choose
from sdm.models.registry import list_models


def test_no_species_is_in_two_models_of_a_space():
    named: dict[tuple[str, str], str] = {}
    for model in list_models():
        for taxon in model.taxa:
            assert named.setdefault((model.space[1], taxon.name), model.name) == model.name, taxon.name


@pytest.mark.parametrize(
    ("query", "name"),
    [
        ("Vipera berus", "Vipera berus"),
        ("VIPERA BERUS (Linnaeus, 1758)", "Vipera berus"),
        ("Komodo dragon", "Varanus komodoensis"),
        ("Chelydra serpentina", "Chelydra serpentina"),
        ("Viperidae", "Viperidae"),
    ],
)
def test_names_of_reptiles(query, name):
    model, (resolution,) = choose([query])
    assert (model.name, resolution.taxon.name) == ("life", name) and resolution.known


@pytest.mark.parametrize("query", ["Aeshna cyanea", "Lucanus cervus", "stag beetle", "Gadus morhua"])
def test_other_groups_stay_unknown(query):
    with pytest.raises(SpeciesNameError, match="Unknown species"):
        choose([query])


def test_a_mixed_list_has_one_pass():
    names = ["Ursus arctos", "Vipera berus", "Quercus rubra"]
    batch = plan_batch(names, (5, 45, 8, 47), resolution=0.5)
    assert batch.job.plan.model.name == "mammals-trees+life" and not batch.failed
    assert len({target.score.scale for target in batch.job.plan.targets}) == 3  # mammals, reptiles, trees


def test_a_viper_lives_in_the_alps_and_not_in_the_desert():
    alps, desert = (
        float(np.nanmax(sdm.map_species("Vipera berus", (x, y, x + 1, y + 1), resolution=0.5).compute()))
        for x, y in ((10, 47), (10, 25))
    )
    assert alps > 0.7 > 0.1 > desert


def test_reptiles_are_listed_with_mammals():
    found = {one.taxon.name: one.model for one in living_at(10.5, 50.0, 0.5, models=["mammals-trees", "life"]).species}
    assert found["Anguis fragilis"] == "life" and found["Capreolus capreolus"] == "mammals-trees"
