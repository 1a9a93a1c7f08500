"""Checkpoint files: written in one step, read without running anything that they hold."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from sdm.errors import RequestError
from sdm.files.paths import replace_file

CHECKPOINT = "checkpoint.pt"

FORMAT = "taxabind-map/checkpoint-1"


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint. Raises RequestError for a file that is not one."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(state, dict) or state.get("format") != FORMAT:
            raise ValueError(f"not of the format {FORMAT!r}")
    except Exception as error:  # a damaged file can fail in any way
        reason = "it is not a checkpoint" if isinstance(error, UnpicklingError) else " ".join(str(error).split())[:120]
        raise RequestError(
            f"checkpoint {str(path)!r} cannot be read ({reason}); give --restart to start over."
        ) from error
    return state


def save(state: dict[str, Any], path: Path) -> None:
    """Write a dictionary of tensors, numbers and text in one step."""
    content = BytesIO()
    torch.save(state, content)
    replace_file(path, content.getvalue())
