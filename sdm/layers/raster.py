"""A raster layer on the globe, sampled at points without ever being read whole.

All positions are `(lon, lat)` in degrees, WGS84, longitude in [-180, 180). Values are float32,
NaN where the layer holds none.

A value depends on its position and on the layer alone, never on the window it was read through:
indices and weights are computed in the coordinates of the whole layer. That is what lets any
tiling of a map give the same bits.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sdm.errors import LayerError

DRIVERS = ["GTiff", "COG", "netCDF", "Zarr", "HFA", "AAIGrid", "EHdr", "ENVI", "PNG", "JPEG", "WEBP", "JP2OpenJPEG"]
"""Formats accepted. VRT is left out on purpose: a VRT can name any file or address on the machine."""

MAX_WINDOW = 6_000_000
"""Cells read at once per band; sampling a larger extent is split so that memory stays bounded."""

CACHE_MB = 64
"""GDAL's cache of decoded blocks: enough for a row of tiles. By default it may grow to 5 % of the machine's
memory, so that a larger map would take more. Counts when we are the first to read; GDAL_CACHEMAX wins."""

MIXED_AT_ONCE = 2048
"""Positions interpolated together: their corners stay in the processor's cache."""


class RasterLayer:
    """One raster file, presented as a north-up EPSG:4326 grid.

    A raster in another CRS is warped on the fly, window by window. Safe to share between threads
    (each opens its own handle) and cheap to send to another process (only the path travels).

    Raises LayerError when the file cannot be read or has no usable georeference.
    """

    def __init__(self, path: str | Path, pitch: float | None = None, resampling: str = "bilinear") -> None:
        """`pitch`: warp to this cell side in degrees on a global grid (None: the file's own grid)."""
        self.path = str(path)
        self.pitch = pitch
        self.resampling = resampling
        self._local = threading.local()
        dataset = self._dataset()
        self.count = dataset.count
        self.height, self.width = dataset.height, dataset.width
        t = dataset.transform
        self.west, self.north, self.dx, self.dy = t.c, t.f, t.a, -t.e
        self.descriptions = tuple(d or "" for d in dataset.descriptions)
        self.scales = np.array(dataset.scales, dtype=np.float32)
        self.offsets = np.array(dataset.offsets, dtype=np.float32)
        self.dtypes = tuple(dataset.dtypes)
        span = self.width * self.dx
        if span > 360.0 + 1.5 * self.dx:
            raise LayerError(f"layer {self.path!r} spans {span:g} degrees of longitude; at most 360 make sense.")
        self.is_global = span > 360.0 - 0.5 * self.dx

    def __getstate__(self) -> dict:
        state = self.__dict__.copy()
        del state["_local"]
        return state

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._local = threading.local()

    def _dataset(self):
        dataset = getattr(self._local, "dataset", None)
        if dataset is None:
            dataset = self._local.dataset = _open(self.path, self.pitch, self.resampling)
        return dataset

    @property
    def lattice(self) -> tuple:
        """What two layers share when their cells are the same places."""
        return (self.west, self.north, self.dx, self.dy, self.height, self.width)

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """(west, south, east, north) in degrees."""
        return (self.west, self.north - self.height * self.dy, self.west + self.width * self.dx, self.north)

    def require_overlap(self, what: str, lon: np.ndarray, lat: np.ndarray) -> None:
        """Raise LayerError unless one of the positions (N,), (N,) lies on the layer, a raster of `what`."""
        if not self.overlaps(lon, lat):
            west, south, east, north = self.bounds
            raise LayerError(
                f"{what} raster {self.path!r} covers {west:g} {south:g} {east:g} {north:g} (west south east north), "
                "which does not overlap the map; give a raster of the area, or leave the option out."
            )

    def overlaps(self, lon: np.ndarray, lat: np.ndarray) -> bool:
        """True when at least one of the positions lies on the layer."""
        row, col = self._position(lon, lat)
        return bool(np.any((row >= -0.5) & (row <= self.height - 0.5) & (col >= -0.5) & (col <= self.width - 0.5)))

    def nearest(self, lon: np.ndarray, lat: np.ndarray, band: int = 1) -> np.ndarray:
        """Value of the cell each position falls in, float32 with the shape of `lon`; NaN outside."""
        shape = np.shape(lon)
        lon, lat = np.ravel(lon), np.ravel(lat)
        out = np.full(lon.size, np.nan, dtype=np.float32)
        for part in self._parts(lon, lat):
            row, col = self._position(lon[part], lat[part])
            # Cell edges belong to the cell to the south-east, as in GDAL.
            r, c = np.floor(row + 0.5), np.floor(col + 0.5)
            if self.is_global:
                c = c % self.width
            ok = (r >= 0) & (r < self.height) & (c >= 0) & (c < self.width) & np.isfinite(row + col)
            if not ok.any():
                continue
            r, c = r[ok].astype(np.int64), c[ok].astype(np.int64)
            window, r0, c0, _ = self._window(r, c, [band])
            target = np.arange(lon.size)[part][ok]
            out[target] = window[(r - r0), (c - c0) % self.width if self.is_global else (c - c0), 0]
        return out.reshape(shape)

    def bilinear(
        self,
        lon: np.ndarray,
        lat: np.ndarray,
        prepare: Callable[[np.ndarray], np.ndarray],
        columns: int,
        bands: list[int] | None = None,
    ) -> np.ndarray:
        """Interpolated columns at positions: (N,), (N,) -> (N, columns) float32; see `Source`."""
        source = Source(self, tuple(bands or range(1, self.count + 1)), prepare, columns)
        return interpolate([source], lon, lat)

    def crops(self, lon: np.ndarray, lat: np.ndarray, size: int) -> np.ndarray:
        """Square images of `size` x `size` cells around positions: (N,) -> (N, size, size, count) uint8.

        Row 0 is the north. The position falls in cell [size//2, size//2]. Cells beyond a pole
        repeat the last row; a global layer wraps at the antimeridian.
        """
        row, col = self._position(lon, lat)
        row = np.floor(np.where(np.isfinite(row), row, 0) + 0.5).astype(np.int64)
        col = np.floor(np.where(np.isfinite(col), col, 0) + 0.5).astype(np.int64)
        steps = np.arange(size) - size // 2
        out = np.empty((lon.size, size, size, self.count), dtype=np.uint8)
        for part in self._parts(lon, lat):
            r = np.clip(row[part][:, None] + steps, 0, self.height - 1)
            c = col[part][:, None] + steps
            c = c % self.width if self.is_global else np.clip(c, 0, self.width - 1)
            bands = list(range(1, self.count + 1))
            window, r0, c0, _ = self._window(r.ravel(), c.ravel(), bands, raw=True)
            c = (c - c0) % self.width if self.is_global else c - c0
            out[part] = window[(r - r0)[:, :, None], c[:, None, :]]
        return out

    def _position(self, lon, lat) -> tuple[np.ndarray, np.ndarray]:
        """Fractional (row, col), whole numbers at cell centres; the column on the layer's own branch."""
        lon, lat = np.asarray(lon, dtype=np.float64), np.asarray(lat, dtype=np.float64)
        centre = self.west + 0.5 * self.width * self.dx
        # Layers on 0..360 or past 180: bring each longitude to the branch around the layer's centre.
        turn = np.floor((lon - centre + 180.0) / 360.0)
        col = (lon - turn * 360.0 - self.west) / self.dx - 0.5
        row = (self.north - lat) / self.dy - 0.5
        return row, col

    def _parts(self, lon: np.ndarray, lat: np.ndarray) -> list[np.ndarray | slice]:
        """Split positions into groups whose window stays below MAX_WINDOW cells, near ones together."""
        limit = MAX_WINDOW // max(self.count, 1)
        pending, done = [np.arange(lon.size)], []
        while pending:
            index = pending.pop()
            if index.size == 0:
                continue
            row, col = self._position(lon[index], lat[index])
            if index.size < 2 or not np.isfinite(row + col).any():
                done.append(index)
                continue
            height = np.nanmax(row) - np.nanmin(row) + 2
            width = min(np.nanmax(col) - np.nanmin(col) + 2, self.width)
            if height * width <= limit:
                done.append(index)
            else:
                half = index.size // 2
                by = np.argpartition(np.nan_to_num(row if height > width else col), half)
                pending += [index[np.sort(by[half:])], index[np.sort(by[:half])]]
        if len(done) == 1 and done[0].size == lon.size:
            return [slice(None)]
        return done

    def _window(self, rows, cols, bands, raw: bool = False) -> tuple[np.ndarray, int, int, int]:
        """The smallest block holding the cells, (rows, cols, bands), with its first row, column and width."""
        extent = self._extent(rows, cols)
        return self._block(extent, bands, raw), extent[0], extent[2], extent[3] - extent[2]

    def _extent(self, rows: np.ndarray, cols: np.ndarray) -> tuple[int, int, int, int]:
        """First row, row after the last, first column and column after the last of a set of cells.

        On a global layer the block may run over the antimeridian; its columns are then counted
        from its first column, modulo the layer's width.
        """
        r0, r1 = int(rows.min()), int(rows.max()) + 1
        c0, c1 = int(cols.min()), int(cols.max()) + 1
        if self.is_global and c1 - c0 > self.width // 2:
            # Either the cells hug both edges (take the gap in the middle out) or span the globe.
            used = np.zeros(self.width, dtype=bool)
            used[cols] = True
            gap_start, gap = _longest_gap(used)
            if gap > 0:
                c0 = (gap_start + gap) % self.width
                c1 = c0 + self.width - gap
        return r0, r1, c0, c1

    def _block(self, extent: tuple[int, int, int, int], bands, raw: bool = False) -> np.ndarray:
        """The values in an extent, (rows, cols, bands): float32 with NaN for none, or as stored."""
        r0, r1, c0, c1 = extent
        bands = list(bands)
        data = self._read(r0, r1, c0, min(c1, self.width), bands)
        if c1 > self.width:
            data = np.concatenate([data, self._read(r0, r1, 0, c1 - self.width, bands)], axis=2)
        data = np.moveaxis(data, 0, 2)
        return data if raw else self._decode(data, bands)

    def _read(self, r0, r1, c0, c1, bands) -> np.ndarray:
        import rasterio
        from rasterio.errors import RasterioError
        from rasterio.windows import Window

        limit = {} if "GDAL_CACHEMAX" in os.environ else {"GDAL_CACHEMAX": CACHE_MB}
        try:
            with rasterio.Env(**limit):
                return self._dataset().read(bands, window=Window(c0, r0, c1 - c0, r1 - r0))
        except (RasterioError, OSError) as error:
            raise LayerError(f"layer {self.path!r} cannot be read in rows {r0}..{r1}: {error}") from error

    def _decode(self, data: np.ndarray, bands: list[int]) -> np.ndarray:
        dataset = self._dataset()
        values = data.astype(np.float32)
        for k, band in enumerate(bands):
            nodata = dataset.nodatavals[band - 1]
            missing = None if nodata is None or math.isnan(nodata) else data[..., k] == nodata
            if self.scales[band - 1] != 1.0 or self.offsets[band - 1] != 0.0:
                values[..., k] = values[..., k] * self.scales[band - 1] + self.offsets[band - 1]
            if missing is not None:
                values[..., k][missing] = np.nan
        return values


