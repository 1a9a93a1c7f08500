"""From species lists to the texts that the text encoder was trained on: plain taxonomic strings.

TaxaBind's text is "Animalia Chordata Aves Accipitriformes Accipitridae Haliaeetus leucocephalus": seven
ranks, without "a photo of". A binomial alone works less well, so a name is completed wherever a table has it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from sdm.errors import RequestError, SpeciesNameError, TooLargeError
from sdm.evaluation.csv_rows import read_rows
from sdm.names import RANKS, TaxonTable, taxonomic_string
from sdm.names.text import clean

NAME_COLUMNS = ("species", "scientific_name", "scientificName", "name", "taxon")
MAX_SPECIES = 1_000_000


@dataclass(frozen=True)
class Candidate:
    """A species to choose from."""

    name: str
    """As given."""
    text: str
    """For the text encoder."""
    complete: bool
    """Whether `text` has all ranks; otherwise it is the name as given."""


class Taxonomy:
    """Seven-rank strings by species name: from the user's table first, then from those of models."""

    def __init__(self, lineages: Mapping[str, str] | None = None, tables: Iterable[TaxonTable] = ()) -> None:
        self.lineages = {_key(name): text for name, text in (lineages or {}).items()}
        self.tables = tuple(tables)

    @classmethod
    def read(cls, path: str | Path, tables: Iterable[TaxonTable] = ()) -> Taxonomy:
        """From a CSV with the columns kingdom, phylum, class, order, family, genus, species.

        `species` may be a binomial or the epithet alone. Raises RequestError.
        """
        rows = read_rows(Path(path), RANKS, "taxonomy")
        return cls(dict(entry for _, row in rows if (entry := _entry(row))), tables)

    def text(self, name: str) -> str | None:
        """The seven ranks of a species, or None if no table has an unambiguous entry."""
        if lineage := self.lineages.get(_key(name)):
            return lineage
        for table in self.tables:
            try:
                resolution = table.resolve(name)
            except SpeciesNameError:
                continue
            if resolution.known and resolution.taxon.rank == "species":
                return taxonomic_string(resolution.taxon)
        return None

    def candidate(self, name: str) -> Candidate:
        """A name with its seven ranks, or with itself as text if no table has it."""
        text = self.text(name)
        return Candidate(name, text or name, text is not None)


def read_candidates(path: str | Path, taxonomy: Taxonomy) -> list[Candidate]:
    """A species list: a text file with one name a line, or a CSV.

    In a CSV the names are in `species` (or scientific_name, scientificName, name, taxon; or the only column);
    with all seven rank columns the list is its own taxonomy. Empty lines and lines that begin with # are skipped,
    repeated names are used once. Raises RequestError when there is no name, SpeciesNameError for text that
    cannot be a name.
    """
    path = Path(path)
    if path.suffix.lower() in (".csv", ".tsv"):
        candidates = _from_csv(path, taxonomy)
    else:
        candidates = [taxonomy.candidate(name) for name in _lines(path)]
    unique = {c.name: c for c in candidates}
    if not unique:
        raise RequestError(f"species list {path.name!r} names no species.")
    if len(unique) > MAX_SPECIES:
        raise TooLargeError(f"species list {path.name!r} has more than {MAX_SPECIES:,} names.")
    return list(unique.values())


def _from_csv(path: Path, taxonomy: Taxonomy) -> list[Candidate]:
    candidates, column = [], ""
    for line, row in read_rows(path, what="species list"):
        if not column:
            column = next((c for c in NAME_COLUMNS if c in row), "") or (next(iter(row)) if len(row) == 1 else "")
            if not column:
                raise RequestError(f"species list {path.name!r} has none of the columns {', '.join(NAME_COLUMNS)}.")
        if not row[column].strip():
            raise RequestError(f"species list {path.name!r}, line {line}: the name is empty.")
        if entry := _entry(row):
            candidates.append(Candidate(entry[0], entry[1], True))
        else:
            candidates.append(taxonomy.candidate(clean(row[column])))
    return candidates


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        raise RequestError(f"species list {str(path)!r} does not exist or is not a file.")
    if path.stat().st_size > 256 << 20:
        raise TooLargeError(f"species list {path.name!r} is larger than 256 MiB.")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise RequestError(f"species list {path.name!r} is not UTF-8 text.") from error
    return [clean(line) for line in lines if line.strip() and not line.lstrip().startswith("#")]


def _entry(row: Mapping[str, str]) -> tuple[str, str] | None:
    """(binomial, seven ranks) of a row with all rank columns filled, or None."""
    ranks = [row.get(rank, "").strip() for rank in RANKS]
    if not all(ranks):
        return None
    *higher, genus, species = ranks
    epithet = species.removeprefix(genus).strip()
    if not epithet:
        return None
    return clean(f"{genus} {epithet}"), clean(" ".join([*higher, genus, epithet]))


def _key(name: str) -> str:
    return " ".join(name.split()).casefold()
