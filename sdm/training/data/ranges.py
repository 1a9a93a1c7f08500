"""Range maps: where species are present, on an equal-area raster (PHYLACINE, cells of about 96 km) or as polygons.

Positions are (lon, lat) degrees throughout.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyproj
import shapely

from sdm.errors import LayerError
from sdm.files.vectors import read_features
from sdm.layers.raster import open_raster
from sdm.training.data.records import REMEDY, one_line

PACKED = "phylacine_current_ranges.npz"
Grid = tuple[tuple[int, int], tuple[float, ...], str]
"""Shape (rows, columns), transform, and CRS as WKT."""


@dataclass(frozen=True)
class RangeRaster:
    """Presence of species on an equal-area grid."""

    species: list[str]
    presence: np.ndarray
    """(cells, ceil(species / 8)) packed bits; cells in row-major order."""
    shape: tuple[int, int]
    """(rows, columns)."""
    transform: tuple[float, ...]
    """(x step, 0, x0, 0, y step, y0)."""
    crs: str
    """WKT."""

    @classmethod
    def phylacine(cls, folder: str | Path, keep: Iterable[str] | Mapping[str, str]) -> RangeRaster:
        """Current ranges of PHYLACINE 1.2, or rasters in the same layout.

        `keep` has the names to read, with a space, or {name in the folder: name in the result}; ranges that get the
        same name are united. `folder` holds GeoTIFFs (`Genus_epithet.tif`, 0 and 1), or the same packed into
        `phylacine_current_ranges.npz`. Raises LayerError when it holds neither, or files that cannot be used.
        """
        known = dict(keep) if isinstance(keep, Mapping) else {name: name for name in keep}
        packed = Path(folder) / PACKED
        if not packed.is_file():
            return cls._from_rasters(Path(folder), known)
        z = _packed(packed)
        height, width = (int(v) for v in z["shape"])
        n = height * width
        names = _packed_names(z)
        rows = [i for i, name in enumerate(names) if name in known]
        if not rows:
            raise _no_range(folder)
        bits = np.unpackbits(z["packed"][rows], axis=1)[:, :n]
        species, united = _united([known[names[i]] for i in rows], bits)
        return cls(
            species,
            np.packbits(united.T, axis=1),
            (height, width),
            tuple(float(v) for v in z["transform"]),
            str(z["crs_wkt"]),
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
        """The files that `phylacine` reads in a folder."""
        packed = Path(folder) / PACKED
        return [packed] if packed.is_file() else sorted(Path(folder).glob("*_*.tif"))

    @classmethod
    def _from_rasters(cls, folder: Path, known: Mapping[str, str]) -> RangeRaster:
        names: list[str] = []
        rows: list[np.ndarray] = []
        grid: Grid | None = None
        for path in cls.files(folder):
            name = known.get(path.stem.replace("_", " "))
            if name is None:
                continue
            present, own_grid = _presence(path)
            grid = grid or own_grid
            if own_grid != grid:
                raise LayerError(f"range raster {str(path)!r} is not on the grid of the others in its folder.")
            if present.any():
                names.append(name)
                rows.append(present.ravel())
        if grid is None or not rows:
            raise _no_range(folder)
        species, united = _united(names, np.array(rows))
        return cls(species, np.packbits(united.T, axis=1), grid[0], grid[1], grid[2])

    def positions(self, cells: np.ndarray, u: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(lon, lat) at fractions of cells (u eastward, v southward), all (N,); NaN off the globe."""
        row, col = np.divmod(cells, self.shape[1])
        dx, _, x0, _, dy, y0 = self.transform
        inverse = pyproj.Transformer.from_crs(pyproj.CRS.from_wkt(self.crs), 4326, always_xy=True)
        lon, lat = inverse.transform(x0 + (col + u) * dx, y0 + (row + v) * dy)
        bad = ~(np.isfinite(lon) & np.isfinite(lat))
        return np.where(bad, np.nan, lon), np.where(bad, np.nan, lat)

    def cells(self, lon: np.ndarray, lat: np.ndarray) -> np.ndarray:
        """(N,) number of the cell that holds each position, -1 off the raster."""
        forward = pyproj.Transformer.from_crs(4326, pyproj.CRS.from_wkt(self.crs), always_xy=True)
        x, y = forward.transform(lon, lat)
        dx, _, x0, _, dy, y0 = self.transform
        with np.errstate(invalid="ignore"):
            col, row = np.floor((np.asarray(x) - x0) / dx), np.floor((np.asarray(y) - y0) / dy)
            on = (col >= 0) & (col < self.shape[1]) & (row >= 0) & (row < self.shape[0])
        return np.where(on, np.where(on, row, 0) * self.shape[1] + np.where(on, col, 0), -1).astype(np.int64)

    def at(self, species: int, lon: np.ndarray, lat: np.ndarray) -> np.ndarray:
        """Presence (N,) uint8 of one species, by its index, at positions; 0 off the raster."""
        cells = self.cells(lon, lat)
        return np.where(cells >= 0, self.labels_of(species)[np.maximum(cells, 0)], 0).astype(np.uint8)

    def labels_of(self, species: int) -> np.ndarray:
        """Presence (cells,) bool of one species, by its index, in all cells."""
        return (self.presence[:, species // 8] >> (7 - species % 8) & 1).astype(bool)

    def select(self, species: list[str]) -> RangeRaster:
        """The ranges of some of the species."""
        columns = [self.labels_of(self.species.index(name)) for name in species]
        bits = np.stack(columns, axis=1) if columns else np.zeros((len(self.presence), 0), bool)
        return replace(self, species=list(species), presence=np.packbits(bits, axis=1))

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
        raise LayerError(f"ranges {str(path)!r} cannot be read: {one_line(error)}.") from error
    return z


def _packed_names(z: dict[str, np.ndarray]) -> list[str]:
    """Names with a space, "" for an empty range."""
    return [str(s).replace("_", " ") if n else "" for s, n in zip(z["species"], z["n_cells"], strict=True)]


def _presence(path: Path) -> tuple[np.ndarray, Grid]:
    """(presence (rows, columns) bool, (shape, transform, CRS)) of a raster of 0 and 1; nodata is absence."""
    import rasterio

    try:
        with open_raster(path, "range raster") as file:
            values, t, crs = file.read(1, masked=True), file.transform, file.crs
    except rasterio.RasterioIOError as error:
        raise LayerError(f"range raster {str(path)!r} cannot be read: {one_line(error)}.") from error
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
    height, width = values.shape
    return values == 1, ((height, width), tuple(t)[:6], crs.to_wkt())


def _united(names: list[str], bits: np.ndarray) -> tuple[list[str], np.ndarray]:
    """(distinct names, presence (names, cells)) of rows (N, cells); rows of the same name are united."""
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
    """Presence of species as polygons with (lon, lat) vertices."""

    species: list[str]
    geometry: np.ndarray

    @classmethod
    def read(cls, path: str | Path, column: str = "species") -> RangePolygons:
        """Read a vector file with a CRS and a column of species; several rows of a species are united.

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
        return cls(list(frame.index), np.asarray(shapely.make_valid(frame.geometry.values)))

    def renamed(self, names: dict[str, str]) -> RangePolygons:
        """The species with an entry {name: new name}; polygons that get the same name are united."""
        together: dict[str, list] = {}
        for name, shape in zip(self.species, self.geometry, strict=True):
            if name in names:
                together.setdefault(names[name], []).append(shape)
        shapes = [s[0] if len(s) == 1 else shapely.union_all(s) for s in together.values()]
        return RangePolygons(list(together), np.array(shapes, dtype=object))

    @property
    def bounds(self) -> np.ndarray:
        """(west, south, east, north) of all polygons, (4,)."""
        return shapely.total_bounds(self.geometry)

    def labels(self, lon: np.ndarray, lat: np.ndarray) -> np.ndarray:
        """Presence (N, species) uint8 at positions (N,), (N,)."""
        out = np.zeros((lon.size, len(self.species)), dtype=np.uint8)
        tree = shapely.STRtree(shapely.points(lon, lat))
        polygon, point = tree.query(self.geometry, predicate="intersects")
        out[point, polygon] = 1
        return out
