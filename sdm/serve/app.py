"""The explorer over HTTP: read-only, for one user on one machine, and wary of everyone else.

Any web page can make a browser send requests to this machine. So: only GET and HEAD; only under names that
are this server's own (another name would mean DNS rebinding); nothing for pages of other origins, and
nothing they could read or frame; bounded lengths, queues and files; errors as JSON, one sentence each. No
path of a request ever reaches the file system: static files are a dictionary made at the start.
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
from tornado.httpserver import HTTPServer
from tornado.iostream import StreamClosedError
from tornado.netutil import bind_sockets
from tornado.web import Application, HTTPError, RequestHandler

from sdm.errors import RequestError, SdmError, SpeciesNameError
from sdm.serve.state import Explorer

MAX_URL = 2000
"""Characters of a request's target: a species name has at most 200, each up to 12 when escaped."""
MAX_WAITING = 64
"""Requests that need work, at work or waiting; one more is told to come back."""
MAX_DOWNLOADS = 2
"""GeoTIFFs being written or sent."""
WORKERS = 16
"""Threads: most of them wait for a product that one of them computes."""
STALLED = 60.0
"""Seconds after which a download nobody takes is given up."""

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
    """The explorer on sockets that `listen` made. Make it and `close` it inside a running asyncio loop."""

    def __init__(self, explorer: Explorer, sockets: list[socket.socket], host: str = "127.0.0.1") -> None:
        self.explorer, self.host = explorer, host
        self.port = sockets[0].getsockname()[1]
        self.names = own_names(host)
        self._folder = tempfile.TemporaryDirectory(prefix="taxabind-map-serve-", ignore_cleanup_errors=True)
        self.folder = Path(self._folder.name)
        self.pool = ThreadPoolExecutor(WORKERS, "explorer")
        # Typing must not wait behind maps.
        self.names_pool = ThreadPoolExecutor(1, "names")
        self.waiting = self.downloads = 0
        self._http = HTTPServer(
            _application(self), max_header_size=16_384, max_body_size=1024, max_buffer_size=1 << 20,
            idle_connection_timeout=120.0, body_timeout=5.0,
        )  # fmt: skip
        self._http.add_sockets(sockets)

    @property
    def url(self) -> str:
        """Where a browser on this machine finds the page."""
        host = "127.0.0.1" if self.host in ("0.0.0.0", "") else "::1" if self.host == "::" else self.host
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}/"

    async def close(self) -> None:
        """Stop listening, drop connections, forget what is waiting, remove temporary files."""
        self._http.stop()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._http.close_all_connections(), 2.0)
        self.pool.shutdown(wait=False, cancel_futures=True)
        self.names_pool.shutdown(wait=False, cancel_futures=True)
        self.explorer.close()
        self._folder.cleanup()


def listen(host: str, port: int) -> list[socket.socket]:
    """Take a port of this machine; 0 takes any that is free.

    Raises RequestError for a host that is not this machine's, or a port that is taken or not allowed.
    """
    try:
        return bind_sockets(port, host)
    except (OSError, UnicodeError, OverflowError) as error:
        raise RequestError(_why_not(host, port, error)) from None


