"""Open a region index and ask it: embeddings of a window, maps of species."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sdm.engine.cluster import processors
from sdm.engine.inputs import check_month, layer_fingerprints
from sdm.engine.places import Places, Target
from sdm.engine.targets import score_of, target_of
from sdm.errors import BoxError, RegionIndexError, RequestError, TooLargeError
from sdm.grid import BBox, Grid, Region, Tile, make_grid, parse_crs
from sdm.index import store
from sdm.index.encoding import cosines, decode
from sdm.layers.landmask import KINDS
from sdm.models.bundled import Model, list_models
from sdm.names import Resolution
from sdm.request.choices import parse_device, parse_modalities
from sdm.request.months import month_name, parse_month, when

if TYPE_CHECKING:
    import xarray as xr

CACHE_BYTES = 1 << 30
"""Memory for encoded tiles, by default: about four megapixels of 256 numbers as int8."""


@dataclass(frozen=True)
class Encoded:
    """The pixels that one tile holds, as they are stored."""

    codes: np.ndarray
    """(N, dim) int8 or float16."""
    scales: np.ndarray
    """(N,) float32."""
    pixels: np.ndarray
    """(N,) int32: flat indices into the tile, ascending."""
    land: np.ndarray
    """(N,) boolean."""

    @property
    def nbytes(self) -> int:
        """Memory held."""
        return self.codes.nbytes + self.scales.nbytes + self.pixels.nbytes + self.land.nbytes


class Index:
    """A region encoded once: the unit summed embedding of each of its pixels.

    Thread-safe, read-only. A copy sent to another process opens the index again there.
    """

    def __init__(
        self, url: str, header: store.Header, group: Any, *, storage_options: Mapping[str, Any] | None = None,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:  # fmt: skip
        """See `Index.open`."""
        self.url, self.identity, self.notes = url, header.identity, header.notes
        self.digest = header.digest
        """Identity of the whole index: model, layers, grid, region, modalities, mask, encoding."""
        self.grid: Grid = header.grid()
        """The pixels; a tile is a chunk of the store."""
        self._group, self._storage_options = group, storage_options
        self._tiles = _Cache(cache_bytes)

    @classmethod
    def open(
        cls, url: str | Path, storage_options: Mapping[str, Any] | None = None, *, cache_bytes: int = CACHE_BYTES
    ) -> Index:
        """Open the index at a path, or at an fsspec URL (`s3://`, `gs://`, `https://`, `memory://`).

        `storage_options`: for fsspec, credentials for example. `cache_bytes`: memory that encoded tiles may
        take. Raises RegionIndexError for what is not a complete index of this format.
        """
        header, group = store.open_store(str(url), storage_options)
        return cls(str(url), header, group, storage_options=storage_options, cache_bytes=cache_bytes)

    def __reduce__(self):
        # A relative path means another place in another process.
        url = self.url if "://" in self.url else str(Path(self.url).absolute())
        return _reopen, (url, self._storage_options, self._tiles.budget, self.digest)

    @property
    def model_name(self) -> str:
        """Name of the model that encoded it."""
        return self.identity["model"]["name"]

    @property
    def model_digest(self) -> str:
        """Digest of the model that encoded it."""
        return self.identity["model"]["digest"]

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modalities that were added."""
        return tuple(self.identity["modalities"])

    @property
    def held(self) -> tuple[str, ...]:
        """The modalities whose own embeddings are stored beside the sum."""
        return store.held(self.identity)

    @property
    def mask(self) -> str:
        """Which pixels are held: land, sea, or none for both."""
        return self.identity["mask"]

    @property
    def encoding(self) -> str:
        """int8 or float16."""
        return self.identity["encoding"]

    @property
    def dim(self) -> int:
        """Length of the embeddings."""
        return self.identity["dim"]

    @property
    def month(self) -> int:
        """The month it was encoded for, 1 to 12; 0: the whole year."""
        return self.identity.get("month", 0)

    @property
    def complete(self) -> bool:
        """Always true: an index gets its name when its last tile is written."""
        return True

    @property
    def title(self) -> str:
        """A name for people."""
        west, south, east, north = self.grid.bbox
        season = f" {when(self.month)}" if self.month else ""
        return f"{self.model_name}{season}, {west:g} {south:g} {east:g} {north:g}"

    # The model that made it ----------------------------------------------------------------------

    def check(self, model: Model, environment: Sequence[str | Path] = (), satellite: str | Path | None = None) -> None:
        """Raise RegionIndexError unless the index was made with this model and these layers.

        `environment`, `satellite`: the user's own rasters, where any are meant to be in the index. Bundled
        layers are compared with those of this installation.
        """
        if model.digest != self.model_digest:
            raise RegionIndexError(
                f"region index {self.url!r} was made with model {self.model_name!r} ({self.model_digest}), not with "
                f"{model.name!r} ({model.digest}); give that model, or build the index again."
            )
        mine = self.identity["layers"]
        now = layer_fingerprints(self.modalities, [str(p) for p in environment], satellite and str(satellite))
        for name in sorted({*mine, *now}):
            was, given = mine.get(name), now.get(name)
            if was == given or (was and was.startswith("own:") and not self._given(name, environment, satellite)):
                continue  # rasters of the index's own need not be at hand to use it
            layer = name.removesuffix("_own")
            if given is None or given.startswith("own:"):
                raise RegionIndexError(
                    f"region index {self.url!r} was not made with the {layer} rasters given; leave --{layer} out, or "
                    "build the index again with them."
                )
            raise RegionIndexError(
                f"region index {self.url!r} was made with another bundled {layer} layer than this version of "
                "taxabind-map has; build the index again."
            )

    @staticmethod
    def _given(name: str, environment: Sequence[Any], satellite: Any) -> bool:
        return bool(environment) if name.startswith("environment") else satellite is not None

    def find_model(self, model: Model | str | Path | None = None) -> Model:
        """The model that made the index: the one given, else a bundled one. Checked; raises RegionIndexError."""
        if model is None:
            found = next((m for m in list_models() if m.digest == self.model_digest), None)
            if found is None:
                raise RegionIndexError(
                    f"region index {self.url!r} was made with model {self.model_name!r} ({self.model_digest}), which "
                    "is not bundled here; give its folder with --model, or build the index again."
                )
        else:
            found = model if isinstance(model, Model) else Model.open(model)
        self.check(found)
        return found

    @cached_property
    def model(self) -> Model:
        """The bundled model that made the index."""
        return self.find_model()

    def places(self, model: Model, modalities: Sequence[str] | None = None, device: str = "cpu") -> Places:
        """The same places for the engine, to encode some of them again.

        Raises RegionIndexError for an index made with the user's own rasters, whose place it does not know.
        """
        if any(value.startswith("own:") for value in self.identity["layers"].values()):
            raise RegionIndexError(f"region index {self.url!r} was made with rasters that are not bundled.")
        return Places(
            model=model, grid=self.grid, modalities=tuple(modalities or self.modalities), device=device,
            month=self.month,
        )  # fmt: skip

    def places_in(
        self, model: Model, bbox: BBox | Sequence[float] | None = None, region: Region | None = None, *,
        crs: str | int | None = None, resolution: float | None = None, modalities: str | Sequence[str] | None = None,
        satellite: str | Path | None = None, environment: Sequence[str | Path] = (), device: str = "auto",
        step: int | None = None, satellite_step: int | None = None, month: int | str | None = None,
        max_pixels: int = 100_000_000,
    ) -> Places:  # fmt: skip
        """The places of a map whose embeddings are taken from the index: of a box, a region, or all.

        Options are those of `sdm.plan`: what differs from the index is refused, by RequestError, or by
        RegionIndexError for another model or other layers.
        """
        self.check(model, environment, satellite)
        check_month(model, parse_month(month))
        given = {
            "crs": (None if crs is None else parse_crs(crs), self.grid.crs),
            "resolution": (None if resolution is None else float(resolution), self.grid.resolution),
            "modalities": (None if modalities is None else parse_modalities(modalities), self.modalities),
            "step": (step, None),
            "satellite-step": (satellite_step, None),
            "month": (None if month is None else month_name(parse_month(month)), month_name(self.month)),
        }
        for name, (asked, own) in given.items():
            if asked is not None and asked != own:
                own = ",".join(own) if isinstance(own, tuple) else own
                raise RequestError(
                    f"--{name} is given, but region index {self.url!r} was built with {own or 'none'}; leave it out, "
                    "or build another index."
                )
        grid, (row, col) = self.window(bbox, region)
        if grid.pixels > max_pixels:
            raise TooLargeError(
                f"the map would have {grid.pixels:,} pixels, more than the limit of {max_pixels:,}; choose a smaller "
                "box, or raise --max-pixels."
            )
        return Places(
            model=model, grid=grid, modalities=self.modalities, device=parse_device(device),
            source=Window(self, row, col), month=self.month,
        )  # fmt: skip

    # Embeddings ----------------------------------------------------------------------------------

    def embeddings(self, rows: slice, cols: slice, modality: str | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Unit embeddings of the pixels held in a window of the grid; whole tiles are fastest.

        `modality`: its own embedding in place of the sum, where the index holds it (`held`). Returns
        (embeddings (N, dim) float32, pixels (N,) int64: flat indices into the window, ascending).
        Raises RequestError for a window outside the grid, RegionIndexError for a modality not held or a
        store that cannot be read.
        """
        rows, cols = self._window(rows, cols)
        if modality is not None and modality not in self.held:
            raise RegionIndexError(
                f"region index {self.url!r} does not hold the embedding of {modality!r} alone; build it with --each."
            )
        parts = []
        for tile in self._overlapping(rows, cols):
            whole = tile.rows == rows and tile.cols == cols
            encoded = self._encoded(tile, modality, keep=not whole)
            inside, pixels = _crop(tile, encoded.pixels, rows, cols)
            parts.append((decode(encoded.codes[inside], encoded.scales[inside]), pixels))
        if len(parts) == 1:
            return parts[0]
        embeddings = np.concatenate([e for e, _ in parts])
        pixels = np.concatenate([p for _, p in parts])
        order = np.argsort(pixels)
        return embeddings[order], pixels[order]

    def values(self, targets: Sequence[Target], rows: slice, cols: slice) -> np.ndarray:
        """Value of each target at a window of the grid: (S, rows, columns) float32, NaN = not modelled.

        A pixel has the same bits through whatever window. Raises RegionIndexError for a target whose mask needs
        pixels that are not held.
        """
        rows, cols = self._window(rows, cols)
        out, vectors = self._begin(targets, rows, cols)
        for tile in self._overlapping(rows, cols):
            whole = tile.rows == rows and tile.cols == cols
            self._fill(out, tile, targets, vectors, rows, cols, keep=not whole)
        return out

    def _begin(self, targets: Sequence[Target], rows: slice, cols: slice) -> tuple[np.ndarray, np.ndarray]:
        """Values (S, rows, columns) not filled in yet, and the vectors (S, dim)."""
        for target in targets:
            self.check_mask(target.mask)
        out = np.full((len(targets), rows.stop - rows.start, cols.stop - cols.start), np.nan, dtype=np.float32)
        return out, np.stack([target.vector for target in targets])

    def _fill(self, out, tile, targets, vectors, rows: slice, cols: slice, keep: bool) -> None:
        """Values of one tile into the window `out` (S, rows, columns)."""
        encoded = self._encoded(tile, None, keep)
        if not encoded.pixels.size:
            return
        # Products of the whole tile, whatever part is asked for: their last bits depend on the shape.
        cos = cosines(encoded.codes, encoded.scales, vectors)
        inside, pixels = _crop(tile, encoded.pixels, rows, cols)
        land, flat = encoded.land[inside], out.reshape(len(out), -1)
        for k, target in enumerate(targets):
            shown = {"none": None, "land": land, "sea": ~land}[target.mask]
            if target.extent is not None:
                known = self._within(target.extent, tile)
                if known is not None:
                    known = known[encoded.pixels[inside]]
                    shown = known if shown is None else shown & known
            values = target.score.values(cos[k][inside])
            if shown is None:
                flat[k, pixels] = values
            else:
                flat[k, pixels[shown]] = values[shown]

    def _within(self, extent: tuple[float, float, float, float], tile: Tile) -> np.ndarray | None:
        """Boolean per pixel of a tile: inside (west, south, east, north) degrees; None: all are."""
        w, s, e, n = extent
        west, south, east, north = self.grid.bbox
        pad = 2 * self.grid.resolution if self.grid.is_geographic else 0.0
        if self.grid.is_geographic and w <= west - pad and e >= east + pad and s <= south - pad and n >= north + pad:
            return None
        lon, lat = self.grid.lonlat(
            np.arange(tile.rows.start, tile.rows.stop), np.arange(tile.cols.start, tile.cols.stop)
        )
        return ((lon >= w) & (lon <= e) & (lat >= s) & (lat <= n)).ravel()

    def check_mask(self, mask: str, what: str = "this species") -> None:
        """Raise RegionIndexError when a map with this mask needs pixels that the index does not hold."""
        if self.mask not in ("none", mask):
            raise RegionIndexError(
                f"region index {self.url!r} holds {self.mask} only, and {what} is mapped on "
                f"{'land and sea' if mask == 'none' else mask}; give --mask {self.mask} to map it there alone, or "
                "build an index with --mask none."
            )

    def _window(self, rows: slice, cols: slice) -> tuple[slice, slice]:
        for part, length in zip((rows, cols), self.grid.shape, strict=True):
            if part.step not in (None, 1) or not 0 <= (part.start or 0) < (part.stop or length) <= length:
                raise RequestError(f"window {part} does not lie within the {length} pixels of the index.")
        rows, cols = (slice(p.start or 0, p.stop or n) for p, n in zip((rows, cols), self.grid.shape, strict=True))
        return rows, cols

    def _overlapping(self, rows: slice, cols: slice) -> list[Tile]:
        side, (height, width) = self.grid.tile_size, self.grid.shape
        return [
            Tile((i, j), slice(i * side, min((i + 1) * side, height)), slice(j * side, min((j + 1) * side, width)))
            for i in range(rows.start // side, -(-rows.stop // side))
            for j in range(cols.start // side, -(-cols.stop // side))
        ]

    def encoded(
        self, rows: slice, cols: slice, modality: str | None = None, *, keep: bool = True
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What is stored of a window: codes (N, dim), scales (N,), pixels (N,), flat indices into the window.

        `keep`: a tile that is the whole window may stay in memory, as the others may.
        """
        parts = []
        for tile in self._overlapping(rows, cols):
            encoded = self._encoded(tile, modality, keep=keep or not (tile.rows == rows and tile.cols == cols))
            inside, pixels = _crop(tile, encoded.pixels, rows, cols)
            parts.append((encoded.codes[inside], encoded.scales[inside], pixels))
        if len(parts) == 1:
            return parts[0]
        return tuple(np.concatenate(arrays) for arrays in zip(*parts, strict=True))

    def _encoded(self, tile: Tile, modality: str | None, keep: bool) -> Encoded:
        return self._tiles.get((modality, tile.index), lambda: self._read(tile, modality), keep)

    def _read(self, tile: Tile, modality: str | None) -> Encoded:
        embedding, scale = store.names(modality)
        try:
            surface = self._group["surface"][tile.rows, tile.cols].ravel()
            if not (surface <= store.WATER).all():
                raise RegionIndexError(
                    f"region index {self.url!r} is damaged: tile {tile.index} is missing; build it again."
                )
            pixels = np.flatnonzero(surface != store.NOT_HELD).astype(np.int32)
            land = surface[pixels] == store.LAND
            if not pixels.size:
                return Encoded(
                    np.empty((0, self.dim), dtype=store.DTYPES[self.encoding]), np.empty(0, np.float32), pixels, land
                )
            scales = self._group[scale][tile.rows, tile.cols].ravel()[pixels]
            codes = self._group[embedding][tile.rows, tile.cols].reshape(surface.size, self.dim)
        except RegionIndexError:
            raise
        except Exception as error:
            raise RegionIndexError(
                f"region index {self.url!r}: tile {tile.index} cannot be read: {store.brief(error)}."
            ) from error
        # A chunk that is gone reads as zeros, which no embedding consists of.
        if not (np.isfinite(scales) & (scales > 0.0)).all() or not codes[pixels[0]].any():
            raise RegionIndexError(
                f"region index {self.url!r} is damaged: tile {tile.index} lacks embeddings; build it again."
            )
        return Encoded(codes if pixels.size == surface.size else codes[pixels], scales, pixels, land)

    # Maps ----------------------------------------------------------------------------------------

    def window(
        self, bbox: BBox | Sequence[float] | None = None, region: Region | None = None
    ) -> tuple[Grid, tuple[int, int]]:
        """The pixels of the index that cover a box (west, south, east, north; degrees), a region, or all.

        Returns their grid, masked to the region, and the row and column of its first pixel in the index.
        Raises BoxError when they reach out of the index.
        """
        if bbox is None and region is None:
            return self.grid, (0, 0)
        res, limit = self.grid.resolution, 1 << 62  # a box inside cannot be too large
        asked = make_grid(bbox, region, self.grid.crs, res, self.grid.tile_size, limit)
        a, b = self.grid.geobox.affine, asked.geobox.affine
        row, col = round((a.f - b.f) / res), round((b.c - a.c) / res)
        (height, width), (rows, cols) = self.grid.shape, asked.shape
        turn = 360.0 / res
        if self.grid.is_geographic and abs(turn - round(turn)) < 1e-6:
            # A box west of 180 may lie in an index that runs on past it, and the reverse.
            around = (col, col + round(turn), col - round(turn))
            col = next((c for c in around if 0 <= c <= width - cols), col)
        if row < 0 or col < 0 or row + rows > height or col + cols > width:
            raise BoxError(
                f"the box {_text(asked.bbox)} reaches out of region index {self.url!r}, which covers "
                f"{_text(self.grid.bbox)} (west south east north); choose a box inside, or build a larger index."
            )
        part = self.part(slice(row, row + rows), slice(col, col + cols), region, asked.bbox)
        return part, (row, col)

    def query(
        self,
        species: str | Resolution | np.ndarray | Sequence[str | Resolution | np.ndarray],
        bbox: BBox | Sequence[float] | None = None,
        *,
        region: Region | None = None,
        mask: str = "auto",
        model: Model | str | Path | None = None,
    ) -> xr.DataArray:
        """Map of a species over the index or a box in it: (y, x) float32, NaN = not modelled.

        `species`: a name, a resolved name, or a vector of the model's space (dim,); several give
        (species, y, x). `bbox`: (west, south, east, north), degrees; `region` masks its outside. `mask`:
        land, sea, none or auto (the species' habitat; of a vector, all that is held). `model`: where the index
        was made with one that is not bundled. CRS, transform and nodata are set for rioxarray and odc-geo.

        Raises SpeciesNameError, BoxError, and RegionIndexError when the index does not hold what is asked.
        """
        if mask not in KINDS:
            raise RequestError(f"mask {mask!r} is not known; choose one of {', '.join(KINDS)}.")
        opened = self.model if model is None else self.find_model(model)
        single = isinstance(species, str | Resolution) or (isinstance(species, np.ndarray) and species.ndim == 1)
        asked = [species] if single else list(species)
        labels, targets = zip(*(self._target(opened, one, mask) for one in asked), strict=True)
        grid, (row, col) = self.window(bbox, region)
        rows, cols = slice(row, row + grid.shape[0]), slice(col, col + grid.shape[1])
        values = self._map(targets, rows, cols)
        if region is not None:
            for tile in grid.tiles():
                values[:, tile.rows, tile.cols][:, ~grid.inside_region(tile)] = np.nan
        return _array(values, labels, targets, grid, single, self)

    def part(self, rows: slice, cols: slice, region: Region | None = None, asked: Sequence[float] = ()) -> Grid:
        """The grid of a window, with tiles of the same side; `asked`: the box it was asked for by."""
        return Grid(self.grid.geobox[rows, cols], self.grid.tile_size, region, tuple(asked or self.grid.bbox))

    def _target(self, model: Model, species: str | Resolution | np.ndarray, mask: str) -> tuple[str, Target]:
        if isinstance(species, np.ndarray):
            if species.shape != (self.dim,) or not np.isfinite(species).all() or not species.any():
                raise RequestError(f"embedding of shape {species.shape} is not a finite vector of {self.dim} numbers.")
            vector = (species / np.linalg.norm(species)).astype(np.float32)
            return "", Target(vector, score_of(model, self.modalities), self.mask if mask == "auto" else mask)
        resolution = species if isinstance(species, Resolution) else model.taxa.resolve(species)
        return resolution.taxon.name, target_of(model, resolution, self.modalities, mask)

    def _map(self, targets: Sequence[Target], rows: slice, cols: slice) -> np.ndarray:
        """`values`, tiles side by side, and kept in memory for the next species."""
        out, vectors = self._begin(targets, rows, cols)

        def one(tile: Tile) -> None:
            self._fill(out, tile, targets, vectors, rows, cols, True)

        with ThreadPoolExecutor(processors()) as pool:
            pool.submit(import_module, "rioxarray")  # half a second, the first time: meanwhile, not afterwards
            list(pool.map(one, self._overlapping(rows, cols)))
        return out

    def info(self) -> dict[str, Any]:
        """What `sdm index info` tells."""
        rows, cols = self.grid.shape
        return {
            "url": self.url, "digest": self.digest, "model": dict(self.identity["model"]),
            "modalities": list(self.modalities), "each": list(self.held), "mask": self.mask,
            "encoding": self.encoding, "dim": self.dim, "crs": self.grid.crs, "resolution": self.grid.resolution,
            "rows": rows, "columns": cols, "pixels": self.grid.pixels, "tiles": self.grid.tile_count,
            "tile_size": self.grid.tile_size, "bbox": list(self.grid.bbox), "layers": dict(self.identity["layers"]),
            "region": self.identity["region"], "month": self.month or None, **self.notes,
        }  # fmt: skip


_opened: dict[tuple, Index] = {}
_opening = threading.Lock()


def _reopen(url: str, storage_options, cache_bytes: int, digest: str) -> Index:
    # Once per process, however many tasks bring it along: they share what is in memory.
    key = (url, repr(storage_options), cache_bytes, digest)
    with _opening:
        if key not in _opened:
            index = Index.open(url, storage_options, cache_bytes=cache_bytes)
            if index.digest != digest:
                raise RegionIndexError(f"region index {url!r} is not the one it was; it has been replaced meanwhile.")
            _opened.clear()
            _opened[key] = index
        return _opened[key]


@dataclass(frozen=True)
class Window:
    """A part of an index as the source of a map's tiles; see `sdm.engine.Source`."""

    index: Index
    row: int
    col: int
    """Of the map's first pixel in the index."""

    @property
    def note(self) -> str:
        """What a user of the map should know."""
        error = self.index.notes["error_of_probability"]
        return (
            f"Read from the region index {self.index.digest}, where embeddings are stored as {self.index.encoding}: "
            f"that changed probabilities by {error['mean']:.2g} on average, at most {error['largest']:.2g}, in a "
            "sample of its pixels and species."
        )

    @property
    def info(self) -> dict[str, Any]:
        """What a report says of it."""
        index = self.index
        return {"url": index.url, "digest": index.digest, "encoding": index.encoding, **index.notes}

    @property
    def digest(self) -> str:
        """Stands for the content."""
        return f"{self.index.digest}-{self.row}-{self.col}"

    def embeddings(self, tile: Tile) -> tuple[np.ndarray, np.ndarray]:
        """See `Index.embeddings`."""
        return self.index.embeddings(*self._of(tile))

    def encoded(self, tile: Tile) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """See `Index.encoded`."""
        return self.index.encoded(*self._of(tile), keep=False)

    def values(self, targets: Sequence[Target], tile: Tile) -> np.ndarray:
        """See `Index.values`."""
        return self.index.values(targets, *self._of(tile))

    def _of(self, tile: Tile) -> tuple[slice, slice]:
        r, c = tile.rows, tile.cols
        return slice(r.start + self.row, r.stop + self.row), slice(c.start + self.col, c.stop + self.col)


def _text(box: Sequence[float]) -> str:
    return " ".join(f"{value:g}" for value in box)


def _crop(tile: Tile, pixels: np.ndarray, rows: slice, cols: slice) -> tuple[Any, np.ndarray]:
    """Which of a tile's pixels (flat indices) lie in a window, and their flat indices there."""
    width = cols.stop - cols.start
    if tile.rows == rows and tile.cols == cols:
        return slice(None), pixels.astype(np.int64)
    row, col = np.divmod(pixels.astype(np.int64), tile.shape[1])
    row += tile.rows.start - rows.start
    col += tile.cols.start - cols.start
    flat = row * width + col
    if (
        rows.start <= tile.rows.start
        and tile.rows.stop <= rows.stop
        and cols.start <= tile.cols.start
        and tile.cols.stop <= cols.stop
    ):
        return slice(None), flat
    inside = np.flatnonzero((row >= 0) & (row < rows.stop - rows.start) & (col >= 0) & (col < width))
    return inside, flat[inside]


def _array(values, labels, targets, grid: Grid, single: bool, index: Index) -> xr.DataArray:
    import rioxarray  # noqa: F401  the .rio accessor
    import xarray as xr

    score, a = targets[0].score, grid.geobox.affine
    rows, cols = grid.shape
    array = xr.DataArray(
        values,
        dims=("species", "y", "x"),
        coords={
            "species": list(labels),
            "y": a.f + a.e * (np.arange(rows) + 0.5),
            "x": a.c + a.a * (np.arange(cols) + 0.5),
        },
        name=score.name,
        attrs={
            "long_name": "Probability that the place lies in the species' range", "units": "1",
            "model": index.model_name, "model_hash": index.model_digest,
            "modalities": ",".join(index.modalities), "index": index.digest, "index_encoding": index.encoding,
            **({"month": index.month} if index.month else {}),
        },
    )  # fmt: skip
    if single:
        array = array.isel(species=0)
        array.attrs |= {"species": labels[0], "mask": targets[0].mask}
    return array.rio.write_crs(grid.crs).rio.write_transform(a).rio.write_nodata(np.nan)


class _Cache:
    """Encoded tiles in memory, at most `budget` bytes of them; one thread reads a tile, others wait for it."""

    def __init__(self, budget: int) -> None:
        self.budget, self._bytes = budget, 0
        self._lock = threading.Lock()
        self._entries: dict[Any, Encoded] = {}
        self._reading: dict[Any, threading.Lock] = {}

    def get(self, key: Any, read: Callable[[], Encoded], keep: bool) -> Encoded:
        found = self._entries.get(key)
        if found is not None or not keep:
            return found or read()
        with self._lock:
            turn = self._reading.setdefault(key, threading.Lock())
        with turn:
            found = self._entries.get(key)
            if found is None:
                found = read()
                self._put(key, found)
        with self._lock:
            self._reading.pop(key, None)
        return found

    def _put(self, key: Any, encoded: Encoded) -> None:
        with self._lock:
            if encoded.nbytes > self.budget:
                return
            while self._bytes + encoded.nbytes > self.budget:
                # Any one: where all tiles are asked for in turn, the least recently used is the next one needed.
                self._bytes -= self._entries.pop(random.choice(list(self._entries))).nbytes
            self._entries[key] = encoded
            self._bytes += encoded.nbytes
