"""A raster layer on the globe, sampled at points and read window by window.

All positions are `(lon, lat)` in degrees, WGS84, longitude in [-180, 180). Values are float32, NaN
where the layer has no value.

A value depends on its position and the layer only, never on the window it was read through: indices
and weights are computed in the coordinates of the whole layer. So any tiling of a map gives the
same bits.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sdm.errors import LayerError
from sdm.layers.hdf5 import is_hdf5, refuse_references
from sdm.layers.sidecars import WITH_SIDECARS, looks_beside, needs_sidecars, refuse_named_files, refuse_naming_sidecars

if TYPE_CHECKING:
    from rasterio.io import DatasetReader
    from rasterio.vrt import WarpedVRT

ALONE = ["GTiff", "COG", "netCDF", "HFA", "AAIGrid", "JP2OpenJPEG"]
DRIVERS = [*ALONE, *WITH_SIDECARS]
"""Accepted formats. VRT is excluded on purpose: a VRT can name any file or address."""

MAX_BLOCK_BYTES = 256 << 20
"""Bytes of one block of a file, which GDAL decodes as a whole."""

MAX_WINDOW = 6_000_000
"""Cells of one window, bands counted; sampling a larger extent is split so that memory stays bounded."""

CACHE = 32 << 20
"""Bytes of GDAL's cache of decoded blocks (rasterio takes bytes, GDAL itself megabytes): enough for a row of tiles.
GDAL's default is 5 % of the machine's memory, which a large map would fill. GDAL_CACHEMAX in the environment counts
instead."""

_HUGE = 1e19
SPARSE = 2
"""Of a window of so many times as many cells as are needed, only those are decoded and prepared."""
Cells = tuple[np.ndarray, np.ndarray]
"""Rows (N,) and columns (N,)."""
CHUNK = 2048
"""Positions interpolated together: their corners stay in the processor's cache."""


