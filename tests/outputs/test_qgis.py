"""The map in QGIS itself: right place, right colours, style picked up without being asked for."""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sdm.outputs import binary, cog, style, zarr_store

from .conftest import GRIDS, band_fields, field

pytestmark = pytest.mark.qgis

PYTHON = "/usr/bin/python3"


@pytest.fixture(scope="module")
def qgis():
    try:
        subprocess.run([PYTHON, "-c", "import qgis.core"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("QGIS's Python bindings are not installed")

    def render(folder, *arguments):
        environment = {
            key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "GDAL", "PROJ"))
        } | {"QT_QPA_PLATFORM": "offscreen", "XDG_RUNTIME_DIR": str(folder), "HOME": str(folder)}
        script = Path(__file__).with_name("qgis_render.py")
        run = subprocess.run(
            [PYTHON, str(script), str(folder), *arguments],
            capture_output=True,
            text=True,
            env=environment,
            timeout=300,
        )
        assert run.stdout.strip(), run.stderr
        return json.loads(run.stdout.strip().splitlines()[-1])

    return render


def test_cog_and_zarr_in_qgis(qgis, store, tmp_path, grid, metadata):
    zarr, values = store(grid)
    cog.write_cog(tmp_path / "map.tif", zarr_store.open_map(zarr), grid, metadata)
    style.write_qml(tmp_path / "map.qml", metadata)
    values = field(grid)
    expected = style.colours(np.where(np.isnan(values), 0, values)).astype(int)
    expected[np.isnan(values)] = (255, 0, 255)  # the background shows through what is not modelled
    arguments = [str(tmp_path / "map.tif"), f'ZARR:"{zarr}":/probability={tmp_path / "map.qml"}']
    for index, found in enumerate(qgis(tmp_path, *arguments)):
        assert found["valid"], found
        assert found["crs"] == f"EPSG:{grid.crs.epsg}" and found["nodata"]
        box = grid.extent.boundingbox
        assert found["extent"] == pytest.approx([box.left, box.bottom, box.right, box.top], rel=1e-9)
        assert found["renderer"] == "singlebandpseudocolor"
        labels = [label for label in found["legend"] if label.replace(".", "").isdigit()]
        assert labels[0] == "0" and labels[-1] == "1" and len(labels) == 11
        if index == 0:
            assert metadata.variable in found["band"]
        drawn = np.asarray(Image.open(tmp_path / f"{index}.png").convert("RGB")).astype(int)
        assert drawn.shape == expected.shape
        off = np.abs(drawn - expected).max(axis=2)
        assert np.percentile(off, 99) <= 6 and (off > 12).mean() < 0.005


def test_a_cog_with_further_bands_is_shown_by_its_first(qgis, tmp_path, banded):
    grid = GRIDS["alaska"]
    cog.write_cog(tmp_path / "map.tif", field(grid), grid, banded, band_fields(grid))
    style.write_qml(tmp_path / "map.qml", banded)
    (found,) = qgis(tmp_path, str(tmp_path / "map.tif"))
    assert found["valid"] and found["renderer"] == "singlebandpseudocolor" and found["nodata"]
    assert [name.partition(": ")[2] for name in found["bands"]] == [banded.variable, "uncertainty", "novelty", "depth"]
    values = field(grid)
    expected = style.colours(np.where(np.isnan(values), 0, values)).astype(int)
    expected[np.isnan(values)] = (255, 0, 255)
    drawn = np.asarray(Image.open(tmp_path / "0.png").convert("RGB")).astype(int)
    assert np.percentile(np.abs(drawn - expected).max(axis=2), 99) <= 6


def test_a_range_has_its_two_colours(qgis, tmp_path):
    grid = GRIDS["alaska"]
    values = field(grid)
    found = binary.cut(values, grid, binary.at_least(0.5))
    binary.write_binary(tmp_path / "a-range.tif", found.mask, grid, "1: in, 0: not", {})
    style.write_range_qml(tmp_path / "a-range.qml", "precision=0.9 <&>")
    (seen,) = qgis(tmp_path, str(tmp_path / "a-range.tif"))
    assert seen["valid"] and seen["renderer"] == "paletted" and seen["nodata"]
    assert seen["legend"][-2:] == ["Range (precision=0.9 <&>)", "Outside the range"]
    drawn = np.asarray(Image.open(tmp_path / "0.png").convert("RGB")).astype(int)
    colours = {1: (0x2A, 0x36, 0x70), 0: (0xE9, 0xE8, 0xE0), binary.NODATA: (255, 0, 255)}
    for value, colour in colours.items():
        assert (np.abs(drawn[found.mask == value] - colour).max(axis=1) <= 2).mean() > 0.99, value
