"""Text typed by a user: cleaning, folding, keys of common names."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

from sdm.errors import SpeciesNameError, quoted

MAX_QUERY = 200

_SIMPLE = str.maketrans(dict.fromkeys("‘’‛ʼ`´′", "'") | dict.fromkeys("“”„«»", '"') | dict.fromkeys("‐‒–—−", "-"))
_FOOTNOTES = str.maketrans("", "", "*†‡§¶¹²³⁴⁵⁶⁷⁸⁹⁰")
_IRREGULAR = {"mice": "mouse", "geese": "goose", "oxen": "ox", "wolves": "wolf", "calves": "calf"}


def clean(query: str) -> str:
    """Return the query as plain text: NFKC, single spaces, simple quotes and hyphens, no hidden characters.

    Raises SpeciesNameError for what cannot be a name: no text, no letters, more than 200 characters, control
    characters, path separators.
    """
    if not isinstance(query, str):
        raise SpeciesNameError(f"A species name must be text, not {type(query).__name__}: {quoted(query)}.")
    if len(query) > MAX_QUERY:
        raise SpeciesNameError(
            f"The species name {quoted(query)} has {len(query)} characters; the limit is {MAX_QUERY}."
        )
    text = unicodedata.normalize("NFKC", query.strip().translate(_FOOTNOTES))
    if not text:
        raise SpeciesNameError(f"The species name {quoted(query)} is empty; give a name such as 'Ursus arctos'.")
    text = "".join(_visible(char, query) for char in text).translate(_SIMPLE)
    if re.fullmatch(r"[^\W\d_]{2,} [\w-]{3,} ?/ ?[\w.-]+( [\w-]+)?", text):
        raise SpeciesNameError(
            f"The species name {quoted(query)} stands for two species, one on each side of the slash; give one."
        )
    if "/" in text or "\\" in text:
        raise SpeciesNameError(
            f"The species name {quoted(query)} holds a path separator; give a name such as 'Ursus arctos'."
        )
    if re.fullmatch(r"[^\W\d_]{3,}(\.[a-z-]{3,}){1,2}", text):  # as R makes names of columns
        text = text.replace(".", " ")
    text = " ".join(text.replace("_", " ").split()).strip('" ,;')
    if text.startswith("'") or text.count("'") == 1:  # not the last of 'October Glory'
        text = text.strip("' ,;")
    if not any(c.isalpha() for c in text):
        raise SpeciesNameError(
            f"The species name {quoted(query)} has no letters; give a name such as 'Ursus arctos' "
            "(database ids are not names)."
        )
    if len(text) > MAX_QUERY:  # NFKC can make one character many
        raise SpeciesNameError(f"The species name {quoted(query)} is longer than {MAX_QUERY} characters.")
    return text


def _visible(char: str, query: str) -> str:
    """Return the character, a space for any kind of space, nothing for an invisible one; raise for a control."""
    category = unicodedata.category(char)
    if char == "\t" or category.startswith("Z"):
        return " "
    if category in {"Cc", "Cs", "Co", "Cn"}:
        raise SpeciesNameError(
            f"The species name {quoted(query)} holds a control or unassigned character (U+{ord(char):04X}); remove it."
        )
    return "" if category == "Cf" else char  # soft hyphens, zero-width spaces and marks of direction say nothing here


def fold(text: str) -> str:
    """Return text without case and accents, ligatures opened: 'Vicuña' and 'vicuna' become one."""
    if text.isascii():
        return text.lower()
    text = text.casefold().replace("æ", "ae").replace("œ", "oe").replace("ø", "o")
    return "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))


def common_key(name: str) -> str:
    """Return what two spellings of a common name share: letters only, 'grey' as 'gray', no leading 'the'.

    Any run of s is one, so that "Pallas's", "Pallas'" and "Pallass" are the same.
    """
    plain = re.sub(r"[^a-z0-9]+", "", fold(name).removeprefix("the ").replace("grey", "gray"))
    return re.sub(r"ss+", "s", plain)


def common_keys(name: str) -> Iterator[str]:
    """Yield the keys a common name may be stored under: as given, then as a singular."""
    key = common_key(name)
    yield key
    for plural, singular in _IRREGULAR.items():
        if key.endswith(plural):
            yield key.removesuffix(plural) + singular
    if key.endswith("ies"):
        yield key[:-3] + "y"
    if key.endswith("es"):
        yield key[:-2]
    if key.endswith("s"):
        yield key[:-1]


def stem(epithet: str) -> str:
    """Return an epithet without what grammar changes: 'niger', 'nigra', 'nigrum'; '-o' for '-a'; '-ii' for '-i'."""
    return re.sub(r"(us|um|a|o|is|e)$", "", re.sub(r"er$", "r", re.sub(r"ii$", "i", epithet)))
