"""Model folders: strict loading, digests, modalities, embeddings, scores."""

import copy
import json
import math
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from sdm.errors import ModelError, RequestError
from sdm.models import score
from sdm.models.bundled import BundledModel
from sdm.models.config import all_subsets
from sdm.models.encoders.bundled import build
from sdm.models.registry import list_models
from sdm.names import Resolution
from sdm.request.choices import MODALITIES, parse_modalities

CONFIG = {
    "format": "taxabind-map/1",
    "name": "toy",
    "version": "7",
    "domain": [-60.0, 90.0],
    "groups": {"tree": {"extent": [-170.0, 5.0, -50.0, 75.0]}},
    "calibration": {"+".join(s): {"scale": 10.0, "bias": -1.0} for s in all_subsets()},
    "dim": 8,
    "location": {"sigmas": [1.0], "features": 4, "width": 8, "depth": 1, "pitch": 0.25},
    "satellite": {"size": 8, "pixel": 0.1, "width": 8, "depth": 1, "pitch": 0.25},
    "environment": {
        "width": 8,
        "depth": 1,
        "pitch": 0.05,
        "inputs": [{"layer": "bio1", "transform": "identity", "value": 0, "mean": 10.0, "std": 5.0}],
    },
}
VOCABULARY = ["class:Mammalia", "genus:Ursus", "species:Ursus arctos"]


@pytest.fixture
def toy(tmp_path):
    """Function: write a small model with some parts of its config replaced, and return its folder."""

    def write(**changes):
        config = json.loads(json.dumps(CONFIG))
        for key, value in changes.items():
            *path, last = key.split("__")
            node = config
            for part in path:
                node = node[int(part)] if isinstance(node, list) else node[part]
            if value is KeyError:
                del node[last]
            else:
                node[last] = value
        folder = tmp_path / "toy"
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config))
        torch.manual_seed(0)
        save_file(build(CONFIG, VOCABULARY).state_dict(), folder / "model.safetensors")
        (folder / "vocabulary.txt").write_text("\n".join(VOCABULARY) + "\n")
        (folder / "taxa.csv").write_text(
            "species,kingdom,phylum,class,order,family,genus,common,synonyms,group,cells,marine\n"
            "Ursus arctos,Animalia,Chordata,Mammalia,Carnivora,Ursidae,Ursus,brown bear,,mammal,10,0.0\n"
        )
        return folder

    return write


def reweigh(folder, change):
    path = folder / "model.safetensors"
    state = {k: v.clone() for k, v in load_file(path).items()}
    change(state)
    save_file(state, path)


# Opening -----------------------------------------------------------------------------------------


def test_a_good_model_opens_and_encodes(toy):
    model = BundledModel.open(toy())
    assert (model.name, model.dim, model.domain) == ("toy", 8, (-60.0, 90.0))
    assert model.calibration(("location", "satellite")) == (10.0, -1.0)
    assert model.pitch("environment") == 0.05
    out = model.load().encode("location", np.array([[10.0, 50.0], [-170.0, 60.0]]))
    assert out.shape == (2, 8)
    assert out.norm(dim=1).numpy() == pytest.approx([1.0, 1.0], abs=1e-6)


def test_location_is_a_place_on_the_sphere(toy):
    """Against the formula in plain NumPy: Fourier features of the unit vector, and no seam at 180."""
    encoders = BundledModel.open(toy()).load()
    seen = {}
    encoders.location.net.register_forward_pre_hook(lambda module, args: seen.update(x=args[0].clone()))
    at = np.array([[30.0, 60.0], [180.0, 10.0], [-180.0, 10.0]])
    out = encoders.encode("location", at).numpy()
    lon, lat = np.radians(at.T)
    xyz = np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], 1)
    phase = xyz @ encoders.location.frequencies.numpy()
    assert seen["x"].numpy() == pytest.approx(np.concatenate([xyz, np.cos(phase), np.sin(phase)], 1), abs=1e-5)
    assert out[1] == pytest.approx(out[2], abs=1e-5)
    assert np.abs(out[0] - out[1]).max() > 1e-3


