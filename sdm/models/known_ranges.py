"""What a model's table says of the range of each species: how its probability depends on the atlas itself.

Species with small ranges are too few in the training data for their vectors alone: their probabilities stay low even
where they live, and those of their relatives' places are as high. The table adds to the logit of such a species a
number of its own, fitted when the model was trained, less a number that grows with the distance to the range as the
atlas has it. It fades out with the size of the range. To a larger range it adds only in and next to those parts in
which the model is too low: small parts apart from the rest, and places amid the range.

The file is `known_ranges.safetensors` of a model folder, with these tensors over S species and K boxes:

* `species` (S,) int32: row of the species' token in `vocabulary.txt`;
* `first` (S + 1,) int32: the boxes of species s are `boxes[first[s]:first[s + 1]]`;
* `boxes` (K, 4) float32: (west, south, east, north) of parts of the range, degrees;
* `lift` (K,) float32: see `KnownRange`; all 0 where it is left out;
* `offset`, `drop`, `reach`, `highest`, `alone` (S,) float32: see `KnownRange`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sdm.errors import ModelError
from sdm.models.config import KNOWN_RANGES
from sdm.request.box import KM_PER_DEGREE

LIMIT = 1000.0
"""Of offsets and drops, in logits: beyond it no probability differs from 0 or 1."""
MAX_BYTES = 64_000_000
VECTORS = ("offset", "drop", "reach", "highest", "alone")
TENSORS = {"species": np.int32, "first": np.int32} | dict.fromkeys(("boxes", "lift", *VECTORS), np.float32)


class Extent(NamedTuple):
    """The box that holds some positions, degrees: enough to tell which ranges are far from all of them."""

    west: float
    south: float
    east: float
    north: float
    complete: bool
    """Whether all positions are finite; the box holds those that are."""

    @classmethod
    def of(cls, lon: np.ndarray, lat: np.ndarray) -> Extent | None:
        """Of positions (N,), (N,); None where none is finite."""
        finite = np.isfinite(lat)
        complete = bool(finite.all())
        x, y = (lon, lat) if complete else (lon[finite], lat[finite])
        if not y.size:
            return None
        return cls(float(x.min()), float(y.min()), float(x.max()), float(y.max()), complete)


@dataclass(frozen=True)
class KnownRange:
    """The known range of a species, and what is added to its logits."""

    boxes: np.ndarray
    """(K, 4) float32 (west, south, east, north), degrees: the range in parts. None where nothing depends on it."""
    offset: float
    """Added everywhere."""
    drop: float
    """Subtracted from `reach` km beyond the range on; nearer, in proportion to the distance."""
    reach: float
    """km."""
    highest: float
    """Largest probability in the range, from all modalities."""
    alone: float
    """The same without what this adds."""
    lifts: np.ndarray | None = None
    """(K,) float32, 0 or more: added in each box, and to `reach` km from it the less the greater the distance."""

    @property
    def adds(self) -> bool:
        """Whether it adds anything."""
        return self.offset != 0.0 or self.drop != 0.0 or self.in_parts

    @property
    def in_parts(self) -> bool:
        """Whether it adds in some parts of a larger range only."""
        return self.lifts is not None and bool((self.lifts > 0.0).any())

    def reaches(self, bbox: tuple[float, float, float, float]) -> bool:
        """Whether it may add something in a box (west, south, east, north) in degrees; west > east: across 180."""
        if not self.in_parts:
            return self.adds
        west, south, east, north = bbox
        margin = self.reach / KM_PER_DEGREE
        width = (east - west) % 360.0 or 360.0
        low, high = self.boxes[:, 1] - margin, self.boxes[:, 3] + margin
        # Near a pole a degree of longitude is short: any is near there.
        wide = margin / np.maximum(np.cos(np.radians(np.clip(np.maximum(np.abs(low), np.abs(high)), 0, 89.9))), 0.01)
        first, last = self.boxes[:, 0] - wide, self.boxes[:, 2] + wide
        across = np.minimum(last - first, 360.0)
        beside = ((first - west) % 360.0 <= width) | ((west - first) % 360.0 <= across)
        return bool((beside & (high >= south) & (low <= north)).any())

    def times(self, factor: float) -> KnownRange:
        """The same in another unit of what is added."""
        lifts = None if self.lifts is None else self.lifts * np.float32(factor)
        return replace(self, offset=self.offset * factor, drop=self.drop * factor, lifts=lifts)

    def shift(self, lon: np.ndarray, lat: np.ndarray) -> np.ndarray:
        """What is added at positions (N,), (N,) in degrees: (N,) float32.

        Each is computed by itself, so it does not depend on the others.
        """
        out = np.full(lon.size, self.offset)
        extent = Extent.of(lon, lat) if self.drop != 0.0 or self.in_parts else None
        if self.drop != 0.0:
            share = self._distance(lon, lat, extent) / self.reach
            out -= self.drop * np.minimum(share, 1.0)
        if self.in_parts:
            out += self._lift(lon, lat, extent)
        return out.astype(np.float32)

    def most(self, extent: Extent | None) -> float:
        """No less than any `shift` in a box."""
        highest = float(self.lifts.max(initial=0.0)) if self.lifts is not None else 0.0
        if (self.drop == 0.0 and highest == 0.0) or extent is None:
            return self.offset + highest
        gap = self._gaps(extent)
        share = float(gap.min(initial=180.0 * KM_PER_DEGREE)) / self.reach
        if self.lifts is not None:
            highest = float((self.lifts * np.maximum(1.0 - gap / self.reach, 0.0)).max(initial=0.0))
        # A billionth more than any rounding.
        more = 1e-6 * (abs(self.offset) + self.drop + highest)
        return self.offset - self.drop * min(share, 1.0) + highest + more

    def _distance(self, lon: np.ndarray, lat: np.ndarray, extent: Extent | None) -> np.ndarray:
        """Distance (N,) km of positions to the range, 0 inside; some number above `reach` where it is more."""
        if extent is not None and extent.complete and self._holds(extent):
            return np.zeros(lon.size)
        out = np.full(lon.size, 2.0 * self.reach)
        for _, distance in self._distances(lon, lat, extent):
            np.fmin(out, distance, out=out)
        return out

    def _lift(self, lon: np.ndarray, lat: np.ndarray, extent: Extent | None) -> np.ndarray:
        """What the nearest boxes add at positions (N,): the most that one of them adds."""
        assert self.lifts is not None
        out = np.zeros(lon.size)
        for k, distance in self._distances(lon, lat, extent):
            if self.lifts[k] > 0.0:
                np.fmax(out, float(self.lifts[k]) * np.maximum(1.0 - distance / self.reach, 0.0), out=out)
        return out

    def _holds(self, extent: Extent) -> bool:
        """Whether one of the boxes holds all of an extent."""
        west, south, east, north = self.boxes.T
        middle, half = 0.5 * (west + east), 0.5 * (east - west)
        away = _turn(0.5 * (extent.west + extent.east) - middle) + 0.5 * (extent.east - extent.west)
        return bool(((away <= half) & (south <= extent.south) & (north >= extent.north)).any())

    def _gaps(self, extent: Extent) -> np.ndarray:
        """No more than the distance (K,) km from any position in an extent to each box."""
        west, south, east, north = self.boxes.T.astype(np.float64)
        dy = np.maximum(np.maximum(south - extent.north, extent.south - north), 0.0)
        dx = _turn(0.5 * (extent.west + extent.east) - 0.5 * (west + east))
        dx = np.maximum(dx - 0.5 * (east - west) - 0.5 * (extent.east - extent.west), 0.0)
        across = max(math.cos(math.radians(max(abs(extent.south), abs(extent.north)))), 0.0)
        # A millionth less, for rounding.
        return (1.0 - 1e-6) * KM_PER_DEGREE * np.hypot(dx * across, dy)

    def _distances(self, lon: np.ndarray, lat: np.ndarray, extent: Extent | None) -> Iterator[tuple[int, np.ndarray]]:
        """Each box that some position in `extent` may reach, by number, with the distances (N,) km to it."""
        if extent is None:
            return
        across = np.cos(np.radians(lat))
        for k in np.flatnonzero(self._gaps(extent) <= self.reach):
            west, low, east, high = self.boxes[k].tolist()
            # The shorter way around the globe to the middle of the box, less half of its width.
            dx = _turn(lon - 0.5 * (west + east)) - 0.5 * (east - west)
            dy = np.maximum(np.maximum(low - lat, lat - high), 0.0)
            dx = np.maximum(dx, 0.0) * across
            yield int(k), KM_PER_DEGREE * np.sqrt(dx * dx + dy * dy)


def _turn(degrees: np.ndarray) -> np.ndarray:
    """Differences of longitudes, the shorter way around the globe: 0 to 180."""
    return np.abs(np.mod(degrees + 180.0, 360.0) - 180.0)


def read_known_ranges(folder: Path, vocabulary: list[str]) -> Mapping[str, KnownRange]:
    """{species: known range} of a model folder; {} where it has no such file.

    Raises ModelError for a file that does not fit the vocabulary (tokens, one a row), or that holds what no range can
    be: it is not trusted.
    """
    path = folder / KNOWN_RANGES
    if not path.is_file():
        return {}
    t = _tensors(path)
    first, boxes = t["first"], t["boxes"]
    if (
        first.shape != (len(t["species"]) + 1,)
        or any(t[name].shape != t["species"].shape for name in VECTORS)
        or boxes.ndim != 2
        or boxes.shape[1] != 4
        or t["lift"].shape != boxes.shape[:1]
    ):
        raise ModelError(f"{path} holds tensors of shapes that do not fit together.")
    if first[0] != 0 or first[-1] != len(boxes) or (np.diff(first) < 0).any():
        raise ModelError(f"{path} holds numbers of boxes that do not fit their boxes.")
    if not all(np.isfinite(t[name]).all() for name in (*VECTORS, "boxes", "lift")):
        raise ModelError(f"{path} holds a number that is not finite.")
    west, south, east, north = boxes.T
    if (
        (west > east).any()
        or (south > north).any()
        or (np.abs(boxes[:, ::2]) > 540).any()
        or (np.abs(boxes[:, 1::2]) > 90).any()
    ):
        raise ModelError(f"{path} holds a box that is none: west, south, east, north in degrees.")
    if (t["lift"] < 0).any() or (t["lift"] > LIMIT).any():
        raise ModelError(f"{path} holds a lift of more than {LIMIT:g}, or below 0.")
    if (np.abs(t["offset"]) > LIMIT).any() or (t["drop"] < 0).any() or (t["drop"] > LIMIT).any():
        raise ModelError(f"{path} holds an offset or drop of more than {LIMIT:g}, or a drop below 0.")
    if (t["reach"] <= 0).any():
        raise ModelError(f"{path} holds a reach that is not positive.")
    known: dict[str, KnownRange] = {}
    for k, row in enumerate(t["species"]):
        own = slice(first[k], first[k + 1])
        offset, drop, reach, highest, alone = (float(t[name][k]) for name in VECTORS)
        name = _species(path, vocabulary, int(row))
        known[name] = KnownRange(boxes[own], offset, drop, reach, highest, alone, t["lift"][own])
    return known


def _tensors(path: Path) -> dict[str, np.ndarray]:
    """The tensors of the file, each of its type. Raises ModelError."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        if path.stat().st_size > MAX_BYTES:
            raise ModelError(f"{path} is larger than {MAX_BYTES // 1_000_000} MB, the limit for a table of ranges.")
        tensors = load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from error
    if "lift" not in tensors and "boxes" in tensors:
        tensors["lift"] = np.zeros(len(tensors["boxes"]), np.float32)
    for name, kind in TENSORS.items():
        if name not in tensors or tensors[name].dtype != kind:
            raise ModelError(f"{path} has no tensor {name!r} of type {np.dtype(kind).name}.")
    return tensors


