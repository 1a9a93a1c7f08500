"""`taxabind-map` as a user meets it: outputs, reports, exit codes, one clear sentence, nothing half-written."""

import json

import pytest

BEAR = ("Ursus arctos", "--bbox", "-150", "60", "-149", "61")


def test_a_map_from_start_to_end(run, tmp_path):
    code, out, err = run("brown bear", *BEAR[1:], "--resolution", "0.1")
    assert code == 0, err
    names = {p.name for p in (tmp_path / "maps").iterdir()}
    assert names == {f"ursus-arctos.{s}" for s in ("tif", "qml", "zarr", "html", "json")}
    assert "maps/ursus-arctos.tif" in out and "km2" in out
    assert "brown bear -> Ursus arctos" in err  # what the name was taken for
    report = json.loads((tmp_path / "maps" / "ursus-arctos.json").read_text())
    assert report["command"].startswith("taxabind-map 'brown bear' --bbox -150 60 -149 61")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("Ursus arctos",), 2, ["bbox", "region"]),
        (("Ursus arctos", "--bbox", "0", "10", "1", "1"), 2, ["south 10", "north 1", "WEST SOUTH EAST NORTH"]),
        (("Ursus arctos", "--bbox", "0", "0", "nan", "1"), 2, ["east is nan"]),
        (("Ursus arctos", "--bbox", "5", "0", "5", "1"), 2, ["encloses no area"]),
        (("Ursus arctos", "--bbox", "0", "0", "190", "1"), 2, ["190", "-180..180"]),
        ((*BEAR, "--modalities", "sound"), 2, ["'sound'", "location, satellite, environment"]),
        ((*BEAR, "--mask", "water"), 2, ["'water'", "land, sea, none, auto"]),
        ((*BEAR, "--format", "png"), 2, ["'png'", "cog, zarr, html"]),
        ((*BEAR, "--device", "tpu"), 2, ["'tpu'", "cuda:N"]),
        ((*BEAR, "--crs", "EPSG:99999"), 2, ["EPSG:99999"]),
        ((*BEAR, "brown bear"), 2, ["same taxon"]),
        ((*BEAR, "--satellite", "x.tif", "--modalities", "location"), 2, ["--satellite", "omit --satellite"]),
        (("Ursus arctoss", *BEAR[1:]), 3, ["Ursus arctoss", "Ursus arctos", "--search"]),
        (("elk", *BEAR[1:]), 3, ["Alces alces", "Cervus canadensis"]),
        ((*BEAR, "--environment", "none.tif"), 4, ["none.tif", "does not exist"]),
        (("Ursus arctos", "--region", "none.gpkg"), 4, ["none.gpkg", "does not exist"]),
        ((*BEAR, "--model", "nope"), 5, ["'nope'", "--list-models"]),
        ((*BEAR, "--resolution", "1e-7"), 7, ["100,000,000", "--max-pixels"]),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(run, tmp_path, arguments, code, words):
    found, out, err = run(*arguments)
    assert found == code
    assert out == ""
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert all(word in line for word in words), line
    assert "Traceback" not in err
    assert not (tmp_path / "maps").exists()


def test_existing_outputs_are_kept(run, tmp_path):
    small = (*BEAR, "--resolution", "0.5", "--format", "cog")
    assert run(*small)[0] == 0
    before = (tmp_path / "maps" / "ursus-arctos.tif").read_bytes()
    code, _, err = run(*small)
    assert code == 6 and "--overwrite" in err
    assert (tmp_path / "maps" / "ursus-arctos.tif").read_bytes() == before
    assert run(*small, "--overwrite", "--quiet")[:2] == (0, "")


def test_dry_run_writes_nothing(run, tmp_path):
    code, out, _ = run(*BEAR, "--resolution", "0.01", "--tile-size", "64", "--dry-run", "--json")
    assert code == 0
    estimate = json.loads(out)
    assert (estimate["columns"], estimate["rows"], estimate["pixels"], estimate["tiles"]) == (100, 100, 10_000, 4)
    assert list(tmp_path.iterdir()) == []


def test_json_on_stdout_is_the_report(run, tmp_path):
    code, out, _ = run(*BEAR, "--resolution", "0.5", "--json", "--format", "zarr", "--out", "o")
    assert code == 0
    assert json.loads(out) == json.loads((tmp_path / "o" / "ursus-arctos.json").read_text())
