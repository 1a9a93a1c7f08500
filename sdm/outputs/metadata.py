"""What a map says about itself, independent of the file format it ends up in."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_VARIABLE = re.compile(r"[A-Za-z][A-Za-z0-9_]*\Z")


@dataclass(frozen=True)
class MapMetadata:
    """Names, unit and provenance of one map.

    Texts are kept as given (any Unicode): each writer makes them safe for its own medium.

    Raises ValueError when `variable` is not an identifier or `valid_range` is not increasing.
    """

    title: str
    """Short name shown as the title of the map, usually the species."""

    quantity: str
    """What a pixel holds, as a phrase: 'Probability that the place lies in the range of Ursus arctos'."""

    description: str = ""
    """Longer explanation: method, caveats, how to cite."""

    variable: str = "probability"
    """Name of the Zarr variable: a letter, then letters, digits or underscores."""

    unit: str = "1"
    """Unit of the values; '1' for a pure number."""

    valid_range: tuple[float, float] = (0.0, 1.0)
    """Smallest and largest value a modelled pixel can have; also the ends of the colour ramp."""

    tags: Mapping[str, str] = field(default_factory=dict)
    """Provenance: species, resolved name, model, model hash, version, bbox, modalities, command..."""

    attribution: tuple[str, ...] = ()
    """One credit line per data source, and for the model."""

    month: int = 0
    """The month it is a map of, 1 to 12; 0: of the whole year, or no month in particular."""

    def __post_init__(self) -> None:
        if not _VARIABLE.match(self.variable):
            raise ValueError(f"variable {self.variable!r} must be a letter, then letters, digits or '_'")
        low, high = self.valid_range
        if not low < high:
            raise ValueError(f"valid_range {self.valid_range!r} must increase")
        # A read-only copy: the caller's dictionary may change after the first writer has used it.
        tags = {str(key): str(value) for key, value in self.tags.items()}
        object.__setattr__(self, "tags", MappingProxyType(tags))
        object.__setattr__(self, "attribution", tuple(self.attribution))

    def __reduce__(self):
        # A mapping proxy cannot be pickled, and Dask ships metadata to its workers.
        return _rebuild, (
            self.title, self.quantity, self.description, self.variable, self.unit, self.valid_range,
            dict(self.tags), self.attribution, self.month,
        )  # fmt: skip


def _rebuild(*fields: object) -> MapMetadata:
    return MapMetadata(*fields)


def one_line(text: object) -> str:
    """Text without line breaks, control characters or lone surrogates, fit for any UTF-8 medium."""
    valid = str(text).encode("utf-8", "replace").decode("utf-8")
    return " ".join(_CONTROL.sub(" ", valid).split())