def _species(path: Path, vocabulary: list[str], row: int) -> str:
    """The species of a row of the vocabulary. Raises ModelError."""
    token = vocabulary[row] if 0 <= row < len(vocabulary) else ""
    rank, _, name = token.partition(":")
    if rank != "species":
        raise ModelError(f"{path} names row {row} of vocabulary.txt, which is no species.")
    return name


def pack_known_ranges(ranges: Mapping[str, KnownRange], vocabulary: list[str]) -> bytes:
    """The content of the file for the species of a vocabulary."""
    from safetensors.numpy import save

    row = {token: k for k, token in enumerate(vocabulary)}
    names = sorted(ranges)
    boxes = [np.asarray(ranges[name].boxes, dtype=np.float32).reshape(-1, 4) for name in names]
    tensors = {
        "species": np.array([row[f"species:{name}"] for name in names], dtype=np.int32),
        "first": np.cumsum([0, *(len(b) for b in boxes)]).astype(np.int32),
        "boxes": np.concatenate([np.empty((0, 4), np.float32), *boxes]),
        "lift": np.concatenate([np.empty(0, np.float32), *(_lifts(ranges[name]) for name in names)]),
    }
    tensors |= {v: np.array([getattr(ranges[name], v) for name in names], dtype=np.float32) for v in VECTORS}
    return save(tensors)


def _lifts(known: KnownRange) -> np.ndarray:
    return np.zeros(len(known.boxes), np.float32) if known.lifts is None else known.lifts.astype(np.float32)
