"""Finding published files, reading them strictly, verifying them."""

import io
import json
import pickle
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from sdm.errors import ModelError
from sdm.models.taxabind import MODALITIES, Checkpoints, PublishedEncoders
from sdm.models.taxabind.hashes import LOCK
from sdm.models.taxabind.layout import PARTS, parse_uri, parts_from_config
from sdm.models.taxabind.verify import verify
from tests.models.taxabind.conftest import save_safetensors

ALL = [part.name for part in PARTS]
ENVIRONMENT = np.ones((2, 20), np.float32)


def edit(path, change):
    """Rewrite a safetensors file after a change, in place, to its tensors."""
    state = load_file(path)
    change(state)
    save_safetensors(state, path)


def edit_json(path, **values):
    config = json.loads(path.read_text()) | values
    path.write_text(json.dumps({k: v for k, v in config.items() if v != "REMOVE"}))


def to_hub_cache(source, cache, revision="main", commit="a" * 40):
    """A folder of repositories as the Hugging Face cache lays them out, links included."""
    import hashlib

    for folder in source.iterdir():
        store = cache / f"models--MVRL--{folder.name}"
        (store / "snapshots" / commit).mkdir(parents=True)
        (store / "blobs").mkdir()
        (store / "refs").mkdir()
        (store / "refs" / revision).write_text(commit)
        for file in folder.iterdir():
            name = hashlib.sha256(file.read_bytes()).hexdigest()
            shutil.copy(file, store / "blobs" / name)
            (store / "snapshots" / commit / file.name).symlink_to(f"../../blobs/{name}")
    return cache


# Where the files may lie


def test_three_layouts_one_digest(published, copy_of, tmp_path):
    """By hand, by organisation, as a cache: the same files are the same model."""
    flat = Checkpoints.open(published.root)
    copy_of(*ALL, to=tmp_path / "by-organisation" / "MVRL")
    cache = to_hub_cache(published.root, tmp_path / "cache" / "hub")
    places = [tmp_path / "by-organisation", cache, cache.parent]
    for place in places:
        other = Checkpoints.open(place)
        assert other.modalities == MODALITIES
        assert other.digest == flat.digest
    assert Checkpoints.open(cache_dir=cache).digest == flat.digest


def test_the_hub_cache_is_found_by_its_variables(published, tmp_path, monkeypatch):
    to_hub_cache(published.root, tmp_path / "home" / "hub")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    assert Checkpoints.open().modalities == MODALITIES
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "elsewhere"))
    with pytest.raises(ModelError, match=r"elsewhere.*1103 MB in 5 repositories.*`sdm models fetch taxabind`"):
        Checkpoints.open()


def test_some_parts_are_enough(copy_of):
    checkpoints = Checkpoints.open(copy_of("ecoclim", "taxabind-vit-b-16"))
    assert checkpoints.modalities == ("image", "text", "environment")
    assert PublishedEncoders(checkpoints).encode("environment", ENVIRONMENT).shape == (2, 64)
    with pytest.raises(ModelError) as error:
        checkpoints.load("audio")
    for fact in (
        "audio",
        "model.safetensors",
        "113 MB",
        "MVRL/ecosound",
        "--modality audio --cache-dir",
        "copy/ecosound",
    ):
        assert fact in str(error.value)
    with pytest.raises(ModelError, match=r"'smell'"):
        checkpoints.load("smell")


def test_a_repository_by_itself(copy_of):
    assert Checkpoints.open(copy_of("ecoclim") / "ecoclim").modalities == ("environment",)


def test_a_missing_config_spoils_only_its_part(copy_of):
    root = copy_of("ecosat", "ecoclim")
    (root / "ecosat" / "config.json").unlink()
    checkpoints = Checkpoints.open(root)
    assert checkpoints.modalities == ("environment",)
    with pytest.raises(ModelError, match=r"config\.json of MVRL/ecosat is missing"):
        checkpoints.load("satellite")


def test_safetensors_before_pickles(published, copy_of):
    root = copy_of("ecoclim")
    (root / "ecoclim" / "pytorch_model.bin").write_bytes(b"never read")
    ours = PublishedEncoders(Checkpoints.open(root)).encode("environment", ENVIRONMENT)
    theirs = PublishedEncoders(Checkpoints.open(published.root)).encode("environment", ENVIRONMENT)
    assert torch.equal(ours, theirs)


