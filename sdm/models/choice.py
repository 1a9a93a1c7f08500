"""Which bundled model a name belongs to, where the user names none.

A call has one model. Tables of names are opened only as far as the names need: of a scientific name it is enough to
see that a table lists it.
"""

from __future__ import annotations

from collections.abc import Sequence

from sdm.errors import RequestError, SpeciesNameError, quoted
from sdm.models.bundled import Model, bundled
from sdm.names import Resolution, TaxonTable, binomial, is_exact, listed, resolve_among

Outcome = Resolution | SpeciesNameError


def choose(queries: Sequence[str]) -> tuple[Model, list[Resolution]]:
    """The bundled model that knows all of some names best, and what they are in it.

    Raises SpeciesNameError for a name that none knows or two understand differently, RequestError for names that
    belong to different models.
    """
    if not queries and (folders := bundled()):
        return Model.open(next(iter(folders))), []
    if sure := _listing_all(queries):
        return sure
    tables = _tables()
    found = [resolve_among(tables, query) for query in queries]
    for name in tables:
        if all(name in options for options in found):
            return Model.open(name), [options[name] for options in found]
    homes = ", ".join(f"{quoted(q)} ({' or '.join(options)})" for q, options in zip(queries, found, strict=True))
    raise RequestError(
        f"the names belong to different models, and a call has one: {homes}; map them in separate calls."
    )


def choose_for_most(queries: Sequence[str]) -> tuple[Model, list[Outcome]]:
    """The bundled model that knows most of some names, and what each is in it, or why it is not mapped."""
    if sure := _listing_all(queries):
        return sure[0], list(sure[1])
    tables = _tables()
    found: list[dict[str, Resolution] | SpeciesNameError] = []
    for query in queries:
        try:
            found.append(resolve_among(tables, query))
        except SpeciesNameError as error:
            found.append(error)

    def known(name: str) -> int:
        options = [f[name] for f in found if isinstance(f, dict) and name in f]
        return sum(2 if r.known else 1 for r in options)

    chosen = max(tables, key=known)
    return Model.open(chosen), [_outcome(q, f, chosen) for q, f in zip(queries, found, strict=True)]


def refuse_stranger(model: object, query: str, found: Outcome) -> Outcome:
    """What a name is in a bundled model that was chosen by the user, or why not: another model lists that very name."""
    if not isinstance(model, Model) or (not isinstance(found, SpeciesNameError) and found.known):
        return found
    name, folders = binomial(query), bundled()
    if name is None or model.folder not in folders.values():
        return found
    others = [other for other, folder in folders.items() if folder != model.folder and listed(folder, [name])]
    return _elsewhere(query, name, others, model.name) if others else found


def _listing_all(queries: Sequence[str]) -> tuple[Model, list[Resolution]] | None:
    """The first bundled model whose table lists the very names asked for, all of them; None where none does."""
    folders = bundled()
    if len(folders) == 1:
        return None
    names = [binomial(query) for query in queries]
    if not names or None in names:
        return None
    for name, folder in folders.items():
        if listed(folder, names) == set(names):
            model = Model.open(name)
            try:
                found = [model.resolve(query) for query in queries]
            except SpeciesNameError:
                return None
            return (model, found) if all(map(is_exact, found)) else None
    return None


def _tables() -> dict[str, TaxonTable]:
    """The tables of all bundled models, by name. Raises SpeciesNameError where there is none."""
    tables = {name: TaxonTable.load(folder) for name, folder in bundled().items()}
    if not tables:
        raise SpeciesNameError("no bundled model is installed; give --model FOLDER.")
    return tables


def _outcome(query: str, found: dict[str, Resolution] | SpeciesNameError, chosen: str) -> Outcome:
    if isinstance(found, SpeciesNameError):
        return found
    if chosen in found:
        return found[chosen]
    other = next(iter(found))
    return _elsewhere(query, found[other].taxon.label, list(found), chosen)


def _elsewhere(query: str, label: str, others: Sequence[str], chosen: str) -> SpeciesNameError:
    return SpeciesNameError(
        f"{quoted(query)} belongs to model {' or '.join(others)} ({label}), and this run maps with {chosen}; map it in "
        f"a run of its own, with --model {others[0]}."
    )
