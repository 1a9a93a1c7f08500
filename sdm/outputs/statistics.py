"""Exact statistics of a map in one pass, and the true area of each pixel.

Areas are on the WGS 84 ellipsoid for any CRS, so that Web Mercator, geographic and equal-area grids of one
region give the same square kilometres.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from odc.geo.geobox import GeoBox

from sdm.outputs.blocks import Source, iter_blocks
from sdm.outputs.geobox import geobox_crs
from sdm.outputs.metadata import Band

_A = 6378137.0  # WGS 84 semi-major axis in metres
_E = math.sqrt(0.0066943799901413165)  # WGS 84 eccentricity
BINS = 20
"""Bins of the histogram."""
_NODES = 129  # per axis: pixels of a projected grid whose area is computed; others are interpolated


@dataclass(frozen=True)
class BandSummary:
    """Statistics over the pixels of a further band; None where it has none."""

    count: int
    min: float | None
    max: float | None
    mean: float | None
    std: float | None
    """Population standard deviation."""
    share_above_limit: float | None
    """Share of the modelled area where the value is above the band's limit; None without a limit."""

    def to_dict(self) -> dict[str, Any]:
        """Plain Python values for the JSON sidecar."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


@dataclass(frozen=True)
class Summary:
    """Statistics over the modelled pixels of one map; None where there are none."""

    count: int
    """Pixels with a value."""
    nodata_count: int
    """Pixels not modelled."""
    min: float | None
    max: float | None
    mean: float | None
    std: float | None
    """Population standard deviation."""
    histogram: tuple[int, ...]
    """Pixels per equal-width bin over `histogram_range`; the last bin includes its upper end."""
    histogram_range: tuple[float, float]
    modelled_area_km2: float
    """True area of the pixels with a value."""
    expected_area_km2: float
    """Sum of value x pixel area: the expected size of the range if the values are probabilities."""
    area_method: str
    """How pixel areas were computed."""
    bands: tuple[BandSummary, ...] = ()
    """Statistics of the further bands."""

    def to_dict(self) -> dict[str, Any]:
        """Plain Python values for the JSON sidecar, of the map itself."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "bands"}


def summarise_band(source: Source, geobox: GeoBox, band: Band) -> BandSummary:
    """The exact statistics of a further band of shape (y, x) on `geobox`, computed block by block."""
    accumulator = BandAccumulator(geobox, band)
    for rows, columns, values in iter_blocks(source):
        accumulator.update(rows, columns, values)
    return accumulator.result()


def summarise(source: Source, geobox: GeoBox, valid_range: tuple[float, float] = (0.0, 1.0)) -> Summary:
    """The exact statistics of a map of shape (y, x) on `geobox`, computed block by block."""
    accumulator = Accumulator(geobox, valid_range)
    for rows, columns, values in iter_blocks(source):
        accumulator.update(rows, columns, values)
    return accumulator.result()


class Accumulator:
    """Running statistics; pass each block of the map once, in any order."""

    def __init__(self, geobox: GeoBox, valid_range: tuple[float, float] = (0.0, 1.0)) -> None:
        self._area = PixelArea(geobox)
        self._range = valid_range
        self._pixels = self._count = 0
        self._min, self._max = math.inf, -math.inf
        self._mean = self._squares = 0.0  # squares: sum of squared deviations from the mean
        self._histogram = np.zeros(BINS, dtype=np.int64)
        self._modelled = self._expected = 0.0  # m2

    def update(self, rows: slice, columns: slice, values: npt.NDArray[np.float32]) -> None:
        """Add the block at `rows`, `columns`; NaN pixels only count as not modelled."""
        self._pixels += values.size
        valid = ~np.isnan(values)
        count = int(np.count_nonzero(valid))
        if not count:
            return
        area = np.broadcast_to(self._area.block(rows, columns), values.shape)
        if count == values.size:
            sample, area = values.ravel(), area.ravel()
        else:
            sample, area = values[valid], area[valid]
        self._min, self._max = min(self._min, float(sample.min())), max(self._max, float(sample.max()))
        # Deviations from the means are merged (Chan et al.): sums of squares would lose digits by cancellation.
        wide = sample.astype(np.float64)
        mean = float(wide.mean())
        squares = float(np.square(wide - mean).sum())
        total, delta = self._count + count, mean - self._mean
        self._squares += squares + delta * delta * self._count * count / total
        self._mean += delta * count / total
        self._count = total
        low, high = self._range
        bins = np.clip((wide - low) * (BINS / (high - low)), 0, BINS - 1).astype(np.int64)
        self._histogram += np.bincount(bins, minlength=BINS)
        self._modelled += float(area.sum())
        self._expected += float(area @ wide)

    def result(self) -> Summary:
        """The statistics of all blocks so far."""
        modelled = self._count > 0
        return Summary(
            count=self._count,
            nodata_count=self._pixels - self._count,
            min=self._min if modelled else None,
            max=self._max if modelled else None,
            mean=self._mean if modelled else None,
            std=math.sqrt(self._squares / self._count) if modelled else None,
            histogram=tuple(self._histogram.tolist()),
            histogram_range=self._range,
            modelled_area_km2=self._modelled / 1e6,
            expected_area_km2=self._expected / 1e6,
            area_method=self._area.method,
        )