def test_season_is_a_point_on_the_circle_of_the_year(toy):
    """Three inputs more: the middle of the month on a circle and 1, or nothing for the whole year."""
    folder = toy(location__season=True)
    with pytest.raises(ModelError, match="location"):
        BundledModel.open(folder).load()  # weights of a model without season
    config = json.loads((folder / "config.json").read_text())
    torch.manual_seed(0)
    save_file(build(config, VOCABULARY).state_dict(), folder / "model.safetensors")
    model = BundledModel.open(folder)
    assert model.seasonal
    encoders = model.load()
    seen = {}
    encoders.location.net.register_forward_pre_hook(lambda module, args: seen.update(x=args[0].clone()))
    at = np.array([[30.0, 60.0, m] for m in (0, 1, 4, 12)])
    out = encoders.encode("location", at).numpy()
    turn = np.radians([15.0, 105.0, 345.0])
    expected = np.vstack([np.zeros(3), np.stack([np.sin(turn), np.cos(turn), np.ones(3)], 1)])
    assert seen["x"][:, -3:].numpy() == pytest.approx(expected, abs=1e-6)
    assert len(np.unique(out.round(4), axis=0)) == 4
    with pytest.raises(ValueError, match="season"):
        encoders.encode("location", at[:, :2])


def test_no_season_unless_the_config_says_so(toy):
    model = BundledModel.open(toy())
    assert not model.seasonal
    with pytest.raises(ValueError, match="season"):
        model.load().encode("location", np.array([[10.0, 50.0, 3.0]]))


def test_season_must_be_true_or_false(toy):
    with pytest.raises(ModelError, match="neither true nor false"):
        BundledModel.open(toy(location__season=1))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "vocabulary.txt", "taxa.csv"])
def test_missing_file(toy, name):
    folder = toy()
    (folder / name).unlink()
    with pytest.raises(ModelError, match=r"config\.json" if name == "config.json" else name):
        BundledModel.open(folder)


@pytest.mark.parametrize("name", ["nonesuch", "", "../..", "a\0b", "x" * 5000, "mammals-trees/../mammals-trees/x"])
def test_unknown_model(name):
    with pytest.raises(ModelError, match="neither a bundled model") as caught:
        BundledModel.open(name)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"", "cannot be read"),
        (b"{", "cannot be read"),
        (b"\xff\xfe", "cannot be read"),
        (b"[" * 200_000, "cannot be read"),
        (b"[]", "not of the format"),
        (b"null", "not of the format"),
        (b"{}", "not of the format"),
        (b'{"format": "taxabind-map/1"}', "lacks"),
    ],
)
def test_config_that_is_no_config(toy, text, says):
    folder = toy()
    (folder / "config.json").write_bytes(text)
    with pytest.raises(ModelError, match=says):
        BundledModel.open(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"format": "taxabind-map/2"},
        {"dim": KeyError},
        {"calibration": KeyError},
        {"location": KeyError},
        {"environment__inputs": KeyError},
        {"domain": KeyError},
        {"name": KeyError},
        {"satellite__pixel": KeyError},
        {"location__pitch": KeyError},
        {"environment__inputs__0__std": KeyError},
        {"name": 5},
        {"calibration": []},
        {"location": []},
        {"groups": []},
        {"environment__inputs": "abc"},
        {"environment__inputs": []},
        {"environment__inputs__0__layer": None},
        {"dim": 10**9},
        {"dim": 0},
        {"dim": -8},
        {"dim": 8.5},
        {"dim": "8"},
        {"dim": True},
        {"dim": None},
        {"location__depth": 10**6},
        {"location__width": 10**12},
        {"satellite__size": 10**6},
        {"satellite__size": 0},
        {"satellite__width": KeyError},
        {"satellite__width": [2, 2]},
        {"satellite__depth": 10**6},
        {"domain": [90, -60]},
        {"domain": [0]},
        {"domain": [0, float("nan")]},
        {"domain": 5},
        {"location__sigmas": [float("nan")]},
        {"location__sigmas": [float("inf")]},
        {"location__sigmas": ["1"]},
        {"location__sigmas": 1.0},
        {"location__sigmas": [0.0]},
        {"calibration__location": {"scale": float("nan"), "bias": 0.0}},
        {"calibration__location": {"scale": 1.0}},
        {"calibration__location": {"scale": 10**400, "bias": 0.0}},
        {"satellite__pixel": -0.1},
        {"environment__pitch": 0},
        {"environment__pitch": float("inf")},
        {"environment__inputs__0__mean": float("nan")},
        {"environment__inputs__0__std": 0.0},
        {"environment__inputs__0__transform": "exec"},
        {"groups": {"tree": {"extent": [0, 1]}}},
        {"groups": {"tree": {"calibration": []}}},
        {"groups": {"tree": {"calibration": {"location": {"scale": 1.0}}}}},
        {"groups": {"tree": {"calibration": {"location": {"scale": 1.0, "bias": float("nan")}}}}},
        {"groups": {"tree": {"extent": [0, 1, 2, float("nan")]}}},
    ],
    ids=lambda change: str(change)[:60],
)
def test_config_with_a_bad_part(toy, change):
    folder = toy(**change)
    with pytest.raises(ModelError, match=r"config\.json") as caught:
        BundledModel.open(folder)
    assert caught.value.exit_code == 5
    assert str(folder) in str(caught.value)


