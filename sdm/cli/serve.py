"""`sdm serve`: the species explorer on a region index."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from sdm.cli.app import EPILOG, progress, say, say_licence, sdm_app

if TYPE_CHECKING:
    from collections.abc import Callable

    from sdm.serve.app import Server


@sdm_app.command("serve", epilog=EPILOG)
def serve_command(
    index: Annotated[str, typer.Argument(help="Region index made by `sdm index build`: a folder or URL.")],
    host: Annotated[
        str, typer.Option(help="Address to listen on; any other than the default lets other machines connect.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes any that is free.")] = 8765,
    open_browser: Annotated[
        bool, typer.Option("--open/--no-open", help="Show the page in the browser of this machine.")
    ] = True,
    open_tiles: Annotated[
        bool,
        typer.Option("--open-tiles", help="Let web pages of other origins show the tiles. QGIS shows them anyway."),
    ] = False,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FOLDER", help="Default: the bundled model the index was made with.", show_default=False
        ),
    ] = None,
) -> None:
    """Explore a region index in the browser: type a name, see the map, ask what lives at a place.

    The same maps as tiles for QGIS and Leaflet: ADDRESS/tiles/{species}/{z}/{x}/{y}.png, the species as Ursus%20arctos.

    Serves until Ctrl-C. Reads only; nothing is fetched from the network.
    """
    # Requests already run in parallel: further threads of BLAS would only compete with them.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    import asyncio

    from sdm.index import Index
    from sdm.serve.app import Server, is_loopback, listen
    from sdm.serve.state import TILE_BYTES, Explorer

    opened = Index.open(index, cache_bytes=TILE_BYTES)
    sockets = listen(host, port)  # before the index is read, which may take a while
    with progress(enabled=True) as tell:
        explorer = Explorer(opened, model, lambda done, total: tell("reading the index", done, total))
    say_licence(explorer.model)
    if not is_loopback(host):
        say(
            f"warning: with --host {host} anyone who reaches this machine over the network can use the explorer; "
            "it has no password and no encryption."
        )
    code = asyncio.run(_serve(lambda: Server(explorer, sockets, host, open_tiles=open_tiles), open_browser))
    say("stopped.")
    # Threads of native libraries may still be busy; tearing the interpreter down under them can end in an abort.
    os._exit(code)


async def _serve(make: Callable[[], Server], open_browser: bool) -> int:
    """Serve until a signal; returns the exit code: 128 and the signal's number."""
    import asyncio
    import signal

    stop: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def end(number: int) -> None:
        if not stop.done():
            stop.set_result(128 + number)

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, end, number)
    server = make()
    try:
        print(server.url, flush=True)
        say("Ctrl-C stops.")
        if open_browser and _has_browser():
            import webbrowser

            await asyncio.to_thread(webbrowser.open, server.url)
        return await stop
    finally:
        await server.close()


def _has_browser() -> bool:
    """False on a machine without a screen, where Python would start a text browser in this terminal."""
    return sys.platform in ("darwin", "win32") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
