"""Encoding files and places in batches; the next batch is read while one is encoded."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from sdm.errors import ModelError, RequestError

if TYPE_CHECKING:
    import torch

BATCH = 64
CROP = 256
"""Side of a satellite crop, pixels."""


class Encoders(Protocol):
    """The encoders that `model.load(device)` returns."""

    def encode(self, modality: str, values: Any) -> torch.Tensor:
        """Values of one modality -> (N, dim) unit vectors, float32."""
        ...


def encode_items(
    encoders: Encoders,
    modality: str,
    items: Sequence[Any] | np.ndarray,
    batch: int = BATCH,
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> np.ndarray:
    """Encode a sequence of one modality.

    Parameters
    ----------
    encoders : of a model
    modality : image, satellite, audio, text, location or environment
    items : paths for image, satellite and audio; texts; (N, 2) degrees **(lon, lat)** for location; (N, 20) z-scores
        for environment
    batch : items encoded at once
    tell : called with (done, total) after every batch

    Returns
    -------
    (N, dim) float32 unit vectors

    Raises
    ------
    ModelError : when the encoder does not return one finite vector per item; and the errors of readers and model
    """
    if batch < 1:
        raise RequestError(f"batch {batch} must be at least 1.")
    if not len(items):
        raise RequestError(f"there is nothing to encode for {modality}.")
    parts, done = [], 0
    for values in _batches(modality, items, batch, getattr(encoders, "preprocess", "taxabind")):
        part = encoders.encode(modality, values).float().cpu().numpy()
        if part.ndim != 2 or len(part) != len(values) or not np.isfinite(part).all():
            raise ModelError(f"the {modality} encoder returned no finite vector for some of its input.")
        parts.append(part)
        done += len(part)
        tell(done, len(items))
    return np.concatenate(parts)


def read_crop(path: str | Path) -> np.ndarray:
    """A satellite picture from a file -> (256, 256, 3) uint8, resized to that size without keeping its aspect ratio."""
    from PIL import Image

    from sdm.models.taxabind.photo import open_photo

    image = open_photo(path)
    if image.size != (CROP, CROP):
        image = image.resize((CROP, CROP), Image.Resampling.BILINEAR)
    return np.asarray(image)


def read_values(modality: str, items: Sequence[Any] | np.ndarray, preprocess: str = "taxabind") -> Any:
    """All items of one modality in the form that the encoders take; see `encode_items`. They must fit in memory."""
    return next(_batches(modality, items, len(items), preprocess))


def _batches(modality: str, items: Any, batch: int, preprocess: str) -> Iterator[Any]:
    if modality == "image":
        from sdm.models.taxabind.photo import read_photos

        yield from read_photos(items, preprocess, batch)
    elif modality == "satellite":
        yield from map(np.stack, _read_ahead(read_crop, items, batch))
    elif modality == "audio":
        from sdm.models.taxabind.sound import read_sound

        yield from _read_ahead(read_sound, items, batch)
    else:
        for start in range(0, len(items), batch):
            part = items[start : start + batch]
            yield list(part) if modality == "text" else part


def _read_ahead(read: Callable[[Any], np.ndarray], items: Iterable[Any], batch: int) -> Iterator[list[np.ndarray]]:
    """Batches of `read(item)`, in order; at most two batches wait in memory."""
    items = iter(items)
    with ThreadPoolExecutor() as pool:
        try:
            ahead = deque(pool.submit(read, item) for item in islice(items, 2 * batch))
            while ahead:
                ready = [ahead.popleft().result() for _ in range(min(batch, len(ahead)))]
                ahead.extend(pool.submit(read, item) for item in islice(items, len(ready)))
                yield ready
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
