"""The fused range loss against the generic graph."""

import numpy as np
import pytest
import torch

from sdm.training.data.labels import NOT_KNOWN
from sdm.training.objectives.range_loss import BatchLabels, RangeLoss


def unit(n, dim, seed):
    vectors = torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(vectors, dim=-1).requires_grad_()


def example_blocks():
    """Four blocks over 48 places and 90 species: hard with pooled places, some places, soft, partly known."""
    rng = np.random.default_rng(0)
    hard = torch.from_numpy((rng.random((48, 40)) < 0.2).astype(np.uint8))
    hard[:24] = hard[:24:4].repeat_interleave(4, dim=0)
    rows = torch.arange(48)[rng.random(48) < 0.6]
    some = torch.from_numpy((rng.random((len(rows), 50)) < 0.1).astype(np.uint8))
    soft = torch.from_numpy(rng.integers(0, 256, (48, 7)).astype(np.uint8))
    partial = torch.from_numpy(rng.choice([0, 1, NOT_KNOWN], (len(rows), 5)).astype(np.uint8))
    return [
        BatchLabels(hard, None, slice(0, 40), pooled=24, group=4),
        BatchLabels(some, rows, slice(40, 90)),
        BatchLabels(soft, None, torch.tensor([3, 89, 41, 0, 7, 8, 50]), soft=True, weight=0.5),
        BatchLabels(partial, rows, torch.tensor([1, 2, 88, 5, 4]), partial=True, weight=3.0),
    ]


def plain_loss(z, t, scale, bias, blocks, pool):
    """The definition, by the generic graph."""
    total = 0.0
    for block in blocks:
        rows = torch.arange(len(z)) if block.rows is None else block.rows
        logits = scale.exp() * (z[rows] @ t[block.columns].T) + bias
        label = block.labels.double() / 255 if block.soft else block.labels.double()
        known = torch.ones_like(label) if block.soft else (block.labels != NOT_KNOWN).double()
        label = torch.where(known > 0, label, 0.0)
        each = torch.nn.functional.binary_cross_entropy_with_logits(logits, label, reduction="none") * known
        share = torch.ones(len(rows), 1, dtype=torch.float64)
        if pool and block.pooled:
            share[: block.pooled] = 1 - pool
            cells = logits[: block.pooled].view(-1, block.group, logits.shape[1])
            joint = cells.logsumexp(1) - np.log(block.group)
            pooled = torch.nn.functional.binary_cross_entropy_with_logits(
                joint, label[: block.pooled : block.group], reduction="sum"
            )
            total = total + block.weight * pool * block.group * pooled
        total = total + block.weight * (each * share).sum()
    return total / (100 * len(z))


@pytest.mark.parametrize("pool", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_range_loss_has_the_gradient_of_cross_entropy(pool, precision):
    """Against autograd of the definition in float64; products in bfloat16 are as good as those are."""
    z, t, blocks = unit(48, 32, 1), unit(90, 32, 2), example_blocks()
    scale, bias = torch.tensor([2.5], requires_grad=True), torch.tensor([-1.0], requires_grad=True)
    exact = [v.detach().double().requires_grad_() for v in (z, t, scale, bias)]
    value = plain_loss(*exact, blocks, pool)
    value.backward()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
        loss = RangeLoss.apply(z, t, scale, bias, blocks, 48, pool)
    (loss * 2).backward()
    for v, e in zip((z, t, scale, bias), exact, strict=True):
        error = (v.grad - 2 * e.grad).norm() / (2 * e.grad).norm()
        assert error < (1e-5 if precision == "float32" else 0.012)
    if not pool:
        assert loss.item() == pytest.approx(value.item(), rel=1e-5 if precision == "float32" else 0.01)


def test_range_loss_of_shares_adds_up():
    """Two processes' shares, each divided by half the places: their mean is the whole batch's."""
    t, scale, bias = unit(90, 32, 2), torch.tensor([2.5]), torch.tensor([-1.0])
    z = unit(48, 32, 1).detach()
    labels = example_blocks()[0].labels

    def gradient(rows, count):
        t.grad = None
        RangeLoss.apply(z[rows], t, scale, bias, [BatchLabels(labels[rows], None, slice(0, 40))], count).backward()
        return t.grad.clone()

    whole = gradient(slice(0, 48), 48)
    parts = [gradient(slice(0, 20), 24), gradient(slice(20, 48), 24)]
    assert torch.allclose(sum(parts) / 2, whole, atol=1e-7)
