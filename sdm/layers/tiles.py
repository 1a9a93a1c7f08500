"""Imagery from tile servers: XYZ and WMTS address templates, and WMS.

A WMS is asked for the tiles of a fixed pyramid, not for each crop: neighbouring crops and later maps
then share the fetched tiles.
"""

from __future__ import annotations

import io
import math
import re
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import numpy as np

from sdm.errors import LayerError
from sdm.files import fingerprint
from sdm.layers.crop import Patch
from sdm.layers.fetch import CONNECTIONS, Fetcher, Unusable, redacted, require_http

FORMATS = ("JPEG", "PNG", "WEBP")
MAX_BYTES = 8_000_000
MAX_ZOOM = 22
MAX_TILES = 256
"""Tiles for one crop; more would mean that pitch and size were confused."""
MEMORY_BYTES = 64_000_000
"""Decoded tiles kept in memory; more than one group of crops needs."""
WMS_SIDE = 512
HALF_WORLD = 20037508.342789244
"""Metres from the origin of EPSG:3857 to its edge: pi x 6378137."""


@dataclass(frozen=True)
class Pyramid:
    """Square tiles over the whole world, 2^level of them from north to south."""

    crs: str
    west: float
    north: float
    """Corner of the world in CRS units."""
    width: float
    """Width of the world in CRS units."""
    columns: int
    """Tiles from west to east at level 0."""

    def cell(self, level: int, side: int) -> float:
        """Side of a pixel in CRS units, of tiles of `side` pixels."""
        return self.width / (self.columns * side * 2**level)

    def level(self, linear: np.ndarray, side: int, highest: int) -> int:
        """The coarsest level whose pixels are at most about 5 % larger than those wanted.

        `linear`: (2, 2), from (columns, rows) of the wanted pixels to CRS units.
        """
        step = np.hypot(linear[:, 0], linear[:, 1]).min()
        exact = math.log2(self.width / (self.columns * side * step))
        return min(max(math.ceil(exact - 0.07), 0), highest)


MERCATOR = Pyramid("EPSG:3857", -HALF_WORLD, HALF_WORLD, 2 * HALF_WORLD, 1)
DEGREES = Pyramid("EPSG:4326", -180.0, 90.0, 360.0, 2)


