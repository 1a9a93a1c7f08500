"""Checks of single options."""

from __future__ import annotations

import operator
from typing import Any

from sdm.errors import RequestError


def whole(name: str, value: Any) -> None:
    """Raise RequestError unless an option is a whole number."""
    try:
        operator.index(value)
    except TypeError:
        raise RequestError(f"{name} {value!r} must be a whole number.") from None
    if isinstance(value, bool):
        raise RequestError(f"{name} {value!r} must be a whole number.")
