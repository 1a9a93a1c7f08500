"""The shipped data layers: complete, georeferenced, described, the right values in the right places."""

import hashlib
import tomllib

import geopandas
import numpy as np
import pytest
import rasterio
from rasterio.windows import Window
from shapely import Point

from sdm.files.paths import folder
from sdm.training.data.environment import AROUND_KM

DATA = folder("data")
LAYERS = tomllib.loads((DATA / "layers.toml").read_text(encoding="utf-8"))["layer"]

# file -> (rows, columns, bands, dtype, nodata)
RASTERS = {
    "bioclim.tif": (2160, 4320, 17, "int16", -32768),
    "elevation.tif": (2160, 4320, 1, "int16", -32768),
    "relief.tif": (2160, 4320, 1, "uint8", None),
    "landcover.tif": (3600, 7200, 1, "uint8", None),
    "surroundings.tif": (360, 720, 69, "int16", None),
    "satellite.tif": (2700, 5400, 3, "uint8", None),
    "landmask.tif": (8640, 17280, 1, "uint8", None),
    "shore.tif": (2160, 4320, 5, "uint8", None),
}
TEMPERATURES = ("bio1", "bio5", "bio6", "bio7", "bio8", "bio9", "bio10", "bio11")
BIOCLIM = ["bio1", *(f"bio{i}" for i in range(4, 20))]
SEA, LAND, LAKE = 0, 1, 2


def values(file: str, lon: float, lat: float) -> np.ndarray:
    """True values (stored x scale) of all bands of a layer at a place."""
    with rasterio.open(DATA / file) as src:
        row, column = src.index(lon, lat)
        stored = src.read(window=Window(column, row, 1, 1))[:, 0, 0]
        return stored * np.array(src.scales) + np.array(src.offsets)


def bioclim(name: str, lon: float, lat: float) -> float:
    return values("bioclim.tif", lon, lat)[BIOCLIM.index(name)]


@pytest.fixture(scope="module")
def elevation() -> np.ndarray:
    with rasterio.open(DATA / "elevation.tif") as src:
        return src.read(1)


@pytest.fixture(scope="module")
def land_share() -> np.ndarray:
    """Share of each 5' pixel that the land mask does not have as sea."""
    with rasterio.open(DATA / "landmask.tif") as src:
        return (src.read(1) != SEA).reshape(2160, 4, 4320, 4).mean((1, 3))


def test_list_names_exactly_the_shipped_layers():
    shipped = {path.name for path in DATA.iterdir() if path.suffix in (".tif", ".fgb")}
    assert {layer["file"] for layer in LAYERS} == shipped == {*RASTERS, "countries.fgb"}


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer["file"])
def test_list_entry(layer):
    with (DATA / layer["file"]).open("rb") as f:
        assert hashlib.file_digest(f, "sha256").hexdigest() == layer["sha256"]
    assert all(layer[key] for key in ("title", "resolution", "source", "origin", "citation", "licence"))
    package = [label.split()[1] for label in layer["source"]]
    notice = (DATA / "NOTICE.md").read_text(encoding="utf-8")
    assert layer["file"] in notice
    assert all(name in notice for name in package)


@pytest.mark.parametrize("file", RASTERS)
def test_grid(file):
    rows, columns, bands, dtype, nodata = RASTERS[file]
    with rasterio.open(DATA / file) as src:
        assert src.crs.to_epsg() == 4326
        assert (src.height, src.width, src.count) == (rows, columns, bands)
        assert src.dtypes == (dtype,) * bands
        assert src.nodatavals == (nodata,) * bands
        assert tuple(src.bounds) == pytest.approx((-180, -90, 180, 90), abs=1e-9)
        assert src.transform.a > 0 > src.transform.e
        assert src.tags()["AREA_OR_POINT"] == "Area"
        assert set(src.block_shapes) == {(256, 256)}
        assert all(src.descriptions)


