"""Declaration of options: once each, on a field of a frozen dataclass.

The field's annotation says what the option is, and how a command line shows it::

    step: Annotated[int | None, Option("Encode every n-th pixel.", panel="Model")] = None

From that one line come the check of its value, the option of the commands (`sdm.cli.options`), the key of a TOML
file, the entry of a report, and a part of the identity of what was computed (`Options.to_dict`).
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Self

from sdm.errors import RequestError


@dataclass(frozen=True)
class Option:
    """The help, heading and limits of a command-line option; it has the name of the field, with `-` for `_`."""

    help: str
    panel: str | None = None
    """Heading in the help text."""
    metavar: str | None = None
    flags: tuple[str, ...] = ()
    """Names on the command line, where they are not the field's. A switch that is off needs no `--no-` name."""
    low: float | None = None
    high: float | None = None
    kind: Any = None
    """Type on the command line, where it is not the field's: one that a word can be turned into."""
    argument: bool = False
    """Given by its position, without a name."""
    callback: Callable[..., Any] | None = None
    """Called with the value before any other option is read, as `--version` needs."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """A group of options; subclasses check their values when they are made."""

    def to_dict(self) -> dict[str, Any]:
        """The values by their names, as JSON values."""
        return {f.name: _plain(getattr(self, f.name)) for f in fields(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The options among `values`, which may hold others too. Raises RequestError for a value."""
        return cls(**{f.name: values[f.name] for f in fields(cls) if f.name in values})

    def _set(self, **values: Any) -> None:
        """Replace values by what they mean; for `__post_init__`."""
        for name, value in values.items():
            object.__setattr__(self, name, value)


class Composed:
    """A request that consists of several `Options`, which users give side by side.

    A subclass is a frozen dataclass; `parts` names its fields that are `Options`.
    """

    parts: ClassVar[dict[str, type[Options]]]

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """The options one may give, and after them the fields that are no `Options`."""
        inner = [f.name for part in cls.parts.values() for f in fields(part)]
        return (*inner, *(f.name for f in fields(cls) if f.name not in cls.parts))  # type: ignore[arg-type]

    @classmethod
    def of(cls, **options: Any) -> Self:
        """From options by their names. Raises TypeError for an unknown one, RequestError for a wrong value."""
        unknown = [name for name in options if name not in cls.names()]
        if unknown:
            raise TypeError(f"{unknown[0]!r} is not an option; choose any of {', '.join(cls.names())}")
        own = {f.name: options[f.name] for f in fields(cls) if f.name in options and f.name not in cls.parts}  # type: ignore[arg-type]
        return cls(**{name: part.from_dict(options) for name, part in cls.parts.items()}, **own)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """From what `to_dict` returned. Raises as `of`."""
        return cls.of(**values)

    def to_dict(self) -> dict[str, Any]:
        """All options by their names, as JSON values."""
        own = [f.name for f in fields(self) if f.name not in self.parts]  # type: ignore[arg-type]
        values: dict[str, Any] = {}
        for name in self.parts:
            values |= getattr(self, name).to_dict()
        return values | {name: _plain(getattr(self, name)) for name in own}


def whole_number(name: str, value: Any, low: int | None = None, high: int | None = None, unit: str = "") -> None:
    """Raise RequestError unless an option is a whole number, and within its bounds."""
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool):
        raise RequestError(f"{name} {value!r} must be a whole number.")
    if (low is not None and number < low) or (high is not None and number > high):
        raise RequestError(f"{name} {number} is outside {low}..{high}{unit}.")


def several(value: Any) -> tuple[str, ...]:
    """One or several paths or words, as text; none for None."""
    if value is None:
        return ()
    return (str(value),) if isinstance(value, str | Path) else tuple(str(v) for v in value)


def _plain(value: Any) -> Any:
    """A value as JSON has it; what only Python has is named by its kind."""
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "as_tuple"):
        return list(value.as_tuple())
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    # An opened model or index is known by its name, any other object is a geometry.
    name = getattr(value, "name", None) or getattr(value, "url", None)
    return str(name) if name is not None else "geometry"
