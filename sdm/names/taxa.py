"""A taxon, what a query resolved to, and the reading of the tables in a model folder."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sdm.errors import ModelError, quoted

RANKS = ("kingdom", "phylum", "class", "order", "family", "genus", "species")

# A model folder may come from anywhere: bounds far above any real table, so that a bad file cannot hurt.
MAX_BYTES = 32_000_000
MAX_ROWS = 400_000
MAX_FIELD = 2_000

_REQUIRED = frozenset({*RANKS, "common", "synonyms", "group"})
_BINOMIAL = re.compile(r"[A-Z][a-z-]{1,60} [a-z-]{2,60}")
_NAME = re.compile(r"[A-Za-z-]{2,60}")


@dataclass(frozen=True, slots=True)
class Taxon:
    """A species, or a genus, family, order or class whose species the model knows.

    `lineage` holds the names from the kingdom down to the taxon itself. `common` and `synonyms` are best
    first. `marine` is the share of the known range that lies at sea (for a group: of its species together)
    and `cells` the size of that range in cells of the source; both None where not known.
    """

    rank: str
    name: str
    lineage: tuple[str, ...]
    common: tuple[str, ...] = ()
    synonyms: tuple[str, ...] = ()
    group: str = ""
    marine: float | None = None
    cells: int | None = None

    def at(self, rank: str) -> str:
        """Return the name at `rank`, '' below the taxon's own rank. Raises ValueError for an unknown rank."""
        if rank not in RANKS:
            raise ValueError(f"rank must be one of {', '.join(RANKS)}, not {quoted(rank)}")
        index = RANKS.index(rank)
        return self.lineage[index] if index < len(self.lineage) else ""

    @property
    def kingdom(self) -> str:
        """Kingdom, e.g. 'Animalia'."""
        return self.at("kingdom")

    @property
    def phylum(self) -> str:
        """Phylum, e.g. 'Chordata'."""
        return self.at("phylum")

    @property
    def class_(self) -> str:
        """Class, e.g. 'Mammalia'."""
        return self.at("class")

    @property
    def order(self) -> str:
        """Order, e.g. 'Carnivora'; '' for a class."""
        return self.at("order")

    @property
    def family(self) -> str:
        """Family, e.g. 'Ursidae'; '' above that rank."""
        return self.at("family")

    @property
    def genus(self) -> str:
        """Genus, e.g. 'Ursus'; '' above that rank."""
        return self.at("genus")

    @property
    def species(self) -> str:
        """Species, e.g. 'Ursus arctos'; '' above that rank."""
        return self.at("species")

    @property
    def label(self) -> str:
        """Name for a list: 'Ursus arctos (brown bear)' or 'family Ursidae (bear)'."""
        name = self.name if self.rank == "species" else f"{self.rank} {self.name}"
        return f"{name} ({self.common[0]})" if self.common else name


@dataclass(frozen=True, slots=True)
class Resolution:
    """The taxon of a query.

    `known` is False where the model does not know the name and `taxon` is the nearest group that it knows.
    `how` says by which rule: 'scientific name', 'synonym', 'common name' or, for a group, its rank. `notes`
    are sentences for the user; a resolution with `known` False always has one. `origin` says which range of the species
    is meant: 'native', or 'all', with what people introduced.
    """

    query: str
    taxon: Taxon
    known: bool
    how: str
    notes: tuple[str, ...] = ()
    origin: str = "native"


def taxonomic_string(taxon: Taxon) -> str:
    """Return the lineage as one text, e.g. 'Animalia Chordata Mammalia Carnivora Ursidae Ursus arctos'.

    This is the text form that taxonomy-trained encoders expect; it stops at the taxon's own rank.
    """
    return " ".join((*taxon.lineage[:5], taxon.name) if taxon.rank == "species" else taxon.lineage)


def read_species(path: Path) -> list[Taxon]:
    """Return the species of a `taxa.csv`.

    Raises ModelError when the file is missing, too large, not UTF-8, lacks a column, or a row is not usable.
    """
    taxa = []
    seen = set()
    sound: set[tuple[str, ...]] = set()  # lineages already checked: species of a genus share one
    for line, row in _rows(path, _REQUIRED):
        name = row["species"]
        if not _BINOMIAL.fullmatch(name) or name.split(" ")[0] != row["genus"]:
            raise ModelError(f"{path}, line {line}: {quoted(name)} is not a species name of its genus.")
        if name in seen:
            raise ModelError(f"{path}, line {line}: {quoted(name)} appears twice.")
        seen.add(name)
        lineage = tuple(row[rank] for rank in RANKS)
        if lineage[:-1] not in sound:
            if not all(map(_NAME.fullmatch, lineage[:-1])):
                raise ModelError(f"{path}, line {line}: a rank above {quoted(name)} is missing or malformed.")
            sound.add(lineage[:-1])
        try:
            cells = int(row["cells"]) if row.get("cells") else None
            marine = float(row["marine"]) if row.get("marine") else None
        except ValueError:
            raise ModelError(f"{path}, line {line}: 'cells' or 'marine' is not a number.") from None
        if not (marine is None or 0 <= marine <= 1) or not (cells is None or cells >= 0):
            raise ModelError(f"{path}, line {line}: 'marine' must lie in 0..1 and 'cells' be 0 or more.")
        taxa.append(
            Taxon(
                "species",
                name,
                lineage,
                split(row["common"]),
                split(row["synonyms"]),
                row["group"],
                marine,
                cells,
            )
        )
    if not taxa:
        raise ModelError(f"{path} lists no species.")
    return taxa


