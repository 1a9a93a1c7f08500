"""Records of finished tiles: which files a tile has written, with sizes and CRCs, and some numbers about it.

A record is written after the files it lists, and appears whole or not at all. Nothing is flushed to the disk for
each tile: the kernel keeps what a killed process wrote, and after a power cut the CRCs tell which files did not
reach the disk.
"""

from __future__ import annotations

import io
import threading
import uuid
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sdm.errors import OutputError
from sdm.files.atomic import disk_errors

# NumPy parses headers with `ast`, and some releases of Python fail now and then where threads do so at once
# (https://github.com/python/cpython/issues/106905: "AST constructor recursion depth mismatch").
_ONE_AT_A_TIME = threading.Lock()

Record = dict[str, npt.NDArray]


def record_path(folder: Path, index: tuple[int, int]) -> Path:
    """The path of the record of a tile, by the tile's (row, column)."""
    return folder / f"{index[0]}.{index[1]}.npz"


def write_record(path: Path, scratch: Path, files: Sequence[tuple[str, int, int]], values: Record) -> None:
    """Write the record of a tile.

    Parameters
    ----------
    path : see `record_path`.
    scratch : a folder on the same file system.
    files : (name in the store, bytes, CRC-32) of each file that the tile has written.
    values : arrays to keep, read back under their names with "value_" before them.
    """
    names, sizes, checks = zip(*files, strict=True) if files else ((), (), ())
    listed = {
        "files": np.array(names, dtype=str),
        "sizes": np.array(sizes, dtype=np.int64),
        "checks": np.array(checks, dtype=np.uint32),
    }
    buffer = io.BytesIO()
    np.savez(buffer, **listed, **{f"value_{name}": array for name, array in values.items()})  # type: ignore[arg-type]
    part = scratch / uuid.uuid4().hex
    with disk_errors(path):
        part.write_bytes(buffer.getvalue())
        part.replace(path)


def read_record(path: Path, names: Iterable[str] | None = None) -> Record:
    """The arrays of a record, or those of some names that it has. Raises OutputError when it is damaged."""
    try:
        # A zip file: each array carries its CRC.
        with _ONE_AT_A_TIME, np.load(path, allow_pickle=False) as record:
            return {name: record[name] for name in record.files if names is None or name in names}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise OutputError(f"{path} cannot be read: {error}") from error


def files_are_whole(record: Record, store: Path) -> bool:
    """True when every file that a record lists lies in a store as it was written."""
    for name, size, check in zip(record["files"], record["sizes"], record["checks"], strict=True):
        try:
            content = (store / str(name)).read_bytes()
        except OSError:
            return False
        if len(content) != size or zlib.crc32(content) != check:
            return False
    return True
