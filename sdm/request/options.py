"""Declaration of options: once each, on a field of a frozen dataclass.

The field's annotation says what the option is, and how a command line shows it::

    step: Annotated[int | None, Option("Encode every n-th pixel.", panel="Model")] = None

From that one line come the limits of its value, the option of the commands (`sdm.cli.options`), the key of a TOML
file, the entry of a report, and a part of the identity of what was computed (`Options.to_dict`). Other checks are in
`__post_init__` of the group.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from typing import Any, ClassVar, Self, get_args, get_type_hints

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
    """Least value, checked on the command line and in Python."""
    high: float | None = None
    """Largest value."""
    kind: Any = None
    """Type on the command line, where it is not the field's: one that a word can be turned into."""
    argument: bool = False
    """Given by its position, without a name."""
    callback: Callable[..., Any] | None = None
    """Called with the value before any other option is read, as `--version` needs."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """A group of options; their values are checked when it is made.

    `__post_init__` of a subclass need not call that of `Options`: the limits are checked after it.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        own = cls.__dict__.get("__post_init__")
        if own is None:
            return

        @wraps(own)
        def checked(self: Options) -> None:
            own(self)
            Options.__post_init__(self)

        cls.__post_init__ = checked  # type: ignore[method-assign]

    def __post_init__(self) -> None:
        for name, option in _limited(type(self)).items():
            _check_limits(name, getattr(self, name), option)

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


_limits: dict[type, dict[str, Option]] = {}


def _limited(group: type[Options]) -> dict[str, Option]:
    """The options of a group that have limits, by their fields."""
    if group not in _limits:  # reading type hints takes longer than all other checks
        hints = get_type_hints(group, include_extras=True)
        declared = {f.name: part for f in fields(group) for part in get_args(hints[f.name]) if isinstance(part, Option)}
        _limits[group] = {n: o for n, o in declared.items() if o.low is not None or o.high is not None}
    return _limits[group]


def _check_limits(name: str, value: Any, option: Option) -> None:
    """Raise RequestError unless a value, if there is one, is a number within the limits of its option."""
    if value is None:
        return
    low, high = option.low, option.high
    try:
        # NaN is within no limits.
        within = (low is None or value >= low) and (high is None or value <= high)
    except TypeError:
        raise RequestError(f"{name} {str(value)[:40]!r} is not a number.") from None
    if within:
        return
    if low is None or high is None:
        raise RequestError(f"{name} {value} must be {f'at least {low:g}' if high is None else f'at most {high:g}'}.")
    raise RequestError(f"{name} {value} is outside {low:g}..{high:g}.")


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