def test_a_configuration_names_other_repositories(copy_of, tmp_path):
    root = copy_of("ecoclim", "ecosat")
    (root / "ecoclim").rename(root / "climate-2")
    (root / "taxabind-config").mkdir()
    config = {"clip": "hf-hub:MVRL/taxabind-vit-b-16", "sinr": "someone/climate-2", "sat_encoder": "MVRL/ecosat"}
    (root / "taxabind-config" / "config.json").write_text(json.dumps(config))
    assert Checkpoints.open(root).modalities == ("satellite", "environment")


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"env_encoder": "../../etc"}, "not of the form"),
        ({"env_encoder": "a/../b"}, "not of the form"),
        ({"env_encoder": "/etc/passwd"}, "not of the form"),
        ({"env_encoder": ["MVRL/ecoclim"]}, "not of the form"),
        ({"env_encoder": "MVRL/ecoclim", "image_crop": 336}, "image_crop is 336"),
        ({"a": 1}, "names no encoder"),
    ],
)
def test_configurations_that_are_refused(config, says):
    with pytest.raises(ModelError, match=says):
        parts_from_config(config, "config.json")


def test_uris():
    assert parse_uri("hf://MVRL/taxabind-config") == ("MVRL/taxabind-config", None)
    assert parse_uri("hf://a/b@v1.0") == ("a/b", "v1.0")
    for bad in ("hf://", "hf://a", "hf://a/b/c", "hf://a/b@", "hf://a/b@../x", "hf://../b", "https://a/b", "hf://a b"):
        with pytest.raises(ModelError):
            parse_uri(bad)


def test_importing_is_light():
    parts = "".join(f", sdm.models.taxabind.{name}" for name in ("model", "fetch", "verify", "photo", "sound"))
    code = f"import sys, sdm.models.registry{parts}\n"
    code += "print(*{m.partition('.')[0] for m in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    heavy = {"torch", "transformers", "huggingface_hub", "PIL", "soundfile", "regex", "ftfy", "safetensors", "rasterio"}
    assert not heavy & set(loaded)


