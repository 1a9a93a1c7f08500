"""Names, unit and provenance of a map, independent of its file format."""

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any

_VARIABLE = re.compile(r"[A-Za-z][A-Za-z0-9_]*\Z")
_TAKEN = {"x", "y", "spatial_ref", "month", "species"}


@dataclass(frozen=True)
class Band:
    """A further layer of a map, beside its values.

    Raises ValueError when `name` is not an identifier or `valid_range` is not increasing.
    """

    name: str
    """Short name: of the band, and of the Zarr variable."""

    quantity: str
    """Meaning of a pixel's value, as a sentence."""

    unit: str = "1"
    """Unit of the values; '1' for a pure number."""

    valid_range: tuple[float, float] = (0.0, 1.0)
    """Smallest and largest value a modelled pixel can have."""

    limit: float | None = None
    """Where the value is above this, the map is little to be trusted: hatched on the web map."""

    caution: str = ""
    """Why, as a clause: 'the environment is unlike that of the records'."""

    def __post_init__(self) -> None:
        _check(self.name, self.valid_range)


@dataclass(frozen=True)
class MapMetadata:
    """Names, unit and provenance of one map.

    Texts may be any Unicode: each writer escapes them for its format.

    Raises ValueError when `variable` is not an identifier or `valid_range` is not increasing.
    """

    title: str
    """Title of the map, usually the species."""

    quantity: str
    """Meaning of a pixel's value, as a phrase: 'Probability that the place lies in the range of Ursus arctos'."""

    description: str = ""
    """Method, limitations, how to cite."""

    variable: str = "probability"
    """Name of the Zarr variable: a letter, then letters, digits or underscores."""

    unit: str = "1"
    """Unit of the values; '1' for a pure number."""

    valid_range: tuple[float, float] = (0.0, 1.0)
    """Smallest and largest value a modelled pixel can have; also the ends of the colour ramp."""

    tags: Mapping[str, str] = field(default_factory=dict)
    """Provenance: species, resolved name, model, model hash, version, bbox, modalities, command..."""

    attribution: tuple[str, ...] = ()
    """Credit lines, one per data source and one for the model."""

    month: int = 0
    """Month of the map, 1 to 12; 0 for the whole year."""

    bands: tuple[Band, ...] = ()
    """Further layers, in order."""

    def __post_init__(self) -> None:
        _check(self.variable, self.valid_range)
        names = [self.variable, *(band.name for band in self.bands)]
        if len(set(names)) < len(names) or set(names[1:]) & _TAKEN:
            raise ValueError(f"bands {names[1:]!r} need names that no other layer or coordinate has")
        # A read-only copy: the caller's dictionary may change between two writers.
        tags = {str(key): str(value) for key, value in self.tags.items()}
        object.__setattr__(self, "tags", MappingProxyType(tags))
        object.__setattr__(self, "attribution", tuple(self.attribution))

    def __reduce__(self) -> tuple[Any, ...]:
        # A mapping proxy cannot be pickled, and Dask sends metadata to its workers.
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return _from_values, (values | {"tags": dict(self.tags)},)


def _check(variable: str, valid_range: tuple[float, float]) -> None:
    if not _VARIABLE.match(variable):
        raise ValueError(f"variable {variable!r} must be a letter, then letters, digits or '_'")
    low, high = valid_range
    if not low < high:
        raise ValueError(f"valid_range {valid_range!r} must increase")


def _from_values(values: dict[str, Any]) -> MapMetadata:
    return MapMetadata(**values)


def one_line(text: object) -> str:
    """Text without line breaks, control and format characters or lone surrogates, fit for any UTF-8 medium.

    Format characters are those without a shape: marks of direction, which can make a text read as another, joiners,
    soft hyphens, zero-width spaces.
    """
    valid = str(text).encode("utf-8", "replace").decode("utf-8")
    return " ".join(_visible(valid, " ").split())


def without_marks(text: str) -> str:
    """Text without format characters; line breaks stay."""
    return _visible(text, None)


def _visible(text: str, control: str | None) -> str:
    """Text without format characters, and with `control` in place of each control character, if given."""
    if text.isprintable():
        return text
    instead = {"Cf": "", **({} if control is None else {"Cc": control})}
    return "".join(instead.get(unicodedata.category(character), character) for character in text)
