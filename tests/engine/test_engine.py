"""From a grid to probabilities: what is computed, where, and that it agrees with known facts."""

import pickle
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import rasterio
import shapely

import sdm
from sdm.engine import encode
from sdm.engine.graph import to_dask
from sdm.engine.points import combine_scores, embed_places, score_places
from sdm.engine.setup import check_layers
from sdm.engine.targets import named_target
from sdm.engine.tile import score_tile
from sdm.errors import LayerError, ModelError, RequestError
from sdm.files.paths import folder
from sdm.grid import Tile
from sdm.layers.environment import Environment, Input
from sdm.layers.raster import RasterLayer
from sdm.layers.satellite import Satellite
from sdm.models.bundled import BundledModel
from sdm.models.config import all_subsets
from sdm.models.encoders.bundled import BundledEncoders
from sdm.request import Sampling
from sdm.request.choices import MODALITIES

ROCKIES = (-112, 38, -108, 41)  # 60 x 80 pixels at 0.05
MODEL = "mammals-trees"


def probabilities(species="Puma concolor", bbox=ROCKIES, resolution=0.05, **options):
    """(S, rows, columns) of a whole map."""
    job = sdm.plan(species, bbox=bbox, resolution=resolution, **options)
    rows, cols = job.grid.shape
    return score_tile(job.plan, Tile((0, 0), slice(0, rows), slice(0, cols)))


def lonlat(bbox=ROCKIES, resolution=0.05, **options):
    grid = sdm.plan("Puma concolor", bbox=bbox, resolution=resolution, **options).grid
    return grid.lonlat(np.arange(grid.shape[0]), np.arange(grid.shape[1]))


@pytest.fixture(scope="module")
def puma():
    return probabilities()


# One pixel, by hand ------------------------------------------------------------------------------


def by_hand(species, lon, lat, modalities):
    """Layers, encoders and the formula of the paper, place by place, in NumPy."""
    model = BundledModel.open(MODEL)
    encoders = model.load()
    config = model.config
    environment = Environment([Input(**i) for i in config["environment"]["inputs"]])
    satellite = Satellite(config["satellite"]["size"], config["satellite"]["pixel"])
    vector = model.species_embedding(model.taxa.resolve(species)).astype(float)
    out = []
    for x, y in zip(lon, lat, strict=True):
        at = np.array([x]), np.array([y])
        values = {
            "location": np.array([[x, y]]),
            "satellite": satellite.crops(*at),
            "environment": environment.sample(*at),
        }
        total = sum(encoders.encode(m, values[m]).numpy()[0].astype(float) for m in modalities)
        cosine = total @ vector / np.linalg.norm(total) / np.linalg.norm(vector)
        c = config["calibration"]["+".join(modalities)]
        out.append(1 / (1 + np.exp(-(c["scale"] * cosine + c["bias"]))))
    return np.array(out)


@pytest.mark.parametrize("modalities", all_subsets(), ids="+".join)
def test_pixels_agree_with_the_formula(modalities):
    got = probabilities(bbox=(-110, 39, -109.7, 39.2), modalities=modalities, step=1)[0]
    lon, lat = lonlat((-110, 39, -109.7, 39.2))
    expected = by_hand("Puma concolor", lon.ravel(), lat.ravel(), modalities)
    assert got.shape == (4, 6)
    assert np.abs(got.ravel() - expected).max() < 1e-4


def test_pixels_in_a_projected_crs_agree_with_the_formula():
    options = {"bbox": (-110, 39, -109.9, 39.1), "crs": "EPSG:32612", "resolution": 4000}
    got = probabilities(step=1, **options)[0]
    lon, lat = lonlat(**options)
    expected = by_hand("Puma concolor", lon.ravel(), lat.ravel(), ("location", "satellite", "environment"))
    assert np.abs(got.ravel() - expected).max() < 1e-4


def test_points_agree_with_pixels(puma):
    lon, lat = lonlat()
    pick = np.random.default_rng(0).integers(0, lon.size, 40)
    exact = probabilities(step=1)[0].ravel()[pick]
    points = score_places(BundledModel.open(MODEL), ["Puma concolor"], lon.ravel()[pick], lat.ravel()[pick])[:, 0]
    known = np.isfinite(exact)
    assert known.sum() > 30
    assert np.abs(points - exact)[known].max() < 1e-4


