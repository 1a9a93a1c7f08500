"""Shared code of the commands: the two programs, errors and exit codes, progress, printing.

Only the standard library and typer are imported at the top of every module here, so that `--help`
answers at once.
"""

from __future__ import annotations

import logging
import os
import shlex
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, TextIO

import typer

from sdm.cli.command import Program
from sdm.errors import ClusterWarning, SdmError
from sdm.request.choices import parse_word
from sdm.request.months import when
from sdm.request.options import Option, Options

EPILOG = (
    "Exit codes: 0 done, 1 unexpected failure, 2 bad request, 3 unknown species, 4 unusable layer, 5 unusable model, "
    "6 output cannot be written, 7 map too large, 8 cluster unreachable or its workers lost, 130 interrupted, "
    "143 terminated."
)
DEBUG = "TAXABIND_MAP_DEBUG"
NARROW = 70
"""Columns of a terminal below which help has no tables, and progress no times."""

PROGRESS = ("bar", "lines")
"""The ways to report progress."""

_STAGES = {
    "checking": "checking finished tiles",
    "tiles": "encoding tiles",
    "ranges": "drawing ranges",
    "pictures": "drawing pictures",
    "writing": "writing maps",
}
"""Labels of the stages of a run in the progress bar."""


def program(help: str | None = None, *, no_args_is_help: bool = True) -> typer.Typer:
    """A program or group of commands with the settings that all of them share."""
    return Program(
        help=help,
        no_args_is_help=no_args_is_help,
        pretty_exceptions_enable=False,
        # In the columns of a table, words would be cut on a narrow terminal; plain paragraphs are wrapped.
        rich_markup_mode="rich" if shutil.get_terminal_size().columns >= NARROW else None,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    )


map_app = program()
sdm_app = program("Train and inspect species-distribution models, and map with them.")


@dataclass(frozen=True, kw_only=True)
class Reporting(Options):
    """Options for the output of a command to the terminal."""

    dry_run: Annotated[bool, Option("Report tiles, pixels, bytes and device without computing.", panel="Output")] = (
        False
    )
    json_output: Annotated[bool, Option("Print the report as JSON on stdout.", panel="Output", flags=("--json",))] = (
        False
    )
    quiet: Annotated[bool, Option("No progress, no summary.", panel="Output", flags=("--quiet", "-q"))] = False
    progress: Annotated[
        str,
        Option(
            "How to report progress on stderr: bar (on a terminal only), or lines such as 'progress tiles 3/16', for "
            "programs that start this one.",
            panel="Output",
            metavar="bar|lines",
        ),
    ] = "bar"

    def __post_init__(self) -> None:
        parse_word("progress", self.progress, PROGRESS)


def run(app: typer.Typer, name: str) -> None:
    """Run a program; every failure ends in one sentence on stderr and a documented exit code."""
    try:
        with _own_words_only():
            app(prog_name=name)
    except SdmError as error:
        fail(str(error), error.exit_code)
    except BrokenPipeError:
        # The reader of our output (head, less) has gone: not our error.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except Exception as error:
        if os.environ.get(DEBUG):
            raise
        text = " ".join(str(error).split())[:300]
        fail(f"unexpected failure: {type(error).__name__}: {text} (set {DEBUG}=1 to see where).", 1)


@contextmanager
def _own_words_only() -> Iterator[None]:
    """Warnings of ours are for the user: one line, without the place in the code; what libraries say is not."""
    debugging, last_resort = bool(os.environ.get(DEBUG)), logging.lastResort
    if not debugging:
        # GDAL, once for each library that has its own, prints to the file of this name what nobody handles.
        os.environ.setdefault("CPL_LOG", os.devnull)
        os.environ.setdefault("PROJ_DEBUG", "0")  # and so does PROJ, of which there are as many
        logging.lastResort = logging.NullHandler()

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if issubclass(category, ClusterWarning):
            say(f"warning: {message}")
        elif debugging:
            usual(message, category, filename, lineno, file, line)

    try:
        with warnings.catch_warnings():
            usual, warnings.showwarning = warnings.showwarning, show
            yield
    finally:
        logging.lastResort = last_resort


def fail(message: str, code: int) -> None:
    """Print an error and leave."""
    print(f"error: {printable(message)}", file=sys.stderr)
    sys.exit(code)


def printable(text: str) -> str:
    """Text safe for a terminal: hostile names must not carry escape sequences to it."""
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)


def say(text: str) -> None:
    """Print to stderr: stdout is for results."""
    print(printable(text), file=sys.stderr)


def command_line() -> str:
    """The command as the user typed it, for the reports."""
    return shlex.join(["taxabind-map", *sys.argv[1:]])


def extent_line(estimate: dict[str, Any]) -> str:
    """The line of an estimate on its extent, west, south, east and north, and the share that can be mapped."""
    extent = " ".join(f"{edge:.10g}" for edge in estimate["extent"])
    return f"extent {extent}; {estimate['mapped_share']:.0%} of it can be mapped"


def model_line(estimate: dict[str, Any]) -> str:
    """The line of an estimate that names the model, its modalities, the month and the device."""
    season = f" {when(estimate['month'])}" if estimate["month"] else ""
    return f"model {estimate['model']} ({', '.join(estimate['modalities'])}){season} on {estimate['device']}"


def say_licence(model: Any) -> None:
    """Print the licence of a model to stderr where it binds what the user may do."""
    from sdm.models.licence import licence_note

    if note := licence_note(model):
        say(note)


@contextmanager
def progress(enabled: bool, style: str = "bar") -> Iterator[Callable[[str, int, int], None]]:
    """A bar with time left on stderr, or nothing when it is not a terminal; with "lines", a line for each step."""
    if enabled and style == "lines":
        yield lambda stage, done, total: print(f"progress {stage} {done}/{total}", file=sys.stderr, flush=True)
        return
    if not enabled or not sys.stderr.isatty():
        yield lambda stage, done, total: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    columns: list[ProgressColumn] = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()]
    if console.width >= NARROW:  # else all would be cut
        columns += [TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn()]
    with Progress(*columns, console=console) as bar:
        tasks: dict[str, Any] = {}

        def tell(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(_STAGES.get(stage, stage), total=total)
            bar.update(tasks[stage], completed=done, total=total)

        yield tell
