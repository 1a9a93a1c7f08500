"""Files from other people's servers: few connections, patient, and never the same file twice.

At most `CONNECTIONS` requests to a host at a time and `PER_SECOND` in a second; when a server says
it is busy (429, 503) everything for that host waits as long as it asks; what was fetched is kept on
disk, so that another map of the place asks for nothing.
"""

from __future__ import annotations

import email.utils
import hashlib
import os
import random
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from sdm._version import __version__
from sdm.errors import LayerError
from sdm.files.paths import replace_file

USER_AGENT = f"taxabind-map/{__version__} (species distribution maps)"
CONNECTIONS = 4
PER_SECOND = 20.0
CONNECT_SECONDS, READ_SECONDS = 10.0, 30.0
WHOLE_SECONDS = 120.0
"""One answer may take this long in all: a server that sends a byte a second must not hold a map up for ever."""
ATTEMPTS = 5
LONGEST_WAIT = 120.0
"""Seconds. A server that asks for more patience than this gets none: the map stops and says so."""
BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})
ABSENT = frozenset({204, 404, 410})
CACHE_BYTES = 2_000_000_000
ABSENT_SECONDS = 7 * 86400.0
"""That a server has no tile somewhere is believed this long."""

_SECRET = ("key", "token", "sig", "pass", "secret", "auth", "credential")


T = TypeVar("T")


class Unusable(Exception):
    """Raised by a parser when an answer is not what was asked for; `transient`: asking again may help."""

    def __init__(self, reason: str, transient: bool = False) -> None:
        super().__init__(reason)
        self.transient = transient


