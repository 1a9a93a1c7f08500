"""From what a user typed to a taxon: the rules, in the order they are tried."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from itertools import pairwise
from typing import TYPE_CHECKING

from sdm.errors import SpeciesNameError, quoted
from sdm.names.taxa import RANKS, Resolution, Taxon
from sdm.names.text import clean, common_key, common_keys, fold, stem

if TYPE_CHECKING:
    from sdm.names.table import TaxonTable

# An epithet this close (difflib ratio) to one of the same genus is taken for a slip, not for another species:
# one wrong letter in seven passes, 'deningeri' against 'arctos' does not.
SLIP = 0.85
MAX_LISTED = 12
# A species whose first name ends in 'wolf' or 'cardinal' is still meant by that word alone, unless so many others are.
KIND = 8

# fmt: off
_OPEN = frozenset(("cf", "aff", "sp", "spp", "nr", "near", "indet", "conf", "species", "?"))
_INFRA = frozenset(("ssp", "subsp", "subspecies", "var", "variety", "f", "fo", "forma", "form", "cv"))
_PARTICLES = frozenset((
    "de", "der", "den", "di", "da", "du", "del", "la", "le", "van", "von", "ex", "et", "al", "in", "and", "y",
    "auct", "non", "sensu", "nom", "st", "emend", "bis", "fil",
))
# fmt: on
# What is named after the plant that it lives on: 'Prunus necrotic ringspot virus' is no cherry.
_PATHOGENS = ("virus", "viroid", "phytoplasma")
_HYBRID = frozenset({"×", "x", "✕", "✖", "⨯"})


class AmbiguousNameError(SpeciesNameError):
    """The name fits several taxa."""

    def __init__(self, message: str, taxa: Iterable[Taxon] = ()) -> None:
        super().__init__(message)
        self.taxa = tuple(taxa)


class UnknownNameError(SpeciesNameError):
    """Nothing has the name. `near`: what was surely meant, if it is a slip of the pen."""

    def __init__(self, message: str, near: Iterable[Taxon] = (), words: str = "") -> None:
        super().__init__(message)
        self.near, self.words = tuple(near), words


class HomonymError(UnknownNameError):
    """The species is not known, and its genus is the name of several. `taxon`: the group that the model would show."""

    def __init__(self, message: str, taxon: Taxon) -> None:
        super().__init__(message, [taxon])
        self.taxon = taxon


def resolve(table: TaxonTable, query: str) -> Resolution:
    """Return the taxon that `query` stands for; see `TaxonTable.resolve` for the rules and the errors."""
    try:
        return find(table, query)
    except HomonymError:
        raise
    except UnknownNameError as error:
        raise _unknown(table, clean(query), list(error.near) or nearest(table, query, error)) from None


def nearest(table: TaxonTable, query: str, error: UnknownNameError) -> list[Taxon]:
    """Return up to five taxa that an unknown name may have meant, best first."""
    return table.nearest(error.words, 5) or table.nearest(clean(query), 5)


def find(table: TaxonTable, query: str) -> Resolution:
    """The same, but that an UnknownNameError does not list the nearest names, which takes long to find."""
    text = clean(query)
    notes: list[str] = []
    tokens, sign = _tokens(text, notes)
    lineage, rest = _split_lineage(table, tokens)
    if sign is not None and len(lineage) + 2 <= sign < len(tokens):
        raise SpeciesNameError(
            f"{quoted(text)} is a cross of two species; give the name of one of them, or the hybrid's own name."
        )
    found = _scientific(table, text, rest, notes) or _common(table, text, tokens, notes)
    if found is None:
        found = _fallback(table, text, lineage, rest, notes)
    taxon, known, how = found
    _reject_bracketed(table, text, taxon)
    notes += _contradictions(table, lineage, taxon)
    return Resolution(text, taxon, known, how, tuple(dict.fromkeys(notes)))


def _tokens(text: str, notes: list[str]) -> tuple[list[str], int | None]:
    """Split into words; brackets (authors, subgenera) and hybrid signs go.

    Also returns how many words stand before the last hybrid sign: none or one before that of a hybrid with a
    name of its own ('Quercus × comptoniae'), two or more before that of a cross ('Ursus arctos × maritimus').
    """
    bare = re.sub(r"\([^()]*\)|\[[^\[\]]*\]", " ", text)
    if not any(c.isalpha() for c in bare):
        bare = re.sub(r"[()\[\]]", " ", text)
    words = re.sub(r"[,;|>:\"]", " ", bare).replace("×", " × ").replace("?", " ? ").split()
    kept = [w for w in words if w not in _HYBRID and w != "X"]
    if len(kept) < len(words) and kept:
        notes.append("The hybrid sign was ignored.")
        last = max(k for k, w in enumerate(words) if w not in kept)
        return kept, sum(w in kept for w in words[:last])
    return kept or words, None


def _split_lineage(table: TaxonTable, tokens: list[str]) -> tuple[list[str], list[str]]:
    """Return (leading names of higher ranks, the rest); a lone higher name stays in the rest."""
    at = 0
    while at < len(tokens) - 1 and fold(tokens[at]) in table.higher_names:
        at += 1
    rest = tokens[at:]
    # 'Ursidae sp.' speaks of the family; 'Ursus Ursus arctos' repeats the genus, as some lists do.
    if at and _bare(rest[0]) in _OPEN:
        at, rest = at - 1, tokens[at - 1 : at]
    if len(rest) >= 3 and fold(rest[0]) == fold(rest[1]):
        doubled, plain = _pair(rest[0], rest[2]), _pair(rest[0], rest[1])
        if doubled in table.by_name and plain not in table.by_name:
            rest = rest[1:]
    return tokens[:at], rest


def _scientific(table: TaxonTable, text: str, words: list[str], notes: list[str]) -> tuple[Taxon, bool, str] | None:
    """Match names of groups, valid names and synonyms exactly (up to case and grammar)."""
    first = fold(words[0])
    if len(words) == 2 and first in RANKS and first != "species":
        groups = [g for g in table.group_index.get(fold(words[1]), []) if g.rank == first]
        if len(groups) == 1:
            return groups[0], True, groups[0].rank
    if len(words) == 1:
        return _group(table, text, first, notes)
    pair = _pair(words[0], words[1])
    taxon = table.by_name.get(pair)
    found = (taxon, "scientific name") if taxon else _other_spelling(table, text, words, notes)
    if found is None:
        return None
    _tail(table, text, found[0], words[2:], notes)
    return found[0], True, found[1]


def _other_spelling(table: TaxonTable, text: str, words: list[str], notes: list[str]) -> tuple[Taxon, str] | None:
    """Match a synonym, a gender ending that differs, or a genus cut to its initial."""
    genus, epithet = fold(words[0]), fold(words[1])
    given = f"{genus.capitalize()} {epithet}"
    hits = table.synonym_index.get(f"{genus} {epithet}", [])
    if hits:
        taxon = _only(text, hits, "is an older name of several species")
        notes.append(f"{quoted(given)} is another name of {taxon.name}; the map shows {taxon.name}.")
        return taxon, "synonym"
    if re.fullmatch(r"[a-z]\.?", genus) and len(epithet) > 2:
        hits = [t for t in table if t.name[0].lower() == genus[0] and t.name.split(" ")[1] == epithet]
        if hits:
            taxon = _only(text, hits, "fits several species")
            notes.append(f"{quoted(' '.join(words[:2]))} was read as {taxon.name}.")
            return taxon, "scientific name"
    same = [
        t
        for g in table.group_index.get(genus, [])
        if g.rank == "genus"
        for t in table.members(g)
        if stem(t.name.split(" ")[1]) == stem(epithet)
    ]
    if len(same) == 1 and len(stem(epithet)) > 2:
        notes.append(f"{quoted(given)} was read as {same[0].name}, the spelling this model uses.")
        return same[0], "scientific name"
    return None


def _group(table: TaxonTable, text: str, name: str, notes: list[str]) -> tuple[Taxon, bool, str] | None:
    """Match one word that names a genus, family, order or class."""
    hits = table.group_index.get(name, [])
    if hits:
        taxon = _only(text, hits, "names several groups")
        species = [t for t in table.common_index.get(common_key(name), []) if t.rank == "species"]
        members = table.members(taxon)
        if len(species) == 1 and taxon.rank == "genus" and members == (species[0],):
            return species[0], True, "common name"
        if species:
            listed = ", ".join(t.name for t in species[:MAX_LISTED])
            notes.append(
                f"{quoted(text)} is read as the {taxon.rank} {taxon.name}; it is also a common name of {listed}."
            )
        if taxon.rank == "genus":
            notes += _homonyms(table, taxon)
        return taxon, True, taxon.rank
    hits = table.synonym_index.get(name, [])
    if hits:
        taxon = _only(text, hits, "is an older name of several groups")
        notes.append(
            f"{quoted(text)} is another name of, or lies within, the {taxon.rank} {taxon.name}; the map "
            f"shows the {taxon.rank} {taxon.name}."
        )
        return taxon, True, taxon.rank
    if table.higher_names.get(name) in {"kingdom", "phylum"}:
        raise SpeciesNameError(
            f"{quoted(text)} is a {table.higher_names[name]}, too broad for a map; give a species, genus, "
            "family, order or class."
        )
    return None


def _common(table: TaxonTable, text: str, tokens: list[str], notes: list[str]) -> tuple[Taxon, bool, str] | None:
    """Match a common name; one that fits several species is an error, never a guess."""
    for name in dict.fromkeys((text, " ".join(tokens))):
        for key in common_keys(name):
            hits = table.common_index.get(key, [])
            if not hits:
                continue
            species = [t for t in hits if t.rank == "species"]
            groups = [t for t in hits if t.rank != "species"]
            if len(species) == 1:
                if groups:
                    notes.append(f"{quoted(text)} is also the name of the {groups[0].rank} {groups[0].name}.")
                taxon = species[0]
            else:
                # Several species, or several groups: one group that holds them all is still an answer.
                around = [g for g in groups if all(t.lineage[: len(g.lineage)] == g.lineage for t in hits)]
                taxon = around[0] if around else _only(text, species or groups, "is a common name of several")
            notes += _others_of_the_kind(table, text, key, taxon)
            return taxon, True, "common name"
    return None


def _others_of_the_kind(table: TaxonTable, text: str, key: str, taxon: Taxon) -> list[str]:
    """Return a note on other species whose names end in this one; raise where those are rather what is meant.

    A list of names ties 'ground squirrel' to one chipmunk, though fifty species bear it; 'antbird' to a family without
    any.
    """
    named = table.kind_index.get(key, [])
    others = [t for t in named if t.lineage[: len(taxon.lineage)] != taxon.lineage]
    others.sort(key=lambda t: -(t.cells or 0))
    own = len(named) - len(others)
    species = taxon.rank == "species"
    if not others or (species and common_key(taxon.common[0]) == key):
        return []
    if len(others) >= ((KIND if own else 3) if species else own + 2):
        _only(text, [taxon, *others], "is the name of a kind")
    listed = ", ".join(t.label for t in others[:MAX_LISTED])
    return [f"{quoted(text)} is also said of {listed}."] if species else []


def _reject_bracketed(table: TaxonTable, text: str, taxon: Taxon) -> None:
    """Raise where brackets hold the scientific name of another species than was found: 'wolf (Vulpes vulpes)'."""
    for inside in re.findall(r"[(\[]([^()\[\]]*)[)\]]", text):
        words = inside.split()
        other = table.by_name.get(_pair(words[0], words[1])) if len(words) > 1 else None
        if other and other is not taxon:
            raise _two_species(text, taxon, other)


def _fallback(
    table: TaxonTable, text: str, lineage: list[str], words: list[str], notes: list[str]
) -> tuple[Taxon, bool, str]:
    """Answer with the nearest group for a name that is new but has a known place; else raise."""
    if fold(words[-1]).endswith(_PATHOGENS):
        raise UnknownNameError(f"Unknown species {quoted(text)}.", words=" ".join(words))
    genus = fold(words[0])
    epithet = fold(words[1]) if len(words) > 1 else ""
    open_name = len(words) > 1 and _bare(words[1]) in _OPEN
    groups = [g for g in table.group_index.get(genus, []) if g.rank == "genus"]
    given = f"{genus.capitalize()} {epithet}" if epithet and not open_name else genus.capitalize()
    if groups and len(words) > 1:
        taxon = _only(text, groups, "names several genera")
        if open_name:
            notes.append(f"{quoted(words[1])} marks an uncertain species; the map shows the genus {taxon.name}.")
        if open_name or _is_authorship(words[1:], text):
            notes += _homonyms(table, taxon)
            return taxon, True, "genus"
        _reject_slip(table, text, taxon, epithet)
        _reject_homonym(table, text, taxon.lineage, lineage, taxon)
        notes.append(f"{quoted(given)} is not in the model; the map shows the genus {taxon.name}.")
        notes += _same_epithet(table, taxon.lineage, epithet)
        return taxon, False, "genus"
    place = table.places.get(genus) or table.place_families.get(genus)
    if place and fold(place[-1]) == genus:
        if epithet and not open_name:
            _reject_wrong_genus(table, text, genus, epithet)
        for depth in (5, 4):
            taxon = table.group(place[:depth]) if depth < len(place) else None
            if taxon:
                _reject_homonym(table, text, place, lineage, taxon)
                notes.append(f"{quoted(given)} is not in the model; the map shows the {taxon.rank} {taxon.name}.")
                notes += _same_epithet(table, place, epithet)
                return taxon, False, taxon.rank
    # A full lineage names its own place. Not where the last words are a slip for something known, and not before a
    # lone epithet: *Proboscidea louisianica* is a herb, not an elephant.
    given_words = " ".join(words)
    binomial = len(words) == 1 and words[0].islower()
    for name in reversed(lineage) if lineage and not binomial and not table.nearest(given_words, 5) else ():
        for taxon in table.group_index.get(fold(name), []):
            notes.append(f"{quoted(given)} is not in the model; the map shows the {taxon.rank} {taxon.name}.")
            return taxon, False, taxon.rank
    raise UnknownNameError(f"Unknown species {quoted(text)}.", words=given_words)


def _homonyms(table: TaxonTable, genus: Taxon) -> list[str]:
    """Return a note where other groups have a genus of the same name."""
    others = table.homonyms.get(genus.name.lower())
    if not others:
        return []
    return [f"{genus.name} is also a genus of {', '.join(others)}; the map shows that of {genus.family}."]


def _reject_homonym(table: TaxonTable, text: str, place: tuple[str, ...], given: list[str], shown_as: Taxon) -> None:
    """Raise for an unknown species of a genus whose name other groups have too, unless the ranks given say which."""
    family, genus = place[-2:]
    others = table.homonyms.get(genus.lower())
    if others and not {name.lower() for name in place} & set(map(fold, given)):
        raise HomonymError(
            f"Unknown species {quoted(text)}: {genus} is a genus of {family}, which this model knows, and of "
            f"{', '.join(others)}. Ask for '{shown_as.rank} {shown_as.name}' if the first is meant.",
            shown_as,
        )


def _reject_slip(table: TaxonTable, text: str, genus: Taxon, epithet: str) -> None:
    """Raise for an epithet that is nearly one of the genus."""
    scored = []
    for taxon in table.members(genus):
        own = taxon.name.split(" ")[1]
        ratio = difflib.SequenceMatcher(None, epithet, own, autojunk=False).ratio()
        if ratio >= SLIP or _one_letter(epithet, own):
            scored.append((ratio, taxon))
    close = [taxon for _, taxon in sorted(scored, key=lambda pair: -pair[0])]
    if close:
        raise UnknownNameError(f"Unknown species {quoted(text)}.", close[:5])


def _one_letter(a: str, b: str) -> bool:
    """Tell whether one letter is wrong, or two neighbours are swapped, in a word of five letters or more."""
    if len(a) != len(b) or len(a) < 5:
        return False
    wrong = [k for k, (x, y) in enumerate(zip(a, b, strict=True)) if x != y]
    return len(wrong) == 1 or (len(wrong) == 2 and wrong[1] == wrong[0] + 1 and sorted(a) == sorted(b))


def _reject_wrong_genus(table: TaxonTable, text: str, genus: str, epithet: str) -> None:
    """Raise where a real genus is one slip away from another that has this very species."""
    close = [
        t
        for t in table
        if t.name.split(" ")[1] == epithet
        and difflib.SequenceMatcher(None, genus, t.genus.lower(), autojunk=False).ratio() >= SLIP
    ]
    if close:
        raise UnknownNameError(f"Unknown species {quoted(text)}.", close[:5])


def _same_epithet(table: TaxonTable, place: tuple[str, ...], epithet: str) -> list[str]:
    """Return a hint where the species may have moved to another genus of the family ('Felis pardus')."""
    family = table.group(place[:5])
    moved = [
        t.name
        for t in (table.members(family) if family else ())
        if stem(t.name.split(" ")[1]) == stem(epithet) and len(stem(epithet)) > 2
    ]
    if not moved:
        return []
    return [f"The family {place[4]} has {', '.join(moved[:MAX_LISTED])}: if that is meant, ask for that name."]


def _tail(table: TaxonTable, text: str, taxon: Taxon, tail: list[str], notes: list[str]) -> None:
    """Explain what follows a binomial: a subspecies or variety is noted, authors and years are not."""
    for first, second in pairwise(tail):
        other = table.by_name.get(_pair(first, second))
        if other and other is not taxon:
            raise _two_species(text, taxon, other)
    infra = ""
    for at, word in enumerate(tail):
        if _bare(word) in _INFRA and at + 1 < len(tail):
            infra = fold(tail[at + 1])
            break
    first = tail[0] if tail else ""
    if not infra and re.fullmatch(r"[^\W\d_-]{3,}(-[^\W\d_]+)?", first) and fold(first) not in _PARTICLES | _OPEN:
        if first.islower() and text != text.lower():
            infra = fold(first)
        elif text in {text.lower(), text.upper()}:
            notes.append(
                f"What follows '{taxon.name}' ({quoted(' '.join(tail))}) was ignored; the map shows the whole species."
            )
    elif not infra and (_bare(first) in _OPEN or first.startswith("'")):
        notes.append(f"What follows '{taxon.name}' was ignored; the map shows the whole species.")
    if infra:
        notes.append(
            f"{quoted(infra)} names a subspecies, variety or form; the map shows the whole species {taxon.name}."
        )
    raised = table.by_name.get(f"{taxon.genus.lower()} {fold(infra or first)}")
    if raised and raised is not taxon:
        notes.append(f"{raised.name} is a species of its own in this model; ask for it by that name.")


def _contradictions(table: TaxonTable, lineage: list[str], taxon: Taxon) -> list[str]:
    """Return a sentence for each given higher name that the taxon does not belong to."""
    notes = []
    own = {name.lower() for name in taxon.lineage}
    for name in map(fold, lineage):
        rank = table.higher_names[name]
        aliases = {t.name.lower() for t in table.synonym_index.get(name, [])}
        if name not in own and not aliases & own and taxon.at(rank):
            notes.append(
                f"The given {rank} {name.capitalize()} does not fit: this model has {taxon.name} in {taxon.at(rank)}."
            )
    return notes


def _is_authorship(words: list[str], text: str) -> bool:
    """Tell whether all words can be authors and a year, and at least one sign says so."""
    if text.islower() or text.isupper():
        return False
    if not all(w[0].isupper() or w == "&" or w[0].isdigit() or _bare(w) in _PARTICLES for w in words):
        return False
    return any(w.endswith(".") or w == "&" or re.fullmatch(r"1[789]\d\d|20\d\d", w) for w in words)


def _only(text: str, hits: list[Taxon], rule: str) -> Taxon:
    """Return the one hit; raise with the list of candidates where there are more."""
    if len(hits) == 1:
        return hits[0]
    listed = ", ".join(t.label for t in hits[:MAX_LISTED]) + (", …" if len(hits) > MAX_LISTED else "")
    raise AmbiguousNameError(f"{quoted(text)} {rule}: {listed}. Give the scientific name of the one you mean.", hits)


def _unknown(table: TaxonTable, text: str, near: list[Taxon]) -> UnknownNameError:
    """Return the error for a name the model does not know, with the nearest names."""
    if near:
        return UnknownNameError(
            f"Unknown species {quoted(text)}; the nearest names this model knows are: "
            f"{', '.join(t.label for t in near)}. Use one of them, or look for others with --search.",
            near,
        )
    return UnknownNameError(
        f"Unknown species {quoted(text)}; this model knows {len(table)} species and none is spelled like it. "
        "Look for a name with --search."
    )


def _two_species(text: str, one: Taxon, other: Taxon) -> SpeciesNameError:
    """Return the error for a query that names two species."""
    return SpeciesNameError(f"{quoted(text)} holds two species, {one.name} and {other.name}; give one name at a time.")


def _pair(genus: str, epithet: str) -> str:
    """Return the key of a binomial."""
    return f"{fold(genus)} {fold(epithet)}"


def _bare(word: str) -> str:
    """Return a word in lower case without the points of an abbreviation."""
    return word.lower().rstrip(".") or word
