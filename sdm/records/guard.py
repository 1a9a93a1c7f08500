"""Files from anywhere, opened so that none of them can take all memory or reach outside its archive."""

from __future__ import annotations

import codecs
import gzip
import io
import stat
import zipfile
from pathlib import Path
from typing import BinaryIO, cast

from sdm.errors import RecordsError, quoted
from sdm.files import archives
from sdm.files.archives import MAX_BYTES, refuse_bomb

MAX_SMALL = 16 << 20
"""Bytes of a description in an archive."""

_PIECE = 1 << 20


def regular_file(path: str | Path, what: str = "records") -> Path:
    """The path of an existing file, absolute. Raises RecordsError for anything else, which it calls `what`."""
    path = Path(path)
    name = f"{what} {quoted(str(path), 120)}"
    try:
        status = path.stat()
    except FileNotFoundError:
        raise RecordsError(f"{name} does not exist.") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise RecordsError(f"{name} cannot be read ({reason}).") from None
    if stat.S_ISDIR(status.st_mode):
        raise RecordsError(f"{name} is a folder; give the file in it.")
    if not stat.S_ISREG(status.st_mode):
        raise RecordsError(f"{name} is not a file.")
    if status.st_size == 0:
        raise RecordsError(f"{name} is an empty file.")
    return path.absolute()


class TextStream:
    """Any text file as UTF-8: the reader's side of a file object.

    UTF-16 and UTF-8 are known by their marks; what is not UTF-8 is taken for Windows-1252. Raises RecordsError
    while it is read, for null bytes and for more than MAX_BYTES.

    Parameters
    ----------
    binary
        The file.
    source
        Its name, for messages.
    compressed
        Bytes it takes in compressed form, if it is.
    encoding
        As the file's description states it; else it is found out.
    """

    closed = False

    def __init__(
        self, binary: BinaryIO, source: str, *, compressed: int | None = None, encoding: str | None = None
    ) -> None:
        self.binary, self.source, self.compressed = binary, source, compressed
        self.fallback_at: int | None = None
        """Position of the first byte that is not UTF-8."""
        self._buffer = bytearray()
        self._total = 0
        self._ended = False
        first = self._pull()
        if encoding is None:
            mark = next((m for m in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) if first.startswith(m)), None)
            encoding = "utf-16" if mark else "utf-8-sig"
        self._decoder = codecs.getincrementaldecoder(encoding)("replace" if "utf-8" not in encoding else "strict")
        self._may_fall_back = "utf-8" in encoding
        self._append(first)

    def peek(self, size: int) -> bytes:
        """The next `size` bytes, or all that is left; they stay to be read."""
        while len(self._buffer) < size and not self._ended:
            self._append(self._pull())
        return bytes(self._buffer[:size])

    def read(self, size: int = -1) -> bytes:
        """The next `size` bytes, or all that is left."""
        piece = self.peek(MAX_BYTES if size is None or size < 0 else size)
        del self._buffer[: len(piece)]
        return piece

    def close(self) -> None:
        """Close the file."""
        self.closed = True
        self.binary.close()

    def _pull(self) -> bytes:
        try:
            piece = self.binary.read(_PIECE)
        except (OSError, EOFError, zipfile.BadZipFile, RuntimeError, NotImplementedError) as error:
            raise RecordsError(f"{self.source} is damaged or cannot be unpacked ({error}).") from None
        except Exception as error:  # zlib.error, lzma.LZMAError: their modules may be missing
            raise RecordsError(f"{self.source} is damaged ({error}).") from None
        self._ended = not piece
        self._total += len(piece)
        refuse_bomb(self._total, self.compressed, self.source, RecordsError)
        return piece

    def _append(self, piece: bytes) -> None:
        if not self._may_fall_back:
            text = self._decoder.decode(piece, self._ended).encode("utf-8")
        elif piece.isascii() and self._decoder.getstate()[0] == b"" and self._total > len(piece):
            text = piece
        else:
            text = self._utf8(piece)
        if b"\0" in text:
            raise RecordsError(f"{self.source} is not text (it holds null bytes).")
        self._buffer += text

    def _utf8(self, piece: bytes) -> bytes:
        pending = self._decoder.getstate()[0]
        try:
            return self._decoder.decode(piece, self._ended).encode("utf-8")
        except UnicodeDecodeError as error:
            self.fallback_at = self._total - len(piece) + error.start
            self._may_fall_back = False
            self._decoder = codecs.getincrementaldecoder("cp1252")("replace")
            return self._decoder.decode(pending + piece, self._ended).encode("utf-8")


def open_text(path: Path, source: str) -> TextStream:
    """A text file, also one compressed by gzip."""
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    if packed:
        return TextStream(cast(BinaryIO, gzip.open(path, "rb")), source, compressed=path.stat().st_size)
    return TextStream(path.open("rb"), source)


class Archive(archives.Archive):
    """A zip file of records; a context manager. Raises RecordsError."""

    error = RecordsError

    def text(self, name: str, encoding: str | None = None) -> TextStream:
        """A member as text."""
        binary, size = self.open(name), self.members[name].compress_size
        return TextStream(binary, f"{quoted(name)} in {self.source}", compressed=size, encoding=encoding)

    def small(self, name: str) -> bytes:
        """The whole content of a short text in UTF-8. Raises RecordsError where it is long."""
        stream = self.text(name)
        try:
            content = stream.read(MAX_SMALL + 1)
        finally:
            stream.close()
        if len(content) > MAX_SMALL:
            raise RecordsError(
                f"{quoted(name)} in {self.source} holds more than {MAX_SMALL >> 20} MiB; it is not read."
            )
        return content


def as_lines(content: bytes) -> list[str]:
    """The lines of a text in UTF-8, those that are not blank."""
    text = content.decode("utf-8", "replace")
    return [line.strip() for line in io.StringIO(text, newline=None) if line.strip()]
