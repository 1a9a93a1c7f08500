"""The command line as a user meets it: exit codes, one clear sentence, nothing half-written."""

import json
import signal
import subprocess
import sys
import time

import pytest

from sdm import cli

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
        ((*BEAR, "--satellite", "x.tif", "--modalities", "location"), 2, ["--satellite", "leave it out"]),
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


def test_config_file_and_the_command_line_wins(run, tmp_path):
    (tmp_path / "c.toml").write_text(
        'species = "puma"\nbbox = [-120, 40, -119, 41]\nresolution = 0.5\n'
        'format = ["cog"]\nmax_pixels = 9\njson = true\n'
    )
    code, out, _ = run("--config", "c.toml", "--out", "from-line")
    assert code == 0
    report = json.loads(out)
    assert report["species"] == "Puma concolor" and report["grid"]["columns"] == 2
    assert {p.name for p in (tmp_path / "from-line").iterdir()} == {
        f"puma-concolor.{s}" for s in ("tif", "qml", "json")
    }
    assert run("--config", "c.toml", "--resolution", "0.1")[0] == 7  # 100 pixels, 9 allowed


@pytest.mark.parametrize(
    ("text", "words"),
    [("bboxx = 1", "unknown key 'bboxx'"), ("bbox = [", "not valid TOML"), (None, "cannot be read")],
)
def test_bad_config(run, tmp_path, text, words):
    if text is not None:
        (tmp_path / "c.toml").write_text(text)
    code, _, err = run("puma", "--config", "c.toml")
    assert code == 2 and words in err


def test_search_and_list(run):
    code, out, _ = run("--search", "grizzly")
    assert code == 0 and "Ursus arctos (brown bear)" in out
    assert run("--search", "zzzzzz")[0] == 3
    code, out, _ = run("--list-models")
    assert code == 0 and "mammals-trees" in out and "5,435 mammals" in out and "CC0" in out
    assert run("models", entry=cli.main_sdm)[1] == out


def test_hostile_name_does_not_reach_the_terminal(run):
    code, out, err = run("Ursus\x1b[31m arctos", *BEAR[1:])
    assert code == 3
    assert "\x1b" not in out + err


def test_python_m_sdm_is_the_same_program():
    done = subprocess.run([sys.executable, "-m", "sdm", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("taxabind-map ")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no POSIX signals")
@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_ends_with_its_code_and_leaves_no_output(tmp_path, name, code):
    command = [sys.executable, "-m", "sdm", "Puma concolor", "--bbox", "-130", "-56", "-34", "60"]
    process = subprocess.Popen(
        [*command, "--resolution", "0.02", "--out", str(tmp_path / "o")], stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("o/.sdm-staging-*/new/*.zarr/*/*.*")) and time.monotonic() < deadline:
        time.sleep(0.05)  # until the first tiles are on disk
    process.send_signal(getattr(signal, name))
    _, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert "interrupted" in err and "Traceback" not in err
    assert list((tmp_path / "o").iterdir()) == []
