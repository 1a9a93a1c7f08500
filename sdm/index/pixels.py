"""An opened region index as its pixels: embeddings and values of windows, read tile by tile."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import Any, Self

import numpy as np
import zarr

from sdm.engine.cluster import processors
from sdm.engine.limits import Pixels
from sdm.engine.places import Extent, Target, limit_pixels
from sdm.errors import RegionIndexError
from sdm.grid import Grid, Tile
from sdm.index import store
from sdm.index.cache import EncodedTile, TileCache
from sdm.index.checksums import CheckedStore
from sdm.index.encoding import DTYPES, cosines, decode, decode_agreement
from sdm.index.window import checked, crop, overlapping
from sdm.request.choices import LAND_SHARE

CACHE_BYTES = 1 << 30
"""Memory for encoded tiles, by default: about four megapixels of 256 numbers as int8."""


class StoredPixels:
    """The pixels and header of a region index.

    Thread-safe, read-only. A copy sent to another process opens the index again there.
    """

    def __init__(
        self,
        url: str,
        header: store.Header,
        group: zarr.Group,
        storage_options: Mapping[str, Any] | None = None,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        """See `open`."""
        self.url, self.identity, self.notes = url, header.identity, header.notes
        self.digest = header.digest
        """Identity of the whole index: model, layers, grid, region, modalities, mask, encoding."""
        self.grid: Grid = header.grid()
        """The pixels; a tile is a chunk of the store."""
        self._group, self._storage_options = group, storage_options
        self._tiles = TileCache(cache_bytes)

    @classmethod
    def open(
        cls, url: str | Path, storage_options: Mapping[str, Any] | None = None, *, cache_bytes: int = CACHE_BYTES
    ) -> Self:
        """Open the index at a path, or at an fsspec URL (`s3://`, `gs://`, `https://`, `memory://`).

        `storage_options`: for fsspec, credentials for example. `cache_bytes`: memory that encoded tiles may
        take. Raises RegionIndexError for what is not a complete index of this format.
        """
        header, group = store.open_store(str(url), storage_options)
        return cls(str(url), header, group, storage_options, cache_bytes)

    def __reduce__(self) -> tuple[Any, ...]:
        # A relative path means another place in another process.
        url = self.url if "://" in self.url else str(Path(self.url).absolute())
        return _reopen, (type(self), url, self._storage_options, self._tiles.budget, self.digest)

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
        """The mask of the pixels held: land, sea, or none for both."""
        return self.identity["mask"]

    @property
    def land_share(self) -> float:
        """The option with which its pixels were chosen; in an index of an earlier version by their centres alone."""
        return self.identity.get("land_share", LAND_SHARE)

    @property
    def uncovered(self) -> str:
        """The option with which its pixels were chosen; earlier versions held no pixel without training data."""
        return self.identity.get("uncovered", "hide")

    @property
    def encoding(self) -> str:
        """int8 or float16."""
        return self.identity["encoding"]

    @property
    def dim(self) -> int:
        """Length of the embeddings."""
        return self.identity["dim"]

    @property
    def store(self) -> CheckedStore:
        """The store underneath."""
        store: Any = self._group.store
        return store

    def check_mask(self, mask: str, what: str = "this species") -> None:
        """Raise RegionIndexError when a map with this mask needs pixels that the index does not hold."""
        if self.mask not in ("none", mask):
            raise RegionIndexError(
                f"region index {self.url!r} contains only {self.mask}, but {what} is mapped on "
                f"{'land and sea' if mask == 'none' else mask}; use --mask {self.mask} for that part, or build an "
                "index with --mask none."
            )

    # Embeddings ----------------------------------------------------------------------------------

    def embeddings(self, rows: slice, cols: slice, modality: str | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Unit embeddings of the pixels held in a window of the grid; whole tiles are fastest.

        `modality`: its own embedding in place of the sum, where the index holds it (`held`). Returns
        (embeddings (N, dim) float32, pixels (N,) int64: flat indices into the window, ascending).
        Raises RequestError for a window outside the grid, RegionIndexError for a modality not held or a
        store that cannot be read.
        """
        rows, cols = checked(rows, cols, self.grid.shape)
        if modality is not None and modality not in self.held:
            raise RegionIndexError(
                f"region index {self.url!r} does not hold the embedding of {modality!r} alone; build it with --each."
            )
        codes, scales, pixels = self.encoded(rows, cols, modality, keep=False)
        embeddings = decode(codes, scales)
        if (np.diff(pixels) > 0).all():
            return embeddings, pixels
        order = np.argsort(pixels)
        return embeddings[order], pixels[order]

    @property
    def has_agreement(self) -> bool:
        """Whether it stores how well the modalities agree, from which uncertainty follows."""
        return store.has_agreement(self.identity)

    def agreement(self, rows: slice, cols: slice) -> np.ndarray:
        """How well the modalities of the pixels of a window agree, 0 to 1: (rows, columns) float32, NaN: not held.

        Raises RequestError for a window outside the grid, RegionIndexError where it is not stored or cannot be read.
        """
        return decode_agreement(self.agreement_codes(*checked(rows, cols, self.grid.shape)))

    def agreement_codes(self, rows: slice, cols: slice) -> np.ndarray:
        """As `agreement`, as it is stored: uint8."""
        if not self.has_agreement:
            raise RegionIndexError(f"region index {self.url!r} was made without agreement; build it again.")
        try:
            return np.asarray(self._array("agreement")[rows, cols])
        except Exception as error:
            raise RegionIndexError(f"region index {self.url!r} cannot be read: {store.brief(error)}.") from error

    def encoded(
        self, rows: slice, cols: slice, modality: str | None = None, *, keep: bool = True
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The stored values of a window: codes (N, dim), scales (N,), pixels (N,), flat indices into the window.

        `keep`: a tile that is the whole window may stay in memory, as the others may.
        """
        parts = []
        for tile in overlapping(self.grid, rows, cols):
            stored = self._tile(tile, modality, keep=keep or (tile.rows, tile.cols) != (rows, cols))
            inside, pixels = crop(tile, stored.pixels, rows, cols)
            parts.append((stored.codes[inside], stored.scales[inside], pixels))
        if len(parts) == 1:
            return parts[0]
        codes, scales, pixels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        return codes, scales, pixels

    def _tile(self, tile: Tile, modality: str | None, keep: bool) -> EncodedTile:
        return self._tiles.get((modality, tile.index), lambda: self._read(tile, modality), keep)

    def _read(self, tile: Tile, modality: str | None) -> EncodedTile:
        embedding, scale = store.names(modality)
        try:
            surface = self._array("surface")[tile.rows, tile.cols].ravel()
            if not (surface <= store.NEITHER).all():
                raise RegionIndexError(
                    f"region index {self.url!r} is damaged: tile {tile.index} is missing; build it again."
                )
            pixels = np.flatnonzero(surface != store.NOT_HELD).astype(np.int32)
            held = surface[pixels]
            if not pixels.size:
                codes = np.empty((0, self.dim), dtype=DTYPES[self.encoding])
                return EncodedTile(codes, np.empty(0, np.float32), pixels, held)
            scales = self._array(scale)[tile.rows, tile.cols].ravel()[pixels]
            codes = self._array(embedding)[tile.rows, tile.cols].reshape(surface.size, self.dim)
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
        return EncodedTile(codes if pixels.size == surface.size else codes[pixels], scales, pixels, held)

    def _array(self, name: str) -> Any:
        return self._group[name]

    # Values of species ---------------------------------------------------------------------------

    def values(self, targets: Sequence[Target], rows: slice, cols: slice) -> np.ndarray:
        """Value of each target at a window of the grid: (S, rows, columns) float32, NaN = not modelled.

        A pixel has the same bits through whatever window. Raises RegionIndexError for a target whose mask needs
        pixels that are not held.
        """
        rows, cols = checked(rows, cols, self.grid.shape)
        out, vectors = self._blank(targets, rows, cols)
        for tile in overlapping(self.grid, rows, cols):
            whole = (tile.rows, tile.cols) == (rows, cols)
            self._fill(out, tile, targets, vectors, (rows, cols), keep=not whole)
        return out

    def values_at_once(self, targets: Sequence[Target], rows: slice, cols: slice) -> np.ndarray:
        """As `values`, tiles side by side; all may stay in memory for the next species."""
        out, vectors = self._blank(targets, rows, cols)
        with ThreadPoolExecutor(processors()) as pool:
            pool.submit(import_module, "rioxarray")  # half a second, the first time: meanwhile, not afterwards
            tiles = overlapping(self.grid, rows, cols)
            list(pool.map(lambda tile: self._fill(out, tile, targets, vectors, (rows, cols), keep=True), tiles))
        return out

    def _blank(self, targets: Sequence[Target], rows: slice, cols: slice) -> tuple[np.ndarray, np.ndarray]:
        """Values (S, rows, columns) that are all NaN, and the vectors (S, dim)."""
        for target in targets:
            self.check_mask(target.mask)
        out = np.full((len(targets), rows.stop - rows.start, cols.stop - cols.start), np.nan, dtype=np.float32)
        return out, np.stack([target.vector for target in targets])

    def _fill(
        self,
        out: np.ndarray,
        tile: Tile,
        targets: Sequence[Target],
        vectors: np.ndarray,
        window: tuple[slice, slice],
        keep: bool,
    ) -> None:
        """Put the values of one tile into those of a window, `out` (S, rows, columns)."""
        stored = self._tile(tile, None, keep)
        if not stored.pixels.size:
            return
        # Products of the whole tile, whatever part is asked for: their last bits depend on the shape.
        products = cosines(stored.codes, stored.scales, vectors)
        inside, pixels = crop(tile, stored.pixels, *window)
        flat = out.reshape(len(out), -1)
        where = self._positions(tile, stored.pixels[inside]) if any(t.known is not None for t in targets) else None
        limited = self._limit_pixels(tile, stored.pixels[inside]) if any(t.limits for t in targets) else None
        for k, target in enumerate(targets):
            measured = products[k][inside]
            if where is not None:
                target.add_known(measured, *where)
            values = target.values(measured)
            if limited is not None:
                limited.apply(target.limits, values)
            kept = self._kept(target, tile, stored, inside)
            if kept is None:
                flat[k, pixels] = values
            else:
                flat[k, pixels[kept]] = values[kept]

    def _limit_pixels(self, tile: Tile, chosen: np.ndarray) -> Pixels:
        """The chosen pixels (N,) of a tile, for limits."""
        rows, cols = tile.rows, tile.cols
        lon, lat = self.grid.lonlat(np.arange(rows.start, rows.stop), np.arange(cols.start, cols.stop))
        return limit_pixels(self.grid, tile, lon, lat, chosen)

    def _kept(self, target: Target, tile: Tile, stored: EncodedTile, inside: Any) -> np.ndarray | None:
        """Boolean (M,) of the pixels of a tile that are `inside`: within mask and extent of a target; None: all."""
        wanted = {"none": None, "land": store.LAND, "sea": store.WATER}[target.mask]
        kept = None if wanted is None else (stored.surface[inside] & wanted) > 0
        if target.extent is not None:
            known = self._within(target.extent, tile)
            if known is not None:
                known = known[stored.pixels[inside]]
                kept = known if kept is None else kept & known
        return kept

    def _within(self, extent: Extent, tile: Tile) -> np.ndarray | None:
        """Boolean per pixel of a tile: inside (west, south, east, north) degrees; None: all are."""
        w, s, e, n = extent
        west, south, east, north = self.grid.bbox
        pad = 2 * self.grid.resolution if self.grid.is_geographic else 0.0
        if self.grid.is_geographic and w <= west - pad and e >= east + pad and s <= south - pad and n >= north + pad:
            return None
        lon, lat = self._positions(tile)
        return (lon >= w) & (lon <= e) & (lat >= s) & (lat <= n)

    def _positions(self, tile: Tile, pixels: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """(lon, lat) degrees, each (N,), of flat indices into a tile; None: of all its pixels."""
        rows, cols = tile.rows, tile.cols
        lon, lat = self.grid.lonlat(np.arange(rows.start, rows.stop), np.arange(cols.start, cols.stop))
        return (lon.ravel(), lat.ravel()) if pixels is None else (lon.ravel()[pixels], lat.ravel()[pixels])


_opened: dict[tuple[Any, ...], StoredPixels] = {}
_opening = threading.Lock()


def _reopen(
    kind: type[StoredPixels],
    url: str,
    storage_options: Mapping[str, Any] | None,
    cache_bytes: int,
    digest: str,
) -> StoredPixels:
    # Once per process, however many tasks bring it along: they share what is in memory.
    key = (kind, url, repr(storage_options), cache_bytes, digest)
    with _opening:
        if key not in _opened:
            index = kind.open(url, storage_options, cache_bytes=cache_bytes)
            if index.digest != digest:
                raise RegionIndexError(f"region index {url!r} was replaced while it was open; open it again.")
            _opened.clear()
            _opened[key] = index
        return _opened[key]
