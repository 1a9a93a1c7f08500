"""Checkpoints in the published layout, made by the reference classes with random weights."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

GEOCLIP = "geoclip==1.3.0"
_KEPT = []  # operators are declared for as long as their library object lives


@pytest.fixture(scope="session")
def reference():
    """The reference implementations: open_clip, torchvision's transforms, transformers.

    A torchvision that was built for another torch lacks two operators; none of what is used here needs
    them, so declaring them is enough to import it.
    """
    if sys.modules.get("torchvision", "absent") is None:  # hidden by sdm.models.encoders.clap
        del sys.modules["torchvision"]
    try:
        import torchvision  # noqa: F401
    except ImportError:
        pytest.skip("torchvision is not installed")
    except RuntimeError:
        for name in [m for m in sys.modules if m.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _KEPT.append(library)
    open_clip = pytest.importorskip("open_clip")
    transformers = pytest.importorskip("transformers")
    from torchvision import transforms

    return SimpleNamespace(open_clip=open_clip, transformers=transformers, transforms=transforms)


@torch.no_grad()
def randomise(module, seed=0):
    """Every weight random, those that start as zero or one too: a weight read into the wrong place must show."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in module.state_dict().items():
        if value.is_floating_point():
            noise = torch.randn(value.shape, generator=generator)
            if name.endswith("running_var"):
                value.copy_(0.5 + noise.abs())
            elif value.ndim < 2:
                value.add_(0.1 * noise)
            else:
                value.copy_(noise * value[0].numel() ** -0.5)
    return module.eval()


def save_safetensors(state, path):
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({k: v.detach().clone().contiguous() for k, v in state.items()}, path)


class ResLayer(torch.nn.Module):
    """SINR's residual layer, as its paper states it."""

    def __init__(self, width):
        super().__init__()
        self.w1, self.w2 = torch.nn.Linear(width, width), torch.nn.Linear(width, width)

    def forward(self, x):
        return x + torch.relu(self.w2(torch.nn.functional.dropout(torch.relu(self.w1(x)), 0.5, self.training)))


class ResidualFCNet(torch.nn.Module):
    """SINR's network without its head."""

    def __init__(self, inputs, width, depth):
        super().__init__()
        self.feats = torch.nn.Sequential(
            torch.nn.Linear(inputs, width), torch.nn.ReLU(), *[ResLayer(width) for _ in range(depth)]
        )

    def forward(self, x):
        return self.feats(x)


def geoclip_state(dim, features, hidden, sigmas):
    """Random weights under the names of GeoCLIP's location encoder."""
    state = {}
    for k, sigma in enumerate(sigmas):
        state[f"LocEnc{k}.capsule.0.b"] = torch.randn(features, 2) * sigma
        for n, (a, b) in {1: (2 * features, hidden), 3: (hidden, hidden), 5: (hidden, hidden)}.items():
            state[f"LocEnc{k}.capsule.{n}.weight"] = torch.randn(b, a) * a**-0.5
            state[f"LocEnc{k}.capsule.{n}.bias"] = torch.randn(b) * 0.1
        state[f"LocEnc{k}.head.0.weight"] = torch.randn(dim, hidden) * hidden**-0.5
        state[f"LocEnc{k}.head.0.bias"] = torch.randn(dim) * 0.1
    return state


