"""Placemarks of KML. GDAL would also open XML of other formats that names files and addresses to read."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import numpy as np
import shapely

from sdm.errors import LayerError, SdmError, quoted
from sdm.files.xml import PIECE, BrokenXML, RefusedXML, refuse_costly

MOST_ELEMENTS = 2_000_000
"""A placemark has some ten: this many take five seconds."""


def placemarks(path: Path, source: str, error: type[SdmError] = LayerError) -> Iterator[Element]:
    """The placemarks of a file, one after the other. Raises `error`, with `source` as the name of the file."""
    try:
        with path.open("rb") as file:
            refuse_costly(iter(partial(file.read, PIECE), b""), {"": MOST_ELEMENTS})
            file.seek(0)
            yield from _placemarks(ElementTree.iterparse(file, ("start", "end")), source, error)
    except BrokenXML as problem:
        raise error(f"{source} {problem}.") from None
    except RefusedXML as problem:
        raise error(f"{source} {problem}; it is not read, save it as a GeoPackage.") from None
    except (SyntaxError, ValueError, LookupError) as problem:  # the parser's own errors are SyntaxErrors
        raise error(f"{source} is not valid XML ({problem}).") from None


def _placemarks(events: Any, source: str, error: type[SdmError]) -> Iterator[Element]:
    inside: list[Element] = []
    for event, element in events:
        if event == "start":
            if not inside and tag(element) != "kml":
                raise error(f"{source} is XML but not KML.")
            inside.append(element)
            continue
        inside.pop()
        if tag(element) == "Placemark":
            yield element
        if not any(tag(parent) == "Placemark" for parent in inside):
            # What was read is not kept.
            element.clear()
            if inside:
                inside[-1].remove(element)


def read_kml_polygons(path: Path, source: str) -> list[shapely.Polygon]:
    """The polygons of a file, (lon, lat). Raises LayerError."""
    polygons = []
    for mark in placemarks(path, source):
        for element in mark.iter():
            if tag(element) != "Polygon":
                continue
            outer: list[np.ndarray] = []
            holes: list[np.ndarray] = []
            for boundary in element:
                rings = [ring for ring in boundary.iter() if tag(ring) == "coordinates"]
                (outer if tag(boundary) == "outerBoundaryIs" else holes).extend(_ring(ring, source) for ring in rings)
            if outer:
                polygons.append(shapely.Polygon(outer[0], holes))
    return polygons


def _ring(element: Element, source: str) -> np.ndarray:
    text = element.text or ""
    try:
        return np.array([[float(part) for part in place.split(",")[:2]] for place in text.split()])
    except ValueError:
        raise LayerError(f"{source} holds the coordinates {quoted(text)}.") from None


def tag(element: Element) -> str:
    """The name of an element without its namespace."""
    return str(element.tag).rpartition("}")[2]
