"""The QGIS plugin as QGIS installs and runs it: from its zip, without a screen."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import rasterio

ROOT = Path(__file__).parents[2]
PROGRAM = Path(sys.executable).with_name("taxabind-map")


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """The zip, made as for a release."""
    folder = tmp_path_factory.mktemp("dist")
    made = subprocess.run(
        [sys.executable, ROOT / "qgis" / "package.py", folder], check=True, capture_output=True, text=True
    )
    return Path(made.stdout.strip())


def test_the_zip_holds_what_qgis_asks_for(package):
    from sdm import __version__

    with zipfile.ZipFile(package) as archive:
        names = archive.namelist()
        metadata = archive.read("taxabind_map/metadata.txt").decode()
        modules = {name for name in names if name.endswith(".py")}
        for name in modules:
            compile(archive.read(name), name, "exec")
    assert {name.split("/")[0] for name in names} == {"taxabind_map"}
    assert {"taxabind_map/__init__.py", "taxabind_map/icon.svg", "taxabind_map/LICENSE"} <= set(names)
    fields = dict(line.split("=", 1) for line in metadata.splitlines() if "=" in line)
    assert fields["version"] == __version__ and fields["hasProcessingProvider"] == "yes"
    required = [
        "name",
        "qgisMinimumVersion",
        "description",
        "about",
        "version",
        "author",
        "email",
        "repository",
        "tracker",
    ]
    assert all(fields[key].strip() for key in required)


@pytest.fixture(scope="module")
def qgis(package, tmp_path_factory):
    """Function: run `qgis_process` with a new profile in which the plugin is installed and set up."""
    # Debian's wrapper script adds an option that this version of qgis_process does not know.
    program = shutil.which("qgis_process.bin") or shutil.which("qgis_process")
    if program is None:
        pytest.skip("qgis_process is not installed")
    home = tmp_path_factory.mktemp("home")
    profile = home / ".local/share/QGIS/QGIS3/profiles/default"
    (profile / "python/plugins").mkdir(parents=True)
    with zipfile.ZipFile(package) as archive:
        archive.extractall(profile / "python/plugins")
    foreign = ("PYTHON", "GDAL", "PROJ", "VIRTUAL_ENV")
    variables = {key: value for key, value in os.environ.items() if not key.startswith(foreign)}
    variables |= {"HOME": str(home), "XDG_RUNTIME_DIR": str(home), "QT_QPA_PLATFORM": "offscreen"}

    def start(*words):
        return subprocess.Popen(
            [program, *map(str, words)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=variables,
            cwd=home,
        )

    def run(*words):
        process = start(*words)
        out, err = process.communicate(timeout=300)
        return process.returncode, out, err

    code, out, err = run("plugins", "enable", "taxabind_map")
    assert code == 0, out + err
    settings = profile / "QGIS/QGIS3.ini"
    with settings.open("a", encoding="utf-8") as file:
        file.write(f"\n[Processing]\nConfiguration\\TAXABIND_MAP_PROGRAM={PROGRAM}\n")
    run.start = start
    return run


def outputs(text):
    """The outputs that `qgis_process run` prints."""
    lines = text.partition("Results\n")[2].splitlines()
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)


@pytest.mark.qgis
def test_every_algorithm_is_in_the_toolbox_with_its_help(qgis):
    code, out, _ = qgis("list")
    assert code == 0
    found = {line.split("\t")[1] for line in out.splitlines() if line.startswith("\ttaxabindmap:")}
    assert found == {f"taxabindmap:{name}" for name in ALGORITHMS}
    code, out, err = qgis("help", "taxabindmap:mapspecies")
    assert code == 0 and "EXTENT" in out and "Month" in out, out + err


ALGORITHMS = ("assess", "fitrecords", "maplist", "mapspecies", "whatliveshere", "zones")


@pytest.mark.qgis
def test_a_species_is_mapped_where_the_extent_says(qgis, tmp_path):
    # An extent in another CRS than the map's.
    extent = "--EXTENT=-13358338,-13135699,4163881,4439106 [EPSG:3857]"
    code, out, err = qgis(
        "run", "taxabindmap:mapspecies", "--SPECIES=mountain lion", extent, "--RESOLUTION=0.1", f"--FOLDER={tmp_path}"
    )
    assert code == 0, out + err
    found = outputs(out)
    assert found["MAP"] == str(tmp_path / "puma-concolor.tif")
    assert Path(found["MAP"]).with_suffix(".qml").exists() and Path(found["HTML"]).exists()
    with rasterio.open(found["MAP"]) as raster:
        assert raster.bounds == pytest.approx((-120, 35, -118, 37), abs=0.11)
        values = raster.read(1, masked=True)
    assert values.count() > 300 and values.mean() > 0.9
    assert "Puma concolor" in out + err
    assert json.loads(Path(found["REPORT"]).read_text())["request"]["resolution"] == 0.1


@pytest.mark.qgis
def test_a_box_over_the_antimeridian_and_a_region(qgis, tmp_path):
    code, out, err = qgis(
        "run",
        "taxabindmap:mapspecies",
        "--SPECIES=Ursus arctos",
        "--EXTENT=176,184,60,66 [EPSG:4326]",
        "--RESOLUTION=0.5",
        f"--FOLDER={tmp_path / 'a'}",
    )
    assert code == 0, out + err
    box = json.loads(Path(outputs(out)["REPORT"]).read_text())["request"]["bbox"]
    assert box == [176.0, 60.0, -176.0, 66.0]
    from shapely.geometry import box as rectangle

    region = tmp_path / "reserve.gpkg"
    gpd.GeoDataFrame(geometry=[rectangle(-119, 35, -118, 36)], crs="EPSG:4326").to_crs("EPSG:32611").to_file(region)
    code, out, err = qgis(
        "run",
        "taxabindmap:mapspecies",
        "--SPECIES=Puma concolor",
        f"--REGION={region}",
        "--RESOLUTION=0.05",
        "--MASK=none",
        f"--FOLDER={tmp_path / 'b'}",
    )
    assert code == 0, out + err
    with rasterio.open(outputs(out)["MAP"]) as raster:
        assert raster.bounds == pytest.approx((-119, 35, -118, 36), abs=0.06)


@pytest.mark.qgis
def test_a_list_records_and_their_areas(qgis, tmp_path):
    names = tmp_path / "list.csv"
    names.write_text("species\nPuma concolor\nUrsus americanus\nAeshna juncea\n")
    area = ("--EXTENT=-120,-118,35,37 [EPSG:4326]", "--RESOLUTION=0.1")
    code, out, err = qgis("run", "taxabindmap:maplist", f"--LIST={names}", *area, f"--FOLDER={tmp_path / 'list'}")
    assert code == 0, out + err
    found = outputs(out)
    assert Path(found["RICHNESS"]).exists() and len(Path(found["SUMMARY"]).read_text().splitlines()) == 4

    from shapely.geometry import box as rectangle

    parks = gpd.GeoDataFrame({"site": ["A"]}, geometry=[rectangle(-119.5, 35.5, -119, 36)], crs="EPSG:4326")
    parks.to_file(tmp_path / "parks.gpkg")
    zones = (f"--ZONES={tmp_path / 'parks.gpkg'}", "--ID=site", f"--FOLDER={tmp_path / 'zones'}")
    code, out, err = qgis("run", "taxabindmap:zones", f"--BATCH={tmp_path / 'list'}", *zones)
    assert code == 0, out + err
    table = pd.read_csv(outputs(out)["TABLE"])
    assert set(table.species.dropna()) >= {"Puma concolor", "Ursus americanus"}

    rng = np.random.default_rng(5)
    lon, lat = rng.uniform(-119.9, -119.2, 40), rng.uniform(35.2, 36.8, 40)
    points = gpd.GeoDataFrame(
        {"taxon": ["Sceloporus xus"] * len(lon)}, geometry=gpd.points_from_xy(lon, lat), crs="EPSG:4326"
    )
    points.to_crs("EPSG:32611").to_file(tmp_path / "lizards.gpkg")
    code, out, err = qgis(
        "run",
        "taxabindmap:fitrecords",
        f"--RECORDS={tmp_path / 'lizards.gpkg'}",
        "--SPECIES_FIELD=taxon",
        "--EVALUATE=false",
        "--RULE=mtp",
        *area,
        f"--FOLDER={tmp_path / 'fit'}",
    )
    assert code == 0, out + err
    found = outputs(out)
    assert Path(found["FIT"]).exists()
    kept = Path(found["AUDIT"]).read_text().splitlines()
    assert len(kept) == 41 and "-119." in kept[1]  # degrees again, from metres
    assert gpd.read_file(found["RANGE"], layer="range").area_km2.sum() > 100

    code, out, err = qgis(
        "run",
        "taxabindmap:assess",
        f"--RECORDS={tmp_path / 'lizards.gpkg'}",
        "--SPECIES_FIELD=taxon",
        f"--MAP={found['MAP']}",
        f"--FOLDER={tmp_path / 'areas'}",
    )
    assert code == 0, out + err
    found = outputs(out)
    (row,) = json.loads(Path(found["REPORT"]).read_text())["species"]
    assert row["species"] == "Sceloporus xus" and "TABLE" in found
    assert len(gpd.read_file(found["AREAS"], layer="aoo")) == 1


@pytest.mark.qgis
def test_what_lives_at_a_place(qgis, tmp_path):
    place = "--PLACE=-13246810,4292938 [EPSG:3857]"  # 119 W, 35.9 N
    code, out, err = qgis("run", "taxabindmap:whatliveshere", place, "--MINIMUM=0.5", f"--FOLDER={tmp_path}")
    assert code == 0, out + err
    table = pd.read_csv(outputs(out)["TABLE"])
    assert "Puma concolor" in set(table.species) and table.probability.is_monotonic_decreasing


@pytest.mark.qgis
def test_where_people_introduced_a_species_and_zones_of_an_index(qgis, tmp_path):
    area = ("--EXTENT=8,10,50,52 [EPSG:4326]", "--RESOLUTION=0.25", f"--FOLDER={tmp_path}")
    code, out, err = qgis("run", "taxabindmap:mapspecies", "--SPECIES=Procyon lotor", "--ORIGIN=1", *area)
    assert code == 0, out + err
    with rasterio.open(outputs(out)["MAP"]) as raster:
        assert raster.tags()["origin"] == "all" and raster.read(1, masked=True).mean() > 0.5
    index = tmp_path / "rhine.zarr"
    build = (PROGRAM.with_name("sdm"), "index", "build", "--bbox", "8", "50", "10", "52", "--resolution", "0.25")
    subprocess.run([*build, "--model", "mammals-trees", "--out", index], check=True, capture_output=True)
    zones, names = tmp_path / "parks.gpkg", tmp_path / "list.csv"
    gpd.GeoDataFrame({"name": ["a"]}, geometry=gpd.points_from_xy([9], [51]).buffer(0.5), crs=4326).to_file(zones)
    names.write_text("species\nVulpes vulpes\n")
    options = (f"--BATCH={index}", f"--ZONES={zones}", "--ID=name", f"--LIST={names}", f"--FOLDER={tmp_path}")
    code, out, err = qgis("run", "taxabindmap:zones", *options)
    assert code == 0, out + err
    assert pd.read_csv(outputs(out)["TABLE"])["species"].tolist() == ["Vulpes vulpes"]
    code, out, err = qgis(
        "run", "taxabindmap:whatliveshere", "--PLACE=9,51", f"--INDEX={index}", f"--FOLDER={tmp_path}"
    )
    assert code == 0 and "Vulpes vulpes" in pd.read_csv(outputs(out)["TABLE"])["species"].tolist(), out + err


@pytest.mark.qgis
def test_what_goes_wrong_is_the_sentence_of_the_program(qgis, tmp_path):
    area = ("--EXTENT=-120,-118,35,37 [EPSG:4326]", f"--FOLDER={tmp_path}")
    code, out, err = qgis("run", "taxabindmap:mapspecies", "--SPECIES=Felix domus", *area)
    assert code != 0 and "Unknown species 'Felix domus'" in out + err and "Traceback" not in out + err
    code, out, err = qgis("run", "taxabindmap:fitrecords", *area)
    assert code != 0 and "either as a point layer or as a file" in out + err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.qgis
def test_a_cancelled_run_stops_the_program_and_leaves_nothing(tmp_path):
    """The part of the plugin that runs the program, in QGIS's own Python."""
    script = Path(__file__).with_name("cancel.py")
    foreign = ("PYTHON", "GDAL", "PROJ", "VIRTUAL_ENV")
    variables = {key: value for key, value in os.environ.items() if not key.startswith(foreign)}
    variables |= {"HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path), "QT_QPA_PLATFORM": "offscreen"}
    made = subprocess.run(
        ["/usr/bin/python3", script, ROOT / "qgis", PROGRAM, tmp_path / "out"],
        capture_output=True,
        text=True,
        timeout=300,
        env=variables,
    )
    assert made.returncode == 0, made.stderr
    found = json.loads(made.stdout.strip().splitlines()[-1])
    assert found["result"] is None and found["progress"] > 0 and found["alive"] is False
    assert not (tmp_path / "out").exists() or list((tmp_path / "out").iterdir()) == []
