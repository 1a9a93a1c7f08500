"""Files that change place together: all of them or none, however the process ends.

::

    root/                  a folder on the file system of the outputs
        new/NAME           the outputs, whole
        old/NAME           what stood in their place
        publish.json       the journal: from here on the new outputs go to their places
        undo.json          the same file renamed: from here on the old outputs go back

The journal is durable before the first file moves, and goes when the last has moved; the old files go after it. What
a process that is killed in between leaves half done, the next one finishes (`recover`). An error undoes it at once.
SIGINT and SIGTERM wait meanwhile.
"""

from __future__ import annotations

import contextlib
import json
import os
import uuid
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from sdm.errors import OutputError
from sdm.files.durable import flush, flush_folder, write_whole
from sdm.files.signals import held_back

JOURNAL, UNDO = "publish.json", "undo.json"

published: list[Path] = []
"""All that this process has published: what can be said of its outputs when it is interrupted."""

_COMPANIONS = (".aux.xml", ".ovr", ".msk")
"""Extensions that GIS programs add to a .tif; left behind, such files would describe the map that was replaced."""


def companions(path: Path) -> list[Path]:
    """The files that GIS programs may have put beside an output."""
    return [path.with_name(path.name + suffix) for suffix in _COMPANIONS] if path.suffix == ".tif" else []


def publish(
    root: Path, folder: Path, names: Sequence[str], stale: Iterable[str] = (), end: Callable[[Path], None] | None = None
) -> None:
    """Move `names` from `root/new` into `folder`, setting aside in `root/old` what stands there.

    Parameters
    ----------
    root : a folder on the same file system. The caller removes it, unless `pending`.
    folder : the folder of the outputs.
    names : plain names, in their order: the first moves first, and what stands in the place of the last goes first.
    stale : other names in `folder` that go.
    end : called with `root` last, to make an end of the journal; by default `forget`.

    Raises
    ------
    OSError : after the old outputs are back. Where even that fails, the next run does it (`recover`).
    """
    new, stale = root / "new", [name for name in stale if name not in names]
    for name in names:
        flush(new / name)
    flush_folder(new)
    (root / "old").mkdir(exist_ok=True)
    with held_back():
        write_whole(root / JOURNAL, json.dumps({"names": list(names), "stale": stale}).encode())
        try:
            _forward(root, folder, names, stale)
        except BaseException:
            (root / JOURNAL).rename(root / UNDO)
            _back(root, folder, names)
            raise
        published.extend(folder / name for name in names)
        # A journal that stays is finished by the next run, which finds nothing to move.
        with contextlib.suppress(OSError):
            (end or forget)(root)


def pending(root: Path) -> bool:
    """Whether `root` holds files that `recover` still has to move."""
    return any((root / journal).exists() for journal in (JOURNAL, UNDO))


def forget(root: Path) -> None:
    """Remove the journal of what was published: from here on `root` holds nothing of worth."""
    (root / JOURNAL).unlink(missing_ok=True)
    flush_folder(root)


def recover(root: Path, folder: Path) -> bool:
    """Finish or undo what a process that was killed had begun; True: the new outputs are in place.

    The caller holds the lock of `root`, and removes it after `forget`. Raises OutputError for a damaged journal.
    """
    with held_back():
        if (root / UNDO).exists():
            names, _ = _read(root / UNDO)
            _back(root, folder, names)
            return False
        if not (root / JOURNAL).exists():
            return False
        names, stale = _read(root / JOURNAL)
        _forward(root, folder, names, stale)
        return True


def _read(journal: Path) -> tuple[list[str], list[str]]:
    """Names and stale names of a journal, which may come from anyone who can write there."""
    try:
        content = json.loads(journal.read_bytes())
        names, stale = content["names"], content["stale"]
        plain = all(isinstance(n, str) and Path(n).name == n and n not in ("", "..") for n in [*names, *stale])
        if plain and isinstance(names, list) and isinstance(stale, list):
            return names, stale
        error: object = "names that are no plain file names"
    except (ValueError, KeyError, TypeError, RecursionError) as wrong:
        error = wrong
    raise OutputError(f"{journal} cannot be read ({error}); remove {journal.parent} yourself.")


def _forward(root: Path, folder: Path, names: Sequence[str], stale: Iterable[str]) -> None:
    """Put the new outputs in place. It may have been begun before."""
    new, old = root / "new", root / "old"
    for name in reversed(names):
        if os.path.lexists(new / name):
            _set_aside([folder / name, *companions(folder / name)], old)
    _set_aside([folder / name for name in stale], old)
    for name in names:
        if os.path.lexists(new / name):
            (new / name).rename(folder / name)
    for changed in (folder, new, old):
        flush_folder(changed)


def _back(root: Path, folder: Path, names: Sequence[str]) -> None:
    """Put the old outputs back, and the new ones where they were. It may have been begun before."""
    new, old = root / "new", root / "old"
    for name in names:
        if not os.path.lexists(new / name):
            (folder / name).rename(new / name)
    for path in old.iterdir():
        if not os.path.lexists(folder / path.name):
            path.rename(folder / path.name)
    for changed in (folder, new, old):
        flush_folder(changed)
    (root / UNDO).unlink()


def _set_aside(paths: Iterable[Path], old: Path) -> None:
    for path in paths:
        if os.path.lexists(path):
            taken = os.path.lexists(old / path.name)
            path.rename(old / (f"{path.name}.{uuid.uuid4().hex[:8]}" if taken else path.name))
