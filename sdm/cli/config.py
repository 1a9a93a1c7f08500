"""`--config`: defaults of options from a TOML file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from sdm.cli.command import note_config, numbers
from sdm.errors import RequestError


def read_config(context: typer.Context, path: Path | None) -> Path | None:
    """Take defaults from a TOML file; options on the command line take precedence. Raises RequestError."""
    if path is None:
        return None
    from sdm.files.toml import read_toml

    values = read_toml(path, "config")
    parameters = _parameters(context)
    defaults: dict[str, Any] = {}
    keys: dict[str, str] = {}
    for key, value in values.items():
        parameter = parameters.get(key.replace("_", "-"))
        if parameter is None or parameter.name is None:
            raise RequestError(
                f"config {str(path)!r} has the unknown key {key!r}; known: {', '.join(sorted(parameters))}."
            )
        defaults[parameter.name] = _as_given(parameter, value, f"config {str(path)!r}, key {key!r}:")
        keys[parameter.name] = key
    note_config(context, path, keys)
    context.default_map = {**(context.default_map or {}), **defaults}
    return path


def _parameters(context: typer.Context) -> dict[str, Any]:
    """The parameters of the command by their keys: the long names of options, and the names of arguments.

    Not those that act before the others are read, such as --version, or are not of the command, such as
    --install-completion.
    """
    parameters = [p for p in context.command.params if not p.is_eager and p.expose_value]
    options = {flag.removeprefix("--"): p for p in parameters for flag in p.opts if flag.startswith("--")}
    # The argument `species` and the option --species: in a file, the names themselves.
    arguments = {p.name: p for p in parameters if p.name and p.param_type_name == "argument"}
    return {**options, **arguments}


def _as_given(parameter: Any, value: Any, name: str) -> Any:
    """A value as the command line would have it: several values as a list, any other list joined by commas."""
    if parameter.nargs > 1:
        return numbers(value if isinstance(value, str) else ",".join(map(str, value)), parameter.nargs, name)
    several = parameter.nargs != 1 or getattr(parameter, "multiple", False)
    if several:
        return [value] if isinstance(value, str) else value
    return ",".join(map(str, value)) if isinstance(value, list) else value
