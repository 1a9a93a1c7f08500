"""Options whose values are words: modalities, formats, masks, scores, devices."""

from __future__ import annotations

from collections.abc import Sequence

from sdm.errors import RequestError

MODALITIES = ("location", "satellite", "environment")
"""In the order in which their embeddings are added."""
FORMATS = ("cog", "zarr", "zarr3", "html", "stac")
USUAL_FORMATS = ("cog", "zarr", "html")
"""Those written where none are asked for."""
SIZES = {"cog": 1.4, "zarr": 1.0, "zarr3": 1.4, "html": 0.3, "stac": 0.0}
"""Size of a format at most, as a multiple of four bytes a pixel."""
MASKS = ("land", "sea", "none")
"""Pixels that are kept: land without lakes, sea with lakes, or both."""
LAND_SHARE = 0.1
"""Share of a pixel that must be land for a map of land to show it; of a map of the sea, sea or lake."""
MASKS_OF_A_MAP = (*MASKS, "auto")
"""auto: by the habitat of the species."""
ORIGINS = ("native", "all")
"""Ranges of a species: the native one, or all of it, introduced populations included."""
LIMITS = ("auto", "none")
"""Limits of species that the model does not know."""
UNCOVERED = ("show", "hide")
"""Pixels in areas without reliable training data."""
SCORES = ("auto", "probability", "relative", "cosine")
"""Scores of a map; auto: probability where the model is calibrated, else relative."""
ATLAS = ("prior", "none")
"""What maps of species with small ranges take from the atlas that their model was trained on."""
ENCODINGS = ("int8", "float16")
"""Number formats of the embeddings in an index."""


def parse_modalities(text: str | Sequence[str]) -> tuple[str, ...]:
    """ "location,environment" -> ("location", "environment"), in canonical order.

    Raises RequestError for an unknown, repeated or empty list.
    """
    names = [n.strip().lower() for n in (text.split(",") if isinstance(text, str) else text)]
    for name in names:
        if name not in MODALITIES:
            raise RequestError(f"modality {name!r} is not known; choose any of {', '.join(MODALITIES)}.")
    if not names:
        raise RequestError(f"no modality is given; choose any of {', '.join(MODALITIES)}.")
    repeated = [n for k, n in enumerate(names) if n in names[:k]]
    if repeated:
        raise RequestError(f"modality {repeated[0]!r} is given twice; give each once.")
    return tuple(m for m in MODALITIES if m in names)


def parse_formats(formats: str | Sequence[str]) -> tuple[str, ...]:
    """ "cog,html" -> ("cog", "html"), in canonical order. Raises RequestError for an unknown or empty list."""
    names = [f.strip().lower() for f in (formats.split(",") if isinstance(formats, str) else formats)]
    for name in names:
        if name not in FORMATS:
            raise RequestError(f"format {name!r} is not known; choose any of {', '.join(FORMATS)}.")
    if not names:
        raise RequestError(f"no format given; choose any of {', '.join(FORMATS)}.")
    return tuple(f for f in FORMATS if f in names)


def parse_device(device: str) -> str:
    """A device by name: auto, cpu, cuda or cuda:N. Raises RequestError for anything else.

    Whether the device exists is checked where it is used: see `sdm.models.device.local_device`.
    """
    if device in ("auto", "cpu", "cuda"):
        return device
    kind, _, number = device.partition(":") if isinstance(device, str) else ("", "", "")
    if kind != "cuda" or not (number.isascii() and number.isdigit()):
        raise RequestError(f"device {device!r} is not known; choose auto, cpu, cuda or cuda:N.")
    return device


def parse_word(name: str, value: str, words: Sequence[str]) -> str:
    """One of some words. Raises RequestError for any other value of the option `name`."""
    if value not in words:
        raise RequestError(f"{name} {str(value)[:40]!r} is not known; choose one of {', '.join(words)}.")
    return value
