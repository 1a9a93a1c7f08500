"""A list of names from a file: CSV, text with a name on each line, Excel, or Parquet; or from standard input.

The size of a file, its rows and its different names are limited. Whether a row holds a name that is known is for
`TaxonTable.resolve` to say.
"""

from __future__ import annotations

import csv
import io
import itertools
import re
import sys
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from sdm.errors import RequestError, SpeciesNameError, TooLargeError, quoted
from sdm.names.text import MAX_QUERY

COLUMNS = (
    "species",
    "scientificname",
    "acceptedscientificname",
    "acceptednameusage",
    "binomial",
    "binomialname",
    "latinname",
    "taxon",
    "taxonname",
    "name",
    "speciesname",
    "canonicalname",
    "commonname",
    "vernacularname",
)
"""Names of the column with the names, first wins; compared without case, spaces, dots and underscores."""
STDIN = "-"
MAX_BYTES = 64 << 20
MAX_ROWS = 1_000_000
MAX_NAMES = 20_000
_DELIMITERS = ",;\t|"


@dataclass(frozen=True)
class Asked:
    """A name as a list holds it."""

    query: str
    row: int
    """Line of the file (CSV: of its record's end, the first is 1), or row of the Parquet table, where it is first."""
    times: int = 1
    """Number of times it occurs in the list."""


def read_names(path: str | Path, column: str | None = None) -> tuple[list[Asked], list[str]]:
    """The different names of a file in their order, and sentences on how it was read.

    `.csv` and `.tsv`: `column` by name, by default the first of `COLUMNS` that is there; delimiter comma,
    semicolon, tab or bar, or that of a first line "sep=;"; a single column needs no header. `.txt`: a name on each
    line, `#` begins a comment; one with tabs, or with a header of `COLUMNS`, is a table. `.parquet`, `.xlsx`: as CSV.
    "-": text or a table from standard input. UTF-8 with or without BOM, UTF-16 with BOM, else Windows-1252.

    Raises RequestError when the file cannot be read or has no such column, SpeciesNameError when it holds no
    name, TooLargeError for more than 64 MiB, 1,000,000 rows or 20,000 different names. A workbook from elsewhere is
    looked through before: `sdm.files.workbooks.check_workbook`.
    """
    path = Path(path)
    if str(path) == STDIN:
        notes: list[str] = []
        return distinct(_text(path, column, notes), "standard input"), notes
    readers = {".csv": _csv, ".tsv": _csv, ".txt": _text, ".parquet": _parquet, ".pq": _parquet, ".xlsx": _xlsx}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise RequestError(
            f"species list {quoted(str(path), 120)} must end in .csv, .tsv, .txt, .xlsx or .parquet, or be - for "
            "standard input."
        )
    try:
        size = path.stat().st_size
        if not path.is_file():
            raise RequestError(f"species list {quoted(str(path), 120)} is not a file.")
        if size > MAX_BYTES:
            raise TooLargeError(
                f"species list {quoted(str(path), 120)} has {size:,} bytes, more than {MAX_BYTES:,}; keep only the "
                "column with the names."
            )
        notes = []
        rows = reader(path, column, notes)
        return distinct(rows, path), notes
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise RequestError(f"species list {quoted(str(path), 120)} cannot be read: {reason}.") from None


def distinct(rows: Iterable[tuple[int, str]], source: object = "the list") -> list[Asked]:
    """The different names among (row, name) pairs, blank ones left out, in the order of their first row."""
    first: dict[str, int] = {}
    times: dict[str, int] = {}
    for count, (row, text) in enumerate(rows, 1):
        if count > MAX_ROWS:
            raise TooLargeError(f"{source} has more than {MAX_ROWS:,} rows; split it.")
        # What is too long for a name is refused later, and need not be kept whole.
        name = text.strip()[: MAX_QUERY + 1]
        if not name:
            continue
        if name not in first and len(first) == MAX_NAMES:
            raise TooLargeError(f"{source} has more than {MAX_NAMES:,} different names; split it.")
        first.setdefault(name, row)
        times[name] = times.get(name, 0) + 1
    if not first:
        raise SpeciesNameError(f"{source} holds no name; give at least one, for example 'Ursus arctos'.")
    return [Asked(name, row, times[name]) for name, row in first.items()]


