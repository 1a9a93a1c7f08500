"""The run folder: log, metrics, and a description of the run."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sdm._version import __version__
from sdm.errors import OutputError, RequestError
from sdm.files.paths import replace_file
from sdm.training import distributed

Log = Callable[[str], None]
Progress = Callable[[str, int, int], None]
"""(stage, steps done, steps in all)."""


def make_folder(folder: Path) -> None:
    """Make a folder if it does not exist. Raises OutputError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder} cannot be made: {error.strerror}; give another --run.") from None


def read_metrics(path: Path) -> dict[str, Any]:
    """The metrics of earlier stages in a run folder; {} for a new one."""
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError) as error:
        raise RequestError(f"{str(path)!r} cannot be read ({error}); give another --run, or delete it.") from None
    if not isinstance(metrics, dict):
        raise RequestError(f"{str(path)!r} does not belong to a run; give another --run.")
    return metrics


def refuse_other_run(run_folder: Path, metrics: dict[str, Any], identity: dict[str, str]) -> None:
    """Raise RequestError when the metrics of a run folder are of another recipe or other data."""
    earlier = metrics.get("run") or {}
    other = [k for k in identity if earlier.get(k) != identity[k]] if metrics else []
    if other:
        raise RequestError(
            f"run folder {str(run_folder)!r} holds a run of another {' and other '.join(other)}; "
            "give --restart to start over, or another --run."
        )


def describe_run(
    recipe: Path, settings: dict[str, Any], run_folder: Path, identity: dict[str, str], device: str
) -> None:
    """Write recipe.toml, a copy of the recipe, and run.json, its settings with defaults, versions and device."""
    make_folder(run_folder)
    replace_file(run_folder / "recipe.toml", recipe.read_bytes())
    settings = {**settings, "path": str(recipe)}
    gpu = torch.cuda.get_device_name(device) if device.startswith("cuda") else None
    description = {
        "identity": identity,
        "settings": settings,
        "device": device,
        "gpu": gpu,
        "processes": distributed.size(),
        "threads": torch.get_num_threads(),
        "versions": {
            "taxabind-map": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
        },
        "machine": f"{platform.system()} {platform.machine()}",
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    write_json(description, run_folder / "run.json")


def write_json(value: dict[str, Any], path: Path) -> None:
    """Write a JSON file in one step, on the first process only."""
    if distributed.rank() == 0:
        replace_file(path, (json.dumps(value, indent=1) + "\n").encode())


def logger(path: Path, quiet: bool) -> Log:
    """A function that prints a line with the time and appends it to a file, on the first process only.

    quiet: lines about steps are not printed, for a terminal that has a progress bar.
    """

    def log(line: str) -> None:
        if distributed.rank() != 0:
            return
        stamped = f"{time.strftime('%H:%M:%S')} {line}"
        if not quiet or not line.startswith("step "):
            print(stamped, flush=True)
        make_folder(path.parent)  # not earlier, so that a bad recipe leaves nothing behind
        with path.open("a", encoding="utf-8") as file:
            file.write(stamped + "\n")

    return log
