"""Files from public servers, fetched politely and cached on disk.

At most `CONNECTIONS` requests to a host at once and `PER_SECOND` per second. When a server reports
that it is busy (429, 503), all requests to that host wait as long as it asks. Files are cached, so
that another map of the same place needs no request.
"""

from __future__ import annotations

import hashlib
import os
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from sdm._version import __version__
from sdm.errors import LayerError
from sdm.files.paths import replace_file
from sdm.files.retry import retry_after

if TYPE_CHECKING:
    import requests

USER_AGENT = f"taxabind-map/{__version__} (species distribution maps)"
CONNECTIONS = 4
PER_SECOND = 20.0
CONNECT_SECONDS, READ_SECONDS = 10.0, 30.0
TOTAL_SECONDS = 120.0
"""Limit for one whole response: a server that sends a byte per second must not delay a map indefinitely."""
ATTEMPTS = 5
LONGEST_WAIT = 120.0
"""Seconds. When a server asks to wait longer than this, the map stops with an error."""
BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})
ABSENT = frozenset({204, 404, 410})
CACHE_BYTES = 2_000_000_000
ABSENT_SECONDS = 7 * 86400.0
"""Time for which the response that a file does not exist stays in the cache."""

_SECRET = ("key", "token", "sig", "pass", "secret", "auth", "credential")


T = TypeVar("T")


class Unusable(Exception):
    """Raised by a parser for a response that is not what was requested; `transient`: another attempt may help."""

    def __init__(self, reason: str, transient: bool = False) -> None:
        super().__init__(reason)
        self.transient = transient


class _TryAgain(Exception):
    """An attempt failed for a reason that may pass."""


@dataclass(frozen=True)
class _Request(Generic[T]):
    """A request and the checks of its response; see `Fetcher.get`."""

    url: str
    parse: Callable[[bytes, str], T]
    max_bytes: int
    first_bytes: int | None
    needs_ranges: bool


@dataclass(frozen=True)
class _Response(Generic[T]):
    body: bytes
    parsed: T | None
    """None where the server has nothing."""


class Fetcher:
    """GET over http and https with a cache on disk. Threads may share it; pickling keeps its settings only.

    Parameters
    ----------
    cache
        Folder of the cache; None: no cache.
    offline
        Use the cache only.
    limit
        Largest size of the cache in bytes.
    patience
        Seconds before the second attempt, doubled before each further one.
    """

    def __init__(
        self, cache: Path | None = None, *, offline: bool = False, limit: int = CACHE_BYTES, patience: float = 0.5
    ) -> None:
        self.cache = None if cache is None else DiskCache(cache, limit)
        self.offline = offline
        self.patience = patience
        self._start()

    def _start(self) -> None:
        self._locks = [threading.Lock() for _ in range(64)]

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "_locks"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()

    def get(
        self,
        url: str,
        parse: Callable[[bytes, str], T],
        *,
        max_bytes: int,
        use_cache: bool = True,
        first_bytes: int | None = None,
        needs_ranges: bool = False,
    ) -> T | None:
        """The parsed file at `url`; None where the server has nothing (404).

        Parameters
        ----------
        url
            An http or https address.
        parse
            Called with the body and its content type ("" from the cache); raises `Unusable` when the body is
            not what was requested.
        max_bytes
            Larger responses are refused.
        use_cache
            Read and write the cache on disk; never for a part of a file.
        first_bytes
            Fetch only this many bytes from the beginning.
        needs_ranges
            Require a server that can send parts of files.

        Raises
        ------
        LayerError
            For an address or response that cannot be used, and when all attempts fail.
        """
        require_http(url)
        cache = self.cache if use_cache and first_bytes is None else None
        # Of two threads that want the same file, the second finds it in the cache.
        with self._locks[hash(url) % len(self._locks)]:
            return self._get(_Request(url, parse, max_bytes, first_bytes, needs_ranges), cache)

    def _get(self, request: _Request[T], cache: DiskCache | None) -> T | None:
        url = request.url
        if cache is not None and (cached := cache.get(url)) is not None:
            try:
                return request.parse(cached, "") if cached else None
            except Unusable:  # damaged on disk
                cache.discard(url)
        if self.offline:
            raise LayerError(
                f"{redacted(url)} is not in the cache and --offline forbids fetching it; run once without --offline."
            )
        fetched = self._fetch(request)
        if cache is not None:
            cache.put(url, fetched.body)
        return fetched.parsed

    def _fetch(self, request: _Request[T]) -> _Response[T]:
        """The response, after several attempts where needed."""
        host, problem = _host(request.url), ""
        for attempt in range(ATTEMPTS):
            if attempt:
                # At random, or all connections would try again at the same moment.
                time.sleep(min(30.0, self.patience * 2 ** (attempt - 1)) * (1.0 + 0.25 * random.random()))
            try:
                return _attempt(request, host)
            except _TryAgain as error:
                problem = str(error)
        raise LayerError(
            f"{redacted(request.url)} could not be fetched in {ATTEMPTS} attempts ({problem}); try again later."
        )


