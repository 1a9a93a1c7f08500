"""Delimited text: GBIF, iNaturalist and eBird downloads, spreadsheets saved as text, tables of Darwin Core archives."""

from __future__ import annotations

import contextlib
import csv
import io
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.csv

from sdm.errors import RecordsError
from sdm.records.columns import MAX_COLUMNS, find_columns
from sdm.records.guard import TextStream
from sdm.records.raw import Collector, RawRecords
from sdm.request.records import ReadOptions

MAX_HEADER = 1 << 20
"""Bytes of a header."""
MAX_LINE = 2 << 20
"""Bytes of a row."""

_CODED = pa.dictionary(pa.int32(), pa.string())
_DELIMITERS = ("\t", ";", ",", "|")


@dataclass(frozen=True)
class Layout:
    """The column names, delimiter and quoting of a text table."""

    names: list[str]
    delimiter: str
    quote: str
    """ "" where nothing is quoted."""
    skip: int
    """Lines before the first row."""
    constants: dict[str, str] = field(default_factory=dict)
    """Values of columns that are not in the table, by name."""


class _Reader(Protocol):
    line_num: int

    def __next__(self) -> list[str]: ...
    def __iter__(self) -> Iterator[list[str]]: ...


def detect_layout(stream: TextStream) -> Layout:
    """The layout of a table whose first line names the columns. Raises RecordsError."""
    head = stream.peek(MAX_HEADER).decode("utf-8", "replace")
    text = head.lstrip("\r\n")
    first = re.split(r"[\r\n]", text, maxsplit=1)[0]
    if not first.strip() or (len(first) == len(text) and len(head) >= MAX_HEADER // 4):
        raise RecordsError(f"{stream.source} has no line of column names.")
    bare = _outside_quotes(first)
    delimiter = max(_DELIMITERS, key=bare.count)
    if delimiter not in bare:
        delimiter = " " if " " in first.strip() else ","
    # GBIF and eBird write quotation marks in tab-separated files as they are.
    quote = '"' if delimiter != "\t" or '"' in first else ""
    reader = _reader(text, delimiter, quote)
    try:
        names = next(reader)
        skip = reader.line_num + len(re.findall(r"\r\n|\r|\n", head[: len(head) - len(text)]))
    except (csv.Error, StopIteration) as error:
        raise RecordsError(f"{stream.source} has no readable line of column names ({error}).") from None
    if len(names) > MAX_COLUMNS:
        raise RecordsError(f"{stream.source} has {len(names):,} columns, more than {MAX_COLUMNS:,}.")
    widths = set()
    with contextlib.suppress(csv.Error):
        widths = {len(row) for _, row in zip(range(20), reader, strict=False) if row}
    if len(names) + 1 in widths and len(names) not in widths:
        names = ["", *names]  # row names of R
    return Layout(names, delimiter, quote, skip)


def _reader(text: str, delimiter: str, quote: str) -> _Reader:
    lines = io.StringIO(text, newline="")
    if quote:
        return csv.reader(lines, delimiter=delimiter, quotechar=quote)
    return csv.reader(lines, delimiter=delimiter, quoting=csv.QUOTE_NONE)


def _outside_quotes(line: str) -> str:
    return "".join(line.split('"')[::2])


def read_table(
    stream: TextStream, layout: Layout, source: str, options: ReadOptions, species: str | None
) -> RawRecords:
    """All rows of a table. Raises RecordsError."""
    names = [*layout.names, *layout.constants]
    columns = find_columns(names, options, source, species=species)
    collector = Collector(source, {role: names[i] for role, i in columns.items()}, species)
    for row, table in batches(stream, layout, source, columns, collector):
        collector.add(table, row)
    notes = []
    if stream.fallback_at is not None:
        notes.append(f"{source} is not UTF-8 (byte {stream.fallback_at:,}); it was read as Windows-1252.")
    return collector.finish(notes)


def batches(
    stream: TextStream,
    layout: Layout,
    source: str,
    columns: Mapping[str, int],
    collector: Collector,
) -> Iterator[tuple[np.ndarray, dict[str, pa.Array]]]:
    """(Numbers of rows, column of text by role), piece by piece; unreadable rows go to the collector.

    `columns`: index of the column of each role into `layout.names`, and after them the constants.
    """
    width = len(layout.names)
    labels = [str(i) for i in range(width)]
    needed = sorted({i for i in columns.values() if i < width}) or [0]
    own = {columns[role] for role in ("lon", "lat", "date", "uncertainty", "event") if role in columns}
    bad: list[int] = []

    def skip_row(row: pyarrow.csv.InvalidRow) -> str:
        bad.append(row.number)
        return "skip"

    try:
        reader = pyarrow.csv.open_csv(
            stream,
            pyarrow.csv.ReadOptions(use_threads=False, block_size=MAX_LINE, skip_rows=layout.skip, column_names=labels),
            pyarrow.csv.ParseOptions(
                delimiter=layout.delimiter,
                quote_char=layout.quote or False,
                newlines_in_values=bool(layout.quote),
                ignore_empty_lines=True,
                invalid_row_handler=skip_row,
            ),
            pyarrow.csv.ConvertOptions(
                include_columns=[labels[i] for i in needed],
                # Most columns have few different values.
                column_types={labels[i]: pa.string() if i in own else _CODED for i in needed},
                strings_can_be_null=False,
            ),
        )
        start = 1
        constants = dict(enumerate(layout.constants.values(), width))
        for batch in reader:
            n = batch.num_rows
            row = _row_numbers(start, n, np.array(bad, np.int64) - layout.skip)
            start = int(row[-1]) + 1 if n else start
            yield (
                row,
                {
                    role: batch.column(labels[i]) if i < width else pa.array([constants[i]] * n, pa.string())
                    for role, i in columns.items()
                },
            )
    except pa.ArrowException as error:
        raise RecordsError(f"{source} cannot be read as a table ({_reason(error)}).") from None
    if bad:
        collector.unreadable(np.array(bad, np.int64) - layout.skip)


def _row_numbers(start: int, n: int, bad: np.ndarray) -> np.ndarray:
    """The numbers of the next `n` rows from `start`, of which the rows `bad` are none."""
    bad = bad[bad >= start]
    return np.setdiff1d(np.arange(start, start + n + len(bad)), bad)[:n]


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    return "a row is longer than 2 MiB, or a quotation mark is never closed" if "straddl" in text else text[:200]
