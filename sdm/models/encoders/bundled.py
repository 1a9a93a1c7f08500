"""The encoders of a model folder: built from its config, filled with its weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from sdm.errors import ModelError
from sdm.models.encoders.environment import EnvironmentEncoder
from sdm.models.encoders.location import LocationEncoder
from sdm.models.encoders.packed import pack
from sdm.models.encoders.satellite import SatelliteEncoder
from sdm.models.encoders.text import TaxonTower
from sdm.models.score import normalise
from sdm.request.choices import MODALITIES

ROWS_AT_ONCE = 512
"""Usual length of a batch on a CPU."""


class BundledEncoders:
    """The towers of a model folder on one device: places in, `(N, dim)` unit vectors out. Raises ModelError.

    `base`: whose towers of places are used; the folder has then those of the species alone.
    """

    def __init__(self, folder: Path, config: dict, device: str, base: BundledEncoders | None = None) -> None:
        self.device = torch.device(device)
        name = config["name"]
        try:
            vocabulary = (folder / "vocabulary.txt").read_text(encoding="utf-8").split("\n")
        except (OSError, ValueError) as error:
            raise ModelError(f"model {name!r}: vocabulary.txt cannot be read: {error}") from error
        # Whoever loads them first may be in inference mode, whose tensors have no slopes.
        with torch.inference_mode(False), torch.no_grad():
            # Without memory until the weights have been seen to fit: sizes in a config cost nothing.
            with torch.device("meta"):
                modules = build(config, vocabulary)
            if base is not None:
                modules = nn.ModuleDict({"text": modules["text"]})
            load_weights(modules, folder / "model.safetensors", name)
            modules.eval().requires_grad_(False).to(self.device)
            if self.device.type == "cpu":
                pack(modules, ROWS_AT_ONCE)
        self.text = modules["text"]
        self.location, self.satellite, self.environment = (
            modules[m] if base is None else getattr(base, m) for m in MODALITIES
        )

    def encode(self, modality: str, values: np.ndarray) -> torch.Tensor:
        """One batch of one modality -> (N, dim) unit vectors, float32 on the device.

        location: (N, 2) float64 degrees, (lon, lat), of a seasonal model (N, 3) with the month 1..12, 0 the
        whole year; satellite: (N, size, size, 3) uint8; environment: (N, inputs) float32, standardised.
        """
        x = torch.from_numpy(values)
        if modality == "location":
            x = x.float()
        x = x.to(self.device, non_blocking=True)
        # bf16 halves the time on a GPU; on a CPU it would cost accuracy and often time.
        cuda = self.device.type == "cuda"
        with torch.inference_mode(), torch.autocast("cuda", dtype=torch.bfloat16, enabled=cuda):
            y = getattr(self, modality)(x)
        return normalise(y.float())

    def encode_with_slopes(self, values: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Environment values (N, inputs) on the device and their unit vectors (N, dim), joined for `torch.autograd`."""
        cuda = self.device.type == "cuda"
        with torch.inference_mode(False), torch.enable_grad():
            x = torch.from_numpy(values).to(self.device).requires_grad_()
            with torch.autocast("cuda", dtype=torch.bfloat16, enabled=cuda):
                y = self.environment(x)
            return x, normalise(y.float())

    def encode_lineage(self, lineage: tuple[str, ...]) -> np.ndarray:
        """Unit vector (dim,) float32 of a taxonomic lineage, kingdom first. Raises KeyError if no rank is known."""
        assert isinstance(self.text, TaxonTower)
        with torch.inference_mode():
            return normalise(self.text.embed(lineage)).cpu().numpy()

    def encode_lineages(self, lineages: Sequence[tuple[str, ...]]) -> np.ndarray:
        """As `encode_lineage`, of S lineages at once: (S, dim)."""
        assert isinstance(self.text, TaxonTower)
        with torch.inference_mode():
            return normalise(self.text.embed_all(lineages)).cpu().numpy()


def build(config: dict, vocabulary: list[str], dropout: float = 0.0, env_dropout: float = 0.0) -> nn.ModuleDict:
    """The untrained modules that a config describes: location, satellite, environment, text."""
    loc, sat, env, dim = config["location"], config["satellite"], config["environment"], config["dim"]
    shape = (loc["sigmas"], loc["features"], loc["width"], loc["depth"])
    return nn.ModuleDict(
        {
            "location": LocationEncoder(dim, *shape, dropout=dropout, season=loc.get("season", False)),
            "satellite": SatelliteEncoder(dim, sat["size"], sat["width"], sat["depth"], dropout=env_dropout),
            "environment": EnvironmentEncoder(dim, len(env["inputs"]), env["width"], env["depth"], dropout=env_dropout),
            "text": TaxonTower([t for t in vocabulary if t], dim),
        }
    )


ROWS, ROW_SCALES = "text.embedding.weight", "text.embedding.scale"
"""Vectors of species; where they are whole numbers, what each row is multiplied by."""


def load_weights(modules: nn.ModuleDict, path: Path, name: str) -> None:
    """Fill modules from a safetensors file; every key, shape and number must fit. Raises ModelError.

    `name`: of the model, for messages.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"model {name!r}: model.safetensors cannot be read: {error}") from error
    expected = modules.state_dict()
    _unpack_rows(state, name)
    missing, extra = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    if missing or extra:
        raise ModelError(f"model {name!r}: weights do not fit config.json (missing {missing[:3]}, extra {extra[:3]}).")
    for key, value in state.items():
        if value.shape != expected[key].shape:
            raise ModelError(
                f"model {name!r}: weight {key} has shape {tuple(value.shape)}, "
                f"config.json says {tuple(expected[key].shape)}."
            )
        if not _finite(value):
            raise ModelError(f"model {name!r}: weight {key} holds numbers that are not finite.")
    # The text table ships in half precision to keep the wheel small.
    modules.load_state_dict({k: v.to(expected[k].dtype) for k, v in state.items()}, assign=True)


def _finite(values: torch.Tensor) -> bool:
    """Whether all numbers are finite: their sum says so at once, unless it overflows."""
    return bool(values.sum(dtype=torch.float32).isfinite() or values.isfinite().all())


def _unpack_rows(state: dict[str, torch.Tensor], name: str) -> None:
    """Multiply rows of int8 by their scales, in place. Raises ModelError where either is missing or does not fit."""
    rows, scales = state.get(ROWS), state.pop(ROW_SCALES, None)
    if rows is None or (rows.dtype.is_floating_point and scales is None):
        return
    if rows.dtype != torch.int8 or scales is None or scales.dtype != torch.float32 or scales.shape != rows.shape[:1]:
        raise ModelError(f"model {name!r}: {ROWS} of int8 needs {ROW_SCALES}, one float32 number a row, and no other.")
    state[ROWS] = rows.float() * scales[:, None]
