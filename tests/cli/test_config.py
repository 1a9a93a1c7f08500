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