class Fetcher:
    """GET over http and https with a cache on disk.

    Safe to share between threads; only its settings travel to another process. `patience`: seconds
    before the second attempt, doubled before each further one.
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

    def __getstate__(self) -> dict:
        return {k: v for k, v in self.__dict__.items() if k != "_locks"}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._start()

    def get(
        self,
        url: str,
        parse: Callable[[bytes, str], T],
        *,
        most: int,
        keep: bool = True,
        part: int | None = None,
        ranges: bool = False,
    ) -> T | None:
        """What `parse(body, content_type)` makes of the file at `url`; None where the server has nothing (404).

        `parse` raises `Unusable` when it is not what was asked for; `most`: bytes beyond which an
        answer is refused; `keep`: use the cache on disk; `part`: only so many bytes from the
        beginning; `ranges`: the server must be able to send parts. Raises LayerError.
        """
        require_web(url)
        # Two threads that want the same file: the second finds it in the cache.
        with self._locks[hash(url) % len(self._locks)]:
            return self._get(url, parse, self.cache if keep and part is None else None, most, part, ranges)

    def _get(
        self,
        url: str,
        parse: Callable[[bytes, str], T],
        cache: DiskCache | None,
        most: int,
        part: int | None,
        ranges: bool,
    ) -> T | None:
        kept = None if cache is None else cache.get(url)
        if kept is not None:
            try:
                return parse(kept, "") if kept else None
            except Unusable:  # damaged on disk
                cache.discard(url)
        if self.offline:
            raise LayerError(
                f"{shown(url)} is not in the cache and --offline forbids to fetch it; run once without --offline."
            )
        body, parsed = self._ask(url, parse, most, part, ranges)
        if cache is not None:
            cache.put(url, body)
        return parsed

    def _ask(
        self, url: str, parse: Callable[[bytes, str], T], most: int, part: int | None, ranges: bool
    ) -> tuple[bytes, T | None]:
        import requests

        host, problem = _host(url), ""
        for attempt in range(ATTEMPTS):
            if attempt:
                # Spread out, or the four connections would all come back in the same moment.
                time.sleep(min(30.0, self.patience * 2 ** (attempt - 1)) * (1.0 + 0.25 * random.random()))
            try:
                with host.connections:
                    host.turn()
                    status, wait, kind, body = _once(url, most, part)
            except (requests.exceptions.InvalidSchema, requests.exceptions.InvalidURL) as error:
                raise LayerError(f"{shown(url)} leads to an address that is not http or https; refused.") from error
            except requests.exceptions.TooManyRedirects as error:
                raise LayerError(f"{shown(url)} redirects without end.") from error
            except requests.exceptions.RequestException as error:
                problem = type(error).__name__
                continue
            if status in ABSENT:
                return b"", None
            if status in BUSY:
                problem = f"HTTP status {status}"
                if wait > LONGEST_WAIT:
                    raise LayerError(
                        f"{shown(url)}: the server asks to wait {wait:.0f} seconds (HTTP status {status}); "
                        "try again later, what was fetched so far is kept."
                    )
                host.wait(wait)
                continue
            if status not in (200, 206):
                remedy = "check the address and its key or token" if status in (401, 403) else "check the address"
                raise LayerError(f"{shown(url)} answers with HTTP status {status}; {remedy}.")
            try:
                parsed = parse(body, kind)
            except Unusable as error:
                if not error.transient:
                    raise LayerError(f"{shown(url)}: {error}") from error
                problem = str(error)
                continue
            if ranges and status != 206:
                raise LayerError(
                    f"{shown(url)}: the server does not send parts of files (no answer to a Range request); "
                    "download the file and give its path."
                )
            return body, parsed
        raise LayerError(f"{shown(url)} could not be fetched in {ATTEMPTS} attempts ({problem}); try again later.")


def require_web(url: str) -> None:
    """Raise LayerError unless the address is http or https with a host."""
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if not good:
        raise LayerError(f"address {shown(url)!r} is not http or https; give such an address, or a path.")


def shown(url: str) -> str:
    """An address as it may be printed and recorded: without user, password, keys and tokens."""
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


def _once(url: str, most: int, part: int | None) -> tuple[int, float, str, bytes]:
    """One request: status, seconds the server asks to wait, content type, body."""
    import requests

    deadline = time.monotonic() + WHOLE_SECONDS
    headers = {} if part is None else {"Range": f"bytes=0-{part - 1}", "Accept-Encoding": "identity"}
    with _session().get(url, stream=True, timeout=(CONNECT_SECONDS, READ_SECONDS), headers=headers) as answer:
        kind = answer.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        wait = _retry_after(answer.headers.get("Retry-After"))
        if answer.status_code not in (200, 206):
            return answer.status_code, wait, kind, b""
        wanted = most if part is None else part
        body = bytearray()
        for chunk in answer.iter_content(65536):
            body += chunk
            if len(body) > wanted:
                if part is not None:
                    break
                raise LayerError(f"{shown(url)} sends more than {most:,} bytes, too much for what was asked; refused.")
            if time.monotonic() > deadline:
                raise requests.exceptions.ReadTimeout("slower than the limit in all")
        return answer.status_code, wait, kind, bytes(body[:wanted])


def _retry_after(value: str | None) -> float:
    """Seconds of a Retry-After header, a number or a date; 0 when there is none or it makes no sense."""
    if not value:
        return 0.0
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, (email.utils.parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (TypeError, ValueError):
        return 0.0


_lock = threading.Lock()
_sessions: dict[int, object] = {}
_hosts: dict[str, _Host] = {}


def _session():
    """The connections of this process, shared by its threads."""
    import requests
    from requests.adapters import HTTPAdapter

    with _lock:
        session = _sessions.get(os.getpid())
        if session is None:
            session = _sessions[os.getpid()] = requests.Session()
            session.headers["User-Agent"] = USER_AGENT
            session.max_redirects = 5
            for scheme in ("http://", "https://"):
                session.mount(scheme, HTTPAdapter(pool_maxsize=CONNECTIONS, max_retries=0))
        return session


class _Host:
    """What keeps requests to one host few and slow."""

    def __init__(self) -> None:
        self.connections = threading.BoundedSemaphore(CONNECTIONS)
        self.lock = threading.Lock()
        self.next = 0.0

    def turn(self) -> None:
        """Wait until it is our turn to ask."""
        while True:
            with self.lock:
                now = time.monotonic()
                delay = self.next - now
                if delay <= 0:
                    self.next = now + 1.0 / PER_SECOND
                    return
            time.sleep(delay)

    def wait(self, seconds: float) -> None:
        """Nobody asks this host for so long."""
        with self.lock:
            self.next = max(self.next, time.monotonic() + seconds)


def _host(url: str) -> _Host:
    name = urlsplit(url).netloc.rpartition("@")[2].lower()
    with _lock:
        return _hosts.setdefault(name, _Host())


# The cache on disk ---------------------------------------------------------------------------------


class DiskCache:
    """Bytes by key in a folder that never grows past `limit` bytes; what was used longest ago goes first.

    Several processes may share the folder. An empty entry says that there is nothing, for a week.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder = Path(folder)
        self.limit = limit
        self._lock = threading.Lock()
        self._size: int | None = None

    def __getstate__(self) -> dict:
        return {"folder": self.folder, "limit": self.limit}

    def __setstate__(self, state: dict) -> None:
        self.__init__(**state)

    def path(self, key: str) -> Path:
        """Where an entry is kept."""
        name = hashlib.sha256(key.encode()).hexdigest()
        return self.folder / name[:2] / name

    def get(self, key: str) -> bytes | None:
        """The entry, b"" where it is known that there is nothing, None when not known."""
        path = self.path(key)
        try:
            body = path.read_bytes()
            if body:
                os.utime(path)  # the time of last use: what the oldest is decided by
            elif time.time() - path.stat().st_mtime > ABSENT_SECONDS:
                return None
        except OSError:
            return None
        return body

    def put(self, key: str, body: bytes) -> None:
        """Keep an entry; it is there whole or not at all. Raises LayerError when the folder takes nothing."""
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
        """Forget an entry."""
        self.path(key).unlink(missing_ok=True)

    def _entries(self) -> list[tuple[float, int, str]]:
        """(time of last use, bytes, path) of everything in the cache."""
        found = []
        for part in (p for p in os.scandir(self.folder) if p.is_dir(follow_symlinks=False)):
            for entry in os.scandir(part):
                try:
                    info = entry.stat(follow_symlinks=False)
                except OSError:  # another process has just removed it
                    continue
                found.append((info.st_mtime, info.st_size, entry.path))
        return found

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
