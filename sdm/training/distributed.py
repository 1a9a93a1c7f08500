"""Training in one process or several: how they are started, how they share a batch, and what they agree on.

Every process draws the same global batch from the same generator and takes its share of the rows, so a
run on several devices sees the same data as a run on one. Without torchrun there is one process, and every
function here is trivial.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from sdm.errors import RequestError


def launched() -> bool:
    """Whether torchrun (or anything that sets its variables) started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


@contextmanager
def joined(device: str) -> Iterator[str]:
    """Within this context the processes of torchrun, if there are several, form a group; yields the own device.

    `device` is cpu or cuda[:N]; under torchrun, cuda means the GPU of the local rank. CPU tensors are exchanged by
    gloo, those of GPUs by nccl. Raises RequestError for one numbered GPU given to several processes.
    """
    if not launched():
        yield device
        return
    if device.startswith("cuda:"):
        raise RequestError(f"device {device!r} is one GPU, but torchrun started several processes; give cuda.")
    gpu = device.startswith("cuda")
    if gpu:
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if gpu else "gloo", timeout=timedelta(minutes=30))
    try:
        yield device
        dist.barrier()  # the first to leave must not close the connections of the others
    finally:
        dist.destroy_process_group()


def rank() -> int:
    """Number of this process among those that train together, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def size() -> int:
    """Number of processes that train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def share(n: int) -> slice:
    """The rows of this process in a global batch of `n`: equal shares, in the order of the ranks.

    Raises RequestError when `n` is not divisible, since unequal shares would weigh rows unequally.
    """
    if n % size():
        raise RequestError(f"a batch of {n} cannot be shared equally by {size()} processes; give a multiple of it.")
    each = n // size()
    return slice(rank() * each, (rank() + 1) * each)


class _Gather(torch.autograd.Function):
    """The rows of all ranks in one tensor; the gradient of a row is the sum over the losses of all ranks."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ctx.rows = rows.shape[0]
        parts = [torch.empty_like(rows) for _ in range(size())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Tensor:
        grad = grad_outputs[0].contiguous().clone()
        dist.all_reduce(grad)
        return grad[rank() * ctx.rows : (rank() + 1) * ctx.rows]


def gather(rows: Tensor) -> Tensor:
    """(n, ...) of this rank -> (size * n, ...) of all, in the order of the ranks, differentiable.

    For losses that compare across the batch (InfoNCE): each rank takes the mean loss of its own rows against all
    gathered ones. The average over the ranks, which DDP takes, is the loss of the global batch, with its gradient.
    """
    return _Gather.apply(rows) if size() > 1 else rows


def any_rank(flag: bool, device: str) -> bool:
    """Whether the flag is set on any rank."""
    if size() == 1:
        return flag
    tensor = torch.tensor([float(flag)], device=device)
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return bool(tensor.item())


def mean(values: dict[str, float], device: str) -> dict[str, float]:
    """The mean over all ranks of numbers by name; the names are the same on every rank."""
    if size() == 1:
        return values
    tensor = torch.tensor([values[k] for k in sorted(values)], dtype=torch.float64 if device == "cpu" else None)
    tensor = tensor.to(device)
    dist.all_reduce(tensor)
    return dict(zip(sorted(values), (tensor / size()).tolist(), strict=True))


def wait() -> None:
    """Return when every rank has called this."""
    if size() > 1:
        dist.barrier()