def read_places(path: Path) -> dict[str, tuple[str, ...]]:
    """Return {genus in lower case: lineage down to the genus} of a `genera.csv`; ModelError as above."""
    places = {}
    sound: set[tuple[str, ...]] = set()
    for line, row in _rows(path, frozenset(RANKS[:6])):
        lineage = tuple(row[rank] for rank in RANKS[:6])
        # Genera of a family share the rest of their lineage: check that once.
        fresh = lineage if lineage[:5] not in sound else lineage[5:]
        if not all(map(_NAME.fullmatch, fresh)):
            raise ModelError(f"{path}, line {line}: a rank of genus {quoted(row['genus'])} is malformed.")
        sound.add(lineage[:5])
        places[lineage[5].lower()] = lineage
    return places


def read_groups(path: Path) -> dict[tuple[str, str], tuple[tuple[str, ...], tuple[str, ...]]]:
    """Return {(rank, name): (common names, synonyms)} of a `groups.csv`; ModelError as above."""
    rows = _rows(path, frozenset({"rank", "name", "common", "synonyms"}))
    return {(row["rank"], row["name"]): (split(row["common"]), split(row["synonyms"])) for _, row in rows}


def read_homonyms(path: Path) -> dict[str, tuple[str, ...]]:
    """Return {genus in lower case: where else it is a genus, e.g. 'Labridae (Actinopterygii)'} of a `homonyms.csv`.

    One row a genus elsewhere, `class` and `family` as far as they are known. Raises ModelError as above.
    """
    places: dict[str, tuple[str, ...]] = {}
    for line, row in _rows(path, frozenset({"genus", "kingdom", "class", "family"})):
        if not all(map(_NAME.fullmatch, filter(None, row.values()))) or not row["genus"] or not row["kingdom"]:
            raise ModelError(f"{path}, line {line}: a name of the homonym {quoted(row['genus'])} is malformed.")
        above = row["class"] or row["kingdom"]
        genus = row["genus"].lower()
        places[genus] = (*places.get(genus, ()), f"{row['family']} ({above})" if row["family"] else above)
    return places


def read_remarks(path: Path) -> dict[str, str]:
    """Return {species: a sentence for the users of its maps} of a `notes.csv`; ModelError as above."""
    remarks: dict[str, str] = {}
    for line, row in _rows(path, frozenset({"species", "note"})):
        if row["species"] in remarks or not row["note"]:
            raise ModelError(f"{path}, line {line}: {quoted(row['species'])} has no note, or a second one.")
        remarks[row["species"]] = row["note"]
    return remarks


def split(field: str) -> tuple[str, ...]:
    """Return the parts of a '|'-joined field, empty ones left out."""
    return tuple(part for part in map(str.strip, field.split("|")) if part) if field else ()


def _rows(path: Path, required: frozenset[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield (line number, row) of a CSV file that is not trusted."""
    reader = csv.reader(io.StringIO(_text(path), newline=""), strict=True)
    try:
        header = next(reader, [])
        missing = sorted(required - set(header))
        if missing:
            raise ModelError(f"{path} lacks the column(s): {', '.join(missing)}.")
        if len(set(header)) != len(header):
            raise ModelError(f"{path} has a column twice.")
        for number, values in enumerate(reader, start=1):
            if number > MAX_ROWS:
                raise ModelError(f"{path} has more than {MAX_ROWS} rows.")
            if not values:
                continue
            joined = "".join(values)
            if len(values) != len(header) or len(joined) > MAX_FIELD or not joined.isprintable():
                raise ModelError(
                    f"{path}, line {reader.line_num}: wrong number of fields, more than {MAX_FIELD} "
                    "characters, or control characters."
                )
            yield reader.line_num, dict(zip(header, values, strict=True))
    except csv.Error as error:
        raise ModelError(f"{path}, line {reader.line_num}: not valid CSV ({error}).") from None


def _text(path: Path) -> str:
    try:
        with path.open("rb") as f:
            raw = f.read(MAX_BYTES + 1)
    except OSError as error:
        raise ModelError(f"Cannot read {path}: {error.strerror or error}.") from None
    if len(raw) > MAX_BYTES:
        raise ModelError(f"{path} is larger than {MAX_BYTES // 1_000_000} MB, the limit for a table of names.")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ModelError(f"{path} is not UTF-8 text.") from None
