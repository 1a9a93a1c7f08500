"""Recipes: values, limits, and messages that name the key."""

import re
from dataclasses import fields

import pytest

from sdm.errors import RequestError
from sdm.training.recipe import Recipe, limits, sections
from sdm.training.recipe.sources import SOURCE_KINDS
from sdm.training.recipe.species_recipe import AreasSettings, FitSettings, GridSettings, HeldOutSettings

MORE = "[[data.source]]\n{}\n[architecture]"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("min_cells = 2", "wrong = 1", r"\[evaluation\] has the unknown key 'wrong'; known: block_degrees"),
        ('kind = "ranges"', 'kind = "rangers"', r"number 1 has the kind 'rangers'; known: ranges, polygons"),
        ("points_per_cell = 3", "points_per_sell = 3", r"1 \(ranges\) has the unknown key 'points_per_sell'; known"),
        ("batch = 128", 'batch = "128"', r"\[optimiser\] batch = '128' must be a whole number"),
        ("batch = 128", "batch = true", r"batch = True must be a whole number"),
        ("[optimiser]", "[optimizer]", r"the top has the unknown key 'optimizer'; known: architecture"),
        ('version = "1"\n', "", "needs the text 'version' at its top"),
        ("location = 0.2,", "sound = 0.2,", r"\[objective\] names 'sound'; known: location"),
        ("location = 0.2,", "location = 1.2,", "subset_shares must be 0 or more and sum to at most 1"),
        ("[objective]", '[objective]\nlocked = ["text"]', "need the model to start from, initial = a folder"),
        ("[objective]", "[objective]\npool = 0.5", "pool must lie in 0..1, and above 0 needs places_per_cell"),
        ("[evaluation]", '[evaluation]\ncalibrate = ["birds"]', "names 'birds'; the sources are mammals"),
        ("steps = 1\n", "steps = 0\n", r"\[optimiser\] steps = 0 must be at least 1"),
        ("batch = 128", "batch = 128\nlearning_rate = nan", "learning_rate = nan must be a finite number"),
        ("batch = 128", "batch = 128\nbetas = [0.9]", r"betas = \[0.9\] must be a list of 2"),
        ("batch = 128", "batch = 128\nbetas = [0.9, 1.0]", "must be at least 0 and below 1"),
        ("batch = 128", 'batch = 128\nschedule = "up"', r"\[optimiser\] schedule 'up' is not known"),
        ("block_degrees = 10.0", "block_degrees = 0.0", r"block_degrees = 0.0 must be at least 0.01 and at most 90"),
        ("[evaluation]", "[evaluation]\nheld_out = 1", "held_out = 1 must be above 0 and below 1"),
        ("[evaluation]", '[evaluation]\nsplit = "continents"', r"\[evaluation\] split 'continents' needs continents"),
        ("[evaluation]", '[evaluation]\nclimate = ["Z"]', "climate 'Z' is not known"),
        ("[objective]", "[objective]\nmax_scale = 10.0", "max_scale 10 is below start_scale"),
        ("location = 0.2,", '"location+location" = 0.2,', "names 'location.location'; known: location, .*, each once"),
        ("points_per_cell = 3", "points_per_cell = 0", "source 'mammals' draws no place on land"),
        ("points_per_cell = 3", 'points_per_cell = 3\norigin = "feral"', "origin 'feral'; known: native, all"),
        ("points_per_cell = 3", 'points_per_cell = 3\norigin = "all"', "origin = 'all' needs corrections"),
        (
            "[objective]",
            '[binding]\nnegatives = "x"\n[objective]',
            r"\[binding\] negatives 'x' is not known; choose area",
        ),
        ("[objective]", '[binding]\nlosses = { satellite = "x" }\n[objective]', "loss 'x' of satellite is not known"),
        ("[objective]", "[binding]\nlocation_weights = [0, 0]\n[objective]", "location_weights are both 0"),
        (
            "batch = 128",
            "batch = 1\n[binding]",
            r"\[optimiser\] batch is 1, which leaves no other pair to compare with",
        ),
        ("points_per_cell = 3", "points_per_cell = 3\nweight = 0", "every source has weight 0"),
        ('name = "tiny"', 'name = "../tiny"', "must be a plain file name"),
        ('name = "mammals"', 'name = ""', "has the name ''"),
        ("points_per_cell = 3", "points_per_cell = 3\nweight = inf", "weight = inf must be a finite number"),
        ("pitch = 0.5 }\nsat", "pich = 0.5 }\nsat", r"location has the unknown key 'pich'; known: depth"),
        ("sigmas = [1.0]", "sigmas = [-1.0]", "location sigmas = .* must be above 0"),
        ("size = 16", "size = 16.5", r"\[architecture\] satellite size = 16.5 must be a whole number"),
        ("[architecture]", MORE.format('kind = "ranges"\nname = "mammals"\npath = ""'), "two sources are called"),
        ("[architecture]", MORE.format('kind = "surveys"'), r"\(surveys\) needs the key 'path'"),
        ("[architecture]", MORE.format('kind = "occurrences"\npath = ""\nbackground = "sky"'), "'sky'; known: land"),
    ],
)
def test_recipe_errors_name_the_key(tiny, old, new, said):
    with pytest.raises(RequestError, match=said):
        tiny(1, swap=[(old, new)])


