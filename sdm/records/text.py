"""Delimited text: GBIF, iNaturalist and eBird downloads, spreadsheets saved as text, tables of Darwin Core archives."""

from __future__ import annotations

import contextlib
import csv
import io
import re
import time
import weakref
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
MAX_UNREADABLE = 200_000
"""Rows with another number of cells than the header: each is looked at by Python, which takes ten microseconds."""

_CODED = pa.dictionary(pa.int32(), pa.string())
_DELIMITERS = ("\t", ";", ",", "|")
_LONGEST_READ_S = 10.0


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
    if len(first) == len(text) and len(head) >= MAX_HEADER // 4:
        raise RecordsError(
            f"{stream.source} begins with a line of more than {len(head):,} characters, which are no names of columns; "
            "give a table whose first line names its columns."
        )
    if not first.strip():
        raise RecordsError(f"{stream.source} has no line of column names; add one.")
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
    rows: list[list[str]] = []
    with contextlib.suppress(csv.Error):
        rows.extend(row for _, row in zip(range(20), reader, strict=False) if row)
    if _has_row_names(rows, len(names)):
        names = ["", *names]
    return Layout(names, delimiter, quote, skip)


def _has_row_names(rows: list[list[str]], width: int) -> bool:
    """Whether the rows begin with a name that the header leaves out, as R writes them, rather than end blank."""
    wide = [row for row in rows if len(row) == width + 1]
    if not wide or any(len(row) == width for row in rows):
        return False
    numbered = [row[0] for row in wide] == [str(i) for i in range(1, len(wide) + 1)]
    return numbered or any(row[-1].strip() for row in wide)


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

    Rows with more cells than the header are read where the surplus cells are blank; they come after those of their
    piece that have none. `columns`: index of the column of each role into `layout.names`, and after them the
    constants. Raises RecordsError.
    """
    width = len(layout.names)
    labels = [str(i) for i in range(width)]
    own = {columns[role] for role in ("lon", "lat", "point", "date", "uncertainty", "event") if role in columns}
    types = {i: pa.string() if i in own else _CODED for i in sorted({i for i in columns.values() if i < width}) or [0]}
    constants = dict(enumerate(layout.constants.values(), width))
    uneven = _UnevenRows(layout)
    start = 1

    def by_role(row: np.ndarray, values: Mapping[int, pa.Array]) -> tuple[np.ndarray, dict[str, pa.Array]]:
        n = len(row)
        return row, {
            role: values[i] if i < width else pa.array([constants[i]] * n, pa.string()) for role, i in columns.items()
        }

    read = _Source(stream, f"\n{uneven.end}\n".encode())
    pieces = None
    try:
        with _open_csv(read, layout, {labels[i]: kind for i, kind in types.items()}, uneven) as pieces:
            for batch in pieces:
                if batch.num_rows:
                    row = _row_numbers(start, batch.num_rows, np.array(uneven.skipped, np.int64))
                    start = int(row[-1]) + 1
                    uneven.skipped = [number for number in uneven.skipped if number >= start]
                    yield by_role(row, {i: batch.column(labels[i]) for i in types})
                if uneven.padded:
                    yield by_role(*uneven.take_padded(types))
        if uneven.padded:
            yield by_role(*uneven.take_padded(types))
    except pa.ArrowException as error:
        if len(uneven.unreadable) > MAX_UNREADABLE:
            raise RecordsError(
                f"{source} has more than {MAX_UNREADABLE:,} rows with another number of cells than its header; it is "
                "no table, or its delimiter or quotation marks are wrong."
            ) from None
        raise RecordsError(
            f"{source} cannot be read as a table ({_reason(error, max([start, *uneven.skipped]))})."
        ) from None
    finally:
        pieces = None
        read.stop()
    if not uneven.ended:
        last = max([start - 1, *uneven.skipped])
        raise RecordsError(f"{source} cannot be read as a table: a quotation mark is never closed (row {last:,}).")
    if uneven.unreadable:
        collector.unreadable(np.array(uneven.unreadable, np.int64))


class _UnevenRows:
    """The rows of a table that have not as many cells as its header, which Arrow leaves out."""

    END = "\x1e"
    """The first cell of a row that is put after the last one: it is not seen where a quotation mark stays open."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.end = self.END + layout.delimiter * len(layout.names)
        self.ended = False
        self.skipped: list[int] = []
        """Numbers of rows that are not in Arrow's batches."""
        self.unreadable: list[int] = []
        self.padded: list[tuple[int, list[str]]] = []
        """(Number, cells) of rows whose surplus cells are blank."""

    def __call__(self, row: pyarrow.csv.InvalidRow) -> str:
        if row.text.rstrip("\r\n") == self.end:
            self.ended = True
            return "skip"
        number = row.number - self.layout.skip
        self.skipped.append(number)
        cells = self._cells(row.text) if row.actual_columns > row.expected_columns else []
        if len(cells) == row.actual_columns and not any(cell.strip() for cell in cells[row.expected_columns :]):
            self.padded.append((number, cells))
        else:
            self.unreadable.append(number)
        return "skip" if len(self.unreadable) <= MAX_UNREADABLE else "error"

    def _cells(self, text: str) -> list[str]:
        try:
            return next(_reader(text, self.layout.delimiter, self.layout.quote), [])
        except csv.Error:
            return []

    def take_padded(self, types: Mapping[int, pa.DataType]) -> tuple[np.ndarray, dict[int, pa.Array]]:
        """(Numbers, columns by index) of the rows with blank surplus cells since the last call."""
        numbers, cells = zip(*self.padded, strict=True)
        self.padded = []
        return np.array(numbers), {i: pa.array([c[i] for c in cells], pa.string()).cast(t) for i, t in types.items()}