class BandAccumulator:
    """As `Accumulator`, of a further band."""

    def __init__(self, geobox: GeoBox, band: Band) -> None:
        self._all = Accumulator(geobox, band.valid_range)
        self._limit = band.limit
        self._area, self._above = PixelArea(geobox), 0.0  # m2

    def update(self, rows: slice, columns: slice, values: npt.NDArray[np.float32]) -> None:
        """Add the block at `rows`, `columns`."""
        self._all.update(rows, columns, values)
        if self._limit is not None:
            area = np.broadcast_to(self._area.block(rows, columns), values.shape)
            self._above += float(area[values > self._limit].sum())

    def result(self) -> BandSummary:
        """The statistics of all blocks so far."""
        summary = self._all.result()
        share = None
        if self._limit is not None and summary.modelled_area_km2 > 0:
            share = self._above / 1e6 / summary.modelled_area_km2
        return BandSummary(summary.count, summary.min, summary.max, summary.mean, summary.std, share)


class PixelArea:
    """True area of the pixels of a grid in square metres."""

    method: str
    """How the areas are computed."""

    def __init__(self, geobox: GeoBox) -> None:
        self._per_row: npt.NDArray[np.float64] | None = None
        if geobox_crs(geobox).geographic and geobox.axis_aligned:
            self.method = "exact area between parallels on the WGS 84 ellipsoid"
            self._per_row = _row_areas(geobox)
        else:
            self.method = "Jacobian of the projection on the WGS 84 ellipsoid, interpolated between pixels"
            self._node_rows, self._node_columns, self._nodes = _node_areas(geobox)

    def block(self, rows: slice, columns: slice) -> npt.NDArray[np.float64]:
        """Areas of shape (rows, columns), or (rows, 1) where they are equal along a row."""
        if self._per_row is not None:
            return self._per_row[rows, None]
        down = _interpolation(np.arange(rows.start, rows.stop), self._node_rows)
        across = _interpolation(np.arange(columns.start, columns.stop), self._node_columns)
        return down @ self._nodes @ across.T


def _zone(latitude: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Area in m2 between the equator and `latitude` (radians), per radian of longitude."""
    with np.errstate(invalid="ignore"):  # beyond the outline of a world map
        sine = np.sin(latitude)
    b_squared = _A * _A * (1 - _E * _E)
    return 0.5 * b_squared * (sine / (1 - (_E * sine) ** 2) + np.arctanh(_E * sine) / _E)


def _row_areas(geobox: GeoBox) -> npt.NDArray[np.float64]:
    transform = geobox.affine
    edges = transform.f + transform.e * np.arange(geobox.height + 1)
    # Not always degrees: some geographic CRSs are in grads.
    to_radians = geobox_crs(geobox).proj.axis_info[0].unit_conversion_factor
    return np.abs(np.diff(_zone(np.clip(edges * to_radians, -math.pi / 2, math.pi / 2)))) * abs(
        transform.a * to_radians
    )


def _node_areas(geobox: GeoBox) -> tuple[npt.NDArray, npt.NDArray, npt.NDArray[np.float64]]:
    """Pixel areas at up to 129 x 129 pixel centres: rows (n,), columns (m,), areas (n, m)."""
    from pyproj import Transformer

    def nodes(length: int) -> npt.NDArray[np.float64]:
        return np.linspace(0, length - 1, min(length, _NODES))

    rows, columns = nodes(geobox.height), nodes(geobox.width)
    x, y = np.meshgrid(columns + 0.5, rows + 0.5)
    to_wgs84 = Transformer.from_crs(geobox_crs(geobox).proj, "EPSG:4326", always_xy=True)

    def flat(column_shift: float, row_shift: float) -> tuple[npt.NDArray, npt.NDArray]:
        """Longitude in radians and equal-area northing of the shifted nodes."""
        longitude, latitude = to_wgs84.transform(*geobox.pix2wld(x + column_shift, y + row_shift))
        return np.radians(longitude), _zone(np.radians(latitude))

    def difference(column_shift: float, row_shift: float) -> tuple[npt.NDArray, npt.NDArray]:
        end, start = flat(column_shift, row_shift), flat(-column_shift, -row_shift)
        turn = 2 * math.pi
        with np.errstate(invalid="ignore"):
            return (end[0] - start[0] + math.pi) % turn - math.pi, end[1] - start[1]

    # From edge to edge of the pixel, across and down: the sides of a parallelogram.
    (across_x, across_y), (down_x, down_y) = difference(0.5, 0), difference(0, 0.5)
    with np.errstate(invalid="ignore"):
        areas = np.abs(across_x * down_y - across_y * down_x)
    # Outside the domain of the projection pixels have no area.
    return rows, columns, np.nan_to_num(areas, nan=0.0, posinf=0.0)


def _interpolation(at: npt.NDArray, nodes: npt.NDArray) -> npt.NDArray[np.float64]:
    """Matrix (len(at), len(nodes)) that interpolates values at `nodes` linearly to `at`."""
    matrix = np.zeros((len(at), len(nodes)))
    if len(nodes) == 1:
        matrix[:] = 1.0
        return matrix
    place = np.clip(np.searchsorted(nodes, at, side="right") - 1, 0, len(nodes) - 2)
    fraction = (at - nodes[place]) / (nodes[place + 1] - nodes[place])
    index = np.arange(len(at))
    matrix[index, place] = 1 - fraction
    matrix[index, place + 1] += fraction
    return matrix
