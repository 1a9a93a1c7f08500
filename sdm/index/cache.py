"""Encoded tiles in memory."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Key = tuple[str | None, tuple[int, int]]
"""Key of a tile: (modality or None, (row, column))."""


@dataclass(frozen=True)
class EncodedTile:
    """The pixels that one tile holds, as they are stored."""

    codes: np.ndarray
    """(N, dim) int8 or float16."""
    scales: np.ndarray
    """(N,) float32."""
    pixels: np.ndarray
    """(N,) int32: flat indices into the tile, ascending."""
    surface: np.ndarray
    """(N,) uint8, of `sdm.index.store`."""

    @property
    def nbytes(self) -> int:
        """Memory held."""
        return self.codes.nbytes + self.scales.nbytes + self.pixels.nbytes + self.surface.nbytes


class TileCache:
    """At most `budget` bytes of tiles; one thread reads a tile while others that need it wait."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self._bytes = 0
        self._lock = threading.Lock()
        self._tiles: dict[Key, EncodedTile] = {}
        self._reading: dict[Key, threading.Lock] = {}

    def get(self, key: Key, read: Callable[[], EncodedTile], keep: bool) -> EncodedTile:
        """A tile, read unless it is in memory; `keep`: it may stay there."""
        tile = self._tiles.get(key)
        if tile is not None or not keep:
            return tile or read()
        with self._lock:
            turn = self._reading.setdefault(key, threading.Lock())
        with turn:
            tile = self._tiles.get(key)
            if tile is None:
                tile = read()
                self._put(key, tile)
        with self._lock:
            self._reading.pop(key, None)
        return tile

    def _put(self, key: Key, tile: EncodedTile) -> None:
        with self._lock:
            if tile.nbytes > self.budget:
                return
            while self._bytes + tile.nbytes > self.budget:
                # A random one: where all tiles are read in turn, the least recently used is the next one needed.
                self._bytes -= self._tiles.pop(random.choice(list(self._tiles))).nbytes
            self._tiles[key] = tile
            self._bytes += tile.nbytes
