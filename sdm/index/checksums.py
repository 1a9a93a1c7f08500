"""What was written into an index, and where: checked whenever anything is read.

CRC-32 is meant for accidents: a changed byte, a chunk in the place of another, one of an earlier build. Whoever changes
an index on purpose can change its checksums too; bounds on all that is read guard against them (`sdm.index.store`).
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import stat
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from zarr.abc.store import RangeByteRequest, Store
from zarr.storage import LocalStore, WrapperStore

from sdm.errors import RegionIndexError

CHECKSUM = "checksum"
"""The array of CRC-32 of chunks."""
_BLOSC_EXTRA = 1 << 20
"""Bytes by which what does not compress gets longer, at most: Blosc's header and table of blocks."""
_MAX_DOCUMENT = 16 << 20
_SMALL = 1 << 18


@dataclass(frozen=True)
class Checksums:
    """Hashes of all that is not in the array `checksum`."""

    table: str
    """sha256 of the array `checksum`, as little-endian numbers."""
    metadata: str
    """sha256 of the consolidated metadata without this entry, as JSON with sorted keys."""
    files: Mapping[str, int]
    """CRC-32 of each other chunk, by its key: coordinates, which other programs read."""

    @classmethod
    def of(cls, path: Path, table: np.ndarray, metadata: str) -> Checksums:
        """Those of a store that is complete but for them."""
        others = (key for name in ("x", "y", "spatial_ref", CHECKSUM) for key in _chunks(path, name))
        return cls(_of_table(table), metadata, {key: zlib.crc32((path / key).read_bytes()) for key in others})

    @classmethod
    def from_dict(cls, content: Any, url: str) -> Checksums:
        """Checked. Raises RegionIndexError."""
        try:
            files = content["files"]
            good = isinstance(files, dict) and all(type(check) is int for check in files.values())
            good = good and all(isinstance(content[name], str) for name in ("table", "metadata"))
        except (KeyError, TypeError):
            good = False
        if not good:
            raise RegionIndexError(f"region index {url!r} is damaged: its checksums are incomplete; build it again.")
        return cls(content["table"], content["metadata"], files)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def of_metadata(metadata: Mapping[str, Any], attribute: str) -> str:
    """sha256 of consolidated metadata without the checksums in the header, `attribute` of the root."""
    root = metadata[".zattrs"]
    header = {key: value for key, value in root[attribute].items() if key != "checksums"}
    rest = {**metadata, ".zattrs": {**root, attribute: header}}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _of_table(table: np.ndarray) -> str:
    return hashlib.sha256(table.astype("<u4").tobytes()).hexdigest()


def _chunks(path: Path, name: str) -> list[str]:
    return sorted(f"{name}/{file.name}" for file in (path / name).iterdir() if not file.name.startswith("."))


def refuse_special(store: Store, key: str) -> None:
    """Raise ValueError for a pipe, device or folder in the place of a file: opening it might never end."""
    if isinstance(store, LocalStore):
        try:
            mode = (store.root / key).stat().st_mode
        except (FileNotFoundError, NotADirectoryError):
            return
        if not stat.S_ISREG(mode):
            raise ValueError(f"{key!r} is not a regular file")


class CheckedStore(WrapperStore):
    """A store that refuses chunks larger than `limit` bytes, and those that were not written in their place."""

    def __init__(self, store: Store, limit: int) -> None:
        super().__init__(store)
        self.limit = limit
        self._columns: dict[str, int] = {}
        self._table: np.ndarray | None = None
        self._files: Mapping[str, int] = {}

    def expect(self, arrays: Sequence[str], table: np.ndarray, checksums: Checksums) -> None:
        """Check chunks from now on: of `arrays` with the columns of `table`. Raises ValueError for a damaged table."""
        if _of_table(table) != checksums.table:
            raise ValueError(f"array {CHECKSUM!r} is damaged")
        self._columns, self._table = {name: k for k, name in enumerate(arrays)}, table
        self._files = checksums.files

    def keys(self) -> list[str]:
        """The keys of all chunks that have a checksum."""
        assert self._table is not None
        rows, cols, _ = self._table.shape
        places = [(i, j) for i in range(rows) for j in range(cols)]
        ends = {name: ".0" * name.startswith("embedding") for name in self._columns}
        return [*self._files, *(f"{name}/{i}.{j}{end}" for name, end in ends.items() for i, j in places)]

    async def get(self, key, prototype, byte_range=None):
        """As of the store. Raises ValueError for what is refused."""
        refuse_special(self._store, key)
        if key.rpartition("/")[2].startswith("."):
            return await super().get(key, prototype, byte_range or RangeByteRequest(0, _MAX_DOCUMENT))
        content = await super().get(key, prototype, RangeByteRequest(0, self.limit + _BLOSC_EXTRA))
        bytes_ = None if content is None else content.as_numpy_array()
        if bytes_ is not None and key not in self._files:
            # A Blosc header: version, codec, flags, type size; then in four bytes each the unpacked length, the length
            # of a block, and the packed length, beyond which the decoder would read other memory.
            start = bytes(bytes_[:16])
            unpacked, packed = (int.from_bytes(start[at : at + 4], "little") for at in (4, 12))
            if len(start) < 16 or unpacked > self.limit or packed != len(bytes_):
                raise ValueError(f"chunk {key!r} has the wrong size")
        expected = self._expected(key)
        if expected is not None and expected != await _check(bytes_):
            what = "is missing" if content is None else "is not what was written there"
            raise ValueError(f"chunk {key!r} {what}")
        return content

    def _expected(self, key: str) -> int | None:
        """CRC-32 of a chunk; None where nothing is known of it."""
        name, _, at = key.rpartition("/")
        if self._table is None or name not in self._columns:
            return self._files.get(key)
        row, col = at.split(".")[:2]
        return int(self._table[int(row), int(col), self._columns[name]])


async def _check(content: Any) -> int:
    """CRC-32 of a file; 0 where there is none."""
    if content is None:
        return 0
    # Zarr reads all chunks on one thread: large ones are checked beside it.
    return zlib.crc32(content) if len(content) < _SMALL else await asyncio.to_thread(zlib.crc32, content)
