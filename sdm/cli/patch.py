"""`sdm patch`: a model between a locked and a fine-tuned one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from sdm.cli.app import EPILOG, say, sdm_app
from sdm.cli.options import takes_options
from sdm.errors import RequestError
from sdm.request.options import Option, Options

if TYPE_CHECKING:
    from sdm.training.checkpoint_patching.patch import PatchValidation
    from sdm.training.spaces import Space


@dataclass(frozen=True, kw_only=True)
class PatchOptions(Options):
    """The options of `sdm patch`."""

    locked: Annotated[
        str, Option("The state before fine-tuning: a model folder, run folder or checkpoints.", argument=True)
    ]
    tuned: Annotated[
        tuple[str, ...],
        Option(
            "States fine-tuned from LOCKED, one or more: same kinds, or checkpoint.pt, or snapshots/step-N.pt.",
            argument=True,
        ),
    ]
    out: Annotated[Path, Option("New folder, with the layout of LOCKED.", metavar="DIR")]
    mode: Annotated[
        str,
        Option(
            "sequential (one modality after another), one (the best single one), together (one alpha for all), "
            "joint (all alphas searched at once), average (the plain mean, without validation)."
        ),
    ] = "sequential"
    modality: Annotated[tuple[str, ...], Option("Patch this one, in the order given. Repeatable. Default: all.")] = ()
    alphas: Annotated[int, Option("Equal steps from 0 (locked) to 1 (fine-tuned).", low=2)] = 11
    recipe: Annotated[
        Path | None,
        Option("Validate by mean AP on half of the places the recipe holds out; the other half is reported."),
    ] = None
    dataset: Annotated[
        str | None,
        Option(
            "Validate by zero-shot accuracy on half of the observations of a split (default: test) of taxabench, "
            "isatnat or isoundnat; the other half is reported.",
            metavar="KIND:FOLDER[:SPLIT]",
        ),
    ] = None
    query: Annotated[str | None, Option("Modalities summed for the validation query.", metavar="A,B")] = None
    limit: Annotated[int, Option("Maximum number of observations used for validation.", low=10)] = 2000
    device: Annotated[str, Option("auto, cpu or cuda[:N].")] = "cpu"

    def __post_init__(self) -> None:
        if self.recipe and self.dataset:
            raise RequestError("give --recipe or --dataset, not both.")


@sdm_app.command("patch", epilog=EPILOG)
@takes_options()
def patch_command(options: PatchOptions) -> None:
    """Interpolate between the weights of a locked and a fine-tuned model, as validation data suggest.

    sdm patch runs/locked runs/tuned --recipe recipes/study.toml --mode joint --out models/patched
    """
    from sdm.models.device import local_device
    from sdm.request.choices import parse_device
    from sdm.training.checkpoint_patching.patch import BlendSettings, patch

    report = patch(
        options.locked,
        list(options.tuned),
        options.out,
        _validation(options),
        BlendSettings(options.mode, options.modality, options.alphas, local_device(parse_device(options.device))),
        say,
    )
    for name, alpha in report.get("alpha", {}).items():
        print(f"alpha {name:12} {alpha:g}")
    for part in ("validation", "test"):
        for what, value in report.get(part, {}).items():
            if what != "metric":
                print(f"{part:10} {report[part]['metric']:20} {what:10} {value:.4f}")
    print(options.out)


def _validation(options: PatchOptions) -> Callable[[Space], PatchValidation] | None:
    """The validation that the alphas are chosen by, if any."""
    from sdm.training.checkpoint_patching.patch import validation_by_dataset, validation_by_recipe

    query = [q.strip() for q in options.query.split(",")] if options.query else []
    if options.recipe:
        return validation_by_recipe(options.recipe, query, say)
    if not options.dataset:
        return None
    kind, _, rest = options.dataset.partition(":")
    folder, _, split = rest.rpartition(":") if rest.endswith((":train", ":val", ":test")) else (rest, "", "test")
    return validation_by_dataset(kind, folder, split, query, options.limit)
