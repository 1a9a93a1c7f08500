"""`sdm verify`: are outputs still what was written?"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from sdm.cli.app import EPILOG, printable, sdm_app
from sdm.errors import OutputError


@sdm_app.command("verify", epilog=EPILOG)
def verify_command(
    paths: Annotated[
        list[str],
        typer.Argument(metavar="PATH...", help="Maps, batches, indexes, fits, models: files, folders, or URLs."),
    ],
    json_output: Annotated[bool, typer.Option("--json", help="As JSON on stdout.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only the exit code.")] = False,
) -> None:
    """Read all of an output and compare it with the hashes recorded when it was written.

    Exit code 0: all as written. 6: something is changed, missing or cannot be read. 2: nothing to compare with.
    """
    from sdm.maps.verify import verify

    verdicts = [verdict for path in paths for verdict in verify(path)]
    if json_output:
        print(json.dumps([{**asdict(verdict), "good": verdict.good} for verdict in verdicts], indent=2))
    elif not quiet:
        for verdict in verdicts:
            note = f" ({verdict.note})" if verdict.note else ""
            print(printable(f"{'ok' if verdict.good else 'BAD':4} {verdict.kind:6} {verdict.path}{note}"))
            for problem in verdict.problems:
                print(printable(f"       {problem}"))
    bad = [verdict for verdict in verdicts if not verdict.good]
    if bad:
        raise OutputError(
            f"{len(bad)} of {len(verdicts)} checked {'is' if len(bad) == 1 else 'are'} not as written: "
            f"{bad[0].path}: {bad[0].problems[0]}; compute it again, or take it from a copy."
        )
