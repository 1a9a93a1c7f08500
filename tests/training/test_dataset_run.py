"""Training of the published architecture on the published datasets' layout, in miniature."""

import json

import numpy as np
import pytest
from PIL import Image

from sdm.errors import OutputError, RequestError
from sdm.models.taxabind.checkpoints import Checkpoints
from sdm.training.recipe import DatasetRecipe
from sdm.training.runs.dataset_run import run_dataset_recipe

CLASSES = ("Carnivora_Ursidae_Ursus_arctos", "Carnivora_Canidae_Canis_lupus", "Rodentia_Muridae_Mus_musculus")
RECIPE = """
name = "small"
[dataset]
kind = "isatnat"
path = "{folder}"
modalities = ["image", "satellite", "location"]
initial = "random-small"
[binding]
binding = "image"
[optimiser]
steps = {steps}
batch = 4
restart_every = 4
precision = "float32"
"""


@pytest.fixture
def recipe(tmp_path):
    """Function: the recipe of eight observations of three species, laid out as iSatNat is; `swap` pairs of texts."""
    rng = np.random.default_rng(0)
    (tmp_path / "sentinel").mkdir()
    rows, images = ["sat_url,lat,lon,key,inat_id"], []
    for n in range(1, 9):
        lat, lon = round(rng.uniform(40, 60), 4), round(rng.uniform(0, 40), 4)
        key, kind = f"{n}_{lat}_{lon}", f"0000{n % 3}_Animalia_Chordata_Mammalia_{CLASSES[n % 3]}"
        photo = tmp_path / "train" / kind / f"{n}.jpg"
        photo.parent.mkdir(parents=True, exist_ok=True)
        for path in (photo, tmp_path / "sentinel" / f"{key}.jpeg"):
            Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(path)
        rows.append(f"x,{lat},{lon},{key},{n}")
        images.append({"id": n, "file_name": f"train/{kind}/{n}.jpg"})
    (tmp_path / "train_df.csv").write_text("\n".join(rows) + "\n")
    (tmp_path / "train.json").write_text(json.dumps({"images": images}))

    def make(steps=2, swap=("", "")):
        path = tmp_path / "small.toml"
        path.write_text(RECIPE.format(folder=tmp_path.as_posix(), steps=steps).replace(*swap))
        return DatasetRecipe.read(path)

    return make


def test_from_observations_to_checkpoints(tmp_path, recipe):
    said, run = [], tmp_path / "run"
    run_dataset_recipe(recipe(), tmp_path / "out", run, log=said.append)
    assert said[0] == "8 observations of 3 species; image binds satellite, location"
    assert Checkpoints.open(tmp_path / "out").present
    # The folder of the run says what was run, and a run of another recipe leaves that as it is.
    assert {f.name for f in run.iterdir()} >= {"recipe.toml", "run.json", "checkpoint.pt", "curves.csv"}
    description = (run / "run.json").read_bytes()
    assert json.loads(description)["settings"]["dataset"]["kind"] == "isatnat"
    with pytest.raises(OutputError, match="exists already"):
        run_dataset_recipe(recipe(), tmp_path / "out", run)
    with pytest.raises(RequestError, match=r"run with another .*steps"):
        run_dataset_recipe(recipe(4), tmp_path / "out2", run, log=said.append)
    assert (run / "run.json").read_bytes() == description and b"steps = 2" in (run / "recipe.toml").read_bytes()


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("batch = 4", "batch = 1", r"\[optimiser\] batch is 1, which leaves no other pair"),
        ("batch = 4", "batch = 4\nema = nan", "ema = nan must be a finite number"),
        ('"image"\n', '"image"\nnegatives = "x"\n', r"\[binding\] negatives 'x' is not known; choose area or degrees"),
        ('name = "small"', 'name = "../small"', "must be a plain file name"),
        ('kind = "isatnat"', 'kind = "isat"', "'isat' is none of taxabench"),
    ],
)
def test_recipes_that_are_refused(recipe, old, new, said):
    with pytest.raises(RequestError, match=said):
        recipe(swap=(old, new))
