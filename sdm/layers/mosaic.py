"""True-colour raster files: one, a folder of them, or COGs on a server, read window by window.

A folder is a mosaic without a VRT: where rasters overlap, the first by name takes precedence and the
others fill its gaps. Each keeps its own CRS, resolution and mask.
"""

from __future__ import annotations

import math
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyproj
import shapely

from sdm.errors import LayerError
from sdm.files import fingerprint
from sdm.layers.crop import Patch, cells_per_pixel
from sdm.layers.fetch import CONNECT_SECONDS, READ_SECONDS, USER_AGENT, Fetcher, Unusable, redacted
from sdm.layers.raster import CACHE, open_raster
from sdm.layers.stac import Scene

if TYPE_CHECKING:
    import rasterio
    from affine import Affine
    from rasterio.io import DatasetReader

SIGNATURES = {
    b"II*\0": "GTiff",
    b"MM\0*": "GTiff",
    b"II+\0": "GTiff",
    b"MM\0+": "GTiff",
    b"\xff\x4f\xff\x51": "JP2OpenJPEG",
    b"\0\0\0\x0cjP  ": "JP2OpenJPEG",
    b"\x89PNG": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"RIFF": "WEBP",
    b"EHFA_HEADER_TAG": "HFA",
}
"""GDAL drivers by the first bytes of a file; GDAL tries no other. VRT is excluded on purpose: a VRT can name any file
or address."""
REMOTE = ("GTiff", "JP2OpenJPEG")
"""Formats of which a part can be read without the rest."""
SUFFIXES = (".tif", ".tiff", ".jp2")
"""Names of the rasters in a folder."""
OPEN_FILES = 16
"""Rasters a thread keeps open."""
PROBE_BYTES = 16384
"""Beginning of a remote file that is read to recognise its format."""
MAX_CELLS = 40_000_000
"""Cells of one window in all bands: a crop needs more only where a georeference is wrong."""

HTTP = {
    "GDAL_HTTP_CONNECTTIMEOUT": str(int(CONNECT_SECONDS)),
    "GDAL_HTTP_TIMEOUT": str(int(READ_SECONDS)),
    "GDAL_HTTP_MAX_RETRY": "4",
    "GDAL_HTTP_RETRY_DELAY": "0.5",
    "GDAL_HTTP_USERAGENT": USER_AGENT,
    "GDAL_HTTP_MULTIPLEX": "NO",
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",  # do not ask the server for .aux.xml, .ovr, .msk
}


