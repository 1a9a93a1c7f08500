"""From what a user typed to a taxon: the rules, in the order they are tried."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from itertools import pairwise

from sdm.errors import SpeciesNameError, quoted
from sdm.names.classes import classes_named
from sdm.names.domestic import reject_domestic
from sdm.names.index import NameIndex, likeness
from sdm.names.placeholders import reject_placeholder
from sdm.names.taxa import RANKS, Resolution, Taxon
from sdm.names.text import clean, common_key, common_keys, fold, stem

# An epithet this close to one of the same genus (0 to 100, see `likeness`) is taken for a typing error, not for another
# species: one wrong letter in seven passes, 'deningeri' against 'arctos' does not.
TYPING_ERROR = 85
MAX_LISTED = 12
# A species whose first name ends in 'wolf' or 'cardinal' is still meant by that word alone, unless so many others are.
KIND = 8

_OPEN = frozenset(["cf", "aff", "sp", "spp", "nr", "near", "indet", "conf", "species", "?"])
_INFRASPECIFIC = frozenset(["ssp", "subsp", "subspecies", "var", "variety", "f", "fo", "forma", "form", "cv"])
_PARTICLES = frozenset(
    [
        "de",
        "der",
        "den",
        "di",
        "da",
        "du",
        "del",
        "la",
        "le",
        "van",
        "von",
        "ex",
        "et",
        "al",
        "in",
        "and",
        "y",
        "auct",
        "non",
        "sensu",
        "nom",
        "st",
        "emend",
        "bis",
        "fil",
    ]
)
_BRACKETS = r"\([^()]*\)|\[[^\[\]]*\]"
# These are named after the plant that they live on: 'Prunus necrotic ringspot virus' is not a cherry.
_PATHOGENS = ("virus", "viroid", "phytoplasma")
_HYBRID = frozenset({"×", "x", "✕", "✖", "⨯"})


class AmbiguousNameError(SpeciesNameError):
    """The name fits several taxa."""

    def __init__(self, message: str, taxa: Iterable[Taxon] = ()) -> None:
        super().__init__(message)
        self.taxa = tuple(taxa)


class UnknownNameError(SpeciesNameError):
    """Nothing has the name. `near`: what was meant, if it is clearly a typing error; `words`: the name, no ranks."""

    def __init__(self, message: str, near: Iterable[Taxon] = (), words: str = "") -> None:
        super().__init__(message)
        self.near, self.words = tuple(near), words


class HomonymError(UnknownNameError):
    """The species is not known, and its genus is the name of several. `taxon`: the group that the model would show."""

    def __init__(self, message: str, taxon: Taxon) -> None:
        super().__init__(message, [taxon])
        self.taxon = taxon


def resolve(table: NameIndex, query: str) -> Resolution:
    """Return the taxon that `query` stands for; see `TaxonTable.resolve` for the rules and the errors."""
    try:
        return find(table, query)
    except HomonymError:
        raise
    except UnknownNameError as error:
        raise _unknown(table, clean(query), list(error.near) or nearest(table, query, error)) from None


def nearest(table: NameIndex, query: str, error: UnknownNameError, tables: Collection[NameIndex] = ()) -> list[Taxon]:
    """Return up to five taxa that an unknown name may have meant, best first.

    `tables`: others that may tell to which class the name belongs.
    """
    text = clean(query)
    classes = classes_named(tables or [table], text)
    return table.nearest(error.words, 5, classes) or table.nearest(text, 5, classes)


def find(table: NameIndex, query: str) -> Resolution:
    """As `resolve`, except that an UnknownNameError does not list the nearest names, which takes long to find."""
    text = clean(query)
    notes: list[str] = []
    tokens, sign = _tokens(text, notes)
    lineage, rest = _split_lineage(table, tokens)
    if sign is not None and len(lineage) + 2 <= sign < len(tokens):
        raise SpeciesNameError(
            f"{quoted(text)} is a cross of two species; give the name of one of them, or the hybrid's own name."
        )
    reject_domestic(text, [word for word in rest if _bare(word) not in _INFRASPECIFIC], table.by_name)
    match = _scientific(table, text, rest, notes) or _common(table, text, tokens, notes)
    if match is None:
        reject_placeholder(text)
    taxon, known, how = match or _fallback(table, text, lineage, rest, notes)
    _reject_bracketed(table, text, taxon)
    notes += _unread(table, text, taxon)
    notes += _contradictions(table, lineage, taxon)
    return Resolution(text, taxon, known, how, tuple(dict.fromkeys(notes)))


def _tokens(text: str, notes: list[str]) -> tuple[list[str], int | None]:
    """Split into words; brackets (authors, subgenera) and hybrid signs go.

    Also returns how many words stand before the last hybrid sign: none or one before that of a hybrid with a
    name of its own ('Quercus × comptoniae'), two or more before that of a cross ('Ursus arctos × maritimus').
    """
    # An epithet in brackets is the editor's addition, not an author or a subgenus: 'Ursus [arctos]'.
    text = re.sub(r"^([^\W\d_]+) [\[(]([a-z-]{3,})[\])]", r"\1 \2", text)
    bare = re.sub(_BRACKETS, " ", text)
    if not any(c.isalpha() for c in bare):
        bare = re.sub(r"[()\[\]]", " ", text)
    words = re.sub(r"[,;|>:\"]", " ", bare).replace("×", " × ").replace("?", " ? ").split()
    kept = [w for w in words if w not in _HYBRID and w != "X"]
    if len(kept) < len(words) and kept:
        notes.append("The hybrid sign was ignored.")
        last = max(k for k, w in enumerate(words) if w not in kept)
        return kept, sum(w in kept for w in words[:last])
    return kept or words, None


def _split_lineage(table: NameIndex, tokens: list[str]) -> tuple[list[str], list[str]]:
    """Return (leading names of higher ranks, the rest); a lone higher name stays in the rest."""
    if len(tokens) > 2 and _bare(tokens[0]) in _OPEN and tokens[0].lower() != "species":
        tokens = [tokens[1], tokens[0], *tokens[2:]]  # 'cf. Ursus arctos'
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


def _scientific(table: NameIndex, text: str, words: list[str], notes: list[str]) -> tuple[Taxon, bool, str] | None:
    """Match names of groups, valid names and synonyms exactly (up to case and grammar)."""
    first = fold(words[0])
    if len(words) == 2 and first in RANKS and first != "species":
        groups = [g for g in table.group_index.get(fold(words[1]), []) if g.rank == first]
        if len(groups) == 1:
            return groups[0], True, groups[0].rank
    if len(words) == 1:
        return _group(table, text, first, notes)
    pair = _pair(words[0], words[1])
    valid = table.by_name.get(pair)
    match = (valid, "scientific name") if valid else _other_spelling(table, text, words, notes)
    if match is None:
        return None
    taxon, how = match
    _tail(table, text, taxon, words[2:], notes)
    return taxon, True, how


def _other_spelling(table: NameIndex, text: str, words: list[str], notes: list[str]) -> tuple[Taxon, str] | None:
    """Match a synonym, a gender ending that differs, or a genus cut to its initial."""
    genus, epithet = fold(words[0]), fold(words[1])
    given = f"{genus.capitalize()} {epithet}"
    hits = table.synonym_index.get(f"{genus} {epithet}", [])
    if hits:
        taxon = _only(text, hits, "an older name of several species")
        notes.append(f"{quoted(given)} is another name of {taxon.name}; the map shows {taxon.name}.")
        return taxon, "synonym"
    if re.fullmatch(r"[a-z]\.?", genus) and len(epithet) > 2:
        hits = [t for t in table if t.name[0].lower() == genus[0] and t.name.split(" ")[1] == epithet]
        if hits:
            taxon = _only(text, hits, "an abbreviation of several species")
            notes.append(f"{quoted(' '.join(words[:2]))} was read as {taxon.name}.")
            return taxon, "scientific name"
    return _other_ending(table, genus, epithet, notes)


def _other_ending(table: NameIndex, genus: str, epithet: str, notes: list[str]) -> tuple[Taxon, str] | None:
    """Match a name or synonym of the genus that differs in the ending only ('colocola', 'colocolo'), if it is one."""
    root = stem(epithet)
    hits = table.stem_index.get(f"{genus} {root}", []) if len(root) > 2 else []
    valid = [t for t in hits if t.genus.lower() == genus and stem(t.name.split(" ")[1]) == root]
    same = valid or hits
    if len(same) != 1:
        return None
    taxon, given = same[0], f"{genus.capitalize()} {epithet}"
    if valid:
        notes.append(f"{quoted(given)} was read as {taxon.name}, the spelling this model uses.")
        return taxon, "scientific name"
    notes.append(f"{quoted(given)} is a spelling of another name of {taxon.name}; the map shows {taxon.name}.")
    return taxon, "synonym"


def _group(table: NameIndex, text: str, name: str, notes: list[str]) -> tuple[Taxon, bool, str] | None:
    """Match one word that names a genus, family, order or class."""
    hits = table.group_index.get(name, [])
    if hits:
        taxon = _only(text, hits, "the name of several groups")
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
        taxon = _only(text, hits, "an older name of several groups")
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


def _common(table: NameIndex, text: str, tokens: list[str], notes: list[str]) -> tuple[Taxon, bool, str] | None:
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
                taxon = around[0] if around else _only(text, species or groups, "a common name of several taxa")
            notes += _others_of_the_kind(table, text, key, taxon)
            return taxon, True, "common name"
    return None


def _others_of_the_kind(table: NameIndex, text: str, key: str, taxon: Taxon) -> list[str]:
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
        _only(text, [taxon, *others], "part of the names of several species")
    listed = ", ".join(t.label for t in others[:MAX_LISTED])
    return [f"{quoted(text)} is also used for {listed}."] if species else []


def _reject_bracketed(table: NameIndex, text: str, taxon: Taxon) -> None:
    """Raise where brackets hold the scientific name of another species than was found: 'wolf (Vulpes vulpes)'."""
    for inside in re.findall(r"[(\[]([^()\[\]]*)[)\]]", text):
        words = inside.split()
        other = table.by_name.get(_pair(words[0], words[1])) if len(words) > 1 else None
        if other and other is not taxon:
            raise _two_species(text, taxon, other)


def _unread(table: NameIndex, text: str, taxon: Taxon) -> list[str]:
    """Return a note on words in brackets that are no authors, subgenus or name of the species: they narrow it."""
    if taxon.rank != "species":
        return []
    own = {common_key(name) for name in (*taxon.common, taxon.name, *taxon.synonyms)}
    notes = []
    for inside in re.findall(_BRACKETS, text):
        words = inside[1:-1].split()
        plain = [word for word in words if word[0].islower() and _is_word(word)]
        known = table.common_index.get(common_key(" ".join(words)), [])
        if (
            plain
            and common_key(" ".join(words)) not in own
            and taxon not in known
            and words[0] != taxon.name.split()[1]
        ):
            notes.append(f"{quoted(inside)} after {taxon.name} was ignored; the map shows the whole species.")
    return notes


def _fallback(
    table: NameIndex, text: str, lineage: list[str], words: list[str], notes: list[str]
) -> tuple[Taxon, bool, str]:
    """Answer with the nearest group for a name that is new but has a known place; else raise."""
    unknown = UnknownNameError(f"Unknown species {quoted(text)}.", words=" ".join(words))
    if fold(words[-1]).endswith(_PATHOGENS):
        raise unknown
    genera = [g for g in table.group_index.get(fold(words[0]), []) if g.rank == "genus"]
    if genera and len(words) > 1:
        genus = _only(text, genera, "the name of several genera")
        return _in_genus(table, text, lineage, words, genus, notes)
    answer = _in_place(table, text, lineage, words, notes) or _in_lineage(table, lineage, words, notes)
    if answer is None:
        raise unknown
    return answer


def _in_genus(
    table: NameIndex, text: str, lineage: list[str], words: list[str], genus: Taxon, notes: list[str]
) -> tuple[Taxon, bool, str]:
    """Answer with the genus for an epithet that is unknown, uncertain or missing; raise for a typing error."""
    uncertain = _bare(words[1]) in _OPEN
    if uncertain:
        notes.append(f"{quoted(words[1])} marks an uncertain species; the map shows the genus {genus.name}.")
    if uncertain and len(words) > 2 and _is_word(words[2]) and words[2].islower():
        notes.append(f"Without {quoted(words[1])} the name is {quoted(f'{genus.name} {fold(words[2])}')}.")
        return genus, False, "genus"  # 'Canis cf. lupus' names a species, of which nobody is sure
    if uncertain or _is_authorship(words[1:], text):
        notes += _homonyms(table, genus)
        return genus, True, "genus"
    epithet = fold(words[1])
    _reject_typing_error(table, text, genus, epithet)
    _reject_homonym(table, text, genus.lineage, lineage, genus)
    notes.append(_not_in_the_model(words, genus))
    notes += _same_epithet(table, genus.lineage, epithet)
    return genus, False, "genus"


def _in_place(
    table: NameIndex, text: str, lineage: list[str], words: list[str], notes: list[str]
) -> tuple[Taxon, bool, str] | None:
    """Answer with the family or order of a genus, or the order of a family, that has no species in the model."""
    genus, epithet = fold(words[0]), _epithet(words)
    place = table.places.get(genus) or table.place_families.get(genus)
    if not place or fold(place[-1]) != genus:
        return None
    if epithet:
        _reject_wrong_genus(table, text, genus, epithet)
    for depth in (5, 4):
        group = table.group(place[:depth]) if depth < len(place) else None
        if group:
            _reject_homonym(table, text, place, lineage, group)
            notes.append(_not_in_the_model(words, group))
            notes += _same_epithet(table, place, epithet)
            return group, False, group.rank
    return None


def _in_lineage(
    table: NameIndex, lineage: list[str], words: list[str], notes: list[str]
) -> tuple[Taxon, bool, str] | None:
    """Answer with the lowest of the given ranks that the model knows.

    Not where the last words are a typing error for something known, and not before a lone epithet: *Proboscidea
    louisianica* is a herb, not an elephant.
    """
    lone_epithet = len(words) == 1 and words[0].islower()
    if not lineage or lone_epithet or table.nearest(" ".join(words), 5):
        return None
    for name in reversed(lineage):
        for group in table.group_index.get(fold(name), []):
            notes.append(_not_in_the_model(words, group))
            return group, False, group.rank
    return None


def _epithet(words: list[str]) -> str:
    """Return the epithet; "" where there is none or it is left open ('sp.')."""
    return fold(words[1]) if len(words) > 1 and _bare(words[1]) not in _OPEN else ""


def _not_in_the_model(words: list[str], group: Taxon) -> str:
    given = f"{fold(words[0]).capitalize()} {_epithet(words)}".rstrip()
    return f"{quoted(given)} is not in the model; the map shows the {group.rank} {group.name}."


def _homonyms(table: NameIndex, genus: Taxon) -> list[str]:
    """Return a note where other groups have a genus of the same name."""
    others = table.homonyms.get(genus.name.lower())
    if not others:
        return []
    return [f"{genus.name} is also a genus of {', '.join(others)}; the map shows that of {genus.family}."]


def _reject_homonym(table: NameIndex, text: str, place: tuple[str, ...], given: list[str], group: Taxon) -> None:
    """Raise for an unknown species of a genus whose name other groups have too, unless the ranks given say which."""
    family, genus = place[-2:]
    others = table.homonyms.get(genus.lower())
    if others and not {name.lower() for name in place} & set(map(fold, given)):
        raise HomonymError(
            f"{quoted(text)} is ambiguous: {genus} is a genus of {family} (in this model) and of {', '.join(others)}; "
            f"for the first, ask for '{group.rank} {group.name}'.",
            group,
        )


def _reject_typing_error(table: NameIndex, text: str, genus: Taxon, epithet: str) -> None:
    """Raise for an epithet that is nearly one of the genus."""
    scored = []
    for taxon in table.members(genus):
        own = taxon.name.split(" ")[1]
        score = likeness(epithet, own)
        if score >= TYPING_ERROR or _one_edit(epithet, own):
            scored.append((score, taxon))
    close = [taxon for _, taxon in sorted(scored, key=lambda pair: -pair[0])]
    if close:
        raise UnknownNameError(f"Unknown species {quoted(text)}.", close[:5])


def _one_edit(a: str, b: str) -> bool:
    """Tell whether one letter is wrong, missing or added, or two neighbours are swapped, in words of five or more."""
    from rapidfuzz.distance import OSA

    return min(len(a), len(b)) >= 5 and OSA.distance(a, b, score_cutoff=1) <= 1


def _reject_wrong_genus(table: NameIndex, text: str, genus: str, epithet: str) -> None:
    """Raise where a real genus is one typing error away from another that has this species."""
    classes = classes_named([table], genus)
    close = [
        t
        for t in table
        if t.name.split(" ")[1] == epithet
        and likeness(genus, t.genus.lower()) >= TYPING_ERROR
        and (classes is None or t.class_ in classes)
    ]
    if close:
        raise UnknownNameError(f"Unknown species {quoted(text)}.", close[:5])


def _same_epithet(table: NameIndex, place: tuple[str, ...], epithet: str) -> list[str]:
    """Return a hint where the species may have moved to another genus of the family ('Felis pardus')."""
    family = table.group(place[:5])
    moved = [
        t.name
        for t in (table.members(family) if family else ())
        if stem(t.name.split(" ")[1]) == stem(epithet) and len(stem(epithet)) > 2
    ]
    if not moved:
        return []
    return [f"The family {place[4]} has {', '.join(moved[:MAX_LISTED])}; if you mean that species, ask for that name."]


def _tail(table: NameIndex, text: str, taxon: Taxon, tail: list[str], notes: list[str]) -> None:
    """Explain what follows a binomial: a subspecies or variety is noted, authors and years are not."""
    for pair in pairwise(tail):
        other = table.by_name.get(_pair(*pair))
        if other and other is not taxon:
            raise _two_species(text, taxon, other)
    marked = [fold(word) for mark, word in pairwise(tail) if _bare(mark) in _INFRASPECIFIC]
    first = tail[0] if tail else ""
    infraspecific = marked[0] if marked else ""
    if not infraspecific and _is_word(first):
        if first.islower() and text != text.lower():
            infraspecific = fold(first)
        elif text in {text.lower(), text.upper()} or any(word[0].islower() and _is_word(word) for word in tail):
            # Authors are written with capitals: 'Tursiops truncatus Black Sea subpopulation' is none.
            notes.append(f"{quoted(' '.join(tail))} after {taxon.name} was ignored; the map shows the whole species.")
    elif not infraspecific and (_bare(first) in _OPEN or first.startswith("'")):
        notes.append(f"{quoted(' '.join(tail))} after {taxon.name} was ignored; the map shows the whole species.")
    if infraspecific:
        notes.append(
            f"{quoted(infraspecific)} names a subspecies, variety or form; the map shows the whole species "
            f"{taxon.name}."
        )
    raised = table.by_name.get(f"{taxon.genus.lower()} {infraspecific or fold(first)}")
    if raised and raised is not taxon:
        notes.append(f"{raised.name} is a species of its own in this model; ask for it by that name.")


def _is_word(text: str) -> bool:
    """Tell whether this can be an epithet or an author, rather than a particle ('von') or an open name ('cf.')."""
    return bool(re.fullmatch(r"[^\W\d_-]{3,}(-[^\W\d_]+)?", text)) and fold(text) not in _PARTICLES | _OPEN


def _contradictions(table: NameIndex, lineage: list[str], taxon: Taxon) -> list[str]:
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
    raise AmbiguousNameError(
        f"{quoted(text)} is ambiguous ({rule}): {listed}; give the scientific name you mean.", hits
    )


def _unknown(table: NameIndex, text: str, near: list[Taxon]) -> UnknownNameError:
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
