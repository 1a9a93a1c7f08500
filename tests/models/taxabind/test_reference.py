"""Every modality against its reference implementation, on the same weights."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

from sdm.errors import ModelError, RequestError
from sdm.models.taxabind import MODALITIES, Checkpoints, PublishedEncoders
from sdm.models.taxabind.encoders import STATISTICS, tokenizer
from tests.models.taxabind.conftest import make_published, save_safetensors

EAGLE = "Animalia Chordata Aves Accipitriformes Accipitridae Haliaeetus leucocephalus"
TEXTS = [EAGLE, "alpine meadow with grazing ungulates", "", "!", "écureuil 🐿 &amp; ours", "word " * 100]


def same(ours, theirs):
    """Unit vectors, equal to 1e-5."""
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours.norm(dim=-1), torch.ones(len(ours)))
    torch.testing.assert_close(ours, normalize(theirs, dim=-1), atol=1e-5, rtol=0)


def pixels(reference, images, name="taxabind"):
    """torchvision's ToTensor and Normalize."""
    t = reference.transforms
    steps = t.Compose([t.ToTensor(), t.Normalize(*STATISTICS[name])])
    return torch.stack([steps(image) for image in images])


def features(reference, clip):
    """CLAP's features of one clip, with the seed that ours always has."""
    extract = reference.transformers.ClapFeatureExtractor(frequency_min=50, frequency_max=14_000)
    np.random.seed(0)
    return extract(clip, sampling_rate=48_000, return_tensors="pt")


def geoclip(state, latlon):
    """GeoCLIP's formula, in float64, straight from the paper's code: (lat, lon) in degrees."""
    latlon = np.asarray(latlon, np.float64)
    lat, lon = np.radians(latlon[:, 0]), np.radians(latlon[:, 1])
    theta = np.arcsin(math.sqrt(3) / 2 * np.sin(lat))
    a1, a2, a3, a4 = 1.340264, -0.081106, 0.000893, 0.003796
    x = 2 * math.sqrt(3) * lon * np.cos(theta) / (3 * (9 * a4 * theta**8 + 7 * a3 * theta**6 + 3 * a2 * theta**2 + a1))
    y = a4 * theta**9 + a3 * theta**7 + a2 * theta**3 + a1 * theta
    xy = torch.from_numpy(np.stack([x, y], 1) * 66.50336 / 180)
    total = 0
    for k in range(3):
        w = {n.removeprefix(f"LocEnc{k}."): v.double() for n, v in state.items() if n.startswith(f"LocEnc{k}.")}
        phase = 2 * math.pi * xy @ w["capsule.0.b"].T
        h = torch.cat([phase.cos(), phase.sin()], 1)
        for n in (1, 3, 5):
            h = torch.relu(h @ w[f"capsule.{n}.weight"].T + w[f"capsule.{n}.bias"])
        total = total + h @ w["head.0.weight"].T + w["head.0.bias"]
    return total.float()


def check_all(reference, published, rng):
    """All six modalities of a published folder against the models that made it."""
    checkpoints = Checkpoints.open(published.root)
    assert checkpoints.modalities == MODALITIES
    encoders = PublishedEncoders(checkpoints)
    size = checkpoints.load("image").image
    images = rng.integers(0, 256, (3, size, size, 3), dtype=np.uint8)
    clips = [rng.standard_normal(n).astype(np.float32) * 0.1 for n in (30_000, 480_000, 700_000)]
    environment = rng.standard_normal((7, 20)).astype(np.float32)
    environment[0, 3] = np.nan
    lonlat = np.array([[-122.4194, 37.7749], [60.02, -3.12], [-180.0, 90.0], [179.9, -60.0]])
    with torch.inference_mode():
        same(encoders.encode("image", images), published.clip.encode_image(pixels(reference, images)))
        same(encoders.encode("satellite", images), published.satellite(pixels(reference, images)).image_embeds)
        tokens = reference.open_clip.tokenizer.SimpleTokenizer()(TEXTS)
        same(encoders.encode("text", TEXTS), published.clip.encode_text(tokens))
        heard = [published.audio(**features(reference, clip)).audio_embeds for clip in clips]
        same(encoders.encode("audio", clips), torch.cat(heard))
        known = torch.from_numpy(np.nan_to_num(environment, nan=0.0))
        same(encoders.encode("environment", environment), published.environment(known))
    # The reference here is float64, and sigma 256 multiplies the last bit of a float32 coordinate by thousands.
    ours = encoders.encode("location", lonlat)
    torch.testing.assert_close(ours, normalize(geoclip(published.location, lonlat[:, ::-1])), atol=2e-4, rtol=0)
    assert checkpoints.logit_scale() == pytest.approx(math.exp(3.0))
    assert {encoders.encode(m, v).shape[1] for m, v in {"text": ["a"], "location": lonlat}.items()} == {ours.shape[1]}


