"""A list whose rows have records: in each the name of a species, and the file that holds its records."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from sdm.errors import RecordsError, quoted
from sdm.names.lists import COLUMNS, MAX_NAMES
from sdm.records.columns import ROLES, key
from sdm.records.guard import open_text
from sdm.records.raw import RawRecords
from sdm.records.text import MAX_LINE, Layout, detect_layout
from sdm.records.values import same_name

FILES = ("records", "recordsfile", "recordfile", "occurrences", "occurrencefile")
"""Names of the column with the files, as `sdm.records.columns.key` gives them."""


def is_list(names: Sequence[str]) -> bool:
    """Whether a table with these columns is a list: it has a column of files, and none of coordinates."""
    keys = {key(name) for name in names}
    located = {name for role in ("lon", "lat", "point") for tier in ROLES[role] for name in tier}
    return bool(keys & set(FILES)) and not keys & located


def lists_records(path: str | Path) -> bool:
    """Whether a list of species names a file of records in each of its rows; numbers of records are no files."""
    path = Path(path)
    if path.suffix.lower() not in (".csv", ".tsv") or not path.is_file():
        return False
    try:
        with closing(open_text(path, quoted(path.name))) as stream:
            layout = detect_layout(stream)
        if not is_list(layout.names):
            return False
        cells = [file for _, _, file in _rows(path, layout, None, quoted(path.name)) if file]
    except (OSError, RecordsError):  # told by what reads the list
        return False
    return bool(cells) and not any(cell.replace(",", "").replace(".", "").isdigit() for cell in cells)


def read_listed(
    path: Path, layout: Layout, column: str | None, read: Callable[[Path], RawRecords], species: str | None = None
) -> RawRecords:
    """The records of all rows of a list, each species with the source and the citations of its own files.

    Parameters
    ----------
    path : of the list; its files are sought from its folder.
    layout : of the list.
    column : of the names; by default the first of the usual ones.
    read : of a file the records.
    species : read only the files of this species.

    Raises
    ------
    RecordsError : a row has no name or no file, or a file cannot be read.
    """
    source = quoted(path.name)
    files: dict[str, list[Path]] = {}
    spelt: dict[str, str] = {}
    for number, name, file in _rows(path, layout, column, source):
        if not name or not file:
            what = "name" if not name else "file of records"
            raise RecordsError(f"row {number:,} of {source} has no {what}; fill it in, or take the row out.")
        files.setdefault(spelt.setdefault(same_name(name), name), []).append(path.parent / file)
    if not files:
        raise RecordsError(f"{source} has no rows.")
    if len(files) > MAX_NAMES:
        raise RecordsError(f"{source} names {len(files):,} species, more than {MAX_NAMES:,}; divide it.")
    parts = {
        name: _united([_of_species(read(file), name) for file in dict.fromkeys(paths)], name)
        for name, paths in files.items()
        if species is None or same_name(name) == same_name(species)
    }
    if not parts:
        raise RecordsError(f"{source} does not list {quoted(species or '')}; it lists {', '.join(list(files)[:5])}.")
    everything = tuple(file for paths in files.values() for file in paths)
    return replace(_joined(parts, source), parts=parts, files=everything)


def _rows(path: Path, layout: Layout, column: str | None, source: str) -> list[tuple[int, str, str]]:
    """(Number, name, file) of the rows of a list."""
    keys = [key(name) for name in layout.names]
    wanted = (key(column),) if column is not None else tuple(map(key, COLUMNS))
    at = next((keys.index(name) for name in wanted if name in keys), None)
    if at is None:
        named = f"column {quoted(column)}" if column is not None else "column of names, such as 'species'"
        raise RecordsError(f"{source} lists files of records but has no {named}; add one.")
    file = next(keys.index(name) for name in FILES if name in keys)
    found = []
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as text:
        lines = itertools.islice(csv.reader(text, delimiter=layout.delimiter), layout.skip, None)
        try:
            for number, cells in enumerate(itertools.islice(lines, 10 * MAX_NAMES), 1):
                if any(cell.strip() for cell in cells):
                    padded = [*cells, *[""] * (len(keys) - len(cells))]
                    found.append((number, " ".join(padded[at].split())[:300], padded[file].strip()))
        except csv.Error as error:
            raise RecordsError(f"{source} cannot be read as a list ({error}; rows hold {MAX_LINE:,} bytes).") from None
    return found


def _of_species(raw: RawRecords, name: str) -> RawRecords:
    """The rows of a species in its file; of a file with one other name all, since the list says whose they are."""
    if raw.find(name) is None and len(raw.names) == 1:
        note = f"{raw.source} holds {quoted(raw.names[0])}, which the list calls {quoted(name)}."
        return replace(raw.only(raw.names[0]), species=name, names=(name,), notes=(*raw.notes, note))
    own = raw.only(name if raw.names else None)
    rows = own.rows | {"taxon": np.zeros(len(own), np.int32)}
    return replace(own, species=name, names=(name,), rows=rows)


def _united(raws: Sequence[RawRecords], name: str) -> RawRecords:
    """The records of a species from several files."""
    if len(raws) == 1:
        return raws[0]
    whole = _joined({f"{k}": raw for k, raw in enumerate(raws)}, " and ".join(raw.source for raw in raws))
    rows = whole.rows | {"taxon": np.zeros(len(whole), np.int32)}
    return replace(
        whole,
        species=name,
        names=(name,),
        rows=rows,
        notes=tuple(dict.fromkeys(note for raw in raws for note in raw.notes)),
        citations=tuple(dict.fromkeys(text for raw in raws for text in raw.citations)),
        doi=tuple(dict.fromkeys(doi for raw in raws for doi in raw.doi)),
        others=sum(raw.others for raw in raws),
    )


def _joined(parts: Mapping[str, RawRecords], source: str) -> RawRecords:
    """The rows of several, one after the other, as those of species with the names of `parts`."""
    rows = {n: np.concatenate([raw.rows[n] for raw in parts.values()]) for n in next(iter(parts.values())).rows}
    rows["taxon"] = np.repeat(np.arange(len(parts), dtype=np.int32), [len(raw) for raw in parts.values()])
    given = pa.concat_tables([raw.given for raw in parts.values()], promote_options="permissive")
    columns = {role: name for raw in parts.values() for role, name in raw.columns.items()}
    return RawRecords(source, "", tuple(parts), rows, given.unify_dictionaries().combine_chunks(), columns)
