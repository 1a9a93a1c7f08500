"""Places through the encoders of a model, batch by batch."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from sdm.engine.inputs import Inputs, at_month, open_inputs
from sdm.models.device import local_device
from sdm.models.protocol import Model
from sdm.request import Sampling

if TYPE_CHECKING:
    import torch
    from threadpoolctl import ThreadpoolController

SAMPLED_AT_ONCE = 32768
"""Places whose layers are read together: enough that windows are read once, few enough for any tile size."""

BELT = 10.0
"""Degrees of latitude: places in any order are read belt by belt, from west to east."""


def embed_positions(
    model: Model, sampling: Sampling, lon: np.ndarray, lat: np.ndarray, device: str = "cpu"
) -> tuple[np.ndarray, np.ndarray]:
    """Sum of the embeddings of some modalities at positions; nothing is interpolated.

    Parameters
    ----------
    model : the model that encodes.
    sampling : modalities (None: all the model has), month, and layers in place of the bundled ones.
    lon, lat : (N,) float64, degrees.
    device : a torch device by name.

    Returns
    -------
    (N, dim) float32 unit vectors, and (N,) bool, which of them are known: covered by all layers.
    """
    embeddings, _, known = describe_positions(model, sampling, lon, lat, device, with_environment=False)
    return embeddings, known


def describe_positions(
    model: Model,
    sampling: Sampling,
    lon: np.ndarray,
    lat: np.ndarray,
    device: str = "cpu",
    *,
    with_environment: bool = True,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """As `embed_positions`, with the environment (N, D) float32 that the model reads there, each layer read once.

    Returns (embeddings, environment, known); D is 0 where the environment is not asked for.
    """
    import torch

    from sdm.models.score import normalise

    out, known = np.empty((lon.size, model.dim), dtype=np.float32), np.zeros(lon.size, dtype=bool)
    modalities = sampling.modalities or model.place_modalities
    inputs = open_inputs(model, modalities, sampling.environment, sampling.satellite, sampling.clamp)
    here, parts = local_device(device), []
    order = _by_area(lon, lat) if lon.size > SAMPLED_AT_ONCE else np.arange(lon.size)
    with torch.inference_mode(), one_thread(here):
        for batch in embed_batches(model, inputs, here, modalities, lon[order], lat[order], sampling.month or 0):
            places = order[batch.part]
            out[places] = normalise(batch.total)[: batch.known.size].cpu().numpy()
            known[places] = batch.known
            if with_environment and "environment" in modalities:
                parts.append(batch.values["environment"][: batch.known.size])
    if with_environment and "environment" not in modalities:
        inputs = open_inputs(model, ("environment",), sampling.environment, clamp=sampling.clamp)
        values, there = inputs.read["environment"](lon, lat)
        return out, values.astype(np.float32, copy=False), known & there
    environment = np.empty((lon.size, parts[0].shape[1] if parts else 0), np.float32)
    if parts:
        environment[order] = np.concatenate(parts)
    return out, environment, known


def _by_area(lon: np.ndarray, lat: np.ndarray) -> np.ndarray:
    """An order of places (N,), (N,) degrees in which those read together lie together, whatever order they come in."""
    return np.lexsort([lon, np.floor(lat / BELT)])


def environment_embeddings(model: Model, environment: np.ndarray, device: str) -> np.ndarray:
    """Unit embeddings (N, dim) float32 of environments (N, D) as the model reads them, in batches of one size."""
    import torch

    encoders = model.load(device)
    size = min(model.batch(("environment",), encoders.device.type), len(environment))
    out = np.empty((len(environment), model.dim), dtype=np.float32)
    with torch.inference_mode(), one_thread(device):
        for first in range(0, len(environment), size or 1):
            part = environment[first : first + size]
            filled = np.concatenate([part, np.zeros((size - len(part), *part.shape[1:]), part.dtype)])
            out[first : first + size] = encoders.encode("environment", filled)[: len(part)].cpu().numpy()
    return out


class Batch(NamedTuple):
    """A batch of places, encoded together."""

    part: slice
    """Positions among all places."""
    total: torch.Tensor
    """(batch, dim) sum of their unit embeddings; rows beyond the places are padding. The caller may change it."""
    known: np.ndarray
    """(places,) bool: covered by all layers."""
    values: dict[str, np.ndarray]
    """The values read for each modality: (batch, ...) with padding."""


def embed_batches(
    model: Model,
    inputs: Inputs,
    device: str,
    modalities: Sequence[str],
    lon: np.ndarray,
    lat: np.ndarray,
    month: int,
    unencoded: Sequence[str] = (),
) -> Iterator[Batch]:
    """Sums of the unit embeddings of some modalities (or none) at places (N,), (N,) degrees, batch by batch.

    `unencoded`: which of them are read only.
    """
    import torch

    encoders = model.load(device)
    batch = model.batch(modalities, encoders.device.type)
    chunk = max(batch, min(SAMPLED_AT_ONCE, 64 * batch))
    for first in range(0, lon.size, chunk):
        count = min(chunk, lon.size - first)
        padding = (0, -count % batch)
        x, y = (np.pad(a[first : first + count], padding, mode="edge") for a in (lon, lat))
        known = np.isfinite(x)
        if not known.all():
            x, y = np.where(known, x, 0.0), np.where(known, y, 0.0)
        values = {}
        for modality in modalities:
            read, ok = inputs.read[modality](x, y)
            values[modality] = at_month(model, read, month) if modality == "location" else read
            known = known & ok
        for start in range(0, count, batch):
            stop = min(start + batch, count)
            total = torch.zeros((batch, model.dim), device=encoders.device)
            parts = {modality: content[start : start + batch] for modality, content in values.items()}
            for modality, content in parts.items():
                if modality not in unencoded:
                    total += encoders.encode(modality, content)
            yield Batch(slice(first + start, first + stop), total, known[start:stop], parts)


class one_thread:
    """Run torch's CPU operations and NumPy's linear algebra on one thread while anything is encoded or fitted.

    Tiles and folds are the units of parallel work: threads within their small products would only wait for one
    another. And a convolution split over another number of threads may round differently, which would make a map
    depend on the machine's processors.
    """

    _lock = threading.Lock()
    _inside = 0
    _before = 1
    _algebra: Any = None

    def __init__(self, device: str = "cpu") -> None:
        self.active = device == "cpu"

    def __enter__(self) -> None:
        import torch

        cls = type(self)
        if self.active:
            with cls._lock:
                if cls._inside == 0:
                    cls._before = torch.get_num_threads()
                    _take_control()
                    cls._algebra = _libraries().limit(limits=1, user_api="blas")
                cls._inside += 1
                torch.set_num_threads(1)  # the count is kept per thread: each tile's thread sets its own

    def __exit__(self, *exc: object) -> None:
        import torch

        cls = type(self)
        if self.active:
            with cls._lock:
                cls._inside -= 1
                if cls._inside == 0:
                    torch.set_num_threads(cls._before)
                    _take_control()  # the last to leave need not be the first that entered
                    cls._algebra.restore_original_limits()


def _take_control() -> None:
    """Let this thread set how many threads linear algebra has.

    From version 3.8 on threadpoolctl silently ignores any thread but the first that did so, while that one lives.
    """
    from threadpoolctl import OpenBLASController

    if hasattr(OpenBLASController, "clear_controlling_thread"):
        OpenBLASController.clear_controlling_thread(force=True)


@cache
def _libraries() -> ThreadpoolController:
    """The libraries of this process that have threads of their own; to look for them takes some milliseconds."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()