def require_http(url: str) -> None:
    """Raise LayerError unless the address is http or https with a host."""
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if not good:
        raise LayerError(f"address {redacted(url)!r} is not http or https; give such an address, or a path.")


def redacted(url: str) -> str:
    """An address without user, password, keys and tokens, safe to print and record."""
    try:
        parts = urlsplit(url)
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return url.partition("?")[0][:200]
    query = [
        (k, "..." if any(s in k.lower() for s in _SECRET) else v)
        for k, v in parse_qsl(parts.query, keep_blank_values=True)
    ]
    netloc = f"{parts.hostname or ''}{port}"
    return urlunsplit((parts.scheme, netloc, parts.path, urlencode(query, safe="{}:,/-."), ""))[:300]


# One request ---------------------------------------------------------------------------------------


def _attempt(request: _Request[T], host: _Host) -> _Response[T]:
    """The response of one attempt. Raises `_TryAgain`, or LayerError where trying again is useless."""
    url = redacted(request.url)
    with host.connections:
        host.wait_for_turn()
        status, wait, kind, body = _send(request)
    if status in ABSENT:
        return _Response(b"", None)
    if status in BUSY:
        if wait > LONGEST_WAIT:
            raise LayerError(
                f"{url}: the server asks to wait {wait:.0f} s (HTTP status {status}); "
                "try again later (files fetched so far are kept)."
            )
        host.pause(wait)
        raise _TryAgain(f"HTTP status {status}")
    if status not in (200, 206):
        remedy = "check the address and its key or token" if status in (401, 403) else "check the address"
        raise LayerError(f"{url} answers with HTTP status {status}; {remedy}.")
    try:
        parsed = request.parse(body, kind)
    except Unusable as error:
        if error.transient:
            raise _TryAgain(str(error)) from error
        raise LayerError(f"{url}: {error}") from error
    if request.needs_ranges and status != 206:
        raise LayerError(
            f"{url}: the server does not send parts of files (no answer to a Range request); "
            "download the file and give its path."
        )
    return _Response(body, parsed)


def _send(request: _Request[Any]) -> tuple[int, float, str, bytes]:
    """One request: status, seconds the server asks to wait, content type, body. Raises as `_attempt`."""
    import requests

    url = redacted(request.url)
    try:
        return _receive(request)
    except (requests.exceptions.InvalidSchema, requests.exceptions.InvalidURL) as error:
        raise LayerError(f"{url} leads to an address that is not http or https; refused.") from error
    except requests.exceptions.TooManyRedirects as error:
        raise LayerError(f"{url} redirects without end.") from error
    except requests.exceptions.RequestException as error:
        raise _TryAgain(type(error).__name__) from error


def _receive(request: _Request[Any]) -> tuple[int, float, str, bytes]:
    import requests

    deadline = time.monotonic() + TOTAL_SECONDS
    first = request.first_bytes
    headers = {} if first is None else {"Range": f"bytes=0-{first - 1}", "Accept-Encoding": "identity"}
    timeout = (CONNECT_SECONDS, READ_SECONDS)
    with _session().get(request.url, stream=True, timeout=timeout, headers=headers) as response:
        kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        wait = retry_after(response.headers.get("Retry-After"))
        if response.status_code not in (200, 206):
            return response.status_code, wait, kind, b""
        wanted = request.max_bytes if first is None else first
        body = bytearray()
        for chunk in response.iter_content(65536):
            body += chunk
            if len(body) > wanted:
                if first is not None:
                    break
                raise LayerError(
                    f"{redacted(request.url)} sends more than {wanted:,} bytes, too much for what was asked; refused."
                )
            if time.monotonic() > deadline:
                raise requests.exceptions.ReadTimeout("the whole response took too long")
        return response.status_code, wait, kind, bytes(body[:wanted])


