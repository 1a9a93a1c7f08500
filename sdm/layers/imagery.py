"""Satellite crops for the published model: squares of 2.56 km at 10 m around each place.

A crop lies in the plane that touches the Earth (WGS84) at the place, its pixel edges along east and
north: 256 pixels of 10 m on the ground at every latitude. The authors' public download script cuts
its boxes in the same way (an east-north-up box of fixed size in metres), except that a WMS stretches
them in degrees; the two agree to a tenth of a pixel below 70 degrees of latitude. A crop in Web
Mercator would instead shrink with the cosine of the latitude.

Sources finer than the pitch are averaged over the area of a pixel, coarser ones are interpolated
bilinearly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote, urlsplit, urlunsplit

import numpy as np

from sdm.errors import LayerError, TooLargeError
from sdm.files import fingerprint
from sdm.files.paths import cache_folder
from sdm.layers.crop import Place, draw, fit_affine
from sdm.layers.fetch import Fetcher, Unusable, redacted, require_http
from sdm.layers.tiles import MAX_ZOOM, WMS, WMS_SIDE, XYZ, Tiles

if TYPE_CHECKING:
    from sdm.layers.mosaic import Mosaic

SIZE = 256
"""Pixels on a side of a crop."""
PITCH = 10.0
"""Metres of a pixel on the ground."""
MAX_BYTES = 2_000_000_000
"""Crops that `read` returns at once, at most."""
GROUP = 16
"""Crops whose tiles are fetched together."""
EOX = (
    "Sentinel-2 cloudless (https://s2maps.eu) by EOX IT Services GmbH, contains modified Copernicus Sentinel data, "
    "CC BY-NC-SA 4.0"
)


class Imagery:
    """Square true-colour crops around places, from one source.

    `pitch`: metres of a pixel on the ground; `size`: pixels on a side. Raises LayerError for others than an
    even size of 2 to 2048 and a pitch of 0.1 to 1000 m.
    """

    def __init__(self, source: Mosaic | Tiles, pitch: float = PITCH, size: int = SIZE) -> None:
        if not (math.isfinite(pitch) and 0.1 <= pitch <= 1000.0 and 2 <= size <= 2048 and size % 2 == 0):
            raise LayerError(
                f"crops of {size} pixels of {pitch:g} m cannot be cut: size is even and 2..2048, pitch 0.1..1000 m."
            )
        self.source, self.pitch, self.size = source, float(pitch), int(size)

    @property
    def attribution(self) -> str:
        """Credit line of the imagery; "" when not known."""
        return self.source.attribution

    def crops(self, lon: np.ndarray, lat: np.ndarray) -> np.ndarray:
        """Crops at places: (N,), (N,) degrees -> (N, size, size, 3) uint8, row 0 north, column 0 west."""
        return self.read(lon, lat)[0]

    def known(self, lon: np.ndarray, lat: np.ndarray) -> np.ndarray:
        """Boolean (N,): there is imagery at the place (N,), (N,) degrees. Reads and fetches nothing else."""
        lon, lat = _places(lon, lat)
        middle = self.size // 2
        piece = (middle - 1, middle + 1, middle - 1, middle + 1)
        out = np.zeros(lon.size, dtype=bool)
        for k, image in self._images(lon, lat, piece):
            out[k] = _has_centre(image)
        return out

    def read(self, lon: np.ndarray, lat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Crops (N, size, size, 3) uint8 and, (N,) boolean, whether there is imagery at the place.

        Missing pixels take the mean colour of the rest of the crop; a crop without imagery at its place is
        black. Raises LayerError, and TooLargeError for crops of more than 2 GB: use `in_blocks`.
        """
        lon, lat = _places(lon, lat)
        if lon.size * self.size**2 * 3 > MAX_BYTES:
            raise TooLargeError(f"{lon.size:,} crops at once take more than {MAX_BYTES:,} bytes; read them in blocks.")
        crops = np.zeros((lon.size, self.size, self.size, 3), dtype=np.uint8)
        known = np.zeros(lon.size, dtype=bool)
        for k, image in self._images(lon, lat, (0, self.size, 0, self.size)):
            known[k] = _has_centre(image)
            if known[k]:
                missing = image[3] == 0
                if missing.any():
                    image[:3, missing] = np.rint(image[:3, ~missing].mean(axis=1, keepdims=True))
                crops[k] = np.moveaxis(image[:3], 0, 2)
        return crops, known

    def in_blocks(
        self, lon: np.ndarray, lat: np.ndarray, block: int = 256
    ) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
        """`read` of `block` places at a time: (slice of the places, crops, known)."""
        for start in range(0, np.size(lon), block):
            part = slice(start, start + block)
            yield part, *self.read(lon[part], lat[part])

    def check(self, lon: np.ndarray, lat: np.ndarray) -> None:
        """Raise LayerError when no imagery overlaps the places (N,), (N,) degrees or the server does not answer."""
        lon, lat = _places(lon, lat)
        ok = np.isfinite(lon + lat)
        self.source.check(lon[ok], lat[ok])

    def describe(self) -> str:
        """One sentence for the outputs: the crops and their source."""
        return (
            f"Satellite crops of {self.size} x {self.size} pixels of {self.pitch:g} m around each place, in the plane "
            f"touching the Earth there, from {self.source.describe()}."
        )

    def fingerprint(self) -> str:
        """Sixteen hex digits, equal for the same source read in the same way."""
        return fingerprint.of_parts([self.source.fingerprint(), self.pitch, self.size])

    def _images(
        self, lon: np.ndarray, lat: np.ndarray, piece: tuple[int, int, int, int]
    ) -> Iterator[tuple[int, np.ndarray]]:
        """(index of the place, red, green, blue and mask (4, size, size)) of each place that is finite.

        Only a piece (first row, end row, first column, end column) of the images is filled.
        """
        # Neighbouring places together: they share decoded blocks and tiles.
        order = np.lexsort((lon, np.floor(lat * 10.0)))
        order = order[np.isfinite(lon[order] + lat[order]) & (np.abs(lat[order]) <= 90.0)]
        radius = 0.5 * self.size * self.pitch * math.sqrt(2.0) + 2.0 * self.pitch
        for start in range(0, order.size, GROUP):
            places = [(int(k), Place(lon[k], lat[k], self.pitch, self.size)) for k in order[start : start + GROUP]]
            if isinstance(self.source, Tiles):
                fits = [fit_affine(self.source, place, piece) for _, place in places]
                self.source.prefetch((fit.corners, fit.linear) for fit in fits if fit is not None)
            for k, place in places:
                image = np.zeros((4, self.size, self.size), dtype=np.uint8)
                for layer in self.source.at(place.lon, place.lat, radius):
                    draw(layer, place, piece, image)
                    if image[3, piece[0] : piece[1], piece[2] : piece[3]].all():
                        break
                yield k, image


