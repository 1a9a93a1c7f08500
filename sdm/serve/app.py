"""The explorer over HTTP, for one user on one machine: it reads, and takes files of records.

Any web page can make a browser send requests to this machine. So the server accepts only GET and HEAD, at one
address POST, and only under its own names (another name would mean DNS rebinding); it sends nothing that pages of
other origins could read or embed; lengths, queues and files are bounded; errors are one sentence of JSON. The path of
a request never reaches the file system: static files are read into a dictionary at the start.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gzip
import ipaddress
import json
import math
import re
import socket
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from tornado.http1connection import HTTP1Connection
from tornado.iostream import StreamClosedError
from tornado.netutil import bind_sockets
from tornado.web import Application, HTTPError, RequestHandler, stream_request_body

from sdm.errors import RecordsError, RequestError, SdmError, SpeciesNameError
from sdm.serve.dropped import suffix_of
from sdm.serve.refusal import RefusingServer
from sdm.serve.state import Explorer

MAX_URL = 2000
"""Characters of a request's target: a species name has at most 200, each up to 12 when escaped."""
MAX_HEADERS = 16_384
"""Bytes of a request's headers."""
READ_HEADERS = 1 << 20
"""Bytes of headers that are read to answer with a reason; longer ones are refused before their end."""
MAX_WAITING = 64
"""Requests in progress or waiting; further ones are refused with status 503."""
MAX_DOWNLOADS = 2
"""GeoTIFFs written or sent at the same time."""
WORKERS = 16
"""Threads; most of them wait for cosines that one of them computes."""
MAX_UPLOAD = 32 << 20
"""Bytes of a dropped file."""
UPLOAD_TIMEOUT = 120.0
"""Seconds in which it must have come."""
STALLED = 60.0
"""Seconds without progress after which a download is aborted."""

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Cache-Control": "no-cache",
}

_PAGE = {
    "index.html": "text/html; charset=utf-8",
    "explorer.css": "text/css; charset=utf-8",
    "explorer.js": "text/javascript; charset=utf-8",
    "map.js": "text/javascript; charset=utf-8",
    "search.js": "text/javascript; charset=utf-8",
}
_LEAFLET = {"leaflet.js": "text/javascript; charset=utf-8", "leaflet.css": "text/css; charset=utf-8"}


class Server:
    """The explorer on sockets from `listen`. Create and `close` it inside a running asyncio loop."""

    def __init__(
        self, explorer: Explorer, sockets: list[socket.socket], host: str = "127.0.0.1", *, open_tiles: bool = False
    ) -> None:
        """`open_tiles`: pages of other origins may show the images of tiles."""
        self.explorer, self.host, self.open_tiles = explorer, host, open_tiles
        self.port = sockets[0].getsockname()[1]
        self.names = own_names(host)
        self.files = _static_files()
        """By path: content and content type."""
        self._folder = tempfile.TemporaryDirectory(prefix="taxabind-map-serve-", ignore_cleanup_errors=True)
        self.folder = Path(self._folder.name)
        self.pool = ThreadPoolExecutor(WORKERS, "explorer")
        # Suggestions while typing must not wait for maps.
        self.names_pool = ThreadPoolExecutor(1, "names")
        self.waiting = self.downloads = self.drops = 0
        self._http = RefusingServer(
            _application(self),
            max_header_size=READ_HEADERS,
            max_body_size=1024,
            max_buffer_size=2 * READ_HEADERS,
            idle_connection_timeout=120.0,
            body_timeout=5.0,
        )
        self._http.add_sockets(sockets)

    @property
    def url(self) -> str:
        """Address of the page for a browser on this machine."""
        host = "127.0.0.1" if self.host in ("0.0.0.0", "") else "::1" if self.host == "::" else self.host
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}/"

    async def close(self) -> None:
        """Stop listening, close connections, cancel waiting requests, remove temporary files."""
        self._http.stop()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._http.close_all_connections(), 2.0)
        self.pool.shutdown(wait=False, cancel_futures=True)
        self.names_pool.shutdown(wait=False, cancel_futures=True)
        self.explorer.close()
        self._folder.cleanup()


