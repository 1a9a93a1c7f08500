"""Points of KML."""

from __future__ import annotations

from pathlib import Path
from xml.etree.ElementTree import Element

import numpy as np
import pyarrow as pa

from sdm.errors import RecordsError, quoted
from sdm.files.kml import placemarks, tag
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
    marks: list[_Mark] = []
    names: dict[str, None] = {}
    for mark in placemarks(path, source, RecordsError):
        data = _data(mark)
        names |= dict.fromkeys(data)
        marks.append((_place(mark, source), data))
        if len(marks) > MAX_ROWS // 10 or len(names) > MAX_COLUMNS:
            raise RecordsError(f"{source} is too large for KML; convert it to GeoPackage.")
    return marks, list(names)


def _place(mark: Element, source: str) -> tuple[float, float]:
    for element in mark.iter():
        if tag(element) in ("LineString", "Polygon", "Track", "Model"):
            raise RecordsError(f"{source} holds geometries of the kind {tag(element)}; records are points.")
        if tag(element) == "coordinates":
            parts = (element.text or "").strip().split(",", 2)
            try:
                return float(parts[0]), float(parts[1])
            except (ValueError, IndexError):
                raise RecordsError(f"{source} holds the coordinates {quoted(element.text or '')}.") from None
    return float("nan"), float("nan")


def _data(mark: Element) -> dict[str, str]:
    data: dict[str, str] = {}
    for element in mark.iter():
        kind, name = tag(element), element.get("name")
        if name is None:
            continue
        if kind == "SimpleData":
            data[name] = element.text or ""
        elif kind == "Data":
            data[name] = next((child.text or "" for child in element if tag(child) == "value"), "")
    return data
