"""Range data: where species are present, as places with labels.

Two kinds of ranges are read: presence on an equal-area raster (PHYLACINE, about 96 km cells) and
polygons (Little's tree atlas). Places are drawn inside the raster's cells, so that a model sees
every part of a cell and not only its centre. Positions are (lon, lat) degrees throughout.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyproj
import shapely

from sdm.errors import LayerError


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
    def phylacine(cls, folder: str | Path, keep: set[str]) -> RangeRaster:
        """PHYLACINE 1.2 current ranges of the species in `keep` (names with a space).

        `folder` holds the release's GeoTIFFs (`Genus_epithet.tif`, 0 and 1), or the same packed into
        `phylacine_current_ranges.npz`. Raises LayerError when it holds neither.
        """
        path = Path(folder) / "phylacine_current_ranges.npz"
        if not path.is_file():
            return cls._from_rasters(Path(folder), keep)
        z = np.load(path)
        shape = tuple(int(v) for v in z["shape"])
        names = [str(s).replace("_", " ") for s in z["species"]]
        rows = [i for i, n in enumerate(names) if n in keep and z["n_cells"][i] > 0]
        bits = np.unpackbits(z["packed"][rows], axis=1)[:, : shape[0] * shape[1]]
        return cls(
            [names[i] for i in rows],
            np.packbits(bits.T, axis=1),
            shape,
            tuple(float(v) for v in z["transform"]),
            str(z["crs_wkt"]),
        )

    @classmethod
    def _from_rasters(cls, folder: Path, keep: set[str]) -> RangeRaster:
        import rasterio

        names, rows, grid = [], [], None
        for path in sorted(folder.glob("*_*.tif")):
            name = path.stem.replace("_", " ")
            if name not in keep:
                continue
            with rasterio.open(path) as file:
                here = (file.shape, tuple(file.transform)[:6], file.crs.to_wkt())
                grid = grid or here
                if here != grid:
                    raise LayerError(f"range raster {str(path)!r} is not on the grid of the others in its folder.")
                present = file.read(1) == 1
            if present.any():
                names.append(name)
                rows.append(present.ravel())
        if grid is None:
            raise LayerError(
                f"folder {str(folder)!r} holds no range of a species of the model; put PHYLACINE's current ranges "
                "(Genus_epithet.tif, or phylacine_current_ranges.npz) there: [data] phylacine in the recipe names it."
            )
        return cls(names, np.packbits(np.array(rows).T, axis=1), grid[0], grid[1], grid[2])

    def positions(self, cells: np.ndarray, u: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(lon, lat) of places at fractions (u east, v south) of cells, all (N,); NaN off the globe."""
        row, col = np.divmod(cells, self.shape[1])
        dx, _, x0, _, dy, y0 = self.transform
        inverse = pyproj.Transformer.from_crs(pyproj.CRS.from_wkt(self.crs), 4326, always_xy=True)
        lon, lat = inverse.transform(x0 + (col + u) * dx, y0 + (row + v) * dy)
        bad = ~(np.isfinite(lon) & np.isfinite(lat))
        return np.where(bad, np.nan, lon), np.where(bad, np.nan, lat)

    def labels(self, cells: np.ndarray) -> np.ndarray:
        """Presence (N, species) uint8 of all species in cells."""
        return np.unpackbits(self.presence[cells], axis=1)[:, : len(self.species)]


@dataclass(frozen=True)
class RangePolygons:
    """Presence of species as polygons, (lon, lat)."""

    species: list[str]
    geometry: np.ndarray

    @classmethod
    def read(cls, path: str | Path) -> RangePolygons:
        """GeoParquet with a `species` column; several rows of a species are united."""
        import geopandas

        frame = geopandas.read_parquet(path).to_crs(4326)
        frame = frame.assign(species=frame["species"].str.strip()).dissolve("species")
        return cls(list(frame.index), shapely.make_valid(frame.geometry.values))

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


@dataclass(frozen=True)
class Places:
    """Places drawn once, with everything a training step reads, row by row.

    `lonlat` (P, 2) float64; `cell` (P,) index into the raster; `start`, `count` (cells,) where the
    places of a cell lie; `environment` (P, inputs) raw or standardised float32; `crops`
    (P, size, size, 3) uint8; `trees` (P, ceil(T / 8)) packed polygon labels; `land` (cells,) bool.
    """

    lonlat: np.ndarray
    cell: np.ndarray
    start: np.ndarray
    count: np.ndarray
    land: np.ndarray


def draw_places(
    raster: RangeRaster,
    land_mask: Callable[[np.ndarray, np.ndarray], np.ndarray],
    polygons: RangePolygons | None,
    per_land: int,
    per_tree: int,
    per_sea: int,
    seed: int,
) -> Places:
    """Uniform random places in every cell that lies on the globe; more on land, most where polygons are.

    `land_mask` is a function (lon, lat) -> bool. A cell counts as land when any of 16 places in it does.
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
    if polygons is not None:
        west, south, east, north = polygons.bounds
        lon, lat = lon.reshape(n, 16)[:, 0], lat.reshape(n, 16)[:, 0]
        with np.errstate(invalid="ignore"):
            near = (lon >= west) & (lon <= east) & (lat >= south) & (lat <= north)
        count = np.where(land & near, per_tree, count)
    count = np.where(finite, count, 0)
    cell = np.repeat(np.arange(n), count)
    lon, lat = raster.positions(cell, rng.random(cell.size), rng.random(cell.size))
    # A jittered place can fall off the globe at the very top of the raster; put it back in the middle.
    bad = ~np.isfinite(lon)
    if bad.any():
        half = np.full(bad.sum(), 0.5)
        lon[bad], lat[bad] = raster.positions(cell[bad], half, half)
    start = np.concatenate([[0], np.cumsum(count)[:-1]])
    return Places(np.stack([lon, lat], axis=1), cell, start, count, land)
