"""The folder of a run that can be interrupted at any moment and continued by the same call.

While the run is unfinished, everything lies in one folder::

    batch.partial/         beside the outputs of a batch; west.zarr.partial/ for the index west.zarr
        run.json           what was asked, written first: whoever continues must ask the same (build.json)
        tiles/I.J.npz      the record of a finished tile, see `sdm.files.records`
        fits/              finished fits to records
        tmp/               files being written
        new/               outputs, under their final names
        publish.json       the outputs are being moved to their final places, see `sdm.files.publication`

A tile's record is believed only if the files it lists are whole, so neither a killed process nor a power cut leaves
a gap: the tile is computed again, and the outputs have the same bytes as those of a run that was never interrupted.

One run at a time: a lock is held by the process and dies with it.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from sdm.errors import OutputError
from sdm.files import publication
from sdm.files.atomic import check_folder, clear, disk_errors
from sdm.files.durable import write_whole
from sdm.files.locks import Lock, LockedError
from sdm.files.records import files_are_whole, read_record, record_path

REPORT = "batch.json"
"""The last output of a finished batch; it holds the configuration, and the names of all outputs."""
_CHECKED_AT_ONCE = 8


def read_report(folder: Path) -> dict[str, Any] | None:
    """The report of the finished batch in a folder; None when there is none, or it is not a batch's."""
    try:
        report = json.loads((Path(folder) / REPORT).read_bytes())
        names = report["outputs"]
        # What may be removed because the report says so must be plain names in this folder.
        plain = all(isinstance(n, str) and Path(n).name == n and n not in ("", "..") for n in names)
        return report if plain and isinstance(report["configuration"], dict) else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


@dataclass(frozen=True)
class Kind:
    """Properties of a kind of run. Texts may contain {output} and {partial}, which are paths."""

    partial: str
    """Name of the folder that holds everything until the run is finished."""
    lock: str
    """Name of the lock file."""
    request: str
    """Name of the file in `partial` that holds the configuration of the run."""
    finished: Callable[[Path], Mapping[str, Any] | None]
    """Function of the output folder: {"configuration": ..., "outputs": names} of its finished run, or None."""
    unfinished_text: str = "{partial} holds an unfinished run"
    """Begins the sentence that refuses to continue another run."""
    finished_text: str = "{output} holds a finished run"
    """Begins the sentence that refuses to replace another run."""
    foreign_text: str = "was not made by a batch run"
    """Says of an output path that it is never replaced."""
    replaceable: Callable[[Path], bool] | None = None
    """Function of an existing output: whether it may be replaced; None: any file, and folders of the finished run."""
    last: str | None = None
    """The output that is removed first and appears last: without it nothing counts as a finished run."""
    output: str | None = None
    """The only output of a run, after which it is called in messages; None: it is called after its folder."""


BATCH = Kind("batch.partial", ".taxabind-map.lock", "run.json", read_report, last=REPORT)