def _decoded(path: Path, notes: list[str]) -> str:
    data = sys.stdin.buffer.read(MAX_BYTES + 1) if str(path) == STDIN else path.read_bytes()
    if len(data) > MAX_BYTES:
        raise TooLargeError(f"the species list has more than {MAX_BYTES:,} bytes; keep only the column with the names.")
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return data.decode("utf-16")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if b"\x00" in data:
            raise RequestError(f"species list {quoted(str(path), 120)} is not text (it holds null bytes).") from None
        notes.append(f"{path.name} is not UTF-8 (byte {error.start}); it was read as Windows-1252.")
        return data.decode("cp1252", "replace")


def _text(path: Path, column: str | None, notes: list[str]) -> Iterator[tuple[int, str]]:
    text = _decoded(path, notes)
    if _is_table(text):
        yield from _table(text, path, column)
        return
    if column is not None:
        raise RequestError(f"species list {quoted(str(path), 120)} is text without columns; leave the column out.")
    for number, line in enumerate(_lines(text), 1):
        yield number, re.split(r"(?:^|\s)#", line, maxsplit=1)[0]


def _is_table(text: str) -> bool:
    """Whether text is a table rather than a name on each line: by its tabs, or by the header of its columns."""
    filled = [line for line in itertools.islice(_lines(text), 50) if line.strip() and not line.startswith("#")]
    if not filled:
        return False
    cells = re.split(r"[,;\t|]", filled[0])
    known = len(cells) > 1 and any(_key(cell) in COLUMNS for cell in cells)
    return (
        known
        or filled[0].lstrip('"').startswith("sep=")
        or 2 * sum("\t" in line.strip() for line in filled) > len(filled)
    )


def _lines(text: str) -> Iterator[str]:
    # Not str.splitlines, which also breaks at control characters and rare Unicode separators.
    return iter(io.StringIO(text, newline=None))


def _csv(path: Path, column: str | None, notes: list[str]) -> Iterator[tuple[int, str]]:
    yield from _table(_decoded(path, notes), path, column)


def _table(text: str, path: Path, column: str | None) -> Iterator[tuple[int, str]]:
    """(Line, name) of a table with delimiters."""
    head = next(_lines(text), "")
    stated = re.fullmatch(r'"?sep=(.)"?[,;\t|]*', head.strip("\r\n"))  # which Excel reads and writes
    first = 1
    if stated:
        text, first = text.partition("\n")[2], 2
        head = next(_lines(text), "")
    delimiter = (
        stated[1] if stated else max(_DELIMITERS, key=head.count) if any(d in head for d in _DELIMITERS) else ","
    )
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        header = next((row for row in reader if any(cell.strip() for cell in row)), [])
        at, genus = _column(header, column, path, single_is_data=True)
        if at is None:  # one column without a header: its first row is a name already
            yield reader.line_num + first - 1, header[0] if header else ""
            at = 0
        for row in reader:
            if len(row) > at:
                yield (
                    reader.line_num + first - 1,
                    _with_genus(row[at], row[genus] if genus is not None and len(row) > genus else ""),
                )
    except csv.Error as error:
        raise RequestError(f"species list {quoted(str(path), 120)}, line {reader.line_num}: {error}.") from None


def _xlsx(path: Path, column: str | None, notes: list[str]) -> Iterator[tuple[int, str]]:
    """(Row, name) of the sheet that has a column of names, or of the first."""
    import openpyxl

    try:
        book = openpyxl.load_workbook(path, read_only=True, data_only=True, keep_links=False)
    except Exception as error:  # openpyxl raises whatever a missing or wrong part leads to
        reason = " ".join(str(error).split())[:200]
        raise RequestError(f"species list {quoted(str(path), 120)} cannot be read as Excel: {reason}.") from None
    try:
        sheets = [sheet for sheet in book.worksheets if sheet.sheet_state == "visible"] or book.worksheets
        if not sheets:
            raise RequestError(f"species list {quoted(str(path), 120)} has no sheet of cells.")
        heads = {sheet.title: _cells(next(sheet.iter_rows(values_only=True, max_row=1), ())) for sheet in sheets}
        keys = COLUMNS if column is None else (_key(column),)
        fitting = [sheet for sheet in sheets if {_key(cell) for cell in heads[sheet.title]} & set(keys)]
        sheet = (fitting or sheets)[0]
        if len(fitting or sheets) > 1:
            notes.append(f"{path.name} has {len(sheets)} sheets; the names are taken from {quoted(sheet.title, 40)}.")
        at, genus = _column(heads[sheet.title], column, path, single_is_data=True)
        start, at = (1, 0) if at is None else (2, at)
        for number, row in enumerate(sheet.iter_rows(values_only=True, min_row=start, max_row=MAX_ROWS + 2), start):
            cells = _cells(row)
            if len(cells) > at:
                yield number, _with_genus(cells[at], cells[genus] if genus is not None and len(cells) > genus else "")
    finally:
        book.close()