@dataclass(frozen=True)
class Source:
    """Columns to interpolate, made from some bands of a layer.

    `prepare` turns a block of raw values (rows, cols, bands; NaN = none) into the columns to
    interpolate (rows, cols, columns), so that classes become fractions and rainfall its logarithm
    before, not after, neighbours are mixed.
    """

    layer: RasterLayer
    bands: tuple[int, ...]
    prepare: Callable[[np.ndarray], np.ndarray]
    columns: int


def interpolate(sources: Sequence[Source], lon: np.ndarray, lat: np.ndarray) -> np.ndarray:
    """Bilinear columns of sources that share one grid, at positions: (N,), (N,) -> (N, columns) float32.

    Columns follow each other in the order of the sources. Where some of the four neighbours are
    missing the others are used; where all are, the result is NaN.
    """
    layer = sources[0].layer
    out = np.empty((lon.size, sum(s.columns for s in sources)), dtype=np.float32)
    for part in layer._parts(lon, lat):
        out[part] = _interpolate_part(sources, lon[part], lat[part])
    return out


def _interpolate_part(sources: Sequence[Source], lon: np.ndarray, lat: np.ndarray) -> np.ndarray:
    layer, columns = sources[0].layer, sum(s.columns for s in sources)
    row, col = layer._position(lon, lat)
    on = np.isfinite(row + col) & (row >= -0.5) & (row <= layer.height - 0.5)
    on &= True if layer.is_global else (col >= -0.5) & (col <= layer.width - 0.5)
    if not on.all():
        out = np.full((lon.size, columns), np.nan, dtype=np.float32)
        if on.any():
            out[on] = _interpolate_part(sources, lon[on], lat[on])
        return out
    r0, c0 = np.floor(row), np.floor(col)
    fr, fc = (row - r0).astype(np.float32)[:, None], (col - c0).astype(np.float32)[:, None]
    r0, c0 = r0.astype(np.int64), c0.astype(np.int64)
    top, bottom = np.clip(r0, 0, layer.height - 1), np.clip(r0 + 1, 0, layer.height - 1)
    if layer.is_global:
        left, right = c0 % layer.width, (c0 + 1) % layer.width
    else:
        left, right = np.clip(c0, 0, layer.width - 1), np.clip(c0 + 1, 0, layer.width - 1)
    extent = layer._extent(np.concatenate([top, bottom]), np.concatenate([left, right]))
    # Cells of a row lie side by side, so a corner is one contiguous copy per point.
    tables = [s.prepare(s.layer._block(extent, s.bands)).reshape(-1, s.columns) for s in sources]
    table = np.concatenate(tables, axis=1, dtype=np.float32)
    width = extent[3] - extent[2]
    left, right = left - extent[2], right - extent[2]
    if layer.is_global:
        left, right = left % layer.width, right % layer.width
    top, bottom = (top - extent[0]) * width, (bottom - extent[0]) * width
    return mix(table, (top + left, top + right, bottom + left, bottom + right), fr, fc)


