"""Download a file over HTTP, resuming where an earlier try, or an earlier run, was interrupted.

The hub's own library restarts an interrupted download when its process has ended, which makes it hard to fetch half a
gigabyte over an unreliable connection. Its cache layout and its locks are kept.
"""

from __future__ import annotations

import hashlib
import http.client
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path

from sdm.errors import ModelError
from sdm.files.retry import retry_after

TRIES = 6
"""Tries in a row without a new byte, after which a download is given up."""
TIMEOUT = 30.0
"""Seconds without a byte."""
_CHUNK = 1 << 20
_FINAL = (400, 401, 403, 404, 410)
_EXPIRED = (400, 401, 403)
LONGEST_WAIT = 300.0
"""Seconds that a server may ask to wait."""


sleep = time.sleep


def wait(tries: int) -> None:
    """Pause after the n-th try that failed."""
    time.sleep(min(0.5 * 2**tries, 10.0))


def give_way(error: Exception) -> bool:
    """Wait as long as a busy server asks in its answer; False: nothing asked. Raises ModelError where that is long."""
    response = getattr(error, "response", error)
    seconds = retry_after((getattr(response, "headers", None) or {}).get("Retry-After"))
    if seconds > LONGEST_WAIT:
        raise ModelError(f"the server is busy and asks to wait {seconds:.0f} s") from error
    if seconds:
        sleep(seconds)
    return bool(seconds)


class CorruptError(ModelError):
    """The content received is not what the server announced."""


def resume(
    locate: Callable[[], tuple[str, Mapping[str, str]]],
    partial: Path,
    size: int | None,
    etag: str,
    progress: Callable[[int, int | None], None] = lambda done, total: None,
) -> None:
    """Fill `partial` until it has `size` bytes (None: until the server reports the end), and check it.

    Parameters
    ----------
    locate : returns a URL and headers; called before each try, since signed links expire.
    partial : file to write to; what it holds already is not fetched again.
    size : bytes of the complete file, if known.
    etag : the hub's: the SHA-256 of a large file, the git hash of a small one.
    progress : called with the bytes done and in all.

    Raises
    ------
    ModelError : when six tries in a row bring nothing, and when the disk is full.
    CorruptError : when the content does not fit its hash; the file is then removed.
    """
    failures = 0
    while True:
        before = partial.stat().st_size if partial.exists() else 0
        if size is not None and before >= size:
            break
        try:
            size = _request_rest(*locate(), partial, before, size, progress)
            break
        except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError) as error:
            code = getattr(error, "code", None)
            if code == 416:  # the partial file is not a part of the remote one
                partial.unlink(missing_ok=True)
            after = partial.stat().st_size if partial.exists() else 0
            failures = 0 if after > before else failures + 1
            # A signed address that has expired is refused; the next one is fresh.
            final = code in _FINAL and not (code in _EXPIRED and failures == 1)
            if final or failures >= TRIES:
                raise ModelError(f"the server gave no more than {after:,} bytes ({_reason(error)})") from error
            if failures and not give_way(error):
                wait(failures)
    _check(partial, size, etag)


def _reason(error: Exception) -> str:
    return str(getattr(error, "reason", "") or error or type(error).__name__)[:150]


def _request_rest(
    url: str, headers: Mapping[str, str], partial: Path, done: int, size: int | None, progress: Callable
) -> int:
    """One request for the rest of a file; returns the size of the complete file. Raises on any interruption."""
    if not url.startswith(("http://", "https://")):
        raise ModelError(f"the server refers to {url[:100]!r}, which is not fetched")
    sent = dict(headers) | {"Accept-Encoding": "identity"} | ({"Range": f"bytes={done}-"} if done else {})
    with urllib.request.urlopen(urllib.request.Request(url, headers=sent), timeout=TIMEOUT) as answer:
        if done and not (answer.headers.get("Content-Range") or "").startswith(f"bytes {done}-"):
            done = 0  # a server without support of ranges sends everything
        length = answer.headers.get("Content-Length")
        total = size if size is not None else (done + int(length) if length else None)
        if total is not None and shutil.disk_usage(partial.parent).free < total - done:
            raise ModelError(f"{(total - done) / 1e6:.0f} MB do not fit on the disk of {str(partial.parent)!r}")
        with partial.open("ab" if done else "wb") as file:
            # read1, since read waits for a full chunk and loses what it has when the connection breaks.
            while chunk := answer.read1(_CHUNK):
                done += len(chunk)
                if total is not None and done > total:
                    raise CorruptError("the server sends more than it announced")
                file.write(chunk)
                progress(done, total)
    if total is not None and done < total:
        raise ConnectionError("the connection was closed early")
    return done


def _check(path: Path, size: int, etag: str) -> None:
    """Raise CorruptError for a file of another size or hash; servers other than the hub announce no hash."""
    if path.stat().st_size != size:
        problem = f"{path.stat().st_size:,} bytes arrived instead of {size:,}"
    elif len(etag) == 64 and _hash(path, hashlib.sha256()) != etag:
        problem = "its SHA-256 is not the announced one"
    elif len(etag) == 40 and _hash(path, hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)) != etag:
        problem = "its git hash is not the announced one"
    else:
        return
    path.unlink()
    raise CorruptError(f"the file arrived damaged: {problem}")


def _hash(path: Path, digest: hashlib._Hash) -> str:
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
