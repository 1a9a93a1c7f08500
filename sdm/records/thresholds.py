"""From a continuous map to presence and absence: thresholds, the binary raster, and the range as polygons."""

from __future__ import annotations

import contextlib
import math
import re
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt
import shapely
from odc.geo.geobox import GeoBox

from sdm.errors import OutputError, RecordsError
from sdm.files.atomic import disk_errors
from sdm.outputs.blocks import Source, iter_blocks
from sdm.outputs.metadata import one_line
from sdm.records import measures

if TYPE_CHECKING:
    from geopandas import GeoDataFrame
    from pyproj import CRS

RULES = {
    "mtp": "minimum training presence: the lowest score of a presence",
    "p10": "10th percentile of training presences: at most a tenth of them score lower",
    "equal": "equal sensitivity and specificity",
    "maxtss": "maximum of sensitivity and specificity together (TSS)",
    "fixed": "a fixed value",
}
"""Rules for thresholds, by name."""

NODATA = 255
"""In the binary raster: not modelled. 1 is suitable, 0 is not."""

_BLOCK = 512
_MAX_PIXELS = 1 << 20  # streamed at a time
_EDGE_DEGREES = 0.05  # long edges get vertices: along a parallel they are no geodesics
_DATE = "1970-01-01T00:00:00Z"  # in the GeoPackage, whose bytes must not depend on the day
_INTERVAL = (5.0, 95.0)

Suitable: TypeAlias = Callable[[npt.NDArray[np.float32], slice, slice], npt.NDArray[np.bool_]]