# What a map holds --------------------------------------------------------------------------------


def test_trees_have_a_calibration_of_their_own():
    model = BundledModel.open(MODEL)
    lon, lat = np.array([-84.0, -75.0]), np.array([38.0, 41.0])
    assert model.calibration(MODALITIES, "tree") != model.calibration(MODALITIES)
    names, logits = ["Puma concolor", "Quercus alba"], {}
    for name, group in zip(names, ("", "tree"), strict=True):
        target = named_target(model, model.resolve(name), MODALITIES)
        assert (target.score.scale, target.score.bias) == model.calibration(MODALITIES, group)
        vector = model.species_embedding(model.resolve(name))
        alone = combine_scores(model, embed_places(model, lon, lat), vector[None], MODALITIES, [group])
        logits[name] = alone[:, 0]
    both = score_places(model, names, lon, lat)
    assert both == pytest.approx(np.stack([logits[name] for name in names], axis=1), abs=1e-6)


def test_probabilities(puma):
    assert puma.shape == (1, 60, 80)
    assert puma.dtype == np.float32
    known = puma[np.isfinite(puma)]
    assert known.size > 0.97 * puma.size  # all but the lakes of Utah
    assert known.min() >= 0
    assert known.max() <= 1
    assert known.std() > 0


def test_several_species_are_the_single_maps(puma):
    both = probabilities(["Puma concolor", "Ursus arctos"])
    assert np.allclose(both[0], puma[0], atol=1e-6, equal_nan=True)
    assert np.allclose(both[1], probabilities("Ursus arctos")[0], atol=1e-6, equal_nan=True)
    assert not np.allclose(both[0], both[1], equal_nan=True)


def test_every_subset_of_modalities_is_another_map():
    bbox = (-115, 42, -107, 47)  # the southern edge of the bear
    maps = {s: probabilities("Ursus arctos", bbox=bbox, resolution=0.25, modalities=s)[0] for s in all_subsets()}
    for a, b in combinations(maps, 2):
        assert np.nanmax(np.abs(maps[a] - maps[b])) > 0.02, (a, b)


@pytest.mark.parametrize("step", [None, 2])
def test_sparser_encoding_is_close(step):
    exact = probabilities(step=1)[0]
    sparse = probabilities(step=step)[0]
    difference = np.abs(sparse - exact)
    assert np.nanmean(difference) < 0.01
    assert np.nanquantile(difference, 0.99) < 0.1
    assert np.array_equal(np.isnan(sparse), np.isnan(exact))


def test_land_and_sea_share_the_globe():
    bbox = (-4, 49, 2, 52)  # the Channel
    land, sea, everywhere = (probabilities(bbox=bbox, mask=m)[0] for m in ("land", "sea", "none"))
    assert np.isfinite(everywhere).all()
    both = np.isfinite(land) & np.isfinite(sea)  # a coast: a tenth of it is either
    assert (np.isfinite(land) | np.isfinite(sea)).all() and 0.0 < both.mean() < 0.2
    assert 0.3 < np.isfinite(land).mean() < 0.9
    for masked in (land, sea):
        shown = np.isfinite(masked)
        assert np.array_equal(masked[shown], everywhere[shown])
    lon, lat = lonlat(bbox)
    london = np.unravel_index(np.hypot(lon + 0.12, lat - 51.5).argmin(), lon.shape)
    channel = np.unravel_index(np.hypot(lon + 1.0, lat - 50.1).argmin(), lon.shape)
    assert np.isfinite(land[london])
    assert np.isnan(land[channel])


def test_mask_follows_the_species():
    whale, fox, seal = probabilities(["Balaenoptera musculus", "Vulpes vulpes", "Phoca vitulina"], bbox=(-4, 49, 2, 52))
    land, sea = (probabilities("Vulpes vulpes", bbox=(-4, 49, 2, 52), mask=m)[0] for m in ("land", "sea"))
    assert np.array_equal(np.isfinite(whale), np.isfinite(sea)) and np.array_equal(np.isfinite(fox), np.isfinite(land))
    assert not np.array_equal(np.isfinite(whale), np.isfinite(fox)) and np.isfinite(seal).all()


