"""The calibrated sigmoid loss for range data, fused for speed."""

from __future__ import annotations

import torch
from torch import Tensor


class RangeLoss(torch.autograd.Function):
    """Binary cross-entropy of `sigmoid(scale * z . t + bias)` against presence in every range.

    A batch of places meets thousands of species at once, so the (B, S) matrix dominates. Its
    gradient is simply `sigmoid(logit) - presence`; computing it in place and in bfloat16, and the
    gradients of scale and bias from products already at hand, is about ten times faster than the
    generic graph. The loss value itself is only reported, from the first rows of the batch.
    """

    @staticmethod
    def forward(
        ctx, z: Tensor, t: Tensor, log_scale: Tensor, bias: Tensor, presence: Tensor, unknown: Tensor, first: int
    ) -> Tensor:
        """(B, dim), (S, dim) unit vectors, two scalars, (B, S) uint8 -> mean over places, sum over species / 100.

        At places where `unknown` (B,) bool holds, species from column `first` on have no label.
        """
        zb, tb, scale = z.bfloat16(), t.bfloat16(), log_scale.exp()
        logits = torch.addmm(bias.bfloat16(), zb * scale.bfloat16(), tb.T)
        head = logits[:64].float()
        loss = torch.nn.functional.binary_cross_entropy_with_logits(head, presence[:64].float()) * t.shape[0] / 100
        residual = logits.sigmoid_().sub_(presence.bfloat16())  # (B, S)
        residual[unknown, first:] = 0
        weight = 1.0 / (100 * z.shape[0])
        to_places = (residual @ tb).float()
        to_species = (residual.T @ zb).float()
        ones = torch.ones(residual.shape[1], 1, dtype=residual.dtype, device=residual.device)
        ctx.save_for_backward(
            to_places * (weight * scale),
            to_species * (weight * scale),
            ((z * to_places).sum() * weight * scale).reshape(log_scale.shape),
            ((residual @ ones).float().sum() * weight).reshape(bias.shape),
        )
        return loss

    @staticmethod
    def backward(ctx, grad: Tensor):
        """Gradients of the two embeddings, the log scale and the bias."""
        places, species, log_scale, bias = ctx.saved_tensors
        return grad * places, grad * species, grad * log_scale, grad * bias, None, None, None