def listen(host: str, port: int) -> list[socket.socket]:
    """Open sockets on a port of this machine; 0 takes any that is free.

    Raises RequestError for a host that is not this machine's, or a port that is taken or not allowed.
    """
    try:
        return bind_sockets(port, host)
    except (OSError, UnicodeError, OverflowError) as error:
        raise RequestError(_why_not(host, port, error)) from None


def is_loopback(host: str) -> bool:
    """True for a host to which only programs on this machine can connect."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def own_names(host: str) -> Callable[[str], bool]:
    """A test whether the name in a Host header is the server's own, for a server that listens on `host`.

    A hostile page can let its own domain name point at this machine, but cannot take over an IP address. So
    IP addresses are accepted: loopback ones, and any when other machines may connect. Of names, localhost is
    accepted, and the machine's when others may connect.
    """
    names = {"localhost", host.lower()}
    if not is_loopback(host):
        names |= {socket.gethostname().lower(), socket.getfqdn().lower()}

    def is_own(name: str) -> bool:
        if name.lower() in names:
            return True
        try:
            address = ipaddress.ip_address(name.strip("[]"))
        except ValueError:
            return False
        return address.is_loopback or not is_loopback(host)

    return is_own


def _why_not(host: str, port: int, error: Exception) -> str:
    number = getattr(error, "errno", None)
    if number == errno.EADDRINUSE:
        return f"port {port} of {host} is in use; choose another with --port, or --port 0 for any that is free."
    if number == errno.EACCES:
        return f"port {port} of {host} may not be used by this account; choose one above 1023 with --port."
    return f"host {host!r} is not an address of this machine; leave --host out to serve on this machine only."


def _application(server: Server) -> Application:
    handlers: list[tuple[str, type[Handler]]] = [
        (r"/api/index", Index),
        (r"/api/basemap", Basemap),
        (r"/api/suggest", Suggest),
        (r"/api/species", Species),
        (r"/api/picture", Picture),
        (r"/api/tile/(\d{1,2})/(\d{1,8})/(\d{1,8})", MapTile),
        (r"/tiles/([^/]+)/(\d{1,2})/(\d{1,8})/(\d{1,8})\.png", TileImage),
        (r"/api/place", Place),
        (r"/api/download", Download),
        (r"/api/drop", Drop),
    ]
    handlers += [(re.escape(path), Static) for path in server.files]
    common = {"server": server}
    return Application(
        [(pattern, handler, common) for pattern, handler in handlers],
        default_handler_class=Missing,
        default_handler_args=common,
        compress_response=True,
        log_function=lambda handler: None,
    )


def _static_files() -> dict[str, tuple[bytes, str]]:
    """Content and content type of the page's files, by path."""
    static = {}
    page, leaflet = files("sdm.serve") / "page", files("sdm.outputs") / "assets"
    for folder, content_types in ((page, _PAGE), (leaflet, _LEAFLET)):
        for name, content_type in content_types.items():
            # Without its last comment, for which developer tools would request a source map.
            text = re.sub(r"//# sourceMappingURL=.*", "", (folder / name).read_text(encoding="utf-8"))
            static["/" if name == "index.html" else f"/static/{name}"] = (text.encode(), content_type)
    return static