def test_outside_the_region_is_not_modelled():
    region = shapely.Polygon([(-112, 38), (-108, 38), (-110, 41)], [[(-110.5, 38.5), (-109.5, 38.5), (-110, 39.5)]])
    got = probabilities(bbox=None, region=region, mask="none")[0]
    lon, lat = lonlat()
    inside = shapely.contains_xy(region, lon, lat)
    assert got.shape == inside.shape
    assert (np.isfinite(got) != inside).mean() < 0.005
    everywhere = probabilities(mask="none")[0]
    both = np.isfinite(got)
    assert np.allclose(got[both], everywhere[both], atol=1e-6)


def test_outside_the_latitudes_of_training_is_not_modelled():
    got = probabilities(bbox=(0, -66, 4, -58), mask="none", resolution=0.25)[0]
    lat = lonlat((0, -66, 4, -58), 0.25)[1]
    south = BundledModel.open(MODEL).domain[0]
    assert np.array_equal(np.isfinite(got), lat >= south)
    assert 0 < np.isfinite(got).sum() < got.size


def test_trees_are_not_modelled_outside_north_america():
    oak, fox = probabilities(["Quercus alba", "Vulpes vulpes"], bbox=(-10, 40, 10, 50), resolution=0.5)
    assert np.isnan(oak).all()
    assert np.isfinite(fox).any()
    west, _, east, _ = BundledModel.open(MODEL).config["groups"]["tree"]["extent"]
    assert -180 < west < -160
    assert -60 < east < -40
    job = sdm.plan(["Quercus alba", "Vulpes vulpes"], bbox=(-80, 40, 10, 50), resolution=0.5)
    assert any("known only within" in note for note in job.notes[0])
    assert not any("known only within" in note for note in job.notes[1])
    got = score_tile(job.plan, Tile((0, 0), slice(0, 20), slice(0, 180)))
    lon = job.grid.lonlat(np.arange(20), np.arange(180))[0]
    assert np.isnan(got[0][lon > east]).all()
    assert np.isfinite(got[0][(lon < east) & np.isfinite(got[1])]).all()


def test_map_across_the_antimeridian_is_its_two_halves():
    whole = probabilities("Ursus arctos", bbox=(175, 62, -175, 66), resolution=0.25, step=1)[0]
    east = probabilities("Ursus arctos", bbox=(175, 62, 180, 66), resolution=0.25, step=1)[0]
    west = probabilities("Ursus arctos", bbox=(-180, 62, -175, 66), resolution=0.25, step=1)[0]
    assert np.allclose(whole, np.concatenate([east, west], axis=1), atol=1e-5, equal_nan=True)
    assert np.isfinite(whole).mean() > 0.2


