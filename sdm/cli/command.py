"""Programs and commands whose usage errors are one sentence, as all others are.

A command also refuses an option that is given twice, takes the numbers of a box with commas between them, and lets an
option of the command line replace those of `--config` that exclude it.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from sdm.errors import RequestError, SdmError, quoted
from sdm.request.parts import EXCLUSIVE

# Typer keeps its own copy of click in some releases, and uses click in others.
UsageError: Any = typer.BadParameter.__mro__[1]

_HINTS = {
    "-o": "the output is --out",
    "-f": "the formats are --format",
    "-s": "a list of species is --species",
    "-b": "a box is --bbox",
}
_CONFIG, _GIVEN = "sdm.config", "sdm.given"


def note_config(context: typer.Context, path: object, keys: dict[str, str]) -> None:
    """Remember which parameters, by name, have their values from which keys of a config file."""
    context.meta[_CONFIG] = (str(path), keys)


def numbers(text: str, count: int, name: str) -> list[str]:
    """The values that stand in one word, with commas, semicolons or spaces between. Raises RequestError."""
    parts = [part for part in re.split(r"[,;\s]+", text.strip("[]() ")) if part]
    if len(parts) != count:
        raise RequestError(f"{name} {quoted(text)} has {len(parts)} values; give {count}, for example 5 44 12 48.")
    return parts


class Command(TyperCommand):
    """A command of a program."""

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """As of click, with one sentence for what cannot be parsed. Raises RequestError."""
        with _sentences():
            return super().make_context(info_name, args, parent, **extra)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As of click. Raises RequestError for an option given twice."""
        try:
            if not ctx.resilient_parsing:
                args = self._split_values(ctx, args)
                ctx.meta[_GIVEN] = self._given(ctx, args)
            return super().parse_args(ctx, args)
        except UsageError as error:
            error.ctx = error.ctx or ctx
            raise

    def _split_values(self, ctx: typer.Context, args: list[str]) -> list[str]:
        """Words that hold all values of an option, such as -125,31,-102,49, as a word for each."""
        counts = {o: p.nargs for p in self.get_params(ctx) if p.nargs > 1 for o in p.opts}
        out: list[str] = []
        for word in args:
            name, joined, value = word.partition("=")
            if joined and name in counts:
                out += [name, *numbers(value, counts[name], name)]
            elif out and out[-1] in counts and re.search(r"[\d\s][,;\s]+[-\d]", word):
                out += numbers(word, counts[out[-1]], out[-1])
            else:
                out.append(word)
        return out

    def _given(self, ctx: typer.Context, args: list[str]) -> set[str]:
        """The names of the parameters on the command line. Raises RequestError for one that is there twice."""
        values, _, order = self.make_parser(ctx).parse_args(list(args))
        for parameter, times in Counter(order).items():
            single = parameter.param_type_name == "option" and not getattr(parameter, "multiple", False)
            if times > 1 and single and not getattr(parameter, "is_flag", False):
                raise RequestError(f"{parameter.opts[0]} is given {times} times; give it once.")
        # Arguments are in the order of a command line that has none of them, too.
        return {parameter.name for parameter in order if values.get(parameter.name)}

    def invoke(self, ctx: Any) -> Any:
        """As of click, with the name of the config file and the key in an error that a value of it caused."""
        path, keys = ctx.meta.get(_CONFIG, ("", {}))
        given = ctx.meta.get(_GIVEN, set())
        for groups in EXCLUSIVE:
            chosen = [group for group in groups if group & given]
            for name in set().union(*groups).difference(*chosen) & set(keys) if chosen else ():
                ctx.params[name] = None
        from_file = {key: ctx.params[name] for name, key in keys.items() if name not in given and ctx.params.get(name)}
        try:
            with _sentences():
                return super().invoke(ctx)
        except SdmError as error:
            if key := _culprit(str(error), from_file):
                error.args = (f"config {path!r}, key {key!r}: {error}",)
            raise


