"""Content and names that survive a power cut."""

import contextlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path


def flush(path: Path) -> None:
    """Make the content of a file or folder durable before its rename is: else a final name may stand on no content."""
    inside = [path, *path.rglob("*")] if path.is_dir() else [path]
    files = [file for file in inside if file.is_file()]
    # Side by side: file systems write many waiting files in one go.
    with ThreadPoolExecutor(min(16, max(1, len(files)))) as pool:
        list(pool.map(_flush_file, files))
    for folder in inside:
        if folder.is_dir():
            flush_folder(folder)


def _flush_file(file: Path) -> None:
    descriptor = os.open(file, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            # Some network file systems refuse; the files are in place all the same.
            with contextlib.suppress(OSError):
                os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that appears complete and durable, or not at all."""
    part = path.with_name(path.name + ".part")
    part.write_bytes(content)
    flush(part)
    part.replace(path)
    flush_folder(path.parent)