class Handler(RequestHandler):
    """Common to all requests: headers, checks, errors."""

    SUPPORTED_METHODS: tuple[str, ...] = ("GET", "HEAD")

    def initialize(self, server: Server) -> None:
        """Set by the routes."""
        self.server, self.explorer = server, server.explorer

    def set_default_headers(self) -> None:
        """The same for pages, data and errors."""
        self.clear_header("Server")
        for name, value in HEADERS.items():
            self.set_header(name, value)

    def prepare(self) -> None:
        """Refuse requests from pages of other origins, and under names that are not the server's own."""
        given = self.request.headers.get("Host", "")
        host = re.sub(r":\d*\Z", "", given)
        if not self.server.names(host):
            raise HTTPError(421, "this server answers only under its own name: use the address it printed.")
        if self.own_pages_only():
            self._refuse_other_pages(given)
        if len(self.request.uri or "") > MAX_URL:
            raise HTTPError(414, f"the address has more than {MAX_URL} characters; shorten the species name.")
        if sum(len(name) + len(value) + 4 for name, value in self.request.headers.get_all()) > MAX_HEADERS:
            raise HTTPError(431, f"the headers have more than {MAX_HEADERS} bytes; send fewer cookies.")

    def own_pages_only(self) -> bool:
        """Whether pages of other origins are refused."""
        return True

    def _refuse_other_pages(self, given: str) -> None:
        origin = self.request.headers.get("Origin")
        if origin is not None and origin.partition("://")[2].lower() != given.lower():
            raise HTTPError(403, "pages of other sites may not use this server.")
        if self.request.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin"):
            # A link on another site may open the page itself, over which that site has no control.
            navigation = self.request.headers.get("Sec-Fetch-Mode") == "navigate" and self.request.path == "/"
            if not navigation:
                raise HTTPError(403, "pages of other sites may not use this server.")

    def asked(self, name: str, default: str | None = None) -> str:
        """One argument of the query. Raises HTTPError 400 where it is missing, repeated or not UTF-8."""
        values = self.get_query_arguments(name, strip=True)
        if len(values) > 1 or (not values and default is None):
            raise HTTPError(400, f"give {name!r} once, for example {name}={'-110.5' if name == 'lon' else '...'}.")
        return values[0] if values else str(default)

    def origin(self) -> str:
        """Which range of the species is asked for: native, or all."""
        return self.asked("origin", "native")

    async def work(self, function: Callable[..., Any], *arguments: Any, names: bool = False) -> Any:
        """Run in a thread. Raises HTTPError 503 when too many requests wait; `names`: in the thread for suggestions."""
        if self.server.waiting >= MAX_WAITING:
            raise HTTPError(503, "too many requests at once; try again in a second.")
        self.server.waiting += 1
        pool = self.server.names_pool if names else self.server.pool
        try:
            return await asyncio.get_running_loop().run_in_executor(pool, partial(function, *arguments))
        finally:
            self.server.waiting -= 1

    def send(self, value: Any) -> None:
        """Answer with JSON."""
        self.set_header("Content-Type", "application/json; charset=utf-8")
        self.finish(json.dumps(value, ensure_ascii=False, allow_nan=False))

    async def send_levels(self, make: Callable[[], np.ndarray]) -> None:
        """Answer with the bytes of an image, row by row from the north."""
        compress = "gzip" in self.request.headers.get("Accept-Encoding", "")
        if compress:
            self.set_header("Content-Encoding", "gzip")
        self.set_header("Vary", "Accept-Encoding")
        self.set_header("Content-Type", "application/octet-stream")

        def body() -> bytes:
            levels = make().tobytes()
            # Level 1 is fast, and images compress well.
            return gzip.compress(levels, 1, mtime=0) if compress else levels

        self.finish(await self.work(body))

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """One sentence, as JSON."""
        error = kwargs.get("exc_info", (None, None, None))[1]
        message = getattr(error, "log_message", None) or getattr(error, "reason", None)
        if isinstance(error, SdmError):
            status_code = 404 if isinstance(error, SpeciesNameError) else 400 if error.exit_code == 2 else 500
            message = str(error)
        elif status_code == 405:
            self.set_header("Allow", ", ".join(self.SUPPORTED_METHODS))
            message = (
                "this server only reads: use GET or HEAD."
                if "GET" in self.SUPPORTED_METHODS
                else "this address takes a file: use POST."
            )
        elif status_code == 503:
            self.set_header("Retry-After", "2")
        elif status_code >= 500 and not isinstance(error, HTTPError):
            message = f"unexpected failure: {type(error).__name__}; see the server's terminal."
        self.set_status(status_code)
        self.send({"error": message or self._reason})

    def log_exception(self, kind: Any, error: Any, trace: Any) -> None:
        """Log unexpected errors only."""
        if not isinstance(error, HTTPError | SdmError | StreamClosedError):
            super().log_exception(kind, error, trace)


