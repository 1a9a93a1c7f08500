"""Reading the tables of a TOML recipe into their settings classes, with errors that name the recipe and the key."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import MISSING, fields
from math import isfinite
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from sdm.errors import RequestError
from sdm.files.toml import read_toml
from sdm.training.recipe.limits import violated_limit
from sdm.training.recipe.sections import BindingSettings, TrainerSettings

Section = TypeVar("Section")
TYPE_NAMES = {str: "a text", int: "a whole number", float: "a number", bool: "true or false", dict: "a table"}


class RecipeFile:
    """One recipe file; every method raises RequestError naming the file."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def load(self) -> dict[str, Any]:
        """Its TOML document."""
        return read_toml(self.path, "recipe")

    def error(self, message: str) -> RequestError:
        """An error about this file."""
        return RequestError(f"recipe {str(self.path)!r}: {message}")

    def section(self, place: str, raw: dict[str, Any], kind: type[Section]) -> Section:
        """A table as an instance of its settings class; `place` says in messages where it stands."""
        types = get_type_hints(kind)
        known = {f.name: f for f in fields(kind)}  # type: ignore[arg-type]  # every `kind` is a dataclass
        self.refuse_unknown(place, raw, set(known))
        values = {}
        for key, value in raw.items():
            values[key] = typed = self.typed(f"{place} {key}", value, types[key])
            for number in typed if isinstance(typed, tuple) else (typed,):
                if isinstance(number, int | float) and (rule := violated_limit(key, number)):
                    raise self.error(f"{place} {key} = {value!r} must be {rule}.")
        for key, item in known.items():
            if key not in values and item.default is MISSING and item.default_factory is MISSING:
                raise self.error(f"{place} needs the key {key!r}.")
        return kind(**values)

    def typed(self, place: str, value: Any, wanted: Any) -> Any:
        """A value of the type of its key: TOML integers are taken for floats, lists for tuples."""
        origin = get_origin(wanted) or wanted
        if origin is tuple and isinstance(value, list):
            inner, *more = get_args(wanted)
            if more and more[-1] is not Ellipsis and len(value) != 1 + len(more):
                raise self.error(f"{place} = {value!r} must be a list of {1 + len(more)}.")
            return tuple(self.typed(place, v, inner) for v in value)
        if isinstance(value, float) and not isfinite(value):
            raise self.error(f"{place} = {value!r} must be a finite number.")
        if origin is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        allowed = get_args(wanted) if isinstance(wanted, UnionType) else origin
        if not isinstance(value, allowed) or (isinstance(value, bool) and origin is not bool):
            raise self.error(f"{place} = {value!r} must be {TYPE_NAMES.get(origin, 'a list')}.")
        return value

    def table(self, key: str, value: Any) -> dict[str, Any]:
        """The value of a top-level key, which must be a table."""
        if not isinstance(value, dict):
            raise self.error(f"{key!r} must be a table, [{key}].")
        return value

    def refuse_unknown(self, place: str, raw: dict[str, Any], known: set[str]) -> None:
        """Raise for a key that is not known; `place` "" is the top of the file."""
        unknown = sorted(set(raw) - known)
        if unknown:
            names = ", ".join(sorted(known))
            raise self.error(f"{place or 'the top'} has the unknown key {unknown[0]!r}; known: {names}.")

    def check_name(self, name: str) -> None:
        """Raise for a name that is not a plain file name: folders are named after it."""
        if not name.isprintable() or set(name) & set("/\\:") or not name.strip(". "):
            raise self.error(f"name = {name!r} must be a plain file name.")

    def check_sections(self, optimiser: TrainerSettings, binding: BindingSettings | None) -> None:
        """Raise for impossible values of [optimiser] and [binding], in either kind of recipe."""
        with self.in_section("optimiser"):
            optimiser.check()
            if binding and optimiser.batch < 2:
                raise RequestError("batch is 1, which leaves no other pair to compare with; give 2 or more.")
        with self.in_section("binding"):
            if binding:
                binding.check()

    @contextmanager
    def in_section(self, section: str) -> Iterator[None]:
        """Within this context a RequestError is completed by the file and the section it is about."""
        try:
            yield
        except RequestError as error:
            raise self.error(f"[{section}] {error}") from None
