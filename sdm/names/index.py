"""The names of one model: look-up of species and groups by any of their names, members of groups, search."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from functools import cached_property

from sdm.errors import SpeciesNameError
from sdm.names.taxa import RANKS, Taxon
from sdm.names.text import clean, common_key, fold, stem

LIKENESS = 72
"""Least likeness (0 to 100, see `likeness`) of names that are listed as near: below it, many are alike by chance."""


class NameIndex:
    """The species a model knows, with their groups and names.

    Iterating gives the species in the order of the table; `len` counts them. An index is not changed after it is made.
    """

    def __init__(
        self,
        species: Iterable[Taxon],
        places: dict[str, tuple[str, ...]] | None = None,
        group_names: dict[tuple[str, str], tuple[tuple[str, ...], tuple[str, ...]]] | None = None,
        homonyms: dict[str, tuple[str, ...]] | None = None,
    ) -> None:
        """Index `species`.

        Parameters
        ----------
        species : the species of the model.
        places : lineage by lower-case name of a genus, also of genera without a species in the model.
        group_names : (common names, synonyms) by (rank, name) of a group.
        homonyms : by lower-case name of a genus, the groups outside the model that have a genus of that name too.
        """
        self._species = tuple(species)
        self._group_names = group_names or {}
        self.places = places or {}
        self.homonyms = homonyms or {}
        self.by_name = {t.name.lower(): t for t in self._species}

    def __iter__(self) -> Iterator[Taxon]:
        return iter(self._species)

    def __len__(self) -> int:
        return len(self._species)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name.lower() in self.by_name

    def members(self, taxon: Taxon) -> tuple[Taxon, ...]:
        """Return the species of the model that belong to `taxon`; the species itself for a species."""
        if taxon.rank == "species":
            own = self.by_name.get(taxon.name.lower())
            return (own,) if own else ()
        return self._members.get(taxon.lineage, ())

    def groups(self) -> tuple[Taxon, ...]:
        """Return every class, order, family and genus that has species in the model."""
        return tuple(self._groups.values())

    def group(self, lineage: tuple[str, ...]) -> Taxon | None:
        """Return the group with this lineage (kingdom down to its own rank), None or None."""
        return self._groups.get(lineage)

    def search(self, text: str, limit: int = 20) -> list[Taxon]:
        """Return taxa whose scientific name, common name or synonym resembles `text`, best first.

        Exact matches come first, then names that begin with the text, names with a word that does, names
        that contain it, and last names that are spelled much like it. Raises SpeciesNameError for text that
        cannot be a name, ValueError for a limit below 1.
        """
        if limit < 1:
            raise ValueError(f"limit must be 1 or more, not {limit}")
        words = _plain(clean(text))
        key = common_key(words)
        best: dict[Taxon, tuple[float, int, int, str]] = {}
        for name, entry_key, taxon, main in self._entries:
            score = _match_rank(words, key, name, entry_key)
            if score is None:
                continue
            # Among equals the scientific name first, then what lives in more places.
            rank = (score, 0 if main else 1, -(taxon.cells or 0), taxon.name)
            if taxon not in best or rank < best[taxon]:
                best[taxon] = rank
        taxa = sorted(best, key=best.__getitem__)
        if len(taxa) < limit:
            taxa += [t for t in self._near(words, limit) if t not in best]
        return taxa[:limit]

    def suggest(self, query: str, n: int = 5) -> list[str]:
        """Return up to `n` scientific names near `query`, best first; an unusable query gives none."""
        try:
            return [t.name for t in self.nearest(clean(query), n)]
        except SpeciesNameError:
            return []

    def nearest(self, text: str, n: int = 5, classes: Collection[str] | None = None) -> list[Taxon]:
        """Return up to `n` taxa near the cleaned `text`, best first: what a user may have meant.

        Species whose common names end in the text ('fox', 'red oak'); without any, names a typing error away from it.
        `classes`: only taxa of these classes; None: of all.
        """
        words = _plain(text)
        single = words.removesuffix("s") if len(words) > 3 else words
        kinds: dict[Taxon, None] = {}
        for name, _, taxon, main in self._entries:
            if not main and name.endswith(f" {single}"):
                kinds[taxon] = None
        widest = sorted(kinds, key=lambda t: (-(t.cells or 0), t.name))
        near = widest or self._near(words, len(self._entries), strict=True)
        return [t for t in near if classes is None or t.class_ in classes][: max(n, 0)]

    def _near(self, words: str, n: int, *, strict: bool = False) -> list[Taxon]:
        """Return taxa with a name that is spelled like the folded `words`, best first.

        `strict`: only those that `words` may be a typing error for.
        """
        from rapidfuzz import fuzz, process

        scores: dict[Taxon, float] = {}
        matches = process.extract(words, self._folded_names, scorer=fuzz.ratio, score_cutoff=LIKENESS, limit=None)
        for name, score, at in matches:
            if strict and not is_typing_error(words, name):
                continue
            taxon = self._entries[at][2]
            scores[taxon] = max(score, scores.get(taxon, 0.0))
        return sorted(scores, key=lambda t: (-scores[t], t.name))[: max(n, 0)]

    @cached_property
    def _members(self) -> dict[tuple[str, ...], tuple[Taxon, ...]]:
        members: dict[tuple[str, ...], list[Taxon]] = defaultdict(list)
        for taxon in self._species:
            for depth in range(3, 7):
                members[taxon.lineage[:depth]].append(taxon)
        return {lineage: tuple(taxa) for lineage, taxa in members.items()}

    @cached_property
    def _groups(self) -> dict[tuple[str, ...], Taxon]:
        groups = {}
        for lineage, members in self._members.items():
            rank = RANKS[len(lineage) - 1]
            common, synonyms = self._group_names.get((rank, lineage[-1]), ((), ()))
            cells = sum(t.cells or 0 for t in members)
            sea = sum((t.marine or 0) * (t.cells or 0) for t in members)
            named = {t.group for t in members}
            groups[lineage] = Taxon(
                rank,
                lineage[-1],
                lineage,
                common,
                synonyms,
                named.pop() if len(named) == 1 else "",
                round(sea / cells, 2) if cells else None,
            )
        return groups

    @cached_property
    def group_index(self) -> dict[str, list[Taxon]]:
        """Groups by lower-case scientific name; a list, as one name can stand in two kingdoms."""
        index: dict[str, list[Taxon]] = defaultdict(list)
        for taxon in self._groups.values():
            index[taxon.name.lower()].append(taxon)
        return dict(index)

    @cached_property
    def synonym_index(self) -> dict[str, list[Taxon]]:
        """Species and groups by their older names, lower case."""
        index: dict[str, list[Taxon]] = defaultdict(list)
        for taxon in (*self._species, *self._groups.values()):
            for synonym in taxon.synonyms:
                index[fold(synonym)].append(taxon)
        return dict(index)

    @cached_property
    def stem_index(self) -> dict[str, list[Taxon]]:
        """Species by genus and stem of the epithet, of their names and older names: 'leopardus colocol'."""
        index: dict[str, list[Taxon]] = defaultdict(list)
        for taxon in self._species:
            for name in (taxon.name, *taxon.synonyms):
                genus, _, epithet = fold(name).partition(" ")
                key = f"{genus} {stem(epithet)}"
                if taxon not in index[key]:
                    index[key].append(taxon)
        return dict(index)

    @cached_property
    def common_index(self) -> dict[str, list[Taxon]]:
        """Species and groups by the key of each of their common names."""
        index: dict[str, list[Taxon]] = defaultdict(list)
        for taxon in (*self._species, *self._groups.values()):
            for name in taxon.common:
                key = common_key(name)
                if key and taxon not in index[key]:
                    index[key].append(taxon)
        return dict(index)

    @cached_property
    def kind_index(self) -> dict[str, list[Taxon]]:
        """Species by the kinds that their first common name ends in: 'owl', 'screech owl' of 'Eastern Screech-Owl'."""
        index: dict[str, list[Taxon]] = defaultdict(list)
        for taxon in self._species:
            words = taxon.common[0].replace("-", " ").split() if taxon.common else []
            for at in range(max(1, len(words) - 3), len(words)):
                index[common_key(" ".join(words[at:]))].append(taxon)
        return dict(index)

    @cached_property
    def higher_names(self) -> dict[str, str]:
        """Rank by lower-case name, for every kingdom to family that the tables mention."""
        names: dict[str, str] = {}
        for lineage in (*(t.lineage for t in self._species), *self.places.values()):
            for rank, name in zip(RANKS[:5], lineage, strict=False):
                names.setdefault(name.lower(), rank)
        for taxon in self._groups.values():
            if taxon.rank != "genus":
                for synonym in taxon.synonyms:
                    names.setdefault(synonym.lower(), taxon.rank)
        return names

    @cached_property
    def place_families(self) -> dict[str, tuple[str, ...]]:
        """Lineage down to the family by lower-case family name, from the list of genera."""
        return {lineage[4].lower(): lineage[:5] for lineage in self.places.values()}

    @cached_property
    def _folded_names(self) -> list[str]:
        """The first of each of the `_entries`."""
        return [entry[0] for entry in self._entries]

    @cached_property
    def _entries(self) -> list[tuple[str, str, Taxon, bool]]:
        """(folded name, key, taxon, is it the scientific name) of every name, for the search."""
        entries = []
        for taxon in (*self._species, *self._groups.values()):
            for name in (taxon.name, *taxon.common, *taxon.synonyms):
                entries.append((_plain(name), common_key(name), taxon, name == taxon.name))
        return entries


def likeness(a: str, b: str) -> float:
    """Similarity of the spelling of two folded names, 0 to 100: letters in common, in their order, in both."""
    from rapidfuzz import fuzz

    return fuzz.ratio(a, b)


def is_typing_error(typed: str, name: str) -> bool:
    """Whether a folded text may be meant for a folded name: one letter off, and one more for every seven letters.

    Each word must be as near: 'Bitis arietans' is no slip for 'Batis orientalis'.
    """
    from rapidfuzz.distance import OSA

    distance = OSA.distance(typed, name)
    words, own = typed.split(), name.split()
    pairs = zip(words, own, strict=True) if len(words) == len(own) else [(typed, name)]
    return distance <= 1 or (
        distance <= _slips(typed, name) and all(OSA.distance(a, b) <= _slips(a, b) for a, b in pairs)
    )


def _slips(a: str, b: str) -> int:
    return 1 + min(len(a), len(b)) // 7


def _plain(name: str) -> str:
    """Return a name as the search compares it."""
    return fold(name).replace("grey", "gray").replace("-", " ")


def _match_rank(words: str, key: str, name: str, name_key: str) -> float | None:
    """Return how a name matches a search, 0 best; None where it does not."""
    if key and name_key == key:
        return 0.0
    padded = f" {name} "
    if f" {words} " in padded:
        return 1.0
    if name.startswith(words):
        return 2.0
    if f" {words}" in padded:
        return 3.0
    return 4.0 if words in name or (len(key) > 3 and key in name_key) else None
