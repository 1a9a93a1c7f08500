"""The choice of a bundled model by the names, where the user names no model.

A request has one model. For scientific names the tables are only searched for the lines that list them, not read whole.
"""

from __future__ import annotations

from collections.abc import Sequence

from sdm.errors import RequestError, SpeciesNameError, quoted
from sdm.models.bundled import BundledModel
from sdm.models.folder import bundled_folders
from sdm.models.protocol import Model
from sdm.names import DomesticNameError, Resolution, TaxonTable, binomial, is_exact, listed, resolve_among

Outcome = Resolution | SpeciesNameError


def choose(queries: Sequence[str], *, as_group: bool = False) -> tuple[BundledModel, list[Resolution]]:
    """The bundled model that knows all of some names best, and the taxa they stand for in it.

    `as_group`: an unknown species stands for its genus or family; otherwise it is an error.
    Raises SpeciesNameError for a name that none knows or two understand differently, RequestError for names that
    belong to different models.
    """
    if not queries and (folders := bundled_folders()):
        return BundledModel.open(next(iter(folders))), []
    if exact := _listing_all(queries):
        return exact
    tables = _tables()
    meanings = [resolve_among(tables, query) for query in queries]
    if not as_group:
        for options in meanings:
            model, resolution = next(iter(options.items()))
            resolved(refuse_group(resolution, model))
    for name in tables:
        if all(name in options for options in meanings):
            return BundledModel.open(name), [options[name] for options in meanings]
    homes = ", ".join(f"{quoted(q)} ({' or '.join(options)})" for q, options in zip(queries, meanings, strict=True))
    raise RequestError(
        f"one call uses one model, but the names belong to several: {homes}; map them in separate calls."
    )


def choose_for_most(queries: Sequence[str], *, as_group: bool = False) -> tuple[BundledModel, list[Outcome]]:
    """The bundled model that knows most of some names, and the taxon of each in it, or why it is not mapped.

    `as_group`: an unknown species counts half, as it can be mapped as its genus or family; else it only breaks ties.
    """
    if exact := _listing_all(queries):
        return exact[0], list(exact[1])
    tables = _tables()
    meanings: list[dict[str, Resolution] | SpeciesNameError] = []
    for query in queries:
        try:
            meanings.append(resolve_among(tables, query))
        except SpeciesNameError as error:
            meanings.append(error)

    def weight(name: str) -> tuple[int, int]:
        options = [m[name] for m in meanings if isinstance(m, dict) and name in m]
        species = sum(r.known for r in options)
        groups = len(options) - species
        return (2 * species + groups, 0) if as_group else (species, groups)

    chosen = max(tables, key=weight)
    outcomes = [_outcome(q, m, chosen, as_group) for q, m in zip(queries, meanings, strict=True)]
    return BundledModel.open(chosen), outcomes


def resolved(outcome: Outcome) -> Resolution:
    """The resolution of a name. Raises SpeciesNameError where it has none."""
    if isinstance(outcome, SpeciesNameError):
        raise outcome
    return outcome


def resolve_in(model: Model, name: str, as_group: bool) -> Outcome:
    """The resolution of a name in a model that the user chose, or the error."""
    try:
        outcome: Outcome = model.resolve(name)
    except SpeciesNameError as error:
        outcome = error
    outcome = refuse_name_of_other_model(model, name, outcome)
    return outcome if as_group else refuse_group(outcome, model.name)


def refuse_group(outcome: Outcome, model: str) -> Outcome:
    """The outcome of a name in a model; an error where a genus or family would be mapped in place of the species."""
    if isinstance(outcome, SpeciesNameError) or outcome.known:
        return outcome
    group = f"{outcome.taxon.rank} {outcome.taxon.name}"
    # Without a map, what remains to be said is which names may have been meant.
    hints = [note for note in outcome.notes if "the map shows" not in note]
    refusal = (
        f"{quoted(outcome.query)} names no species of model {model}, and the map of its {group} instead may be wrong "
        f"for it; give --as-group to map the {group}, or records of the species with --records FILE."
    )
    return SpeciesNameError(" ".join([refusal, *hints]))


def refuse_name_of_other_model(model: Model, query: str, outcome: Outcome) -> Outcome:
    """The outcome of a name in the model that the user chose.

    An error where that is a bundled model which does not list the name, and another bundled one does.
    """
    if isinstance(outcome, DomesticNameError) or (isinstance(outcome, Resolution) and outcome.known):
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


def _outcome(query: str, meaning: dict[str, Resolution] | SpeciesNameError, chosen: str, as_group: bool) -> Outcome:
    if isinstance(meaning, SpeciesNameError):
        return meaning
    other = next(iter(meaning))
    model = chosen if chosen in meaning else other
    if not (as_group or meaning[model].known):
        return refuse_group(meaning[model], model)
    if model == chosen:
        return meaning[model]
    return _other_model_error(query, meaning[other].taxon.label, list(meaning), chosen)


def _other_model_error(query: str, label: str, others: Sequence[str], chosen: str) -> SpeciesNameError:
    return SpeciesNameError(
        f"{quoted(query)} is known to model {' or '.join(others)} ({label}), but this run uses {chosen}; map it "
        f"separately with --model {others[0]}."
    )
