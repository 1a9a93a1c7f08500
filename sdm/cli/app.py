"""What the commands share: the two programs, errors and exit codes, progress, printing.

Only the standard library and typer are imported at the top of every module here, so that `--help`
answers at once.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from sdm.engine.cluster import ClusterWarning
from sdm.errors import SdmError

EPILOG = (
    "Exit codes: 0 done, 1 unexpected failure, 2 bad request, 3 unknown species, 4 unusable layer, 5 unusable model, "
    "6 output cannot be written, 7 map too large, 8 cluster unreachable or its workers lost, 130 interrupted, "
    "143 terminated."
)
DEBUG = "TAXABIND_MAP_DEBUG"

_settings = {
    "no_args_is_help": True,
    "pretty_exceptions_enable": False,
    "add_completion": False,
    "context_settings": {"help_option_names": ["-h", "--help"], "max_content_width": 110},
}
Threads = Annotated[
    int | None,
    typer.Option(
        min=1, max=1024, rich_help_panel="Running", show_default=False,
        help="Tiles at once, on threads of this process (default: one per processor); with --workers, in each worker.",
    ),
]  # fmt: skip
Workers = Annotated[
    int | None,
    typer.Option(
        min=1, max=1024, rich_help_panel="Running", show_default=False,
        help="Worker processes on this machine, one tile at once in each; one per GPU if there are any. "
        "Default: none, threads of this process.",
    ),
]  # fmt: skip
SchedulerAddress = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS|FILE.json", rich_help_panel="Running", show_default=False,
        help="Compute on a running Dask cluster: tcp://HOST:PORT, tls://HOST:PORT or its scheduler file.",
    ),
]  # fmt: skip
"""Where tasks run: options of every command with tiles, for the arguments of the same names."""
Month = Annotated[
    str | None,
    typer.Option(
        metavar="1..12|NAME", rich_help_panel="Model", show_default=False,
        help="Month, of a seasonal model: 5, May. Default: the whole year, any time of it.",
    ),
]  # fmt: skip

_STAGES = {
    "checking": "checking what is there", "tiles": "encoding tiles",
    "pictures": "drawing pictures", "writing": "writing maps",
}  # fmt: skip
"""What the stages of `progress` are called."""

map_app = typer.Typer(**_settings)
sdm_app = typer.Typer(help="Train and inspect species-distribution models, and map with them.", **_settings)


def run(app: typer.Typer, name: str) -> None:
    """Run a program; every failure ends in one sentence on stderr and a documented exit code."""
    try:
        with _sigterm_cleans_up(), _warnings_in_one_line():
            app(prog_name=name)
    except SdmError as error:
        fail(str(error), error.exit_code)
    except (KeyboardInterrupt, SystemExit) as stop:
        code = 130 if isinstance(stop, KeyboardInterrupt) else stop.code
        if code not in (130, 143):
            raise
        print(f"error: interrupted; {_what_is_left(stop)}", file=sys.stderr, flush=True)
        # What worker processes shared with this one is given back when it is collected, not by leaving.
        stop.__traceback__ = stop.__context__ = None
        gc.collect()
        # The outputs are cleaned up by now. Threads of native libraries may still be busy, and tearing the
        # interpreter down under them can end in an abort: leave at once, with the right code.
        os._exit(code)
    except BrokenPipeError:
        # The reader of our output (head, less) has gone: not our error.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except Exception as error:
        if os.environ.get(DEBUG):
            raise
        text = " ".join(str(error).split())[:300]
        fail(f"unexpected failure: {type(error).__name__}: {text} (set {DEBUG}=1 to see where).", 1)


def _what_is_left(stop: BaseException) -> str:
    """What a command noted on its interruption; Typer may have put another exception around it."""
    error: BaseException | None = stop
    while error is not None:
        if notes := getattr(error, "__notes__", None):
            return notes[-1]
        error = error.__cause__ or error.__context__
    return "no output was written."


@contextmanager
def _sigterm_cleans_up() -> Iterator[None]:
    """SIGTERM unwinds like Ctrl-C, so that files and worker processes are cleaned up."""

    def terminate(number: int, frame: Any) -> None:
        raise SystemExit(143)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _warnings_in_one_line() -> Iterator[None]:
    """Warnings of ours are for the user: one line, without the place in the code."""

    def show(message: Any, category: type[Warning], *place: Any) -> None:
        if issubclass(category, ClusterWarning):
            say(f"warning: {message}")
        else:
            usual(message, category, *place)

    with warnings.catch_warnings():
        usual, warnings.showwarning = warnings.showwarning, show
        yield


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


def say_licence(model: Any) -> None:
    """Print the licence of a model to stderr where it binds what the user may do."""
    from sdm.models.licence import licence_note

    if note := licence_note(model):
        say(note)


@contextmanager
def progress(enabled: bool) -> Iterator[Callable[[str, int, int], None]]:
    """A bar with time left on stderr; nothing when it is not a terminal."""
    if not enabled or not sys.stderr.isatty():
        yield lambda stage, done, total: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
               TextColumn("left"), TimeRemainingColumn())  # fmt: skip
    with Progress(*columns, console=Console(stderr=True)) as bar:
        tasks: dict[str, Any] = {}

        def tell(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(_STAGES.get(stage, stage), total=total)
            bar.update(tasks[stage], completed=done, total=total)

        yield tell
