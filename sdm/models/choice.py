"""Which bundled model a name belongs to, where the user names no model.

A request has one model. For scientific names the tables are only searched for the lines that list them, not read whole.
"""

from __future__ import annotations

from collections.abc import Sequence

from sdm.errors import RequestError, SpeciesNameError, quoted
from sdm.models.bundled import BundledModel
from sdm.models.folder import bundled_folders
from sdm.models.protocol import Model
from sdm.names import Resolution, TaxonTable, binomial, is_exact, listed, resolve_among

Outcome = Resolution | SpeciesNameError


def choose(queries: Sequence[str]) -> tuple[BundledModel, list[Resolution]]:
    """The bundled model that knows all of some names best, and the taxa they stand for in it.

    Raises SpeciesNameError for a name that none knows or two understand differently, RequestError for names that
    belong to different models.
    """
    if not queries and (folders := bundled_folders()):
        return BundledModel.open(next(iter(folders))), []
    if exact := _listing_all(queries):
        return exact
    tables = _tables()
    meanings = [resolve_among(tables, query) for query in queries]
    for name in tables:
        if all(name in options for options in meanings):
            return BundledModel.open(name), [options[name] for options in meanings]
    homes = ", ".join(f"{quoted(q)} ({' or '.join(options)})" for q, options in zip(queries, meanings, strict=True))
    raise RequestError(
        f"one call uses one model, but the names belong to several: {homes}; map them in separate calls."
    )


def choose_for_most(queries: Sequence[str]) -> tuple[BundledModel, list[Outcome]]:
    """The bundled model that knows most of some names, and the taxon of each in it, or why it is not mapped."""
    if exact := _listing_all(queries):
        return exact[0], list(exact[1])
    tables = _tables()
    meanings: list[dict[str, Resolution] | SpeciesNameError] = []
    for query in queries:
        try:
            meanings.append(resolve_among(tables, query))
        except SpeciesNameError as error:
            meanings.append(error)

    def known(name: str) -> int:
        options = [m[name] for m in meanings if isinstance(m, dict) and name in m]
        return sum(2 if r.known else 1 for r in options)

    chosen = max(tables, key=known)
    return BundledModel.open(chosen), [_outcome(q, m, chosen) for q, m in zip(queries, meanings, strict=True)]


def refuse_name_of_other_model(model: Model, query: str, outcome: Outcome) -> Outcome:
    """The outcome of a name in the model that the user chose.

    An error where that is a bundled model which does not list the name, and another bundled one does.
    """
    if not isinstance(outcome, SpeciesNameError) and outcome.known:
        return outcome
    name, folders = binomial(query), bundled_folders()
    if name is None or model.folder not in folders.values():
        return outcome
    others = [other for other, folder in folders.items() if folder != model.folder and listed(folder, [name])]
    return _other_model_error(query, name, others, model.name) if others else outcome


def _listing_all(queries: Sequence[str]) -> tuple[BundledModel, list[Resolution]] | None:
    """The first bundled model whose table lists all the names exactly as they are given; None where none does."""
    folders = bundled_folders()
    if len(folders) == 1:
        return None
    names = [name for name in map(binomial, queries) if name is not None]
    if not names or len(names) < len(queries):
        return None
    for name, folder in folders.items():
        if listed(folder, names) == set(names):
            model = BundledModel.open(name)
            try:
                resolutions = [model.resolve(query) for query in queries]
            except SpeciesNameError:
                return None
            return (model, resolutions) if all(map(is_exact, resolutions)) else None
    return None


def _tables() -> dict[str, TaxonTable]:
    """The tables of all bundled models, by name. Raises SpeciesNameError where there is none."""
    tables = {name: TaxonTable.load(folder) for name, folder in bundled_folders().items()}
    if not tables:
        raise SpeciesNameError("no bundled model is installed; give --model FOLDER.")
    return tables


def _outcome(query: str, meaning: dict[str, Resolution] | SpeciesNameError, chosen: str) -> Outcome:
    if isinstance(meaning, SpeciesNameError):
        return meaning
    if chosen in meaning:
        return meaning[chosen]
    other = next(iter(meaning))
    return _other_model_error(query, meaning[other].taxon.label, list(meaning), chosen)


def _other_model_error(query: str, label: str, others: Sequence[str], chosen: str) -> SpeciesNameError:
    return SpeciesNameError(
        f"{quoted(query)} is known to model {' or '.join(others)} ({label}), but this run uses {chosen}; map it "
        f"separately with --model {others[0]}."
    )
