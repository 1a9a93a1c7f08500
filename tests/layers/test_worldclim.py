"""The 20 channels of the published model, against the published recipe written out in plain numpy."""

import pickle
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine

from sdm.errors import LayerError
from sdm.files.paths import folder
from sdm.layers import worldclim
from sdm.layers.landmask import LandMask, land_sample
from sdm.layers.worldclim import CHANNELS, approximated, open_environment20, published_array, worldclim_folder

RNG = np.random.default_rng(11)
PLACES = np.array(
    [(-180, 90), (180, -90), (-180, -90), (180, 90), (0, 0), (-0.0001, 0.0001), (179.99999, -89.99999), (12.34, 56.78)]
    + [(x, y) for x, y in zip(RNG.uniform(-180, 180, 200), RNG.uniform(-90, 90, 200), strict=True)]
)


def published_cell(lon, lat, rows, columns):
    """The lookup as the authors' loader has it, with its clamp."""
    return min(int((90 - lat) * rows / 180), rows - 1), min(int((lon + 180) * columns / 360), columns - 1)


# The published array -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def array(tmp_path_factory):
    """A sparse array of the published shape; the cells under PLACES hold numbers of their own."""
    path = tmp_path_factory.mktemp("npy") / "bioclim_elevation_scaled.npy"
    values = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=(2160, 4320, 20))
    expected = []
    for k, (lon, lat) in enumerate(PLACES):
        cell = published_cell(lon, lat, 2160, 4320)
        values[cell] = (np.arange(20) - 7.5) * (k + 1) / 64
        if k % 3 == 0:
            values[(*cell, 4)] = np.nan
        if k % 5 == 4:
            values[(*cell, slice(1, None))] = np.nan  # the sea: only elevation has a number
    for lon, lat in PLACES:
        expected.append(np.array(values[published_cell(lon, lat, 2160, 4320)], dtype=np.float32))
    values.flush()
    return path, np.array(expected)


def test_published_array(array):
    path, expected = array
    environment = open_environment20(path)
    values, known = environment.sample(PLACES[:, 0], PLACES[:, 1])
    assert values.dtype == np.float32
    assert values.shape == (len(PLACES), 20)
    assert np.array_equal(values, np.nan_to_num(expected))
    assert np.array_equal(known, np.isfinite(expected[:, 1:]).any(axis=1))
    assert 0 < known.sum() < len(PLACES)
    assert open_environment20(path.parent).fingerprint() == environment.fingerprint()
    again = pickle.loads(pickle.dumps(environment))
    assert len(pickle.dumps(environment)) < 1000
    assert np.array_equal(again.sample(PLACES[:, 0], PLACES[:, 1])[0], values)


def test_places_that_are_nowhere(array):
    values, known = published_array(array[0]).sample(
        np.array([np.nan, 12.34, 12.34 + 360]), np.array([0, np.inf, 56.78])
    )
    assert known.tolist() == [False, False, True]
    assert not values[:2].any()
    assert np.array_equal(values[2], np.nan_to_num(array[1][7]))


def test_an_array_of_zeros_is_the_sea(tmp_path):
    np.lib.format.open_memmap(tmp_path / "a.npy", mode="w+", dtype=np.float16, shape=(2160, 4320, 20)).flush()
    assert not published_array(tmp_path / "a.npy").sample(PLACES[:, 0], PLACES[:, 1])[1].any()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.zeros((2, 3, 20), np.float16), "2, 3, 20"),
        (np.zeros((4, 20), np.float32), "float32"),
        (np.array([{"a": 1}], dtype=object), "objects"),
        (None, "npy"),
        ({"a": np.zeros(3)}, "archive"),
    ],
    ids=["shape", "dtype", "objects", "text", "npz"],
)
def test_arrays_that_are_refused(tmp_path, values, words):
    path = tmp_path / "a.npy"
    if values is None:
        path.write_text("not an array")
    elif isinstance(values, dict):
        with path.open("wb") as file:
            np.savez(file, **values)
    else:
        np.save(path, values, allow_pickle=True)
    with pytest.raises(LayerError, match=words):
        published_array(path)


