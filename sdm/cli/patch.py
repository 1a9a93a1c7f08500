"""`sdm patch`: a model between a locked and a fine-tuned one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sdm.cli.app import EPILOG, say, sdm_app
from sdm.errors import RequestError


@sdm_app.command("patch", epilog=EPILOG)
def patch_command(
    locked: Annotated[str, typer.Argument(help="Where fine-tuning began: a model folder, run folder or checkpoints.")],
    tuned: Annotated[
        list[str],
        typer.Argument(help="Fine-tuned from it: the same, or a checkpoint.pt, or snapshots/step-N.pt. One or more."),
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="New folder for the result, of the layout of LOCKED.")],
    mode: Annotated[
        str,
        typer.Option(
            help="sequential (one modality after another), one (the best single one), together (one alpha for all), "
            "joint (all alphas searched at once), average (the plain mean, without validation)."
        ),
    ] = "sequential",
    modality: Annotated[
        list[str] | None,
        typer.Option(help="Patch this one, in the order given. Repeatable. Default: all.", show_default=False),
    ] = None,
    alphas: Annotated[int, typer.Option(min=2, help="Equal steps from 0 (locked) to 1 (fine-tuned).")] = 11,
    recipe: Annotated[
        Path | None,
        typer.Option(
            help="Judge by mean AP in half of what this recipe holds out; the other half is reported.",
            show_default=False,
        ),
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(
            metavar="KIND:FOLDER[:SPLIT]", show_default=False,
            help="Judge by zero-shot accuracy: taxabench, isatnat or isoundnat. Of the split test (default) one half "
            "of the observations judges, the other is reported.",
        ),
    ] = None,
    query: Annotated[
        str | None,
        typer.Option(metavar="A,B", help="Modalities that are summed to be judged.", show_default=False),
    ] = None,
    limit: Annotated[int, typer.Option(min=10, help="Most observations of a dataset to judge by.")] = 2000,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda[:N].")] = "cpu",
) -> None:  # fmt: skip
    """Interpolate weights between a locked and a fine-tuned model, by what does best on validation data.

    sdm patch runs/locked runs/tuned --recipe recipes/study.toml --mode joint --out models/patched
    """
    if recipe and dataset:
        raise RequestError("give --recipe or --dataset, not both.")
    from sdm.models.device import local_device
    from sdm.request.choices import parse_device
    from sdm.training.patched import judge_by_dataset, judge_by_recipe, patch

    wanted = [q.strip() for q in query.split(",")] if query else []
    judge = None
    if recipe:
        judge = judge_by_recipe(recipe, wanted, say)
    elif dataset:
        kind, _, rest = dataset.partition(":")
        folder, _, split = rest.rpartition(":") if rest.endswith((":train", ":val", ":test")) else (rest, "", "test")
        judge = judge_by_dataset(kind, folder, split, wanted, limit)
    found = patch(locked, tuned, out, judge, mode, modality or (), alphas, local_device(parse_device(device)), say)
    for name, alpha in found.get("alpha", {}).items():
        print(f"alpha {name:12} {alpha:g}")
    for part in ("validation", "test"):
        for what, value in found.get(part, {}).items():
            if what != "metric":
                print(f"{part:10} {found[part]['metric']:20} {what:10} {value:.4f}")
    print(out)
