"""The command line: `taxabind-map` maps, `sdm` holds all commands. Parse, call the API, print."""

from sdm.cli import (  # noqa: F401  each adds its commands to the programs
    classify,
    embed,
    index,
    map,
    models,
    patch,
    retrieve,
    serve,
    train,
)
from sdm.cli.app import map_app, run, sdm_app


def main() -> None:
    """Entry point of `taxabind-map` and `python -m sdm`."""
    run(map_app, "taxabind-map")


def main_sdm() -> None:
    """Entry point of `sdm`."""
    run(sdm_app, "sdm")