class Mosaic:
    """True-colour rasters in order of precedence; `title` names them in messages. Raises LayerError."""

    def __init__(self, rasters: Sequence[Raster], title: str, attribution: str = "") -> None:
        self.rasters = tuple(rasters)
        self.title = title
        self.attribution = attribution
        boxes = [(box, k) for k, raster in enumerate(self.rasters) for box in raster.footprint()]
        self._boxes = [box for box, _ in boxes]
        self._owner = np.array([k for _, k in boxes])
        self._tree = shapely.STRtree(self._boxes)

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        del state["_tree"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._tree = shapely.STRtree(self._boxes)

    def at(self, lon: float, lat: float, radius: float) -> list[Raster]:
        """The rasters that may have pixels within `radius` metres of (lon, lat), in order of precedence."""
        half_height = math.degrees(radius / 6.3e6)
        narrowest = max(math.cos(math.radians(min(abs(lat) + half_height, 90.0))), 1e-9)
        half_width = min(half_height / narrowest, 180.0)
        south, north = lat - half_height, lat + half_height
        boxes = [shapely.box(lon - half_width + t, south, lon + half_width + t, north) for t in (-360, 0, 360)]
        hits = self._tree.query(boxes)[1]
        return [self.rasters[k] for k in np.unique(self._owner[hits])]

    def check(self, lon: np.ndarray, lat: np.ndarray) -> None:
        """Raise LayerError unless a raster lies at one of the places (N,), (N,) degrees."""
        if self._tree.query(shapely.points(lon, lat)).size == 0:
            west, south, east, north = shapely.total_bounds(self._boxes)
            raise LayerError(
                f"satellite imagery {self.title!r} covers {west:g} {south:g} {east:g} {north:g} (west south east "
                "north), which does not overlap the map; give imagery of the area, or leave the option out."
            )

    def describe(self) -> str:
        """Names the rasters and how their values are scaled, for the outputs."""
        first = self.rasters[0]
        many = f"{len(self.rasters)} rasters of" if len(self.rasters) > 1 else "raster"
        text = f"{many} {self.title!r}"
        if len(self.rasters) > 1:
            text += " (first by name wins, the next fill its gaps)"
        if first.scale:
            text += f", values {first.scale[0]:g} to {first.scale[1]:g} scaled to 0 to 255"
        return text

    def fingerprint(self) -> str:
        """Hash of the rasters' content and of how they are read."""
        return fingerprint.of_parts([*(r.content() for r in self.rasters), *(r.options() for r in self.rasters)])


class Raster:
    """One true-colour raster, local or on a server; opened when first needed."""

    def __init__(
        self,
        path: str,
        bands: tuple[int, ...] | None = None,
        scale: tuple[float, float] | None = None,
        fetcher: Fetcher | None = None,
        scene: Scene | None = None,
    ) -> None:
        """Note how to read a raster; nothing is opened.

        Parameters
        ----------
        path
            Path, or http(s) address.
        bands
            Numbers of the red, green and blue band, from 1; needed unless the file names them or has three.
        scale
            Values (low, high) that become 0 and 255; needed unless the bands have 8 bits.
        fetcher
            For an address: fetches the beginning of the file.
        scene
            The STAC item the raster belongs to.
        """
        self.path = path
        self.remote = "://" in path
        self.bands, self.scale, self._fetcher, self._scene = bands, scale, fetcher, scene
        self._info: _Info | None = None
        self._format: tuple[str, str] | None = None

    @property
    def label(self) -> str:
        """The path, or the address without secrets, for messages."""
        return redacted(self.path) if self.remote else self.path

    @property
    def info(self) -> _Info:
        """CRS, geotransform, size, bands. Raises LayerError when the raster cannot be used."""
        if self._info is None:
            with _environment(self.remote):
                self._info = _inspect(self)
        return self._info

    @property
    def crs(self) -> str:
        """CRS as WKT."""
        return self.info.crs

    @property
    def period(self) -> float | None:
        """Length of one turn round the Earth along x, in CRS units; None where x is not periodic."""
        return self.info.period

    def content(self) -> str:
        """Hash of samples of the file's content; of a STAC scene, of its name, which identifies the content."""
        if self._scene is not None:
            return fingerprint.of_parts([self._scene.name, self.label])
        return self.info.start if self.remote else fingerprint.of_file(self.path)

    def start(self) -> tuple[str, str]:
        """GDAL's name of the format, and a hash of a remote file's beginning. Raises LayerError for other formats."""
        if self._format is None:
            if self._fetcher is not None and self.remote:
                self._format = _probe(self.path, self._fetcher)
            else:
                self._format = _format_of_file(self.path), ""
        return self._format

    def options(self) -> str:
        """The reading options of the raster, for the fingerprint."""
        return f"bands {self.bands} scale {self.scale}"

    def footprint(self) -> list[shapely.Polygon]:
        """Boxes that contain the raster, (lon, lat) in degrees, lon in -180..180."""
        west, south, east, north = (self._scene and self._scene.bbox) or self.info.lonlat_bounds()
        if east < west:
            east += 360.0
        pad = 1e-6 + 1e-3 * max(east - west, north - south)
        west, south, east, north = west - pad, south - pad, east + pad, north + pad
        if east - west >= 360.0:
            return [shapely.box(-180.0, south, 180.0, north)]
        west = (west + 180.0) % 360.0 - 180.0
        east = west + (east - west) % 360.0
        if east <= 180.0:
            return [shapely.box(west, south, east, north)]
        return [shapely.box(west, south, 180.0, north), shapely.box(-180.0, south, east - 360.0, north)]

    def patches(self, corners: np.ndarray, linear: np.ndarray) -> Iterator[Patch]:
        """The pixels within a quadrilateral, see `Layer`; cells much finer than needed are averaged."""
        from affine import Affine

        info = self.info
        for turn in info.turns(corners[:, 0].min(), corners[:, 0].max()):
            col, row = _apply(~info.transform, corners, -turn)
            c0, c1 = max(math.floor(col.min()) - 2, 0), min(math.ceil(col.max()) + 2, info.width)
            r0, r1 = max(math.floor(row.min()) - 2, 0), min(math.ceil(row.max()) + 2, info.height)
            if c0 >= c1 or r0 >= r1:
                continue
            fx, fy = _decimation(info.transform, linear)
            # On multiples of the factor, so that a pixel is the same in every window.
            c0, r0 = c0 - c0 % fx, r0 - r0 % fy
            c1, r1 = min(-(-c1 // fx) * fx, info.width), min(-(-r1 // fy) * fy, info.height)
            rows, cols = -(-(r1 - r0) // fy), -(-(c1 - c0) // fx)
            if 4 * rows * cols > MAX_CELLS:
                raise LayerError(
                    f"satellite raster {self.label!r} has cells far too small for its extent; check its CRS."
                )
            pixels = self._read((c0, r0, c1 - c0, r1 - r0), (rows, cols))
            t, sx, sy = info.transform, (c1 - c0) / cols, (r1 - r0) / rows
            x, y = t.a * c0 + t.b * r0 + t.c + turn, t.d * c0 + t.e * r0 + t.f
            yield Patch(pixels, Affine(t.a * sx, t.b * sy, x, t.d * sx, t.e * sy, y))

    def _read(self, window: tuple[int, int, int, int], shape: tuple[int, int]) -> np.ndarray:
        """Red, green, blue and mask (4, *shape) uint8 of a window (column, row, width, height)."""
        from rasterio.enums import Resampling
        from rasterio.errors import RasterioError
        from rasterio.windows import Window

        bands = list(self.info.bands)
        options = {"window": Window(*window), "out_shape": (3, *shape)}
        out = np.empty((4, *shape), dtype=np.uint8)
        try:
            with _environment(self.remote):
                dataset = _open_datasets.get(self)
                values = dataset.read(bands, resampling=Resampling.average, **options)
                if self.info.masked:
                    masks = dataset.read_masks(bands, **options)
                    out[3] = np.where((masks > 127).any(axis=0), 255, 0)
                else:
                    out[3] = 255
        except (RasterioError, OSError) as error:
            _open_datasets.drop(self)
            raise LayerError(f"satellite raster {self.label!r} cannot be read: {_reason(error, self)}") from error
        if self.scale is not None:
            low, high = self.scale
            values = values.astype(np.float32)
            missing = ~np.isfinite(values).all(axis=0)
            values = np.clip((np.nan_to_num(values) - low) * (255.0 / (high - low)), 0.0, 255.0)
            out[:3] = np.rint(values)
            out[3][missing] = 0
        else:
            out[:3] = values
        return out


def open_files(
    where: str, bands: tuple[int, ...] | None = None, scale: tuple[float, float] | None = None, attribution: str = ""
) -> Mosaic:
    """The raster or folder of rasters at a path; `bands` and `scale` as for `Raster`. Raises LayerError."""
    path = Path(where)
    if path.is_dir():
        files = sorted((p for p in path.iterdir() if p.suffix.lower() in SUFFIXES), key=lambda p: p.name)
        if not files:
            raise LayerError(f"satellite folder {where!r} holds no raster ({', '.join(SUFFIXES)}).")
    elif path.exists():
        files = [path]
    else:
        raise LayerError(f"satellite imagery {where!r} does not exist; give a raster, a folder of them or an address.")
    rasters = [Raster(str(p), bands, scale) for p in files]
    return Mosaic(rasters, where, attribution or rasters[0].info.copyright)


def open_remote(
    url: str,
    fetcher: Fetcher,
    bands: tuple[int, ...] | None = None,
    scale: tuple[float, float] | None = None,
    attribution: str = "",
) -> Mosaic:
    """The COG or JPEG 2000 file at an http(s) address, of which only the necessary parts are read.

    Parameters
    ----------
    url
        Address of the file.
    fetcher
        Fetches its beginning.
    bands, scale
        As for `Raster`.
    attribution
        Credit line for the outputs; by default the file's own.

    Raises
    ------
    LayerError
        For a file that does not exist or cannot be used.
    """
    raster = Raster(url, bands, scale, fetcher)
    return Mosaic([raster], redacted(url), attribution or raster.info.copyright)


def open_scenes(
    scenes: Sequence[Scene],
    where: str,
    fetcher: Fetcher,
    bands: tuple[int, ...] | None = None,
    scale: tuple[float, float] | None = None,
    attribution: str = "",
) -> Mosaic:
    """The rasters of STAC items, in the items' order.

    Parameters
    ----------
    scenes
        The items' rasters.
    where
        Address of the items, for messages.
    fetcher
        Fetches the beginnings of the rasters.
    bands, scale
        As for `Raster`.
    attribution
        Credit line for the outputs; by default the items' own.

    Raises
    ------
    LayerError
        When the first raster cannot be used.
    """
    rasters = [Raster(scene.href, bands, scale, fetcher, scene) for scene in scenes]
    _ = rasters[0].info  # fails now if the server does not answer; the others are opened where a map needs them
    credit = attribution or next((s.credit for s in scenes if s.credit), "")
    return Mosaic(rasters, f"{where} ({scenes[0].name})" if len(scenes) == 1 else where, credit)


def _format(start: bytes) -> str | None:
    """GDAL's name for the format of a file with this beginning."""
    return next((driver for magic, driver in SIGNATURES.items() if start.startswith(magic)), None)


# One file ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Info:
    """The properties of a raster."""

    crs: str
    period: float | None
    transform: Affine
    width: int
    height: int
    bands: tuple[int, int, int]
    masked: bool
    copyright: str
    start: str
    """Hash of a remote file's beginning, which changes with its content."""

    def corners(self) -> np.ndarray:
        """Corners (4, 2) in the CRS, (x, y)."""
        w, h = self.width, self.height
        return np.column_stack(_apply(self.transform, np.array([[0, 0], [w, 0], [w, h], [0, h]], dtype=float)))

    def turns(self, low: float, high: float) -> list[float]:
        """Shifts along x, whole turns round the Earth, with which the raster meets the interval low..high."""
        if self.period is None:
            return [0.0]
        x = self.corners()[:, 0]
        first, last = math.ceil((low - x.max()) / self.period), math.floor((high - x.min()) / self.period)
        return [k * self.period for k in range(first, last + 1)]

    def lonlat_bounds(self) -> tuple[float, float, float, float]:
        """(west, south, east, north) in degrees; west > east across the antimeridian."""
        (left, bottom), (right, top) = self.corners().min(axis=0), self.corners().max(axis=0)
        if self.period is not None and right - left >= 0.999 * self.period:
            left, right = -0.5 * self.period, 0.5 * self.period
        crs = pyproj.CRS.from_wkt(self.crs)
        if crs.is_geographic:
            return left, max(bottom, -90.0), right, min(top, 90.0)
        to_degrees = pyproj.Transformer.from_crs(crs, "EPSG:4326", always_xy=True)
        bounds = to_degrees.transform_bounds(left, bottom, right, top, densify_pts=101)
        if not all(map(math.isfinite, bounds)):
            return -180.0, -90.0, 180.0, 90.0
        return bounds


def _inspect(raster: Raster) -> _Info:
    label = raster.label
    try:
        dataset = _open_datasets.get(raster)
        crs, transform = dataset.crs, dataset.transform
        if crs is None or transform.is_identity or transform.determinant == 0:
            raise LayerError(f"satellite raster {label!r} has no georeference; give one with a CRS and a geotransform.")
        bands = _true_colour(dataset, raster)
        wkt = crs.to_wkt()
        return _Info(
            crs=wkt,
            period=_period(wkt),
            transform=transform,
            width=dataset.width,
            height=dataset.height,
            bands=bands,
            masked=not all(f.name == "all_valid" for b in bands for f in dataset.mask_flag_enums[b - 1]),
            copyright=str(dataset.tags().get("TIFFTAG_COPYRIGHT", ""))[:200],
            start=raster.start()[1],
        )
    except LayerError:
        _open_datasets.drop(raster)
        raise


def _true_colour(dataset: DatasetReader, raster: Raster) -> tuple[int, int, int]:
    """Numbers of the red, green and blue band. Raises LayerError when they cannot be displayed as they are."""
    from rasterio.enums import ColorInterp

    label = raster.label
    if raster.bands:
        if len(raster.bands) != 3 or not all(1 <= b <= dataset.count for b in raster.bands):
            raise LayerError(
                f"satellite raster {label!r} has bands 1..{dataset.count}; bands={raster.bands} are not three of them."
            )
        red, green, blue = raster.bands
    else:
        meanings = list(dataset.colorinterp)
        colours = (ColorInterp.red, ColorInterp.green, ColorInterp.blue)
        if all(colour in meanings for colour in colours):
            red, green, blue = (meanings.index(colour) + 1 for colour in colours)
        elif dataset.count == 3:
            red, green, blue = 1, 2, 3
        else:
            raise LayerError(
                f"satellite raster {label!r} has {dataset.count} band(s) and does not say which are red, green and "
                "blue; add #bands=R,G,B with their numbers (gdal_translate -expand rgb makes them of a palette)."
            )
    bands = (red, green, blue)
    kinds = {dataset.dtypes[b - 1] for b in bands}
    if raster.scale is None and kinds != {"uint8"}:
        raise LayerError(
            f"satellite raster {label!r} holds {', '.join(sorted(kinds))}, not 8-bit colour; say which values are "
            "black and white with #scale=LOW,HIGH (Sentinel-2 reflectance: #scale=0,3000)."
        )
    return bands


def _period(wkt: str) -> float | None:
    """Length of one turn round the Earth along x, in CRS units; None unless the projection is cylindrical."""
    crs = pyproj.CRS.from_wkt(wkt)
    if crs.is_geographic:
        return 360.0
    method = crs.coordinate_operation.method_name.lower() if crs.coordinate_operation else ""
    upright = ("mercator" in method or "cylindrical" in method) and not any(
        w in method for w in ("transverse", "oblique", "cassini")
    )
    if not upright:
        return None
    x, _ = pyproj.Transformer.from_crs(crs.geodetic_crs, crs, always_xy=True).transform([0.0, 1.0], [0.0, 0.0])
    # The seam may lie within this degree; x then falls by a turn less a degree.
    return 360.0 * abs(x[1] - x[0]) if x[1] > x[0] else None


def _apply(transform: Affine, points: np.ndarray, shift: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """An affine transform of points (N, 2), first shifted along x."""
    x, y = points[:, 0] + shift, points[:, 1]
    t = transform
    return t.a * x + t.b * y + t.c, t.d * x + t.e * y + t.f


def _decimation(transform: Affine, linear: np.ndarray) -> tuple[int, int]:
    """Cells along the raster's columns and rows to average before warping: powers of two.

    At least two cells remain per wanted pixel, which the warp averages by their exact position; at least
    one where a pixel spans less than one cell along the other axis.
    """
    across, down = cells_per_pixel(transform, linear)
    remaining = 1.0 if min(across, down) < 0.999 else 2.0

    def factor(cells: float) -> int:
        return 1 << max(0, math.floor(math.log2(max(cells, 1e-9) / remaining) + 1e-9))

    return factor(across), factor(down)


class _OpenDatasets(threading.local):
    """Open datasets of this thread, the least recently used closed first. GDAL's must not be shared."""

    def __init__(self) -> None:
        self._datasets: OrderedDict[tuple[object, ...], DatasetReader] = OrderedDict()

    @staticmethod
    def _key(raster: Raster) -> tuple[object, ...]:
        """Identifies the file and its present content: a file that was replaced is opened again."""
        try:
            info = None if raster.remote else Path(raster.path).stat()
        except OSError:
            info = None
        return (raster.path, info and info.st_mtime_ns, info and info.st_size)

    def get(self, raster: Raster) -> DatasetReader:
        """The open dataset of a raster."""
        key = self._key(raster)
        dataset = self._datasets.get(key)
        if dataset is None:
            while len(self._datasets) >= OPEN_FILES:
                self._datasets.popitem(last=False)[1].close()
            dataset = self._datasets[key] = _open(raster)
        self._datasets.move_to_end(key)
        return dataset

    def drop(self, raster: Raster) -> None:
        """Close the dataset of a raster, if it is open."""
        dataset = self._datasets.pop(self._key(raster), None)
        if dataset is not None:
            dataset.close()


_open_datasets = _OpenDatasets()


def _environment(remote: bool) -> rasterio.Env:
    """GDAL's settings for reading a local or remote file."""
    import rasterio

    limit = {} if "GDAL_CACHEMAX" in os.environ else {"GDAL_CACHEMAX": CACHE}
    return rasterio.Env(**limit, **(HTTP if remote else {}))


def _open(raster: Raster) -> DatasetReader:
    import rasterio
    from rasterio.errors import RasterioError

    driver = raster.start()[0]
    try:
        if not raster.remote:
            return open_raster(raster.path, "satellite raster")
        return rasterio.open(f"/vsicurl/{raster.path}", driver=driver)
    except (RasterioError, OSError, ValueError) as error:
        raise LayerError(
            f"satellite raster {raster.label!r} cannot be read as {driver}: {_reason(error, raster)}"
        ) from error


def _format_of_file(path: str) -> str:
    try:
        with Path(path).open("rb") as file:
            start = file.read(4096)
    except OSError as error:
        raise LayerError(f"satellite raster {path!r} cannot be read: {error.strerror}.") from error
    if b"<VRTDataset" in start:
        raise LayerError(
            f"satellite raster {path!r} is a VRT, which can point at any file or address; "
            "give the rasters themselves, or the folder they are in."
        )
    driver = _format(start)
    if driver is None:
        known = ", ".join(dict.fromkeys(SIGNATURES.values()))
        raise LayerError(f"satellite raster {path!r} is of no format that is read ({known}); convert it to GeoTIFF.")
    return driver


def _probe(url: str, fetcher: Fetcher) -> tuple[str, str]:
    """Format of a file on a server and a hash of its beginning. Raises LayerError unless it can be read."""

    def parse(body: bytes, kind: str) -> tuple[str, str]:
        driver = _format(body)
        if driver not in REMOTE:
            raise Unusable(f"this is not a GeoTIFF or JPEG 2000 file (content type {kind[:60] or 'not given'}).")
        return driver, fingerprint.of_parts([body.hex()])

    if fetcher.offline:
        raise LayerError(f"satellite raster {redacted(url)!r} is read from its server, which --offline forbids.")
    probed = fetcher.get(url, parse, max_bytes=PROBE_BYTES, first_bytes=PROBE_BYTES, needs_ranges=True)
    if probed is None:
        raise LayerError(f"satellite raster {redacted(url)!r} does not exist (HTTP status 404); check the address.")
    return probed


def _reason(error: Exception, raster: Raster) -> str:
    """The first line of GDAL's message, without the keys that an address may contain."""
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    return text.replace(raster.path, raster.label)[:300]