def test_small_model(reference, published, rng):
    check_all(reference, published, rng)


@pytest.mark.slow
def test_full_size(reference, tmp_path, rng):
    """The published sizes: 302, 200, 27, 18 and 270 tensors."""
    from types import SimpleNamespace

    from sdm.models.taxabind.weights import WeightFile

    models = make_published(tmp_path, reference, full=True)
    check_all(reference, SimpleNamespace(root=tmp_path, **vars(models)), rng)
    counts = [len(WeightFile(f.weights).shapes) for f in Checkpoints.open(tmp_path).present]
    assert counts == [302, 200, 27, 18, 270]
    sizes = [f.weights.stat().st_size for f in Checkpoints.open(tmp_path).present]
    assert sizes == pytest.approx([f.part.bytes for f in Checkpoints.open(tmp_path).present], rel=0.01)


@pytest.mark.parametrize("quick", [True, False])
def test_activation_of_open_clip(reference, tmp_path, rng, quick):
    clip = make_published(tmp_path, reference, quick_gelu=quick).clip
    images = rng.integers(0, 256, (2, 48, 48, 3), dtype=np.uint8)
    encoders = PublishedEncoders(Checkpoints.open(tmp_path), preprocess="open_clip")
    with torch.inference_mode():
        same(encoders.encode("image", images), clip.encode_image(pixels(reference, images, "open_clip")))


def test_activation_of_the_satellite_tower(reference, published, copy_of, rng):
    hf = reference.transformers
    root = copy_of("ecosat")
    config = json.loads((root / "ecosat" / "config.json").read_text())
    (root / "ecosat" / "config.json").write_text(json.dumps(config | {"hidden_act": "gelu"}))
    model = hf.CLIPVisionModelWithProjection.from_pretrained(root / "ecosat").eval()
    images = rng.integers(0, 256, (2, 48, 48, 3), dtype=np.uint8)
    ours = PublishedEncoders(Checkpoints.open(root)).encode("satellite", images)
    with torch.inference_mode():
        same(ours, model(pixels(reference, images)).image_embeds)
    assert not torch.allclose(ours, PublishedEncoders(Checkpoints.open(published.root)).encode("satellite", images))


@pytest.mark.parametrize("form", ["bin", "half", "bfloat16", "double", "wrapped", "older"])
def test_other_forms_of_the_same_weights(published, tmp_path, rng, form):
    """Pickles of tensors, other float types, the extra buffer of older exports: the same embedding."""
    from safetensors.torch import load_file

    source = published.root / "ecosat"
    state = load_file(source / "model.safetensors")
    folder = tmp_path / "ecosat"
    folder.mkdir()
    (folder / "config.json").write_text((source / "config.json").read_text())
    kind = {"half": torch.float16, "bfloat16": torch.bfloat16, "double": torch.float64}.get(form, torch.float32)
    state = {k: v.to(kind) for k, v in state.items()}
    if form == "older":
        state["vision_model.embeddings.position_ids"] = torch.arange(10)[None]
    if form == "bin":
        torch.save(state, folder / "pytorch_model.bin")
    elif form == "wrapped":
        torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}}, folder / "pytorch_model.bin")
    else:
        save_safetensors(state, folder / "model.safetensors")
    images = rng.integers(0, 256, (2, 48, 48, 3), dtype=np.uint8)
    ours = PublishedEncoders(Checkpoints.open(tmp_path)).encode("satellite", images)
    theirs = PublishedEncoders(Checkpoints.open(published.root)).encode("satellite", images)
    tolerance = {"half": 3e-3, "bfloat16": 2e-2}.get(form, 1e-6)
    torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=0)


def test_evaluation_mode_and_no_gradients(published):
    checkpoints = Checkpoints.open(published.root)
    for modality in MODALITIES:
        tower = checkpoints.load(modality)
        assert not any(m.training for m in tower.modules())
        assert not any(p.requires_grad for p in tower.parameters())
        assert {t.device.type for t in tower.state_dict().values()} == {"cpu"}
    x = np.ones((4, 20), np.float32)
    encoders = PublishedEncoders(checkpoints)
    assert torch.equal(encoders.encode("environment", x), encoders.encode("environment", x))


def test_one_copy_per_process(published):
    first, second = Checkpoints.open(published.root), Checkpoints.open(published.root)
    assert first == second
    assert first.load("location") is second.load("location")


