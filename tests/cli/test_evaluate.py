"""`sdm evaluate`: maps of any origin, judged by records."""

import json

import numpy as np
import pytest

import sdm
from sdm import cli
from sdm.errors import OutputError
from sdm.records import report

SIDE = 100


@pytest.fixture
def gradient(write_raster):
    """A map inland of values that rise from west to east, 0 to 1."""
    values = np.repeat(np.linspace(0, 1, SIDE, dtype="f4")[None], SIDE, axis=0)
    values[:5] = np.nan
    return write_raster(values, "east.tif", west=5.0, north=50.0, cell=0.05, descriptions=["Suitability"])


@pytest.fixture
def write_table(tmp_path):
    """Function: write (species, lon, lat, seen) lines as CSV and return the path."""

    def write(name, lines, header="species,lon,lat,seen"):
        path = tmp_path / name
        path.write_text("\n".join([header, *(",".join(map(str, line)) for line in lines)]) + "\n")
        return path

    return write


def places(count, west, east, species="Planta inventa", seen=1, seed=0):
    random = np.random.default_rng(seed)
    lon, lat = random.uniform(west, east, count), random.uniform(45.1, 49.7, count)
    return [(species, f"{x:.5f}", f"{y:.5f}", seen) for x, y in zip(lon, lat, strict=True)]


def evaluate(run, *arguments):
    return run("evaluate", *map(str, arguments), entry=cli.main_sdm)


def test_a_table_against_land_and_group(run, gradient, write_table):
    records = write_table("r.csv", [*places(60, 8.5, 9.9), ("Planta inventa", 20, 47, 1)])
    group = write_table("g.csv", places(80, 8.0, 9.9, "Alia herba", seed=1) + places(60, 8.5, 9.9))
    code, out, told = evaluate(run, gradient, "--records", records, "--background", group, "--threshold", 0.8)
    assert code == 0
    first, header, land, by_group, below = out.splitlines()
    assert first == "east.tif: 60 presences, 1 off the map" or "in the same pixels, 1 off the map" in first
    assert header.split() == ["against", "places", "AUC", "AUC-PRG", "TSS", "Boyce", "COR"]
    assert land.startswith("random places within reach") and by_group.startswith("places where the group was")
    # Uniform in the last 28 % of the map: 0.7 to 1 in 0 to 1, against 0.6 to 1.
    assert float(land.split()[5]) == pytest.approx(0.86, abs=0.04)
    assert float(by_group.split()[-5]) == pytest.approx(0.62, abs=0.08)
    # Of the group's file, the records of the species itself are no places of the group.
    assert int(by_group.split()[-6]) <= 80
    assert float(below.split("%")[0]) == pytest.approx(100 * 0.36, abs=12)
    assert "61 rows, 61 kept (61 presences)" in told


def test_files_and_json_hold_the_same_numbers(run, gradient, write_table, tmp_path):
    records = write_table("r.csv", places(60, 8.5, 9.9))
    code, out, told = evaluate(run, gradient, "--records", records, "--json", "--out", tmp_path / "new" / "folder")
    assert code == 0 and told == ""
    folder = tmp_path / "new" / "folder"
    assert sorted(path.name for path in folder.iterdir()) == ["east-evaluation.html", "east-evaluation.json"]
    numbers = json.loads(out)
    assert json.loads((folder / "east-evaluation.json").read_text()) == numbers
    python = sdm.evaluate(gradient, records)
    assert numbers["evaluation"]["measures"]["land"]["auc"] == python.scores["land"].auc
    page = (folder / "east-evaluation.html").read_text()
    assert f"{python.scores['land'].auc:.3f}" in page and "<image" in page and "Planta inventa" in page


def test_existing_files_are_kept_unless_they_may_be_overwritten(run, gradient, write_table, tmp_path, monkeypatch):
    records, out = write_table("r.csv", places(30, 8.5, 9.9)), tmp_path / "out"
    page, numbers = (out / f"east-evaluation.{kind}" for kind in ("html", "json"))
    out.mkdir()
    numbers.write_text("mine")
    code, printed, error = evaluate(run, gradient, "--records", records, "--out", out)
    assert (code, printed) == (6, "") and "exists already; give --overwrite" in error
    assert numbers.read_text() == "mine" and not page.exists()

    def full(path, _):
        path.write_text("half")
        raise OutputError("No space left")

    with monkeypatch.context() as patch:
        patch.setattr(report, "write_json", full)  # the page is complete by then, its numbers are not
        code, _, error = evaluate(run, gradient, "--records", records, "--out", out, "--overwrite")
    assert code == 6 and "No space left" in error
    assert numbers.read_text() == "mine" and list(out.iterdir()) == [numbers]
    code, printed, _ = evaluate(run, gradient, "--records", records, "--out", out, "--overwrite")
    assert code == 0 and str(page) in printed and sorted(out.iterdir()) == [page, numbers]
    assert json.loads(numbers.read_text())["evaluation"]["presences"] > 0


