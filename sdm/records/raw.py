"""The records read from a file, before they are cleaned."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sdm.errors import RecordsError, quoted
from sdm.records.columns import key
from sdm.records.values import (
    angles,
    few_numbers,
    numbers,
    points,
    presences,
    same_name,
    species_name,
    texts,
    years_and_months,
)

MAX_ROWS = 6_000_000
MAX_NAMES = 1_000_000

_TEXTS = ("country", "licence", "dataset", "taxon_key")
_CAPTIVE = pa.array(["managed", "captive", "cultivated", "incaptivity", "planted", "zoo"])


@dataclass(frozen=True, eq=False)
class RawRecords:
    """N rows as they were read."""

    source: str
    species: str
    """The species of all rows, "" where unknown or where they are of several."""
    names: tuple[str, ...]
    """All species of the file."""
    rows: dict[str, np.ndarray]
    """(N,) arrays: row, taxon (index into `names`, -1: none), lon, lat (degrees WGS84, NaN: none), not_number,
    unreadable, present, stated, uncertainty_m, month, year, fossil, captive."""
    given: pa.Table
    """N rows of text: species, lon, lat, and dictionaries country, licence, dataset, taxon_key."""
    columns: dict[str, str]
    """Column of the file by role."""
    notes: tuple[str, ...] = ()
    """One sentence for each assumption made while reading."""
    citations: tuple[str, ...] = ()
    """As the source words them."""
    doi: tuple[str, ...] = ()
    others: int = 0
    """Rows of other species that were left out."""
    parts: Mapping[str, RawRecords] = field(default_factory=dict)
    """Of a list of files: by name of a species its records, with the source and the citations of its own files."""
    files: tuple[Path, ...] = ()
    """Of a list of files: these."""

    def __len__(self) -> int:
        return len(self.rows["row"])

    def only(self, species: str | None) -> RawRecords:
        """The rows of one species, and those that could not be read.

        `species`: its name, needed where the file has several. Raises RecordsError.
        """
        if not self.names:
            return replace(self, species=species or "")
        if species is None and len(self.names) > 1:
            raise RecordsError(f"{self.source} holds {_listed(self.names)}; name the one to use.")
        taxon = 0 if species is None else self._index(species)
        if self.names[taxon] in self.parts:
            return self.parts[self.names[taxon]]
        mask = (self.rows["taxon"] == taxon) | self.rows["unreadable"]
        return self._take(np.flatnonzero(mask), self.names[taxon])

    def find(self, species: str) -> str | None:
        """The name under which the file has a species; None where it has not."""
        wanted = {same_name(species), same_name(species_name(species, scientific=True))}
        return next((name for name in self.names if same_name(name) in wanted), None)

    def united(self, names: Collection[str], species: str) -> RawRecords:
        """The rows under some of the file's names, as those of one species, and those that could not be read."""
        if len(names) == 1 and (only := next(iter(names))) in self.parts:
            return replace(self.parts[only], species=species)
        taxa = [taxon for taxon, name in enumerate(self.names) if name in names]
        mask = np.isin(self.rows["taxon"], taxa) | self.rows["unreadable"]
        return self._take(np.flatnonzero(mask), species)

    def without(self, species: str) -> RawRecords:
        """The rows of all species but one, as if they were of one without a name."""
        wanted = {same_name(species), same_name(species_name(species, scientific=True))} if species else set()
        left_out = [taxon for taxon, name in enumerate(self.names) if same_name(name) in wanted]
        return self._take(np.flatnonzero(~np.isin(self.rows["taxon"], left_out)), "")

    def by_species(self) -> dict[str, RawRecords]:
        """The rows of each species, by name in alphabetical order; a file without names is of one species, ""."""
        if not self.names:
            return {"": self}
        if self.parts:
            return dict(sorted(self.parts.items()))
        order = np.argsort(self.rows["taxon"], kind="stable")
        bounds = np.searchsorted(self.rows["taxon"][order], np.arange(len(self.names) + 1))
        taxa = sorted(range(len(self.names)), key=lambda taxon: self.names[taxon])
        return {self.names[i]: self._take(order[bounds[i] : bounds[i + 1]], self.names[i]) for i in taxa}

    def _take(self, index: np.ndarray, species: str) -> RawRecords:
        if len(index) == len(self):
            return replace(self, species=species)
        rows = {name: values[index] for name, values in self.rows.items()}
        others = self.others + len(self) - len(index)
        given = self.given.take(pa.array(index))
        return replace(self, species=species, rows=rows, given=given, others=others, parts={}, files=())

    def _index(self, species: str) -> int:
        wanted = {same_name(species), same_name(species_name(species, scientific=True))}
        for taxon, name in enumerate(self.names):
            if same_name(name) in wanted:
                return taxon
        near = difflib.get_close_matches(species, self.names[:10_000], n=3, cutoff=0.7)
        has = (
            f"did you mean {' or '.join(quoted(name) for name in near)}?"
            if near
            else f"it holds {_listed(self.names)}."
        )
        raise RecordsError(f"{self.source} holds no records of {quoted(species)}; {has}")