def test_longitudes_wrap_and_order_is_lon_lat(published):
    encoders = PublishedEncoders(Checkpoints.open(published.root))
    a = encoders.encode("location", np.array([[190.0, 45.0], [-540.0, 10.0], [180.0, 10.0]]))
    b = encoders.encode("location", np.array([[-170.0, 45.0], [-180.0, 10.0], [-180.0, 10.0]]))
    assert torch.equal(a, b)
    assert not torch.allclose(
        encoders.encode("location", np.array([[45.0, 10.0]])),
        encoders.encode("location", np.array([[10.0, 45.0]])),
        atol=0.1,
    )


def test_chunks_do_not_show(published, rng, monkeypatch):
    encoders = PublishedEncoders(Checkpoints.open(published.root))
    x = rng.standard_normal((50, 20)).astype(np.float32)
    whole = encoders.encode("environment", x)
    monkeypatch.setattr("sdm.models.taxabind.encoders.CHUNK", {"environment": 28, "text": 8})
    torch.testing.assert_close(encoders.encode("environment", x), whole)
    assert encoders.encode("environment", x[:0]).shape == (0, whole.shape[1])
    assert encoders.encode("text", []).shape == (0, whole.shape[1])
    assert encoders.encode("audio", []).shape == (0, whole.shape[1])


@pytest.mark.parametrize(
    ("modality", "values", "says"),
    [
        ("location", np.zeros((3, 3)), r"\(3, 3\).*longitude"),
        ("environment", np.zeros((3, 19), np.float32), r"\(3, 19\)"),
        ("image", np.zeros((1, 48, 48, 3), np.float32), "uint8"),
        ("satellite", np.zeros((1, 47, 48, 3), np.uint8), r"\(1, 47, 48, 3\)"),
        ("audio", [np.zeros((2, 100), np.float32)], "mono"),
        ("audio", [np.full(100, np.nan, np.float32)], "missing samples"),
        ("text", ["x" * 5000], "5,000 characters"),
    ],
)
def test_values_that_do_not_fit(published, modality, values, says):
    with pytest.raises(RequestError, match=says):
        PublishedEncoders(Checkpoints.open(published.root)).encode(modality, values)


def test_golden_tokens():
    """From the model's own tokenizer; needs no reference library."""
    ids = [49406, 2190, 2492, 7567, 2281, 14023, 4263, 2946, 553, 1157, 542, 4263, 2946, 553, 15422, 9860, 5548, 1169]
    ids += [718, 15691, 622, 685, 19962, 718, 49407]
    tokens = tokenizer()([EAGLE])
    assert tokens.shape == (1, 77)
    assert tokens[0].tolist() == ids + [0] * 52


@pytest.mark.parametrize(
    "text",
    [
        "",
        "!",
        "  a\tb\nc ",
        "it's Ł'S ſ's",
        "<end_of_text> <start_of_text>x",
        "ﬁne ＦＵＬＬ",
        "â€œmojibakeâ€",
        "&amp;amp;lt;",
        "123 ½ ²",
        "北京 クマ",
        "a" * 500,
        "👩‍👩‍👧",
        "\x00\x1b[0m",
        "İstanbul ß",
        "\ud800",
    ],
)
def test_tokens_of_odd_texts(reference, text):
    expected = reference.open_clip.tokenizer.SimpleTokenizer()([text]).numpy()
    np.testing.assert_array_equal(tokenizer()([text]), expected)


def test_tokens_of_any_text(reference):
    theirs = reference.open_clip.tokenizer.SimpleTokenizer()

    @settings(max_examples=400, deadline=None)
    @given(st.text(max_size=200) | st.text("aeiourst' <>_&;0é", max_size=60))
    def check(text):
        np.testing.assert_array_equal(tokenizer()([text]), theirs([text]).numpy())

    check()


def test_damaged_merges():
    from sdm.models.encoders.clip_tokens import Tokenizer

    with pytest.raises(ModelError, match=r"merges"):
        Tokenizer("header\na b\n")


GOLDEN = [  # (lat, lon), norm, first four
    ((0.0, 0.0), 0.39523, (0.00466, 0.00069, 0.00735, -0.00151)),
    ((43.0, 128.0), 0.30741, (-0.00072, 0.01039, 0.02478, 0.00395)),
    ((37.7749, -122.4194), 0.25126, (0.00167, 0.0173, 0.00771, -0.00956)),
    ((-3.12, 60.02), 0.38452, (-0.01902, -0.02344, 0.002, -0.00743)),
    ((90.0, 180.0), 0.44004, (0.00938, -0.00868, 0.01728, 0.02261)),
]


def test_projection():
    from sdm.models.encoders.geoclip import equal_earth

    xy = equal_earth(torch.tensor([place for place, _, _ in GOLDEN]))
    expected = [[0, 0], [0.618036, 0.305349], [-0.610966, 0.271669], [0.333208, -0.023346], [0.592467, 0.486717]]
    torch.testing.assert_close(xy, torch.tensor(expected), atol=1e-6, rtol=0)