def test_sizes_that_a_recipe_leaves_out_are_those_of_the_bundled_models(tiny):
    recipe, _ = tiny(1, swap=[("size = 16, pixel = 0.06666666666666667, width = 8, ", "")])
    assert recipe.architecture.satellite == {"size": 16, "pixel": 1 / 15, "width": 128, "depth": 1, "pitch": 0.5}
    assert "season" not in recipe.architecture.location and "around_km" not in recipe.architecture.environment


def test_every_number_of_a_recipe_has_limits():
    """A key that is new in a section is not forgotten, and a limit of no key is no limit."""
    kinds = [*SOURCE_KINDS.values(), *sections.ENCODER_SIZES.values(), sections.Architecture]
    kinds += [sections.ObjectiveSettings, sections.OptimiserSettings, sections.EvaluationSettings]
    kinds += [sections.BindingSettings, AreasSettings, FitSettings, GridSettings, HeldOutSettings]
    numbers = {f.name for k in kinds for f in fields(k) if re.search(r"\b(int|float)\b", str(f.type))}
    assert numbers - {"start_bias", "around_km", "pool"} == set(limits.LIMITS)
    assert limits.violated_limit("held_out", 0.2) == "" and limits.violated_limit("start_bias", -6.0) == ""


def test_recipes_that_are_none(tmp_path):
    path = tmp_path / "r.toml"
    path.write_text("name = [")
    with pytest.raises(RequestError, match="not valid TOML"):
        Recipe.read(path)
    with pytest.raises(RequestError, match="cannot be read"):
        Recipe.read(tmp_path / "none.toml")
    path.write_text('name = "a"\ntitle = "a"\nversion = "1"\nlicence = ""\n')
    with pytest.raises(RequestError, match="needs at least one"):
        Recipe.read(path)


@pytest.mark.parametrize("name", ["mammals-trees", "birds"])
def test_bundled_recipe_describes_the_bundled_model(name):
    """What the recipe says is what was shipped."""
    from sdm.files.paths import folder
    from sdm.models.bundled import BundledModel
    from sdm.training.data.environment import environment_inputs

    recipe = Recipe.read(folder("recipes") / f"{name}.toml")
    config = BundledModel.open(name).config
    assert config["dim"] == recipe.architecture.dim
    for part in ("location", "satellite"):
        assert config[part] == dict(getattr(recipe.architecture, part))
    said = dict(recipe.architecture.environment)
    inputs = environment_inputs(said.pop("around_km", (100, 300)))
    assert {k: v for k, v in config["environment"].items() if k != "inputs"} == said
    assert [(i["layer"], i["transform"]) for i in config["environment"]["inputs"]] == [
        (i.layer, i.transform) for i in inputs
    ]
    for key in ("title", "version", "licence", "ranges"):
        assert config.get(key, "") == getattr(recipe, key)