def _listed(names: tuple[str, ...]) -> str:
    first = ", ".join(quoted(name, 40) for name in names[:5])
    return f"only {first}" if len(names) == 1 else f"{len(names):,} species ({first}{', ...' * (len(names) > 5)})"


class Collector:
    """Turns batches of text into `RawRecords`, and keeps only what is needed of them.

    Parameters
    ----------
    source
        Name of the file, for messages.
    header
        Name of the column of the file by role.
    species
        Keep only the rows of this species, where the file names any.
    """

    def __init__(self, source: str, header: Mapping[str, str], species: str | None = None) -> None:
        self.source, self.header = source, dict(header)
        wanted = None if species is None else {same_name(species), same_name(species_name(species, scientific=True))}
        self._named = "species" in header or {"genus", "epithet"} <= set(header)
        self._wanted = wanted if self._named else None
        self._scientific = key(header.get("species", "species")) not in ("species", "speciesname")
        self._codes: dict[str, int] = {}
        self._names: dict[str, int] = {}
        self._first: list[str] = []
        self._rows: list[dict[str, np.ndarray]] = []
        self._given: list[pa.Table] = []
        self._kept = self._others = 0

    def add(
        self, batch: Mapping[str, pa.Array | pa.ChunkedArray], row: np.ndarray, xy: np.ndarray | None = None
    ) -> None:
        """Take over some rows.

        Parameters
        ----------
        batch
            Column by role.
        row
            (N,) number of each row in the file, 1 for the first after the header.
        xy
            (N, 2) coordinates of geometries, NaN where there are none; without them the columns count.

        Raises
        ------
        RecordsError
            A cell makes no sense, or there are too many rows.
        """
        n = len(row)
        columns = {role: texts(column) for role, column in batch.items()}
        taxon, name = self._taxa(columns, n)
        rows: dict[str, np.ndarray] = {"row": row.astype(np.int64), "taxon": taxon, "unreadable": np.zeros(n, bool)}
        coordinates, given = _coordinates(columns, xy)
        rows |= coordinates | self._presence(columns, n) | _facts(columns, n)
        if "country" in batch:
            # Not `columns`, where Namibia, whose code is NA, is a missing value.
            columns["country"] = texts(batch["country"], missing=False)
        given = {"species": name} | given | _coded(columns, n)
        self._keep(rows, pa.table(given))

    def unreadable(self, row: np.ndarray) -> None:
        """Take over the numbers of rows that have not as many cells as the header."""
        n = len(row)
        nothing = pa.nulls(n, pa.string())
        coordinates, _ = _coordinates({"lon": nothing, "lat": nothing}, None)
        rows: dict[str, np.ndarray] = {
            "row": row.astype(np.int64),
            "taxon": np.full(n, -1, np.int32),
            "unreadable": np.ones(n, bool),
        }
        rows |= coordinates | {"present": np.ones(n, bool), "stated": np.ones(n, bool)} | _facts({}, n)
        self._append(rows, pa.table({"species": nothing, "lon": nothing, "lat": nothing} | _coded({}, n)))

    def finish(self, notes: Sequence[str] = (), citations: Sequence[str] = (), doi: Sequence[str] = ()) -> RawRecords:
        """Everything taken over, in the order of the file. Raises RecordsError where the file has no rows."""
        if not self._rows:
            raise RecordsError(f"{self.source} has no rows.")
        # Column by column, so that memory is never needed for all of them twice.
        rows = {name: np.concatenate([part.pop(name) for part in self._rows]) for name in list(self._rows[0])}
        given = pa.concat_tables(self._given).unify_dictionaries().combine_chunks()
        order = np.argsort(rows["row"], kind="stable")
        if (order[1:] < order[:-1]).any():
            rows, given = {name: values[order] for name, values in rows.items()}, given.take(pa.array(order))
        return RawRecords(
            source=self.source,
            species="",
            names=tuple(self._first),
            rows=rows,
            given=given,
            columns=self.header,
            notes=tuple(notes),
            citations=tuple(citations),
            doi=tuple(doi),
            others=self._others,
        )

    def _keep(self, rows: dict[str, np.ndarray], given: pa.Table) -> None:
        if self._wanted is not None:
            wanted = [i for i, name in enumerate(self._first) if same_name(name) in self._wanted]
            mask = np.isin(rows["taxon"], wanted)
            self._others += int((~mask).sum())
            rows, given = {name: values[mask] for name, values in rows.items()}, given.filter(pa.array(mask))
        self._append(rows, given)

    def _append(self, rows: dict[str, np.ndarray], given: pa.Table) -> None:
        self._kept += len(rows["row"])
        if self._kept > MAX_ROWS:
            raise RecordsError(
                f"{self.source} has more than {MAX_ROWS:,} rows; keep those of the species that is meant."
            )
        self._rows.append(rows)
        self._given.append(given)

    def _taxa(self, columns: Mapping[str, pa.Array], n: int) -> tuple[np.ndarray, pa.Array]:
        """(Index of each row into the names, -1: none; the names as given)."""
        if not self._named:
            return np.full(n, -1, np.int32), pa.nulls(n, pa.string())
        if "species" in columns:
            name = columns["species"]
        else:
            name = pc.binary_join_element_wise(columns["genus"], columns["epithet"], " ")
        if "species" in columns and "genus" in columns and not self._scientific:
            # A column of epithets, with the genus beside it.
            bare = pc.fill_null(pc.match_substring_regex(name, r"^[a-z-]+$"), False)
            name = pc.if_else(bare, pc.binary_join_element_wise(columns["genus"], name, " "), name)
        coded = name.dictionary_encode()
        codes = np.array([*(self._code(text) for text in coded.dictionary.to_pylist()), -1], np.int32)
        index = pc.fill_null(coded.indices, len(codes) - 1).to_numpy(zero_copy_only=False)
        return codes[index], name

    def _code(self, text: str) -> int:
        code = self._codes.get(text)
        if code is None:
            name = species_name(text, self._scientific)
            code = self._names.setdefault(same_name(name), len(self._first))
            if code == len(self._first):
                self._first.append(name)
            self._codes[text] = code
            if len(self._codes) > MAX_NAMES:
                raise RecordsError(f"{self.source} has more than {MAX_NAMES:,} different names; name the right column.")
        return code

    def _presence(self, columns: Mapping[str, pa.Array], n: int) -> dict[str, np.ndarray]:
        present, stated = np.ones(n, bool), np.ones(n, bool)
        if "presence" in columns:
            present, stated = presences(columns["presence"], self.header["presence"], self.source)
            return {"present": present, "stated": stated}
        if "status" in columns:
            absent = pc.match_substring_regex(columns["status"], "^absent|^absence", ignore_case=True)
            present &= ~pc.fill_null(absent, False).to_numpy(zero_copy_only=False)
        if "count" in columns:
            present &= few_numbers(columns["count"]) != 0
        return {"present": present, "stated": stated}