def is_loopback(host: str) -> bool:
    """True where only programs on this machine can connect."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def own_names(host: str) -> Callable[[str], bool]:
    """Which names in a Host header are ours, for a server that listens on `host`.

    An attacker's page can point its own name at this machine, never its numbers. So numbers are ours: the
    loopback ones, and any when other machines may connect; of names, localhost and, then, the machine's.
    """
    names = {"localhost", host.lower()}
    if not is_loopback(host):
        names |= {socket.gethostname().lower(), socket.getfqdn().lower()}

    def ours(name: str) -> bool:
        if name.lower() in names:
            return True
        try:
            address = ipaddress.ip_address(name.strip("[]"))
        except ValueError:
            return False
        return address.is_loopback or not is_loopback(host)

    return ours


def _why_not(host: str, port: int, error: Exception) -> str:
    number = getattr(error, "errno", None)
    if number == errno.EADDRINUSE:
        return f"port {port} of {host} is in use; choose another with --port, or --port 0 for any that is free."
    if number == errno.EACCES:
        return f"port {port} of {host} may not be used by this account; choose one above 1023 with --port."
    return f"host {host!r} is not an address of this machine; leave --host out to serve on this machine only."


def _application(server: Server) -> Application:
    common = {"server": server}
    routes: list[tuple] = [
        (r"/api/index", Index),
        (r"/api/basemap", Basemap),
        (r"/api/suggest", Suggest),
        (r"/api/species", Species),
        (r"/api/picture", Picture),
        (r"/api/tile/(\d{1,2})/(\d{1,8})/(\d{1,8})", MapTile),
        (r"/api/place", Place),
        (r"/api/download", Download),
    ]
    page, leaflet = files("sdm.serve") / "page", files("sdm.outputs") / "assets"
    for folder, kinds in ((page, _PAGE), (leaflet, _LEAFLET)):
        for name, kind in kinds.items():
            text = (folder / name).read_text(encoding="utf-8")
            # Without its last comment, which makes developer tools look for a source map.
            text = re.sub(r"//# sourceMappingURL=.*", "", text)
            path = "/" if name == "index.html" else f"/static/{name}"
            routes.append((re.escape(path), Static, {**common, "content": text.encode(), "kind": kind}))
    routes = [route if len(route) > 2 else (*route, common) for route in routes]
    return Application(
        routes, default_handler_class=Missing, default_handler_args=common, compress_response=True,
        log_function=lambda handler: None,
    )  # fmt: skip


class Handler(RequestHandler):
    """What every answer has in common."""

    SUPPORTED_METHODS = ("GET", "HEAD")

    def initialize(self, server: Server) -> None:
        """Set by the routes."""
        self.server, self.explorer = server, server.explorer

    def set_default_headers(self) -> None:
        """The same for pages, data and errors."""
        self.clear_header("Server")
        for name, value in HEADERS.items():
            self.set_header(name, value)

    def prepare(self) -> None:
        """Refuse what does not come from our own page, or from a program that asks for this server by name."""
        host = re.sub(r":\d*\Z", "", self.request.headers.get("Host", ""))
        if not self.server.names(host):
            raise HTTPError(421, "this server answers only under its own name: use the address it printed.")
        if self.request.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin"):
            # A link from elsewhere may open the page itself: it then has no say in it.
            navigation = self.request.headers.get("Sec-Fetch-Mode") == "navigate" and self.request.path == "/"
            if not navigation:
                raise HTTPError(403, "pages of other sites may not use this server.")
        if len(self.request.uri or "") > MAX_URL:
            raise HTTPError(414, f"the address has more than {MAX_URL} characters; shorten the species name.")

    def asked(self, name: str, default: str | None = None) -> str:
        """One argument of the query. Raises HTTPError 400 where it is missing, repeated or not UTF-8."""
        values = self.get_query_arguments(name, strip=True)
        if len(values) > 1 or (not values and default is None):
            raise HTTPError(400, f"give {name!r} once, for example {name}={'-110.5' if name == 'lon' else '...'}.")
        return values[0] if values else str(default)

    async def work(self, function: Callable[..., Any], *arguments: Any, names: bool = False) -> Any:
        """Run in a thread; too many at once are turned away, not queued without end."""
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
        """Answer with the bytes of a picture, row by row from the north."""
        packed = "gzip" in self.request.headers.get("Accept-Encoding", "")
        if packed:
            self.set_header("Content-Encoding", "gzip")
        self.set_header("Vary", "Accept-Encoding")
        self.set_header("Content-Type", "application/octet-stream")
        # Level 1: most of a picture is alike, and this server has better things to do.
        self.finish(await self.work(lambda: gzip.compress(make(), 1, mtime=0) if packed else make().tobytes()))

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """One sentence, as JSON."""
        error = kwargs.get("exc_info", (None, None, None))[1]
        message = getattr(error, "log_message", None) or getattr(error, "reason", None)
        if isinstance(error, SdmError):
            status_code = 404 if isinstance(error, SpeciesNameError) else 400 if error.exit_code == 2 else 500
            message = str(error)
        elif status_code == 405:
            self.set_header("Allow", "GET, HEAD")
            message = "this server only reads: use GET or HEAD."
        elif status_code == 503:
            self.set_header("Retry-After", "2")
        elif status_code >= 500 and not isinstance(error, HTTPError):
            message = f"unexpected failure: {type(error).__name__}; the server's terminal says more."
        self.set_status(status_code)
        self.send({"error": message or self._reason})

    def log_exception(self, kind: Any, error: Any, trace: Any) -> None:
        """Only what nobody expected is worth a line in the terminal."""
        if not isinstance(error, HTTPError | SdmError | StreamClosedError):
            super().log_exception(kind, error, trace)


class Static(Handler):
    """A file of the page."""

    def initialize(self, server: Server, content: bytes, kind: str) -> None:
        """Set by the routes."""
        super().initialize(server)
        self.content, self.kind = content, kind

    def get(self) -> None:
        """The file."""
        self.set_header("Content-Type", self.kind)
        self.finish(self.content)

    head = get


class Missing(Handler):
    """Any other address."""

    def get(self) -> None:
        """Say so."""
        raise HTTPError(404, "there is nothing at this address.")

    head = get


class Index(Handler):
    """What the index is."""

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
    """Names that resemble `q`."""

    async def get(self) -> None:
        """See `Explorer.suggest`."""
        self.send(await self.work(self.explorer.suggest, self.asked("q"), names=True))

    head = get


class Species(Handler):
    """What `name` stands for."""

    async def get(self) -> None:
        """See `Explorer.describe`."""
        self.send(await self.work(self.explorer.describe, self.asked("name")))

    head = get


class Picture(Handler):
    """The levels of `name` on the frame that api/index tells."""

    async def get(self) -> None:
        """See `Explorer.picture`."""
        name = self.asked("name")
        await self.send_levels(lambda: self.explorer.picture(name).levels)

    head = get


class MapTile(Handler):
    """The levels of `name` on one tile of the web map."""

    async def get(self, zoom: str, x: str, y: str) -> None:
        """See `Explorer.tile`."""
        name = self.asked("name")
        await self.send_levels(lambda: self.explorer.tile(name, int(zoom), int(x), int(y)))

    head = get


class Place(Handler):
    """What is at `lon`, `lat`, for the species `name` if given."""

    async def get(self) -> None:
        """See `Explorer.place`."""
        lon, lat = self._degrees("lon", 720.0), self._degrees("lat", 90.0)
        self.send(await self.work(self.explorer.place, lon, lat, self.asked("name", "") or None))

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
        """See `Explorer.cog`; the file is sent in pieces and removed."""
        name = self.asked("name")
        await self.work(self.explorer.job, name)  # a name that is wrong is no download
        if self.request.method == "HEAD":
            self.set_header("Content-Type", "image/tiff")
            self.finish()
            return
        if self.server.downloads >= MAX_DOWNLOADS:
            raise HTTPError(503, f"{MAX_DOWNLOADS} downloads are under way; try again when one is done.")
        self.server.downloads += 1
        try:
            with tempfile.TemporaryDirectory(dir=self.server.folder) as folder:
                await self._send(await self.work(self.explorer.cog, name, Path(folder)))
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
                    self.request.connection.close()  # nobody listens any more
                    return
        self.finish()