@pytest.mark.slow
def test_the_real_location_weights(geoclip_package, tmp_path):
    """GeoCLIP's published weights, under GeoCLIP's name and as ecogeo would have them."""
    weights = geoclip_package / "model" / "weights" / "location_encoder_weights.pth"
    for name in ("location_encoder_weights.pth", "pytorch_model.bin"):
        folder = tmp_path / name / "ecogeo"
        folder.mkdir(parents=True)
        (folder / name).write_bytes(weights.read_bytes())
        checkpoints = Checkpoints.open(tmp_path / name)
        assert checkpoints.modalities == ("location",)
        tower = checkpoints.load("location")
        vectors = tower(torch.tensor([place for place, _, _ in GOLDEN]))
        # At sigma 256 the float32 of one matrix library differs from another's by 2e-5.
        torch.testing.assert_close(vectors.norm(dim=1), torch.tensor([n for _, n, _ in GOLDEN]), atol=3e-5, rtol=0)
        torch.testing.assert_close(vectors[:, :4], torch.tensor([v for _, _, v in GOLDEN]), atol=2e-5, rtol=0)
        seam = normalize(tower(torch.tensor([[0.0, -180.0], [0.0, 180.0]])))
        assert float(seam[0] @ seam[1]) == pytest.approx(0.272, abs=1e-3)
    with pytest.raises(ModelError, match=r"satellite encoder is missing: model.safetensors \(345 MB\)"):
        checkpoints.load("satellite")


@pytest.mark.slow
def test_the_code_that_made_the_location_weights(geoclip_package, tmp_path, rng, monkeypatch):
    """GeoCLIP's own class on its own weights, at a thousand places."""
    import sys
    import types

    for name, folder in (("geoclip", geoclip_package), ("geoclip.model", geoclip_package / "model")):
        package = types.ModuleType(name)
        package.__path__ = [str(folder)]  # without running its __init__, which imports all of CLIP
        monkeypatch.setitem(sys.modules, name, package)
    from geoclip.model.location_encoder import LocationEncoder

    (tmp_path / "ecogeo").mkdir()
    weights = (geoclip_package / "model" / "weights" / "location_encoder_weights.pth").read_bytes()
    (tmp_path / "ecogeo" / "pytorch_model.bin").write_bytes(weights)
    lonlat = np.stack([rng.uniform(-180, 180, 1000), rng.uniform(-90, 90, 1000)], 1)
    with torch.inference_mode():
        theirs = LocationEncoder()(torch.tensor(lonlat[:, ::-1].copy(), dtype=torch.float32))
    same(PublishedEncoders(Checkpoints.open(tmp_path)).encode("location", lonlat), theirs)
    for name in [m for m in sys.modules if m.startswith("geoclip.model.")]:
        monkeypatch.delitem(sys.modules, name)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_every_modality_on_a_gpu(published, rng):
    """bfloat16 turns a vector by no more than its precision allows."""
    checkpoints = Checkpoints.open(published.root)
    cpu, gpu = PublishedEncoders(checkpoints), PublishedEncoders(checkpoints, "cuda")
    images = rng.integers(0, 256, (300, 48, 48, 3), dtype=np.uint8)
    values = {
        "image": images,
        "satellite": images,
        "text": TEXTS,
        "location": np.stack([rng.uniform(-180, 180, 300), rng.uniform(-90, 90, 300)], 1),
        "environment": rng.standard_normal((300, 20)),
        "audio": [rng.standard_normal(30_000), rng.standard_normal(700_000)],
    }
    for modality, given_values in values.items():
        ours = gpu.encode(modality, given_values)
        assert ours.device.type == "cuda"
        assert ours.dtype == torch.float32
        cosine = (ours.cpu() * cpu.encode(modality, given_values)).sum(1)
        assert float(cosine.min()) > (0.9999 if modality == "audio" else 0.995), modality


def test_worth_of_half_precision_on_a_gpu(published, rng):
    """What autocast does to each modality, tried on a CPU: the Fourier features stay exact."""
    checkpoints = Checkpoints.open(published.root)
    lonlat = np.stack([rng.uniform(-180, 180, 50), rng.uniform(-60, 80, 50)], 1)
    exact = PublishedEncoders(checkpoints).encode("location", lonlat)
    latlon = torch.tensor(lonlat[:, ::-1].copy(), dtype=torch.float32)
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        half = normalize(checkpoints.load("location")(latlon), dim=-1)
    assert float((half * exact).sum(1).min()) > 0.999