class _File:
    """What Arrow reads of a source."""

    closed = False

    def __init__(self, source: _Source) -> None:
        self.source = source

    def read(self, size: int) -> bytes:
        return self.source.read(size)


class _Source:
    """A stream with some bytes after its last ones, for Arrow, whose threads read ahead of what was asked."""

    def __init__(self, stream: TextStream, end: bytes) -> None:
        self.stream, self.end, self.stopped = stream, end, False
        self._file: weakref.ref[_File] = weakref.ref(_File(self))

    def file(self) -> _File:
        file = _File(self)
        self._file = weakref.ref(file)
        return file

    def read(self, size: int) -> bytes:
        piece = b"" if self.stopped else self.stream.read(size)
        if not piece and not self.stopped:
            piece, self.end = self.end[:size], self.end[size:]
        return piece

    def stop(self) -> None:
        """Wait until no thread of Arrow's holds the stream: one that did while Python ends would abort the process."""
        self.stopped = True
        end = time.monotonic() + _LONGEST_READ_S
        while self._file() is not None and time.monotonic() < end:
            time.sleep(0.001)


def _open_csv(
    source: _Source, layout: Layout, types: dict[str, pa.DataType], uneven: _UnevenRows
) -> pyarrow.csv.CSVStreamingReader:
    return pyarrow.csv.open_csv(
        source.file(),
        pyarrow.csv.ReadOptions(
            use_threads=False,
            block_size=MAX_LINE,
            skip_rows=layout.skip,
            column_names=[str(i) for i in range(len(layout.names))],
        ),
        pyarrow.csv.ParseOptions(
            delimiter=layout.delimiter,
            quote_char=layout.quote or False,
            newlines_in_values=bool(layout.quote),
            ignore_empty_lines=True,
            invalid_row_handler=uneven,
        ),
        pyarrow.csv.ConvertOptions(
            include_columns=list(types),
            # Most columns have few different values.
            column_types=types,
            strings_can_be_null=False,
        ),
    )


def _row_numbers(start: int, n: int, bad: np.ndarray) -> np.ndarray:
    """The numbers of the next `n` rows from `start`, of which the rows `bad` are none."""
    bad = bad[bad >= start]
    return np.setdiff1d(np.arange(start, start + n + len(bad)), bad)[:n]


def _reason(error: Exception, row: int) -> str:
    text = " ".join(str(error).split())
    if "straddl" in text:
        return f"a row is longer than 2 MiB, or a quotation mark is never closed, from row {row:,} on"
    return text[:200]