def test_bioclim_bands():
    with rasterio.open(DATA / "bioclim.tif") as src:
        assert [text.split(":")[0] for text in src.descriptions] == BIOCLIM
        for name, scale, unit in zip(BIOCLIM, src.scales, src.units, strict=True):
            others = {"bio4": "0.01 degC", "bio15": "%"}
            expected = (0.1, "degC") if name in TEMPERATURES else (1, others.get(name, "mm"))
            assert (scale, unit) == expected, name
    (entry,) = [layer for layer in LAYERS if layer["file"] == "bioclim.tif"]
    assert [band["name"] for band in entry["bands"]] == BIOCLIM


def test_units_and_colours():
    with rasterio.open(DATA / "elevation.tif") as src:
        assert (src.units, src.scales) == (("m",), (1,))
    with rasterio.open(DATA / "relief.tif") as src:
        assert (src.units, src.scales) == (("m",), (5,))
    with rasterio.open(DATA / "satellite.tif") as src:
        assert [c.name for c in src.colorinterp] == ["red", "green", "blue"]


@pytest.mark.parametrize(
    ("place", "lon", "lat", "bio1", "bio12"),
    [
        ("Reykjavik", -21.94, 64.15, 5.3, 1396),
        ("Nairobi", 36.82, -1.29, 19.2, 644),
        ("Denver", -104.99, 39.74, 9.7, 509),
        ("Manaus", -60.02, -3.12, 26.8, 2758),
        ("Ulaanbaatar", 106.9, 47.92, -1.6, 335),
    ],
)
def test_climate_of_cities(place, lon, lat, bio1, bio12):
    """Against the 0.25 degree normals it is made of; the height of the pixel itself explains the rest."""
    assert bioclim("bio1", lon, lat) == pytest.approx(bio1, abs=1.5)
    assert bioclim("bio12", lon, lat) == pytest.approx(bio12, rel=0.06)


def test_mountains_are_colder_than_their_feet():
    foot, top = bioclim("bio1", 37.34, -3.45), bioclim("bio1", 37.35, -3.07)  # Moshi, Kilimanjaro
    assert foot - top > 12


def test_bioclim_variables_agree_with_each_other():
    """Over Africa, Europe and Asia at a coarse step: what follows from the definitions."""
    with rasterio.open(DATA / "bioclim.tif") as src:
        stored = src.read(window=Window(2000, 200, 2000, 1500))[:, ::25, ::25]
        bio = dict(zip(BIOCLIM, stored * np.array(src.scales)[:, None, None], strict=True))
        assert (stored != src.nodata).all()
    assert np.abs(bio["bio5"] - bio["bio6"] - bio["bio7"]).max() < 0.16  # three roundings to 0.1
    assert (bio["bio6"] <= bio["bio11"]).all()
    assert (bio["bio11"] <= bio["bio1"]).all()
    assert (bio["bio1"] <= bio["bio10"]).all()
    assert (bio["bio10"] <= bio["bio5"]).all()
    for quarter in ("bio8", "bio9"):
        assert ((bio["bio11"] <= bio[quarter]) & (bio[quarter] <= bio["bio10"])).all()
    for quarter in ("bio18", "bio19"):
        assert ((bio["bio17"] <= bio[quarter]) & (bio[quarter] <= bio["bio16"])).all()
    assert (bio["bio16"] <= 3 * bio["bio13"] + 2).all()
    assert (bio["bio17"] + 2 >= 3 * bio["bio14"]).all()
    assert (bio["bio16"] <= bio["bio12"]).all()
    assert (4 * bio["bio16"] + 4 >= bio["bio12"]).all()


def test_dry_season_falls_in_the_right_half_of_the_year():
    assert bioclim("bio8", 18.5, -33.9) < bioclim("bio9", 18.5, -33.9)  # Cape Town: winter rain
    assert bioclim("bio8", 77.2, 28.6) > bioclim("bio11", 77.2, 28.6) + 8  # Delhi: monsoon


