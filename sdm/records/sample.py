"""Values of a map, of any origin and CRS, at places: pixel by pixel, in bounded memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from sdm.errors import LayerError, OutputError
from sdm.layers.raster import none_values, open_raster
from sdm.records.guard import regular_file

if TYPE_CHECKING:
    import xarray as xr
    from affine import Affine
    from odc.geo.geobox import GeoBox
    from pyproj import CRS

_MOST_PICTURED = 200_000_000  # pixels of a map that is read for a picture
_LARGEST_WINDOW = 1024  # pixels on a side that are read at once

Read = Callable[[slice, slice], npt.NDArray[np.float64]]


@dataclass(frozen=True)
class MapSampler:
    """A single-band map that can be looked up at places.

    The value at a place is that of the pixel it falls in: nothing is resampled or interpolated.
    """

    name: str
    quantity: str
    """Description of the values in the file, or ""."""
    shape: tuple[int, int]
    transform: Affine
    crs: CRS
    window: tuple[int, int]
    """Rows and columns that are read at once."""
    read: Read
    """Values of a window, NaN where there are none."""

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """(west, south, east, north) in degrees; west > east where the map crosses 180 degrees."""
        from pyproj import Transformer

        rows, columns = self.shape
        corners = [self.transform @ corner for corner in ((0, 0), (columns, 0), (0, rows), (columns, rows))]
        x, y = zip(*corners, strict=True)
        if self.crs.is_geographic and max(x) - min(x) >= 360 - 1e-6:
            return -180.0, max(min(y), -90.0), 180.0, min(max(y), 90.0)
        transformer = Transformer.from_crs(self.crs, "EPSG:4326", always_xy=True)
        west, south, east, north = transformer.transform_bounds(min(x), min(y), max(x), max(y), densify_pts=41)
        if not np.isfinite([west, south, east, north]).all():
            return -180.0, -90.0, 180.0, 90.0
        if self.crs.is_geographic and not -180 <= west <= east <= 180:
            west, east = (west + 180) % 360 - 180, (east + 180) % 360 - 180
        return west, south, east, north

    def picture(self, largest: int = 900) -> tuple[npt.NDArray[np.float32], GeoBox] | None:
        """Every n-th pixel, at most `largest` on a side, with its grid; None for a huge or a rotated map."""
        from affine import Affine
        from odc.geo.geobox import GeoBox

        rows, columns = self.shape
        upright = self.transform.b == self.transform.d == 0 and self.transform.a > 0 > self.transform.e
        if rows * columns > _MOST_PICTURED or not upright:
            return None
        step = max(1, math.ceil(max(rows, columns) / largest))
        # The middle one of n pixels stands for them.
        y, x = (np.minimum(np.arange(0, size, step) + step // 2, size - 1) for size in self.shape)
        number = (y[:, None] * columns + x[None, :]).ravel().astype(np.int64)
        values = self.values(number).reshape(y.size, x.size).astype(np.float32)
        return values, GeoBox(values.shape, self.transform @ Affine.scale(step), str(self.crs.to_wkt()))

    def pixels(self, lon: npt.ArrayLike, lat: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """Number of the pixel each place (degrees, WGS84) falls in, counted along rows; -1 off the map."""
        from pyproj import Transformer

        lon, lat = np.asarray(lon, float), np.asarray(lat, float)
        transformer = Transformer.from_crs("EPSG:4326", self.crs, always_xy=True)
        x, y = transformer.transform(lon, lat)
        rows, columns = self.shape
        if self.crs.is_geographic:
            turn = 360.0
            centre = (self.transform @ (columns / 2, rows / 2))[0]
            x = x - turn * np.floor((x - centre) / turn + 0.5)
        known = np.isfinite(x) & np.isfinite(y)
        column, row = ~self.transform @ (np.where(known, x, 0.0), np.where(known, y, 0.0))
        inside = known & (column >= 0) & (column < columns) & (row >= 0) & (row < rows)
        number = np.floor(np.where(inside, row, 0)).astype(np.int64) * columns
        number += np.floor(np.where(inside, column, 0)).astype(np.int64)
        return np.where(inside, number, -1)

    def values(self, pixels: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """Values of pixels by number, shape (n,); NaN for -1 and where the map has no value."""
        out = np.full(pixels.size, np.nan)
        columns = self.shape[1]
        height, width = self.window
        on = np.flatnonzero(pixels >= 0)
        row, column = pixels[on] // columns, pixels[on] % columns
        window = (row // height) * (columns // width + 1) + column // width
        order = np.argsort(window, kind="stable")
        for part in _runs(window[order]):
            chosen = order[part]
            top, left = int(row[chosen[0]] // height * height), int(column[chosen[0]] // width * width)
            rows, cols = slice(top, min(top + height, self.shape[0])), slice(left, min(left + width, columns))
            out[on[chosen]] = self.read(rows, cols)[row[chosen] - top, column[chosen] - left]
        return out


def _runs(sorted_values: npt.NDArray[np.int64]) -> Iterator[slice]:
    """Slices of equal values."""
    edges = np.flatnonzero(np.diff(sorted_values)) + 1
    starts = [0, *edges.tolist()]
    for start, stop in zip(starts, [*edges.tolist(), sorted_values.size], strict=True):
        if stop > start:
            yield slice(start, stop)


def open_sampler(source: str | Path | xr.DataArray, band: int = 1) -> MapSampler:
    """A map to look up: a raster file, a Zarr store of this program, or a DataArray (y, x) with a CRS.

    Raises RecordsError for a pipe, a device or any folder but a store, LayerError for a map that cannot be read, has
    no georeference or no such band.
    """
    if not isinstance(source, str | Path):
        return _of_array(source, getattr(source, "name", None) or "map")
    path = Path(source)
    if not path.exists():
        raise LayerError(f"map {str(source)!r} does not exist; give the path of a raster such as a GeoTIFF.")
    if path.suffix == ".zarr":
        from sdm.outputs.zarr_store import open_map

        try:
            return _of_array(open_map(path), path.name)
        except OutputError as error:
            raise LayerError(f"map {str(source)!r} cannot be read: {error}") from error
    # Opening a pipe would wait for ever.
    return _of_file(regular_file(path, "map"), band)


def _of_file(path: Path, band: int) -> MapSampler:
    import pyproj
    from rasterio.errors import RasterioError
    from rasterio.windows import Window

    dataset = open_raster(path, "map")
    if dataset.crs is None or dataset.transform.is_identity:
        raise LayerError(f"map {str(path)!r} has no georeference; give a raster with a CRS and a geotransform.")
    if not 1 <= band <= dataset.count:
        raise LayerError(f"map {str(path)!r} has {dataset.count} bands, so there is no band {band}.")
    scale, offset = dataset.scales[band - 1], dataset.offsets[band - 1]

    def read(rows: slice, columns: slice) -> npt.NDArray[np.float64]:
        window = Window(columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start)
        try:
            values = dataset.read(band, window=window, masked=True)
        except (RasterioError, OSError) as error:
            raise LayerError(f"map {str(path)!r} cannot be read in rows {rows.start}..{rows.stop}: {error}") from error
        missing = np.ma.getmaskarray(values) | none_values(values.data)
        return np.where(missing, np.nan, values.data.astype(np.float64) * scale + offset)

    height, width = dataset.block_shapes[band - 1]
    return MapSampler(
        name=path.name,
        quantity=dataset.tags(band).get("quantity") or dataset.descriptions[band - 1] or "",
        shape=dataset.shape,
        transform=dataset.transform,
        crs=pyproj.CRS.from_user_input(dataset.crs),
        window=(min(height, _LARGEST_WINDOW), min(width, _LARGEST_WINDOW)),
        read=read,
    )


def _of_array(array: xr.DataArray, name: str) -> MapSampler:
    import odc.geo.xr  # noqa: F401  the .odc accessor

    if array.ndim != 2:
        raise LayerError(f"map {name!r} has the dimensions {array.dims}; give one layer (y, x) of it.")
    geobox = array.odc.geobox
    if geobox is None or geobox.crs is None:
        raise LayerError(f"map {name!r} has no georeference; give it coordinates and a CRS (rio.write_crs).")

    def read(rows: slice, columns: slice) -> npt.NDArray[np.float64]:
        part = array[rows, columns]
        return np.asarray(part.compute(scheduler="threads") if part.chunks else part, dtype=np.float64)

    chunks = [max(sizes) for sizes in array.chunks] if array.chunks else [_LARGEST_WINDOW] * 2
    return MapSampler(
        name=name,
        quantity=str(array.attrs.get("long_name", "")),
        shape=(geobox.shape[0], geobox.shape[1]),
        transform=geobox.affine,
        crs=geobox.crs.proj,
        window=(min(chunks[0], _LARGEST_WINDOW), min(chunks[1], _LARGEST_WINDOW)),
        read=read,
    )