def test_absences_and_probabilities(run, gradient, write_table):
    survey = write_table("s.csv", places(60, 7.5, 9.9) + places(60, 5.1, 7.5, seen=0, seed=2))
    arguments = (gradient, "--records", survey, "--presence-column", "seen")
    code, out, _ = evaluate(run, *arguments, "--probability")
    assert code == 0 and "ECE" in out.splitlines()[1]
    absences = next(line for line in out.splitlines() if line.startswith("recorded absences"))
    assert float(absences.split()[3]) > 0.97
    # The band does not say that its values are probabilities.
    assert "ECE" not in evaluate(run, *arguments)[1]


def test_other_species_of_the_file_are_the_group(run, gradient, write_table):
    records = write_table("r.csv", places(40, 8.5, 9.9) + places(70, 5.2, 9.9, "Alia herba", seed=3))
    code, out, _ = evaluate(run, gradient, "--records", records, "--species", "Planta inventa")
    assert code == 0
    group = next(line for line in out.splitlines() if line.startswith("places where the group"))
    assert 50 <= int(group.split()[6]) <= 70
    code, _, error = evaluate(run, gradient, "--records", records)
    assert code == 4 and "2 species" in error


def test_reach_band_and_cleaning_are_options(run, gradient, write_table, write_raster):
    both = np.stack([np.full((SIDE, SIDE), 0.5, "f4"), np.repeat(np.linspace(0, 1, SIDE, dtype="f4")[None], SIDE, 0)])
    path = write_raster(both, "two.tif", west=5.0, north=50.0, cell=0.05)
    records = write_table("r.csv", places(50, 8.5, 9.9))
    flat, rising = (evaluate(run, path, "--records", records, "--band", n, "--json")[1] for n in (1, 2))
    flat, rising = (json.loads(text)["evaluation"]["measures"]["land"]["auc"] for text in (flat, rising))
    assert flat == 0.5 and rising > 0.8
    near = evaluate(run, path, "--records", records, "--band", 2, "--within-km", 20, "--places", 500, "--json")[1]
    near = json.loads(near)["evaluation"]
    assert near["measures"]["land"]["places"] == 500 and near["measures"]["land"]["auc"] < rising - 0.1
    bern = write_table("p.csv", [*places(50, 8.5, 9.4), ("Planta inventa", 7.4474, 46.948, 1)])
    kept = [
        json.loads(evaluate(run, path, "--records", bern, "--json", *more)[1])["records"]["kept"]
        for more in ((), ("--capital-km", 0))
    ]
    assert kept == [50, 51]


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (("east.tif",), 2, "no records are given"),
        (("none.tif", "--records", "r.csv"), 4, "does not exist"),
        (("east.tif", "--records", "none.csv"), 4, "none.csv"),
        (("east.tif", "--records", "far.csv"), 4, "none of the 10 presences lies on east.tif"),
        (("east.tif", "--records", "r.csv", "--band", "3"), 4, "there is no band 3"),
        (("east.tif", "--records", "r.csv", "--places", "5"), 2, "places 5 is outside"),
        (("east.tif", "--records", "r.csv", "--within-km", "0"), 2, "within_km"),
        (("east.tif", "--records", "r.csv", "--mask", "moon"), 2, "moon"),
        (("east.tif", "--records", "r.csv", "--background", "r.csv"), 4, "no records of other species"),
        (("east.tif", "--records", "r.csv", "--out", "r.csv/x"), 6, "is a file, not a folder"),
    ],
)
def test_what_is_wrong_is_said(run, gradient, write_table, arguments, code, text):
    write_table("r.csv", places(30, 8.5, 9.9))
    write_table("far.csv", places(10, 100, 110))
    got, out, error = evaluate(run, *arguments)
    assert (got, out) == (code, "") and text in error.splitlines()[-1]