def test_sizes_in_a_config_allocate_nothing(toy):
    """Layers of 16384 x 16384 weights would take 7 GB; a config that lies is found out without them."""
    folder = toy(location__width=16384, location__features=16384, dim=16384)
    code = (
        "import resource, sys\n"
        "from sdm.errors import ModelError\n"
        "from sdm.models.bundled import BundledModel\n"
        "import torch\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try:\n"
        f"    BundledModel.open({str(folder)!r}).load()\n"
        "except ModelError as error:\n"
        "    assert 'config.json says' in str(error), error\n"
        "    sys.exit(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before > 300_000)\n"
        "sys.exit(2)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=120, check=False).returncode == 0


# Weights -----------------------------------------------------------------------------------------


def rename(state):
    state["location.net.0.WEIGHT"] = state.pop("location.net.0.weight")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda s: s.pop("location.frequencies"), "missing .*location.frequencies"),
        (lambda s: s.update(more=torch.zeros(3)), "extra .*more"),
        (rename, "do not fit"),
        (lambda s: s.update({"text.embedding.weight": torch.zeros(4, 8)}), r"shape \(4, 8\)"),
        (lambda s: s.update({"location.frequencies": torch.zeros(4, 3)}), r"shape \(4, 3\)"),
        (lambda s: s["location.frequencies"].fill_(float("nan")), "not finite"),
        (lambda s: s["text.embedding.weight"][1].fill_(float("inf")), "not finite"),
    ],
)
def test_weights_must_fit(toy, change, says):
    folder = toy()
    reweigh(folder, change)
    with pytest.raises(ModelError, match=says):
        BundledModel.open(folder).load()


class _Bomb:
    def __reduce__(self):
        return (print, ("executed",))


def pickled(folder, original):
    return pickle.dumps(_Bomb())


def torch_saved(folder, original):
    torch.save({"a": torch.zeros(2)}, folder / "x.pt")
    return (folder / "x.pt").read_bytes()


def absurd_header(folder, original):
    return (2**62).to_bytes(8, "little") + original[8:]