def _culprit(message: str, values: dict[str, Any]) -> str | None:
    """The key of the one value of a config file that a message is about."""
    words = f" {re.sub(r'[^a-z0-9]+', ' ', message.lower())} "
    shown = [
        key
        for key, value in values.items()
        for text in [" ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)]
        if f" {re.sub('[-_]', ' ', key.lower())} " in words or (len(text) > 2 and text in message)
    ]
    return shown[0] if len(shown) == 1 else None


class Group(TyperGroup):
    """A group of commands."""

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """As of click, with one sentence for what cannot be parsed. Raises RequestError."""
        with _sentences():
            return super().make_context(info_name, args, parent, **extra)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """As of click. Raises RequestError for an unknown command."""
        with _sentences():
            return super().resolve_command(ctx, args)


class Program(typer.Typer):
    """A program, or a group of commands, of `Command` and `Group`."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(cls=Group, **settings)

    def command(self, name: str | None = None, **settings: Any) -> Callable[..., Any]:
        """As of typer."""
        return super().command(name, cls=settings.pop("cls", Command), **settings)


@contextmanager
def _sentences() -> Iterator[None]:
    """Turn a usage error into RequestError, except the one that asks for help to be shown."""
    try:
        yield
    except UsageError as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            raise
        raise RequestError(_sentence(error)) from None


def _sentence(error: Any) -> str:
    """A usage error of click in one sentence: value, rule, remedy."""
    context = error.ctx
    program = context.command_path if context else "--help"
    see = f"{program} --help lists the options" if context else "see --help"
    kind = type(error).__name__
    if kind == "NoSuchOption":
        flags = [flag for p in context.command.get_params(context) for flag in p.opts] if context else []
        near = difflib.get_close_matches(error.option_name, flags, 1, 0.7)
        hint = _HINTS.get(error.option_name, "")
        if hint and f"--{hint.rpartition('--')[2]}" in flags:
            return f"there is no option {error.option_name}; {hint}."
        return f"there is no option {error.option_name}; {f'did you mean {near[0]}?' if near else f'{see}.'}"
    if kind == "BadOptionUsage":
        parameter = _parameter(context, error.option_name)
        return f"{error.option_name} needs {_values(parameter) or 'a value'} after it; {see}."
    if kind == "MissingParameter":
        parameter = error.param
        return f"{_name(parameter)} is missing; {f'give {_values(parameter)}; ' if _values(parameter) else ''}{see}."
    if getattr(error, "param", None) is not None:
        return _of_value(error, see)
    text = error.format_message().strip()
    if text.startswith("No such command"):
        see = f"{program} --help lists the commands"
    return f"{text[:1].lower()}{text[1:].rstrip('.')}; {see}."


def _of_value(error: Any, see: str) -> str:
    """A value that is of another type than its option, or out of its limits."""
    parameter, reason, value = error.param, error.message.strip().rstrip("."), None
    cause = error.__cause__ or error.__context__
    details = cause.errors()[0] if hasattr(cause, "errors") else {}
    limits = details.get("ctx", {})
    rules = {
        "float_parsing": "is not a number",
        "int_parsing": "is not a whole number",
        "int_from_float": "is not a whole number",
        "greater_than_equal": f"is less than {limits.get('ge')}, the least it can be",
        "less_than_equal": f"is more than {limits.get('le')}, the most it can be",
    }
    rule = rules.get(details.get("type", ""))
    if rule:
        value = details.get("input")
    words = f"{quoted(value)} {rule}" if rule else f"is not valid: {reason.removeprefix('Value error, ')}"
    context = error.ctx
    path, keys = context.meta.get(_CONFIG, ("", {})) if context else ("", {})
    from_file = parameter.name in keys and parameter.name not in context.meta.get(_GIVEN, set())
    name = f"config {path!r}, key {keys[parameter.name]!r}:" if from_file else _name(parameter)
    return f"{name} {words}; {f'give {_values(parameter)}' if _values(parameter) else see}."


def _parameter(context: Any, flag: str) -> Any:
    return next((p for p in context.command.get_params(context) if flag in p.opts), None) if context else None


def _name(parameter: Any) -> str:
    return parameter.opts[0] if parameter.param_type_name == "option" else str(parameter.name).upper()


def _values(parameter: Any) -> str:
    """What an option takes, such as WEST SOUTH EAST NORTH; "" where its help says no more than its type."""
    metavar = getattr(parameter, "metavar", None)
    return str(metavar) if metavar else "" if parameter is None or parameter.nargs == 1 else f"{parameter.nargs} values"