def open_imagery(
    spec: str | Path,
    *,
    pitch: float = PITCH,
    size: int = SIZE,
    cache_dir: str | Path | None = None,
    offline: bool = False,
) -> Imagery:
    """Open imagery from a path or an address.

    * a raster, or a folder of rasters: `scenes/`, `tile.tif#scale=0,3000`
    * a COG: `https://host/file.tif`
    * a STAC item or search result, as a file or an address: `https://host/item.json#visual`
    * tiles: `https://host/{z}/{x}/{y}.jpg`, WMTS's `.../{TileMatrix}/{TileRow}/{TileCol}.jpg`
    * a WMS: `https://host/wms?layers=NAME`

    Options follow a `#` or stand in the query: `scale=LOW,HIGH` for values of other than 8 bits,
    `bands=R,G,B`, `asset=NAME`, `maxzoom=N`, `tilesize=N`, `attribution=TEXT`.

    Parameters
    ----------
    spec
        Path or address, with options.
    pitch
        Metres of a pixel on the ground.
    size
        Pixels on a side of a crop.
    cache_dir
        Where fetched tiles are kept.
    offline
        Use cached tiles only.

    Raises
    ------
    LayerError
        For imagery or options that cannot be used.
    """
    where, options = _split(str(spec))
    colours = {
        "bands": options.get("bands"),
        "scale": options.get("scale"),
        "attribution": options.get("attribution", ""),
    }
    fetcher = Fetcher(cache_folder(cache_dir) / "tiles", offline=offline)
    return Imagery(_source(where, options, colours, fetcher), pitch, size)


