"""Darwin Core archives: the tables that meta.xml describes, and whom their data are from."""

from __future__ import annotations

import re
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from sdm.errors import RecordsError, quoted
from sdm.files.xml import BrokenXML, RefusedXML, parse_small
from sdm.records.columns import find_columns, key
from sdm.records.guard import Archive, as_lines
from sdm.records.raw import MAX_ROWS, Collector, RawRecords
from sdm.records.text import Layout, batches
from sdm.records.values import MAX_CELL, texts
from sdm.request.records import ReadOptions

_DOI = re.compile(r"\b10\.\d{4,9}/[^\s\"'<>()\[\],;]+")
_MAX_TEXTS = 10_000


def read_dwca(archive: Archive, meta: str, options: ReadOptions, species: str | None) -> RawRecords:
    """The occurrences of an archive, as its core or as an extension of events. Raises RecordsError.

    `meta`: the member that describes the others.
    """
    described = _described(archive, meta)
    folder = meta.rpartition("/")[0]
    core = described.core
    tables = [core, *described.extensions]
    occurrences = [table for table in tables if (table.type or "").rpartition("/")[2].lower() == "occurrence"]
    if not occurrences:
        kinds = ", ".join(quoted((table.type or "?").rpartition("/")[2], 30) for table in tables[:5])
        raise RecordsError(f"{archive.source} holds no occurrences, only {kinds}.")
    table = occurrences[0]
    layout, encoding = _layout(table, archive)
    events = None if table is core else _Events(archive, folder, core)
    names = [*layout.names, *layout.constants]
    columns, coordinates = _columns(names, events, options, archive.source, species)
    header = {role: names[i] for role, i in columns.items()}
    if events is not None:
        header |= {role: name for role, name in events.header.items() if role not in columns or role in coordinates}
    collector = Collector(archive.source, header, species)
    link = {} if events is None else {"event": table.coreid_index}
    stream = archive.text(_member(folder, table.file_location), encoding)
    try:
        for row, batch in batches(stream, layout, archive.source, columns | link, collector):
            event = batch.pop("event", None)
            collector.add(batch if events is None else events.joined(batch, event), row)
    finally:
        stream.close()
    citations, doi = read_citations(archive, folder, described.metadata_filename)
    return collector.finish([], citations, doi)


def _described(archive: Archive, meta: str) -> Any:
    from dwca.descriptors import ArchiveDescriptor

    content = archive.small(meta).decode("utf-8")
    try:
        # The library parses it with a parser that resolves entities.
        parse_small(content.encode())
    except RefusedXML as error:
        raise RecordsError(f"{meta} in {archive.source} {error}; it is not read.") from None
    try:
        return ArchiveDescriptor(re.sub(r"^\s*<\?xml[^>]*\?>", "", content))
    except Exception as error:  # the library raises whatever a missing tag leads to
        raise RecordsError(f"{meta} in {archive.source} does not describe an archive ({error}).") from None


def _member(folder: str, location: str) -> str:
    return f"{folder}/{location}" if folder else location


def _layout(table: Any, archive: Archive) -> tuple[Layout, str | None]:
    """How a table is written, and its encoding where it is not UTF-8."""
    indices = [f["index"] for f in table.fields if f["index"] is not None]
    own = [i for i in (table.id_index, table.coreid_index) if i is not None]
    if any(not 0 <= i < 10_000 for i in (*indices, *own)):
        raise RecordsError(f"{archive.source}: its metadata refer to a column beyond 10,000.")
    if len(table.fields_terminated_by) != 1 or len(table.fields_enclosed_by) > 1:
        raise RecordsError(
            f"{archive.source}: fields end with {quoted(table.fields_terminated_by)}; only one character can be read."
        )
    names = [""] * (max([*indices, *own]) + 1)
    constants = {}
    for each in table.fields:
        if each["index"] is None:
            # Every row gets it: cut here as any cell is.
            constants[str(each["term"])] = str(each["default"] or "")[:MAX_CELL]
        else:
            names[each["index"]] = str(each["term"])
    encoding = (table.file_encoding or "utf-8").lower()
    if encoding.replace("-", "") in ("utf8", "utf16"):
        encoding = ""
    try:
        "".encode(encoding or "utf-8")
    except LookupError:
        raise RecordsError(f"{archive.source}: its encoding {quoted(encoding)} is not known.") from None
    layout = Layout(names, table.fields_terminated_by, table.fields_enclosed_by, table.lines_to_ignore, constants)
    return layout, encoding or None