@pytest.mark.parametrize(
    "replace",
    [
        pickled,
        torch_saved,
        absurd_header,
        lambda f, o: b"",
        lambda f, o: o[: len(o) // 2],
        lambda f, o: o[:-1],
        lambda f, o: o[:7],
        lambda f, o: o + b"x",
    ],
)
def test_weights_that_are_no_safetensors(toy, replace, capfd):
    folder = toy()
    path = folder / "model.safetensors"
    path.write_bytes(replace(folder, path.read_bytes()))
    with pytest.raises(ModelError, match=r"model\.safetensors cannot be read"):
        BundledModel.open(folder).load()
    assert "executed" not in capfd.readouterr().out


def test_vocabulary_must_be_text(toy):
    folder = toy()
    (folder / "vocabulary.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ModelError, match=r"vocabulary\.txt"):
        BundledModel.open(folder).load()


def test_half_precision_weights_become_single(toy):
    folder = toy()
    # A copy: some versions of safetensors hand out the file itself, and it is written over.
    full = load_file(folder / "model.safetensors")["text.embedding.weight"].clone()
    reweigh(folder, lambda s: s.update({"text.embedding.weight": s["text.embedding.weight"].half()}))
    weight = BundledModel.open(folder).load().text.embedding.weight
    assert weight.dtype == torch.float32
    assert weight.numpy() == pytest.approx(full.numpy(), abs=1e-3)


def test_weights_are_read_once_and_never_trained(toy):
    model = BundledModel.open(toy())
    encoders = model.load()
    assert BundledModel.open(model.folder).load() is encoders
    modules = (encoders.location, encoders.satellite, encoders.environment, encoders.text)
    assert not any(p.requires_grad for m in modules for p in m.parameters())
    assert not any(m.training for m in modules)


def test_digest_names_the_weights(toy):
    folder = toy()
    first = BundledModel.open(folder).digest
    assert len(first) == 16
    assert BundledModel.open(shutil.copytree(folder, folder.parent / "copy")).digest == first
    for change in (
        lambda: reweigh(folder, lambda s: s["location.frequencies"].add_(1e-3)),
        lambda: (folder / "vocabulary.txt").write_text("class:Mammalia\ngenus:Ursus\nspecies:Ursus minor\n"),
        lambda: (folder / "config.json").write_text((folder / "config.json").read_text().replace("10.0", "10.5", 1)),
    ):
        before = BundledModel.open(folder).digest
        change()
        assert BundledModel.open(folder).digest != before


def test_an_opened_model_is_light_to_send(toy):
    model = BundledModel.open(toy())
    model.load()
    assert len(model.taxa) == 1
    copy = pickle.loads(pickle.dumps(model))
    assert len(pickle.dumps(model)) < 5000
    assert len(pickle.dumps(BundledModel.open("mammals-trees"))) < 20_000
    assert copy.digest == model.digest
    assert copy.taxa.resolve("brown bear").taxon.name == "Ursus arctos"


# Species -----------------------------------------------------------------------------------------


def test_species_vector_is_the_sum_of_its_ranks(toy):
    model = BundledModel.open(toy())
    table = load_file(model.folder / "model.safetensors")["text.embedding.weight"].numpy()
    found = model.taxa.resolve("Ursus arctos")
    expected = table.sum(0) / np.linalg.norm(table.sum(0))  # class, genus and species; no order, no family
    got = model.species_embedding(found)
    assert got == pytest.approx(expected, abs=1e-6)
    assert got.dtype == np.float32


def test_a_name_without_any_vector(toy):
    model = BundledModel.open(toy())
    (model.folder / "vocabulary.txt").write_text("class:Aves\ngenus:Corvus\nspecies:Corvus corax\n")
    model = BundledModel.open(model.folder)
    with pytest.raises(ModelError, match="no vector"):
        model.species_embedding(model.taxa.resolve("Ursus arctos"))


def test_relatives_lie_closer_than_strangers():
    model = BundledModel.open("mammals-trees")

    def vector(name) -> np.ndarray:
        found: Resolution = model.taxa.resolve(name)
        return model.species_embedding(found)

    bear, black, oak = vector("Ursus arctos"), vector("Ursus americanus"), vector("Quercus alba")
    assert np.linalg.norm(bear) == pytest.approx(1.0, abs=1e-5)
    assert bear @ black > bear @ oak


def test_bundled_models_are_listed():
    models = list_models()
    assert [m.name for m in models] == ["mammals-trees", "birds", "life"]  # the usual one first
    for model in models:
        assert model.folder.name == model.name
        assert BundledModel.open(model.name).digest == model.digest
        for subset in all_subsets():
            scale, bias = model.calibration(subset)
            assert scale > 0
            assert math.isfinite(bias)


def test_uncalibrated_subset(toy):
    model = BundledModel.open(toy(groups={"tree": {"calibration": {"location": {"scale": 9.0, "bias": -2.0}}}}))
    assert model.calibration(("location",), "tree") == (9.0, -2.0)
    assert model.calibration(("location",), "bird") == model.calibration(("location",)) == (10.0, -1.0)
    shutil.rmtree(model.folder)
    model = BundledModel.open(toy(**{"calibration__satellite": KeyError}))
    with pytest.raises(ModelError, match="no calibration for satellite"):
        model.calibration(("satellite",))


# Modalities --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("location", ("location",)),
        ("environment,location", ("location", "environment")),
        (" Satellite , ENVIRONMENT ", ("satellite", "environment")),
        (["environment", "satellite", "location"], MODALITIES),
    ],
)
def test_modalities_in_canonical_order(given, expected):
    assert parse_modalities(given) == expected


@pytest.mark.parametrize("given", ["", "sound", "location,,satellite", "location,location", [], ()])
def test_bad_modalities(given):
    with pytest.raises(RequestError, match="modalit"):
        parse_modalities(given)


def test_all_subsets():
    assert len(all_subsets()) == len(set(all_subsets())) == 7
    assert {len(s) for s in all_subsets()} == {1, 2, 3}


# Scores ------------------------------------------------------------------------------------------