def test_off_the_globe_is_not_modelled():
    got = probabilities(bbox=(-180, -80, 180, 80), crs="EPSG:8857", resolution=400_000, mask="none")[0]
    assert np.isnan(got[[0, 0, -1, -1], [0, -1, 0, -1]]).all()
    assert np.isfinite(got[got.shape[0] // 2]).mean() > 0.95


# Laziness ----------------------------------------------------------------------------------------


def test_nothing_is_encoded_before_it_is_asked_for(monkeypatch):
    encoded, read = [], []
    encode, read_layer = BundledEncoders.encode, RasterLayer._read
    with_slopes = BundledEncoders.encode_with_slopes
    monkeypatch.setattr(BundledEncoders, "encode", lambda self, m, v: encoded.append(m) or encode(self, m, v))
    monkeypatch.setattr(
        BundledEncoders,
        "encode_with_slopes",
        lambda self, v: encoded.append("environment") or with_slopes(self, v),
    )
    monkeypatch.setattr(RasterLayer, "_read", lambda self, *a: read.append(self.path) or read_layer(self, *a))
    array = sdm.map_species("Puma concolor", bbox=ROCKIES, resolution=0.05, tile_size=16)
    assert array.chunks == ((16, 16, 16, 12), (16,) * 5)
    # How far the sea is, which limits some species, is looked up for the notes.
    assert encoded == [] and {Path(path).name for path in read} <= {"shore.tif"}
    array.isel(y=slice(0, 8), x=slice(0, 8)).compute()
    one_tile = len(encoded)
    assert set(encoded) == {"location", "satellite", "environment"}
    assert read
    array.isel(y=slice(0, 32), x=slice(0, 32)).compute()
    # Four more tiles; not exactly four times the batches, since cells far from an edge need fewer.
    assert 3 * one_tile <= len(encoded) <= 7 * one_tile


def test_a_graph_of_the_whole_world_is_cheap():
    job = sdm.plan("Puma concolor", bbox=(-180, -60, 180, 80), resolution=0.025)
    assert job.grid.pixels == 14_400 * 5600
    assert len(pickle.dumps(job.plan)) < 50_000


# The user's own rasters --------------------------------------------------------------------------


def bundled_band(name):
    """(values, transform, profile parts) of one band of the bundled climate."""
    with rasterio.open(folder("data") / "bioclim.tif") as src:
        band = next(k for k, text in enumerate(src.descriptions, 1) if text.startswith(name + ":"))
        window = rasterio.windows.from_bounds(-120, 30, -100, 50, src.transform)
        return src.read(band, window=window), src.window_transform(window), src.scales[band - 1], src.nodata


def test_a_copy_of_the_bundled_band_changes_nothing(write_raster):
    values, transform, scale, nodata = bundled_band("bio1")
    path = write_raster(values, "bio1.tif", transform=transform, scale=scale, nodata=nodata)
    # Every pixel: by default the user's rasters are read at every pixel and the bundled ones only where needed.
    assert np.allclose(probabilities(environment=path, step=1), probabilities(step=1), atol=1e-5, equal_nan=True)


def test_detail_of_the_users_climate_is_not_skipped(write_raster):
    """A cold spot smaller than the lattice of the bundled layers shows."""
    values, transform, scale, nodata = bundled_band("bio1")
    path = write_raster(values, "plain/bio1.tif", transform=transform, scale=scale, nodata=nodata)
    spot = values.copy()
    col, row = (int(v) for v in ~transform @ (-109.5, 39.5))
    spot[row, col] -= 400
    cold = write_raster(spot, "cold/bio1.tif", transform=transform, scale=scale, nodata=nodata)
    change = np.abs(probabilities(environment=cold) - probabilities(environment=path))[0]
    lon, lat = lonlat()
    near = (np.abs(lon + 109.5) < 0.2) & (np.abs(lat - 39.5) < 0.2)
    # The means around all other places hold the spot too, as a small part.
    assert change[near].max() > 5 * np.nanmax(change[~near]) > 0


def test_a_warmer_climate_changes_the_map(puma, write_raster):
    values, transform, scale, nodata = bundled_band("bio1")
    path = write_raster(values + np.int16(100), "bio1.tif", transform=transform, scale=scale, nodata=nodata)
    assert np.nanmax(np.abs(probabilities(environment=path) - puma)) > 0.002


def test_beyond_the_users_climate_is_not_modelled(puma, write_raster):
    path = write_raster(np.full((60, 40), 8, np.float32), "bio1.tif", west=-112.0, north=41.0, cell=0.05)
    got = probabilities(environment=path)[0]
    known = np.isfinite(puma[0])
    assert np.isnan(got[:, 41:]).all()
    assert np.array_equal(np.isfinite(got[:, :39]), known[:, :39])


def test_beyond_the_users_imagery_is_not_modelled(puma, write_raster):
    rgb = np.full((3, 60, 40), 90, np.uint8)
    path = write_raster(rgb, "rgb.tif", west=-112.0, north=41.0, cell=0.05)
    got = probabilities(satellite=path, step=1)[0]
    assert np.isnan(got[:, 41:]).all()
    assert np.isfinite(got[:, :39]).mean() > 0.95


def test_rasters_are_checked_before_any_work(write_raster):
    elsewhere = write_raster(np.full((10, 10), 8, np.float32), "bio1.tif", west=0.0, north=50.0)
    with pytest.raises(LayerError, match="does not overlap"):
        sdm.plan("Puma concolor", bbox=ROCKIES, environment=elsewhere)
    kelvin = write_raster(np.full((20, 20), 284, np.float32), "kelvin/bio1.tif", west=-120.0, north=50.0)
    with pytest.raises(LayerError, match="not degrees Celsius"):
        sdm.plan("Puma concolor", bbox=ROCKIES, environment=kelvin)
    imagery = write_raster(np.zeros((3, 10, 10), np.uint8), "rgb.tif", west=0.0, north=50.0)
    with pytest.raises(LayerError, match="does not overlap"):
        sdm.plan("Puma concolor", bbox=ROCKIES, satellite=imagery)
    with pytest.raises(RequestError, match="satellite is not among the modalities"):
        sdm.plan("Puma concolor", bbox=ROCKIES, satellite=imagery, modalities="location")


# Plans that make no sense ------------------------------------------------------------------------


@pytest.mark.parametrize("step", [0, -1, 65])
def test_step_out_of_bounds(step):
    with pytest.raises(RequestError, match="step"):
        sdm.plan("Puma concolor", bbox=ROCKIES, step=step)


def test_map_without_a_pixel_on_the_globe():
    job = sdm.plan("Puma concolor", bbox=ROCKIES)
    lost = pickle.loads(pickle.dumps(job.plan))
    grid = sdm.grid.make_grid((-180, -80, 180, 80), crs="EPSG:8857", resolution=100_000)
    corner = type(grid)(grid.geobox[:5, :5], grid.tile_size)
    object.__setattr__(lost, "grid", corner)
    with pytest.raises(RequestError, match="no pixel of the map lies on the globe"):
        check_layers(lost)


def test_model_without_the_calibration(tmp_path):
    import json
    import shutil

    path = shutil.copytree(folder("models") / MODEL, tmp_path / "model")
    config = json.loads((path / "config.json").read_text())
    del config["calibration"]["satellite"]
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="no calibration for satellite"):
        sdm.plan("Puma concolor", bbox=ROCKIES, model=path, modalities="satellite")
    assert sdm.plan("Puma concolor", bbox=ROCKIES, model=path).plan.model.name == MODEL


def test_lazy_array_has_one_chunk_per_tile():
    job = sdm.plan(["Puma concolor", "Ursus arctos"], bbox=ROCKIES, resolution=0.05, tile_size=32)
    array = to_dask(job.plan)
    assert array.chunks == ((2,), (32, 28), (32, 32, 16))
    assert array.dtype == np.float32
    tasks = [key for key in dict(array.__dask_graph__()) if key[0] == array.name]
    assert len(tasks) == job.grid.tile_count
    other = sdm.plan(["Puma concolor", "Ursus arctos"], bbox=ROCKIES, resolution=0.05, tile_size=32, mask="none")
    assert to_dask(other.plan).name != array.name
    assert to_dask(job.plan).name == array.name


# Known facts -------------------------------------------------------------------------------------

# (species, place, lon, lat, whether it lives there)
FACTS = [
    ("Ursus arctos", "Denali", -151.0, 63.3, True),
    ("Ursus arctos", "Carpathians", 25.3, 45.6, True),
    ("Ursus arctos", "Kansas", -98.5, 38.5, False),
    ("Ursus arctos", "Congo", 22.0, 0.0, False),
    ("Puma concolor", "Utah", -110.5, 38.5, True),
    ("Puma concolor", "Patagonia", -71.5, -47.0, True),
    ("Puma concolor", "Germany", 10.0, 51.0, False),
    ("Puma concolor", "Borneo", 114.5, 1.0, False),
    ("Vulpes vulpes", "Germany", 10.0, 51.0, True),
    ("Vulpes vulpes", "Anatolia", 33.0, 39.0, True),
    ("Vulpes vulpes", "Congo", 22.0, 0.0, False),
    ("Ursus maritimus", "Svalbard", 19.0, 79.0, True),
    ("Ursus maritimus", "Baffin Bay coast", -68.0, 71.5, True),
    ("Ursus maritimus", "Utah", -110.5, 38.5, False),
    ("Ursus maritimus", "Antarctic sea", 0.0, -59.5, False),
    ("Loxodonta africana", "Kruger", 31.5, -24.0, True),
    ("Loxodonta africana", "India", 78.0, 22.0, False),
    ("Loxodonta africana", "Brazil", -55.0, -10.0, False),
    ("Ailuropoda melanoleuca", "Wolong", 103.2, 31.1, True),
    ("Ailuropoda melanoleuca", "Manchuria", 126.0, 46.0, False),
    ("Macropus rufus", "Alice Springs", 133.9, -23.7, True),
    ("Macropus rufus", "Namibia", 17.0, -23.0, False),
    ("Panthera tigris", "Sundarbans", 89.2, 22.0, True),
    ("Panthera tigris", "Kanha", 80.6, 22.3, True),
    ("Panthera tigris", "Amur", 135.0, 46.5, True),
    ("Panthera tigris", "Kenya", 37.0, -1.0, False),
    ("Lynx lynx", "Finland", 27.0, 63.0, True),
    ("Lynx lynx", "Texas", -99.0, 31.0, False),
    ("Gorilla gorilla", "Gabon", 12.0, 0.0, True),
    ("Gorilla gorilla", "Amazon", -62.0, -4.0, False),
    ("Balaenoptera musculus", "North Pacific", -150.0, 35.0, True),
    ("Balaenoptera musculus", "Black Sea", 34.0, 43.2, False),
    ("Quercus alba", "Ohio", -82.5, 39.8, True),
    ("Quercus alba", "Nevada", -117.0, 39.5, False),
    ("Sequoia sempervirens", "Redwood coast", -124.0, 41.3, True),
    ("Sequoia sempervirens", "Florida", -82.0, 28.5, False),
    ("Picea glauca", "Fairbanks", -147.7, 64.8, True),
    ("Picea glauca", "Yucatan", -89.0, 20.5, False),
]


@pytest.fixture(scope="module")
def facts():
    species = sorted({f[0] for f in FACTS})
    lon, lat = (np.array([f[k] for f in FACTS]) for k in (2, 3))
    scores = score_places(BundledModel.open(MODEL), species, lon, lat)
    return np.array([scores[k, species.index(f[0])] for k, f in enumerate(FACTS)])


def test_known_facts_on_the_whole(facts):
    present = np.array([f[4] for f in FACTS])
    right = (facts > 0.5) == present
    wrong = [(*f[:2], round(float(p), 2)) for f, p, ok in zip(FACTS, facts, right, strict=True) if not ok]
    assert right.mean() >= 0.9, wrong
    assert facts[present].mean() > 0.75
    assert facts[~present].mean() < 0.1


@pytest.mark.parametrize(
    ("species", "place", "low", "high"),
    [
        ("Ursus arctos", "Denali", 0.5, 1.0),
        ("Ursus arctos", "Kansas", 0.0, 0.2),
        ("Puma concolor", "Utah", 0.5, 1.0),
        ("Puma concolor", "Germany", 0.0, 0.05),
        ("Ursus maritimus", "Utah", 0.0, 0.05),
        ("Ursus maritimus", "Antarctic sea", 0.0, 0.2),
        ("Loxodonta africana", "Brazil", 0.0, 0.05),
        ("Macropus rufus", "Alice Springs", 0.5, 1.0),
        ("Quercus alba", "Ohio", 0.5, 1.0),
        ("Quercus alba", "Nevada", 0.0, 0.2),
    ],
)
def test_known_fact(facts, species, place, low, high):
    value = facts[[f[:2] for f in FACTS].index((species, place))]
    assert low <= value <= high


def test_the_map_shows_the_facts_of_the_points():
    denali = probabilities("Ursus arctos", bbox=(-151.5, 63.0, -150.5, 63.6))[0]
    kansas = probabilities("Ursus arctos", bbox=(-99, 38, -98, 39))[0]
    assert np.nanmedian(denali) > 0.5
    assert np.nanmax(kansas) < 0.2


def test_places_read_belt_by_belt_keep_their_order(monkeypatch):
    model, rng = BundledModel.open(MODEL), np.random.default_rng(3)
    lon, lat = rng.uniform(-180, 180, 700), rng.uniform(-55, 80, 700)
    lon[5] = np.nan
    as_they_come = encode.describe_positions(model, Sampling(), lon, lat)
    read = []
    monkeypatch.setattr(encode, "SAMPLED_AT_ONCE", 100)
    batches = encode.embed_batches
    monkeypatch.setattr(encode, "embed_batches", lambda *a: read.append(a[5]) or batches(*a))
    for one, other in zip(as_they_come, encode.describe_positions(model, Sampling(), lon, lat), strict=True):
        assert one[np.isfinite(lon)].tobytes() == other[np.isfinite(lon)].tobytes()
    assert (np.diff(np.floor(read[0] / encode.BELT)) >= 0).all()
    assert not as_they_come[2][5]
