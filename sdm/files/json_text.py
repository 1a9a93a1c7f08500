"""What a GeoJSON or TopoJSON text must not hold before GDAL reads it: links, and what takes all memory or time."""

from __future__ import annotations

import mmap
import re
from pathlib import Path

import numpy as np

from sdm.errors import SdmError

MAX_NAMES = 1_000
"""Different names of members. Each name in the properties becomes a column, which every feature has."""
MAX_SINGLE = 8 << 20
"""Bytes of a text that is no collection of features: GDAL takes some forty times as many to read it."""

_DENSE = 10_000_000
"""Values of a table, also empty ones, that any text may fill."""
_MAX_OUTER = 1_000
"""Strings outside all features."""
_WINDOW = 4 << 20
_NAME = re.compile(rb'"((?:[^"\\]|\\.){1,1000})"\s{0,100}:')
_STRING = re.compile(rb'"([^"\\]{0,1000})"(?:\s{0,1000}:\s{0,1000}"(\w{0,100})")?')

# A member of any object whose name is "crs", in any spelling that a tolerant parser accepts, and its value's beginning.
_GAP = rb"(?:\s|/\*.{0,4096}?\*/|//[^\n]{0,4096}\n)*+"
_CRS = re.compile(
    rb"['\"](?:c|\\u00[46]3)(?:r|\\u00[57]2)(?:s|\\u00[57]3)(?:\\u0000[^'\"]{0,999})?['\"]"
    + _GAP
    + rb":"
    + _GAP
    + rb"\{",
    re.IGNORECASE | re.DOTALL,
)
_TYPE = rb'"type"\s*+:\s*+"(?:name|EPSG)"'
_PROPERTIES = rb'"properties"\s*+:\s*+\{\s*+"(?:name|code)"\s*+:\s*+(?:"[\w:/.#-]{1,200}"|\d{1,9})\s*+\}'
_NAMED_CRS = re.compile(
    rb"\s*+(?:" + _TYPE + rb"\s*+,\s*+" + _PROPERTIES + rb"|" + _PROPERTIES + rb"\s*+,\s*+" + _TYPE + rb")\s*+\}"
)


def refuse_json(path: Path, source: str, error: type[SdmError]) -> None:
    """Raise `error`, with `source` as the name of the file, for a text that GDAL must not be given.

    A large text must be a collection of features, which GDAL reads one after the other.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        _refuse_links(content, source, error)
        _refuse_names(content, source, error)
        if len(content) > MAX_SINGLE and not _is_collection(content):
            raise error(
                f"{source} has more than {MAX_SINGLE >> 20} MiB and is no plain collection of features; simplify it, "
                "or save it as a GeoPackage."
            )


def _refuse_names(content: mmap.mmap, source: str, error: type[SdmError]) -> None:
    """Raise `error` for more than `MAX_NAMES` names of members, or for names that few features have."""
    names: set[bytes] = set()
    members = features = 0
    for start in range(0, len(content), _WINDOW):
        window = content[start : start + _WINDOW]
        found = _NAME.findall(window)
        names.update(found)
        members += len(found)
        features += window.count(b'"Feature"')
        if len(names) > MAX_NAMES:
            raise error(f"{source} has more than {MAX_NAMES:,} different properties; save only those that are needed.")
    if len(names) * features > _DENSE + 20 * members:
        raise error(
            f"{source} has {len(names):,} different properties, of which a feature has few; save only those that are "
            "needed."
        )


def _is_collection(content: mmap.mmap) -> bool:
    """Whether the outermost object has one member "type", which says that it is a collection of features."""
    depth, inside, types = 0, 0, []
    start, strings = 0, 0
    while start < len(content):
        window = content[start : start + _WINDOW]
        if window.endswith(b"\\"):  # an escape is not cut
            window += content[start + len(window) : start + len(window) + 2]
        plain = np.frombuffer(re.sub(rb"\\.", b"__", window, flags=re.DOTALL), np.uint8)
        quote = plain == ord('"')
        within = (np.cumsum(quote) + inside) % 2 == 1
        opening, text = quote & within, within | quote
        steps = np.zeros(plain.size, np.int64)
        for marks, step in ((b"{[", 1), (b"}]", -1)):
            steps[((plain == marks[0]) | (plain == marks[1])) & ~text] = step
        depths = depth + np.cumsum(steps)
        outer = np.flatnonzero(opening & (depths == 1))
        strings += outer.size
        if strings > _MAX_OUTER:
            return False
        for at in outer:
            found = _STRING.match(content, start + int(at))
            if found is None:  # a long string, or one with an escape, which may spell "type"
                return False
            if found[1] == b"type":
                types.append(found[2])
        depth, inside = int(depths[-1]), int(within[-1])
        start += len(window)
    return types == [b"FeatureCollection"]


def _refuse_links(content: mmap.mmap, source: str, error: type[SdmError]) -> None:
    """Raise `error` for a GeoJSON file whose CRS is anything but a plain name: GDAL would fetch it."""
    for match in _CRS.finditer(content):
        if not _NAMED_CRS.match(content, match.end()):
            raise error(
                f"{source} states its CRS in another form than a name, such as a link; save it again as GeoJSON in "
                "longitude and latitude, without the member crs."
            )
