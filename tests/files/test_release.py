"""Bundled models and layers are those of the release: a changed bit is noticed before it moves a map."""

import shutil

import pytest

import sdm.models.folder
from sdm.cli import main_sdm
from sdm.engine.inputs import layer_fingerprints
from sdm.errors import LayerError, ModelError
from sdm.files import release
from sdm.files.paths import folder
from sdm.layers.satellite import Satellite
from sdm.models.bundled import BundledModel
from sdm.models.registry import list_models


def flip(path):
    found = bytearray(path.read_bytes())
    found[len(found) // 3] ^= 64
    path.write_bytes(found)


@pytest.mark.parametrize("kind", release.KINDS)
def test_hashes_are_those_of_the_files(kind):
    stale = release.problems(folder(kind))
    assert not stale, f"{kind}: {', '.join(stale)} changed; run `make hashes` (python recipes/hashes.py)"


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A copy of some bundled layers, in their place."""
    copy = tmp_path / "data"
    copy.mkdir()
    for name in ("satellite.tif", "landmask.tif", "nations.csv"):
        shutil.copy(folder("data") / name, copy)
    release.write_sums(copy)
    monkeypatch.setattr(release, "folder", lambda kind: copy)
    monkeypatch.setattr(sdm.models.folder, "resource_folder", lambda kind: copy if kind == "data" else folder(kind))
    return copy


def test_a_changed_layer_moves_no_map(data):
    assert release.data_file("satellite.tif") == data / "satellite.tif"
    flip(data / "satellite.tif")
    for use in (
        lambda: Satellite(8, 0.1),
        lambda: layer_fingerprints(list_models()[0], ["satellite"]),
        lambda: release.data_file("satellite.tif"),
    ):
        with pytest.raises(LayerError, match=r"satellite\.tif is not that of the release .*install .*make hashes"):
            use()
    assert release.data_file("nations.csv").exists()
    (data / "nations.csv").unlink()
    with pytest.raises(LayerError, match=r"nations\.csv cannot be checked"):
        release.data_file("nations.csv")
    (data / "new.tif").touch()
    assert sorted(release.problems(data)) == ["nations.csv", "new.tif", "satellite.tif"]
    (data / release.SUMS).write_bytes(b"\xff\x00no list")
    with pytest.raises(LayerError, match="cannot be checked"):
        release.data_file("landmask.tif")


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "vocabulary.txt", "taxa.csv", "genera.csv"])
@pytest.mark.parametrize("own_list", [True, False])
def test_a_changed_model_is_refused(tmp_path, monkeypatch, write_model, file, own_list):
    models = tmp_path / "models"
    lineage = ("Animalia", "Chordata", "Mammalia", "Carnivora", "Ursidae", "Ursus")
    species = [("Ursus arctos", "Mammalia", "Carnivora", "Ursidae", "mammal")]
    path = write_model(models / "bears", species, genera=[lineage])
    monkeypatch.setattr(sdm.models.folder, "resource_folder", lambda kind: models)
    release.write_sums(path if own_list else models)
    assert BundledModel.open("bears").digest == BundledModel.open(path).digest
    flip(path / file)
    for name in ("bears", path):
        with pytest.raises(ModelError, match=rf"bears.*{file} is not that of the release"):
            BundledModel.open(name)


def test_verify_reads_the_layers_too(data, run):
    code, out, err = run("models", "verify", "mammals-trees", entry=main_sdm)
    assert (code, err) == (0, "") and "satellite.tif" in out and "BAD" not in out
    flip(data / "landmask.tif")
    code, out, err = run("models", "verify", "mammals-trees", entry=main_sdm)
    assert code == 5 and "BAD" in out and "landmask.tif is not that of the release" in err
