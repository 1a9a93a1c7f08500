"""The gallery of the documentation: each map made by the command that its page shows, photographed in a browser.

python recipes/gallery.py            # writes docs/gallery.md and docs/gallery/*.png
"""

import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image
from readme_picture import main as photograph

ROOT = Path(__file__).parents[1]
MAPS = [
    (
        "Ursus arctos",
        "--bbox -170 48 -100 72 --resolution 0.1",
        "Land and sea are told apart, and mountains from plains.",
    ),
    ("Vulpes vulpes", "--bbox -170 15 -52 72 --resolution 0.2", "A continent at once."),
    ("Sequoiadendron giganteum", "--bbox -122 34 -116 40 --resolution 0.02", "A tree of a few valleys."),
    ("Lynx pardinus", "--bbox -10 35 4 44 --resolution 0.05", "A narrow endemic."),
    ("Phoca vitulina", "--bbox -12 48 14 64 --resolution 0.05", "An animal of the shore."),
    ("Hirundo rustica", "--bbox -20 -36 60 66 --resolution 0.5 --month january", "A migrant in January."),
    ("Hirundo rustica", "--bbox -20 -36 60 66 --resolution 0.5 --month july", "The same in July."),
]
"""Species, options, caption."""


def page(entries: list[tuple[str, str, str, str]]) -> str:
    """The page of (species, options, caption, picture)."""
    parts = ["# Gallery\n\nEach picture is the web map that its command writes. `recipes/gallery.py` made them.\n"]
    for name, options, caption, picture in entries:
        command = f"taxabind-map {shlex.quote(name).replace(chr(39), chr(34))} {options}"
        parts.append(f"## {name}\n\n{caption}\n\n```\n{command}\n```\n\n![{name}: {caption}](gallery/{picture})\n")
    return "\n".join(parts)


def main() -> None:
    """Make all maps, their pictures and the page."""
    entries = []
    (ROOT / "docs" / "gallery").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, options, caption) in enumerate(MAPS):
            out = Path(folder) / str(number)
            command = [sys.executable, "-m", "sdm", name, *options.split(), "--format", "html", "--out", str(out)]
            subprocess.run(command, check=True)
            (html,) = out.glob("*.html")
            picture = ROOT / "docs" / "gallery" / f"{html.stem}.png"
            photograph(str(html), str(picture))
            # Few colours are enough, and take a third of the room.
            Image.open(picture).quantize(96).save(picture, optimize=True)
            entries.append((name, options, caption, picture.name))
    (ROOT / "docs" / "gallery.md").write_text(page(entries), encoding="utf-8")


if __name__ == "__main__":
    main()
