"""Escaping foreign text for web pages and tables. All text from outside enters them through these functions."""

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from sdm.outputs.metadata import one_line, without_marks

# More than html.escape covers: Folium puts some texts into JavaScript template literals, where ` and ${ are
# special, and renders its scripts a second time as Jinja templates, where {{, {% and {# are.
_SPECIAL = "&<>\"'`${}=%#"
_HTML = str.maketrans({character: f"&#{ord(character)};" for character in _SPECIAL})
_SCRIPT = str.maketrans({character: f"\\u{ord(character):04x}" for character in _SPECIAL if character != '"'})

_FORMULA = tuple("=+-@\t\r")
"""What a spreadsheet takes for the start of a formula."""


def html_text(text: object) -> str:
    """Text escaped for HTML content, quoted attributes, and HTML inside JavaScript strings."""
    return one_line(text).translate(_HTML)


def script_value(value: Any) -> str:
    """A JSON-like value as a JavaScript literal that is safe inside HTML and templates."""
    if isinstance(value, Mapping):
        pairs = (f"{script_value(str(key))}:{script_value(item)}" for key, item in value.items())
        return "{" + ",".join(pairs) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(script_value(item) for item in value) + "]"
    value = without_marks(value) if isinstance(value, str) else value
    text = json.dumps(value, ensure_ascii=True, allow_nan=False)
    return text.translate(_SCRIPT)


def relative_link(name: str) -> str:
    """URL of the file `name` beside the page; a scheme such as javascript: or https: has no effect."""
    return "./" + quote(name, safe="/")


def table_text(text: str) -> str:
    """Text as one line that no spreadsheet takes for a formula; a number, with its sign, stays one."""
    # `one_line` is slow, and a table of records has millions of texts that it would not change.
    line = text if text.isascii() and text.isprintable() and "  " not in text else one_line(text)
    if not (text.startswith(_FORMULA) or line.startswith(_FORMULA)):
        return line
    try:
        float(line.replace(",", "."))
    except ValueError:
        return f"'{line}"
    return line
