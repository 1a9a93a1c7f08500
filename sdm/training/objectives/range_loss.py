"""The calibrated sigmoid loss for range data, fused for speed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sdm.training.data.labels import NOT_KNOWN

REPORTED_ROWS = 64
"""The loss value is computed from so many rows of each block; it is for the curves only."""


@dataclass(frozen=True)
class BatchLabels:
    """The labels of one block at a batch of N places."""

    labels: Tensor
    """(rows, columns) uint8: 0, 1 and `NOT_KNOWN`, or, where `soft`, 255 times a probability."""
    rows: Tensor | None
    """(rows,) places at which the block has labels; None: all N."""
    columns: slice | Tensor
    """Its species: a slice, or (columns,) indices."""
    soft: bool = False
    partial: bool = False
    """Whether `NOT_KNOWN` occurs."""
    weight: float = 1.0
    pooled: int = 0
    """How many of the first rows form groups of `group` places of one cell, which share one label."""
    group: int = 1

    def targets(self, dtype: torch.dtype, count: int | None = None) -> tuple[Tensor, Tensor | None]:
        """(labels as numbers 0..1, bool where they are not known, or None) of the first `count` rows."""
        labels = self.labels if count is None else self.labels[:count]
        if self.soft:
            return labels.to(dtype).div_(255), None
        if self.partial:
            unknown = labels == NOT_KNOWN
            return labels.masked_fill(unknown, 0).to(dtype), unknown
        return labels.to(dtype), None


class RangeLoss(torch.autograd.Function):
    """Binary cross-entropy of `sigmoid(scale * z . t + bias)` against every label of every block.

    A batch of places meets thousands of species at once, so the (B, S) matrix dominates. Its gradient is
    `sigmoid(logit) - label`; computing it in place and in half precision, and the gradients of scale and bias from
    products that are already computed, is about ten times as fast as the generic graph. The loss value is only
    reported, from the first rows of each block.

    Pooling (multiple-instance learning): a label of a raster cell holds for the cell, not for each place in it. With
    `pool` > 0 the rows in groups also have a loss on the pooled logit `log(mean(exp(logits)))` of their group. Its
    gradient by the logit of a place is the softmax weight of the place in the group times `sigmoid(pooled) - label`;
    `pool` is the share of that loss, the plain loss has the rest.
    """

    @staticmethod
    def forward(
        ctx: Any,
        z: Tensor,
        t: Tensor,
        log_scale: Tensor,
        bias: Tensor,
        blocks: Sequence[BatchLabels],
        count: float,
        pool: float = 0.0,
    ) -> Tensor:
        """The loss: sum over species / 100, mean over places.

        Parameters
        ----------
        z : (N, dim) unit vectors of places
        t : (S, dim) unit vectors of species
        log_scale, bias : (1,)
        blocks : the labels
        count : number of places that the sum is divided by: N, or with several processes the mean of their shares
        pool : share of the pooled loss

        Products are in the precision of autocast, float32 without it.
        """
        kind = z.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else torch.float32
        with torch.autocast(kind, enabled=False):
            loss, *gradients = _loss_and_gradients(z, t, log_scale, bias, blocks, 1.0 / (100 * count), pool, dtype)
            ctx.save_for_backward(*gradients)
            return loss

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor | None, ...]:
        """Gradients by the two embeddings, the log scale and the bias."""
        (grad,) = grad_outputs
        places, species, log_scale, bias = ctx.saved_tensors
        return grad * places, grad * species, grad * log_scale, grad * bias, None, None, None


def _loss_and_gradients(
    z: Tensor,
    t: Tensor,
    log_scale: Tensor,
    bias: Tensor,
    blocks: Sequence[BatchLabels],
    weight: float,
    pool: float,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(loss, its gradients by z, t, log_scale and bias)."""
    scale = log_scale.exp()
    zh, th, scaled, offset = z.to(dtype), t.to(dtype), (z * scale).to(dtype), bias.to(dtype)
    to_places, to_species = torch.zeros_like(z), torch.zeros_like(t)
    to_bias, loss = torch.zeros_like(bias), torch.zeros((), device=z.device)
    for block in blocks:
        if block.labels.numel() == 0:
            continue
        tb = th[block.columns]
        zb, scaled_b = (zh, scaled) if block.rows is None else (zh[block.rows], scaled[block.rows])
        logits = torch.addmm(offset, scaled_b, tb.T)  # (rows, columns)
        loss += _reported_loss(logits, block) * (len(logits) * weight * block.weight)
        residual = _residual(logits, block, pool, dtype)
        if block.weight != 1.0:
            residual *= block.weight
        places, species = (residual @ tb).float(), (residual.T @ zb).float()
        if block.rows is None:
            to_places += places
        else:
            to_places.index_add_(0, block.rows, places)
        if isinstance(block.columns, slice):
            to_species[block.columns] += species
        else:
            to_species.index_add_(0, block.columns, species)
        ones = torch.ones(residual.shape[1], 1, dtype=dtype, device=z.device)
        to_bias += (residual @ ones).float().sum()
    return (
        loss,
        to_places * (weight * scale),
        to_species * (weight * scale),
        ((z * to_places).sum() * weight * scale).reshape(log_scale.shape),
        (to_bias * weight).reshape(bias.shape),
    )


def _reported_loss(logits: Tensor, block: BatchLabels) -> Tensor:
    """Cross-entropy of the first rows, sum over species, mean over places: a scalar for the curves."""
    label, unknown = block.targets(torch.float32, REPORTED_ROWS)
    each = torch.nn.functional.binary_cross_entropy_with_logits(logits[:REPORTED_ROWS].float(), label, reduction="none")
    if unknown is not None:
        each[unknown] = 0
    return each.sum() / len(each)


def _residual(logits: Tensor, block: BatchLabels, pool: float, dtype: torch.dtype) -> Tensor:
    """Gradient of the loss by the logits (rows, columns); overwrites them."""
    label, unknown = block.targets(dtype)
    pooled = None
    if pool and block.pooled:
        groups = logits[: block.pooled].view(-1, block.group, logits.shape[1])  # (cells, places, columns)
        each = (groups - groups.amax(1, keepdim=True)).exp_()
        total = each.sum(1, keepdim=True)
        # log(mean(exp)) = max + log(total / places); the gradient by a place is its weight each / total.
        joint = (total / block.group).log_().add_(groups.amax(1, keepdim=True)).sigmoid_()
        joint.sub_(label[: block.pooled].view_as(groups)[:, :1])
        # A cell counts as its places together, so that `pool` mixes two means of the same weight.
        pooled = each.mul_(joint.div_(total).mul_(pool * block.group))
    residual = logits.sigmoid_().sub_(label)
    if pooled is not None:
        residual[: block.pooled].mul_(1 - pool).add_(pooled.flatten(0, 1))
    if unknown is not None:
        residual.masked_fill_(unknown, 0)
    return residual
