"""Pictures from tile servers: XYZ and WMTS addresses with a pattern, and WMS.

A WMS is asked for the tiles of a fixed pyramid, not for every crop by itself: neighbouring crops and
later maps then share what was fetched.
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
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import numpy as np

from sdm.errors import LayerError
from sdm.files import fingerprint
from sdm.layers.crop import Patch
from sdm.layers.fetch import CONNECTIONS, Fetcher, Unusable, require_web, shown

FORMATS = ("JPEG", "PNG", "WEBP")
MOST_BYTES = 8_000_000
MAX_ZOOM = 22
MAX_TILES = 256
"""Tiles for one crop; more would mean that pitch and size were mixed up."""
MEMORY_BYTES = 64_000_000
"""Of decoded tiles; more than one group of crops needs."""
WMS_SIDE = 512
HALF_WORLD = 20037508.342789244
"""Metres from the origin of EPSG:3857 to its edge: pi x 6378137."""


@dataclass(frozen=True)
class Pyramid:
    """Square tiles of `side` pixels, 2^level of them from north to south over the whole world."""

    crs: str
    west: float
    north: float
    width: float
    """Of the world, in CRS units."""
    columns: int
    """Tiles from west to east at level 0."""

    def cell(self, level: int, side: int) -> float:
        """Side of a pixel in CRS units."""
        return self.width / (self.columns * side * 2**level)

    def level(self, linear: np.ndarray, side: int, highest: int) -> int:
        """The coarsest level whose pixels are no larger than those wanted, give or take a twentieth."""
        step = np.hypot(linear[:, 0], linear[:, 1]).min()
        wanted = math.log2(self.width / (self.columns * side * step))
        return min(max(math.ceil(wanted - 0.07), 0), highest)


MERCATOR = Pyramid("EPSG:3857", -HALF_WORLD, HALF_WORLD, 2 * HALF_WORLD, 1)
DEGREES = Pyramid("EPSG:4326", -180.0, 90.0, 360.0, 2)


class Tiles:
    """True-colour tiles of a server, as one picture of the world.

    Raises LayerError for an address that is not a pattern this module can fill in.
    """

    def __init__(
        self, address: XYZ | WMS, fetcher: Fetcher, side: int, highest: int = MAX_ZOOM, attribution: str = ""
    ) -> None:
        self.address, self.fetcher, self.side, self.highest = address, fetcher, side, highest
        self.attribution = attribution
        self.pyramid = address.pyramid
        self.crs, self.period = self.pyramid.crs, self.pyramid.width
        self._most = max(16, MEMORY_BYTES // (4 * side**2))
        self._start()

    def _start(self) -> None:
        self._lock = threading.Lock()
        self._memory: OrderedDict[tuple[int, int, int], np.ndarray | None] = OrderedDict()

    def __getstate__(self) -> dict:
        state = self.__dict__.copy()
        del state["_lock"], state["_memory"]
        return state

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._start()

    def at(self, lon: float, lat: float, radius: float) -> list[Tiles]:
        """This picture, wherever the place (lon, lat)."""
        return [self]

    def patches(self, corners: np.ndarray, linear: np.ndarray) -> Iterator[Patch]:
        """The tiles over a quadrilateral as one patch, at the level that fits; see `Layer`."""
        from affine import Affine

        level, rows, cols = self._span(corners, linear)
        out = np.zeros((4, len(rows) * self.side, len(cols) * self.side), dtype=np.uint8)
        for i, row in enumerate(rows):
            for j, col in enumerate(cols):
                tile = self._tile(level, col, row)
                if tile is not None:
                    place = np.s_[:, i * self.side : (i + 1) * self.side, j * self.side : (j + 1) * self.side]
                    out[place] = tile
        cell = self.pyramid.cell(level, self.side)
        if out[3].any():
            west = self.pyramid.west + cols.start * self.side * cell
            north = self.pyramid.north - rows.start * self.side * cell
            yield Patch(out, Affine(cell, 0.0, west, 0.0, -cell, north))

    def prefetch(self, areas: Iterable[tuple[np.ndarray, np.ndarray]]) -> None:
        """Fetch what `patches` will need for several (corners, linear), few at a time but not one by one."""
        wanted: dict[tuple[int, int, int], None] = {}
        for corners, linear in areas:
            level, rows, cols = self._span(corners, linear)
            wanted.update(dict.fromkeys((level, col, row) for row in rows for col in cols))
        # More than memory holds would push out what comes first, and then all would be decoded twice.
        keys = list(wanted)[: self._most]
        if len(keys) > 1:
            with ThreadPoolExecutor(CONNECTIONS) as pool:
                for _ in pool.map(lambda key: self._tile(*key), keys):
                    pass

    def check(self, lon: np.ndarray, lat: np.ndarray) -> None:
        """Fetch one tile, at the place in the middle of (N,), (N,) degrees, to see that the server answers.

        Raises LayerError.
        """
        import pyproj

        if lon.size and not self.fetcher.offline:
            k = lon.size // 2
            there = pyproj.Transformer.from_crs("EPSG:4326", self.crs, always_xy=True).transform(lon[k], lat[k])
            if all(map(math.isfinite, there)):
                cell = self.pyramid.cell(min(14, self.highest), self.side)
                level, rows, cols = self._span(np.array([there] * 4), cell * np.eye(2))
                if rows and cols:
                    self._tile(level, cols[0], rows[0])

    def describe(self) -> str:
        """What is read, for the outputs."""
        return f"{self.address.kind} tiles of {shown(self.address.template)}"

    def fingerprint(self) -> str:
        """Short hash of the address: what a server shows cannot be known without fetching it all."""
        return fingerprint.of_parts([self.address.kind, shown(self.address.template), self.side, self.highest])

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
        """(4, side, side) uint8, or None where the server has none."""
        key = (level, col % (self.pyramid.columns * 2**level), row)
        with self._lock:
            if key in self._memory:
                self._memory.move_to_end(key)
                return self._memory[key]
        tile = self.fetcher.get(
            self.address.url(*key, self.side), lambda body, kind: _decode(body, kind, self.side), most=MOST_BYTES
        )
        with self._lock:
            self._memory[key] = tile
            while len(self._memory) > self._most:
                self._memory.popitem(last=False)
        return tile


# Addresses -----------------------------------------------------------------------------------------

_HOLES = {"z": "z", "x": "x", "y": "y", "-y": "-y", "s": "s", "TileMatrix": "z", "TileCol": "x", "TileRow": "y"}


class XYZ:
    """An address with holes: {z} {x} {y}, {-y} for rows from the south, {s} for a, b or c, or WMTS's
    {TileMatrix} {TileCol} {TileRow}. EPSG:3857, as web maps have it.
    """

    kind = "XYZ"
    pyramid = MERCATOR

    def __init__(self, template: str) -> None:
        holes = re.findall(r"\{([^{}]*)\}", template)
        unknown = [h for h in holes if h not in _HOLES]
        if unknown:
            raise LayerError(
                f"tile address {shown(template)!r} has the hole {{{unknown[0]}}}; known are "
                f"{', '.join('{' + h + '}' for h in _HOLES)}: fill the others in yourself."
            )
        meanings = {_HOLES[h] for h in holes}
        if not ({"z", "x"} <= meanings and meanings & {"y", "-y"}):
            raise LayerError(f"tile address {shown(template)!r} must have {{z}}, {{x}} and {{y}} in it.")
        require_web(template)
        self.template = template

    def url(self, level: int, col: int, row: int, side: int) -> str:
        """Where a tile is."""
        values = {"z": level, "x": col, "y": row, "-y": 2**level - 1 - row, "s": "abc"[(col + row) % 3]}
        return re.sub(r"\{([^{}]*)\}", lambda m: str(values[_HOLES[m[1]]]), self.template)


class WMS:
    """A WMS address with its `layers`, and if need be version, crs, styles, format and others in the query.

    1.1.1 by default. Boxes are x before y, except in 1.3.0 with EPSG:4326, which that standard
    writes latitude first.
    """

    kind = "WMS"

    def __init__(self, template: str) -> None:
        require_web(template)
        parts = urlsplit(template)
        self.template = template
        given = {k.lower(): v for k, v in parse_qsl(parts.query, keep_blank_values=True)}
        if not given.get("layers"):
            raise LayerError(f"WMS address {shown(template)!r} names no layer; add layers=NAME to its query.")
        version = given.get("version", "1.1.1")
        if version not in ("1.1.0", "1.1.1", "1.3.0"):
            raise LayerError(f"WMS version {version[:20]!r} is not known; 1.1.1 and 1.3.0 are.")
        crs = (given.pop("crs", None) or given.pop("srs", None) or "EPSG:3857").upper()
        given.pop("srs", None)
        grids = {"EPSG:3857": MERCATOR, "EPSG:900913": MERCATOR, "EPSG:4326": DEGREES, "CRS:84": DEGREES}
        if crs not in grids or (crs == "CRS:84" and version != "1.3.0"):
            raise LayerError(f"WMS crs {crs[:40]!r} is not supported; use EPSG:3857 or EPSG:4326.")
        self.pyramid = grids[crs]
        self._latitude_first = version == "1.3.0" and crs == "EPSG:4326"
        image = given.get("format", "image/jpeg")
        if image.partition(";")[0] not in ("image/jpeg", "image/png", "image/webp"):
            raise LayerError(f"WMS format {image[:40]!r} is not read; use image/jpeg or image/png.")
        transparent = {"transparent": "TRUE"} if image.startswith("image/png") else {}
        self._base = urlunsplit((parts.scheme, parts.netloc, parts.path, "", ""))
        self._query = {
            "styles": "", **transparent, **given, "service": "WMS", "request": "GetMap", "version": version,
            "format": image, "crs" if version == "1.3.0" else "srs": crs,
        }  # fmt: skip

    def url(self, level: int, col: int, row: int, side: int) -> str:
        """Where a tile is."""
        p = self.pyramid
        size = p.cell(level, side) * side
        west, north = p.west + col * size, p.north - row * size
        box = (west, north - size, west + size, north)
        if self._latitude_first:
            box = (box[1], box[0], box[3], box[2])
        query = {**self._query, "width": side, "height": side, "bbox": ",".join(f"{v:.15g}" for v in box)}
        return f"{self._base}?{urlencode({k.upper(): v for k, v in query.items()}, safe=',:/')}"


def _decode(body: bytes, kind: str, side: int) -> np.ndarray:
    """A tile as (4, side, side) uint8: red, green, blue, mask. Raises Unusable."""
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
        raise Unusable(f"a tile is not a whole {', '.join(FORMATS)} image ({type(error).__name__})", True) from error
    tile = np.moveaxis(pixels, 2, 0).copy()
    tile[3] = np.where(tile[3] > 127, 255, 0)
    return tile


def _excerpt(body: bytes, kind: str) -> str:
    """What an XML or text answer says, as WMS servers put their errors."""
    if not ("xml" in kind or kind.startswith("text/")):
        return ""
    text = re.sub(r"<[^>]*>", " ", body[:4000].decode("utf-8", "replace"))
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return f" ({text[:160]})" if text else ""
