"""Words in lists of names that stand for no species: labels of camera traps for people, vehicles and empty pictures."""

from __future__ import annotations

from sdm.errors import SpeciesNameError, quoted
from sdm.names.text import common_key, fold

PEOPLE = "homo sapiens|human|humans|human being|person|people|man|woman|child|hunter|hiker|ranger|researcher|staff"
NOTHING = (
    "blank|empty|none|nothing|no animal|misfire|misfired|false trigger|setup|setup pickup|camera setup|test|start|end|"
    "vehicle|car|truck|motorcycle|motorbike|bicycle|no cv result|animal|other|fire|time lapse|na|n a|null|nan"
)
UNIDENTIFIED = frozenset(
    ["unknown", "unidentified", "unidentifiable", "undetermined", "indeterminate", "undefined", "unclassified"]
)
"""First words of a name of what was seen but not identified: 'unknown rodent'."""

_PEOPLE = frozenset(map(common_key, PEOPLE.split("|")))
_NOTHING = frozenset(map(common_key, NOTHING.split("|")))


def reject_placeholder(text: str) -> None:
    """Raise SpeciesNameError for a cleaned name that stands for no species."""
    key, first = common_key(text), fold(text).replace("-", " ").split()[0]
    if key in _PEOPLE:
        reason = "people, which no model maps"
    elif key in _NOTHING:
        reason = "a label for a picture, not a species"
    elif first in UNIDENTIFIED:
        reason = "a label for what was not identified, not a species"
    else:
        return
    raise SpeciesNameError(f"{quoted(text)} is {reason}; leave it out.")
