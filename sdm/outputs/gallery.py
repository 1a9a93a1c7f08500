"""The page that opens a batch: a picture of every map, a search box, sorting, links to the files.

The page holds texts and numbers only; pictures lie in a folder beside it and are loaded when they come into
view. A content security policy in the page allows its own script, pictures beside it, and nothing else.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path

from sdm.files.atomic import disk_errors
from sdm.outputs.escape import html_text, relative_link, script_value
from sdm.outputs.metadata import one_line
from sdm.outputs.style import RAMP

SIZE = 240
"""Pixels of a picture's longer side, at most: every n-th pixel of the map."""


@dataclass(frozen=True)
class Card:
    """One map on the page."""

    name: str
    picture: str
    """File beside the page."""
    common: str = ""
    also: str = ""
    """More words to find it by: what was asked for, family."""
    badge: str = ""
    """What the reader must know at once: that it is the map of a genus, for one."""
    numbers: Mapping[str, float | None] = field(default_factory=dict)
    """area, expected (km2), max: to show and sort by."""
    links: Mapping[str, str] = field(default_factory=dict)
    """Label to file beside the page."""


def stride(shape: tuple[int, int]) -> int:
    """Every which pixel of a map of shape (y, x) makes its picture."""
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

    `failures`: (name, why) of what was not mapped. `links`: label to file beside the page. `shape` (y, x) of
    the pictures. `threshold`: what `area` is the area above. Raises OutputError if the disk refuses.
    """
    data = {
        "threshold": f"{threshold:g}",
        "width": shape[1],
        "height": shape[0],
        "cards": [
            [
                one_line(card.name), one_line(card.common), one_line(card.also), one_line(card.badge),
                *(card.numbers.get(key) for key in ("area", "expected", "max")), relative_link(card.picture),
                [[one_line(label), relative_link(name)] for label, name in card.links.items()],
            ]
            for card in cards
        ],
        "failures": [[one_line(name), one_line(why)] for name, why in failures],
    }  # fmt: skip
    style, script = (
        files("sdm.outputs").joinpath("assets", f"gallery.{kind}").read_text("utf-8") for kind in ("css", "js")
    )
    style += f".ramp{{background:linear-gradient(90deg,{','.join(RAMP)})}}\n"
    policy = (
        f"default-src 'none'; script-src '{_digest(script)}'; style-src '{_digest(style)}'; "
        "img-src 'self' file:; base-uri 'none'; form-action 'none'"
    )
    anchors = "".join(
        f'<a href="{html_text(relative_link(name))}">{html_text(label)}</a>' for label, name in links.items()
    )
    page = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html_text(title)}</title>
<style>{style}</style>
</head>
<body>
<header>
<h1>{html_text(title)}</h1>
{"".join(f"<p>{html_text(text)}</p>" for text in paragraphs)}
<nav>{anchors}</nav>
<div class="legend"><span>0</span><span class="ramp"></span><span>1</span></div>
<div class="tools">
<label>Search <input id="search" type="search" autocomplete="off" placeholder="name, family, what was asked"></label>
<label>Sort by <select id="sort">
<option value="list">order of the list</option>
<option value="name">name</option>
<option value="area">area above {html_text(f"{threshold:g}")}</option>
<option value="expected">expected area</option>
<option value="max">highest value</option>
</select></label>
<output id="count"></output>
</div>
</header>
<main id="grid"></main>
<div id="more"></div>
<details id="failures"><summary></summary><table><tbody></tbody></table></details>
<script type="application/json" id="data">{script_value(data)}</script>
<script>{script}</script>
</body>
</html>
"""
    with disk_errors(path):
        path.write_text(page, encoding="utf-8")


def _digest(code: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(code.encode()).digest()).decode("ascii")
