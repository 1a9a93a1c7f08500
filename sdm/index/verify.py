"""An index read from its first to its last byte."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync

from sdm.index.reader import Index
from sdm.index.store import brief

_AT_ONCE = 8


def damaged(index: Index) -> list[str]:
    """What is wrong with each chunk that is not as it was written, in the order of the store. Reads all of them."""
    store: Any = index.store

    def problem(key: str) -> str | None:
        try:
            sync(store.get(key, default_buffer_prototype()))
        except Exception as error:  # s3fs, gcsfs and aiohttp each have errors of their own
            return brief(error)
        return None

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return [found for found in pool.map(problem, store.keys()) if found]
