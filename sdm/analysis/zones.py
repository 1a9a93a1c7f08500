"""Maps summed over zones, such as parks or countries: each pixel by the fraction of it that a zone covers."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import shapely
from odc.geo.geobox import GeoBox

from sdm.errors import BoxError, LayerError, RequestError, quoted
from sdm.files.vectors import Limits, Pick, Polygons, read_features, united
from sdm.grid import WGS84, Region

if TYPE_CHECKING:
    from geopandas import GeoDataFrame
    from scipy.sparse import csr_array

LIMITS = Limits(size=2 << 30, text=256 << 20, features=200_000, feature=200)
STRIP = 1 << 18
"""Pixels of a strip of a map, which is read at once."""
AT_ONCE = 16
"""Maps that are read together: the species of a chunk of a batch."""
MOST_WEIGHTS = 200_000_000
"""Pairs of a zone and a pixel: 12 bytes each."""

_COLUMNS = ("modelled_km2", "mean", "max", "expected_km2", "above_km2", "share_of_range")
RELATIVE = "relative_suitability"
"""Variable of the store of a batch whose values are no probabilities."""
_UNKNOWN = np.float64("nan")


@dataclass(frozen=True)
class Zones:
    """Zones with a name each; they may overlap."""

    column: str
    """The attribute that names them."""
    ids: tuple[str, ...]
    regions: tuple[Region, ...] = field(repr=False)
    area_km2: np.ndarray = field(repr=False)
    """(Z,) on the ellipsoid."""
    notes: tuple[str, ...] = ()

    @classmethod
    def read(
        cls, path: str | Path, column: str | None = None, layer: str | None = None, where: str | None = None
    ) -> Zones:
        """The zones of a vector file, those of one name united.

        `column`: the attribute that names them; by default they are numbered from 1. Raises LayerError, BoxError.
        """
        from sdm.outputs.polygons import area_km2

        source = f"zones file {str(path)!r}"
        frame = read_features(path, "zones file", limits=LIMITS, pick=Pick(layer, where, "--layer NAME"))
        name, names = _names(frame, column, source)
        notes = [f"of {source}, layer {quoted(frame.attrs['layer'])} is used."] if frame.attrs.get("layer") else []
        order = dict.fromkeys(names)
        if len(order) < len(names):
            notes.append(
                f"{len(names) - len(order):,} of {len(names):,} features share their {name}; each name is a zone."
            )
        rows: dict[str, list[int]] = {key: [] for key in order}
        for k, key in enumerate(names):
            rows[key].append(k)
        regions = []
        for key, numbers in rows.items():
            label = f"{name} {quoted(key, 60)} of {source}"
            polygons: Polygons = united(frame.geometry.iloc[numbers], label)
            regions.append(Region.from_polygons(polygons, label))
        areas = np.array([area_km2(_within_180(region.geometry)) for region in regions])
        return cls(name, tuple(rows), tuple(regions), areas, tuple(notes))

    def __len__(self) -> int:
        return len(self.ids)


def _names(frame: GeoDataFrame, column: str | None, source: str) -> tuple[str, list[str]]:
    """The attribute that names the features, and its values as text. Raises LayerError."""
    if column is None:
        return "zone", [str(k) for k in range(1, len(frame) + 1)]
    attributes = [str(name) for name in frame.columns if name != frame.geometry.name]
    found = [name for name in attributes if name == column] or [n for n in attributes if n.lower() == column.lower()]
    if not found:
        raise LayerError(
            f"{source} has no attribute {quoted(column)}; it has {', '.join(quoted(a, 40) for a in attributes[:20])}."
        )
    values = frame[found[0]]
    if values.isna().any():
        raise LayerError(
            f"{source} has {int(values.isna().sum()):,} features without {found[0]}; every zone needs a name."
        )
    return found[0], [str(value) for value in values]


def _within_180(geometry: shapely.Geometry) -> shapely.Geometry:
    """A geometry (lon, lat) with the part beyond 180 moved to where it lies within -180 to 180."""
    if geometry.bounds[0] >= -180.0 and geometry.bounds[2] <= 180.0:
        return geometry
    turned = [shapely.transform(geometry, lambda xy, d=d: xy + np.array([d, 0.0])) for d in (-360.0, 0.0, 360.0)]
    parts = shapely.make_valid(shapely.clip_by_rect(turned, -180.0, -90.0, 180.0, 90.0))
    return shapely.union_all(parts)


@dataclass(frozen=True)
class Maps:
    """Some maps on one grid."""

    geobox: GeoBox
    names: tuple[str, ...]
    read: Callable[[int, int, slice], np.ndarray] = field(repr=False)
    """(first map, end, rows) -> (maps, rows, columns) float32, NaN where not modelled."""
    at_once: int = AT_ONCE
    """Maps that are read together."""
    relative: frozenset[str] = frozenset()
    """Names of those whose values are no probabilities: their sum is no area."""


def open_maps(paths: Sequence[str | Path]) -> list[Maps]:
    """The maps of GeoTIFFs and of folders: of a batch, or of maps. Raises LayerError."""
    groups: dict[tuple, list[_Raster]] = {}
    out: list[Maps] = []
    for path in map(Path, paths):
        if path.is_dir() and (path / "probability.zarr").is_dir():
            out.append(_batch(path / "probability.zarr"))
            continue
        for file in _files(path):
            one = _raster(file)
            box = one.geobox
            groups.setdefault((tuple(box.shape), box.affine, str(box.crs)), []).append(one)
    for members in groups.values():
        out.append(_together(members))
    return out


class _Raster(NamedTuple):
    """A GeoTIFF."""

    name: str
    read: Callable[[slice], np.ndarray]
    geobox: GeoBox
    relative: bool


def _together(members: list[_Raster]) -> Maps:
    def read(first: int, end: int, rows: slice) -> np.ndarray:
        return np.stack([one.read(rows) for one in members[first:end]])

    relative = frozenset(one.name for one in members if one.relative)
    return Maps(members[0].geobox, tuple(one.name for one in members), read, relative=relative)


def _files(path: Path) -> list[Path]:
    """The map at a path, or the maps in a folder; not the ranges and changes beside them."""
    if not path.exists():
        raise LayerError(f"map {str(path)!r} does not exist; give GeoTIFFs, or the folder of a batch.")
    if not path.is_dir():
        return [path]
    beside = ("-range", "-binary", "-change", "-baseline", "richness")
    files = [f for f in sorted(path.glob("*.tif")) if not f.stem.endswith(beside)]
    if not files:
        raise LayerError(f"folder {str(path)!r} holds no map (.tif) and no batch.")
    return files


def _raster(path: Path) -> _Raster:
    """A map in a file; one of another program is taken to be of probabilities."""
    import rasterio

    from sdm.records.sample import open_sampler

    sampler = open_sampler(path)
    with rasterio.open(path) as file:
        tags = file.tags()
    month = tags.get("month", "")
    name = tags.get("species") or path.stem
    columns = slice(0, sampler.shape[1])
    geobox = GeoBox(sampler.shape, sampler.transform, sampler.crs.to_wkt())
    if not geobox.axis_aligned:
        raise LayerError(f"map {str(path)!r} is rotated; warp it (gdalwarp) first.")
    name = f"{name} (month {month})" if month.isdigit() else name
    relative = tags.get("score", "probability") != "probability"
    return _Raster(name, lambda rows: sampler.read(rows, columns), geobox, relative)


def _batch(store: Path) -> Maps:
    """The maps of a batch."""
    import zarr

    from sdm.outputs.cube import open_cube

    data = open_cube(store)
    relative = RELATIVE in data
    array = zarr.open_array(store / (RELATIVE if relative else "probability"), mode="r", zarr_format=2)
    names = tuple(str(name) for name in data["species"].values)
    return Maps(
        data.odc.geobox,
        names,
        lambda first, end, rows: np.asarray(array[first:end, rows], dtype=np.float32),
        relative=frozenset(names if relative else ()),
    )


@dataclass(frozen=True)
class ZoneSums:
    """What maps hold in zones; arrays (Z, S) of zones and maps."""

    zones: Zones
    names: tuple[str, ...]
    threshold: float
    modelled_km2: np.ndarray
    """Area of the pixels with a value."""
    mean: np.ndarray
    """Of the values there, by area; NaN where nothing is modelled."""
    max: np.ndarray
    expected_km2: np.ndarray
    """Sum over pixels of probability times area; NaN of a map whose values are no probabilities."""
    above_km2: np.ndarray
    """Area of the pixels at or above the threshold."""
    share_of_range: np.ndarray
    """Expected area in the zone, as a share of that of the whole map."""

    @property
    def richness(self) -> np.ndarray:
        """(Z,): species expected at a place of a zone, on average over the area that any map models.

        NaN where no map is of probabilities; others do not count.
        """
        probable = ~np.isnan(self.expected_km2).any(axis=0)
        if not probable.any():
            return np.full(len(self.zones), _UNKNOWN)
        most = self.modelled_km2[:, probable].max(axis=1)
        total = self.expected_km2[:, probable].sum(axis=1)
        return np.divide(total, most, out=np.zeros(len(most)), where=most > 0)

    @property
    def species_above(self) -> np.ndarray:
        """(Z,): maps that reach the threshold anywhere in a zone."""
        with np.errstate(invalid="ignore"):
            return (self.max >= self.threshold).sum(axis=1)


def sum_zones(
    zones: Zones,
    maps: Sequence[Maps],
    threshold: float = 0.5,
    tell: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> ZoneSums:
    """Sum maps over zones, in memory that grows with neither the maps nor their number.

    The fraction of each pixel that a zone covers is exact, in the CRS of the map. Raises LayerError, RequestError.
    """
    parts = []
    counts = Counter(name for group in maps for name in group.names)
    if repeated := sorted(name for name, count in counts.items() if count > 1):
        raise RequestError(f"two maps are named {quoted(repeated[0])}; give each species once.")
    total = sum(counts.values())
    done = 0
    for group in maps:
        weights = list(_weights(zones, group.geobox))
        for first in range(0, len(group.names), group.at_once):
            end = min(first + group.at_once, len(group.names))
            parts.append(_sums(len(zones), group, weights, (first, end), threshold))
            done += end - first
            tell("zones", done, total)
    joined = [np.concatenate(columns, axis=1) for columns in zip(*parts, strict=True)]
    return ZoneSums(zones, tuple(name for m in maps for name in m.names), threshold, *joined)


def _weights(zones: Zones, geobox: GeoBox) -> Iterator[tuple[slice, csr_array]]:
    """By strips of a grid: rows, and the fraction of each pixel that each zone covers (Z, pixels)."""
    import geopandas
    from exactextract import exact_extract
    from exactextract.raster import NumPyRasterSource
    from scipy.sparse import csr_array

    crs = WGS84 if geobox.crs is None or geobox.crs.to_epsg() == 4326 else str(geobox.crs.to_wkt())
    placed, numbers = _placed(zones, geobox, crs)
    south, north = shapely.bounds(placed)[:, [1, 3]].T if len(placed) else (np.empty(0), np.empty(0))
    rows, columns = geobox.shape
    a, step, count = geobox.affine, max(1, STRIP // geobox.shape[1]), 0
    wkt = geobox.crs.to_wkt() if geobox.crs is not None else None
    for top in range(0, rows, step):
        end = min(top + step, rows)
        high, low = a.f + a.e * top, a.f + a.e * end
        met = (south < high) & (north > low)
        shape = (len(zones), (end - top) * columns)
        if not met.any():
            yield slice(top, end), csr_array(shape, dtype=np.float64)
            continue
        grid = np.broadcast_to(np.uint8(0), (end - top, columns)).copy()
        source = NumPyRasterSource(grid, a.c, low, a.c + a.a * columns, high, srs_wkt=wkt)
        frame = geopandas.GeoDataFrame({"zone": numbers[met]}, geometry=placed[met], crs=wkt)
        found = exact_extract(source, frame, ["cell_id", "coverage"], include_cols=["zone"], output="pandas")
        sizes = [len(cells) for cells in found["cell_id"]]
        count += sum(sizes)
        if count > MOST_WEIGHTS:
            raise LayerError(
                f"the zones cover {count:,} pixels, counted in each; use a coarser map, or fewer zones at once."
            )
        where = np.repeat(found["zone"].to_numpy(), sizes), np.concatenate(found["cell_id"].to_list())
        yield slice(top, end), csr_array((np.concatenate(found["coverage"].to_list()), where), shape=shape)


def _placed(zones: Zones, geobox: GeoBox, crs: str) -> tuple[np.ndarray, np.ndarray]:
    """The zones that meet a grid, in its CRS, and their numbers; one that meets it on two turns is there twice."""
    edges = geobox.boundingbox
    box = shapely.box(*edges.bbox)
    geographic = geobox.crs is not None and geobox.crs.geographic
    placed, numbers = [], []
    for k, region in enumerate(zones.regions):
        try:
            own = region.projected(crs)
        except BoxError:
            # It lies where the projection has no place, so not on the map; or around its edge.
            near = shapely.intersection(region.geometry, _around(geobox))
            if near.is_empty or near.area == 0:
                continue
            own = Region.from_geometry(near, region.source).projected(crs)
        turns = (-360.0, 0.0, 360.0) if geographic else (0.0,)
        for turn in turns:
            moved = own if turn == 0.0 else shapely.transform(own, lambda xy, t=turn: xy + np.array([t, 0.0]))
            if shapely.intersects(moved, box):
                placed.append(moved)
                numbers.append(k)
    return np.array(placed, dtype=object), np.array(numbers, dtype=np.int64)


def _around(geobox: GeoBox) -> shapely.Geometry:
    """A box in degrees around a grid."""
    west, south, east, north = geobox.geographic_extent.boundingbox.bbox
    return shapely.box(west - 0.1, max(-90.0, south - 0.1), east + 0.1, min(90.0, north + 0.1))


def _sums(
    count: int, maps: Maps, weights: Sequence[tuple[slice, Any]], chosen: tuple[int, int], threshold: float
) -> tuple[np.ndarray, ...]:
    """The columns of `ZoneSums` of some maps, (Z, S) each."""
    from sdm.outputs.statistics import PixelArea

    areas, size = PixelArea(maps.geobox), chosen[1] - chosen[0]
    columns = slice(0, maps.geobox.shape[1])
    modelled, expected, above = (np.zeros((count, size)) for _ in range(3))
    highest, whole = np.full((count, size), -np.inf), np.zeros(size)
    for rows, weight in weights:
        values = maps.read(*chosen, rows).reshape(size, -1).astype(np.float64)
        area = np.broadcast_to(areas.block(rows, columns), (rows.stop - rows.start, columns.stop)).ravel() / 1e6
        known = np.isfinite(values)
        amount = np.where(known, values, 0.0) * area
        whole += amount.sum(axis=1)
        if not weight.nnz:
            continue
        modelled += weight @ (known * area).T
        expected += weight @ amount.T
        with np.errstate(invalid="ignore"):
            above += weight @ ((values >= threshold) * area).T
        filled = np.flatnonzero(np.diff(weight.indptr))
        for k in range(size):
            there = np.where(known[k], values[k], -np.inf)[weight.indices]
            most = np.maximum.reduceat(there, weight.indptr[filled])
            highest[filled, k] = np.maximum(highest[filled, k], most)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(modelled > 0, expected / modelled, _UNKNOWN)
        share = np.where(whole > 0, expected / whole, _UNKNOWN)
    relative = np.array([name in maps.relative for name in maps.names[slice(*chosen)]])
    expected[:, relative] = share[:, relative] = _UNKNOWN
    return modelled, mean, np.where(np.isfinite(highest), highest, _UNKNOWN), expected, above, share


def write_csv(path: Path, sums: ZoneSums) -> None:
    """A row for each zone and map that models any of it, then the columns of `ZoneSums`."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([sums.zones.column, "zone_km2", "species", *_COLUMNS])
        for k, name in enumerate(sums.names):
            values = np.column_stack([getattr(sums, column)[:, k] for column in _COLUMNS])
            for z in range(len(sums.zones)):
                if values[z, 0] > 0 or len(sums.names) == 1:
                    writer.writerow([sums.zones.ids[z], _text(sums.zones.area_km2[z]), name, *map(_text, values[z])])


def _text(number: float) -> str:
    return "" if np.isnan(number) else f"{number:.9g}"


def write_gpkg(path: Path, sums: ZoneSums) -> None:
    """The zones as polygons, with their totals; of one map also its columns. Cut at 180 degrees."""
    import geopandas
    import pyogrio

    columns: dict[str, Any] = {
        sums.zones.column: list(sums.zones.ids),
        "zone_km2": sums.zones.area_km2,
        "modelled_km2": sums.modelled_km2.max(axis=1),
        "expected_richness": sums.richness,
        "species_above": sums.species_above,
    }
    if len(sums.names) == 1:
        columns |= {"species": sums.names[0], **{column: getattr(sums, column)[:, 0] for column in _COLUMNS}}
    geometry = [_multi(_within_180(region.geometry)) for region in sums.zones.regions]
    frame = geopandas.GeoDataFrame(columns, geometry=geometry, crs=WGS84)
    pyogrio.write_dataframe(frame, path, layer="zones", driver="GPKG")


def _multi(geometry: shapely.Geometry) -> shapely.MultiPolygon:
    parts = [p for part in shapely.get_parts(geometry) for p in shapely.get_parts(part)]
    return shapely.MultiPolygon([p for p in parts if isinstance(p, shapely.Polygon)])
