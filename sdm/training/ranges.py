"""Range data: where species are present, as places with labels.

Two kinds of ranges are read: presence on an equal-area raster (PHYLACINE, about 96 km cells) and
polygons (Little's tree atlas). Places are drawn inside the raster's cells, so that a model sees
every part of a cell and not only its centre. Positions are (lon, lat) degrees throughout.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyproj
import shapely

from sdm.errors import LayerError
from sdm.files.vectors import read_features
from sdm.training.labels import Places
from sdm.training.tables import REMEDY, in_one_line

PACKED = "phylacine_current_ranges.npz"


@dataclass(frozen=True)
class RangeRaster:
    """Presence of species on an equal-area grid.

    `presence` is (cells, ceil(species / 8)) packed bits; `crs`, `transform` (x step, 0, x0, 0,
    y step, y0) and `shape` (rows, columns) place the cells.
    """

    species: list[str]
    presence: np.ndarray
    shape: tuple[int, int]
    transform: tuple[float, ...]
    crs: str

    @classmethod
    def phylacine(cls, folder: str | Path, keep: Iterable[str] | Mapping[str, str]) -> RangeRaster:
        """PHYLACINE 1.2 current ranges of the species in `keep`: names with a space, or {such a name: our name}.

        `folder` holds the release's GeoTIFFs (`Genus_epithet.tif`, 0 and 1), or the same packed into
        `phylacine_current_ranges.npz`. Ranges of one name are united. Raises LayerError when it holds neither, or what
        is there cannot be used.
        """
        known = dict(keep) if isinstance(keep, Mapping) else {name: name for name in keep}
        packed = Path(folder) / PACKED
        if not packed.is_file():
            return cls._from_rasters(Path(folder), known)
        z = _packed(packed)
        shape, n = tuple(int(v) for v in z["shape"]), int(np.prod(z["shape"]))
        names = _packed_names(z)
        rows = [i for i, name in enumerate(names) if name in known]
        if not rows:
            raise _no_range(folder)
        bits = np.unpackbits(z["packed"][rows], axis=1)[:, :n]
        species, united = _united([known[names[i]] for i in rows], bits)
        return cls(
            species, np.packbits(united.T, axis=1), shape, tuple(float(v) for v in z["transform"]), str(z["crs_wkt"])
        )

    @classmethod
    def names(cls, folder: str | Path) -> list[str]:
        """Names, with a space, of the ranges in a folder."""
        packed = Path(folder) / PACKED
        if packed.is_file():
            return _packed_names(_packed(packed))
        return [path.stem.replace("_", " ") for path in cls.files(folder)]

    @staticmethod
    def files(folder: str | Path) -> list[Path]:
        """What `phylacine` reads in a folder."""
        packed = Path(folder) / PACKED
        return [packed] if packed.is_file() else sorted(Path(folder).glob("*_*.tif"))

    @classmethod
    def _from_rasters(cls, folder: Path, known: Mapping[str, str]) -> RangeRaster:
        names, rows, grid = [], [], None
        for path in cls.files(folder):
            name = known.get(path.stem.replace("_", " "))
            if name is None:
                continue
            present, here = _presence(path)
            grid = grid or here
            if here != grid:
                raise LayerError(f"range raster {str(path)!r} is not on the grid of the others in its folder.")
            if present.any():
                names.append(name)
                rows.append(present.ravel())
        if grid is None or not rows:
            raise _no_range(folder)
        species, united = _united(names, np.array(rows))
        return cls(species, np.packbits(united.T, axis=1), grid[0], grid[1], grid[2])

    def positions(self, cells: np.ndarray, u: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(lon, lat) of places at fractions (u east, v south) of cells, all (N,); NaN off the globe."""
        row, col = np.divmod(cells, self.shape[1])
        dx, _, x0, _, dy, y0 = self.transform
        inverse = pyproj.Transformer.from_crs(pyproj.CRS.from_wkt(self.crs), 4326, always_xy=True)
        lon, lat = inverse.transform(x0 + (col + u) * dx, y0 + (row + v) * dy)
        bad = ~(np.isfinite(lon) & np.isfinite(lat))
        return np.where(bad, np.nan, lon), np.where(bad, np.nan, lat)

    def cells(self, lon: np.ndarray, lat: np.ndarray) -> np.ndarray:
        """(N,) the cell that holds each position, -1 off the raster."""
        forward = pyproj.Transformer.from_crs(4326, pyproj.CRS.from_wkt(self.crs), always_xy=True)
        x, y = forward.transform(lon, lat)
        dx, _, x0, _, dy, y0 = self.transform
        with np.errstate(invalid="ignore"):
            col, row = np.floor((np.asarray(x) - x0) / dx), np.floor((np.asarray(y) - y0) / dy)
            on = (col >= 0) & (col < self.shape[1]) & (row >= 0) & (row < self.shape[0])
        return np.where(on, np.where(on, row, 0) * self.shape[1] + np.where(on, col, 0), -1).astype(np.int64)

    def at(self, species: int, lon: np.ndarray, lat: np.ndarray) -> np.ndarray:
        """Presence (N,) uint8 of the species of a number at positions; 0 off the raster."""
        cells = self.cells(lon, lat)
        bits = self.presence[np.maximum(cells, 0), species // 8] >> (7 - species % 8) & 1
        return np.where(cells >= 0, bits, 0).astype(np.uint8)

    def labels(self, cells: np.ndarray) -> np.ndarray:
        """Presence (N, species) uint8 of all species in cells."""
        return np.unpackbits(self.presence[cells], axis=1)[:, : len(self.species)]


def _packed(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a packed archive. Raises LayerError."""
    try:
        with np.load(path, allow_pickle=False) as file:
            z = {k: file[k] for k in ("species", "packed", "n_cells", "shape", "transform", "crs_wkt")}
        cells = int(np.prod(z["shape"]))
        if z["packed"].shape != (len(z["species"]), -(-cells // 8)) or len(z["n_cells"]) != len(z["species"]):
            raise ValueError("its arrays do not fit together")
    except Exception as error:  # a damaged archive can fail in any way
        raise LayerError(f"ranges {str(path)!r} cannot be read: {in_one_line(error)}.") from error
    return z


def _packed_names(z: dict[str, np.ndarray]) -> list[str]:
    """Names with a space, "" for an empty range."""
    return [str(s).replace("_", " ") if n else "" for s, n in zip(z["species"], z["n_cells"], strict=True)]


def _presence(path: Path) -> tuple[np.ndarray, tuple]:
    """(presence (rows, columns) bool, (shape, transform, CRS)) of a raster of 0 and 1; nodata is absence."""
    import rasterio

    try:
        with rasterio.open(path) as file:
            values, t, crs = file.read(1, masked=True), file.transform, file.crs
    except rasterio.RasterioIOError as error:
        raise LayerError(f"range raster {str(path)!r} cannot be read: {in_one_line(error)}.") from error
    if crs is None:
        raise LayerError(f"range raster {str(path)!r} has no CRS; assign one (for example with gdal_edit.py -a_srs).")
    if t.b or t.d:
        raise LayerError(f"range raster {str(path)!r} is rotated; warp it to a grid along its axes (gdalwarp).")
    values = values.filled(0) if values.dtype.kind != "f" else np.nan_to_num(values.filled(0))
    odd = values[(values != 0) & (values != 1)]
    if odd.size:
        raise LayerError(
            f"range raster {str(path)!r} holds the value {odd[0]:g}; present is 1 and absent 0 (or nodata)."
        )
    return values == 1, (values.shape, tuple(t)[:6], crs.to_wkt())


def _united(names: list[str], bits: np.ndarray) -> tuple[list[str], np.ndarray]:
    """(names, each once, presence (names, cells)) of rows (N, cells), those of one name united."""
    species = list(dict.fromkeys(names))
    if len(species) == len(names):
        return species, bits
    number = {s: k for k, s in enumerate(species)}
    out = np.zeros((len(species), bits.shape[1]), bits.dtype)
    np.maximum.at(out, [number[n] for n in names], bits)
    return species, out


def _no_range(folder: str | Path) -> LayerError:
    return LayerError(
        f"folder {str(folder)!r} holds no range of a species of the model; put rasters of 0 and 1, one per "
        "species (Genus_epithet.tif, as PHYLACINE's), or phylacine_current_ranges.npz there."
    )


@dataclass(frozen=True)
class RangePolygons:
    """Presence of species as polygons, (lon, lat)."""

    species: list[str]
    geometry: np.ndarray

    @classmethod
    def read(cls, path: str | Path, column: str = "species") -> RangePolygons:
        """Any vector file with a CRS and a column of species; several rows of a species are united.

        Raises LayerError naming the file and what it lacks.
        """
        frame = read_features(path, "data source", REMEDY)
        if column not in frame:
            raise LayerError(
                f"polygons {str(path)!r} have no column {column!r}; species = names it "
                f"(there are {', '.join(c for c in frame.columns if c != frame.geometry.name)})."
            )
        if not set(frame.geom_type.dropna()) & {"Polygon", "MultiPolygon"}:
            raise LayerError(f"polygons {str(path)!r} hold no polygon; points are of kind 'occurrences' or 'surveys'.")
        frame = frame[frame[column].notna()].to_crs(4326)
        frame = frame.assign(species=frame[column].astype(str).str.strip()).dissolve("species")
        return cls(list(frame.index), shapely.make_valid(frame.geometry.values))

    def renamed(self, names: dict[str, str]) -> RangePolygons:
        """Those with an entry {name: new name}; polygons of the same new name are united."""
        together: dict[str, list] = {}
        for name, shape in zip(self.species, self.geometry, strict=True):
            if name in names:
                together.setdefault(names[name], []).append(shape)
        shapes = [s[0] if len(s) == 1 else shapely.union_all(s) for s in together.values()]
        return RangePolygons(list(together), np.array(shapes, dtype=object))

    @property
    def bounds(self) -> np.ndarray:
        """(west, south, east, north) of all polygons."""
        return shapely.total_bounds(self.geometry)

    def labels(self, lon: np.ndarray, lat: np.ndarray) -> np.ndarray:
        """Presence (N, species) uint8 at positions (N,), (N,)."""
        out = np.zeros((lon.size, len(self.species)), dtype=np.uint8)
        tree = shapely.STRtree(shapely.points(lon, lat))
        which, where = tree.query(self.geometry, predicate="intersects")
        out[where, which] = 1
        return out


def draw_places(
    raster: RangeRaster,
    land_mask: Callable[[np.ndarray, np.ndarray], np.ndarray],
    denser: Sequence[tuple[tuple[float, float, float, float], int, float]],
    per_land: int,
    per_sea: int,
    land_share: float,
    seed: int,
) -> Places:
    """Uniform random places in every cell that lies on the globe, a group a cell: `origin` is the cell.

    `land_mask` is a function (lon, lat) -> bool; a cell counts as land when any of 16 places in it does. Of the
    places drawn in training, `land_share` are on land. `denser`: ((west, south, east, north), places per cell of
    land, how much likelier such a cell is drawn), for ranges finer than the raster.
    """
    rng = np.random.default_rng(seed)
    n = raster.shape[0] * raster.shape[1]
    probe = np.repeat(np.arange(n), 16)
    lon, lat = raster.positions(probe, rng.random(probe.size), rng.random(probe.size))
    finite = np.isfinite(lon).reshape(n, 16).all(axis=1)
    land = np.zeros(probe.size, dtype=bool)
    ok = np.isfinite(lon)
    land[ok] = land_mask(lon[ok], lat[ok])
    land = land.reshape(n, 16).any(axis=1)
    count = np.where(land, per_land, per_sea)
    weight = np.ones(n)
    lon, lat = lon.reshape(n, 16)[:, 0], lat.reshape(n, 16)[:, 0]
    for (west, south, east, north), places, more in denser:
        with np.errstate(invalid="ignore"):
            near = (lon >= west) & (lon <= east) & (lat >= south) & (lat <= north)
        count = np.where(land & near, np.maximum(count, places), count)
        weight[near] *= more
    count = np.where(finite, count, 0)
    cell = np.repeat(np.arange(n), count)
    lon, lat = raster.positions(cell, rng.random(cell.size), rng.random(cell.size))
    # A jittered place can fall off the globe at the very top of the raster; put it back in the middle.
    bad = ~np.isfinite(lon)
    if bad.any():
        half = np.full(bad.sum(), 0.5)
        lon[bad], lat[bad] = raster.positions(cell[bad], half, half)
    some = np.flatnonzero(count)
    for part, share in ((land[some], land_share), (~land[some], 1 - land_share)):
        if part.any() and not part.all():
            weight[some[part]] *= share / weight[some[part]].sum()
    half = np.full(some.size, 0.5)
    return Places(
        np.stack([lon, lat], axis=1),
        np.zeros(cell.size, np.int8),
        np.zeros(cell.size, np.int8),
        cell,
        np.concatenate([[0], np.cumsum(count[some])[:-1]]).astype(np.int64),
        count[some],
        weight[some],
        np.stack(raster.positions(some, half, half), axis=1),
    )
