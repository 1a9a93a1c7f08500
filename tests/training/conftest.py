"""A tiny world of two ranges, and recipes over it."""

import numpy as np
import pyproj
import pytest

from sdm.training.data.ranges import RangeRaster
from sdm.training.recipe import Recipe
from tests.training.tiny import BEHRMANN, RECIPE, TAXA


@pytest.fixture
def world():
    """Two species on a coarse equal-area grid: one in the west, one in the north."""
    rows, cols = 10, 20
    # Between 40 W and 40 E, 40 S and 40 N: of the whole globe the layers would take seconds to read.
    x0, y1 = pyproj.Transformer.from_crs(4326, BEHRMANN, always_xy=True).transform(-40, 40)
    dx, dy = -2 * x0 / cols, -2 * y1 / rows
    west = np.tile(np.arange(cols) < cols // 2, (rows, 1))
    north = np.repeat(np.arange(rows) < rows // 2, cols).reshape(rows, cols)
    packed = np.packbits(np.stack([west.ravel(), north.ravel()], axis=1).astype(np.uint8), axis=1)
    wkt = pyproj.CRS.from_user_input(BEHRMANN).to_wkt()
    return RangeRaster(["Ursus arctos", "Vulpes vulpes"], packed, (rows, cols), (dx, 0, x0, 0, dy, y1), wkt)


@pytest.fixture
def tiny(tmp_path, world):
    """Function: (recipe, model folder) of the tiny world; `more` is appended to the recipe."""

    def make(steps=20, more="", swap=()):
        bits = np.unpackbits(world.presence, axis=1)[:, :2].T
        np.savez(
            tmp_path / "phylacine_current_ranges.npz",
            species=np.array([s.replace(" ", "_") for s in world.species]),
            packed=np.packbits(bits, axis=1),
            n_cells=bits.sum(1),
            shape=np.array(world.shape),
            transform=np.array(world.transform),
            crs_wkt=world.crs,
        )
        out = tmp_path / "tiny"
        out.mkdir(exist_ok=True)
        (out / "taxa.csv").write_text(TAXA)
        text = RECIPE.format(data=tmp_path.as_posix(), steps=steps) + more
        for old, new in swap:
            assert old in text
            text = text.replace(old, new)
        path = tmp_path / "tiny.toml"
        path.write_text(text)
        return Recipe.read(path), out

    return make
