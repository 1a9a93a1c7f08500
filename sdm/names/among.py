"""A name among the tables of several models: which of them know it best, and whether they mean the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from sdm.errors import SpeciesNameError, quoted
from sdm.names.index import likeness
from sdm.names.resolve import MAX_LISTED, AmbiguousNameError, HomonymError, UnknownNameError, find, nearest
from sdm.names.table import TaxonTable
from sdm.names.taxa import MAX_BYTES, Resolution, Taxon
from sdm.names.text import clean, fold


def binomial(query: str) -> str | None:
    """The first two words of a query as a scientific name: "URSUS arctos L." -> "Ursus arctos"; None: not two words."""
    try:
        words = fold(clean(query)).split()
    except SpeciesNameError:
        return None
    return f"{words[0].capitalize()} {words[1]}" if len(words) > 1 else None


def listed(folder: Path, names: Iterable[str]) -> set[str]:
    """Those of some scientific names that the `taxa.csv` of a model folder seems to list, without parsing it.

    It takes a few milliseconds, a table a tenth of a second.
    """
    with (folder / "taxa.csv").open("rb") as file:
        first = {line.partition(b",")[0] for line in file.read(MAX_BYTES).split(b"\n")}
    return {name for name in names if name.encode() in first}


def is_exact(resolution: Resolution) -> bool:
    """Whether the query holds the scientific name of the species as the model has it."""
    taxon = resolution.taxon
    return taxon.rank == "species" and resolution.known and fold(taxon.name) in fold(resolution.query)


def resolve_among(tables: Mapping[str, TaxonTable], query: str) -> dict[str, Resolution]:
    """The resolutions of a query by the names of the tables that know it best, in their order.

    The exact scientific name comes first; then any other name that is known, if it means one taxon in all tables; last
    the genus or family of an unknown name. Raises SpeciesNameError as `TaxonTable.resolve` does, AmbiguousNameError
    also for a name that two tables understand differently.
    """
    if len(tables) == 1:
        return {name: table.resolve(query) for name, table in tables.items()}
    answers: dict[str, Resolution] = {}
    failed: dict[str, SpeciesNameError] = {}
    for name, table in tables.items():
        try:
            answers[name] = find(table, query)
        except SpeciesNameError as error:
            failed[name] = error
    known = {name: r for name, r in answers.items() if r.known}
    if exact := {name: r for name, r in known.items() if is_exact(r)}:
        return _agreeing(query, exact, [(r.taxon, name) for name, r in exact.items()])
    for failure in failed.values():
        if not isinstance(failure, AmbiguousNameError | UnknownNameError):
            raise failure
    meant = [(r.taxon, name) for name, r in known.items()]
    meant += [(taxon, name) for name, e in failed.items() if isinstance(e, AmbiguousNameError) for taxon in e.taxa]
    if meant:
        return _agreeing(query, known, meant)
    return _nearest_group(tables, query, answers, failed)


def _nearest_group(
    tables: Mapping[str, TaxonTable],
    query: str,
    groups: dict[str, Resolution],
    failed: Mapping[str, SpeciesNameError],
) -> dict[str, Resolution]:
    """The genus or family of a name that no table knows, if the tables agree on it; else an error."""
    homonyms = {name: e for name, e in failed.items() if isinstance(e, HomonymError)}
    if len(homonyms) == 1 and not groups:
        raise next(iter(homonyms.values()))
    if homonyms:
        meant = [(e.taxon, name) for name, e in homonyms.items()] + [(r.taxon, name) for name, r in groups.items()]
        return _agreeing(query, {}, meant)
    near = {name: e.near for name, e in failed.items() if isinstance(e, UnknownNameError) and e.near}
    if near or not groups:
        raise _unknown(tables, query, near, failed)
    # A genus of one table counts more than the family, in another table, that holds it.
    depth = max(len(r.taxon.lineage) for r in groups.values())
    deepest = {name: r for name, r in groups.items() if len(r.taxon.lineage) == depth}
    lineage = next(iter(deepest.values())).taxon.lineage
    others = [
        (r.taxon, name)
        for name, r in groups.items()
        if name not in deepest and r.taxon.lineage != lineage[: len(r.taxon.lineage)]
    ]
    return _agreeing(query, deepest, [(r.taxon, name) for name, r in deepest.items()] + others)


def _agreeing(query: str, answers: dict[str, Resolution], meant: list[tuple[Taxon, str]]) -> dict[str, Resolution]:
    """The answers, if all that may be meant is one taxon; else AmbiguousNameError."""
    if len({(t.rank, t.name, t.kingdom) for t, _ in meant}) == 1 and answers:
        return answers
    names = _labels(meant[:MAX_LISTED]) + (", …" if len(meant) > MAX_LISTED else "")
    raise AmbiguousNameError(
        f"{quoted(clean(query))} is ambiguous: {names}; give the scientific name you mean, or choose a model with "
        "--model.",
        [taxon for taxon, _ in meant],
    )


def _unknown(
    tables: Mapping[str, TaxonTable],
    query: str,
    meant: Mapping[str, tuple[Taxon, ...]],
    failed: Mapping[str, SpeciesNameError],
) -> UnknownNameError:
    """The error for a name no table knows; `meant`: by table, what it is a typing error for."""
    text = clean(query)
    near = [
        (taxon, name)
        for name, error in failed.items()
        if isinstance(error, UnknownNameError)
        for taxon in (meant.get(name, ()) if meant else nearest(tables[name], query, error, tables.values()))
    ]
    near.sort(key=lambda pair: -_likeness(text, pair[0]))
    groups = Counter(taxon.group or "species" for table in tables.values() for taxon in table)
    extent = ", ".join(f"{count:,} {group.removesuffix('s')}s" for group, count in groups.most_common())
    nearby = f"the nearest names are: {_labels(near[:5])}" if near else "none is spelled like it"
    return UnknownNameError(
        f"Unknown species {quoted(text)}: the bundled models know {extent}; {nearby}. Look for names with --search.",
        [taxon for taxon, _ in near[:5]],
    )


def _labels(taxa: list[tuple[Taxon, str]]) -> str:
    return ", ".join(f"{taxon.label} [{model}]" for taxon, model in taxa)


def _likeness(text: str, taxon: Taxon) -> float:
    """Similarity of a query and any name of a taxon, 0 to 100: a kind ("fox" in "red fox") counts as the same."""
    words, names = fold(text), [fold(name) for name in (taxon.name, *taxon.common, *taxon.synonyms)]
    if any(name.endswith(f" {words}") for name in names):
        return 100.0
    return max(likeness(words, name) for name in names)