def make_published(root: Path, reference, full=False, quick_gelu=None, image=48):
    """All five repositories below a folder; returns the reference models. `image`: side of a small one's pictures."""
    torch.manual_seed(1)
    open_clip, hf = reference.open_clip, reference.transformers
    dim = 512 if full else 64
    if full:
        model_cfg = open_clip.get_model_config("ViT-B-16")
    else:
        model_cfg = {
            "embed_dim": dim,
            "vision_cfg": {"image_size": image, "layers": 2, "width": 128, "patch_size": 16},
            "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 4, "layers": 2},
        }
    if quick_gelu is not None:
        model_cfg["quick_gelu"] = quick_gelu
    clip = randomise(open_clip.model.CLIP(**model_cfg))
    with torch.no_grad():
        clip.logit_scale.fill_(3.0)
    folder = root / "taxabind-vit-b-16"
    save_safetensors(clip.state_dict(), folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model_cfg, "preprocess_cfg": {}}))

    small = (
        {}
        if full
        else {
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "image_size": image,
        }
    )
    satellite = randomise(
        hf.CLIPVisionModelWithProjection(hf.CLIPVisionConfig(projection_dim=dim, patch_size=16, **small)), 2
    )
    satellite.save_pretrained(root / "ecosat")

    location = geoclip_state(dim, *((256, 1024) if full else (16, 32)), (1.0, 16.0, 256.0))
    save_safetensors(location, root / "ecogeo" / "model.safetensors")
    (root / "ecogeo" / "config.json").write_text(
        json.dumps({"dim": dim, "encoded_size": 256 if full else 16, "input_size": 2, "sigma": [1, 16, 256]})
    )

    environment = randomise(ResidualFCNet(20, dim, 4), 3)
    save_safetensors(environment.state_dict(), root / "ecoclim" / "model.safetensors")
    (root / "ecoclim" / "config.json").write_text(
        json.dumps({"depth": 4, "num_classes": 0, "num_filts": dim, "num_inputs": 20})
    )

    small = (
        {}
        if full
        else {
            "depths": [1, 1, 1, 1],
            "num_attention_heads": [1, 2, 4, 8],
            "patch_embeds_hidden_size": 16,
            "hidden_size": 128,
        }
    )
    audio = hf.ClapAudioModelWithProjection(hf.ClapAudioConfig(enable_fusion=True, projection_dim=dim, **small))
    audio = randomise(audio, 4)
    audio.save_pretrained(root / "ecosound")
    return SimpleNamespace(clip=clip, satellite=satellite, location=location, environment=environment, audio=audio)


@pytest.fixture(scope="session")
def make(reference):
    """Function: `make_published` below a folder."""
    return lambda root, **options: make_published(root, reference, **options)


@pytest.fixture(scope="session")
def published(reference, tmp_path_factory):
    """A small model in the published layout: `root`, and the reference models that made it."""
    root = tmp_path_factory.mktemp("published")
    models = make_published(root, reference)
    return SimpleNamespace(root=root, **vars(models))


@pytest.fixture
def copy_of(published, tmp_path):
    """Function: a copy of some repositories of the small model that a test may damage; returns their folder."""
    import shutil

    def copy(*names, to=None):
        root = tmp_path / "copy"
        for name in names:
            shutil.copytree(published.root / name, (to or root) / name)
        return to or root

    return copy


@pytest.fixture(scope="session")
def geoclip_package(tmp_path_factory, worker_id):
    """Folder of GeoCLIP's own code and weights, out of its wheel, which is kept in the project's .cache folder.

    Not installed: it would bring libraries that do not get on with a torch without CUDA.
    """
    import zipfile

    cache = Path(__file__).parents[3] / ".cache" / "wheels"
    if not list(cache.glob("geoclip-1.3.0*.whl")):
        folder = tmp_path_factory.mktemp(f"wheel-{worker_id}")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), GEOCLIP]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        if done.returncode:
            pytest.skip(f"{GEOCLIP} cannot be downloaded: {done.stderr[-200:]}")
        cache.mkdir(parents=True, exist_ok=True)
        for wheel in folder.glob("*.whl"):
            part = cache / f".{worker_id}-{wheel.name}"
            part.write_bytes(wheel.read_bytes())
            part.replace(cache / wheel.name)
    folder = tmp_path_factory.mktemp("geoclip")
    with zipfile.ZipFile(next(cache.glob("geoclip-1.3.0*.whl"))) as wheel:
        wheel.extractall(folder)
    return folder / "geoclip"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """No test reads or writes the caches of the user."""
    for name in ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HUB_OFFLINE", "HF_ENDPOINT", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user-cache"))
    monkeypatch.setenv("TAXABIND_MAP_CACHE", str(tmp_path / "user-cache" / "taxabind-map"))


@pytest.fixture
def rng():
    import numpy as np

    return np.random.default_rng(7)
