"""The environment as the published TaxaBind model reads it: 20 channels of WorldClim 2.1.

Elevation and bio1 .. bio19, each standardised over the cells that have a value (mean and standard
deviation not weighted by area), rounded to float16, and 0 where there is no value. A place takes the
values of the cell that contains it, without interpolation.

WorldClim covers land only, including Antarctica. A place is `known` where at least one of the 19
climate variables has a value. Elevation does not count: an array made without regard to its nodata
value has one at sea.

WorldClim: Fick and Hijmans (2017), https://doi.org/10.1002/joc.5086. Its licence forbids
redistribution, so it is not bundled.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
import tomllib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from sdm.errors import LayerError
from sdm.files import fingerprint
from sdm.files.paths import cache_folder, replace_file
from sdm.files.release import data_file
from sdm.layers.landmask import LandMask
from sdm.layers.raster import RasterLayer

CHANNELS = ("elevation", *(f"bio{k}" for k in range(1, 20)))
PUBLISHED_SHAPE = (2160, 4320, 20)
"""(rows, columns, channels)."""
PUBLISHED_NAME = "bioclim_elevation_scaled.npy"
APPROXIMATION = "worldclim-approx.toml"
RESOLUTIONS = {"10m": 1080, "5m": 2160, "2.5m": 4320, "30s": 21600}
"""Rows of WorldClim's grids, which have twice as many columns."""
NODATA_BELOW = -1e6
"""Lower values are nodata, as in the script that made the published array."""
SEA = -32768.0
"""WorldClim's nodata value of elevation, which is above `NODATA_BELOW`; see `elevation` in `worldclim_folder`."""
ROWS_AT_ONCE = 256
"""Rows of a raster in memory while its statistics are computed."""
ELEVATION = ("valid", "with-sea")


