"""Hook of mkdocs: every tutorial in Python and shell also as a notebook, beside its page."""

import json
import re
from pathlib import Path

BLOCK = re.compile(r"^```(bash|python)\n(.*?)^```\n", re.MULTILINE | re.DOTALL)
FOLDER = "tutorials/"


def on_page_markdown(markdown, page, **_):
    """Link a tutorial's notebook at its end."""
    return f"{markdown}\n[This page as a notebook]({_name(page)})\n" if _made(page) else markdown


def on_page_content(html, page, config, **_):
    """Write the notebook of a tutorial into the site."""
    if _made(page):
        target = Path(config.site_dir, page.file.dest_uri).with_name(_name(page))
        target.parent.mkdir(parents=True, exist_ok=True)
        text = Path(page.file.abs_src_path).read_text(encoding="utf-8")
        target.write_text(json.dumps(notebook(text), indent=1), encoding="utf-8")
    return html


def _made(page):
    return page.file.src_uri.startswith(FOLDER) and page.file.src_uri != f"{FOLDER}r-terra.md"


def _name(page):
    return f"{Path(page.file.src_uri).stem}.ipynb"


def notebook(text):
    """A page as the content of a notebook (format 4.5): its code as cells that run, the rest as text."""
    cells, at = [], 0
    for match in BLOCK.finditer(text):
        cells.append(("markdown", text[at : match.start()]))
        cells.append(("code", match[2] if match[1] == "python" else f"%%bash\n{match[2]}"))
        at = match.end()
    cells.append(("markdown", text[at:]))
    return {
        "cells": [cell(kind, source.strip("\n"), k) for k, (kind, source) in enumerate(cells) if source.strip()],
        "metadata": {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }


def cell(kind, source, number):
    """A cell of a notebook."""
    own = {"execution_count": None, "outputs": []} if kind == "code" else {}
    return {"cell_type": kind, "id": f"cell-{number}", "metadata": {}, "source": source, **own}