class Static(Handler):
    """A file of the page."""

    def get(self) -> None:
        """The file."""
        content, content_type = self.server.files[self.request.path]
        self.set_header("Content-Type", content_type)
        self.finish(content)

    head = get


class Missing(Handler):
    """Any other address."""

    def get(self) -> None:
        """An error."""
        raise HTTPError(404, "there is nothing at this address.")

    head = get


class Index(Handler):
    """The index and its model."""

    async def get(self) -> None:
        """See `Explorer.info`."""
        self.send(await self.work(self.explorer.info))

    head = get


class Basemap(Handler):
    """Land and borders, as two GeoJSON geometries."""

    async def get(self) -> None:
        """See `Explorer.basemap`."""
        land, borders = await self.work(self.explorer.basemap)
        self.set_header("Content-Type", "application/json; charset=utf-8")
        self.finish(f'{{"land":{land},"borders":{borders}}}')

    head = get


class Suggest(Handler):
    """Names similar to `q`."""

    async def get(self) -> None:
        """See `Explorer.suggest`."""
        self.send(await self.work(self.explorer.suggest, self.asked("q"), names=True))

    head = get


class Species(Handler):
    """The taxon of `name`."""

    async def get(self) -> None:
        """See `Explorer.describe`."""
        self.send(await self.work(self.explorer.describe, self.asked("name"), self.origin()))

    head = get


class Picture(Handler):
    """The levels of `name` on the frame of api/index."""

    async def get(self) -> None:
        """See `Explorer.picture`."""
        name, origin = self.asked("name"), self.origin()
        await self.send_levels(lambda: self.explorer.picture(name, origin).levels)

    head = get


class MapTile(Handler):
    """The levels of `name` on one tile of the web map."""

    async def get(self, zoom: str, x: str, y: str) -> None:
        """See `Explorer.tile`."""
        name, origin = self.asked("name"), self.origin()
        await self.send_levels(lambda: self.explorer.tile(name, int(zoom), int(x), int(y), origin))

    head = get


class TileImage(Handler):
    """The same as an image for other programs: `tiles/{species}/{z}/{x}/{y}.png`, at every zoom."""

    def prepare(self) -> None:
        """Let pages of other origins show it, where the user of this server allows that."""
        if self.server.open_tiles:
            self.set_header("Cross-Origin-Resource-Policy", "cross-origin")
            self.set_header("Access-Control-Allow-Origin", "*")
        super().prepare()

    async def get(self, name: str, zoom: str, x: str, y: str) -> None:
        """See `Explorer.image`."""
        origin = self.origin()
        image = await self.work(self.explorer.image, name, int(zoom), int(x), int(y), origin)
        self.set_header("Content-Type", "image/png")
        self.finish(image)

    head = get

    def own_pages_only(self) -> bool:
        """Not where the user opened the tiles."""
        return not self.server.open_tiles


class Place(Handler):
    """The place `lon`, `lat`, with the species `name` if given."""

    async def get(self) -> None:
        """See `Explorer.place`."""
        lon, lat = self._degrees("lon", 720.0), self._degrees("lat", 90.0)
        name = self.asked("name", "") or None
        self.send(await self.work(self.explorer.place, lon, lat, name, self.origin()))

    head = get

    def _degrees(self, name: str, limit: float) -> float:
        text = self.asked(name)
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not abs(value) <= limit:
            raise HTTPError(400, f"{name} must be a number of degrees within -{limit:g}..{limit:g}.")
        return value


