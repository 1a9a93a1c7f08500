"""Commands whose options are fields of dataclasses: their signature is made from the declarations in `sdm.request`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import MISSING, dataclass, fields, replace
from functools import update_wrapper
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer

from sdm.request.options import Composed, Option

Command = Callable[..., None]


@dataclass(frozen=True)
class Change:
    """The help text or default of one command for an option that it shares with others."""

    help: str | None = None
    default: Any = ...
    """Ellipsis: the default of the field."""


def takes_options(
    *,
    leave_out: Collection[str] = (),
    panels: Collection[str] | None = None,
    changes: Mapping[str, Change] | None = None,
) -> Callable[[Command], Command]:
    """Turn a function of `Options` into a command, with one parameter for each of their fields.

    The function names its groups of options, or requests composed of them, by its annotations::

        @app.command()
        @takes_options(leave_out=["max_pixels"])
        def area_command(area: Area, execution: Execution) -> None: ...

    `leave_out`: fields without an option, which keep their default. `panels`: the headings to use (None: all); other
    options have no heading. `changes`: by field, the help text or default of this command.
    """

    def decorate(function: Command) -> Command:
        groups: dict[str, type] = {n: t for n, t in get_type_hints(function).items() if n != "return"}
        parameters: dict[str, inspect.Parameter] = {}
        for part in (part for group in groups.values() for part in _parts(group)):
            names = _names(part, leave_out)
            for parameter in _parameters(part, names, panels, changes or {}):
                if parameter.name in parameters:
                    raise TypeError(f"{function.__name__} has two options named {parameter.name!r}")
                parameters[parameter.name] = parameter

        def command(**values: Any) -> None:
            function(**{name: _build(group, values, leave_out) for name, group in groups.items()})

        update_wrapper(command, function, updated=())
        # What typer reads; the parameters of the wrapped function are the groups.
        vars(command)["__signature__"] = inspect.Signature(list(parameters.values()))
        command.__annotations__ = {p.name: p.annotation for p in parameters.values()}
        return command

    return decorate


def _parts(group: type) -> list[type]:
    """The dataclasses whose fields are options: a group itself, or what a request is composed of."""
    return [*group.parts.values(), group] if issubclass(group, Composed) else [group]


def _names(group: type, leave_out: Collection[str]) -> list[str]:
    """The fields of a group itself that are options."""
    parts = group.parts if issubclass(group, Composed) else {}
    return [f.name for f in fields(group) if f.name not in leave_out and f.name not in parts]


def _build(group: type, values: Mapping[str, Any], leave_out: Collection[str]) -> Any:
    # None stands for an option that was not given, whatever the default of its field.
    own = {name: values[name] for name in _names(group, leave_out) if values[name] is not None}
    parts = group.parts if issubclass(group, Composed) else {}
    return group(**{name: _build(part, values, leave_out) for name, part in parts.items()}, **own)


def _parameters(
    group: type, names: list[str], panels: Collection[str] | None, changes: Mapping[str, Change]
) -> list[inspect.Parameter]:
    """The parameters of a command for the fields of a group."""
    hints = get_type_hints(group, include_extras=True)
    parameters = []
    for declared in fields(group):
        if declared.name not in names:
            continue
        annotated, option = get_args(hints[declared.name])
        change = changes.get(declared.name, Change())
        if change.help is not None:
            option = replace(option, help=change.help)
        if panels is not None and option.panel not in panels:
            option = replace(option, panel=None)
        default = declared.default if change.default is ... else change.default
        parameters.append(_parameter(declared.name, option, _kind(annotated, option), default))
    return parameters


def _kind(annotated: Any, option: Option) -> Any:
    """The type that a word of the command line is turned into."""
    if option.kind is not None:
        return option.kind
    # Several values arrive as a list.
    return list[str] if get_origin(annotated) is tuple and get_args(annotated) == (str, ...) else annotated


def _parameter(name: str, option: Option, kind: Any, default: Any) -> inspect.Parameter:
    optional = default is None or default == ()
    common: dict[str, Any] = {
        "help": option.help,
        "metavar": option.metavar,
        "rich_help_panel": option.panel,
        "show_default": not optional,
        "min": option.low,
        "max": option.high,
    }
    if option.argument:
        info = typer.Argument(**common)
    else:
        flags = option.flags or ((f"--{name.replace('_', '-')}",) if kind is bool and default is False else ())
        info = typer.Option(*flags, **common, callback=option.callback, is_eager=option.callback is not None)
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=inspect.Parameter.empty if default is MISSING else None if optional else default,
        annotation=Annotated[kind | None if optional else kind, info],
    )
