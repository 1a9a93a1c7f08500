"""Torch devices of this process."""

from __future__ import annotations

import socket
from functools import lru_cache

from sdm.errors import RequestError


@lru_cache(maxsize=8)
def local_device(device: str) -> str:
    """The torch device of this process that a device by name means: auto is a GPU where there is one.

    Raises RequestError when this process does not have it.
    """
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        return device
    number = device.partition(":")[2]
    if not torch.cuda.is_available():
        raise RequestError(
            f"device {device!r} was asked for, but {socket.gethostname()} or its torch build has no CUDA; use cpu."
        )
    if number and int(number) >= torch.cuda.device_count():
        raise RequestError(f"device {device!r} does not exist; {socket.gethostname()} has {torch.cuda.device_count()}.")
    return device
