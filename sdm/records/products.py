"""Matrix products whose bits do not depend on what else is computed with them."""

from __future__ import annotations

import numpy as np


def product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """`a @ b` as float32, summed in double precision.

    In single precision the last bits of a row depend, on some processors, on where in a batch it is; those of a map
    must not depend on its tiles.
    """
    return (a.astype(np.float64) @ b.astype(np.float64)).astype(np.float32)