@pytest.mark.parametrize(
    ("place", "lon", "lat", "low", "high"),
    [
        ("Tibet", 91.0, 31.0, 4500, 5300),
        ("Denver", -104.99, 39.74, 1550, 1750),
        ("Mont Blanc", 6.86, 45.83, 2200, 3600),
        ("Kilimanjaro", 37.35, -3.07, 3500, 5500),
        ("Greenland's ice", -38.5, 72.58, 3000, 3300),
        ("South Pole", 0.0, -89.9, 2700, 2900),
        ("Dead Sea", 35.48, 31.5, -430, -150),
        ("Mariana Trench", 142.2, 11.33, -11000, -8000),
        ("Dogger Bank", 2.5, 54.8, -60, -10),
    ],
)
def test_height(place, lon, lat, low, high):
    assert low < values("elevation.tif", lon, lat)[0] < high


def test_elevation_is_where_the_land_is(elevation, land_share):
    """Its sign agrees with the GSHHS mask, which it was not made from, and nowhere better a pixel off."""
    inner = slice(240, 1800)  # 70 N to 60 S
    land = land_share > 0.5
    agreement = {
        (dy, dx): (np.roll(elevation > 0, (dy, dx), (0, 1)) == land)[inner].mean()
        for dy, dx in [(0, 0), (0, 1), (0, -1), (1, 0), (-1, 0)]
    }
    assert agreement[0, 0] > 0.985
    assert max(agreement, key=agreement.get) == (0, 0)


def test_no_seam_at_the_antimeridian(elevation):
    across = np.abs(elevation[:, 0].astype(int) - elevation[:, -1]).mean()
    beside = np.abs(elevation[:, 0].astype(int) - elevation[:, 1]).mean()
    assert across < 1.5 * beside
    with rasterio.open(DATA / "bioclim.tif") as src:
        west, east = src.read(1, window=Window(0, 0, 2, 2160)), src.read(1, window=Window(4319, 0, 1, 2160))
    assert np.abs(west[:, 0].astype(int) - east[:, 0]).mean() < 0.5  # 0.05 K


def test_relief():
    assert values("relief.tif", 84.0, 28.5)[0] > 600  # Annapurna
    assert values("relief.tif", 5.0, 52.3)[0] < 30  # Netherlands
    assert values("relief.tif", -30.0, 0.0)[0] == 0  # the sea


@pytest.mark.parametrize(("lon", "lat"), [(8.25, 46.25), (-70.25, -12.75), (179.75, 67.25), (24.25, 69.75)])
@pytest.mark.parametrize("km", [100, 300, 900])
def test_surroundings_are_gaussian_means(elevation, lon, lat, km):
    """Against a direct sum over the sphere: Alps, Andes, both sides of the antimeridian, Lapland."""
    north, east = 90 - (np.arange(2160) + 0.5) / 12, (np.arange(4320) + 0.5) / 12 - 180
    rows = np.flatnonzero(np.abs(north - lat) < 4 * km / 111.195)
    a, b = np.radians(lat), np.radians(north[rows])[:, None]
    cosine = np.sin(a) * np.sin(b) + np.cos(a) * np.cos(b) * np.cos(np.radians(east - lon))[None, :]
    weight = np.exp(-0.5 * (6371.0088 * np.arccos(np.clip(cosine, -1, 1)) / km) ** 2) * np.cos(b)
    with rasterio.open(DATA / "surroundings.tif") as src:
        names = [text.split(":")[0] for text in src.descriptions]
    here = values("surroundings.tif", lon, lat)
    for name, clipped in (("height", np.maximum(elevation[rows], 0)), ("depth", np.minimum(elevation[rows], 0))):
        expected = (clipped * weight).sum() / weight.sum()
        # Rows and columns are blurred apart, which near a pole is not quite a circle of that size.
        rough = 0.35 if km * abs(lat) > 900 * 60 else 0.05
        assert here[names.index(f"mean{km}km-{name}")] == pytest.approx(expected, rel=rough, abs=10)