class Download(Handler):
    """The map of `name`, every pixel of the index, as a Cloud-Optimized GeoTIFF."""

    async def get(self) -> None:
        """See `Explorer.cog`; the file is sent in pieces and then removed."""
        name, origin = self.asked("name"), self.origin()
        await self.work(self.explorer.job, name, origin)  # a wrong name fails before it counts as a download
        if self.request.method == "HEAD":
            self.set_header("Content-Type", "image/tiff")
            self.finish()
            return
        if self.server.downloads >= MAX_DOWNLOADS:
            raise HTTPError(503, f"{MAX_DOWNLOADS} downloads are in progress; try again when one is done.")
        self.server.downloads += 1
        try:
            with tempfile.TemporaryDirectory(dir=self.server.folder) as folder:
                await self._send(await self.work(self.explorer.cog, name, Path(folder), origin))
        finally:
            self.server.downloads -= 1

    head = get

    async def _send(self, path: Path) -> None:
        self.set_header("Content-Type", "image/tiff; application=geotiff; profile=cloud-optimized")
        self.set_header("Content-Length", str(path.stat().st_size))
        self.set_header("Content-Disposition", f"attachment; filename*=UTF-8''{quote(path.name)}")
        with path.open("rb") as file:
            while piece := file.read(1 << 19):
                self.write(piece)
                try:
                    await asyncio.wait_for(self.flush(), STALLED)
                except (TimeoutError, StreamClosedError):
                    self._abort()
                    return
        self.finish()

    def _abort(self) -> None:
        """Close the connection of a download that the client no longer reads."""
        connection = self.request.connection
        if isinstance(connection, HTTP1Connection):
            connection.close()


@stream_request_body
class Drop(Handler):
    """A file of records or a saved fit: the body of the request, `file` its name.

    It is written to a folder of this request, read with the limits of every file, and removed.
    """

    SUPPORTED_METHODS = ("POST",)
    held = False
    """Whether a file is on the disk."""

    def prepare(self) -> None:
        """Refuse what is no file of this page, before any of it is read."""
        connection = self.request.connection
        if isinstance(connection, HTTP1Connection):
            connection.set_max_body_size(0)
        super().prepare()
        # Not among the types that a page of another origin may send without asking this server first.
        if self.request.headers.get("Content-Type") != "application/octet-stream":
            raise HTTPError(415, "send the file itself, as application/octet-stream.")
        length = self.request.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > MAX_UPLOAD:
            raise HTTPError(413, f"the file has more than {MAX_UPLOAD >> 20} MB; map it with taxabind-map --records.")
        self.name = self.asked("file")
        try:
            suffix = suffix_of(self.name)
        except RecordsError as error:
            raise HTTPError(400, str(error)) from None
        if self.server.drops >= MAX_DOWNLOADS:
            raise HTTPError(503, f"{MAX_DOWNLOADS} files are being read; try again when one is done.")
        if isinstance(connection, HTTP1Connection):
            connection.set_max_body_size(MAX_UPLOAD)
            connection.set_body_timeout(UPLOAD_TIMEOUT)
        self.server.drops += 1
        self.held = True
        self.folder = tempfile.TemporaryDirectory(dir=self.server.folder)
        # The last part of its name, of harmless characters: messages show it.
        stem = re.sub(r"[^\w-]", "_", re.split(r"[/\\]", self.name)[-1][: -len(suffix)])[-60:]
        self.path = Path(self.folder.name) / f"{stem or 'file'}{suffix}"
        self.file = self.path.open("wb")

    def data_received(self, chunk: bytes) -> None:
        """A part of the file."""
        self.file.write(chunk)

    async def post(self) -> None:
        """See `Explorer.drop`."""
        self.file.close()
        try:
            answer = await self.work(self.explorer.drop, self.path)
        except SdmError as error:
            raise HTTPError(400, str(error).replace(str(self.path), self.path.name)) from None
        finally:
            self._remove()
        self.send(answer)

    def on_finish(self) -> None:
        """Remove what a refused request has left."""
        self._remove()

    def on_connection_close(self) -> None:
        """The browser has gone; what is still being computed ends by itself."""
        super().on_connection_close()
        self._remove()

    def _remove(self) -> None:
        if self.held:
            self.held = False
            self.file.close()
            self.folder.cleanup()
            self.server.drops -= 1
