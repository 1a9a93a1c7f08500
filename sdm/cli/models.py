"""`sdm models`, and the options of `taxabind-map` that list models and search names."""

from __future__ import annotations

import typer

from sdm.cli.app import printable, sdm_app


def print_models(asked: bool) -> None:
    """Print the bundled models and stop, if asked."""
    if not asked:
        return
    from sdm.model import list_models

    for model in list_models():
        config = model.config
        groups: dict[str, int] = {}
        for taxon in model.taxa:
            groups[taxon.group] = groups.get(taxon.group, 0) + 1
        species = ", ".join(f"{n:,} {g}s" for g, n in sorted(groups.items(), key=lambda item: -item[1]))
        print(f"{model.name}  version {config.get('version', '?')}  {config.get('licence', '')}")
        print(f"  {config.get('title', '')}: {species}")
        print(f"  modalities {', '.join(config.get('modalities', []))}; hash {model.digest}; {model.folder}")
    raise typer.Exit()


def search_names(text: str | None) -> None:
    """Print the species that match and stop; raises SpeciesNameError when none does."""
    if text is None:
        return
    from sdm.model import list_models

    found = False
    for model in list_models():
        for taxon in model.taxa.search(text):
            found = True
            print(printable(f"{taxon.label}  [{model.name}]"))
    if not found:
        from sdm.errors import SpeciesNameError

        raise SpeciesNameError(f"no species of any bundled model matches {text[:80]!r}; try part of the name.")
    raise typer.Exit()


@sdm_app.command("models")
def models_command() -> None:
    """List the bundled models."""
    print_models(True)
