"""The index page of a batch: an image of every map, a search box, sorting, links to the files.

The page contains texts and numbers only; the images are in a folder beside it and are loaded when they
scroll into view. Its content security policy allows its own script and images beside it, nothing else.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from sdm.files.atomic import disk_errors
from sdm.outputs.escape import html_text, relative_link, script_value
from sdm.outputs.metadata import one_line
from sdm.outputs.style import RAMP

SIZE = 240
"""Largest side of an image in pixels."""


@dataclass(frozen=True)
class Card:
    """One map on the page."""

    name: str
    picture: str
    """Image file beside the page."""
    common: str = ""
    also: str = ""
    """More words to search by: the requested name, the family."""
    badge: str = ""
    """A remark on the card, such as that the map is of a genus."""
    numbers: Mapping[str, float | None] = field(default_factory=dict)
    """area, expected (km2) and max: displayed and used for sorting."""
    links: Mapping[str, str] = field(default_factory=dict)
    """Label to file beside the page."""


def stride(shape: tuple[int, int]) -> int:
    """Step in pixels at which a map of shape (y, x) is sampled for its image."""
    return -(-max(shape) // SIZE)


def write_index(
    path: Path,
    title: str,
    paragraphs: Sequence[str],
    cards: Sequence[Card],
    failures: Sequence[tuple[str, str]],
    links: Mapping[str, str],
    shape: tuple[int, int],
    threshold: float,
) -> None:
    """Write the page.

    Parameters
    ----------
    path
        File of the page.
    title
        Its heading.
    paragraphs
        Texts below the heading.
    cards
        The maps, in order.
    failures
        (name, reason) of what was not mapped.
    links
        Label to file beside the page.
    shape
        (y, x) of the images in pixels.
    threshold
        `area` of a card is the area above this value.

    Raises
    ------
    OutputError
        If the page cannot be written.
    """
    data = {
        "threshold": f"{threshold:g}",
        "width": shape[1],
        "height": shape[0],
        "cards": [_card_values(card) for card in cards],
        "failures": [[one_line(name), one_line(reason)] for name, reason in failures],
    }
    text = _page(title, paragraphs, links, data)
    with disk_errors(path):
        path.write_text(text, encoding="utf-8")


def _page(title: str, paragraphs: Sequence[str], links: Mapping[str, str], data: Mapping[str, Any]) -> str:
    style = _asset("gallery.css") + f".ramp{{background:linear-gradient(90deg,{','.join(RAMP)})}}\n"
    script = _asset("gallery.js")
    return Template(_asset("gallery.html")).substitute(
        policy=(
            f"default-src 'none'; script-src '{_digest(script)}'; style-src '{_digest(style)}'; "
            "img-src 'self' file:; base-uri 'none'; form-action 'none'"
        ),
        title=html_text(title),
        style=style,
        paragraphs="".join(f"<p>{html_text(text)}</p>" for text in paragraphs),
        links="".join(
            f'<a href="{html_text(relative_link(name))}">{html_text(label)}</a>' for label, name in links.items()
        ),
        threshold=html_text(data["threshold"]),
        data=script_value(data),
        script=script,
    )


def _card_values(card: Card) -> list[Any]:
    """A card in the order that gallery.js reads."""
    texts = [one_line(text) for text in (card.name, card.common, card.also, card.badge)]
    numbers = [card.numbers.get(key) for key in ("area", "expected", "max")]
    links = [[one_line(label), relative_link(name)] for label, name in card.links.items()]
    return [*texts, *numbers, relative_link(card.picture), links]


def _asset(name: str) -> str:
    return files("sdm.outputs").joinpath("assets", name).read_text("utf-8")


def _digest(code: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(code.encode()).digest()).decode("ascii")