class RasterLayer:
    """One raster file as a north-up EPSG:4326 grid.

    A raster in another CRS is warped on the fly, window by window. Threads may share a layer: each opens
    the file for itself. A pickled layer holds the path, not the pixels.

    Raises LayerError when the file cannot be read or has no usable georeference.
    """

    def __init__(self, path: str | Path, pitch: float | None = None, resampling: str = "bilinear") -> None:
        """`pitch`: cell side in degrees of a global grid to warp to; None keeps the file's own grid."""
        self.path = str(path)
        self.pitch = pitch
        self.resampling = resampling
        self._local = threading.local()
        self.limits: dict[int, tuple[float, float]] = {}
        """By band, the least and the largest value; beyond, a value stands for none."""
        dataset = self._dataset()
        self._alpha = _alpha(dataset)
        self.count = dataset.count - int(self._alpha > 0)
        self._masked = _has_mask(dataset)
        self.height, self.width = dataset.height, dataset.width
        t = dataset.transform
        self.west, self.north, self.dx, self.dy = t.c, t.f, t.a, -t.e
        self.descriptions = tuple(d or "" for d in dataset.descriptions[: self.count])
        self.scales = np.array(dataset.scales, dtype=np.float32)
        self.offsets = np.array(dataset.offsets, dtype=np.float32)
        self.dtypes = tuple(dataset.dtypes[: self.count])
        span = self.width * self.dx
        if span > 360.0 + 1.5 * self.dx:
            raise LayerError(f"layer {self.path!r} spans {span:g} degrees of longitude; at most 360 make sense.")
        self.is_global = span > 360.0 - 0.5 * self.dx

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        del state["_local"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._local = threading.local()

    def _dataset(self) -> DatasetReader | WarpedVRT:
        dataset = getattr(self._local, "dataset", None)
        if dataset is None:
            dataset = self._local.dataset = _open(self.path, self.pitch, self.resampling)
        return dataset

    @property
    def lattice(self) -> tuple[float, float, float, float, int, int]:
        """Equal for two layers whose cells cover the same places."""
        return (self.west, self.north, self.dx, self.dy, self.height, self.width)

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """(west, south, east, north) in degrees."""
        return (self.west, self.north - self.height * self.dy, self.west + self.width * self.dx, self.north)

    def require_overlap(self, what: str, lon: np.ndarray, lat: np.ndarray) -> None:
        """Raise LayerError unless one of the positions (N,), (N,) degrees lies on the layer.

        `what`: the kind of raster, for the message, such as "satellite" or "environment".
        """
        if not self.overlaps(lon, lat):
            west, south, east, north = self.bounds
            raise LayerError(
                f"{what} raster {self.path!r} covers {west:g} {south:g} {east:g} {north:g} (west south east north), "
                "which does not overlap the map; give a raster of the area, or leave the option out."
            )

    def overlaps(self, lon: np.ndarray, lat: np.ndarray) -> bool:
        """True when at least one of the positions (N,), (N,) degrees lies on the layer."""
        row, col = self.position(lon, lat)
        return bool(np.any((row >= -0.5) & (row <= self.height - 0.5) & (col >= -0.5) & (col <= self.width - 0.5)))

    def nearest(self, lon: np.ndarray, lat: np.ndarray, band: int = 1) -> np.ndarray:
        """Value of the cell that contains each position (degrees), float32 in the shape of `lon`; NaN outside."""
        shape = np.shape(lon)
        lon, lat = np.ravel(lon), np.ravel(lat)
        out = np.full(lon.size, np.nan, dtype=np.float32)
        for part in self.parts(lon, lat):
            row, col = self.position(lon[part], lat[part])
            # Cell edges belong to the cell to the south-east, as in GDAL.
            r, c = np.floor(row + 0.5), np.floor(col + 0.5)
            if self.is_global:
                c = c % self.width
            ok = (r >= 0) & (r < self.height) & (c >= 0) & (c < self.width) & np.isfinite(row + col)
            if not ok.any():
                continue
            r, c = r[ok].astype(np.int64), c[ok].astype(np.int64)
            extent = self._extent(r, c)
            columns = (c - extent[2]) % self.width if self.is_global else c - extent[2]
            target = np.arange(lon.size)[part][ok]
            out[target] = self.block(extent, [band], at=(r - extent[0], columns))[:, 0]
        return out.reshape(shape)

    def bilinear(
        self,
        lon: np.ndarray,
        lat: np.ndarray,
        prepare: Callable[[np.ndarray], np.ndarray],
        columns: int,
        bands: list[int] | None = None,
    ) -> np.ndarray:
        """Interpolated columns at positions.

        Parameters
        ----------
        lon, lat
            Positions (N,), (N,) in degrees.
        prepare, columns
            As in `Source`.
        bands
            Band numbers from 1; by default all.

        Returns
        -------
        np.ndarray
            (N, columns) float32, NaN where the layer has no value.
        """
        source = Source(self, tuple(bands or range(1, self.count + 1)), prepare, columns)
        return interpolate([source], lon, lat)

    def crops(self, lon: np.ndarray, lat: np.ndarray, size: int) -> np.ndarray:
        """Square images of `size` x `size` cells around positions: (N,), (N,) -> (N, size, size, count) uint8.

        Row 0 is in the north. The position lies in cell [size // 2, size // 2]. Cells beyond a pole repeat
        the last row; a global layer wraps at the antimeridian.
        """
        row, col = self.position(lon, lat)
        row = np.floor(np.where(np.isfinite(row), row, 0) + 0.5).astype(np.int64)
        col = np.floor(np.where(np.isfinite(col), col, 0) + 0.5).astype(np.int64)
        steps = np.arange(size) - size // 2
        out = np.empty((lon.size, size, size, self.count), dtype=np.uint8)
        for part in self.parts(lon, lat):
            r = np.clip(row[part][:, None] + steps, 0, self.height - 1)
            c = col[part][:, None] + steps
            c = c % self.width if self.is_global else np.clip(c, 0, self.width - 1)
            extent = self._extent(r.ravel(), c.ravel())
            window = self.block(extent, list(range(1, self.count + 1)), raw=True)
            c = (c - extent[2]) % self.width if self.is_global else c - extent[2]
            out[part] = window[(r - extent[0])[:, :, None], c[:, None, :]]
        return out

    def position(self, lon: np.ndarray, lat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Fractional (row, col) of positions, integers at cell centres."""
        lon, lat = np.asarray(lon, dtype=np.float64), np.asarray(lat, dtype=np.float64)
        centre = self.west + 0.5 * self.width * self.dx
        # For layers on 0..360 or past 180: each longitude on the turn around the layer's centre.
        turns = np.floor((lon - centre + 180.0) / 360.0)
        col = (lon - turns * 360.0 - self.west) / self.dx - 0.5
        row = (self.north - lat) / self.dy - 0.5
        return row, col

    def parts(self, lon: np.ndarray, lat: np.ndarray) -> Sequence[np.ndarray | slice]:
        """Split positions into groups of neighbours whose window stays below MAX_WINDOW cells."""
        limit = MAX_WINDOW // max(self.count, 1)
        pending: list[np.ndarray] = [np.arange(lon.size)]
        done: list[np.ndarray] = []
        while pending:
            index = pending.pop()
            if index.size == 0:
                continue
            row, col = self.position(lon[index], lat[index])
            if index.size < 2 or not np.isfinite(row + col).any():
                done.append(index)
                continue
            height = np.nanmax(row) - np.nanmin(row) + 2
            width = min(np.nanmax(col) - np.nanmin(col) + 2, self.width)
            if height * width <= limit:
                done.append(index)
            else:
                half = index.size // 2
                order = np.argpartition(np.nan_to_num(row if height > width else col), half)
                pending += [index[np.sort(order[half:])], index[np.sort(order[:half])]]
        if len(done) == 1 and done[0].size == lon.size:
            return [slice(None)]
        return done

    def _extent(self, rows: np.ndarray, cols: np.ndarray) -> tuple[int, int, int, int]:
        """First row, end row, first column and end column of a set of cells; ends are exclusive.

        On a global layer the extent may cross the antimeridian; its end column then exceeds the layer's width.
        """
        r0, r1 = int(rows.min()), int(rows.max()) + 1
        c0, c1 = int(cols.min()), int(cols.max()) + 1
        if self.is_global and c1 - c0 > self.width // 2:
            # Either the cells lie at both edges, with a gap in the middle to leave out, or they span the globe.
            used = np.zeros(self.width, dtype=bool)
            used[cols] = True
            gap_start, gap = _longest_gap(used)
            if gap > 0:
                c0 = (gap_start + gap) % self.width
                c1 = c0 + self.width - gap
        return r0, r1, c0, c1

    def block(
        self, extent: tuple[int, int, int, int], bands: Sequence[int], raw: bool = False, at: Cells | None = None
    ) -> np.ndarray:
        """The values in an extent, (rows, cols, bands): float32 with NaN for nodata, or `raw` as stored.

        Parameters
        ----------
        extent : first row, end row, first column, end column; on a global layer the end column may exceed the width.
        bands : numbers from 1.
        at : rows (N,) and columns (N,) within the extent: only these cells, (N, bands).

        Raises LayerError.
        """
        bands = list(bands)
        data = self._turned(extent, bands, at)
        if raw:
            return data
        values = self._decode(data, bands)
        if self._masked or self._alpha:
            # GDAL takes alpha for a mask where it is of whole numbers only.
            mask = self._turned(extent, [self._alpha] if self._alpha else bands, at, masks=not self._alpha)
            values[np.broadcast_to(mask == 0, values.shape)] = np.nan
        return values

    def _turned(
        self, extent: tuple[int, int, int, int], bands: list[int], at: Cells | None, masks: bool = False
    ) -> np.ndarray:
        """What the file holds in an extent that may cross the antimeridian, as `block` arranges it."""
        r0, r1, c0, c1 = extent
        data = self._read(r0, r1, c0, min(c1, self.width), bands, masks)
        if c1 > self.width:
            data = np.concatenate([data, self._read(r0, r1, 0, c1 - self.width, bands, masks)], axis=2)
        if at is not None:
            return data.reshape(len(bands), -1).take(at[0] * (c1 - c0) + at[1], axis=1).T
        return np.moveaxis(data, 0, 2)

    def _read(self, r0: int, r1: int, c0: int, c1: int, bands: list[int], masks: bool = False) -> np.ndarray:
        import rasterio
        from rasterio.errors import RasterioError
        from rasterio.windows import Window

        settings = {} if "GDAL_CACHEMAX" in os.environ else {"GDAL_CACHEMAX": CACHE}
        try:
            with rasterio.Env(**settings):
                read = self._dataset().read_masks if masks else self._dataset().read
                return read(bands, window=Window(c0, r0, c1 - c0, r1 - r0))
        except (RasterioError, OSError) as error:
            raise LayerError(f"layer {self.path!r} cannot be read in rows {r0}..{r1}: {error}") from error

    def _decode(self, data: np.ndarray, bands: list[int]) -> np.ndarray:
        dataset = self._dataset()
        values = data.astype(np.float32)
        for k, band in enumerate(bands):
            nodata = dataset.nodatavals[band - 1]
            missing = none_values(data[..., k])
            if nodata is not None and not math.isnan(nodata):
                missing |= data[..., k] == nodata
            if self.scales[band - 1] != 1.0 or self.offsets[band - 1] != 0.0:
                values[..., k] = values[..., k] * self.scales[band - 1] + self.offsets[band - 1]
            if band in self.limits:
                low, high = self.limits[band]
                missing |= (values[..., k] < low) | (values[..., k] > high)
            values[..., k][missing] = np.nan
        return values


@dataclass(frozen=True)
class Source:
    """Columns to interpolate, computed from some bands of a layer.

    `prepare` turns raw values (..., bands; NaN for nodata), cell by cell, into the columns to
    interpolate (..., columns): classes become fractions, and precipitation its logarithm,
    before the interpolation and not after it.
    """

    layer: RasterLayer
    bands: tuple[int, ...]
    prepare: Callable[[np.ndarray], np.ndarray]
    columns: int


def interpolate(sources: Sequence[Source], lon: np.ndarray, lat: np.ndarray) -> np.ndarray:
    """Bilinear columns of sources on one lattice, at positions (N,), (N,) degrees -> (N, columns) float32.

    Columns are in the order of the sources. Where some of the four neighbours are missing the others are
    used; where all are missing, the result is NaN.
    """
    layer = sources[0].layer
    out = np.empty((lon.size, sum(s.columns for s in sources)), dtype=np.float32)
    for part in layer.parts(lon, lat):
        out[part] = _interpolate_part(sources, lon[part], lat[part])
    return out


def _interpolate_part(sources: Sequence[Source], lon: np.ndarray, lat: np.ndarray) -> np.ndarray:
    layer, columns = sources[0].layer, sum(s.columns for s in sources)
    row, col = layer.position(lon, lat)
    inside = np.isfinite(row + col) & (row >= -0.5) & (row <= layer.height - 0.5)
    if not layer.is_global:
        inside &= (col >= -0.5) & (col <= layer.width - 0.5)
    if not inside.all():
        out = np.full((lon.size, columns), np.nan, dtype=np.float32)
        if inside.any():
            out[inside] = _interpolate_part(sources, lon[inside], lat[inside])
        return out
    r0, c0 = np.floor(row), np.floor(col)
    down, across = (row - r0).astype(np.float32)[:, None], (col - c0).astype(np.float32)[:, None]
    r0, c0 = r0.astype(np.int64), c0.astype(np.int64)
    top, bottom = np.clip(r0, 0, layer.height - 1), np.clip(r0 + 1, 0, layer.height - 1)
    if layer.is_global:
        left, right = c0 % layer.width, (c0 + 1) % layer.width
    else:
        left, right = np.clip(c0, 0, layer.width - 1), np.clip(c0 + 1, 0, layer.width - 1)
    extent = layer._extent(np.concatenate([top, bottom]), np.concatenate([left, right]))
    width = extent[3] - extent[2]
    left, right = left - extent[2], right - extent[2]
    if layer.is_global:
        left, right = left % layer.width, right % layer.width
    top, bottom = top - extent[0], bottom - extent[0]
    corners = tuple(row * width + col for row in (top, bottom) for col in (left, right))
    if SPARSE * 4 * lon.size < (extent[1] - extent[0]) * width:
        # Few of the cells are needed, as for pixels of a degree: only those are prepared, with the same result.
        cells, corner = np.unique(np.concatenate(corners), return_inverse=True)
        corners, at = tuple(np.split(corner.ravel(), 4)), np.divmod(cells, width)
    else:
        at = None
    # A cell's columns lie side by side in memory, so that a corner is one contiguous copy per position.
    tables = [s.prepare(s.layer.block(extent, s.bands, at=at)).reshape(-1, s.columns) for s in sources]
    return mix(np.concatenate(tables, axis=1, dtype=np.float32), corners, down, across)


def mix(table: np.ndarray, corners: Sequence[np.ndarray], down: np.ndarray, across: np.ndarray) -> np.ndarray:
    """Bilinear interpolation between rows of a table.

    Parameters
    ----------
    table
        (cells, columns) float32, NaN where missing.
    corners
        Row numbers (N,) of the north-west, north-east, south-west and south-east neighbours.
    down, across
        (N, 1) float32: fractions of a cell to the south and to the east.

    Returns
    -------
    np.ndarray
        (N, columns) float32, computed in chunks small enough to stay in the processor's cache.
    """
    out = np.empty((len(down), table.shape[1]), dtype=np.float32)
    buffers = np.empty((3, min(CHUNK, len(down)), table.shape[1]), dtype=np.float32)
    for start in range(0, len(down), CHUNK):
        part = slice(start, start + CHUNK)
        upper = out[part]
        upper_right, lower, lower_right = buffers[:, : len(upper)]
        # The corners are inside the table; "clip" only saves numpy a copy.
        for corner, values in zip(corners, (upper, upper_right, lower, lower_right), strict=True):
            table.take(corner[part], 0, out=values, mode="clip")
        upper_right -= upper
        upper_right *= across[part]
        upper += upper_right  # upper + (upper_right - upper) * across
        lower_right -= lower
        lower_right *= across[part]
        lower += lower_right
        lower -= upper
        lower *= down[part]
        upper += lower
    if not np.isfinite(table).all():
        gaps = ~np.isfinite(out).all(axis=1)
        down, across = down[gaps], across[gaps]
        out[gaps] = _weighted_mean_of_valid(
            [table.take(corner[gaps], 0) for corner in corners],
            [(1 - down) * (1 - across), (1 - down) * across, down * (1 - across), down * across],
        )
    return out


def _weighted_mean_of_valid(corners: list[np.ndarray], weights: list[np.ndarray]) -> np.ndarray:
    total = np.zeros_like(corners[0])
    weight = np.zeros_like(corners[0])
    for corner, w in zip(corners, weights, strict=True):
        valid = np.isfinite(corner)
        total += np.where(valid, corner, 0) * w
        weight += valid * w
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(weight > 0, total / weight, np.nan).astype(np.float32)


def none_values(data: np.ndarray) -> np.ndarray:
    """Where values, as a file stores them, stand for none whatever its nodata tag says: boolean, the shape of `data`.

    Infinities, numbers that nothing measured is as large as, and the usual -9999, -99999 and -32768.
    """
    if data.dtype.kind == "f":
        with np.errstate(invalid="ignore"):
            return ~(np.abs(data) < _HUGE) | (data == -9999) | (data == -99999) | (data == -32768)
    if data.dtype.kind == "i" and data.dtype.itemsize > 1:
        return (data == -9999) | (data == -99999) | (data == -32768) | (data == np.iinfo(data.dtype).min)
    return np.zeros(data.shape, dtype=bool)


def _alpha(dataset: DatasetReader | WarpedVRT) -> int:
    """The number of the band, the last, that says where the others have values; 0: there is none."""
    return dataset.count if dataset.count > 1 and dataset.colorinterp[-1].name == "alpha" else 0


def _has_mask(dataset: DatasetReader | WarpedVRT) -> bool:
    """Whether a mask, which is no band, says where a file has values."""
    return any(flag.name == "per_dataset" for band in dataset.mask_flag_enums for flag in band)


def _longest_gap(used: np.ndarray) -> tuple[int, int]:
    """Start and length of the longest run of unused columns, the last column next to the first."""
    index = np.flatnonzero(used)
    steps = np.diff(np.append(index, index[0] + used.size))
    k = int(steps.argmax())
    return (int(index[k]) + 1) % used.size, int(steps[k]) - 1


def _open(path: str, pitch: float | None, resampling: str) -> DatasetReader | WarpedVRT:
    """A raster as a north-up EPSG:4326 dataset, warped where it is not one; see `RasterLayer`."""
    dataset = open_raster(path)
    if dataset.crs is None or dataset.transform.is_identity:
        raise LayerError(f"layer {path!r} has no georeference; give a raster with a CRS and a geotransform.")
    t = dataset.transform
    is_wgs84 = dataset.crs.is_geographic and dataset.crs.to_epsg() in (4326, 4979)
    if pitch is not None or not is_wgs84 or t.b != 0 or t.d != 0 or t.a <= 0 or t.e >= 0:
        return _warped(dataset, path, pitch, resampling)
    south = t.f + t.e * dataset.height
    if t.f > 90.0 - t.e or south < -90.0 + t.e or not -360.0 <= t.c <= 360.0:
        raise LayerError(
            f"layer {path!r} says EPSG:4326 but reaches latitude {south:g}..{t.f:g}, longitude {t.c:g}; "
            "its georeference is wrong: assign the right CRS."
        )
    return dataset


def open_raster(path: str | Path, what: str = "layer") -> DatasetReader:
    """A raster file, opened as one of the formats in `DRIVERS` and without any file that GDAL would find beside it.

    Formats that keep their georeference beside them are read with it, unless one of the files there could name another
    file or address. `what` names the raster in messages. Raises LayerError.
    """
    import rasterio
    from rasterio.errors import RasterioError
    from rasterio.io import DatasetReader

    path = Path(path)
    name = f"{what} {str(path)!r}"
    if not path.exists():
        raise LayerError(f"{name} does not exist; give the path of a raster such as a GeoTIFF.")
    try:
        with path.open("rb") as file:
            start = file.read(4096)
        if b"<VRTDataset" in start:
            raise LayerError(
                f"{name} is a VRT, which can point at any file or address; give the raster itself "
                "(gdal_translate makes one)."
            )
        if is_hdf5(path):
            refuse_references(path, name)
        refuse_named_files(path, start, name)
        beside = needs_sidecars(path, start)
        if beside or looks_beside(start):
            refuse_naming_sidecars(path, name)
        # EMPTY_DIR also keeps GDAL from overviews and masks that the file's own metadata name.
        with rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN="FALSE" if beside else "EMPTY_DIR"):
            dataset = DatasetReader(str(path.absolute()), driver=WITH_SIDECARS if beside else ALONE)
    except (RasterioError, OSError, ValueError) as error:
        raise LayerError(
            f"{name} cannot be read as a raster (formats accepted: {', '.join(DRIVERS[:5])}, ...): {error}"
        ) from error
    _refuse_large_blocks(dataset, name)
    return dataset


def _refuse_large_blocks(dataset: DatasetReader, name: str) -> None:
    """Raise LayerError where one value cannot be had without decoding more than MAX_BLOCK_BYTES."""
    bands = dataset.count if str(dataset.interleaving).lower().endswith("pixel") else 1
    for (rows, columns), dtype in zip(dataset.block_shapes, dataset.dtypes, strict=True):
        size = rows * columns * bands * (np.dtype(dtype).itemsize if "int" in dtype or "float" in dtype else 16)
        if size > MAX_BLOCK_BYTES:
            raise LayerError(
                f"{name} is stored in blocks of {rows} x {columns} cells, which take more than "
                f"{MAX_BLOCK_BYTES >> 20} MiB each; store it in tiles (gdal_translate -co TILED=YES)."
            )


def _warped(dataset: DatasetReader, path: str, pitch: float | None, resampling: str) -> WarpedVRT:
    """A dataset warped to EPSG:4326 when read: to its own extent, or to a global grid of `pitch` degrees."""
    from rasterio.enums import Resampling
    from rasterio.errors import RasterioError
    from rasterio.transform import Affine
    from rasterio.vrt import WarpedVRT

    options: dict[str, Any] = {"nodata": dataset.nodata}
    if pitch is not None:
        # Imagery on 0..360, or past 180, is warped where it lies: west of -180 it would be lost.
        west = 0.0 if dataset.crs.is_geographic and dataset.bounds.right > 180.0 + 1e-6 else -180.0
        options["transform"] = Affine(pitch, 0, west, 0, -pitch, 90.0)
        options |= {"width": round(360.0 / pitch), "height": round(180.0 / pitch)}
    elif dataset.nodata is None:
        # Beyond the corners of a rotated raster there is no data; without this it would read as 0.
        options = {"nodata": math.nan, "dtype": "float32", "src_nodata": None}
    try:
        return WarpedVRT(dataset, crs="EPSG:4326", resampling=Resampling[resampling], add_alpha=False, **options)
    except (RasterioError, OSError, ValueError) as error:
        raise LayerError(f"layer {path!r} cannot be placed on the globe: {error}") from error
