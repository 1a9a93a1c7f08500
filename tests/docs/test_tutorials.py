"""Every tutorial is followed to the letter: its blocks run in one folder, in their order."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import elapid
import geopandas as gpd
import pandas as pd
import pytest
import rasterio

TUTORIALS = Path(__file__).parents[2] / "docs" / "tutorials"
BLOCK = re.compile(r"^```(bash|python|r)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def gbif_download(path):
    """A simple download of GBIF: real records of the slug under GBIF's columns, with two rows as people find them."""
    table = gpd.read_file(Path(elapid.__file__).parent / "data" / "ariolimax.gpkg").to_crs("EPSG:4326")
    table = table[table["presence"] == 1].iloc[::4]
    rows = pd.DataFrame(
        {
            "gbifID": range(1, len(table) + 1),
            "species": "Ariolimax californicus",
            "scientificName": "Ariolimax californicus J.G.Cooper, 1872",
            "occurrenceStatus": "PRESENT",
            "decimalLatitude": table.geometry.y.to_numpy(),
            "decimalLongitude": table.geometry.x.to_numpy(),
            "basisOfRecord": "HUMAN_OBSERVATION",
            "license": "CC0_1_0",
        }
    )
    rows.loc[3, ["decimalLatitude", "decimalLongitude"]] = 0.0
    rows.loc[5, "basisOfRecord"] = "FOSSIL_SPECIMEN"
    rows.to_csv(path, sep="\t", index=False)


INPUTS = {"records.md": ("slugs.csv", gbif_download)}
"""What a tutorial's reader has fetched."""


FOLLOW = """
import json, subprocess, sys
names = {"__name__": "__main__"}
for kind, text in json.load(open(sys.argv[1])):
    if kind == "python":
        exec(compile(text, "tutorial", "exec"), names)
    else:
        sys.stdout.flush()
        shell = ["bash", "-euo", "pipefail", "-c"] if kind == "bash" else ["Rscript", "-e"]
        subprocess.run([*shell, text], check=True)
"""
"""Runs blocks as a reader does: one Python session, and a shell or R for each of their blocks."""


def follow(name, folder):
    """Follow a tutorial in a folder; returns what it printed."""
    blocks = BLOCK.findall((TUTORIALS / name).read_text(encoding="utf-8"))
    assert blocks
    if name in INPUTS:
        file, write = INPUTS[name]
        write(folder / file)
    (folder / "blocks.json").write_text(json.dumps(blocks))
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [sys.executable, "-c", FOLLOW, "blocks.json"],
        cwd=folder,
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def test_every_tutorial_is_followed():
    assert {path.name for path in TUTORIALS.glob("*.md")} == {*FOLLOWED, "r-terra.md"}


FOLLOWED = {
    "first-map.md": "expected area",
    "species-list.md": "['Vulpes vulpez'] not mapped",
    "records.md": "of the map is novel",
    "python-xarray.md": "EPSG:4326",
    "train.md": "Lynx canadensis",
}
"""The tutorials without R, and words that they print."""


@pytest.mark.slow
@pytest.mark.parametrize("name", FOLLOWED)
def test_a_tutorial_to_the_letter(name, tmp_path):
    assert FOLLOWED[name] in follow(name, tmp_path)


@pytest.mark.slow
@pytest.mark.r
def test_the_tutorial_in_r(tmp_path):
    if shutil.which("Rscript") is None:
        pytest.skip("R is not installed")
    printed = follow("r-terra.md", tmp_path)
    assert "probability" in printed and "SpatRaster" in printed
    # The same value at the same place in another program than ours.
    with rasterio.open(tmp_path / "maps" / "ursus-arctos.tif") as raster:
        (value,) = raster.sample([(-128.5, 57.2)], indexes=1)
        assert any(float(n) == pytest.approx(value[0], abs=1e-5) for n in re.findall(r"\b0\.\d+", printed))