def test_sound_beside_a_torchvision_that_does_not_fit_torch(published):
    """As the registry's CUDA build beside a CPU torch: transformers alone would fail to import."""
    code = f"""
import sys, types
class Broken:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torchvision":
            raise RuntimeError("operator torchvision::nms does not exist")
sys.meta_path.insert(0, Broken())
from sdm.models.taxabind import Checkpoints, PublishedEncoders
import numpy as np
print(PublishedEncoders(Checkpoints.open({str(published.root)!r})).encode("audio", [np.ones(999, np.float32)]).shape)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "torch.Size([1, 64])", done.stderr[-500:]


def test_checkpoints_travel_without_weights(published):
    checkpoints = Checkpoints.open(published.root)
    checkpoints.load("environment")
    sent = pickle.dumps(checkpoints)
    assert len(sent) < 10_000
    assert pickle.loads(sent) == checkpoints


# What a weight file must be

DAMAGE = {
    "missing": (lambda s: s.pop("feats.3.w2.bias"), "missing feats.3.w2.bias"),
    "unknown": (lambda s: s.update(extra=torch.zeros(1)), "unknown extra"),
    "shape": (lambda s: s.update({"feats.2.w1.weight": torch.zeros(64, 63)}), r"\(64, 63\), expected \(64, 64\)"),
    "transposed": (lambda s: s.update({"feats.0.weight": s["feats.0.weight"].T}), "expected|num_filts"),
    "infinite": (lambda s: s["feats.2.w1.bias"].fill_(float("inf")), "not finite"),
    "nan": (lambda s: s["feats.0.weight"][0].fill_(float("nan")), "not finite"),
    "double": (lambda s: s.update({"feats.2.w1.bias": torch.full((64,), 1e300, dtype=torch.float64)}), "not finite"),
    "integers": (lambda s: s.update({"feats.2.w1.bias": torch.ones(64, dtype=torch.int64)}), "type int64"),
    "empty": (lambda s: s.clear(), "published layout"),
    "zero-size": (lambda s: s.update({"feats.0.weight": torch.zeros(0, 20)}), "published layout"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_weights(copy_of, kind):
    change, says = DAMAGE[kind]
    root = copy_of("ecoclim")
    edit(root / "ecoclim" / "model.safetensors", change)
    with pytest.raises(ModelError, match=says):
        Checkpoints.open(root).load("environment")


@pytest.mark.parametrize(
    ("repository", "modality"),
    [
        ("taxabind-vit-b-16", "image"),
        ("taxabind-vit-b-16", "text"),
        ("ecosat", "satellite"),
        ("ecogeo", "location"),
        ("ecosound", "audio"),
    ],
)
def test_every_key_counts(copy_of, rng, repository, modality):
    """Of each repository, three keys left out and three renamed: all are noticed, whichever tower is asked for."""
    from sdm.models.taxabind.layout import find_part

    root = copy_of(repository)
    path = root / repository / find_part(modality).weights[0]
    # Copies: some versions of safetensors hand out the file itself, and it is written over.
    whole = {k: v.clone() for k, v in load_file(path).items()}
    for key in rng.choice(sorted(whole), 3, replace=False):
        save_safetensors({k: v for k, v in whole.items() if k != key}, path)
        with pytest.raises(ModelError, match=r"published layout|capsules"):
            Checkpoints.open(root).load(modality)
        save_safetensors({(f"{k}.x" if k == key else k): v for k, v in whole.items()}, path)
        with pytest.raises(ModelError, match=r"published layout|capsules"):
            Checkpoints.open(root).load(modality)


@pytest.mark.parametrize("cut", [0, 5, 8, 100, 5000, -1])
def test_truncated_safetensors(copy_of, cut):
    root = copy_of("ecoclim")
    path = root / "ecoclim" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ModelError, match=r"cut off|empty"):
        Checkpoints.open(root).load("environment")


def test_safetensors_with_a_huge_header(copy_of):
    root = copy_of("ecoclim")
    (root / "ecoclim" / "model.safetensors").write_bytes((2**62).to_bytes(8, "little") + b"{}")
    with pytest.raises(ModelError, match=r"no complete safetensors"):
        Checkpoints.open(root).load("environment")


def test_a_git_lfs_pointer(copy_of):
    root = copy_of("ecoclim")
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 8450000\n"
    (root / "ecoclim" / "model.safetensors").write_bytes(pointer)
    with pytest.raises(ModelError, match=r"git-lfs pointer.*git lfs pull"):
        Checkpoints.open(root).load("environment")


class Exploit:
    """What a hostile pickle does when it is loaded without care."""

    def __reduce__(self):
        return (exec, ("raise SystemExit('code in a pickle was run')",))


def as_bin(root, content):
    (root / "ecoclim" / "model.safetensors").unlink()
    (root / "ecoclim" / "pytorch_model.bin").write_bytes(content)


def saved(thing, **options):
    file = io.BytesIO()
    torch.save(thing, file, **options)
    return file.getvalue()


@pytest.mark.parametrize("new_format", [True, False])
def test_pickles_with_code_are_refused(copy_of, new_format):
    root = copy_of("ecoclim")
    state = load_file(root / "ecoclim" / "model.safetensors")
    as_bin(root, saved(state | {"x": Exploit()}, _use_new_zipfile_serialization=new_format))
    with pytest.raises(ModelError, match=r"could run code"):
        Checkpoints.open(root).load("environment")


def test_pickles_of_the_old_format_and_damaged_ones(copy_of, published):
    root = copy_of("ecoclim")
    whole = saved(load_file(root / "ecoclim" / "model.safetensors"), _use_new_zipfile_serialization=False)
    as_bin(root, whole)
    ours = PublishedEncoders(Checkpoints.open(root)).encode("environment", ENVIRONMENT)
    assert torch.equal(ours, PublishedEncoders(Checkpoints.open(published.root)).encode("environment", ENVIRONMENT))
    for content in (whole[:-1000], b"\x80\x02garbage", saved([1, 2]), saved({"a": 1}), pickle.dumps({"a": 1})):
        (root / "ecoclim" / "pytorch_model.bin").write_bytes(content)
        with pytest.raises(ModelError):
            Checkpoints.open(root).load("environment")


def test_compressed_pickles_are_refused(copy_of):
    root = copy_of("ecoclim")
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(10_000_000))
    as_bin(root, bomb.getvalue())
    with pytest.raises(ModelError, match=r"compressed"):
        Checkpoints.open(root).load("environment")


def test_a_pickle_whose_tensor_is_a_view_of_one_number(copy_of):
    """A shape of a terabyte over a storage of four bytes must not be copied out."""
    root = copy_of("ecoclim")
    state = load_file(root / "ecoclim" / "model.safetensors")
    as_bin(root, saved(state | {"feats.0.weight": torch.zeros(1).expand(2**20, 2**18)}))
    with pytest.raises(ModelError):
        Checkpoints.open(root).load("environment")


@pytest.mark.parametrize(
    ("repository", "modality", "values", "says"),
    [
        ("ecosat", "satellite", {"hidden_act": "relu"}, "hidden_act"),
        ("ecosat", "satellite", {"hidden_size": 10**9}, "hidden_size"),
        ("ecosat", "satellite", {"hidden_size": 128}, "expected"),
        ("ecosat", "satellite", {"num_attention_heads": 7}, "7 heads"),
        ("ecosat", "satellite", {"num_hidden_layers": True}, "num_hidden_layers"),
        ("ecosat", "satellite", {"num_hidden_layers": 3}, "missing"),
        ("ecosat", "satellite", {"patch_size": "REMOVE"}, "patches of 32"),
        ("ecosat", "satellite", {"layer_norm_eps": 1e-3}, "layer_norm_eps"),
        ("ecogeo", "location", {"sigma": [1, 16]}, "3 capsules"),
        ("ecogeo", "location", {"dim": 512}, "dim"),
        ("ecoclim", "environment", {"num_inputs": 21}, "num_inputs"),
        ("ecoclim", "environment", {"num_classes": 10}, "num_classes"),
        ("ecosound", "audio", {"enable_fusion": False}, "enable_fusion"),
        ("ecosound", "audio", {"depths": [1, 1, 1, 9999]}, "depths"),
        ("ecosound", "audio", {"hidden_size": 256}, "expected|CLAP"),
    ],
)
def test_configs_that_do_not_fit(copy_of, repository, modality, values, says):
    root = copy_of(repository)
    edit_json(root / repository / "config.json", **values)
    with pytest.raises(ModelError, match=says):
        Checkpoints.open(root).load(modality)


@pytest.mark.parametrize(
    ("section", "values", "says"),
    [
        ("vision_cfg", {"timm_model_name": "vit"}, "timm_model_name"),
        ("vision_cfg", {"layers": 3}, "missing visual"),
        ("text_cfg", {"heads": 3}, "3 heads"),
        ("text_cfg", {"context_length": 64}, "context_length"),
        ("text_cfg", {"hf_tokenizer_name": "x"}, "hf_tokenizer_name"),
    ],
)
def test_open_clip_configs_that_do_not_fit(copy_of, section, values, says):
    root = copy_of("taxabind-vit-b-16")
    path = root / "taxabind-vit-b-16" / "open_clip_config.json"
    config = json.loads(path.read_text())
    config["model_cfg"][section].update(values)
    path.write_text(json.dumps(config))
    with pytest.raises(ModelError, match=says):
        Checkpoints.open(root).load("image")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 10_000, b" " * 2**21])
def test_broken_configs(copy_of, content):
    root = copy_of("ecosat")
    (root / "ecosat" / "config.json").write_bytes(content)
    with pytest.raises(ModelError, match=r"config.json"):
        Checkpoints.open(root).load("satellite")


# Hashes


def test_verify_records_and_then_notices(copy_of):
    root = copy_of(*ALL)
    first = verify(Checkpoints.open(root))
    assert [c.status for c in first] == ["recorded"] * 10
    assert [c.status for c in verify(Checkpoints.open(root))] == ["ok"] * 10
    digest = Checkpoints.open(root).digest
    edit(root / "ecoclim" / "model.safetensors", lambda s: s.update({"feats.0.bias": s["feats.0.bias"] + 1}))
    bad = [c for c in verify(Checkpoints.open(root)) if not c.good]
    assert [c.path.parent.name for c in bad] == ["ecoclim"]
    assert "has changed: its SHA-256" in bad[0].status
    with pytest.raises(ModelError, match=r"has changed: its SHA-256"):
        _ = Checkpoints.open(root).digest
    (root / LOCK).unlink()
    assert Checkpoints.open(root).digest != digest


def test_verify_finds_what_loading_one_tower_would_not(copy_of):
    root = copy_of("taxabind-vit-b-16")
    path = root / "taxabind-vit-b-16" / "open_clip_model.safetensors"
    edit(path, lambda s: s["text_projection"].fill_(float("nan")))
    Checkpoints.open(root).load("image")
    checks = verify(Checkpoints.open(root))
    assert all("text_projection holds numbers that are not finite" in c.status for c in checks)
    assert not (root / LOCK).exists()


def test_a_cache_knows_its_hashes(published, tmp_path):
    """A file that the hub named by its SHA-256 is held to it, without any lock file."""
    cache = to_hub_cache(published.root, tmp_path / "hub")
    checkpoints = Checkpoints.open(cache)
    environment, satellite = (checkpoints.find(modality) for modality in ("environment", "satellite"))
    path = environment.weights.resolve()
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"has changed: its SHA-256"):
        _ = checkpoints.digest
    with pytest.raises(ModelError, match=r"has changed: its SHA-256"):
        checkpoints.checked_hash(environment, environment.weights)
    assert len(checkpoints.checked_hash(satellite, satellite.weights)) == 64


def test_hashes_are_remembered_while_a_file_stays(copy_of, monkeypatch):
    root = copy_of("ecoclim")
    digest = Checkpoints.open(root).digest
    path = root / "ecoclim" / "model.safetensors"
    path.chmod(0)
    hashed = []
    import hashlib

    original = hashlib.file_digest
    monkeypatch.setattr("hashlib.file_digest", lambda *a: hashed.append(a) or original(*a))
    assert Checkpoints.open(root).digest == digest
    assert not hashed
    path.chmod(0o600)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert Checkpoints.open(root).digest != digest
    assert hashed


def test_a_foreign_lock_file(copy_of):
    root = copy_of("ecoclim")
    (root / LOCK).write_text("{}")
    with pytest.raises(ModelError, match=r"no lock file of this program"):
        _ = Checkpoints.open(root).digest
