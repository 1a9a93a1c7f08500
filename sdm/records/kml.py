"""Points of KML. GDAL would also open XML of other formats that names files and addresses to read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

import numpy as np
import pyarrow as pa

from sdm.errors import RecordsError, quoted
from sdm.records.columns import MAX_COLUMNS, find_columns
from sdm.records.raw import MAX_ROWS, Collector, RawRecords
from sdm.request.records import ReadOptions

_AT_ONCE = 65536


def read_kml(path: Path, source: str, options: ReadOptions, species: str | None) -> RawRecords:
    """The placemarks of a file; their extended data and their name are columns. Raises RecordsError."""
    marks, names = _marks(path, source)
    columns = find_columns(names, options, source, points=True, species=species)
    own = {"lon", "lat"} <= set(columns)
    header = {role: names[i] for role, i in columns.items()}
    collector = Collector(source, header if own else header | {"lon": "coordinates", "lat": "coordinates"}, species)
    for start in range(0, len(marks), _AT_ONCE):
        part = marks[start : start + _AT_ONCE]
        batch = {role: pa.array([data.get(name) for _, data in part], pa.string()) for role, name in header.items()}
        xy = None if own else np.array([place for place, _ in part], np.float64)
        collector.add(batch, np.arange(start + 1, start + len(part) + 1), xy)
    return collector.finish()


_Mark = tuple[tuple[float, float], dict[str, str]]


def _marks(path: Path, source: str) -> tuple[list[_Mark], list[str]]:
    """((lon, lat) and data of each placemark, names of the data)."""
    import defusedxml
    import defusedxml.ElementTree

    marks: list[_Mark] = []
    names: dict[str, None] = {}
    try:
        with path.open("rb") as file:
            for mark in _placemarks(defusedxml.ElementTree.iterparse(file, ("start", "end"), forbid_dtd=True), source):
                data = _data(mark)
                names |= dict.fromkeys(data)
                marks.append((_place(mark, source), data))
                if len(marks) > MAX_ROWS // 10 or len(names) > MAX_COLUMNS:
                    raise RecordsError(f"{source} is too large for KML; convert it to GeoPackage.")
    except defusedxml.DefusedXmlException:
        raise RecordsError(f"{source} declares entities or a document type; it is not read.") from None
    except (SyntaxError, ValueError, LookupError) as error:  # the parser's own errors are SyntaxErrors
        raise RecordsError(f"{source} is not valid XML ({error}).") from None
    return marks, list(names)


def _placemarks(events: Any, source: str) -> Iterator[Element]:
    depth = 0
    inside: list[Element] = []
    for event, element in events:
        if event == "start":
            depth += 1
            if depth == 1 and _tag(element) != "kml":
                raise RecordsError(f"{source} is XML but not KML.")
            if depth > 200:
                raise RecordsError(f"{source} is nested more than 200 deep; it is not read.")
            inside.append(element)
            continue
        depth -= 1
        inside.pop()
        if _tag(element) == "Placemark":
            yield element
        if not any(_tag(parent) == "Placemark" for parent in inside):
            # What was read is not kept.
            element.clear()
            if inside:
                inside[-1].remove(element)


def _place(mark: Element, source: str) -> tuple[float, float]:
    for element in mark.iter():
        if _tag(element) in ("LineString", "Polygon", "Track", "Model"):
            raise RecordsError(f"{source} holds geometries of the kind {_tag(element)}; records are points.")
        if _tag(element) == "coordinates":
            parts = (element.text or "").strip().split(",")
            try:
                return float(parts[0]), float(parts[1])
            except (ValueError, IndexError):
                raise RecordsError(f"{source} holds the coordinates {quoted(element.text or '')}.") from None
    return float("nan"), float("nan")


def _data(mark: Element) -> dict[str, str]:
    data: dict[str, str] = {}
    for element in mark.iter():
        tag, name = _tag(element), element.get("name")
        if name is None:
            continue
        if tag == "SimpleData":
            data[name] = element.text or ""
        elif tag == "Data":
            data[name] = next((child.text or "" for child in element if _tag(child) == "value"), "")
    return data


def _tag(element: Element) -> str:
    return str(element.tag).rpartition("}")[2]