class Environment20:
    """Twenty standardised channels at places; a subclass for each source."""

    rows, columns = PUBLISHED_SHAPE[:2]

    def sample(self, lon: np.ndarray, lat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """At places (N,), (N,) degrees: (values (N, 20) float32, known (N,) boolean).

        Values are in standard deviations from the mean, 0 where there is none. Longitudes beyond -180..180
        are wrapped. Raises LayerError when a file cannot be read.
        """
        lon, lat = np.asarray(lon, dtype=np.float64).ravel(), np.asarray(lat, dtype=np.float64).ravel()
        if lon.shape != lat.shape:
            raise ValueError(f"lon has {lon.size} values and lat {lat.size}")
        values = np.zeros((lon.size, len(CHANNELS)), dtype=np.float32)
        known = np.zeros(lon.size, dtype=bool)
        valid = np.isfinite(lon + lat) & (np.abs(lat) <= 90.0)
        if valid.any():
            row, col = containing_cell(lon[valid], lat[valid], self.rows, self.columns)
            # A fine map has many places in a cell.
            cells, which = np.unique(row * self.columns + col, return_inverse=True)
            channels = self._cells(cells // self.columns, cells % self.columns).astype(np.float16).astype(np.float32)
            known[valid] = self._known(channels)[which]
            values[valid] = np.nan_to_num(channels, nan=0.0)[which]
        return values, known

    def check(self, lon: np.ndarray, lat: np.ndarray) -> None:
        """Raise LayerError unless one of the places (N,), (N,) degrees is known, if there are any."""
        if np.size(lon) and not self.sample(lon, lat)[1].any():
            raise LayerError(
                "the environment of the published model covers land only, and this map has no land with data; "
                "omit environment."
            )

    def describe(self) -> str:
        """One sentence for the outputs: where the values come from."""
        raise NotImplementedError

    def fingerprint(self) -> str:
        """Sixteen hex digits of the content."""
        raise NotImplementedError

    def _cells(self, row: np.ndarray, col: np.ndarray) -> np.ndarray:
        """Values of cells: rows (N,), columns (N,) -> (N, 20), NaN where there is none."""
        raise NotImplementedError

    def _known(self, channels: np.ndarray) -> np.ndarray:
        """Boolean (N,): cells with values (N, 20) have at least one climate variable."""
        return np.isfinite(channels[:, 1:]).any(axis=1)


def containing_cell(lon: np.ndarray, lat: np.ndarray, rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """(row, column) of the cell that contains each place (N,), (N,) degrees, on a global grid from the north-west.

    As in the published code: `int((lon + 180) * columns / 360)`, `int((90 - lat) * rows / 180)`, clamped.
    """
    lon = np.where(np.abs(lon) <= 180.0, lon, (lon + 180.0) % 360.0 - 180.0)
    col = ((lon + 180.0) * columns / 360.0).astype(np.int64)
    row = ((90.0 - lat) * rows / 180.0).astype(np.int64)
    return np.clip(row, 0, rows - 1), np.clip(col, 0, columns - 1)


def open_environment20(spec: str | Path | None = None, cache_dir: str | Path | None = None) -> Environment20:
    """Open the environment from the bundled layers, a file or a folder.

    * None or "approximate": the bundled layers, see `approximated`
    * a file: the published array, see `published_array`
    * a folder: the published array if the folder has one by its usual name, else WorldClim, see `worldclim_folder`

    `#elevation=valid` (the default) or `#elevation=with-sea` after "approximate" or a folder selects the cells
    over which elevation is standardised, see `worldclim_folder`. Raises LayerError.
    """
    text = "approximate" if spec is None else str(spec)
    where, option = text, ""
    if not Path(text).exists():
        where, _, option = text.partition("#")
    name, _, elevation = option.partition("=")
    if option and (name != "elevation" or elevation not in ELEVATION):
        raise LayerError(
            f"environment option {option[:60]!r} is not known; there are #elevation=valid and #elevation=with-sea."
        )
    elevation = elevation or "valid"
    if where == "approximate":
        return approximated(elevation)
    path = Path(where)
    if path.is_dir():
        array = path / PUBLISHED_NAME
        return published_array(array) if array.exists() else worldclim_folder(path, cache_dir, elevation)
    if not path.exists():
        raise LayerError(
            f"environment {where!r} does not exist; give {PUBLISHED_NAME}, a folder of WorldClim 2.1 rasters, "
            'or "approximate".'
        )
    return published_array(path)


# The published array -------------------------------------------------------------------------------


class PublishedArray(Environment20):
    """The array the published model was trained with, mapped into memory."""

    def __init__(self, path: str | Path) -> None:
        self.path = str(path)
        _ = self._array  # opened now, so that a bad file fails before the map starts

    def __getstate__(self) -> dict[str, str]:
        return {"path": self.path}

    @cached_property
    def _array(self) -> np.ndarray:
        try:
            array = np.load(self.path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            reason = str(error).splitlines()[0][:160] if str(error) else type(error).__name__
            raise LayerError(f"environment array {self.path!r} cannot be read as .npy: {reason}") from error
        if not isinstance(array, np.ndarray) or array.shape != PUBLISHED_SHAPE or array.dtype != np.dtype("<f2"):
            content = f"{array.shape} of {array.dtype}" if isinstance(array, np.ndarray) else "an archive"
            raise LayerError(
                f"environment array {self.path!r} holds {content}; {PUBLISHED_NAME} is {PUBLISHED_SHAPE} of float16."
            )
        return array

    def _cells(self, row: np.ndarray, col: np.ndarray) -> np.ndarray:
        return np.asarray(self._array[row, col])

    def _known(self, channels: np.ndarray) -> np.ndarray:
        # A cell of zeros had its NaN replaced before the array was saved: no land cell is average in all variables.
        return super()._known(channels) & (channels[:, 1:] != 0).any(axis=1)

    def describe(self) -> str:
        """One sentence for the outputs."""
        return (
            f"Environment: 20 channels of the published array {Path(self.path).name!r}, value of the 5-arc-minute cell."
        )

    def fingerprint(self) -> str:
        """Sixteen hex digits of the array's content."""
        return fingerprint.of_parts(["array", fingerprint.of_file(self.path)])


def published_array(path: str | Path) -> PublishedArray:
    """The published `bioclim_elevation_scaled.npy`, (2160, 4320, 20) float16. Raises LayerError."""
    return PublishedArray(path)


# WorldClim's own rasters ---------------------------------------------------------------------------


class WorldClimFolder(Environment20):
    """WorldClim 2.1 as downloaded, standardised over its own cells."""

    def __init__(
        self, where: str, files: Sequence[str], resolution: str, statistics: np.ndarray, elevation: str
    ) -> None:
        """Open the rasters.

        Parameters
        ----------
        where
            The folder, for messages.
        files
            Rasters in the order of `CHANNELS`.
        resolution
            One of `RESOLUTIONS`.
        statistics
            (20, 2): mean and standard deviation of each channel.
        elevation
            One of `ELEVATION`, see `worldclim_folder`.
        """
        self.where, self.files, self.resolution, self.elevation = where, tuple(files), resolution, elevation
        self.rows, self.columns = RESOLUTIONS[resolution], 2 * RESOLUTIONS[resolution]
        self.statistics = statistics
        self._layers = [RasterLayer(f) for f in files]
        self._fingerprint = fingerprint.of_parts(["folder", elevation, *map(fingerprint.of_file, files)])

    def _cells(self, row: np.ndarray, col: np.ndarray) -> np.ndarray:
        # Read at the centre of the cell: on its edge the reader might round differently from the published code.
        lon = (col + 0.5) * (360.0 / self.columns) - 180.0
        lat = 90.0 - (row + 0.5) * (180.0 / self.rows)
        out = np.empty((row.size, len(CHANNELS)), dtype=np.float64)
        for k, layer in enumerate(self._layers):
            raw = layer.nearest(lon, lat).astype(np.float64)
            raw[raw < NODATA_BELOW] = np.nan
            if k == 0:
                raw = _elevation(raw, self.elevation)
            out[:, k] = (raw - self.statistics[k, 0]) / self.statistics[k, 1]
        return out

    def describe(self) -> str:
        """One sentence for the outputs."""
        return (
            f"Environment: elevation and bio1 to bio19 of WorldClim 2.1 at {self.resolution}, standardised over their "
            f"own cells{_elevation_note(self.elevation)}, value of the cell."
        )

    def fingerprint(self) -> str:
        """Sixteen hex digits of the rasters' content and how they are standardised."""
        return self._fingerprint


def worldclim_folder(
    where: str | Path, cache_dir: str | Path | None = None, elevation: str = "valid"
) -> WorldClimFolder:
    """A folder with `wc2.1_5m_bio_1.tif` .. `bio_19.tif` and `wc2.1_5m_elev.tif`, or of another resolution.

    The files may be one folder deeper, as when unpacked. Of several resolutions 5m is used. Statistics are
    computed once and kept in `cache_dir` by the files' content.

    `elevation`: "valid" standardises elevation over the cells that have one. "with-sea" counts the sea as
    -32768 m, as does a script that makes the published array from the raw rasters and takes only values below
    -1e6 as nodata; the channel is then mainly a land mask.
    Raises LayerError that names the missing files.
    """
    resolution, files = _find_files(Path(where))
    layers = [RasterLayer(f) for f in files]
    rows = RESOLUTIONS[resolution]
    for path, layer in zip(files, layers, strict=True):
        west, south, east, north = layer.bounds
        is_global = max(abs(west + 180), abs(east - 180), abs(south + 90), abs(north - 90)) < 1e-3
        if (layer.height, layer.width) != (rows, 2 * rows) or layer.count != 1 or not is_global:
            raise LayerError(
                f"WorldClim raster {path!r} has {layer.count} band(s) of {layer.height} x {layer.width} cells; "
                f"at {resolution} it is one of {rows} x {2 * rows} for the whole globe: download it again."
            )
    key = fingerprint.of_parts(["statistics 1", elevation, *map(fingerprint.of_file, files)])
    kept = cache_folder(cache_dir) / f"worldclim-{key}.json"
    statistics = _load_statistics(kept)
    if statistics is None:
        statistics = np.array([_statistics(layer, elevation if k == 0 else "") for k, layer in enumerate(layers)])
        _save_statistics(kept, statistics)
    return WorldClimFolder(str(where), files, resolution, statistics, elevation)


def _find_files(where: Path) -> tuple[str, list[str]]:
    """The resolution to use and its 20 files in the order of `CHANNELS`."""
    by_resolution: dict[str, dict[str, str]] = {}
    for path in sorted([*where.glob("*.tif"), *where.glob("*/*.tif")]):
        match = re.fullmatch(r"wc2\.1_(10m|5m|2\.5m|30s)_(?:(elev)|bio_0?([1-9]|1\d))", path.stem)
        if match:
            channel = "elevation" if match[2] else f"bio{match[3]}"
            by_resolution.setdefault(match[1], {}).setdefault(channel, str(path))
    if not by_resolution:
        raise LayerError(
            f"environment folder {str(where)!r} holds neither {PUBLISHED_NAME} nor WorldClim 2.1 rasters "
            "(wc2.1_5m_bio_1.tif .. wc2.1_5m_bio_19.tif and wc2.1_5m_elev.tif, from https://worldclim.org)."
        )
    resolution = "5m" if "5m" in by_resolution else max(by_resolution, key=lambda r: len(by_resolution[r]))
    files = by_resolution[resolution]
    missing = [c for c in CHANNELS if c not in files]
    if missing:
        names = [f"wc2.1_{resolution}_{'elev' if c == 'elevation' else c.replace('bio', 'bio_')}.tif" for c in missing]
        raise LayerError(
            f"environment folder {str(where)!r} lacks {', '.join(names[:4])}{' and more' if len(names) > 4 else ''}; "
            "all of bio_1 .. bio_19 and elev are needed, of one resolution."
        )
    return resolution, [files[c] for c in CHANNELS]


def _statistics(layer: RasterLayer, elevation: str) -> tuple[float, float]:
    """Mean and standard deviation of the cells with a value, merged strip by strip (Chan et al. 1983)."""
    count, mean, squares = 0, 0.0, 0.0
    for r0 in range(0, layer.height, ROWS_AT_ONCE):
        extent = (r0, min(r0 + ROWS_AT_ONCE, layer.height), 0, layer.width)
        values = layer.block(extent, [1]).astype(np.float64)
        values[values < NODATA_BELOW] = np.nan
        if elevation:
            values = _elevation(values, elevation)
        values = values[np.isfinite(values)]
        if values.size:
            delta, total = values.mean() - mean, count + values.size
            squares += ((values - values.mean()) ** 2).sum() + delta**2 * count * values.size / total
            mean += delta * values.size / total
            count = total
    spread = math.sqrt(squares / count) if count else 0.0
    if spread == 0.0:
        raise LayerError(f"WorldClim raster {layer.path!r} holds no two different values; download it again.")
    return mean, spread


def _elevation(values: np.ndarray, mode: str) -> np.ndarray:
    """Elevation in metres as it enters the statistics, NaN where it does not."""
    if mode == "with-sea":
        return np.where(np.isfinite(values), values, SEA)
    return np.where(values == SEA, np.nan, values)


def _elevation_note(elevation: str) -> str:
    return " (elevation with the sea at -32768 m)" if elevation == "with-sea" else ""


def _load_statistics(path: Path) -> np.ndarray | None:
    try:
        values = np.array(json.loads(path.read_text(encoding="utf-8")), dtype=np.float64)
    except (OSError, ValueError, TypeError):
        return None
    valid = values.shape == (len(CHANNELS), 2) and np.isfinite(values).all() and (values[:, 1] > 0).all()
    return values if valid else None


def _save_statistics(path: Path, statistics: np.ndarray) -> None:
    """Save for the next map; a cache that cannot be written is no reason to stop."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, json.dumps(statistics.tolist()).encode())


# From the bundled layers ---------------------------------------------------------------------------


class Approximated(Environment20):
    """The channels that the bundled layers have, standardised in the same way over land cells; others are 0."""

    def __init__(self, elevation: str = "valid") -> None:
        self.elevation = elevation
        self._climate, self._height = map(RasterLayer, map(data_file, ("bioclim.tif", "elevation.tif")))
        self._mask = LandMask()
        names = [d.partition(":")[0] for d in self._climate.descriptions]
        self._bands = {name: k + 1 for k, name in enumerate(names)}

    @cached_property
    def constants(self) -> dict[str, dict[str, float]]:
        """Mean and standard deviation by channel, computed by recipes/worldclim_approx.py."""
        with data_file(APPROXIMATION).open("rb") as file:
            return tomllib.load(file)

    def _cells(self, row: np.ndarray, col: np.ndarray) -> np.ndarray:
        raw = self.raw(row, col)
        raw[:, 0] = _elevation(raw[:, 0], self.elevation)
        out = np.full(raw.shape, np.nan)
        for k, name in enumerate(CHANNELS):
            key = "elevation_with_sea" if name == "elevation" and self.elevation == "with-sea" else name
            if key in self.constants:
                out[:, k] = (raw[:, k] - self.constants[key]["mean"]) / self.constants[key]["std"]
        return out

    def raw(self, row: np.ndarray, col: np.ndarray) -> np.ndarray:
        """Values of cells, rows (N,), columns (N,) -> (N, 20), in WorldClim's units; NaN for bio2, bio3 and the sea.

        As in WorldClim, a cell counts as land when any part of it is land, so that coasts are known.
        """
        lon, lat = (col + 0.5) * (360.0 / self.columns) - 180.0, 90.0 - (row + 0.5) * (180.0 / self.rows)
        out = np.full((row.size, len(CHANNELS)), np.nan)
        quarters = (np.arange(4) - 1.5) / 4.0  # the mask has 4 x 4 cells in each of these
        north, east = np.meshgrid(quarters * (180.0 / self.rows), quarters * (360.0 / self.columns))
        inside = self._mask.keep("land", lon[:, None] + east.ravel(), lat[:, None] + north.ravel())
        land = inside.any(axis=1)
        if land.any():
            out[land, 0] = self._height.nearest(lon[land], lat[land])
            coast = land & ~inside.all(axis=1)  # its mean elevation in the layer includes the sea floor
            out[coast, 0] = np.maximum(out[coast, 0], 0.0)
            for k, name in enumerate(CHANNELS):
                if name in self._bands:
                    out[land, k] = self._climate.nearest(lon[land], lat[land], self._bands[name])
        return out

    def describe(self) -> str:
        """One sentence for the outputs."""
        return (
            "Environment: approximated from the bundled layers, not WorldClim: elevation and bio variables of ERA5 "
            "normals 2000-2025, bio5 to bio7 of monthly means, bio2 and bio3 missing and set to their mean, "
            f"standardised over land cells of 5 arc-minutes{_elevation_note(self.elevation)}."
        )

    def fingerprint(self) -> str:
        """Sixteen hex digits of the bundled layers' content."""
        files = map(data_file, ("bioclim.tif", "elevation.tif", "landmask.tif", APPROXIMATION))
        return fingerprint.of_parts(["approximated", self.elevation, *map(fingerprint.of_file, files)])


def approximated(elevation: str = "valid") -> Approximated:
    """The bundled layers in place of WorldClim, land only; bio2 and bio3 are 0, their mean, everywhere."""
    return Approximated(elevation)
