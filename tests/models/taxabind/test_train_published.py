"""Training in the published architecture: from files, or from nothing, and back into files that verify."""

import csv
import json
import math
import wave

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from sdm.errors import ModelError, OutputError, RequestError
from sdm.evaluation import datasets
from sdm.layers import worldclim
from sdm.models.registry import open_model
from sdm.models.taxabind import MODALITIES, Checkpoints
from sdm.models.taxabind.configs import SMALL
from sdm.models.taxabind.verify import verify
from sdm.models.taxabind.write import create_published, write_published
from sdm.training.checkpoint_patching.search import AlphaSearch
from sdm.training.data.pairs import DatasetPairs, halves
from sdm.training.loop.trainer import Trainer
from sdm.training.measures.validation import ZeroShotValidation
from sdm.training.objectives import contrastive_losses
from sdm.training.objectives.contrastive import ContrastiveObjective, Rates
from sdm.training.recipe.sections import BindingSettings, TrainerSettings
from sdm.training.spaces import PublishedSpace, open_space, read_states

N, SPECIES = 24, 4


def test_losses_are_those_of_open_clip(reference):
    from open_clip.loss import ClipLoss, SigLipLoss

    torch.manual_seed(0)
    a, b = (torch.nn.functional.normalize(torch.randn(32, 24), dim=-1) for _ in range(2))
    scale, bias = torch.tensor(14.0), torch.tensor(-9.0)
    assert torch.allclose(contrastive_losses.info_nce(a, b, scale), ClipLoss()(a, b, scale), rtol=1e-5)
    assert torch.allclose(
        contrastive_losses.sigmoid_pairs(a, b, None, scale, bias), SigLipLoss()(a, b, scale, bias), rtol=1e-5
    )


def test_written_back_it_is_the_same_files(published, tmp_path):
    """Every tensor of every part, through our names and back, by its own bytes and type."""
    source = Checkpoints.open(published.root)
    write_published(source, {m: source.load(m).state_dict() for m in MODALITIES}, tmp_path / "out")
    back = Checkpoints.open(tmp_path / "out")
    assert all(check.good for check in verify(back))
    for files in source.present:
        before, after = load_file(files.weights), load_file(back.find(files.part.modalities[0]).weights)
        assert before.keys() - after.keys() <= {"vision_model.embeddings.position_ids"}
        assert all(torch.equal(before[k], after[k]) and before[k].dtype == after[k].dtype for k in after)


def test_a_weight_of_another_shape_is_refused(published, tmp_path):
    source = Checkpoints.open(published.root)
    state = dict(source.load("satellite").state_dict(), proj=torch.zeros(64, 32))
    with pytest.raises(ModelError, match=r"satellite weight proj gives visual_projection.weight .* \(32, 64\)"):
        write_published(source, {"satellite": state}, tmp_path / "out")


