"""The calibrated sigmoid loss for range data, fused for speed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

NOT_KNOWN = 2
"""A code of a hard label block: nothing is known of this species at this place."""
_SHOWN = 64


@dataclass(frozen=True)
class BlockLabels:
    """What one label block says of a batch of N places.

    `labels` (rows, columns) uint8: 0, 1 and `NOT_KNOWN`, or, where `soft`, 255 times a probability. `rows` (rows,)
    are the places that the block knows, None: all N. `columns` are its species: a slice, or (columns,) indices.
    """

    labels: Tensor
    rows: Tensor | None
    columns: slice | Tensor
    soft: bool = False
    partial: bool = False
    """Whether `NOT_KNOWN` occurs."""
    weight: float = 1.0
    pooled: int = 0
    """How many of the first rows come in groups of `group` places of one cell, for which one label holds."""
    group: int = 1

    def targets(self, dtype: torch.dtype, upto: int | None = None) -> tuple[Tensor, Tensor | None]:
        """(labels as numbers 0..1, where they are not known or None) of the first rows."""
        labels = self.labels if upto is None else self.labels[:upto]
        if self.soft:
            return labels.to(dtype).div_(255), None
        if self.partial:
            unknown = labels == NOT_KNOWN
            return labels.masked_fill(unknown, 0).to(dtype), unknown
        return labels.to(dtype), None


class RangeLoss(torch.autograd.Function):
    """Binary cross-entropy of `sigmoid(scale * z . t + bias)` against every label of every block.

    A batch of places meets thousands of species at once, so the (B, S) matrix dominates. Its gradient is simply
    `sigmoid(logit) - label`; computing it in place and in half precision, and the gradients of scale and bias from
    products already at hand, is about ten times faster than the generic graph. The loss value itself is only
    reported, from the first rows of each block.

    Pooling (multiple-instance learning). A label of a raster cell holds for the cell, not for each place in it. With
    `pool` > 0 the rows in groups also have a loss on the pooled logit `log(mean(exp(logits)))` of their group, whose
    gradient by a place's logit is its softmax weight in the group times `sigmoid(pooled) - label`; `pool` is the
    share of that loss, the plain one has the rest.
    """

    @staticmethod
    def forward(
        ctx,
        z: Tensor,
        t: Tensor,
        log_scale: Tensor,
        bias: Tensor,
        blocks: Sequence[BlockLabels],
        count: float,
        pool: float = 0.0,
    ) -> Tensor:
        """(N, dim), (S, dim) unit vectors, two scalars (1,), blocks -> sum over species / 100, mean over places.

        `count` is the number of places that the sum is divided by: N, or the mean share of a process of several.
        Products are in the precision of autocast, float32 without it.
        """
        kind = z.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else torch.float32
        with torch.autocast(kind, enabled=False):
            return _forward(ctx, z, t, log_scale, bias, blocks, 1.0 / (100 * count), pool, dtype)

    @staticmethod
    def backward(ctx, grad: Tensor):
        """Gradients of the two embeddings, the log scale and the bias."""
        places, species, log_scale, bias = ctx.saved_tensors
        return grad * places, grad * species, grad * log_scale, grad * bias, None, None, None


def _forward(ctx, z, t, log_scale, bias, blocks, weight, pool, dtype) -> Tensor:
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
        loss += _shown(logits, block) * (len(logits) * weight * block.weight)
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
    ctx.save_for_backward(
        to_places * (weight * scale),
        to_species * (weight * scale),
        ((z * to_places).sum() * weight * scale).reshape(log_scale.shape),
        (to_bias * weight).reshape(bias.shape),
    )
    return loss


def _shown(logits: Tensor, block: BlockLabels) -> Tensor:
    """Cross-entropy of the first rows, sum over species, mean over places: (), for the curves."""
    label, unknown = block.targets(torch.float32, _SHOWN)
    each = torch.nn.functional.binary_cross_entropy_with_logits(logits[:_SHOWN].float(), label, reduction="none")
    if unknown is not None:
        each[unknown] = 0
    return each.sum() / len(each)


def _residual(logits: Tensor, block: BlockLabels, pool: float, dtype: torch.dtype) -> Tensor:
    """Gradient of the loss by the logits (rows, columns), in place of them."""
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
