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
        ((*BEAR, "--format", "png"), 2, ["'png'", "cog, zarr, zarr3, html, stac"]),
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


def test_a_dry_run_tells_the_extent_and_what_of_it_can_be_mapped(run, tmp_path):
    triangle = {"type": "Polygon", "coordinates": [[[6, 45], [8, 45], [6, 47], [6, 45]]]}
    (tmp_path / "half.geojson").write_text(json.dumps(triangle))
    line = ("Lynx lynx", "--region", "half.geojson", "--mask", "none", "--dry-run")
    code, out, _ = run(*line)
    assert code == 0 and "extent 6 45 8 47; 50% of it can be mapped" in out
    estimate = json.loads(run(*line, "--json")[1])
    assert estimate["extent"] == [6, 45, 8, 47] and estimate["mapped_share"] == pytest.approx(0.5, abs=0.01)
    assert json.loads(run("Lynx lynx", "--bbox", "-40,30,-30,40", "--dry-run", "--json")[1])["mapped_share"] < 0.02


def test_a_dry_run_fails_where_the_run_would(run, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "lynx-lynx.tif").write_text("mine")
    (tmp_path / "file").write_text("")
    box = ("--bbox", "6,45,7,46", "--dry-run")
    for options, code, words in (
        (("--out", "out"), 6, "exists already"),
        (("--out", "file"), 6, "is a file, not a folder"),
        (("--crs", "EPSG:2065"), 2, "counts to the south and the west"),
    ):
        got, out, err = run("Lynx lynx", *box, *options)
        assert (got, out) == (code, "") and words in err
    assert run("Lynx lynx", *box, "--out", "out", "--overwrite")[0] == 0
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["lynx-lynx.tif"]