def _coordinates(
    columns: Mapping[str, pa.Array], xy: np.ndarray | None
) -> tuple[dict[str, np.ndarray], dict[str, pa.Array]]:
    rows: dict[str, np.ndarray] = {}
    given: dict[str, pa.Array] = {}
    wrong = np.zeros(0, bool)
    if xy is None and "point" in columns:
        columns = dict(columns) | dict(zip(("lon", "lat"), points(columns["point"]), strict=True))
    for i, role in enumerate(("lon", "lat")):
        if role in columns:
            given[role] = columns[role]
            rows[role], bad = angles(columns[role], "EW" if role == "lon" else "NS")
            wrong = bad if i == 0 else wrong | bad
        else:
            assert xy is not None
            rows[role] = np.ascontiguousarray(xy[:, i], np.float64)
            given[role] = pa.array(rows[role], from_pandas=True).cast(pa.string())
            wrong = np.zeros(len(xy), bool)
    return rows | {"not_number": wrong}, given


def _facts(columns: Mapping[str, pa.Array], n: int) -> dict[str, np.ndarray]:
    """Uncertainty, date, and whether a record is a fossil or captive."""
    uncertainty = np.full(n, np.nan)
    if "uncertainty" in columns:
        uncertainty, _ = numbers(pc.replace_substring_regex(columns["uncertainty"], r"(?i)\s*(m|metres|meters)$", ""))
        uncertainty[~(uncertainty > 0)] = np.nan
    year, month = years_and_months(columns.get("date"), columns.get("year"), columns.get("month"), n)
    basis = _plain(columns.get("basis"), n)
    captive = _is_in(basis, pa.array(["livingspecimen"]))
    for role in ("establishment", "degree"):
        captive |= _is_in(_plain(columns.get(role), n), _CAPTIVE)
    captive |= _is_in(_plain(columns.get("captive"), n), pa.array(["true", "t", "yes", "y", "1", "captive"]))
    captive |= _is_in(_plain(columns.get("exotic"), n), pa.array(["x"]))  # eBird's code of escaped birds
    return {
        "uncertainty_m": uncertainty,
        "month": month,
        "year": year,
        "fossil": _is_in(basis, pa.array(["fossilspecimen", "fossil"])),
        "captive": captive,
    }


def _coded(columns: Mapping[str, pa.Array], n: int) -> dict[str, pa.Array]:
    return {role: columns.get(role, pa.nulls(n, pa.string())).dictionary_encode() for role in _TEXTS}


def _plain(column: pa.Array | None, n: int) -> pa.Array:
    """Lower case without blanks, hyphens and underscores."""
    if column is None:
        return pa.nulls(n, pa.string())
    # Few different values, many rows.
    coded = column.dictionary_encode()
    words = pc.utf8_lower(pc.replace_substring_regex(coded.dictionary, r"[\s_-]+", ""))
    return words.take(coded.indices)


def _is_in(column: pa.Array, words: pa.Array) -> np.ndarray:
    return pc.fill_null(pc.is_in(column, value_set=words), False).to_numpy(zero_copy_only=False)