def _cells(row: Iterable[object]) -> list[str]:
    return ["" if cell is None else str(cell) for cell in row]


def _parquet(path: Path, column: str | None, notes: list[str]) -> Iterator[tuple[int, str]]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            if file.metadata.num_rows > MAX_ROWS:
                raise TooLargeError(f"{path} has {file.metadata.num_rows:,} rows, more than {MAX_ROWS:,}; split it.")
            names = [name.split(".")[0] for name in file.schema_arrow.names]
            at, genus = _column(names, column, path, single_is_data=False)
            wanted = [names[i] for i in (at, genus) if i is not None]
            packed = sum(
                file.metadata.row_group(group).column(i).total_uncompressed_size
                for group in range(file.metadata.num_row_groups)
                for i in range(file.metadata.num_columns)
            )
            if packed > MAX_BYTES:
                raise TooLargeError(f"{path} unpacks to more than {MAX_BYTES:,} bytes; keep the column of names.")
            row = read = 0
            # A few bytes of a compressed column can stand for gigabytes: one long text that every row repeats.
            at_once = max(1, min(4096, (MAX_BYTES >> 3) // max(packed, 1)))
            for batch in file.iter_batches(batch_size=at_once, columns=wanted):
                read += batch.nbytes
                if read > MAX_BYTES:
                    raise TooLargeError(f"{path}: the column {wanted[0]!r} holds more than {MAX_BYTES:,} bytes.")
                values = [batch.column(batch.schema.get_field_index(name)).to_pylist() for name in wanted]
                for cells in zip(*values, strict=True):
                    row += 1
                    # Missing values are skipped; a number becomes text, which `TaxonTable.resolve` refuses.
                    text, above = ("" if cell is None or cell != cell else str(cell) for cell in (*cells, "")[:2])
                    yield row, _with_genus(text, above)
    except pyarrow.ArrowException as error:
        reason = " ".join(str(error).split())[:200]
        raise RequestError(f"species list {quoted(str(path), 120)} cannot be read as Parquet: {reason}.") from None


def _column(header: list[str], asked: str | None, path: Path, *, single_is_data: bool) -> tuple[int | None, int | None]:
    """(Index of the column with the names, index of a column of genera or None); (None, None): no header."""
    keys = [_key(name) for name in header]
    listed = ", ".join(quoted(name.strip(), 40) for name in header[:20])
    if asked is not None:
        exact = [i for i, name in enumerate(header) if name.strip() == asked.strip()]
        matching = exact or [i for i, key in enumerate(keys) if key == _key(asked)]
        if not matching:
            raise RequestError(f"species list {quoted(str(path), 120)} has no column {quoted(asked)}; it has {listed}.")
        at = matching[0]
    else:
        usual = [keys.index(name) for name in COLUMNS if name in keys]
        if usual:
            at = usual[0]
        elif len(header) <= 1:
            return (None, None) if single_is_data else (0, None)
        else:
            raise RequestError(
                f"species list {quoted(str(path), 120)} has the columns {listed}; say with --species-column which one "
                "holds the names."
            )
    return at, keys.index("genus") if "genus" in keys and keys[at] in (
        "species",
        "epithet",
        "specificepithet",
    ) else None


def _key(name: str) -> str:
    return re.sub(r"[\W_]+", "", name).lower()


def _with_genus(name: str, genus: str) -> str:
    """A bare epithet with the genus beside it: tables of traits keep the two apart."""
    name, genus = name.strip(), genus.strip()
    return f"{genus} {name}" if genus and name and name[0].islower() and " " not in name else name