def test_score_formulas_against_numpy():
    rng = np.random.default_rng(0)
    a, b, c = rng.normal(size=(3, 50, 16))
    species = rng.normal(size=(4, 16))
    species /= np.linalg.norm(species, axis=1, keepdims=True)
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b, c)]
    total = sum(unit)
    total /= np.linalg.norm(total, axis=1, keepdims=True)
    expected = 1 / (1 + np.exp(-(20.0 * total @ species.T - 3.0)))
    t = [torch.from_numpy(x) for x in (a, b, c)]
    summed = score.combine(t)
    assert summed.numpy() == pytest.approx(total, abs=1e-12)
    cos = score.cosine(summed, torch.from_numpy(species))
    assert cos.shape == (50, 4)
    assert score.probability(cos, 20.0, -3.0).numpy() == pytest.approx(expected, abs=1e-12)
    assert score.combine(t[:1]).numpy() == pytest.approx(unit[0], abs=1e-12)


def test_length_of_a_modality_does_not_matter():
    """Modalities weigh alike in the sum, whatever the scale of their encoders."""
    a, b = torch.randn(2, 5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(score.combine([a, b]), score.combine([1000 * a, 0.001 * b]))
    assert not torch.allclose(score.combine([a, b]), score.combine([a]))


def test_satellite_statistics_see_colour_spread_and_side():
    """The windows of the satellite encoder: means, spreads, and which side of the place they lie on."""
    from sdm.models.encoders.satellite import SatelliteEncoder

    encoder = SatelliteEncoder(dim=8, size=16, width=8, depth=1)
    encoder.net = torch.nn.Identity()
    n = encoder.windows.shape[1]
    flat = torch.full((1, 16, 16, 3), 51, dtype=torch.uint8)
    flat[..., 1] = 204
    mean, spread = encoder(flat).split(n, dim=1)
    assert torch.allclose(mean.view(-1, 3), torch.tensor([-0.2, 2.2, -0.2]).expand(n // 3, 3), atol=1e-4)
    assert torch.allclose(spread, torch.full_like(spread, -0.4), atol=0.02)  # 10 * sqrt(1e-4) - 0.5

    north = torch.zeros((1, 16, 16, 3), dtype=torch.uint8)
    north[:, :8] = 255
    mean = encoder(north)[0, :n].view(-1, 3)[:, 0]
    ring = mean[2:]  # after the two centred windows: north-west, north, north-east, west, ...
    assert (ring[:3] > 2.0).all()
    assert (ring[-3:] < 0.0).all()


def test_satellite_statistics_change_slowly():
    """One pixel further, the statistics of noisy imagery move by far less than they differ between images."""
    from sdm.models.encoders.satellite import SatelliteEncoder

    torch.manual_seed(0)
    encoder = SatelliteEncoder(dim=8, size=16, width=8, depth=1)
    encoder.net = torch.nn.Identity()
    image = torch.randint(0, 256, (200, 17, 17, 3), dtype=torch.uint8)
    here, beside = encoder(image[:, :16, :16]), encoder(image[:, 1:, 1:])
    step = (here - beside).square().mean().sqrt()
    spread = (here - here.mean(0)).square().mean().sqrt()
    pixels = (image[:, :16, :16].float() - image[:, 1:, 1:].float()).square().mean().sqrt() / image.float().std()
    assert step / spread < 0.5 < 1.0 < pixels


def test_packed_layers_are_the_plain_ones():
    """Products and slopes of a tower as oneDNN computes them, for batches of any length."""
    from sdm.models.encoders.environment import EnvironmentEncoder
    from sdm.models.encoders.packed import PackedLinear, available, pack

    if not available():
        pytest.skip("linear layers are not packed on this processor")
    torch.manual_seed(0)
    plain = EnvironmentEncoder(32, 20, 48, 2).eval().requires_grad_(False)
    packed = copy.deepcopy(plain)
    pack(packed, 64)
    assert sum(isinstance(layer, PackedLinear) for layer in packed.modules()) == 6
    for rows in (1, 7, 64, 100):
        values = torch.randn(rows, 20)
        results = []
        for tower in (plain, packed):
            x = values.clone().requires_grad_()
            y = tower(x)
            results.append((y.detach(), torch.autograd.grad((y * y).sum(), x)[0]))
        for ours, expected in zip(results[1], results[0], strict=True):
            torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)
        with torch.inference_mode():
            torch.testing.assert_close(packed(values), results[0][0], atol=1e-5, rtol=1e-5)