def _columns(
    names: list[str], events: _Events | None, options: ReadOptions, source: str, species: str | None
) -> tuple[dict[str, int], frozenset[str]]:
    """(Column of each role in the table of occurrences; roles that its events have to give)."""
    if events is None:
        return find_columns(names, options, source, species=species), frozenset()
    keys = {key(name) for name in names}
    if {"decimallongitude", "decimallatitude"} <= keys:
        return find_columns(names, options, source, species=species), frozenset()
    columns = find_columns(names, options, source, points=True, species=species)
    if not {"lon", "lat"} <= set(events.header):
        raise RecordsError(f"{source}: neither its occurrences nor its events have coordinates.")
    return columns, frozenset({"lon", "lat"})


class _Events:
    """The core of an archive whose occurrences belong to events."""

    def __init__(self, archive: Archive, folder: str, core: Any) -> None:
        layout, encoding = _layout(core, archive)
        names = [*layout.names, *layout.constants]
        columns = find_columns(names, ReadOptions(), archive.source, points=True)
        keys = [key(name) for name in names]
        columns |= {role: keys.index(name) for role, name in _PLACE if name in keys}
        self.header = {role: names[i] for role, i in columns.items()}
        # Rows of the wrong length are of no use here, and are not rows of occurrences.
        bin_ = Collector(archive.source, self.header)
        stream = archive.text(_member(folder, core.file_location), encoding)
        parts: list[pa.Table] = []
        try:
            for _, batch in batches(stream, layout, archive.source, columns | {"event": core.id_index}, bin_):
                parts.append(pa.table({role: texts(column) for role, column in batch.items()}))
                if sum(part.num_rows for part in parts) > MAX_ROWS // 4:
                    raise RecordsError(f"{archive.source} holds more than {MAX_ROWS // 4:,} events; split it.")
        finally:
            stream.close()
        if not parts:
            raise RecordsError(f"{archive.source} has no events.")
        self.table = pa.concat_tables(parts).combine_chunks()
        self.ids = self.table.column("event").combine_chunks()

    def joined(self, batch: dict[str, pa.Array], event: pa.Array) -> dict[str, pa.Array]:
        """Some occurrences, their missing values taken from their events."""
        at = pc.index_in(texts(event), value_set=self.ids)
        result = {role: texts(column) for role, column in batch.items()}
        for role in self.header:
            values = self.table.column(role).combine_chunks().take(at)
            result[role] = pc.coalesce(result[role], values) if role in result else values
        return result


_PLACE = (("lon", "decimallongitude"), ("lat", "decimallatitude"))


def read_citations(archive: Archive, folder: str, metadata: str | None) -> tuple[list[str], list[str]]:
    """(Citations as they are worded, DOIs) of an archive. Raises RecordsError for a hostile file."""
    lines: list[str] = []
    for name in ("citations.txt", "rights.txt"):
        if _member(folder, name) in archive.members:
            lines += as_lines(archive.small(_member(folder, name)))
    doi: list[str] = []
    name = _member(folder, metadata or "metadata.xml")
    if name in archive.members:
        stated, doi = _metadata(archive, name)
        lines += stated
    doi += [match.group() for line in lines for match in _DOI.finditer(line) if "/dl." in match.group()]
    unique = list(dict.fromkeys(" ".join(line.split())[:1000] for line in lines))
    return unique[:_MAX_TEXTS], list(dict.fromkeys(d.rstrip(".").lower() for d in doi))


def _metadata(archive: Archive, name: str) -> tuple[list[str], list[str]]:
    content = archive.small(name)
    try:
        root = parse_small(content)
    except BrokenXML:  # a broken description of the data is no reason not to read them
        return [], []
    except RefusedXML as error:
        raise RecordsError(f"{name} in {archive.source} {error}; it is not read.") from None
    lines, doi = [], []
    for element in root.iter():
        tag = str(element.tag).rpartition("}")[2]
        text = " ".join("".join(element.itertext()).split()) if tag in ("citation", "alternateIdentifier") else ""
        doi += [match.group() for match in _DOI.finditer(text)]
        if tag == "citation" and text:
            lines.append(text)
    return lines, doi
