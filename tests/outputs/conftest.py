from dataclasses import replace

import numpy as np
import pytest
from affine import Affine
from odc.geo.geobox import GeoBox

from sdm.outputs.metadata import Band, MapMetadata

GRIDS = {
    "geographic": GeoBox((620, 700), Affine(0.02, 0, 5, 0, -0.02, 60), "EPSG:4326"),
    "antimeridian": GeoBox((300, 520), Affine(0.05, 0, 168, 0, -0.05, 68), "EPSG:4326"),
    "alaska": GeoBox((530, 610), Affine(5000, 0, -2_000_000, 0, -5000, 2_500_000), "EPSG:3338"),
    "mercator": GeoBox((540, 560), Affine(2000, 0, 600_000, 0, -2000, 8_500_000), "EPSG:3857"),
}

HOSTILE = (
    'Ursus <img src=x onerror="window.hacked=1"> </script><script>window.hacked=1</script> '
    "${window.hacked=1} `{{7*7}}` {% raw %} {# '\"&\u2028\x00"
)


@pytest.fixture(params=GRIDS)
def grid(request):
    return GRIDS[request.param]


@pytest.fixture
def metadata():
    return MapMetadata(
        title="Ursus arctos",
        quantity="Probability that the place lies in the range of Ursus arctos",
        description="A test.\nSecond line.",
        tags={"species": "Ursus arctos", "model": "toy", "AREA_OR_POINT": "Point", "odd key=ä": "a\nb\x01"},
        attribution=("Countries: Natural Earth",),
    )


BANDS = (
    Band("uncertainty", "Spread of refits, a test.", valid_range=(0, 5), limit=1.5, caution="refits differ"),
    Band("novelty", "Distance to places, a test.", "percent", (0, 100), 95, "nothing like it was seen"),
    Band("depth", "A band without a limit.", "m", (0, 10)),
)


def band_fields(geobox):
    """Layers of `BANDS` on a grid: uncertain in the west, novel in the north; NaN where the map is."""
    rows, columns = np.mgrid[0 : geobox.height, 0 : geobox.width]
    layers = [3.0 * (columns < geobox.width / 4), 100.0 * (rows < geobox.height / 4), 0.01 * columns]
    return [np.where(np.isnan(field(geobox)), np.nan, layer).astype(np.float32) for layer in layers]


@pytest.fixture
def banded(metadata):
    """`metadata` with bands."""
    return replace(metadata, bands=BANDS)


def field(geobox, seed=0):
    """A smooth field in [0, 1] with true zeros, ones, and holes of NaN."""
    rows, columns = np.mgrid[0 : geobox.height, 0 : geobox.width]
    values = 0.5 + 0.6 * np.sin(columns / 70 + seed) * np.cos(rows / 50)
    values = np.clip(values, 0, 1).astype(np.float32)
    values[np.hypot(rows - geobox.height * 0.7, columns - geobox.width * 0.3) < 90] = np.nan
    return values


def tiles(geobox, size):
    for top in range(0, geobox.height, size):
        for left in range(0, geobox.width, size):
            yield slice(top, min(top + size, geobox.height)), slice(left, min(left + size, geobox.width))


@pytest.fixture
def store(tmp_path, metadata):
    """Function: write the test field on a grid as a Zarr store; returns its path and the values."""
    from sdm.outputs import zarr_store

    def make(geobox, size=256, meta=metadata, values=None):
        path = tmp_path / "map.zarr"
        values = field(geobox) if values is None else values
        zarr_store.create(path, geobox, (size, size), meta)
        for rows, cols in tiles(geobox, size):
            zarr_store.write_tile(path, rows, cols, values[rows, cols])
        return path, values

    return make