class Workspace:
    """A folder of outputs, and in it what is unfinished; a context manager that holds its lock.

    Raises OutputError on entering where another run holds the lock, or the folder cannot be used.
    """

    def __init__(self, folder: Path, names: Sequence[str], *, kind: Kind = BATCH, overwrite: bool = False) -> None:
        self.folder, self.names, self.kind, self.overwrite = Path(folder), tuple(names), kind, overwrite
        self.output = self.folder / kind.output if kind.output else self.folder
        self.partial = self.folder / kind.partial
        self.new, self.tmp, self.tiles, self.fits = (self.partial / n for n in ("new", "tmp", "tiles", "fits"))
        self._lock: Lock | None = None

    def __enter__(self) -> Self:
        check_folder(self.folder)
        path = self.folder / self.kind.lock
        with disk_errors(path):
            self.folder.mkdir(parents=True, exist_ok=True)
            try:
                self._lock = Lock(path)
            except LockedError as error:
                raise OutputError(
                    f"another run is writing to {self.output} ({error}); wait for it to end, or choose another --out."
                ) from None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, KeyboardInterrupt | SystemExit) and self.note:
            error.add_note(self.note)
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def is_finished(self, configuration: Mapping[str, Any]) -> bool:
        """Whether the outputs of a configuration are there already, so that `begin` would return None.

        Nothing is touched. Raises OutputError where the folder holds another run, finished or not (unless `overwrite`).
        """
        asked = json.loads(json.dumps(configuration))
        started, finished = self._started(), self.kind.finished(self.folder)
        if finished is not None and not differences(finished["configuration"], asked):
            return not self.overwrite
        if started is not None:
            self._refuse_another(self.kind.unfinished_text, started["configuration"], asked, "start over")
        elif finished is not None:
            self._refuse_another(self.kind.finished_text, finished["configuration"], asked, "replace it")
        return False

    def begin(self, configuration: Mapping[str, Any], notes: Mapping[str, Any]) -> dict[str, Any] | None:
        """Start or resume the run of a configuration; None when its finished outputs already exist.

        Parameters
        ----------
        configuration : all that the outputs depend on, as JSON values.
        notes : whatever else is to be kept, for example the command.

        Returns
        -------
        The notes of the first start: the command, for one, stays what it was.

        Raises
        ------
        OutputError : the folder holds another run, finished or not (unless `overwrite`); or, always, something that
            was not made by a run.
        """
        with disk_errors(self.partial):
            for left in self.folder.glob(self._discarded("*")):
                shutil.rmtree(left, ignore_errors=True)
            clear(self.folder)
            if publication.recover(self.partial, self.folder):  # killed while it was publishing
                self.discard()
            asked = json.loads(json.dumps(configuration))
            started, finished = self._started(), self.kind.finished(self.folder)
            resumes = started is not None and not differences(started["configuration"], asked)
            if finished is not None and not differences(finished["configuration"], asked) and not self.overwrite:
                if resumes:
                    self.discard()
                return None
            if started is not None and not resumes:
                self._refuse_another(self.kind.unfinished_text, started["configuration"], asked, "start over")
                self.discard()
                started = None
            if started is None and finished is not None:
                self._refuse_another(self.kind.finished_text, finished["configuration"], asked, "replace it")
            self._check_targets([] if finished is None else finished["outputs"])
            if started is None:
                started = {"configuration": asked, "notes": json.loads(json.dumps(notes))}
                self.partial.mkdir(exist_ok=True)
                write_whole(self.partial / self.kind.request, json.dumps(started, indent=1).encode())
            shutil.rmtree(self.tmp, ignore_errors=True)
            for folder in (self.new, self.tmp, self.tiles):
                folder.mkdir(exist_ok=True)
            return started["notes"]

    def finished(
        self, tiles: Iterable[tuple[int, int]], store: Path, tell: Callable[[int], None] = lambda done: None
    ) -> set[tuple[int, int]]:
        """The finished tiles, whose files are all as they were written; the records of others are removed.

        Parameters
        ----------
        tiles : (row, column) of each.
        store : where they wrote their files.
        tell : called with the number of tiles looked at.
        """

        def sound(tile: tuple[int, int]) -> bool:
            path = record_path(self.tiles, tile)
            if not path.exists():
                return False
            with contextlib.suppress(OutputError):
                if files_are_whole(read_record(path), store):
                    return True
            path.unlink()
            return False

        tiles = list(tiles)
        good = set()
        with ThreadPoolExecutor(_CHECKED_AT_ONCE) as pool, disk_errors(self.tiles):
            for done, (tile, ok) in enumerate(zip(tiles, pool.map(sound, tiles), strict=True), 1):
                if ok:
                    good.add(tile)
                tell(done)
        return good

    @property
    def note(self) -> str:
        """What an interrupted run leaves, for its user; "" where nothing is finished."""
        for what, files in (("tiles", self.tiles.glob("*.npz")), ("fits", self.fits.glob("*.safetensors"))):
            if any(files):
                return f"finished {what} are kept in {self.partial}; the same command resumes from them."
        return ""

    def publish(self) -> None:
        """Move every output to its final place; killed in the middle, the next run's `begin` completes it."""
        with disk_errors(self.folder):
            missing = [name for name in self.names if not os.path.lexists(self.new / name)]
            if missing:
                raise OutputError(f"Output {missing[0]} was not written; nothing is published.")
            finished = self.kind.finished(self.folder)
            stale = [] if finished is None else finished["outputs"]
            self._check_targets(stale)
            names = sorted(self.names, key=lambda name: name == self.kind.last)
            publication.publish(self.partial, self.folder, names, stale, lambda partial: self.discard())

    def discard(self) -> None:
        """Remove what is unfinished."""
        # Renamed first: half a folder must not be taken for an unfinished run.
        aside = self.folder / self._discarded(uuid.uuid4().hex[:8])
        self.partial.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)

    def _discarded(self, number: str) -> str:
        return f".{self.kind.partial.removesuffix('.partial')}.discarded-{number}"

    def _started(self) -> dict[str, Any] | None:
        """The request of an unfinished run, {"configuration": ..., "notes": ...}; None where there is none."""
        if not os.path.lexists(self.partial):
            return None
        if self.partial.is_symlink() or not self.partial.is_dir():
            raise OutputError(f"{self.partial} is not a folder; remove it or choose another --out.")
        path = self.partial / self.kind.request
        try:
            started = json.loads(path.read_bytes())
            if not isinstance(started["configuration"], dict) or not isinstance(started["notes"], dict):
                raise ValueError("not an object")
            return started
        except FileNotFoundError:
            # The first file to be written is missing: none was.
            if {child.name for child in self.partial.iterdir()} <= {f"{path.name}.part"}:
                return None
            raise OutputError(f"{self.partial} was not made by this program; remove it yourself.") from None
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise OutputError(f"{path} cannot be read ({error}); remove {self.partial}.") from None

    def _refuse_another(self, text: str, before: Mapping[str, Any], now: Mapping[str, Any], purpose: str) -> None:
        """Raise OutputError, unless overwriting, where two configurations differ."""
        differing = differences(before, now)
        if differing and not self.overwrite:
            advice = "ask for the same to continue, " if purpose == "start over" else ""
            raise OutputError(
                f"{text.format(output=self.output, partial=self.partial)} with {differing}; {advice}choose another "
                f"--out, or give --overwrite to {purpose}."
            )

    def _check_targets(self, ours: Sequence[str]) -> None:
        for name in self.names:
            path = self.folder / name
            if not os.path.lexists(path):
                continue
            if not self.overwrite:
                raise OutputError(f"{path} exists already; give --overwrite to replace it, or another --out.")
            if self.kind.replaceable is None:
                replaceable = name in ours or not path.is_dir()
            else:
                replaceable = self.kind.replaceable(path)
            if path.is_symlink() or not replaceable:
                raise OutputError(f"{path} {self.kind.foreign_text}; remove it yourself or choose another --out.")


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The differences of two configurations, as a phrase with both values: "resolution 0.1, not 0.05"; or ""."""
    keys = [key for key in dict.fromkeys([*before, *now]) if before.get(key) != now.get(key)]
    phrases = [_difference(key, before.get(key), now.get(key)) for key in keys]
    return "; ".join(phrases[:3]) + (f"; and {len(phrases) - 3} more" if len(phrases) > 3 else "")


def _difference(key: str, before: Any, now: Any) -> str:
    first, second = _short(before), _short(now)
    # Of files with other content under the same name no reader could tell the hashes apart.
    return f"{key} {first} with another content" if first == second else f"{key} {first}, not {second}"


def _short(value: Any) -> str:
    if isinstance(value, Mapping) and "content" in value:
        value = value.get("name")
    text = "nothing" if value is None else value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."
