"""What was written is verified to its last byte, and what was damaged is noticed."""

import json
import os
import shutil

import pytest

import sdm
from sdm.cli import main, main_sdm
from sdm.files.paths import folder
from sdm.maps.verify import verify
from sdm.records.fitfile import SUFFIX
from tests.records.test_fit_parts import saved_fit

BOX = (-120, 40, -117, 43)
AREA = ("--bbox", *BOX, "--resolution", 1, "--modalities", "location", "-q")


def flip(path, at=0.5):
    found = bytearray(path.read_bytes())
    found[int(at * (len(found) - 1))] ^= 1
    path.write_bytes(found)


def files(path):
    return sorted(file for file in path.rglob("*") if file.is_file())


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """A folder with a map, a batch and an index."""
    root = tmp_path_factory.mktemp("outputs")
    options = {"resolution": 1, "modalities": "location"}
    sdm.write_maps(sdm.plan("Ursus arctos", BOX, **options), root / "map", threads=1)
    sdm.map_batch(["Ursus arctos", "Puma concolor"], BOX, out=root / "batch", threads=1, **options)
    sdm.build_index(sdm.plan_index(BOX, tile_size=16, **options), root / "index.zarr", threads=1)
    return root


@pytest.mark.parametrize("kind", ["map", "batch", "index.zarr"])
def test_a_change_of_any_file_is_noticed(outputs, tmp_path, kind):
    whole = tmp_path / kind
    shutil.copytree(outputs / kind, whole)
    (verdict,) = verify(whole)
    assert verdict.good and verdict.kind == kind.partition(".")[0] and not verdict.note
    for file in files(whole):
        before = file.read_bytes()
        if not before:
            continue
        flip(file)
        assert not verify(whole)[0].good, file
        file.write_bytes(before)
    assert verify(whole)[0].good


def test_what_is_missing_new_or_no_file_is_noticed(outputs, tmp_path):
    shutil.copytree(outputs / "map", tmp_path / "map")
    tif, store = tmp_path / "map" / "ursus-arctos.tif", tmp_path / "map" / "ursus-arctos.zarr"
    (store / "new").touch()
    tif.unlink()
    assert verify(store)[0].problems == ("ursus-arctos.tif is missing", "ursus-arctos.zarr is not as it was written")
    os.mkfifo(tif)
    assert "no regular file" in verify(tif)[0].problems[0]
    report = tmp_path / "map" / "ursus-arctos.json"
    report.write_text(report.read_text()[:-5])
    for path in (tmp_path / "map", report, store):
        assert "ursus-arctos.json cannot be read" in verify(path)[0].problems[0]


def test_a_checksum_never_leads_elsewhere(outputs, tmp_path):
    report = tmp_path / "a.json"
    report.write_text(json.dumps({"checksums": {"../secret": "0", "a.json": "0"}}))
    assert "no plain file name" in verify(report)[0].problems[0]
    report.write_text("[" * 100_000)
    assert "nested too deeply" in verify(report)[0].problems[0]


def test_a_damaged_batch_is_not_passed_over(run, tmp_path):
    (tmp_path / "list.csv").write_text("Ursus arctos\n")
    command = ("--species", tmp_path / "list.csv", *AREA, "--out", tmp_path / "out")
    assert run(*command, entry=main)[0] == 0
    assert run(*command, entry=main)[0] == 0
    flip(next(file for file in files(tmp_path / "out" / "probability.zarr") if not file.name.startswith(".")))
    code, _, err = run(*command, entry=main)
    assert code == 6 and "finished before, but probability.zarr is not as it was written; give --overwrite" in err
    assert run(*command, "--overwrite", entry=main)[0] == 0
    (tmp_path / "out" / "summary.csv").unlink()
    code, _, err = run(*command, entry=main)
    assert code == 6 and "summary.csv is missing" in err


def test_models_and_fits(tmp_path, write_model):
    species = [("Ursus arctos", "Mammalia", "Carnivora", "Ursidae", "mammal")]
    model = write_model(tmp_path / "bears", species)
    (verdict,) = verify(model)
    assert verdict.good and verdict.kind == "model" and verdict.note
    (model / "model.safetensors").write_bytes(b"")
    assert not verify(model)[0].good
    bundled = verify(folder("models") / "mammals-trees")[0]
    assert bundled.good and not bundled.note
    fit = saved_fit(tmp_path / f"bears{SUFFIX}")
    assert verify(fit)[0].good and verify(tmp_path)[0].kind == "fit"
    size = fit.stat().st_size
    for at in range(0, size, size // 40):
        before = fit.read_bytes()
        flip(fit, at / (size - 1))
        (verdict,) = verify(fit)
        assert not verdict.good or verdict.note, at
        fit.write_bytes(before)


def test_command(outputs, tmp_path, run):
    code, out, err = run("verify", outputs / "map", outputs / "index.zarr", entry=main_sdm)
    assert code == 0 and out.count("ok ") == 2 and not err
    shutil.copytree(outputs / "map", tmp_path / "map")
    flip(tmp_path / "map" / "ursus-arctos.tif")
    code, out, err = run("verify", "--json", outputs / "batch", tmp_path / "map", entry=main_sdm)
    assert code == 6 and [v["good"] for v in json.loads(out)] == [True, False]
    assert "1 of 2 checked is not as written" in err and "ursus-arctos.tif" in err
    (tmp_path / "empty").mkdir()
    (tmp_path / "note.txt").write_text("mine")
    for path in ("empty", "note.txt", "nothing", "a\0b"):
        code, _, err = run("verify", str(tmp_path / path), entry=main_sdm)
        assert code == 2 and err.startswith("error: ") and err.count("\n") == 1