def _source(where: str, options: dict[str, Any], colours: dict[str, Any], fetcher: Fetcher) -> Mosaic | Tiles:
    """The source at a path or address; `colours`: bands, scale and attribution from the options."""
    from sdm.layers import mosaic, stac

    if "://" not in where:
        if Path(where).suffix.lower() in (".json", ".geojson"):
            scenes = stac.read_items(where, options.get("asset"), fetcher)
            return mosaic.open_scenes(scenes, where, fetcher, **colours)
        return mosaic.open_files(where, **colours)
    host = urlsplit(where).hostname or ""
    credit = colours["attribution"] or (EOX if host == "eox.at" or host.endswith(".eox.at") else "")
    max_zoom = options.get("maxzoom", MAX_ZOOM)
    if "{" in where:
        return Tiles(XYZ(where), fetcher, options.get("tilesize", 256), max_zoom, credit)
    if "layers" in {k.lower() for k, _ in parse_qsl(urlsplit(where).query, keep_blank_values=True)}:
        return Tiles(WMS(where), fetcher, options.get("tilesize", WMS_SIDE), max_zoom, credit)
    if _looks_like_json(where, fetcher):
        scenes = stac.read_items(where, options.get("asset"), fetcher)
        return mosaic.open_scenes(scenes, redacted(where), fetcher, **colours)
    return mosaic.open_remote(where, fetcher, **colours)


def _looks_like_json(url: str, fetcher: Fetcher) -> bool:
    suffix = Path(urlsplit(url).path).suffix.lower()
    if suffix in (".json", ".geojson", ".tif", ".tiff", ".jp2"):
        return suffix.endswith("json")

    def parse(body: bytes, kind: str) -> bool:
        if not body:
            raise Unusable("the answer is empty.")
        return body.lstrip()[:1] in (b"{", b"[")

    # A server may send the whole file (status 200), as often happens with STAC items.
    return bool(fetcher.get(url, parse, max_bytes=64, first_bytes=64))


# Path or address with options ----------------------------------------------------------------------

_PARSERS: dict[str, Callable[[str], Any]] = {
    "scale": lambda v: _numbers(v, 2, float),
    "bands": lambda v: _numbers(v, 3, int),
    "maxzoom": lambda v: _integer(v, 0, 24),
    "tilesize": lambda v: _integer(v, 64, 1024),
    "asset": str,
    "attribution": lambda v: v[:200],
}


def _split(spec: str) -> tuple[str, dict[str, Any]]:
    """The path or address without the options, and the options."""
    if "://" not in spec and Path(spec).exists():
        return spec, {}
    where, _, tail = spec.partition("#")
    given = [_name_and_value(part) for part in tail.split("&") if part]
    if "://" in where:
        require_http(where)
        # Only our own options are taken out of the query; the others are the server's.
        parts = urlsplit(where)
        pairs = parts.query.split("&") if parts.query else []
        ours = [p for p in pairs if p.partition("=")[0] in ("scale", "bands")]
        given += parse_qsl("&".join(ours))
        where = urlunsplit(parts._replace(query="&".join(p for p in pairs if p not in ours)))
    elif not Path(where).exists():
        where, _, query = where.partition("?")
        given += parse_qsl(query, keep_blank_values=True)
    options = {}
    for name, value in given:
        if name not in _PARSERS:
            raise LayerError(f"imagery option {name[:40]!r} is not known; known: {', '.join(_PARSERS)}.")
        try:
            options[name] = _PARSERS[name](value)
        except ValueError as error:
            raise LayerError(f"imagery option {name}={value[:60]!r} {error}") from None
    return where, options


def _name_and_value(option: str) -> tuple[str, str]:
    """ "scale=0,3000" -> ("scale", "0,3000"); a word alone is an asset."""
    name, equals, value = option.partition("=")
    return (name, unquote(value)) if equals else ("asset", unquote(option))


def _numbers(text: str, count: int, kind: type[int] | type[float]) -> tuple[float, ...]:
    example = {2: "scale=0,3000", 3: "bands=4,3,2"}[count]
    try:
        values = tuple(kind(v) for v in text.split(","))
    except ValueError:
        values = ()
    if len(values) != count or not all(map(math.isfinite, values)) or (count == 2 and values[0] >= values[1]):
        rising = ", the first smaller" if count == 2 else ""
        raise ValueError(f"must be {count} numbers{rising}, as in {example}.")
    return values


def _integer(text: str, low: int, high: int) -> int:
    if not text.isdecimal() or not low <= int(text) <= high:
        raise ValueError(f"must be an integer from {low} to {high}.")
    return int(text)


def _has_centre(image: np.ndarray) -> bool:
    """Whether the four pixels that meet at the place are all present."""
    middle = image.shape[1] // 2
    return bool(image[3, middle - 1 : middle + 1, middle - 1 : middle + 1].all())


def _places(lon: np.ndarray, lat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    lon, lat = np.asarray(lon, dtype=np.float64).ravel(), np.asarray(lat, dtype=np.float64).ravel()
    if lon.shape != lat.shape:
        raise ValueError(f"lon has {lon.size} values and lat {lat.size}")
    return lon, lat
