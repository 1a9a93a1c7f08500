"""What the checksums of a region index cost when it is read: all tiles, with and without them, in turn.

python benchmarks/index_checksums.py west.zarr
"""

from __future__ import annotations

import statistics
import sys
import time
from typing import Any

from sdm.index import Index

ROUNDS = 9


def read_all(index: Index) -> float:
    """CPU seconds to read every tile, none of them kept in memory."""
    start = time.process_time()
    for tile in index.grid.tiles():
        index.encoded(tile.rows, tile.cols, keep=False)
    return time.process_time() - start


def main() -> None:
    """Print medians, and their ratio."""
    checked, unchecked = Index.open(sys.argv[1]), Index.open(sys.argv[1])
    store: Any = unchecked.store
    store._table = None
    times: dict[str, list[float]] = {"checked": [], "unchecked": []}
    for _ in range(ROUNDS):
        times["checked"].append(read_all(checked))
        times["unchecked"].append(read_all(unchecked))
    medians = {name: statistics.median(values) for name, values in times.items()}
    pixels = checked.notes["pixels_held"]
    print(f"{pixels:,} pixels; CPU s to read all: " + ", ".join(f"{name} {t:.3f}" for name, t in medians.items()))
    print(f"ratio of medians {medians['checked'] / medians['unchecked']:.3f}")


if __name__ == "__main__":
    main()