class Tiles:
    """The true-colour tiles of a server as one image of the world.

    Parameters
    ----------
    address
        The server's address template.
    fetcher
        Fetches the tiles.
    side
        Side of a tile in pixels.
    highest
        Deepest zoom level to use.
    attribution
        Credit line for the outputs.
    """

    def __init__(
        self, address: XYZ | WMS, fetcher: Fetcher, side: int, highest: int = MAX_ZOOM, attribution: str = ""
    ) -> None:
        self.address, self.fetcher, self.side, self.highest = address, fetcher, side, highest
        self.attribution = attribution
        self.pyramid = address.pyramid
        self.crs, self.period = self.pyramid.crs, self.pyramid.width
        self._max_tiles = max(16, MEMORY_BYTES // (4 * side**2))
        self._start()

    def _start(self) -> None:
        self._lock = threading.Lock()
        self._memory: OrderedDict[tuple[int, int, int], np.ndarray | None] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        del state["_lock"], state["_memory"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()

    def at(self, lon: float, lat: float, radius: float) -> list[Tiles]:
        """The layers within `radius` metres of (lon, lat): always this one."""
        return [self]

    def patches(self, corners: np.ndarray, linear: np.ndarray) -> Iterator[Patch]:
        """The tiles over a quadrilateral as one patch, at the level that fits `linear`; see `Layer`."""
        from affine import Affine

        level, rows, cols = self._span(corners, linear)
        out = np.zeros((4, len(rows) * self.side, len(cols) * self.side), dtype=np.uint8)
        for i, row in enumerate(rows):
            for j, col in enumerate(cols):
                tile = self._tile(level, col, row)
                if tile is not None:
                    out[:, i * self.side : (i + 1) * self.side, j * self.side : (j + 1) * self.side] = tile
        cell = self.pyramid.cell(level, self.side)
        if out[3].any():
            west = self.pyramid.west + cols.start * self.side * cell
            north = self.pyramid.north - rows.start * self.side * cell
            yield Patch(out, Affine(cell, 0.0, west, 0.0, -cell, north))

    def prefetch(self, areas: Iterable[tuple[np.ndarray, np.ndarray]]) -> None:
        """Fetch in parallel the tiles that `patches` will need for several (corners, linear)."""
        wanted: dict[tuple[int, int, int], None] = {}
        for corners, linear in areas:
            level, rows, cols = self._span(corners, linear)
            wanted.update(dict.fromkeys((level, col, row) for row in rows for col in cols))
        # More tiles than memory holds would evict the first ones, and all would be decoded twice.
        keys = list(wanted)[: self._max_tiles]
        if len(keys) > 1:
            with ThreadPoolExecutor(CONNECTIONS) as pool:
                for _ in pool.map(lambda key: self._tile(*key), keys):
                    pass

    def check(self, lon: np.ndarray, lat: np.ndarray) -> None:
        """Fetch one tile, at the middle one of the places (N,), (N,) degrees, to see that the server answers.

        Raises LayerError.
        """
        import pyproj

        if lon.size and not self.fetcher.offline:
            k = lon.size // 2
            xy = pyproj.Transformer.from_crs("EPSG:4326", self.crs, always_xy=True).transform(lon[k], lat[k])
            if all(map(math.isfinite, xy)):
                cell = self.pyramid.cell(min(14, self.highest), self.side)
                level, rows, cols = self._span(np.array([xy] * 4), cell * np.eye(2))
                if rows and cols:
                    self._tile(level, cols[0], rows[0])

    def describe(self) -> str:
        """Names the server, for the outputs."""
        return f"{self.address.kind} tiles of {redacted(self.address.template)}"

    def fingerprint(self) -> str:
        """Hash of the address: the content of a server is not known without fetching all of it."""
        return fingerprint.of_parts([self.address.kind, redacted(self.address.template), self.side, self.highest])

    def _span(self, corners: np.ndarray, linear: np.ndarray) -> tuple[int, range, range]:
        """Level, rows and columns (unwrapped) of the tiles over a quadrilateral."""
        p = self.pyramid
        level = p.level(linear, self.side, self.highest)
        cell = p.cell(level, self.side)
        (left, bottom), (right, top) = corners.min(axis=0) - 2 * cell, corners.max(axis=0) + 2 * cell
        tile = cell * self.side
        cols = range(math.floor((left - p.west) / tile), math.floor((right - p.west) / tile) + 1)
        low, high = math.floor((p.north - top) / tile), math.floor((p.north - bottom) / tile) + 1
        rows = range(min(max(low, 0), 2**level), min(max(high, 0), 2**level))
        if len(rows) * len(cols) > MAX_TILES:
            raise LayerError(
                f"one crop would need {len(rows) * len(cols)} tiles of {self.describe()}; use a larger pitch."
            )
        return level, rows, cols

    def _tile(self, level: int, col: int, row: int) -> np.ndarray | None:
        """Red, green, blue and mask (4, side, side) uint8; None where the server has no tile."""
        key = (level, col % (self.pyramid.columns * 2**level), row)
        with self._lock:
            if key in self._memory:
                self._memory.move_to_end(key)
                return self._memory[key]
        tile = self.fetcher.get(
            self.address.url(*key, self.side), lambda body, kind: _decode(body, kind, self.side), max_bytes=MAX_BYTES
        )
        with self._lock:
            self._memory[key] = tile
            while len(self._memory) > self._max_tiles:
                self._memory.popitem(last=False)
        return tile


# Addresses -----------------------------------------------------------------------------------------

_PLACEHOLDERS = {"z": "z", "x": "x", "y": "y", "-y": "-y", "s": "s", "TileMatrix": "z", "TileCol": "x", "TileRow": "y"}


class XYZ:
    """A template with the placeholders {z} {x} {y}, or WMTS's {TileMatrix} {TileCol} {TileRow}; tiles in EPSG:3857.

    {-y} counts rows from the south; {s} becomes a, b or c. Raises LayerError for any other placeholder.
    """

    kind = "XYZ"
    pyramid = MERCATOR

    def __init__(self, template: str) -> None:
        names = re.findall(r"\{([^{}]*)\}", template)
        unknown = [n for n in names if n not in _PLACEHOLDERS]
        if unknown:
            raise LayerError(
                f"tile address {redacted(template)!r} has the placeholder {{{unknown[0]}}}; known are "
                f"{', '.join('{' + n + '}' for n in _PLACEHOLDERS)}: fill in the others yourself."
            )
        meanings = {_PLACEHOLDERS[n] for n in names}
        if not ({"z", "x"} <= meanings and meanings & {"y", "-y"}):
            raise LayerError(f"tile address {redacted(template)!r} must have {{z}}, {{x}} and {{y}} in it.")
        require_http(template)
        self.template = template

    def url(self, level: int, col: int, row: int, side: int) -> str:
        """Address of a tile of `side` pixels; rows are counted from the north."""
        values = {"z": level, "x": col, "y": row, "-y": 2**level - 1 - row, "s": "abc"[(col + row) % 3]}
        return re.sub(r"\{([^{}]*)\}", lambda m: str(values[_PLACEHOLDERS[m[1]]]), self.template)


class WMS:
    """A WMS address whose query names its `layers` and, where needed, version, crs, styles, format and others.

    Version 1.1.1 by default. Boxes are (west, south, east, north), except with version 1.3.0 and EPSG:4326,
    where the standard puts latitude first. Raises LayerError for what is missing or not supported.
    """

    kind = "WMS"

    def __init__(self, template: str) -> None:
        require_http(template)
        parts = urlsplit(template)
        self.template = template
        query = {k.lower(): v for k, v in parse_qsl(parts.query, keep_blank_values=True)}
        if not query.get("layers"):
            raise LayerError(f"WMS address {redacted(template)!r} names no layer; add layers=NAME to its query.")
        version = query.get("version", "1.1.1")
        if version not in ("1.1.0", "1.1.1", "1.3.0"):
            raise LayerError(f"WMS version {version[:20]!r} is not known; 1.1.1 and 1.3.0 are.")
        crs = (query.pop("crs", None) or query.pop("srs", None) or "EPSG:3857").upper()
        query.pop("srs", None)
        pyramids = {"EPSG:3857": MERCATOR, "EPSG:900913": MERCATOR, "EPSG:4326": DEGREES, "CRS:84": DEGREES}
        if crs not in pyramids or (crs == "CRS:84" and version != "1.3.0"):
            raise LayerError(f"WMS crs {crs[:40]!r} is not supported; use EPSG:3857 or EPSG:4326.")
        self.pyramid = pyramids[crs]
        self._latitude_first = version == "1.3.0" and crs == "EPSG:4326"
        image = query.get("format", "image/jpeg")
        if image.partition(";")[0] not in ("image/jpeg", "image/png", "image/webp"):
            raise LayerError(f"WMS format {image[:40]!r} is not read; use image/jpeg or image/png.")
        transparent = {"transparent": "TRUE"} if image.startswith("image/png") else {}
        self._base = urlunsplit((parts.scheme, parts.netloc, parts.path, "", ""))
        self._query = {"styles": "", **transparent, **query, "service": "WMS", "request": "GetMap"}
        self._query |= {"version": version, "format": image, "crs" if version == "1.3.0" else "srs": crs}

    def url(self, level: int, col: int, row: int, side: int) -> str:
        """Address of a tile of `side` pixels; rows are counted from the north."""
        p = self.pyramid
        size = p.cell(level, side) * side
        west, north = p.west + col * size, p.north - row * size
        box = (west, north - size, west + size, north)
        if self._latitude_first:
            box = (box[1], box[0], box[3], box[2])
        query = {**self._query, "width": side, "height": side, "bbox": ",".join(f"{v:.15g}" for v in box)}
        return f"{self._base}?{urlencode({k.upper(): v for k, v in query.items()}, safe=',:/')}"


def _decode(body: bytes, kind: str, side: int) -> np.ndarray:
    """A tile as red, green, blue and mask (4, side, side) uint8. Raises Unusable."""
    from PIL import Image

    if kind and not kind.startswith("image/") and not kind.endswith("/octet-stream"):
        raise Unusable(f"the server sent {kind[:60]} instead of an image{_excerpt(body, kind)}.")
    try:
        with Image.open(io.BytesIO(body), formats=FORMATS) as image:
            if image.size != (side, side):
                raise Unusable(
                    f"a tile has {image.width} x {image.height} pixels, not {side}; add #tilesize={image.width}."
                )
            if image.mode not in ("RGB", "RGBA", "L", "LA", "P", "1", "CMYK"):
                raise Unusable(f"a tile has pixels of mode {image.mode}, not 8-bit colour.")
            pixels = np.asarray(image.convert("RGBA"))
    except Unusable:
        raise
    except Exception as error:  # decoders raise many unrelated types on damaged files
        raise Unusable(f"a tile is not a complete {', '.join(FORMATS)} image ({type(error).__name__})", True) from error
    tile = np.moveaxis(pixels, 2, 0).copy()
    tile[3] = np.where(tile[3] > 127, 255, 0)
    return tile


def _excerpt(body: bytes, kind: str) -> str:
    """The text of an XML or text response, in which WMS servers report their errors."""
    if not ("xml" in kind or kind.startswith("text/")):
        return ""
    text = re.sub(r"<[^>]*>", " ", body[:4000].decode("utf-8", "replace"))
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return f" ({text[:160]})" if text else ""
