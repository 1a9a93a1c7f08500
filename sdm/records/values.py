"""The text of a table as numbers, dates, presences and names of species."""

from __future__ import annotations

import re

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sdm.errors import RecordsError, quoted

_MISSING = pa.array(["", "na", "n/a", "nan", "null", "none", "\\n", "nd", "<na>"])
MAX_CELL = 300
"""Characters of a cell that are kept."""
_NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?$"


def texts(column: pa.Array | pa.ChunkedArray, *, missing: bool = True) -> pa.Array:
    """A column as text without blanks around it, cut at `MAX_CELL` characters; `missing`: null where a word says so,
    as NA."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if pa.types.is_dictionary(column.type):
        # Cut first, repeat then: a long text in every row would fill the memory.
        return texts(column.dictionary, missing=missing).take(column.indices)
    column = pc.utf8_trim_whitespace(as_text(column))
    if missing:
        none = pc.is_in(pc.utf8_lower(column), value_set=_MISSING)
        column = pc.if_else(none, pa.scalar(None, pa.string()), column)
    return pc.utf8_slice_codeunits(column, 0, MAX_CELL)


def as_text(column: pa.Array) -> pa.Array:
    """A column of any type as text. Raises RecordsError for one of lists or bytes."""
    try:
        return column.cast(pa.string())
    except pa.ArrowException:
        raise RecordsError(f"a column of type {column.type} is neither text nor numbers.") from None


def numbers(column: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """(Values, float64, NaN for none; bool, True for a text that is not a number). Decimal commas are read."""
    try:
        values, wrong = column.cast(pa.float64()), np.zeros(len(column), bool)
    except pa.ArrowInvalid:
        values, wrong = _numbers_among_others(column)
    result = pc.fill_null(values, np.nan).to_numpy(zero_copy_only=False).copy()
    infinite = np.isinf(result)
    result[infinite] = np.nan
    return result, wrong | infinite


def _numbers_among_others(column: pa.Array) -> tuple[pa.Array, np.ndarray]:
    column = pc.replace_substring(column, "\N{MINUS SIGN}", "-")
    comma = pc.and_(pc.match_substring(column, ","), pc.invert(pc.match_substring(column, ".")))
    column = pc.if_else(comma, pc.replace_substring(column, ",", "."), column)
    valid = pc.fill_null(pc.match_substring_regex(column, _NUMBER), False)
    wrong = pc.and_(pc.is_valid(column), pc.invert(valid)).to_numpy(zero_copy_only=False)
    plain = pc.if_else(valid, pc.utf8_ltrim(column, "+"), pa.scalar(None, pa.string()))
    return plain.cast(pa.float64()), wrong


_ANGLE = (
    r"^(?P<before>[NSEWnsew]?)\s*(?P<sign>[+-]?)(?P<d>\d{1,3}(?:[.,]\d+)?)\s*(?P<mark>[°º˚d]?)"
    r"\s*(?:(?P<m>\d{1,2}(?:[.,]\d+)?)\s*['’′]?\s*(?:(?P<s>\d{1,2}(?:[.,]\d+)?)\s*(?:\"|”|″|''|’’|′′)?)?)?"
    r"\s*(?P<after>[NSEWnsew]?)$"
)


def angles(column: pa.Array, letters: str) -> tuple[np.ndarray, np.ndarray]:
    """As `numbers`, of coordinates, which may also be written as 48°12'30.5"N, N 48 12.508 or 48.2085° N.

    `letters`: those of its two directions, the positive one first, such as "NS".
    """
    values, wrong = numbers(column)
    if not wrong.any():
        return values, wrong
    rows = np.flatnonzero(wrong)
    text = pc.replace_substring(column.take(pa.array(rows)), "\N{MINUS SIGN}", "-")
    found = pc.extract_regex(text, _ANGLE)
    part = {name: pc.fill_null(pc.struct_field(found, name), "") for name in ("before", "sign", "mark", "after")}
    degrees, minutes, seconds = (
        few_numbers(pc.replace_substring(pc.fill_null(pc.struct_field(found, name), ""), ",", ".")) for name in "dms"
    )
    ends = [np.char.upper(part[name].to_numpy(zero_copy_only=False).astype("U1")) for name in ("before", "after")]
    sign, mark = (part[name].to_numpy(zero_copy_only=False).astype("U1") for name in ("sign", "mark"))
    letter = np.where(ends[0] != "", ends[0], ends[1])
    # Without a letter or a degree sign three numbers may be anything, and with two letters or minutes of 75 nothing.
    good = ((letter != "") | (mark != "")) & ~((ends[0] != "") & (ends[1] != "")) & np.isfinite(degrees)
    good &= np.isin(letter, ["", *letters])
    minutes, seconds = np.nan_to_num(minutes), np.nan_to_num(seconds)
    good &= (minutes < 60) & (seconds < 60) & ((minutes == 0) | (degrees == np.floor(degrees)))
    negative = (sign == "-") | (letter == letters[1])
    value = np.where(negative, -1.0, 1.0) * (degrees + minutes / 60.0 + seconds / 3600.0)
    values[rows[good]], wrong[rows[good]] = value[good], False
    return values, wrong


_POINT = (
    r"(?i)^(?:SRID=4326;)?\s*POINT\s*(?:Z|M|ZM)?\s*"
    r"\(\s*(?P<x>[0-9.eE+-]+)\s+(?P<y>[0-9.eE+-]+)(?:\s+[0-9.eE+-]+)*\s*\)$"
)


def points(column: pa.Array) -> tuple[pa.Array, pa.Array]:
    """Texts of x and y of points in well-known text, as QGIS and R write them; other texts as they are, for both."""
    found = pc.extract_regex(column, _POINT)
    x, y = (pc.if_else(pc.is_valid(found), pc.struct_field(found, axis), column) for axis in "xy")
    return x, y


def few_numbers(column: pa.Array) -> np.ndarray:
    """The values of `numbers`, faster where the same texts come again and again."""
    coded = column.dictionary_encode()
    values, _ = numbers(coded.dictionary)
    return np.append(values, np.nan)[pc.fill_null(coded.indices, len(values)).to_numpy(zero_copy_only=False)]


def years_and_months(
    date: pa.Array | None, year: pa.Array | None, month: pa.Array | None, n: int
) -> tuple[np.ndarray, np.ndarray]:
    """(Years, int32; months, int8) of N rows from their columns of text; 0 where unknown."""
    years, months = np.zeros(n, np.int32), np.zeros(n, np.int8)
    if date is not None:
        years, months = _dates(date)
    if year is not None:
        given = few_numbers(year)
        known = (given >= 1) & (given <= 9999)
        years = np.where(known, np.nan_to_num(given), years).astype(np.int32)
    if month is not None:
        given = few_numbers(month)
        known = (given >= 1) & (given <= 12)
        months = np.where(known, np.nan_to_num(given), months).astype(np.int8)
    return years, months


_ISO = r"^(?P<y>\d{4})(?:[-/](?P<m>\d{1,2}))?(?:[-/]\d{1,2})?(?:[T ][^/]*)?(?:/(?P<y2>\d{4})-(?P<m2>\d{1,2}).*)?"
_LOCAL = r"^(?P<a>\d{1,2})(?P<s>[./-])(?P<b>\d{1,2})[./-](?P<y>\d{4})"


def _dates(column: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    coded = column.dictionary_encode()
    index = pc.fill_null(coded.indices, len(coded.dictionary)).to_numpy(zero_copy_only=False)
    years, months = _different_dates(coded.dictionary)
    return np.append(years, np.int32(0))[index], np.append(months, np.int8(0))[index]


def _different_dates(column: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    iso, local = pc.extract_regex(column, _ISO), pc.extract_regex(column, _LOCAL)
    years, months = _integers(iso.field("y"), iso), _integers(iso.field("m"), iso)
    # An interval over several months has none.
    end = _integers(iso.field("m2"), iso)
    months[(end > 0) & ((end != months) | (_integers(iso.field("y2"), iso) != years))] = 0
    first, second, year = (_integers(local.field(name), local) for name in "aby")
    # 13/05/2014: the day first, in this row and so in its neighbours; where no row tells, only the dot does.
    day_first = bool((first > 12).any()) or pc.any(pc.equal(local.field("s"), ".")).as_py() is True
    month_first = not day_first and bool((second > 12).any())
    named = second if day_first else first if month_first else np.where(first == second, first, 0)
    years, months = np.where(year > 0, year, years), np.where(year > 0, named, months)
    months[(months < 1) | (months > 12)] = 0
    return years.astype(np.int32), months.astype(np.int8)


def _integers(field: pa.Array, matched: pa.Array) -> np.ndarray:
    # A null struct may have fields that are not.
    valid = pc.and_(pc.is_valid(matched), pc.not_equal(pc.fill_null(field, ""), ""))
    values = pc.if_else(valid, field, pa.scalar("0")).cast(pa.int32())
    return values.to_numpy(zero_copy_only=False).copy()


_YES = frozenset(["1", "yes", "y", "true", "t", "present", "presence", "p", "pres", "detected", "observed", "x"])
_NO = frozenset(["0", "no", "n", "false", "f", "absent", "absence", "a", "abs", "undetected", "background"])


def presences(column: pa.Array, name: str, source: str) -> tuple[np.ndarray, np.ndarray]:
    """(Present, bool; stated, bool: False where the cell is blank) of a column of presence and absence.

    Raises RecordsError for a word that is neither.
    """
    coded = column.dictionary_encode()
    meaning = [_presence(str(word), name, source) for word in coded.dictionary.to_pylist()]
    codes = pc.fill_null(coded.indices, len(meaning)).to_numpy(zero_copy_only=False)
    return np.array([*meaning, False], bool)[codes], codes < len(meaning)


def _presence(word: str, name: str, source: str) -> bool:
    plain = re.sub(r"[\s_-]+", "", word).lower()
    if plain in _YES:
        return True
    if plain in _NO or plain == "notdetected":
        return False
    try:
        number = float(plain.replace(",", "."))
    except ValueError:
        number = np.nan
    if not number >= 0:
        raise RecordsError(
            f"{source}: column {quoted(name)} holds {quoted(word)}, which is neither presence nor absence; use 1 and 0."
        )
    return number > 0


# Names -----------------------------------------------------------------------------------------------

_OPEN = frozenset(["sp", "sp.", "spp", "spp.", "cf", "cf.", "aff", "aff.", "indet", "indet.", "ssp.", "subsp."])
_CROSS = ("×", "x", "X")


def species_name(text: str, scientific: bool) -> str:
    """The species in a name: without author and year, and where it is `scientific` without subspecies.

    Other words, such as vernacular names and codes, stay as they are.
    """
    words = text.replace("_", " ").split()
    if len(words) < 2:
        return " ".join(words)
    if words[1] in _OPEN:
        return words[0] if scientific else " ".join(words)
    size = 3 if words[1] in _CROSS else 2
    epithet = words[size - 1].lstrip("×") if len(words) >= size else ""
    if not (words[0][0].isupper() and epithet[:1].islower()):
        return " ".join(words)
    rest = words[size:]
    authored = bool(rest) and not rest[0][:1].islower()
    return " ".join(words[:size]) if scientific or authored else " ".join(words)


def same_name(name: str) -> str:
    """A key that is the same for spellings of a name that differ in case, spaces or underscores."""
    return " ".join(name.replace("_", " ").split()).casefold()