@dataclass(frozen=True)
class Threshold:
    """A score from which on a place counts as suitable."""

    rule: str
    """A key of RULES."""
    value: float
    sensitivity: float
    """Share of the presences at or above the value."""
    specificity: float
    """Share of the absences below the value, or of the random places where there are no absences."""
    area_share: float
    """Share of the random places at or above the value: the predicted part of the area they stand for."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self) | {"meaning": RULES[self.rule]}


@dataclass(frozen=True)
class RangeArea:
    """Area of the predicted range on the WGS 84 ellipsoid, in km2."""

    km2: float
    low_km2: float | None = None
    """5th percentile over the bootstrap refits; None without refits."""
    high_km2: float | None = None
    """95th percentile over the bootstrap refits."""

    def to_dict(self) -> dict[str, float | None]:
        """As JSON values."""
        return asdict(self)


def threshold(
    rule: str,
    presence: npt.ArrayLike,
    background: npt.ArrayLike,
    *,
    absence: npt.ArrayLike | None = None,
    weights: npt.ArrayLike | None = None,
    value: float | None = None,
) -> Threshold:
    """The threshold that a rule gives for scores.

    Parameters
    ----------
    rule : a key of RULES
    presence : scores of the presences, shape (n,)
    background : scores of random places, shape (m,)
    absence : scores of real absences; specificity is then of these
    weights : of the random places, shape (m,)
    value : with the rule "fixed"

    With fewer than ten presences "p10" is the same as "mtp". Where several scores satisfy "equal" or "maxtss"
    equally well the highest is taken. See Liu et al. (2005, Ecography 28:385; 2013, J. Biogeogr. 40:778).
    Raises RecordsError for an unknown rule, or "fixed" without a finite value.
    """
    scores, others = np.sort(np.asarray(presence, float))[::-1], background if absence is None else absence
    contrast_weights = weights if absence is None else None
    if rule == "fixed":
        if value is None or not math.isfinite(value):
            raise RecordsError(f"a fixed threshold of {value!r} is not possible; give a number.")
        chosen = float(value)
    elif rule == "mtp":
        chosen = float(scores[-1])
    elif rule == "p10":
        chosen = float(scores[math.ceil(0.9 * scores.size - 1e-9) - 1])
    elif rule == "equal":
        chosen = _equal(scores, others, contrast_weights)
    elif rule == "maxtss":
        chosen = measures.max_tss(scores, others, contrast_weights)[1]
    else:
        raise RecordsError(f"the rule {rule!r} for a threshold is unknown; give one of {', '.join(RULES)}.")
    return Threshold(
        rule,
        chosen,
        sensitivity=float(measures.share_above(scores, chosen)),
        specificity=1 - float(measures.share_above(others, chosen, contrast_weights)),
        area_share=float(measures.share_above(background, chosen, weights)),
    )


def _equal(presence: npt.ArrayLike, others: npt.ArrayLike, weights: npt.ArrayLike | None) -> float:
    candidates = np.unique(np.concatenate([np.asarray(presence, float), np.asarray(others, float)]))[::-1]
    sensitivity = measures.share_above(presence, candidates)
    specificity = 1 - measures.share_above(others, candidates, weights)
    return float(candidates[np.argmin(np.round(np.abs(sensitivity - specificity), 12))])


def write_binary(path: Path, source: Source, geobox: GeoBox, chosen: Threshold, tags: dict[str, str]) -> None:
    """Write a map of shape (y, x) as a Cloud-Optimized GeoTIFF of 1 (suitable), 0 (not) and 255 (not modelled).

    The rule and the value of the threshold are among its tags, besides `tags`. It appears at `path` only when
    every pixel was read back. Raises OutputError if the disk refuses or the check fails.
    """
    import rasterio
    from rasterio.shutil import copy
    from rio_cogeo.cogeo import cog_validate

    unique = uuid.uuid4().hex[:8]
    staged, finished = (path.with_name(f".{path.name}.{unique}.{part}.tif") for part in ("plain", "cog"))
    try:
        with disk_errors(path), rasterio.Env(GDAL_PAM_ENABLED="NO"):
            _write_plain(staged, source, geobox, chosen, tags)
            copy(
                staged,
                finished,
                driver="COG",
                COMPRESS="DEFLATE",
                LEVEL=9,
                BLOCKSIZE=_BLOCK,
                OVERVIEW_RESAMPLING="MODE",
                BIGTIFF="IF_SAFER",
            )
            _, errors, _ = cog_validate(finished, quiet=True)
            # It takes an image as wide as one tile for untiled.
            errors = [error for error in errors if "not tiled" not in error]
            if errors:
                raise OutputError(f"{path.name} failed its check: {'; '.join(errors)}.")
            _verify(finished, path.name, source, chosen)
            finished.replace(path)
    finally:
        for file in path.parent.glob(f".{path.name}.{unique}.*"):
            with contextlib.suppress(OSError):
                file.unlink()


def _write_plain(path: Path, source: Source, geobox: GeoBox, chosen: Threshold, tags: dict[str, str]) -> None:
    import rasterio
    from rasterio.windows import Window

    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        dtype="uint8",
        count=1,
        height=geobox.height,
        width=geobox.width,
        crs=str(geobox.crs),
        transform=geobox.affine,
        nodata=NODATA,
        tiled=True,
        blockxsize=_BLOCK,
        blockysize=_BLOCK,
        BIGTIFF="IF_SAFER",
    ) as file:
        for rows, columns, values in iter_blocks(source, _MAX_PIXELS):
            window = Window(columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start)
            file.write(binary(values, chosen.value), 1, window=window)
        file.set_band_description(1, "suitable")
        file.update_tags(1, quantity=f"Suitable: 1, not suitable: 0 ({RULES[chosen.rule]})")
        safe = {re.sub(r"[^A-Za-z0-9_.-]", "_", key): one_line(value) for key, value in tags.items()}
        file.update_tags(
            **safe,
            threshold_rule=chosen.rule,
            threshold_meaning=RULES[chosen.rule],
            threshold=repr(chosen.value),
            threshold_sensitivity=f"{chosen.sensitivity:.6g}",
            threshold_specificity=f"{chosen.specificity:.6g}",
            threshold_area_share=f"{chosen.area_share:.6g}",
        )


def _verify(path: Path, name: str, source: Source, chosen: Threshold) -> None:
    import rasterio
    from rasterio.windows import Window

    with rasterio.open(path) as file:
        for rows, columns, values in iter_blocks(source, _MAX_PIXELS):
            window = Window(columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start)
            if not np.array_equal(file.read(1, window=window), binary(values, chosen.value)):
                raise OutputError(f"{name} failed its check: pixels differ at {window}.")


def binary(values: npt.ArrayLike, value: float) -> npt.NDArray[np.uint8]:
    """1 at or above `value`, 0 below, NODATA for NaN; any shape."""
    # In the precision of the map: a threshold that is the score of a presence must keep this presence.
    scores = np.asarray(values)
    with np.errstate(invalid="ignore"):
        above = scores >= scores.dtype.type(value)
    return np.where(np.isnan(scores), NODATA, above).astype(np.uint8)


def range_polygon(source: Source, geobox: GeoBox, value: float) -> shapely.MultiPolygon:
    """The places at or above `value` as a valid multipolygon in WGS84, (lon, lat), cut at 180 degrees.

    Holes are kept. Its edges are those of the pixels; where a projected map crosses 180 degrees or holds a pole,
    those of pixels of the same size in degrees.
    """
    return _polygons(lambda values, _rows, _columns: binary(values, value) == 1, source, geobox)


def _polygons(suitable: Suitable, source: Source, geobox: GeoBox) -> shapely.MultiPolygon:
    """The places where `suitable(values, rows, columns)` is True."""
    mask = np.zeros(geobox.shape, dtype=np.uint8)
    for rows, columns, values in iter_blocks(source, _MAX_PIXELS):
        with np.errstate(invalid="ignore"):
            mask[rows, columns] = suitable(values, rows, columns)
    if not _crs(geobox).is_geographic and _meets_the_seam(geobox):
        mask, geobox = _on_degrees(mask, geobox)
    return _cut_at_180(_outlines(mask, geobox))


def _crs(geobox: GeoBox) -> CRS:
    if geobox.crs is None:
        raise ValueError("the grid has no CRS, so its pixels are nowhere")
    return geobox.crs.proj


def _meets_the_seam(geobox: GeoBox) -> bool:
    """Whether a projected grid reaches 180 degrees or a pole, where its polygons would be torn."""
    from pyproj import Transformer

    to_wgs84 = Transformer.from_crs(_crs(geobox), "EPSG:4326", always_xy=True)
    columns, rows = np.meshgrid(np.linspace(0, geobox.width, 65), np.linspace(0, geobox.height, 65))
    lon, lat = to_wgs84.transform(*geobox.pix2wld(columns, rows))
    if not (np.isfinite(lon).all() and np.isfinite(lat).all()) or np.abs(lat).max() > 89.0:
        return True
    jumps = max(float(np.abs(np.diff(lon, axis=axis)).max()) for axis in (0, 1))
    return jumps > 90.0


def _on_degrees(mask: npt.NDArray[np.uint8], geobox: GeoBox) -> tuple[npt.NDArray[np.uint8], GeoBox]:
    """The mask on a grid in degrees from -180 to 180 with pixels of about the same size."""
    import rasterio
    from affine import Affine
    from rasterio.warp import Resampling, reproject

    area = abs(geobox.affine.a * geobox.affine.e) * _crs(geobox).axis_info[0].unit_conversion_factor ** 2
    columns = int(np.clip(round(360 * 111_320 / math.sqrt(area)), 360, 86_400))
    pitch = 360 / columns
    rows = math.ceil(180 / pitch)
    out = np.zeros((rows, columns), dtype=np.uint8)
    target = Affine(pitch, 0, -180, 0, -pitch, 90)
    with rasterio.Env():
        reproject(
            mask,
            out,
            src_transform=geobox.affine,
            src_crs=str(geobox.crs),
            dst_transform=target,
            dst_crs="EPSG:4326",
            resampling=Resampling.nearest,
            warp_mem_limit=64,
        )
    return out, GeoBox(out.shape, target, "EPSG:4326")


def _outlines(mask: npt.NDArray[np.uint8], geobox: GeoBox) -> shapely.Geometry:
    """Outlines of the pixels that are 1, in degrees; longitudes of a geographic grid may run past 180."""
    from pyproj import Transformer
    from rasterio.features import shapes

    found = [shapely.geometry.shape(one) for one, _ in shapes(mask, mask=mask == 1, transform=geobox.affine)]
    if not found:
        return shapely.MultiPolygon()
    polygons = np.array(found, dtype=object)
    if _crs(geobox).to_epsg() == 4326:
        return shapely.union_all(shapely.make_valid(polygons))
    step = 8 * max(abs(geobox.affine.a), abs(geobox.affine.e))
    to_wgs84 = Transformer.from_crs(_crs(geobox), "EPSG:4326", always_xy=True)
    polygons = shapely.segmentize(polygons, step)
    polygons = shapely.transform(polygons, to_wgs84.transform, interleaved=False)
    return shapely.union_all(shapely.make_valid(polygons))


def _cut_at_180(geometry: shapely.Geometry) -> shapely.MultiPolygon:
    """The same area with longitudes of -180 to 180 and latitudes of -90 to 90."""
    pieces = []
    for turn in (-360.0, 0.0, 360.0):
        piece = shapely.intersection(geometry, shapely.box(-180 + turn, -90, 180 + turn, 90))
        pieces.append(shapely.transform(piece, lambda points, turn=turn: points - np.array([turn, 0.0])))
    whole = shapely.union_all(pieces)
    parts = [part for part in shapely.get_parts(whole) if shapely.get_type_id(part) == shapely.GeometryType.POLYGON]
    return shapely.normalize(shapely.MultiPolygon(parts))


def area_km2(geometry: shapely.Geometry) -> float:
    """Area of polygons in degrees on the WGS 84 ellipsoid, in km2.

    Edges along parallels get vertices first, as a geodesic between their ends would run poleward of them.
    """
    from pyproj import Geod

    total = 0.0
    geod = Geod(ellps="WGS84")
    for part in shapely.get_parts(shapely.orient_polygons(shapely.segmentize(geometry, _EDGE_DEGREES))):
        total += geod.geometry_area_perimeter(part)[0]
    return total / 1e6


def write_range(
    path: Path,
    source: Source,
    geobox: GeoBox,
    chosen: Threshold,
    *,
    species: str = "",
    refits: Sequence[tuple[Source, float]] = (),
) -> RangeArea:
    """Write the range as polygons to a GeoPackage, and return its area.

    Parameters
    ----------
    path : of the new .gpkg file
    source : the map, shape (y, x), on `geobox`
    chosen : the threshold
    species : written into every feature
    refits : maps of bootstrap refits on the same grid, each with its own threshold value

    The layer "range" holds the map's range. With refits "range_low" holds the places that are suitable in at
    least 95 % of them, and "range_high" those in at least 5 %; low and high area are the 5th and 95th percentile
    of the refits' areas. Raises OutputError if the disk refuses.
    """
    whole = range_polygon(source, geobox, chosen.value)
    layers = {"range": whole}
    area = RangeArea(area_km2(whole))
    if refits:
        areas, counts = _refitted(refits, geobox)
        low, high = np.percentile(areas, _INTERVAL)
        area = RangeArea(area.km2, float(low), float(high))
        for name, share in (("range_low", _INTERVAL[1]), ("range_high", _INTERVAL[0])):
            needed = max(1, math.ceil(share / 100 * len(refits) - 1e-9))
            layers[name] = _polygons(_at_least(counts, needed), source, geobox)
    attributes = {"species": one_line(species), "rule": chosen.rule, "threshold": chosen.value}
    _write_layers(path, layers, attributes, area)
    return area


def _at_least(counts: npt.NDArray[np.uint16], needed: int) -> Suitable:
    return lambda _values, rows, columns: counts[rows, columns] >= needed


def _refitted(refits: Sequence[tuple[Source, float]], geobox: GeoBox) -> tuple[list[float], npt.NDArray[np.uint16]]:
    """Area in km2 of each refit, and how many of them are suitable in each pixel."""
    from sdm.outputs.statistics import PixelArea

    counts = np.zeros(geobox.shape, dtype=np.uint16)
    pixel_area = PixelArea(geobox)
    areas = []
    for source, value in refits:
        total = 0.0
        for rows, columns, values in iter_blocks(source, _MAX_PIXELS):
            above = binary(values, value) == 1
            counts[rows, columns] += above
            total += float((above * pixel_area.block(rows, columns)).sum())
        areas.append(total / 1e6)
    return areas, counts


def _write_layers(
    path: Path, layers: dict[str, shapely.MultiPolygon], attributes: dict[str, Any], area: RangeArea
) -> None:
    import geopandas
    from pyogrio.errors import DataSourceError

    unique = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.gpkg")
    try:
        with disk_errors(path), _fixed_date():
            for name, polygons in layers.items():
                row = attributes | {"area_km2": area_km2(polygons)}
                if name == "range":
                    row |= {"area_low_km2": area.low_km2, "area_high_km2": area.high_km2}
                frame: GeoDataFrame = geopandas.GeoDataFrame([row], geometry=[polygons], crs="EPSG:4326")
                for column in ("area_low_km2", "area_high_km2"):
                    if column in frame:
                        frame[column] = frame[column].astype(float)
                frame.to_file(unique, layer=name, driver="GPKG", engine="pyogrio")
            unique.replace(path)
    except DataSourceError as error:
        raise OutputError(f"{path.name} could not be written: {error}") from error
    finally:
        for file in path.parent.glob(f"{unique.name}*"):
            with contextlib.suppress(OSError):
                file.unlink()


@contextlib.contextmanager
def _fixed_date() -> Iterator[None]:
    import pyogrio

    before = pyogrio.get_gdal_config_option("OGR_CURRENT_DATE")
    pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": _DATE})
    try:
        yield
    finally:
        pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": before})