def test_a_cut_array_is_refused(tmp_path, array):
    path = tmp_path / "cut.npy"
    path.write_bytes(array[0].open("rb").read(100_000))
    with pytest.raises(LayerError, match=r"cut\.npy"):
        published_array(path)


# WorldClim's rasters -------------------------------------------------------------------------------


ROWS = 180
"""Of the rasters here that stand for 10 arc-minutes, which has 1080: the rules are the same, the files small."""


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setitem(worldclim.RESOLUTIONS, "10m", ROWS)
    monkeypatch.setattr(worldclim, "ROWS_AT_ONCE", 50)


@pytest.fixture(scope="module")
def downloaded(tmp_path_factory):
    """A folder as WorldClim's two archives unpack, and its 20 raw arrays with nodata as stored."""
    where = tmp_path_factory.mktemp("climate")
    rows, cols = ROWS, 2 * ROWS
    y, x = np.mgrid[0:rows, 0:cols].astype(np.float32)
    land = (np.sin(x / 15) + np.cos(y / 12)) > 0.4
    raw = []
    for k, name in enumerate(CHANNELS):
        if k == 0:
            values, nodata = np.where(land, 500 + 4 * (y % 97) - x % 31, -32768).astype(np.int16), -32768
        else:
            # Some cells lack one variable only.
            here = land & ((x.astype(int) + k) % 83 != 0)
            values = np.where(here, k * 3 - 20 + (x * k % 113) / 7 + y / 300, -3.4e38).astype(np.float32)
            nodata = -3.4e38
        raw.append(values)
        deeper = where / "bio"
        deeper.mkdir(exist_ok=True)
        path = (where / "wc2.1_10m_elev.tif") if k == 0 else deeper / f"wc2.1_10m_{name.replace('bio', 'bio_')}.tif"
        with rasterio.open(
            path,
            "w",
            driver="GTiff",
            height=rows,
            width=cols,
            count=1,
            dtype=values.dtype,
            nodata=nodata,
            crs="EPSG:4326",
            transform=Affine(180 / ROWS, 0, -180, 0, -180 / ROWS, 90),
            compress="lzw",
        ) as dst:
            dst.write(values, 1)
    return where, raw


def by_hand(raw, lowest):
    """Standardised float16 (rows, columns, 20): values under `lowest` are nodata, as in the script for the array."""
    out = []
    for values in raw:
        values = values.astype(np.float64)
        values[values < lowest] = np.nan
        out.append((values - np.nanmean(values)) / np.nanstd(values))
    return np.stack(out, axis=-1).astype(np.float16).astype(np.float32)


@pytest.mark.parametrize(("elevation", "lowest"), [("valid", -30000.0), ("with-sea", -1e6)])
def test_worldclim_as_the_published_array_was_made(downloaded, tmp_path, elevation, lowest):
    where, raw = downloaded
    environment = open_environment20(f"{where}#elevation={elevation}", cache_dir=tmp_path)
    expected = by_hand(raw, lowest)
    cells = np.array([published_cell(lon, lat, ROWS, 2 * ROWS) for lon, lat in PLACES])
    expected = expected[cells[:, 0], cells[:, 1]]
    values, known = environment.sample(PLACES[:, 0], PLACES[:, 1])
    assert np.array_equal(known, np.isfinite(expected[:, 1:]).any(axis=1))
    assert 0.2 < known.mean() < 0.9
    # Means summed in another order may tip a value over to the next float16.
    assert np.allclose(values, np.nan_to_num(expected), rtol=1e-3, atol=1e-6)
    assert (values == np.nan_to_num(expected)).mean() > 0.99
    assert "10m" in environment.describe()
    assert ("-32768" in environment.describe()) == (elevation == "with-sea")


