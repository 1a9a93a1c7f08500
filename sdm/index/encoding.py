"""Unit vectors as bytes: int8 or float16, with one scale each that makes them unit vectors again."""

from __future__ import annotations

from typing import Any

import numpy as np

from sdm.engine.encode import one_thread

DTYPES: dict[str, np.dtype[Any]] = {"int8": np.dtype("int8"), "float16": np.dtype("float16")}
"""Number formats of stored embeddings."""

BLOCK = 4096
"""Embeddings unpacked at a time: with 256 numbers each, 4 MB as float32, which a processor's cache holds."""


def encode(vectors: np.ndarray, encoding: str) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors (N, dim) float32 -> codes (N, dim) int8 or float16, scales (N,) float32.

    int8: each vector is stretched until its largest number is 127, and rounded. `codes * scale` has length 1.
    """
    if encoding == "int8":
        largest = np.abs(vectors).max(axis=1, keepdims=True)
        codes = np.rint(vectors * (127.0 / np.maximum(largest, 1e-30))).astype(np.int8)
    else:
        codes = vectors.astype(DTYPES[encoding])
    length = np.sqrt(np.einsum("ij,ij->i", codes, codes, dtype=np.float64))
    return codes, (1.0 / np.maximum(length, 1e-30)).astype(np.float32)


AGREEMENT_STEPS = 254


def encode_agreement(values: np.ndarray) -> np.ndarray:
    """How well modalities agree, 0 to 1 -> codes 1 to 255 uint8, of the same shape."""
    return (1.0 + np.rint(np.clip(values, 0.0, 1.0) * AGREEMENT_STEPS)).astype(np.uint8)


def decode_agreement(codes: np.ndarray) -> np.ndarray:
    """The inverse, float32; NaN for 0: not held."""
    values = (codes.astype(np.float32) - 1.0) / np.float32(AGREEMENT_STEPS)
    return np.where(codes == 0, np.float32(np.nan), values)


def decode(codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Codes (N, dim) and scales (N,) -> unit vectors (N, dim) float32."""
    out = codes.astype(np.float32)
    out *= scales[:, None]
    return out


def cosines(codes: np.ndarray, scales: np.ndarray, species: np.ndarray) -> np.ndarray:
    """Cosines (S, N) float32 of encoded vectors, (N, dim) and (N,), with unit vectors (S, dim) float32.

    A species' cosines do not depend on what others are asked for. `codes` may be of any type: the vectors
    themselves, with scales of 1.

    On the calling thread alone: tiles are the unit of parallel work.
    """
    import torch

    out = np.empty((len(species), len(codes)), dtype=np.float32)
    with torch.inference_mode(), one_thread("cpu"):
        places, vectors = torch.from_numpy(codes), torch.from_numpy(species)
        block = torch.empty((BLOCK, species.shape[1]))
        for start in range(0, len(codes), BLOCK):
            part = block[: min(BLOCK, len(codes) - start)]
            part.copy_(places[start : start + len(part)])
            for k, vector in enumerate(vectors):  # one product for all would round differently
                out[k, start : start + len(part)] = torch.mv(part, vector).numpy()
    out *= scales
    return out
