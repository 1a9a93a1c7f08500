"""An index read from its first to its last byte."""

from __future__ import annotations

import json
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

    def read(key: str) -> bytes:
        content = sync(store.get(key, default_buffer_prototype()))
        return b"" if content is None else content.to_bytes()

    # What readers take from here was compared when the index was opened; other programs may read each document itself.
    documents = json.loads(read(".zmetadata"))["metadata"]

    def problem(key: str) -> str | None:
        try:
            content = read(key)
            if key in documents and json.loads(content) != documents[key]:
                return f"{key!r} is not what was written there"
        except Exception as error:  # s3fs, gcsfs and aiohttp each have errors of their own
            return f"{key!r}: {brief(error)}" if key in documents else brief(error)
        return None

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return [found for found in pool.map(problem, [*documents, *store.keys()]) if found]