def test_statistics_are_computed_once(downloaded, tmp_path, monkeypatch):
    where, _ = downloaded
    first = worldclim_folder(where, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(worldclim, "_statistics", lambda *_: pytest.fail("computed again"))
        second = worldclim_folder(where, tmp_path)
    assert np.array_equal(first.statistics, second.statistics)
    again = pickle.loads(pickle.dumps(second))
    places = PLACES[:, 0], PLACES[:, 1]
    assert np.array_equal(again.sample(*places)[0], first.sample(*places)[0])
    assert first.fingerprint() == second.fingerprint()
    assert worldclim_folder(where, tmp_path, "with-sea").fingerprint() != first.fingerprint()
    # A damaged cache is not believed.
    for path in tmp_path.iterdir():
        path.write_text("[[1, 0]]")
    assert np.array_equal(worldclim_folder(where, tmp_path).statistics, first.statistics)


def linked(downloaded, tmp_path):
    """A folder of links to the rasters, to be spoiled."""
    for path in downloaded[0].rglob("*.tif"):
        (tmp_path / path.name).symlink_to(path)
    return tmp_path


def test_another_raster_means_other_statistics(downloaded, tmp_path):
    where = linked(downloaded, tmp_path)
    before = worldclim_folder(where, tmp_path / "cache")
    (where / "wc2.1_10m_bio_7.tif").unlink()
    (where / "wc2.1_10m_bio_7.tif").symlink_to(where / "wc2.1_10m_bio_8.tif")
    after = worldclim_folder(where, tmp_path / "cache")
    assert before.fingerprint() != after.fingerprint()
    assert np.array_equal(after.statistics[7], before.statistics[8])


def test_what_a_folder_lacks_is_named(downloaded, tmp_path):
    where = linked(downloaded, tmp_path)
    (where / "wc2.1_10m_bio_14.tif").rename(where / "wc2.1_10m_bio_14.tif.part")
    with pytest.raises(LayerError, match=r"lacks wc2\.1_10m_bio_14\.tif;"):
        open_environment20(where)
    (where / "wc2.1_10m_elev.tif").rename(where / "wc2.1_5m_elev.tif")
    with pytest.raises(LayerError, match=r"lacks wc2\.1_5m_bio_1\.tif.* and more.*one resolution"):
        open_environment20(where)


def test_a_raster_of_the_wrong_size_is_refused(downloaded, tmp_path, write_raster):
    where = linked(downloaded, tmp_path)
    (where / "wc2.1_10m_bio_3.tif").unlink()
    write_raster(np.ones((18, 36), np.float32), "wc2.1_10m_bio_3.tif", cell=10.0)
    with pytest.raises(LayerError, match=r"bio_3\.tif.*18 x 36"):
        open_environment20(where)


@pytest.mark.parametrize(
    ("spec", "words"),
    [("nowhere.npy", "does not exist"), ("approximate#elevation=wet", "elevation=valid"), (".", "holds neither")],
)
def test_other_texts_are_refused(tmp_path, monkeypatch, spec, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LayerError, match=words):
        open_environment20(spec)


# The approximation ---------------------------------------------------------------------------------


def test_approximation_holds_the_climate_of_places():
    """Spot values of the sources (degrees, mm), through the standardisation and back."""
    environment = open_environment20()
    lon, lat = np.array([-21.9, 36.82, -60.02, 106.92]), np.array([64.13, -1.29, -3.1, 47.92])
    values, known = environment.sample(lon, lat)
    assert known.all()
    constants = environment.constants
    degrees = values[:, 1] * constants["bio1"]["std"] + constants["bio1"]["mean"]
    rain = values[:, 12] * constants["bio12"]["std"] + constants["bio12"]["mean"]
    assert np.abs(degrees - [5.3, 19.2, 26.8, -1.6]).max() < 1.5
    assert np.abs(rain / [1396, 644, 2758, 335] - 1).max() < 0.25
    assert not values[:, 2:4].any()
    assert "approximated" in environment.describe()
    assert "bio2" in environment.describe()


def test_approximation_knows_all_land_and_no_sea():
    lon, lat = land_sample(3000)
    values, known = approximated().sample(lon, lat)
    assert known.all()
    # Over land as the mask draws it (WorldClim's cells: also Antarctica, also by cell and not by area).
    assert np.abs(values).max() < 25
    values, known = approximated().sample(np.array([-30.0, -140.0, 80.0]), np.array([30.0, 0.0, -30.0]))
    assert not known.any()
    assert not values.any()


def test_approximation_with_the_sea_in_its_elevation():
    lon, lat = np.array([86.9, -30.0]), np.array([27.9, 30.0])
    values, known = approximated("with-sea").sample(lon, lat)
    constants = approximated().constants["elevation_with_sea"]
    height = values[:, 0] * constants["std"] + constants["mean"]
    assert height == pytest.approx([5500, -32768], abs=1500)
    assert known.tolist() == [True, False]


def test_constants_are_those_of_the_layers():
    """Every 36th row of cells, against the constants of all."""
    environment = approximated()
    rows = np.arange(18, 2160, 36)
    raw = environment.raw(np.repeat(rows, 4320), np.tile(np.arange(4320), rows.size))
    for k, name in enumerate(CHANNELS):
        if name in ("bio2", "bio3"):
            assert np.isnan(raw[:, k]).all()
            assert name not in environment.constants
            continue
        constants = environment.constants[name]
        assert np.nanmean(raw[:, k]) == pytest.approx(constants["mean"], abs=0.03 * constants["std"])
        assert np.nanstd(raw[:, k]) == pytest.approx(constants["std"], rel=0.08)


@pytest.mark.slow
def test_the_recipe_writes_the_constants(tmp_path):
    recipe = folder("recipes") / "worldclim_approx.py"
    subprocess.run([sys.executable, recipe, "--out", tmp_path / "a.toml"], check=True, timeout=600)
    made, shipped = (
        tomllib.loads(Path(p).read_text(encoding="utf-8"))
        for p in (tmp_path / "a.toml", folder("data") / worldclim.APPROXIMATION)
    )
    assert made == shipped


# The sample of land --------------------------------------------------------------------------------


def test_land_sample_is_fixed_and_grows_at_its_end():
    lon, lat = land_sample(5000)
    assert lon.shape == lat.shape == (5000,)
    again = land_sample(1200)
    assert np.array_equal(again, (lon[:1200], lat[:1200]))
    other = land_sample(5000, seed=1)
    assert not np.isin(other[0], lon).any()
    assert LandMask().keep("land", lon, lat).all()
    assert lat.min() > -60
    assert lon.min() >= -180
    assert lon.max() < 180
    # Any change would change every published relative suitability.
    assert (lon[:2], lat[:2]) == (pytest.approx([7.0238394, 102.29171894]), pytest.approx([33.96748419, -1.27412973]))


@pytest.mark.parametrize("seed", [0, 1])
def test_land_sample_is_uniform_by_area(seed):
    """Shares of boxes against the land mask's own areas; random points would miss by up to 0.009."""
    lon, lat = land_sample(20_000, seed)
    with rasterio.open(folder("data") / "landmask.tif") as src:
        land = src.read(1) == 1
    y = 90 - (np.arange(land.shape[0]) + 0.5) * 180 / land.shape[0]
    x = -180 + (np.arange(land.shape[1]) + 0.5) * 360 / land.shape[1]
    weight = np.where(y > -60, np.cos(np.radians(y)), 0)
    total = (land.sum(axis=1) * weight).sum()
    for west, south, east, north in [
        (-180, -60, 0, 90),
        (-180, 0, 180, 90),
        (-20, -40, 55, 40),
        (60, 0, 150, 60),
        (-90, -60, -30, 15),
        (100, -50, 180, 0),
        (0, 40, 40, 70),
        (-180, 50, 180, 90),
    ]:
        rows, cols = (y > south) & (y < north), (x > west) & (x < east)
        exact = (land[rows][:, cols].sum(axis=1) * weight[rows]).sum() / total
        share = ((lon > west) & (lon < east) & (lat > south) & (lat < north)).mean()
        assert share == pytest.approx(exact, abs=0.002)