def test_random_weights_in_the_published_layout(tmp_path):
    made = create_published(tmp_path / "new", MODALITIES, configs=SMALL)
    assert made.modalities == MODALITIES and made.dim == 64
    assert made.logit_scale() == pytest.approx(1 / 0.07)
    assert all(check.good for check in verify(made))
    model = open_model(tmp_path / "new")
    vectors = model.embed("location", np.array([[10.0, 50.0], [11.0, 50.0], [100.0, -20.0]]))
    assert np.isfinite(vectors).all() and not np.allclose(vectors[0], vectors[2], atol=1e-3)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """TaxaBench-8k in miniature: a species has its colour, its latitude, its climate and its tone."""
    folder = tmp_path_factory.mktemp("taxabench")
    rng = np.random.default_rng(0)
    for name in ("taxabench_images", "sat_images/sentinel", "taxabench_sound"):
        (folder / name).mkdir(parents=True)
    names = ["Ursus arctos", "Vireo gilvus", "Lumbricus terrestris", "Quercus robur"]
    rows = []
    for k in range(N):
        kind = k % SPECIES
        lat, lon = -60 + 40 * kind + rng.uniform(-5, 5), rng.uniform(-170, 170)
        key = 1000 + k
        colour = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0]][kind])
        for place, suffix in (("taxabench_images", ".jpg"), ("sat_images/sentinel", f"_{lat}_{lon}.jpeg")):
            pixels = np.clip(colour + rng.integers(-60, 60, (256, 256, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / place / f"{key}{suffix}")
        tone = np.sin(2 * np.pi * 400 * 2**kind * np.arange(24_000) / 48_000)
        with wave.open(str(folder / "taxabench_sound" / f"{key}.wav"), "wb") as file:
            file.setparams((1, 2, 48_000, 0, "NONE", ""))
            file.writeframes((tone * 20_000).astype("<i2").tobytes())
        rows.append(
            {
                "id": key,
                "latitude": lat,
                "longitude": lon,
                "scientific_name": names[kind],
                "taxon_id": kind,
                "sound_format": "wav",
            }
        )
    with (folder / "test_df.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    # Of its 373 MB only the pages of these cells come to be; everywhere else it holds zeros.
    layers = np.lib.format.open_memmap(folder / datasets.ENVIRONMENT_FILE, "w+", np.float16, worldclim.PUBLISHED_SHAPE)
    for row in rows:
        cell = int((90 - row["latitude"]) * 12), int((row["longitude"] + 180) * 12)
        layers[cell] = row["latitude"] / 45 * np.linspace(-1, 1, 20)
    layers.flush()
    return datasets.taxabench(folder)


def run(space, pairs, folder, steps=40, batch=16, **settings):
    objective = ContrastiveObjective(space, pairs, BindingSettings(**settings), Rates(learning_rate=2e-3))
    options = TrainerSettings(steps=steps, batch=batch, ema=0.0, precision="float32", checkpoint_every=1000)
    rows = Trainer(objective, options, folder, log=lambda line: None).fit()
    return objective, rows


def small(tmp_path, *modalities):
    """A space of few modalities, in miniature."""
    return PublishedSpace(create_published(tmp_path / "start", modalities, configs=SMALL), modalities)


def test_locked_tuning_to_photos_and_back_into_files(dataset, tmp_path):
    """Satellite, location and environment are aligned to a locked photo tower; never paired, they then agree."""
    space = small(tmp_path, "image", "satellite", "location", "environment")
    pairs = DatasetPairs(dataset)
    _, rows = run(space, pairs, tmp_path / "run", binding="image")
    assert rows[-1]["loss satellite"] < 2.0
    space.write(tmp_path / "tuned", logit_scale=math.log(20.0))
    tuned = Checkpoints.open(tmp_path / "tuned")
    assert all(check.good for check in verify(tuned))
    assert tuned.logit_scale() == pytest.approx(20.0, rel=1e-5)
    start = Checkpoints.open(tmp_path / "start")
    assert all(
        torch.equal(a, b)
        for a, b in zip(
            start.load("image").state_dict().values(), tuned.load("image").state_dict().values(), strict=True
        )
    )
    model = open_model(tmp_path / "tuned")
    vectors = {m: model.embed(m, pairs.values(m, np.arange(N))) for m in ("satellite", "environment")}
    same = dataset.labels[:, None] == dataset.labels[None, :]
    cosine = vectors["satellite"] @ vectors["environment"].T
    assert cosine[same].mean() > cosine[~same].mean() + 0.1
    with pytest.raises(OutputError, match="exists already"):
        space.write(tmp_path / "tuned")


@pytest.mark.slow
def test_sound_and_text_learn_too(dataset, tmp_path):
    space = small(tmp_path, "text", "audio", "location")
    _, rows = run(
        space,
        DatasetPairs(dataset, "species"),
        tmp_path / "run",
        steps=8,
        batch=8,
        binding="text",
        train=("text", "audio", "location"),
    )
    assert np.isfinite(rows[-1]["loss"])
    before = read_states(tmp_path / "start", ("audio", "text"))
    moved = {
        m: max(float((before[m][k] - v).abs().max()) for k, v in s.items() if v.is_floating_point())
        for m, s in space.states().items()
        if m in before
    }
    assert moved["audio"] > 1e-4 and moved["text"] > 1e-4
    frozen = "LocEnc0.capsule.0.b"
    assert torch.equal(space.states()["location"][frozen], open_space(tmp_path / "start").states()["location"][frozen])


def test_patching_by_zero_shot_accuracy(dataset, tmp_path):
    """Alphas chosen on one half of the observations; the whole way through files."""
    space = small(tmp_path, "text", "location", "environment")
    pairs = DatasetPairs(dataset)
    run(space, pairs, tmp_path / "run", binding="text", train=("text", "location", "environment"))
    choose, test = halves(dataset)
    assert not set(choose) & set(test) and len(choose) + len(test) == N
    validation = ZeroShotValidation(space, pairs, ("location", "environment"), choose)
    locked = read_states(tmp_path / "start", space.modalities)
    search = AlphaSearch(locked, [space.states()], validation, log=lambda line: None)
    point = search.sequential([0.0, 0.5, 1.0])
    assert search.score(point) >= max(search.score(search.all_locked), search.score((1.0,) * 3)) - 1e-9
    assert search.score(point) > 0.6 > search.score(search.all_locked)
    space.load_states(search.states(point))
    space.write(tmp_path / "patched", patching={"alpha": dict(zip(search.names, point, strict=True))})
    assert all(check.good for check in verify(open_space(tmp_path / "patched").checkpoints))
    assert json.loads((tmp_path / "patched" / "training.json").read_text())["patching"]["alpha"].keys() == {
        "text",
        "location",
        "environment",
    }


def test_the_loss_of_places_needs_values_at_random_places(dataset, tmp_path):
    space = small(tmp_path, "text", "image")
    with pytest.raises(RequestError, match="image has no values at random places"):
        run(space, DatasetPairs(dataset), tmp_path / "run", binding="text", losses={"image": "location"})


RECIPE = """
name = "tuned"
[dataset]
kind = "taxabench"
path = "{path}"
initial = "{initial}"
modalities = ["image", "location", "environment"]
[binding]
binding = "image"
losses = {{ environment = "infonce" }}
[optimiser]
steps = {steps}
batch = 8
restart_every = 10
learning_rate = 1e-3
precision = "float32"
"""


def sdm(*arguments):
    from sdm.cli import main_sdm

    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as done:
        patch.setattr("sys.argv", ["sdm", *map(str, arguments)])
        main_sdm()
    return done.value.code or 0


def test_a_recipe_of_observations_by_commands(dataset, tmp_path, capsys):
    """`sdm train` from random weights, verified; `sdm patch` back towards where it began."""
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE.format(path=dataset.folder, initial="random-small", steps=20))
    out, run = tmp_path / "tuned", tmp_path / "run"
    assert sdm("train", recipe, "--out", out, "--run", run) == 0
    assert sdm("models", "verify", out) == 0
    facts = json.loads((out / "training.json").read_text())
    assert facts["settings"]["dataset"]["kind"] == "taxabench" and 1 < facts["scales"]["location"] <= 100
    assert sdm("train", recipe, "--out", out, "--run", run) == 6
    assert "exists already" in capsys.readouterr().err
    found, start = open_space(out).states(), open_space(run / "start").states()
    moved = {m for m in found if any(not torch.equal(found[m][k], v) for k, v in start[m].items())}
    assert moved == {"location", "environment"}
    judge = f"taxabench:{dataset.folder}"
    patched = tmp_path / "patched"
    assert sdm("patch", run / "start", out, "--dataset", judge, "--query", "image,environment", "--out", patched) == 0
    said = capsys.readouterr().out
    assert "test       zero-shot accuracy" in said and "alpha environment" in said
    assert all(check.good for check in verify(open_space(patched).checkpoints))
    for wrong, message in (("taxabench", "isatdata"), ("[binding]", "[bindings]")):
        recipe.write_text(RECIPE.format(path=dataset.folder, initial="random", steps=1).replace(wrong, message, 1))
        assert sdm("train", recipe, "--out", tmp_path / "new", "--run", tmp_path / "new-run") == 2
