"""Text to tokens, as CLIP does it: byte-pair encoding (Sennrich et al. 2016, arXiv 1508.07909).

The token ids are those of open_clip's SimpleTokenizer for any text; the clean-up of the text (ftfy,
HTML entities, white space, lower case) and the splitting pattern are part of that definition.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise

import numpy as np

from sdm.errors import ModelError, RequestError

CONTEXT = 77
MAX_CHARACTERS = 4096
"""Far beyond the 77 tokens that are read; merging takes time with the square of a word's length."""
MERGES = 48_894
"""With 512 byte symbols and two special tokens: the vocabulary of 49,408."""
_SPECIAL = ("<start_of_text>", "<end_of_text>")
_PATTERN = r"<start_of_text>|<end_of_text>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


class Tokenizer:
    """Token ids of texts. `merges` is the text of the merges file: a header, then one pair a line."""

    def __init__(self, merges: str) -> None:
        pairs = [tuple(line.split()) for line in merges.split("\n")[1 : MERGES + 1]]
        if len(pairs) != MERGES or any(len(pair) != 2 for pair in pairs):
            raise ModelError(f"the merges file of the tokenizer is damaged: it must hold {MERGES} pairs.")
        self._symbol = _byte_symbols()
        symbols = list(self._symbol.values())
        vocabulary = [*symbols, *(s + "</w>" for s in symbols), *("".join(p) for p in pairs), *_SPECIAL]
        self._id = {token: i for i, token in enumerate(vocabulary)}
        self._rank = {pair: i for i, pair in enumerate(pairs)}
        self.start, self.end = (self._id[s] for s in _SPECIAL)
        # Names repeat their higher ranks; free text must not fill the memory.
        self._word = lru_cache(maxsize=65_536)(self._merge)
        try:
            import ftfy
            import regex
        except ImportError as error:
            raise ModelError(
                f"the text encoder needs {error.name}, which is not installed; "
                'install it with: pip install "taxabind-map[taxabind]"'
            ) from error
        self._fix, self._pattern = ftfy.fix_text, regex.compile(_PATTERN, regex.IGNORECASE)

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Texts -> (N, 77) int64: start token, tokens, end token, zeros; longer texts lose their end.

        Raises RequestError for a text of more than 4,096 characters.
        """
        out = np.zeros((len(texts), CONTEXT), np.int64)
        for row, text in zip(out, texts, strict=True):
            ids = [self.start, *self.encode(text)[: CONTEXT - 2], self.end]
            row[: len(ids)] = ids
        return out

    def encode(self, text: str) -> list[int]:
        """Ids of one text, without start and end token."""
        if len(text) > MAX_CHARACTERS:
            raise RequestError(
                f"a text of {len(text):,} characters is too long: at most {MAX_CHARACTERS:,}, of which the model "
                f"reads about the first {CONTEXT - 2} words. Shorten it."
            )
        text = html.unescape(html.unescape(self._fix(text)))
        text = " ".join(text.split()).lower()
        return [i for word in self._pattern.findall(text) for i in self._word(word)]

    def _merge(self, word: str) -> tuple[int, ...]:
        """Ids of one word: its bytes, joined pair by pair, the pair that was learned first going first."""
        if word in _SPECIAL:
            return (self._id[word],)
        parts = [self._symbol[byte] for byte in word.encode("utf-8")]
        parts[-1] += "</w>"
        while len(parts) > 1:
            first = min(pairwise(parts), key=lambda pair: self._rank.get(pair, MERGES))
            if first not in self._rank:
                break
            joined, i = [], 0
            while i < len(parts):
                step = 2 if tuple(parts[i : i + 2]) == first else 1
                joined.append("".join(parts[i : i + step]))
                i += step
            parts = joined
        return tuple(self._id[part] for part in parts)


def _byte_symbols() -> dict[int, str]:
    """A printable character for every byte: itself where Latin-1 prints it, else one from U+0100 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    rest = [byte for byte in range(256) if byte not in set(printable)]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + k) for k, byte in enumerate(rest)}