def test_surroundings_shares_and_names():
    with rasterio.open(DATA / "surroundings.tif") as src:
        names = [text.split(":")[0] for text in src.descriptions]
        stored = src.read() * np.array(src.scales)[:, None, None]
    assert names == [f"mean{km}km-{name}" for km, of in AROUND_KM.items() for name in of]
    shares = stored[[i for i, n in enumerate(names) if n.startswith("mean100km-landcover")]]
    assert shares.min() >= 0
    assert shares.sum(0).max() < 1.001  # some classes are left out
    assert shares.sum(0).mean() > 0.95


@pytest.mark.parametrize(
    ("place", "lon", "lat", "igbp"),
    [
        ("Sahara", 10.0, 24.0, 16),
        ("Amazon", -65.0, -5.0, 2),
        ("Greenland", -40.0, 72.0, 15),
        ("Paris", 2.35, 48.86, 13),
        ("Atlantic", -30.0, 30.0, 0),
    ],
)
def test_land_cover(place, lon, lat, igbp):
    assert values("landcover.tif", lon, lat)[0] == igbp


@pytest.mark.parametrize(
    ("place", "lon", "lat", "kind"),
    [
        ("London", -0.12, 51.5, LAND),
        ("Denver", -105.0, 39.7, LAND),
        ("Cape Town", 18.6, -33.9, LAND),
        ("Antarctica", 100.0, -75.0, LAND),
        ("Lake Superior", -87.5, 47.7, LAKE),
        ("Lake Victoria", 33.0, -1.0, LAKE),
        ("Caspian Sea", 51.0, 40.0, LAKE),
        ("Atlantic", -30.0, 30.0, SEA),
        ("North Pole", 0.0, 89.9, SEA),
        ("Gulf of Guinea", 0.0, 0.0, SEA),
    ],
)
def test_land_mask(place, lon, lat, kind):
    assert values("landmask.tif", lon, lat)[0] == kind


def test_satellite_colours():
    red, green, blue = values("satellite.tif", 10.0, 24.0)  # Sahara: ochre
    assert red > green > blue > 40
    red, green, blue = values("satellite.tif", -65.0, -5.0)  # Amazon: dark green
    assert green > red
    assert green > blue
    assert green < 100
    red, green, blue = values("satellite.tif", -30.0, 0.0)  # Atlantic: dark blue
    assert blue > red
    assert min(values("satellite.tif", -40.0, 75.0)) > 200  # Greenland: white


@pytest.mark.parametrize(
    ("lon", "lat", "name", "iso_n3"),
    [
        (-175.0, 66.5, "Russia", "643"),
        (179.5, 71.2, "Russia", "643"),
        (-179.97, -16.85, "Fiji", "242"),
        (10.0, -89.5, "Antarctica", "010"),
        (37.0, 0.5, "Kenya", "404"),
        (134.0, -25.0, "Australia", "036"),
        (28.2, -29.5, "Lesotho", "426"),
    ],
)
def test_country_at_a_place(lon, lat, name, iso_n3):
    """Read with a box filter, as the programme does; some reach across the antimeridian or round the pole."""
    near = geopandas.read_file(DATA / "countries.fgb", bbox=(lon - 0.1, lat - 0.1, lon + 0.1, lat + 0.1))
    (found,) = near[near.contains(Point(lon, lat))].itertuples()
    assert (found.name, found.iso_n3) == (name, iso_n3)


def test_no_country_stretches_round_the_globe():
    """A ring across the antimeridian read as plain coordinates would cover the globe at its latitude."""
    countries = geopandas.read_file(DATA / "countries.fgb")
    for lon, lat in [(-100.0, -16.5), (0.0, -17.0), (-30.0, 71.2), (-45.0, 45.0)]:
        names = set(countries[countries.contains(Point(lon, lat))].name)
        assert names <= {"Greenland"}, (lon, lat)


def test_countries_are_valid():
    countries = geopandas.read_file(DATA / "countries.fgb")
    assert countries.crs.to_epsg() == 4326
    assert countries.is_valid.all()
    assert set(countries.geom_type) == {"MultiPolygon"}
    assert countries.name.is_unique
    assert len(countries) > 200
