"""`--config`: defaults from a TOML file."""

import json

import pytest


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


def test_values_of_every_kind(run, tmp_path):
    (tmp_path / "list.txt").write_text("puma\ncoyote\n")
    (tmp_path / "c.toml").write_text(
        'species-list = "list.txt"\nbbox = [-120, 40, -119, 41]\nresolution = 0.5\nmodalities = ["location"]\n'
        "quiet = true\nthreshold = 0.25\ndry-run = true\njson = true\n"
    )
    code, out, err = run("--config", "c.toml")
    assert code == 0, err
    estimate = json.loads(out)
    assert (estimate["species"], estimate["modalities"], err) == (2, ["location"], "")


def test_what_is_no_default_is_no_key(run, tmp_path):
    (tmp_path / "c.toml").write_text("version = true\n")
    code, _, err = run("puma", "--config", "c.toml")
    assert code == 2
    known = err.partition("known: ")[2].rstrip(".\n").split(", ")
    assert {"species", "species-list", "format", "max-pixels", "json"} <= set(known)
    assert not {"version", "config", "search", "list-models", "help", "install-completion"} & set(known)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('resolution = "5km"', "key 'resolution': '5km' is not a number"),
        ("bbox = [6, 45, 8]", "key 'bbox': '6,45,8' has 3 values"),
        ("threads = 0", "key 'threads': 0 is less than 1"),
        ("tile-size = 3", "key 'tile-size': tile size 3"),
        ('mask = "ocean"', "key 'mask': mask 'ocean' is not known"),
        ('crs = "EPSG:99999999"', "key 'crs': CRS 'EPSG:99999999'"),
    ],
)
def test_a_bad_value_names_file_and_key(run, tmp_path, text, words):
    (tmp_path / "c.toml").write_text(text)
    box = [] if "bbox" in text else ["--bbox", "6,45,8,47"]
    code, _, err = run("puma", "--config", "c.toml", *box, "--dry-run")
    assert code == 2 and f"config 'c.toml', {words}" in err and err.count("\n") == 1, err


def test_an_option_of_the_command_line_replaces_what_it_excludes(run, tmp_path):
    (tmp_path / "area.geojson").write_text(
        json.dumps({"type": "Polygon", "coordinates": [[[6, 45], [8, 45], [8, 46], [6, 46], [6, 45]]]})
    )
    (tmp_path / "list.csv").write_text("species\ncoyote\n")
    (tmp_path / "c.toml").write_text(
        'species = ["puma"]\nbbox = "0,0,9,9"\nstep = 2\nresolution = 0.5\ndry-run = true\njson = true\n'
    )
    code, out, err = run("--config", "c.toml", "--region", "area.geojson", "--satellite-step", "3")
    assert code == 0, err
    assert (json.loads(out)["columns"], json.loads(out)["rows"]) == (4, 2)
    code, out, err = run("--config", "c.toml", "--species", "list.csv")
    assert code == 0 and json.loads(out)["species"] == 1, err
    code, _, err = run("--config", "c.toml", "--region", "area.geojson", "--bbox", "6,45,8,47")
    assert code == 2 and "not both" in err
