"""The command line: `taxabind-map` maps, `sdm` holds all commands. Parse, call the package, print.

Each module adds its commands to the programs of `sdm.cli.app` when it is imported.
"""

from __future__ import annotations

import signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    import typer


def main() -> None:
    """Entry point of `taxabind-map` and `python -m sdm`."""
    with _interruptible():
        from sdm.cli import map  # noqa: F401  one module, so that `--help` answers at once
        from sdm.cli.app import map_app, run

        run(map_app, "taxabind-map")


def main_sdm() -> None:
    """Entry point of `sdm`."""
    with _interruptible():
        from sdm.cli.app import run

        run(complete(), "sdm")


def _interruptible() -> AbstractContextManager[None]:
    """The handling of SIGINT and SIGTERM, which wait until what handles them is imported."""
    mask: set[int | signal.Signals] | None = None
    if hasattr(signal, "pthread_sigmask"):
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    from sdm.cli.interruption import interruptible

    return interruptible(mask)


def complete() -> typer.Typer:
    """The program `sdm` with all its commands."""
    from sdm.cli import (  # noqa: F401
        assess,
        classify,
        embed,
        evaluate,
        index,
        listing,
        map,
        models,
        patch,
        retrieve,
        serve,
        train,
        verify,
        zones,
    )
    from sdm.cli.app import sdm_app

    return sdm_app