def mix(table: np.ndarray, corners: tuple[np.ndarray, ...], fr: np.ndarray, fc: np.ndarray) -> np.ndarray:
    """Bilinear mix of the rows of `table` (cells, columns) at four corners (N,) -> (N, columns).

    `fr`, `fc` (N, 1): how far to the south and east. In steps small enough to stay in the cache.
    """
    out = np.empty((len(fr), table.shape[1]), dtype=np.float32)
    buffers = np.empty((3, min(MIXED_AT_ONCE, len(fr)), table.shape[1]), dtype=np.float32)
    for start in range(0, len(fr), MIXED_AT_ONCE):
        step = slice(start, start + MIXED_AT_ONCE)
        upper, down, across = out[step], fr[step], fc[step]
        upper_right, lower, lower_right = buffers[:, : len(upper)]
        # The corners are inside the table; "clip" only spares numpy a copy.
        for corner, values in zip(corners, (upper, upper_right, lower, lower_right), strict=True):
            table.take(corner[step], 0, out=values, mode="clip")
        upper_right -= upper
        upper_right *= across
        upper += upper_right  # upper + (upper_right - upper) * across
        lower_right -= lower
        lower_right *= across
        lower += lower_right
        lower -= upper
        lower *= down
        upper += lower
    if not np.isfinite(table).all():
        holes = ~np.isfinite(out).all(axis=1)
        fr, fc = fr[holes], fc[holes]
        out[holes] = _weighted_mean_of_valid(
            [table.take(corner[holes], 0) for corner in corners],
            [(1 - fr) * (1 - fc), (1 - fr) * fc, fr * (1 - fc), fr * fc],
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


def _longest_gap(used: np.ndarray) -> tuple[int, int]:
    """Start and length of the longest run of unused columns, the row taken as a ring."""
    index = np.flatnonzero(used)
    steps = np.diff(np.append(index, index[0] + used.size))
    k = int(steps.argmax())
    return (int(index[k]) + 1) % used.size, int(steps[k]) - 1


def _open(path: str, pitch: float | None, resampling: str):
    import rasterio
    from rasterio.enums import Resampling
    from rasterio.errors import RasterioError
    from rasterio.transform import Affine
    from rasterio.vrt import WarpedVRT

    if not Path(path).exists():
        raise LayerError(f"layer {path!r} does not exist; give the path of a raster such as a GeoTIFF.")
    try:
        with Path(path).open("rb") as file:
            if b"<VRTDataset" in file.read(4096):
                raise LayerError(
                    f"layer {path!r} is a VRT, which can point at any file or address; give the raster itself "
                    "(gdal_translate makes one)."
                )
        dataset = rasterio.open(path)
        if dataset.driver not in DRIVERS:
            raise LayerError(f"layer {path!r} is of the format {dataset.driver}; accepted: {', '.join(DRIVERS)}.")
    except (RasterioError, OSError, ValueError) as error:
        raise LayerError(
            f"layer {path!r} cannot be read as a raster (formats accepted: {', '.join(DRIVERS[:5])}, ...): {error}"
        ) from error
    if dataset.crs is None or dataset.transform.is_identity:
        raise LayerError(f"layer {path!r} has no georeference; give a raster with a CRS and a geotransform.")
    plain = dataset.crs.is_geographic and dataset.crs.to_epsg() in (4326, 4979)
    t = dataset.transform
    if pitch is None and plain and t.b == 0 and t.d == 0 and t.a > 0 and t.e < 0:
        south = t.f + t.e * dataset.height
        if t.f > 90.0 - t.e or south < -90.0 + t.e or not -360.0 <= t.c <= 360.0:
            raise LayerError(
                f"layer {path!r} says EPSG:4326 but reaches latitude {south:g}..{t.f:g}, longitude {t.c:g}; "
                "its georeference is wrong: assign the right CRS."
            )
        return dataset
    grid = {}
    if pitch is not None:
        width, height = round(360.0 / pitch), round(180.0 / pitch)
        # Imagery on 0..360, or running past 180, is warped where it lies: moved west it would be lost.
        west = 0.0 if dataset.crs.is_geographic and dataset.bounds.right > 180.0 + 1e-6 else -180.0
        grid = {"transform": Affine(pitch, 0, west, 0, -pitch, 90.0), "width": width, "height": height}
    elif dataset.nodata is None:
        # Beyond the corners of a turned raster there is nothing; without this it would read as 0.
        grid = {"dtype": "float32", "src_nodata": None}
    try:
        return WarpedVRT(
            dataset,
            crs="EPSG:4326",
            resampling=Resampling[resampling],
            add_alpha=False,
            nodata=math.nan if "dtype" in grid else dataset.nodata,
            **grid,
        )
    except (RasterioError, OSError, ValueError) as error:
        raise LayerError(f"layer {path!r} cannot be placed on the globe: {error}") from error
