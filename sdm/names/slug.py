"""File name stems made from names."""

from __future__ import annotations

import hashlib
import re
import unicodedata

MAX_STEM = 80  # with the hash still well under every file system's limit

_RESERVED = frozenset(
    {"con", "prn", "aux", "nul", "clock", "conin", "conout"}
    | {f"{port}{n}" for port in ("com", "lpt") for n in range(10)}
)


def slug(name: str) -> str:
    """Return a file name stem for `name`: lowercase ASCII with hyphens, e.g. 'ursus-arctos'.

    The same name gives the same stem on every machine. A short hash of the name is appended where the stem
    alone would be unsafe (empty, reserved by Windows, longer than 80) or could be that of another name
    (letters outside ASCII were folded or dropped). Spaces, punctuation and case do not count.
    """
    decomposed = unicodedata.normalize("NFKD", name)
    ascii_only = decomposed.encode("ascii", "ignore").decode("ascii").lower()
    stem = re.sub(r"[^a-z0-9]+", "-", ascii_only).strip("-")
    if stem and name.isascii() and len(stem) <= MAX_STEM and stem not in _RESERVED:
        return stem
    # Composed and decomposed spellings of one name hash alike; lone surrogates must not break the encoding.
    composed = unicodedata.normalize("NFC", name).encode("utf-8", "surrogatepass")
    digest = hashlib.sha256(composed).hexdigest()[:8]
    return f"{stem[:MAX_STEM].rstrip('-') or 'name'}-{digest}"
