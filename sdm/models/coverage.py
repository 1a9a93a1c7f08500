"""The area with reliable training data of a model: elsewhere its maps are least sure.

Kept in a model's `config.json` as a grid of the globe, row 0 north, column 0 at 180 W: `{"degrees": size of a
square cell, "cells": base64 of zlib of the packed bits, 1 = covered}`.
"""

from __future__ import annotations

import base64
import binascii
import zlib
from dataclasses import dataclass

import numpy as np

DEGREES = (0.25, 0.5, 1.0, 2.0, 5.0)
"""Sizes of a cell that are supported."""

UNCOVERED = 0.9
"""Least uncertainty where there are no reliable training data."""


@dataclass(frozen=True)
class Coverage:
    """`cells` (rows, columns) bool on a grid of square cells of `degrees`."""

    degrees: float
    cells: np.ndarray

    @classmethod
    def decode(cls, entry: object) -> Coverage:
        """From `config.json`. Raises ValueError for what is not such an entry; never unpacks more than a grid."""
        degrees = entry.get("degrees") if isinstance(entry, dict) else None
        text = entry.get("cells") if isinstance(entry, dict) else None
        if isinstance(degrees, bool) or degrees not in DEGREES or not isinstance(text, str):
            raise ValueError(f"coverage needs degrees (one of {DEGREES}) and cells")
        shape = round(180 / degrees), round(360 / degrees)
        size = (shape[0] * shape[1] + 7) // 8
        try:
            packed = zlib.decompressobj().decompress(base64.b64decode(text, validate=True), size + 1)
        except (binascii.Error, zlib.error) as error:
            raise ValueError(f"cells of the coverage cannot be read: {error}") from error
        if len(packed) != size:
            raise ValueError(f"coverage has {len(packed)} bytes of cells, {size} are needed for {degrees} degrees")
        bits = np.unpackbits(np.frombuffer(packed, np.uint8))[: shape[0] * shape[1]]
        return cls(float(degrees), bits.reshape(shape).astype(bool))

    def encode(self) -> dict:
        """For `config.json`."""
        packed = zlib.compress(np.packbits(self.cells).tobytes(), 9)
        return {"degrees": self.degrees, "cells": base64.b64encode(packed).decode("ascii")}

    def keep(self, lon: np.ndarray, lat: np.ndarray) -> np.ndarray:
        """Whether positions lie in covered cells: degrees of one shape -> bool; False where not finite."""
        fine = np.isfinite(lon) & np.isfinite(lat)
        column = np.floor((np.where(fine, lon, 0.0) + 180.0) / self.degrees).astype(np.int64) % self.cells.shape[1]
        row = np.floor((90.0 - np.where(fine, lat, 0.0)) / self.degrees).astype(np.int64)
        return fine & self.cells[np.clip(row, 0, self.cells.shape[0] - 1), column]
