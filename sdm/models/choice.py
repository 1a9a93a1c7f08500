"""The choice of a bundled model by the names, where the user names no model.

A request has one model, or several that share their encoders of places (`sdm.models.joint`). For scientific names the
tables are only searched for the lines that list them, not read whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sdm.errors import RequestError, SpeciesNameError, quoted
from sdm.models.bundled import BundledModel
from sdm.models.folder import bundled_folders
from sdm.models.joint import JointModel, join, members_of
from sdm.models.protocol import Model
from sdm.models.registry import list_models
from sdm.names import DomesticNameError, Resolution, TaxonTable, binomial, is_exact, listed, resolve_among

Outcome = Resolution | SpeciesNameError


Chosen = BundledModel | JointModel


def choose(queries: Sequence[str], *, as_group: bool = False) -> tuple[Chosen, list[Resolution]]:
    """The bundled model that knows all of some names best, or those of one space, and the taxa they stand for.

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
    for names in ([name] for name in tables):
        if found := _within(names, meanings):
            return found
    for names in _spaces():
        if found := _within(names, meanings):
            return found
    homes = ", ".join(f"{quoted(q)} ({' or '.join(options)})" for q, options in zip(queries, meanings, strict=True))
    raise RequestError(
        f"one call uses one model, but the names belong to several: {homes}; map them in separate calls."
    )


def _within(
    names: Sequence[str], meanings: Sequence[Mapping[str, Resolution]]
) -> tuple[Chosen, list[Resolution]] | None:
    """Those of some bundled models that know what all names mean, and what that is; None where they do not.

    `meanings`: of each name by model. The first model that knows a name answers.
    """
    homes = [next((name for name in names if name in options), None) for options in meanings]
    if None in homes:
        return None
    found = [options[home] for options, home in zip(meanings, homes, strict=True) if home is not None]
    return join(BundledModel.open(name) for name in names if name in homes), found


def _spaces() -> list[list[str]]:
    """The names of the bundled models, those that share their encoders together."""
    by_space: dict[str, list[str]] = {}
    for model in list_models():
        by_space.setdefault(model.space[1], []).append(model.name)
    return list(by_space.values())


def choose_for_most(queries: Sequence[str], *, as_group: bool = False) -> tuple[Chosen, list[Outcome]]:
    """The bundled model that knows most of some names, or those of one space, and the taxon of each, or its error.

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

    def weight(names: Sequence[str]) -> tuple[int, int]:
        found = (next((m[name] for name in names if name in m), None) for m in meanings if isinstance(m, dict))
        options = [resolution for resolution in found if resolution is not None]
        species = sum(r.known for r in options)
        groups = len(options) - species
        return (2 * species + groups, 0) if as_group else (species, groups)

    chosen = max(_spaces(), key=weight)
    outcomes = [_outcome(q, m, chosen, as_group) for q, m in zip(queries, meanings, strict=True)]
    used = {
        next(name for name in chosen if name in meaning)
        for meaning, outcome in zip(meanings, outcomes, strict=True)
        if isinstance(meaning, dict) and isinstance(outcome, Resolution)
    }
    return join(BundledModel.open(name) for name in [n for n in chosen if n in used] or chosen[:1]), outcomes


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
    own = [member.folder for member in members_of(model)]
    if name is None or own[0] not in folders.values():
        return outcome
    others = [other for other, folder in folders.items() if folder not in own and listed(folder, [name])]
    return _other_model_error(query, name, others, model.name) if others else outcome


def _listing_all(queries: Sequence[str]) -> tuple[Chosen, list[Resolution]] | None:
    """The first bundled model whose table lists all the names exactly as they are given, or models of one space.

    None where there are none.
    """
    folders = bundled_folders()
    names = [name for name in map(binomial, queries) if name is not None]
    if len(folders) == 1 or not names or len(names) < len(queries):
        return None
    found = {model: listed(folder, names) for model, folder in folders.items()}
    homes = [next((model for model in folders if name in found[model]), "") for name in names]
    if one := next((model for model in folders if found[model] == set(names)), ""):
        homes = [one] * len(names)
    if "" in homes:
        return None
    opened = {home: BundledModel.open(home) for home in folders if home in homes}
    if len({model.space[1] for model in opened.values()}) > 1:
        return None
    try:
        resolutions = [opened[home].resolve(query) for home, query in zip(homes, queries, strict=True)]
    except SpeciesNameError:
        return None
    return (join(opened.values()), resolutions) if all(map(is_exact, resolutions)) else None


def _tables() -> dict[str, TaxonTable]:
    """The tables of all bundled models, by name. Raises SpeciesNameError where there is none."""
    tables = {name: TaxonTable.load(folder) for name, folder in bundled_folders().items()}
    if not tables:
        raise SpeciesNameError("no bundled model is installed; give --model FOLDER.")
    return tables


def _outcome(
    query: str, meaning: dict[str, Resolution] | SpeciesNameError, chosen: Sequence[str], as_group: bool
) -> Outcome:
    if isinstance(meaning, SpeciesNameError):
        return meaning
    other = next(iter(meaning))
    model = next((name for name in chosen if name in meaning), other)
    if not (as_group or meaning[model].known):
        return refuse_group(meaning[model], model)
    if model in chosen:
        return meaning[model]
    return _other_model_error(query, meaning[other].taxon.label, list(meaning), " and ".join(chosen))


def _other_model_error(query: str, label: str, others: Sequence[str], chosen: str) -> SpeciesNameError:
    return SpeciesNameError(
        f"{quoted(query)} is known to model {' or '.join(others)} ({label}), but this run uses {chosen}; map it "
        f"separately with --model {others[0]}."
    )
