"""Zip files from anywhere, opened so that none of them can take all memory or reach outside its archive."""

from __future__ import annotations

import stat
import zipfile
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Self, cast

from sdm.errors import LayerError, SdmError, quoted

MAX_BYTES = 16 << 30
"""Bytes that are unpacked of one member at most."""
MAX_MEMBERS = 100_000
BOMB_BYTES, BOMB_RATIO = 32 << 20, 50
"""More than so many bytes, which are more than so many times those of the compressed file, are taken for an attack."""

_PIECE = 1 << 20


def refuse_bomb(size: int, compressed: int | None, source: str, error: type[SdmError] = LayerError) -> None:
    """Raise `error` where `size` bytes are more than a file has that was not made to fill the memory."""
    if size > MAX_BYTES:
        raise error(f"{source} holds more than {MAX_BYTES >> 30} GiB; keep the rows of the species that is meant.")
    if compressed is not None and size > BOMB_BYTES and size > BOMB_RATIO * max(compressed, 1):
        raise error(f"{source} unpacks to more than {BOMB_RATIO} times its size; it is not read.")


def first_bytes(path: Path, size: int = 1 << 16) -> bytes:
    """The beginning of a file."""
    with path.open("rb") as file:
        return file.read(size)


class Archive:
    """A zip file; a context manager. Raises `error` on entering where it is damaged or a name leads out of it."""

    error: type[SdmError] = LayerError

    def __init__(self, path: Path, source: str) -> None:
        self.path, self.source = path, source
        self.members: dict[str, zipfile.ZipInfo] = {}

    def __enter__(self) -> Self:
        try:
            self._zip = zipfile.ZipFile(self.path)
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
            raise self.error(f"{self.source} is not a readable zip file ({error}).") from None
        try:
            self._check()
        except BaseException:
            self._zip.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._zip.close()

    def _check(self) -> None:
        infos = self._zip.infolist()
        if len(infos) > MAX_MEMBERS:
            raise self.error(f"{self.source} holds {len(infos):,} files, more than {MAX_MEMBERS:,}.")
        for info in infos:
            name = info.filename.replace("\\", "/")
            if name.startswith("/") or ".." in PurePosixPath(name).parts or ":" in name.partition("/")[0]:
                raise self.error(f"{self.source} holds {quoted(name)}, which leads out of the archive; it is not read.")
            if stat.S_ISLNK(info.external_attr >> 16):
                raise self.error(f"{self.source} holds the symbolic link {quoted(name)}; it is not read.")
            # What macOS and editors leave behind is not meant.
            if not info.is_dir() and not name.startswith("__MACOSX/") and not PurePosixPath(name).name.startswith("."):
                self.members[name] = info

    def open(self, name: str) -> BinaryIO:
        """A member as a file. Raises `error`."""
        info = self.members.get(name)
        if info is None:
            raise self.error(f"{self.source} lacks {quoted(name)}, which its description names.")
        if info.flag_bits & 1:
            raise self.error(f"{self.source} is encrypted; unpack it first.")
        refuse_bomb(info.file_size, info.compress_size, f"{quoted(name)} in {self.source}", self.error)
        try:
            return cast(BinaryIO, self._zip.open(info))
        except (zipfile.BadZipFile, OSError, RuntimeError, NotImplementedError) as error:
            raise self.error(f"{quoted(name)} in {self.source} cannot be unpacked ({error}).") from None

    def unpack(self, name: str, target: Path) -> None:
        """Write a member to the file `target`."""
        total = 0
        with self.open(name) as binary, target.open("wb") as file:
            while piece := self._piece(binary):
                total += len(piece)
                refuse_bomb(total, self.members[name].compress_size, f"{quoted(name)} in {self.source}", self.error)
                file.write(piece)

    def _piece(self, binary: BinaryIO) -> bytes:
        try:
            return binary.read(_PIECE)
        except Exception as error:  # zipfile and its decompressors raise many types
            raise self.error(f"{self.source} is damaged ({error}).") from None
