"""Options that are one or several of some words: modalities, formats, device."""

from __future__ import annotations

from collections.abc import Sequence

from sdm.errors import RequestError

MODALITIES = ("location", "satellite", "environment")
"""In the order in which their embeddings are added."""


def parse_modalities(text: str | list[str] | tuple[str, ...]) -> tuple[str, ...]:
    """ "location,environment" -> ("location", "environment"), in canonical order.

    Raises RequestError for an unknown, repeated or empty list.
    """
    names = [n.strip().lower() for n in (text.split(",") if isinstance(text, str) else text)]
    for name in names:
        if name not in MODALITIES:
            raise RequestError(f"modality {name!r} is not known; choose any of {', '.join(MODALITIES)}.")
    if not names:
        raise RequestError(f"no modality is given; choose any of {', '.join(MODALITIES)}.")
    if len(set(names)) != len(names):
        raise RequestError(f"modalities {','.join(names)!r} name one twice.")
    return tuple(m for m in MODALITIES if m in names)


def parse_device(device: str) -> str:
    """A device by name: auto, cpu, cuda or cuda:N. Raises RequestError for anything else.

    Whether it exists is for the process to say that computes: see `local_device`.
    """
    if device in ("auto", "cpu", "cuda"):
        return device
    kind, _, number = device.partition(":") if isinstance(device, str) else ("", "", "")
    if kind != "cuda" or not (number.isascii() and number.isdigit()):
        raise RequestError(f"device {device!r} is not known; choose auto, cpu, cuda or cuda:N.")
    return device


FORMATS = ("cog", "zarr", "html")


def parse_formats(formats: str | Sequence[str]) -> tuple[str, ...]:
    """ "cog,html" -> ("cog", "html"); raises RequestError for anything else than cog, zarr and html."""
    names = [f.strip().lower() for f in (formats.split(",") if isinstance(formats, str) else formats)]
    for name in names:
        if name not in FORMATS:
            raise RequestError(f"format {name!r} is not known; choose any of {', '.join(FORMATS)}.")
    if not names:
        raise RequestError(f"no format given; choose any of {', '.join(FORMATS)}.")
    return tuple(f for f in FORMATS if f in names)
