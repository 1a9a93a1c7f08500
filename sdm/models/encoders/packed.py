"""Linear layers in oneDNN's own layout of the weights: the same float32 arithmetic, up to twice as fast.

The linear algebra that torch is built with (MKL) does not use AVX-512 on every processor that has it; oneDNN, which
comes with torch, does. On other processors, and where torch has no oneDNN, layers stay as they are.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn


class PackedLinear(nn.Linear):
    """`nn.Linear` with weights laid out for oneDNN, on a CPU and without gradients of the weights."""

    rows: int
    """Usual length of a batch."""
    forth: Tensor
    """The weights, laid out."""

    @cached_property
    def back(self) -> Tensor:
        """The transposed weights, for slopes along the inputs."""
        with torch.inference_mode(False):
            return packed(self.weight.detach().T.contiguous(), self.rows)

    def forward(self, input: Tensor) -> Tensor:
        """(B, in) -> (B, out)."""
        if input.requires_grad:
            return _Sloped.apply(input, self)
        return product(input, self.forth, self.bias)


class _Sloped(torch.autograd.Function):
    """The product with its slopes along the inputs."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, layer: PackedLinear) -> Tensor:
        ctx.layer = layer
        return product(input, layer.forth, layer.bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return product(grads[0].contiguous(), ctx.layer.back, None), None


def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`x @ weight.T + bias` with a packed weight."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def packed(weight: Tensor, rows: int) -> Tensor:
    """A weight (out, in) laid out for products with so many rows."""
    laid_out: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
    return laid_out


def available() -> bool:
    """Whether this processor and this torch gain by it."""
    if not torch.backends.mkldnn.is_available() or torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    return all(hasattr(torch.ops.mkldnn, name) for name in ("_linear_pointwise", "_reorder_linear_weight"))


def pack(module: nn.Module, rows: int) -> None:
    """Make the linear layers of a module packed ones, in place; `rows`: usual length of a batch.

    Weights must be float32 on the CPU and stay as they are from now on.
    """
    if not available():
        return
    for layer in module.modules():
        if type(layer) is nn.Linear:
            layer.__class__ = PackedLinear
            assert isinstance(layer, PackedLinear)
            layer.rows, layer.forth = rows, packed(layer.weight.detach(), rows)
