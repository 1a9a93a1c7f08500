"""The command line: `taxabind-map` maps, `sdm` holds all commands. Parse, call the package, print.

Each module adds its commands to the programs of `sdm.cli.app` when it is imported.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

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
    try:
        from sdm.cli.interruption import interruptible
    except KeyboardInterrupt:  # its own import is the only moment before its handler is there
        raise SystemExit(130) from None
    return interruptible()


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