_lock = threading.Lock()
_sessions: dict[int, requests.Session] = {}
_hosts: dict[str, _Host] = {}


def _session() -> requests.Session:
    """The connections of this process, shared by its threads."""
    from requests.adapters import HTTPAdapter

    from sdm.layers.redirects import GuardedSession

    with _lock:
        session = _sessions.get(os.getpid())
        if session is None:
            session = _sessions[os.getpid()] = GuardedSession()
            session.headers["User-Agent"] = USER_AGENT
            session.max_redirects = 5
            for scheme in ("http://", "https://"):
                session.mount(scheme, HTTPAdapter(pool_maxsize=CONNECTIONS, max_retries=0))
        return session


class _Host:
    """Limits the requests to one host."""

    def __init__(self) -> None:
        self.connections = threading.BoundedSemaphore(CONNECTIONS)
        self._lock = threading.Lock()
        self._next_request = 0.0

    def wait_for_turn(self) -> None:
        """Wait until the next request may be sent."""
        while True:
            with self._lock:
                now = time.monotonic()
                delay = self._next_request - now
                if delay <= 0:
                    self._next_request = now + 1.0 / PER_SECOND
                    return
            time.sleep(delay)

    def pause(self, seconds: float) -> None:
        """Send no request to this host for some seconds."""
        with self._lock:
            self._next_request = max(self._next_request, time.monotonic() + seconds)


def _host(url: str) -> _Host:
    name = urlsplit(url).netloc.rpartition("@")[2].lower()
    with _lock:
        return _hosts.setdefault(name, _Host())


# The cache on disk ---------------------------------------------------------------------------------


class DiskCache:
    """Bytes by key in a folder of at most `limit` bytes; the least recently used entries are removed first.

    Several processes may share the folder. An empty entry records for a week that a file does not exist.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder = Path(folder)
        self.limit = limit
        self._start()

    def _start(self) -> None:
        self._lock = threading.Lock()
        self._size: int | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "limit": self.limit}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()

    def path(self, key: str) -> Path:
        """The file of an entry."""
        name = hashlib.sha256(key.encode()).hexdigest()
        return self.folder / name[:2] / name

    def get(self, key: str) -> bytes | None:
        """The entry; b"" where the file is known not to exist, None where nothing is known."""
        path = self.path(key)
        try:
            body = path.read_bytes()
            if body:
                os.utime(path)  # the time of last use, by which entries are removed
            elif time.time() - path.stat().st_mtime > ABSENT_SECONDS:
                return None
        except OSError:
            return None
        return body

    def put(self, key: str, body: bytes) -> None:
        """Write an entry, complete or not at all. Raises LayerError when the folder cannot be written."""
        path = self.path(key)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(path, body)
        except OSError as error:
            raise LayerError(
                f"cache folder {str(self.folder)!r} cannot be written ({error.strerror}); give another --cache-dir."
            ) from error
        with self._lock:
            self._size = self._measure() if self._size is None else self._size + len(body)
            if self._size > self.limit:
                self._prune()

    def discard(self, key: str) -> None:
        """Remove an entry."""
        self.path(key).unlink(missing_ok=True)

    def _entries(self) -> list[tuple[float, int, str]]:
        """(time of last use, bytes, path) of everything in the cache."""
        entries = []
        for subfolder in (f for f in os.scandir(self.folder) if f.is_dir(follow_symlinks=False)):
            for entry in os.scandir(subfolder):
                try:
                    info = entry.stat(follow_symlinks=False)
                except OSError:  # another process has just removed it
                    continue
                entries.append((info.st_mtime, info.st_size, entry.path))
        return entries

    def _measure(self) -> int:
        return sum(size for _, size, _ in self._entries())

    def _prune(self) -> None:
        entries = sorted(self._entries())
        self._size = sum(size for _, size, _ in entries)
        for _, size, path in entries:
            if self._size <= 0.9 * self.limit:
                break
            Path(path).unlink(missing_ok=True)
            self._size -= size
